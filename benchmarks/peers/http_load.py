"""A raw HTTP/1.1 client, in one thread over epoll, so that the server is what is measured.

Each connection keeps one request under way: the same bytes again and again, built once. Of an
answer the status is looked at, and the length where all have the same; a connection's first is
checked in full.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_HOST = "127.0.0.1"
_NO_ANSWER_S = 20.0
_RECEIVE_NBYTES = 1 << 16
_HEAD_END = b"\r\n\r\n"
_SAID_NBYTES = 200

Check = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, and what is done with the first answer to it."""

    content: bytes
    check: Check
    """Takes an answer's body; raises HttpFailed where it is wrong."""
    is_text: bool = False
    """Whether the length of answers depends on the digits of their numbers."""


class HttpFailed(Exception):
    """The server did not answer, or not as it should; the message says how."""


def post(path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """A whole request."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {_HOST}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + _HEAD_END + body


class Connection:
    """One request at a time, over a connection that is kept."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((_HOST, port), timeout=_NO_ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._unsent = memoryview(b"")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For a poller."""
        return self._socket.fileno()

    def set_nonblocking(self) -> None:
        """From now on ``send`` and ``receive`` do what can be done at once."""
        self._socket.setblocking(False)

    def call(self, request: bytes) -> bytes:
        """The body of the answer to a request; waits for it."""
        try:
            self._socket.sendall(request)
            while (body := self.receive()) is None:
                pass
        except OSError as error:
            raise HttpFailed(f"no answer: {error}") from None
        return body

    def start(self, request: bytes) -> bool:
        """Begins a request; whether it was sent in whole."""
        self._unsent = memoryview(request)
        return self.send()

    def send(self) -> bool:
        """Goes on sending; whether nothing is left."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        return not self._unsent

    def receive(self) -> bytes | None:
        """The body of the answer, once it is here in whole."""
        try:
            data = self._socket.recv(_RECEIVE_NBYTES)
        except BlockingIOError:
            return None
        if not data:
            raise HttpFailed(f"the connection was closed{_saying(self._received)}")
        if self._received:
            data = self._received + data
        body = parse(data)
        self._received = data if body is None else b""
        return body


def parse(data: bytes) -> bytes | None:
    """The body of an answer of status 200, or None where there is more to come."""
    head_end = data.find(_HEAD_END)
    if head_end < 0:
        return None
    head = data[:head_end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise HttpFailed(f"an answer without its length{_saying(data)}")
    nbytes = int(head[at + 17 :].partition(b"\r\n")[0])
    body = data[head_end + len(_HEAD_END) :]
    if len(body) < nbytes:
        return None
    if not head.startswith(b"http/1.1 200 "):
        raise HttpFailed(f"answers{_saying(data)}")
    return body


def requests_per_s(
    port: int, requests: Sequence[Request], warm_up_s: float, seconds: float
) -> float:
    """How many of the requests are answered a second; each has a connection of its own.

    The warming up before is not counted. Raises HttpFailed.
    """
    with contextlib.ExitStack() as stack:
        try:
            load = _Load(stack.enter_context(select.epoll()))
            for request in requests:
                load.add(stack.enter_context(Connection(port)), request)
            load.run(warm_up_s)
            rate = load.run(seconds)
            # What is still under way must not burden the next measurement.
            load.finish()
            return rate
        except OSError as error:
            raise HttpFailed(f"no answer: {error}") from None


class _Load:
    def __init__(self, poller: select.epoll) -> None:
        self._poller = poller
        # By file descriptor.
        self._connections: dict[int, tuple[Connection, bytes]] = {}
        self._unchecked: dict[int, Check] = {}
        self._of_text: set[int] = set()
        self._nbytes = -1

    def add(self, connection: Connection, request: Request) -> None:
        """Sends a request, and from now on the same whenever it was answered."""
        connection.set_nonblocking()
        number = connection.fileno()
        self._connections[number] = connection, request.content
        self._unchecked[number] = request.check
        if request.is_text:
            self._of_text.add(number)
        self._poller.register(number, select.EPOLLIN)
        self._wait_for(number, connection.start(request.content))

    def run(self, seconds: float) -> float:
        """Answers a second, until that time has passed and at least one came."""
        answered = 0
        started = time.perf_counter()
        while True:
            for number in self._answered():
                answered += 1
                connection, content = self._connections[number]
                # Small requests always leave at once: no call for them.
                if not connection.start(content):
                    self._wait_for(number, False)
            elapsed_s = time.perf_counter() - started
            if elapsed_s >= seconds and answered:
                return answered / elapsed_s

    def finish(self) -> None:
        """Waits for the answers that are still to come."""
        waiting = set(self._connections)
        while waiting:
            waiting.difference_update(self._answered())

    def _answered(self) -> Iterator[int]:
        """Waits for something to happen; those of the connections that got their answer."""
        events = self._poller.poll(_NO_ANSWER_S)
        if not events:
            raise HttpFailed(f"no answer in {_NO_ANSWER_S:g} s")
        for number, event in events:
            connection, _ = self._connections[number]
            if event & select.EPOLLOUT:
                self._wait_for(number, connection.send())
            if event & ~select.EPOLLOUT and (body := connection.receive()) is not None:
                self._look_at(number, body)
                yield number

    def _wait_for(self, number: int, all_sent: bool) -> None:
        events = select.EPOLLIN if all_sent else select.EPOLLIN | select.EPOLLOUT
        self._poller.modify(number, events)

    def _look_at(self, number: int, body: bytes) -> None:
        if check := self._unchecked.pop(number, None):
            check(body)
            self._nbytes = len(body)
        elif len(body) != self._nbytes and number not in self._of_text:
            raise HttpFailed(f"an answer of {len(body)} bytes instead of {self._nbytes}")


def _saying(data: bytes) -> str:
    """What a server said, for a person; nothing if it said nothing."""
    text = " ".join(data.decode(errors="replace").split())
    return f": {text[:_SAID_NBYTES]}" if text else ""
