"""The REST gateway's process, which the supervisor starts:
``python -m batchyard.clients.gateways.rest CONTROL_FD PARENT_PID``."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import AsyncIterator

from batchyard.clients.async_client import AsyncClient
from batchyard.clients.gateways.availability import models_available
from batchyard.clients.gateways.child import GatewayProcess, run
from batchyard.clients.gateways.inference import Inference
from batchyard.clients.gateways.rest.body_memory import BodyMemory
from batchyard.clients.gateways.rest.gateway import CORS_HEADERS, RestGateway
from batchyard.clients.gateways.rest.http_server import HttpServer
from batchyard.clients.gateways.rest.options import RestOptions
from batchyard.clients.gateways.source import BrokerSource
from batchyard.wire.control import BACKLOG
from batchyard.wire.errors import ConfigurationError


@contextlib.asynccontextmanager
async def serve(process: GatewayProcess) -> AsyncIterator[None]:
    """Serves at the process' socket until the context is left, and has answered what it took."""
    (sock,) = process.sockets
    options = RestOptions.from_section(process.settings.options)
    source = BrokerSource(process.settings.endpoint)
    try:
        async with AsyncClient(process.settings.endpoint, check_shapes=False) as client:
            memory = BodyMemory(options.max_body_nbytes)
            guarded_port = _guarded_port(sock, options)
            gateway = RestGateway(Inference(client), source, options, memory, guarded_port)
            headers = CORS_HEADERS if options.enable_cors_support else ()
            server = HttpServer(gateway.answer, gateway.error, memory, headers)
            if process.settings.awaits_models:
                await models_available(client)
            _listen(sock)
            async with server.listening(sock):
                yield
    finally:
        await source.close()


def _listen(sock: socket.socket) -> None:
    """Opens the port, if no process before this one did. Raises ConfigurationError."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise ConfigurationError(
            f"cannot listen at {host} port {port}: {error.strerror}; is another server there?"
        ) from error


def _guarded_port(sock: socket.socket, options: RestOptions) -> int | None:
    """The port, where strangers' names are refused at it (see ``rebinding``)."""
    host, port = sock.getsockname()[:2]
    is_for_this_machine = ipaddress.ip_address(host).is_loopback
    return port if is_for_this_machine and not options.enable_cors_support else None


if __name__ == "__main__":
    sys.exit(run("rest", serve, int(sys.argv[1]), int(sys.argv[2])))
