"""The metrics gateway with a broker that is played, for tests of the status page."""

from __future__ import annotations

import asyncio
import copy
import socket
import threading
from types import TracebackType
from typing import Any

from batchyard.clients.gateways.device_source import DeviceSource
from batchyard.clients.gateways.devices import Devices
from batchyard.clients.gateways.http import serving
from batchyard.clients.gateways.metrics import MetricsGateway
from batchyard.clients.gateways.source import BrokerSource


class PlayedSource(BrokerSource):
    """Answers with ``sample``, a fifth of a second older each time, with 100 requests more."""

    def __init__(self, sample: dict[str, Any]) -> None:
        """A broker that is there."""
        super().__init__("ipc:///nowhere")
        self.sample = copy.deepcopy(sample)
        self.is_silent = False

    async def read(self) -> dict[str, Any] | None:
        """As the real one; None while it ``is_silent``."""
        if self.is_silent:
            return None
        sample = self.sample
        sample["broker"]["uptime_s"] += 0.2
        for model in sample["models"]:
            model["measures"][0]["codes"]["OK"] = model["measures"][0]["codes"].get("OK", 0) + 100
            model["measures"][0]["request_seconds"]["counts"][2] += 100
        return sample


class PlayedDevices(Devices):
    """Two GPUs, of which one does not tell how busy it is."""

    def __init__(self) -> None:
        """Without NVML."""
        super().__init__([])

    def read(self) -> list[dict[str, Any]]:
        """As the real ones."""
        gpu = {"name": "Simulated <b>GPU</b>", "memory_bytes": 80 * 2**30}
        return [
            {**gpu, "device": "gpu:0", "utilization": 0.75, "memory_used_bytes": 20 * 2**30},
            {**gpu, "device": "gpu:1", "utilization": None, "memory_used_bytes": 2**30},
        ]


class PageServer:
    """Serves on a thread of its own while its context is open."""

    def __init__(self, sample: dict[str, Any]) -> None:
        """Not started yet."""
        self.source = PlayedSource(sample)
        self._gateway = MetricsGateway(self.source, DeviceSource(PlayedDevices()))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._loop = asyncio.new_event_loop()
        self._is_over: asyncio.Event | None = None
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        """Of the page, which asks five times a second."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/?interval_ms=200"

    def __enter__(self) -> PageServer:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody is there any more. Idempotent."""
        if self._thread.is_alive():
            assert self._is_over is not None
            self._loop.call_soon_threadsafe(self._is_over.set)
            self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._is_over = asyncio.Event()
        async with serving(self._gateway.application(), self._socket):
            self._is_up.set()
            await self._is_over.wait()
        # Connections that were ended are closed in the loop's next rounds.
        for _ in range(3):
            await asyncio.sleep(0)
