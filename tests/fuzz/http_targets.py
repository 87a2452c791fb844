"""What the REST gateway reads of a connection: requests, in whatever pieces they come."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from typing import Any

from fuzz.documents import fields, list_of

from batchyard.clients.gateways.rest.body_memory import BodyMemory
from batchyard.clients.gateways.rest.http_connection import HttpConnection
from batchyard.clients.gateways.rest.http_messages import Heads, HttpRequest, HttpResponse

_MAX_BODY_NBYTES = 1000
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class _Playing:
    """A server, its loop and the connection's transport, which answer at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.memory = BodyMemory(_MAX_BODY_NBYTES)
        self.heads = Heads()
        self.loop = self
        self.requests: list[HttpRequest] = []
        self.written = b""
        self.is_over = False
        self._tasks: list[Coroutine[Any, Any, None]] = []

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> object:
        """It runs in the next ``turn``."""
        self._tasks.append(coroutine)
        return coroutine

    def turn(self) -> None:
        """Runs what waits to."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            try:
                # It may let others have their turn; nobody lets it wait.
                while True:
                    assert task.send(None) is None
            except StopIteration:
                continue

    def error(self, status: int, message: str) -> HttpResponse:
        """As the gateway's."""
        return HttpResponse(message.encode(), status)

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """Notes it."""
        self.requests.append(request)
        return HttpResponse(b"")

    def left(self, connection: HttpConnection) -> None:
        """It is gone."""

    def write(self, data: bytes) -> None:
        """Nothing is said behind the end."""
        assert not self.is_over
        self.written += data

    def write_eof(self) -> None:
        """It will say no more."""
        assert not self.is_over
        self.is_over = True

    def close(self) -> None:
        """It is closed."""
        self.is_over = True

    def can_write_eof(self) -> bool:
        """As TCP's."""
        return True

    def pause_reading(self) -> None:
        """Nobody stops sending here."""

    resume_reading = pause_reading


def check_http(document: Any) -> None:
    """``[pieces]`` of what a client sends."""
    (given,) = fields(document, list)
    pieces = list_of(bytes, given)
    played = _played(pieces)
    whole = b"".join(pieces)
    bytewise = _played([whole[i : i + 1] for i in range(len(whole))])
    assert _described(played) == _described(bytewise)
    statuses = _STATUS.findall(played.written)
    assert all(int(status) >= 400 for status in statuses if status not in (b"100", b"200"))
    for request in played.requests:
        assert len(request.body) <= _MAX_BODY_NBYTES
        assert request.target
        assert not any(b"\r" in value or b"\n" in value for value in request.headers.values())
    assert played.memory.nbytes == bytewise.memory.nbytes == 0


def _played(pieces: list[bytes]) -> _Playing:
    playing = _Playing()
    connection = HttpConnection(playing)  # type: ignore[arg-type]
    connection._transport = playing  # type: ignore[assignment]
    for piece in pieces:
        connection.data_received(piece)
        playing.turn()
    connection.connection_lost(None)
    return playing


def _described(played: _Playing) -> list[Any]:
    requests = [
        (request.method, request.target, request.headers, request.body, request.keeps_alive)
        for request in played.requests
    ]
    # A body that came with its head is not asked for. Of two mistakes any may be told.
    statuses = [status for status in _STATUS.findall(played.written) if status != b"100"]
    return [requests, [status == b"200" for status in statuses], played.is_over]
