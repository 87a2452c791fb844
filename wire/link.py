"""The link between two processes of one server: a pair of connected ``SOCK_SEQPACKET`` sockets.

Packets are msgpack values and may carry file descriptors. The pair dies with either process,
and the other sees end of file at once: no heartbeat is needed. On a machine where a client's
round trip through a ZeroMQ hop took 83-96 us, the same hop over such a pair took 48-54 us.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Any

import msgpack

# The kernel bounds a packet by the socket's send buffer, 208 KiB as Linux comes. A longer body
# goes in a memfd beside an empty packet.
INLINE_NBYTES = 64 * 1024
_FDS_MAX = 16


class LinkClosed(Exception):
    """The process at the other end is gone, closed its end, or sent what is no packet."""


class PacketLost(LinkClosed):
    """This process could not take the descriptor that a long packet lies in: it may have no more.

    For most who read, that ends the link as well: they do not know what they were told.
    """


class Link:
    """One end. ``send`` and ``receive`` are each one system call, so threads may share an end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two connected ends."""
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(a), cls(b)

    @classmethod
    def from_fd(cls, fd: int) -> Link:
        """The end that another process handed over; owns ``fd`` from now on."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """The file descriptor, for a poller; -1 when closed."""
        return self._socket.fileno()

    def set_blocking(self, blocking: bool) -> None:
        """Whether calls wait; when not, they raise BlockingIOError."""
        self._socket.setblocking(blocking)

    def send(self, value: Any, fds: Sequence[int] = ()) -> None:
        """Sends one packet, with copies of ``fds``; LinkClosed when nobody is there."""
        if len(fds) >= _FDS_MAX:
            raise ValueError(f"a packet carries fewer than {_FDS_MAX} descriptors, not {len(fds)}")
        body = msgpack.packb(value)
        try:
            if len(body) <= INLINE_NBYTES:
                if fds:
                    socket.send_fds(self._socket, [body], list(fds))
                else:
                    self._socket.send(body)
                return
            with memfd_of(body) as fd:
                # An empty packet would read as end of file: one byte that is no msgpack array
                # or map says that the body lies in the last descriptor.
                socket.send_fds(self._socket, [b"\xc1"], [*fds, fd])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LinkClosed from error

    def receive(self) -> tuple[Any, list[int]]:
        """The next packet and the descriptors that came with it, owned by the caller now.

        Raises LinkClosed at end of file and for what is no packet, BlockingIOError when there is
        nothing and the link does not block.
        """
        try:
            data, ancillary = self._receive_packet()
        except ConnectionResetError:
            # The other end closed with packets of ours unread. That is told once, before what
            # it sent itself can be read.
            try:
                data, ancillary = self._receive_packet()
            except ConnectionResetError as error:
                raise LinkClosed from error
        fds: list[int] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                fds.extend(numbers)
        if not data:
            raise LinkClosed
        try:
            return _unpacked(data, fds), fds
        except LinkClosed:
            raise
        except Exception as error:
            # msgpack raises what it likes, and a descriptor may be none of a memfd.
            for fd in fds:
                os.close(fd)
            raise LinkClosed("what came is no packet") from error

    def _receive_packet(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        data, ancillary, _, _ = self._socket.recvmsg(
            INLINE_NBYTES, socket.CMSG_SPACE(_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
        )
        return data, ancillary

    def shut_down(self) -> None:
        """Ends the link for both, with this end still open: what was sent to it can be read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes this end; the other sees end of file."""
        self._socket.close()

    def detach(self) -> int:
        """Gives up the descriptor without closing it."""
        return self._socket.detach()


def _unpacked(data: bytes, fds: list[int]) -> Any:
    """A packet's value; the descriptor that has its body, if one does, is closed."""
    if data != b"\xc1":
        return msgpack.unpackb(data)
    if not fds:
        # The kernel drops descriptors when this process may have no more: what the packet said is
        # lost.
        raise PacketLost
    fd = fds.pop()
    try:
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as body:
            return msgpack.unpackb(body)
    finally:
        os.close(fd)


@contextlib.contextmanager
def memfd_of(body: bytes) -> Any:
    """A memfd that holds ``body``, closed at the end of the block."""
    fd = os.memfd_create("batchyard-packet", os.MFD_CLOEXEC)
    try:
        with memoryview(body) as view:
            written = 0
            while written < len(view):
                written += os.write(fd, view[written:])
        yield fd
    finally:
        os.close(fd)
