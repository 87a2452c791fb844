"""Two ends of a local connection, one of which may be a plain socket that sends what it likes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from batchyard.wire.local import LocalSocket

Ends = tuple[LocalSocket, LocalSocket]
RawEnds = tuple[socket.socket, LocalSocket]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that do not block."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


@contextmanager
def local_ends() -> Iterator[Ends]:
    """Both ends, closed at the end of the block."""
    a, b = (LocalSocket(sock) for sock in pair())
    yield a, b
    a.close()
    b.close()


@contextmanager
def raw_ends() -> Iterator[RawEnds]:
    """A socket that sends what it likes, and the other end."""
    a, b = pair()
    near = LocalSocket(b)
    yield a, near
    a.close()
    near.close()


def received(end: LocalSocket) -> tuple[bytes, list[bytes]]:
    """The next message, which must be there."""
    message = end.receive()
    assert message is not None
    header, frames = message
    return bytes(header), [bytes(frame) for frame in frames]


def receive(end: LocalSocket) -> object:
    """As the broker reads."""
    return end.receive()


def receive_with_fd(end: LocalSocket) -> object:
    """As a client reads."""
    return end.receive_with_fd()
