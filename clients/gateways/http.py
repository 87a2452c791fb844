"""HTTP as gateways speak it: bounded, so that no caller can hurt the others."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

from batchyard.wire import log

# Of a request's line, and of each header.
_LINE_MAX = 8190
# Connections at once: beyond, the oldest goes.
_CONNECTIONS_MAX = 256
# A connection is for one request, and that takes milliseconds: whoever sends or reads so slowly
# does it to no good end.
_CONNECTION_S = 30.0
_LOOK_S = 1.0
# What has begun may end, when the gateway does.
_SHUTDOWN_S = 1.0
_PORT = re.compile(r":\d*$")
_HEADERS = {
    "Server": "batchyard",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@contextlib.asynccontextmanager
async def serving(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    """Answers what comes to ``sock``, which is bound, while the context is open."""
    app.on_response_prepare.append(_add_headers)
    if ipaddress.ip_address(sock.getsockname()[0]).is_loopback:
        app.middlewares.append(_refuse_other_names)
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        max_line_size=_LINE_MAX,
        max_field_size=_LINE_MAX,
        lingering_time=0,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    guard = asyncio.create_task(_guard(runner))
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        guard.cancel()
        await runner.cleanup()


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    # One request each: then the age of a connection says enough.
    response.force_close()


@web.middleware
async def _refuse_other_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web site may say that its name is 127.0.0.1's: then a browser on this machine, which takes
    what it reads here for that site's own, would let the site read it (DNS rebinding)."""
    host = request.headers.get("Host")
    if host is not None and not _is_local_name(host):
        return text("ask by an IP address or as localhost; so must a proxy (header Host)", 421)
    try:
        return await handler(request)
    except web.HTTPException as refused:
        # aiohttp's own texts have no end of line, and curl's next prompt would stand beside them.
        refused.text = f"{refused.text}\n"
        raise


def _is_local_name(host: str) -> bool:
    name = _PORT.sub("", host).lower().removeprefix("[").removesuffix("]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _guard(runner: web.AppRunner) -> None:
    """Ends connections that are too old, or too many."""
    since: dict[object, float] = {}
    while True:
        await asyncio.sleep(_LOOK_S)
        server = runner.server
        connections = [] if server is None else server.connections
        now = time.monotonic()
        since = {connection: since.get(connection, now) for connection in connections}
        ended = 0
        for i, connection in enumerate(sorted(connections, key=since.__getitem__)):
            is_one_too_many = len(connections) - i > _CONNECTIONS_MAX
            if is_one_too_many or since[connection] + _CONNECTION_S < now:
                if connection.transport is not None:
                    connection.transport.abort()
                ended += 1
        if ended:
            reason = "too slow, or too many"
            log.limited("warning", "connections_ended", number=ended, reason=reason)


def text(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer for people and scripts."""
    return web.Response(text=f"{body}\n", status=status, headers=headers)
