"""An HTTP server for tests, in a thread: its answers are what a function makes of a body."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import IO

Answer = Callable[[bytes], bytes]
"""A request's body in, all that is sent back out; nothing closes the connection."""


def ok(body: bytes) -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@contextlib.contextmanager
def http_stub(answer: Answer, piece_nbytes: int = 1 << 20) -> Iterator[int]:
    """Its port. Answers are sent in pieces, each as a packet of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections.append(connection)
                thread = threading.Thread(target=_serve, args=(connection, answer, piece_nbytes))
                thread.start()
                threads.append(thread)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for connection in connections:
                connection.close()


def _serve(connection: socket.socket, answer: Answer, piece_nbytes: int) -> None:
    with contextlib.suppress(OSError), connection.makefile("rb") as reader:
        while head := _head(reader):
            (length,) = [line for line in head if line.startswith(b"Content-Length")]
            said = answer(reader.read(int(length.partition(b": ")[2])))
            if not said:
                connection.shutdown(socket.SHUT_RDWR)
            for start in range(0, len(said), piece_nbytes):
                connection.sendall(said[start : start + piece_nbytes])


def _head(reader: IO[bytes]) -> list[bytes]:
    """A request's lines; none at the end of the connection."""
    lines = []
    while (line := reader.readline()) not in (b"\r\n", b""):
        lines.append(line)
    return lines
