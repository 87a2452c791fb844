"""HTTP as it is on the wire: what clients send that speak it badly, or too well."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager

from support.waiting import DEADLINE_S

from batchyard.clients.gateways.rest.body_memory import BodyMemory
from batchyard.clients.gateways.rest.http_messages import HttpRequest, HttpResponse
from batchyard.clients.gateways.rest.http_server import HttpServer

Answer = Callable[[HttpRequest], Awaitable[HttpResponse]]


class RawClient:
    """A connection to a port of this machine."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._unread = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Sends these bytes, each in a packet of its own if the kernel likes."""
        for part in parts:
            self.socket.sendall(part)

    def post(self, target: str, body: bytes, *headers: str) -> None:
        """Sends a request."""
        lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, names in lower case, of what comes next."""
        while b"\r\n\r\n" not in self._unread:
            self._read_more()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): value for n, value in (line.split(": ", 1) for line in lines)}
        return int(first.split()[1]), headers

    def read(self, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        status, headers = self.read_head()
        length = 0 if is_head else int(headers["content-length"])
        while len(self._unread) < length:
            self._read_more()
        body, self._unread = self._unread[:length], self._unread[length:]
        return status, headers, body

    def is_ended(self) -> bool:
        """Waits until the other side has closed, or says more."""
        try:
            return not self._unread and not self.socket.recv(1)
        except ConnectionResetError:
            return True

    def _read_more(self) -> None:
        more = self.socket.recv(1 << 16)
        assert more, f"the connection ended after {self._unread!r}"
        self._unread += more


class InThread:
    """An asynchronous context that is open in a thread of its own."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._make = make
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> InThread:
        self.thread.start()
        assert self._started.wait(DEADLINE_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()

    def leave(self) -> None:
        """Has the context be left, without waiting for it."""
        assert self._loop is not None
        assert self._over is not None
        # The loop is over when the context was left before.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with self._make():
            self._started.set()
            await self._over.wait()


class StubHttp:
    """An ``HttpServer`` that answers as it is told."""

    def __init__(self, answer: Answer, max_body_nbytes: int) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.server: HttpServer | None = None
        self.context = InThread(self._serve)
        self._answer = answer
        self._max_body_nbytes = max_body_nbytes

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        self.server = HttpServer(self._answer, _error, BodyMemory(self._max_body_nbytes))
        async with self.server.listening(self.socket):
            yield


def _error(status: int, message: str) -> HttpResponse:
    return HttpResponse(message.encode(), status)


@contextlib.contextmanager
def stub_http(answer: Answer, max_body_nbytes: int = 1 << 20) -> Iterator[StubHttp]:
    """Serves ``answer`` over HTTP while the context is open."""
    stub = StubHttp(answer, max_body_nbytes)
    with contextlib.closing(stub.socket), stub.context:
        yield stub
