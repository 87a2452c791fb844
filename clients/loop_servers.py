"""Several servers for an asynchronous client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from batchyard.clients.loop_io import LoopIo
from batchyard.clients.search import PREFERENCE_S, nobody_answered
from batchyard.clients.servers import LOOK_S, Servers
from batchyard.wire.keys import ClientCurve


class LoopServers(Servers[LoopIo]):
    """Several servers for an asynchronous client."""

    def __init__(
        self,
        endpoints: Sequence[str],
        connect_timeout: float,
        reconnect_timeout: float,
        curve: ClientCurve | None = None,
    ) -> None:
        """Not connected yet."""
        super().__init__()
        self._endpoints = endpoints
        self._connect_timeout = connect_timeout
        self._reconnect_timeout = reconnect_timeout
        self._curve = curve

    async def connect(self) -> None:
        """Connects to all. Raises Unavailable when none answers in time."""
        try:
            for endpoint in self._endpoints:
                options = self._connect_timeout, self._reconnect_timeout, self, self._curve
                driver = LoopIo([endpoint], *options)
                self.drivers.append(driver)
                await driver.connect()
            until = time.monotonic() + self._connect_timeout
            while not self.has_answered:
                if (refusal := self.refusal) is not None:
                    raise refusal
                if time.monotonic() >= until:
                    raise nobody_answered(self._endpoints, self._connect_timeout, self.doubts)
                await asyncio.sleep(LOOK_S)
            until = min(until, time.monotonic() + PREFERENCE_S)
            while not self.have_all_answered and time.monotonic() < until:
                await asyncio.sleep(LOOK_S)
        except BaseException:
            self.close()
            self.drivers = []
            raise
        self.begin()

    def close(self) -> None:
        """Ends everything that waits. Idempotent."""
        for driver in (*self.drivers, *self.left):
            driver.close()
