"""What NVML says of GPUs, for everybody who asks the gateway at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from batchyard.clients.gateways.devices import Devices
from batchyard.wire import log

# A few milliseconds a card, unless its driver hangs.
ANSWER_TIMEOUT_S = 2.0


class DeviceSource:
    """Used by one event loop. Reads once for all who want to know at the same time.

    Where a driver hangs, as when a card fell off the bus, nothing is told of GPUs until it answers:
    the server may well be serving, and all else must be seen just then.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._reading: asyncio.Future[list[dict[str, Any]]] | None = None
        self._is_silent = False

    async def read(self) -> list[dict[str, Any]]:
        """What ``Devices.read`` tells; nothing where it takes too long."""
        reading = self._reading
        if reading is None or reading.done():
            reading = self._reading = _in_thread(self._devices.read)
        elif self._is_silent:
            return []
        # Unlike other ways to wait, this does not cancel it for the others.
        await asyncio.wait([reading], timeout=ANSWER_TIMEOUT_S)
        was_silent, self._is_silent = self._is_silent, not reading.done()
        if self._is_silent:
            if not was_silent:
                log.warning("devices_silent", reason=f"NVML took over {ANSWER_TIMEOUT_S:g} s")
            return []
        if was_silent:
            log.info("devices_answer")
        return reading.result()

    def close(self) -> None:
        """Nobody wants to know any more. A call that hangs is left behind."""
        if self._reading is not None:
            self._reading.cancel()


def _in_thread(
    read: Callable[[], list[dict[str, Any]]],
) -> asyncio.Future[list[dict[str, Any]]]:
    """Not by ``asyncio.to_thread``: the process could not end while it hangs."""
    found: concurrent.futures.Future[list[dict[str, Any]]] = concurrent.futures.Future()
    # It cannot be cancelled any more.
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            found.set_result(read())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    return asyncio.wrap_future(found)
