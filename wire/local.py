"""The short way between a broker and clients on its machine: a Unix socket, and shared memory.

Beside each ``ipc://`` endpoint, and under the abstract name that WELCOME tells, the broker
listens on a ``SOCK_SEQPACKET`` socket. Who connects gets a WELCOME with the descriptor of a
*region*: shared memory that this client and the server have in common, sealed so that nobody can
resize it. Then the same messages travel as over ZeroMQ, one a packet, without ZeroMQ's threads
in between; tensors that lie in the region are named, not sent (``protocol.Predict.region``).

A packet is a table of lengths and the buffers, the header first::

    ┌───────┬───────────┬─────┬───────────────┬────────┬─────────┬─────┐
    │ n u64 │ nbytes[0] │  …  │ nbytes[n - 1] │ header │ frame 0 │  …  │
    └───────┴───────────┴─────┴───────────────┴────────┴─────────┴─────┘

What does not fit travels in a ``memfd`` beside a packet that holds the table and the header only:
the frames lie in it one after the other, each 64-byte aligned. Only the broker sends such.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Sequence

from batchyard.wire.access import Access
from batchyard.wire.arena import Mapping, align, create_memfd
from batchyard.wire.endpoints import IPC_PATH_MAX
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensors import Buffer

LOCAL_SUFFIX = ".local"
# Buffers of one message that travel inside a packet. The kernel takes packets of up to the socket's
# send buffer, 208 KiB as Linux comes.
INLINE_NBYTES = 96 * 1024
_SEND_BUFFER_NBYTES = 1 << 20
_RECEIVE_NBYTES = 256 * 1024
_BUFFERS_MAX = 2048
# What then is left of the longest packet, with its table.
_HEADER_NBYTES_MAX = _RECEIVE_NBYTES - INLINE_NBYTES - 8 * (_BUFFERS_MAX + 1)
# sendmsg takes no more pieces than this (IOV_MAX).
_PIECES_MAX = 1000
_COUNT = struct.Struct("<Q")
# A packet that is too long, or descriptors of which too many are under way.
_NOT_CARRIED = (errno.EMSGSIZE, errno.ETOOMANYREFS)
_CLOEXEC = socket.MSG_CMSG_CLOEXEC
# Room for one: of more the kernel closes the rest.
_FD_SPACE = socket.CMSG_LEN(array.array("i").itemsize)
_WELCOMES_WAITING = 1024


class LocalClosed(Exception):
    """The process at the other end is gone, closed its end, or sent what is no packet."""


def socket_path(endpoint: str) -> str | None:
    """Where the local socket of an ipc endpoint is; None for TCP, and for a path too long."""
    path = f"{endpoint.removeprefix('ipc://')}{LOCAL_SUFFIX}"
    is_path = endpoint.startswith("ipc://") and len(path.encode()) <= IPC_PATH_MAX
    return path if is_path else None


def listen(address: str, access: Access) -> socket.socket:
    """A listening socket at a path, which it replaces, or at an abstract name (leading zero).

    ``access`` is that of the path. Raises OSError and ConfigurationError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    is_path = not address.startswith("\0")
    try:
        if is_path and os.path.lexists(address):
            os.unlink(address)
        with access.of_new_files():
            listener.bind(address)
        if is_path:
            access.give(address)
        listener.listen(_WELCOMES_WAITING)
    except (OSError, ConfigurationError):
        listener.close()
        raise
    return listener


def receive_buffer() -> bytearray:
    """Room for the longest packet."""
    return bytearray(_RECEIVE_NBYTES)


def connect(address: str) -> LocalSocket | None:
    """Connects to a listening socket; None when there is none for us."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        return None
    return LocalSocket(sock)


class NotCarried(LocalClosed):
    """A message that the socket does not carry: it is too long, or has a descriptor too many."""


class LocalSocket:
    """One end of a connection. It never blocks."""

    def __init__(self, sock: socket.socket, buffer: bytearray | None = None) -> None:
        """``buffer``, one that ``receive_buffer`` made, may be shared by the sockets of a thread:
        what is received is copied out of it at once."""
        self._socket = sock
        self._received = receive_buffer() if buffer is None else buffer
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_NBYTES)

    def fileno(self) -> int:
        """The descriptor, for a poller; -1 when closed."""
        return self._socket.fileno()

    def peer_uid(self) -> int:
        """The user whose process connected."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid: int = struct.unpack("3i", credentials)[1]
        return uid

    def send(self, header: Buffer, frames: Sequence[Buffer]) -> bool:
        """Sends a message whose buffers have at most INLINE_NBYTES together.

        False when the socket takes no more for now. Raises LocalClosed.
        """
        if len(header) > _HEADER_NBYTES_MAX:
            raise NotCarried
        pieces = [_table(header, frames), header, *frames]
        if len(pieces) > _PIECES_MAX:
            pieces = [b"".join(pieces)]
        try:
            self._socket.sendmsg(pieces)
        except BlockingIOError:
            return False
        except OSError as error:
            raise (NotCarried if error.errno in _NOT_CARRIED else LocalClosed) from error
        return True

    def send_aside(self, header: Buffer, frames: Sequence[Buffer], fd: int) -> bool:
        """As ``send``, with the frames in the memfd ``fd`` (see ``memfd_of``), or with a region."""
        if len(header) > _HEADER_NBYTES_MAX:
            raise NotCarried
        try:
            socket.send_fds(self._socket, [_table(header, frames), header], [fd])
        except BlockingIOError:
            return False
        except OSError as error:
            raise (NotCarried if error.errno in _NOT_CARRIED else LocalClosed) from error
        return True

    def receive(self) -> tuple[Buffer, list[Buffer]] | None:
        """The next message as (header, frames); None when there is none.

        Descriptors that come with it are dropped: nobody is to hand us any. Raises LocalClosed.
        """
        received = self._received
        try:
            try:
                nbytes = self._socket.recv_into(received, 0, socket.MSG_TRUNC)
            except ConnectionResetError:
                # Packets of ours were not read. That is told once, before what was sent to us.
                nbytes = self._socket.recv_into(received, 0, socket.MSG_TRUNC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise LocalClosed from error
        if not 0 < nbytes <= _RECEIVE_NBYTES:
            raise LocalClosed("end of file, or a packet that is too long")
        buffers = _split(received, nbytes)
        return buffers[0], buffers[1:]

    def receive_with_fd(self) -> tuple[Buffer, list[Buffer], int | None] | None:
        """As ``receive``, with the descriptor that came with the message, owned by the caller now.

        Frames that lie in a memfd are views of it; the descriptor is None then.
        """
        received = self._received
        try:
            try:
                packet = self._socket.recvmsg_into([received], _FD_SPACE, _CLOEXEC)
            except ConnectionResetError:
                # As in ``receive``.
                packet = self._socket.recvmsg_into([received], _FD_SPACE, _CLOEXEC)
        except BlockingIOError:
            return None
        except OSError as error:
            raise LocalClosed from error
        nbytes, ancillary, flags, _ = packet
        fd = _descriptor(ancillary)
        try:
            if not nbytes or flags & socket.MSG_TRUNC:
                raise LocalClosed("end of file, or a packet that is too long")
            lengths, start = _lengths(received, nbytes)
            if fd is None or len(lengths) == 1:
                buffers = _split(received, nbytes)
                fd, ours = None, fd
                return buffers[0], buffers[1:], ours
            if start + lengths[0] != nbytes:
                raise LocalClosed("a packet whose lengths are wrong")
            header = bytes(received[start:nbytes])
            return header, _frames_in(fd, lengths[1:]), None
        finally:
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Closes this end; the other sees end of file."""
        self._socket.close()


def memfd_of(frames: Sequence[Buffer]) -> int:
    """A sealed memfd that holds the frames, for ``send_aside``; the caller closes it."""
    fd = create_memfd(sum(align(len(frame)) for frame in frames), "batchyard-answer")
    try:
        mapping = Mapping(fd)
        offset = 0
        for frame in frames:
            mapping.memory[offset : offset + len(frame)] = frame
            offset += align(len(frame))
        mapping.close()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _frames_in(fd: int, lengths: Sequence[int]) -> list[Buffer]:
    try:
        mapping = Mapping(fd)
    except (OSError, ValueError) as error:
        raise LocalClosed(f"outputs that cannot be mapped: {error}") from error
    frames: list[Buffer] = []
    offset = 0
    for length in lengths:
        if offset + length > mapping.nbytes:
            raise LocalClosed("a packet whose lengths are wrong")
        # A copy: a mapping holds a descriptor, and results may be kept by the thousand.
        frames.append(bytearray(mapping.memory[offset : offset + length]))
        offset += align(length)
    mapping.close()
    return frames


def _table(header: Buffer, frames: Sequence[Buffer]) -> bytes:
    count = 1 + len(frames)
    return struct.pack(f"<{count + 1}Q", count, len(header), *map(len, frames))


def _lengths(received: bytearray, nbytes: int) -> tuple[tuple[int, ...], int]:
    """The lengths of a packet's buffers, and where the first of them begins."""
    (count,) = _COUNT.unpack_from(received)
    start = _COUNT.size * (count + 1)
    if not 1 <= count <= _BUFFERS_MAX or start > nbytes:
        raise LocalClosed("a packet without a table")
    return struct.unpack_from(f"<{count}Q", received, _COUNT.size), start


def _split(received: bytearray, nbytes: int) -> list[Buffer]:
    lengths, start = _lengths(received, nbytes)
    buffers: list[Buffer] = []
    for length in lengths:
        # A copy for each: what is kept must not keep the rest.
        end = start + length
        buffers.append(received[start:end])
        start = end
    if start != nbytes:
        raise LocalClosed("a packet whose lengths are wrong")
    return buffers


def _descriptor(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: numbers.itemsize])
            return numbers[0]
    return None
