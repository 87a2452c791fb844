"""``grpc.health.v1.Health``, as load balancers and Kubernetes ask it:
https://github.com/grpc/grpc/blob/master/doc/health-checking.md

All services are SERVING when the server is ready, as ``/readyz`` of the metrics gateway means it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from batchyard.clients.async_client import AsyncClient
from batchyard.clients.gateways.grpc.model_service import MODEL_SERVICE
from batchyard.clients.gateways.grpc.prediction_service import PREDICTION_SERVICE
from batchyard.clients.gateways.health import obstacles
from batchyard.wire.errors import BatchyardError

# The empty name is the server as a whole.
_SERVICES = ("", PREDICTION_SERVICE, MODEL_SERVICE)
_LOOK_EVERY_S = 1.0
_LOOK_TIMEOUT_S = 2.0


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]
    """Looks every second whether the broker is ready."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__()
        self._client = client
        self._watchers: set[asyncio.Task[Any]] = set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Tells of changes until the server drains."""
        watcher = asyncio.create_task(super().Watch(request, context))
        self._watchers.add(watcher)
        try:
            await watcher
        except asyncio.CancelledError:
            watcher.cancel()
            if not self._gracefully_shutting_down:
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        finally:
            self._watchers.discard(watcher)

    async def look(self) -> None:
        """Finds out whether the server is ready."""
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                is_ready = not obstacles(await self._client.stats())
        except (BatchyardError, TimeoutError):
            is_ready = False
        serving = health_pb2.HealthCheckResponse
        for name in _SERVICES:
            await self.set(name, serving.SERVING if is_ready else serving.NOT_SERVING)

    async def keep_looking(self) -> None:
        """Does so until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    async def drain(self) -> None:
        """All services are NOT_SERVING from now on; those who watch are told, and left."""
        await self.enter_graceful_shutdown()
        # They write it when they run next.
        await asyncio.sleep(0)
        for watcher in list(self._watchers):
            watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._watchers, return_exceptions=True)
