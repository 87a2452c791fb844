"""A REST gateway in this process, for a server of the tests.

with rest_gateway(server, timeout_s=1.0) as rest:
    assert rest.post("/v1/models/m:predict", {"instances": [1.0]}).status == 200
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from support.http_get import Answer
from support.http_raw import InThread, RawClient
from support.server import Server
from support.waiting import DEADLINE_S

from batchyard.clients.gateways.child import GatewayProcess
from batchyard.clients.gateways.rest.__main__ import serve
from batchyard.pool.config_gateways import Rest
from batchyard.wire.control import GatewaySettings


class RestCaller:
    """Asks the gateway at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """What a request of its own connection is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("latin-1"), response.headers)

    def get(self, path: str, **headers: str) -> Answer:
        """The answer to GET."""
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, document: Any, **headers: str) -> Answer:
        """The answer to POST, of bytes or of what becomes JSON."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("POST", path, body, headers)

    def raw(self) -> RawClient:
        """A connection to it."""
        return RawClient(self.port)


def section(**options: Any) -> dict[str, Any]:
    """The section ``[rest]`` with these ``options``."""
    return {**Rest().model_dump(), **options}


@contextlib.contextmanager
def rest_gateway(server: Server, host: str = "127.0.0.1", **options: Any) -> Iterator[RestCaller]:
    """One with these ``options`` of ``[rest]``, while the context is open."""
    sock = socket.create_server((host, 0))
    settings = GatewaySettings(server.endpoints[0], [], section(**options))
    with contextlib.closing(sock), InThread(lambda: serve(GatewayProcess(settings, [sock]))):
        yield RestCaller(sock.getsockname()[1])
