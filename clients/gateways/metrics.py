"""The metrics gateway, which the supervisor starts:
``python -m batchyard.clients.gateways.metrics CONTROL_FD PARENT_PID``.

Prometheus reads ``/metrics``; load balancers ``/healthz`` and ``/readyz``; the status page at ``/``
reads ``/stats.json``. Each look is one question to the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from batchyard.clients.gateways.child import GatewayProcess, run
from batchyard.clients.gateways.device_source import DeviceSource
from batchyard.clients.gateways.devices import Devices
from batchyard.clients.gateways.exposition import Exposition
from batchyard.clients.gateways.health import obstacles
from batchyard.clients.gateways.http import serving, text
from batchyard.clients.gateways.page_files import read_page
from batchyard.clients.gateways.source import BrokerSource
from batchyard.wire.version import version

_FRESH = {"Cache-Control": "no-store"}
_PATHS = "/metrics, /healthz, /readyz, /stats.json"


class MetricsGateway:
    """Answers each path; used by one event loop."""

    def __init__(self, source: BrokerSource, devices: DeviceSource) -> None:
        self._source = source
        self._devices = devices
        self._page = read_page()
        self._version = version()

    def application(self) -> web.Application:
        """Its paths. GET and HEAD, nothing else."""
        app = web.Application()
        for path, handler in (
            ("/", self._index),
            ("/static/{name}", self._static),
            ("/metrics", self._metrics),
            ("/healthz", self._healthz),
            ("/readyz", self._readyz),
            ("/stats.json", self._stats),
        ):
            app.router.add_get(path, handler)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        metrics, devices = await asyncio.gather(self._source.read(), self._devices.read())
        exposition = Exposition(metrics, devices, self._version)
        body, content_type = exposition.encode(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, **_FRESH})

    async def _healthz(self, _: web.Request) -> web.Response:
        if await self._source.read() is None:
            return text("the broker does not answer", 503, _FRESH)
        return text("ok", headers=_FRESH)

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = obstacles(await self._source.read())
        return text("\n".join(reasons) or "ok", 503 if reasons else 200, _FRESH)

    async def _stats(self, _: web.Request) -> web.Response:
        metrics, devices = await asyncio.gather(self._source.read(), self._devices.read())
        body: dict[str, Any] = {"version": self._version, "devices": devices}
        if metrics is None:
            body["error"] = "the broker does not answer"
            return web.json_response(body, status=503, headers=_FRESH)
        return web.json_response({**metrics, **body}, headers=_FRESH)

    async def _index(self, _: web.Request) -> web.Response:
        if "index.html" not in self._page:
            return text(f"Batchyard {self._version}: {_PATHS}")
        return self._file("index.html")

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return self._file(name) if name in self._page else text("not found", 404)

    def _file(self, name: str) -> web.Response:
        file = self._page[name]
        headers = {"Content-Type": file.content_type, "Cache-Control": "no-cache"}
        return web.Response(body=file.body, headers=headers)


@contextlib.asynccontextmanager
async def serve(process: GatewayProcess) -> AsyncIterator[None]:
    """Serves while the context is open."""
    source = BrokerSource(process.settings.endpoint)
    devices = DeviceSource(Devices(process.settings.devices))
    gateway = MetricsGateway(source, devices)
    try:
        async with serving(gateway.application(), process.sockets[0]):
            yield
    finally:
        devices.close()
        await source.close()


if __name__ == "__main__":
    sys.exit(run("metrics", serve, int(sys.argv[1]), int(sys.argv[2])))
