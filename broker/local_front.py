"""The front for clients on this machine: their Unix sockets, and a region for each of them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from batchyard.broker.front import LINGER_S
from batchyard.broker.queue import Region
from batchyard.broker.worker_link import WorkerLink
from batchyard.wire import local, log
from batchyard.wire.access import Access
from batchyard.wire.arena import Mapping, create_memfd
from batchyard.wire.endpoints import HIGH_WATER_MARK
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.local import INLINE_NBYTES, LocalClosed, LocalSocket, NotCarried
from batchyard.wire.tensors import Buffer

# Outputs that may wait for a client to read them. It has its own region to get them without.
_UNSENT_NBYTES_MAX = 1 << 30
# Longer than any identity that a client of the ZeroMQ front can claim: those have up to 255 bytes.
_KEY_NBYTES = 256


@dataclass(slots=True, eq=False)
class LocalClient:
    """A connected client. ``key`` stands for it where a ZeroMQ identity stands for others."""

    key: bytes
    socket: LocalSocket
    region: Region | None = None
    region_fd: int = -1
    mapping: Mapping | None = None
    # Answers that the socket did not take yet: header, frames, the memfd that has the frames, and
    # the bytes of these.
    unsent: deque[tuple[Buffer, Sequence[Buffer], int | None, int]] = field(default_factory=deque)
    unsent_nbytes: int = 0

    def fileno(self) -> int:
        """The socket's descriptor, for a poller."""
        return self.socket.fileno()


class LocalFront:
    """Made, used and closed by one thread, whose ``epoll`` it tells when clients do not read."""

    def __init__(
        self,
        epoll: select.epoll,
        region_nbytes: int,
        regions_max: int,
        has_name: bool = True,
    ) -> None:
        """At most ``regions_max`` clients get a region, of ``region_nbytes`` bytes, if that is
        not 0; others send their tensors through the socket.

        ``has_name``: those who find the server by TCP may come this way too, if they are of its
        user. Where TCP takes keys this would be a way around them: for one who was let in once,
        and for root in another container that shares the network.
        """
        # The abstract name, for those who find the server by another way than its ipc path.
        self.name = f"batchyard-{secrets.token_hex(16)}" if has_name else ""
        self._epoll = epoll
        self._region_nbytes = region_nbytes
        self._regions_max = regions_max
        self._clients: dict[bytes, LocalClient] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._paths: list[str] = []
        self._ids = count(1)
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = local.receive_buffer()

    def listen(self, endpoints: Sequence[str], access: Access) -> None:
        """Listens beside each ipc endpoint, and at the abstract name, if there is one.

        Raises ConfigurationError.
        """
        paths = [path for endpoint in endpoints if (path := local.socket_path(endpoint))]
        names = [f"\0{self.name}"] if self.name else []
        for address in [*names, *paths]:
            try:
                listener = local.listen(address, access)
            except OSError as error:
                raise ConfigurationError(f"cannot bind {address}: {error.strerror}") from error
            self._listeners[listener.fileno()] = listener
        self._paths = paths

    def listener_filenos(self) -> list[int]:
        """Descriptors that clients knock at: then ``accept`` is to be called."""
        return list(self._listeners)

    def accept(self, fd: int, welcome: bytes) -> LocalClient | None:
        """Lets a client in, if it may, and gives it ``welcome`` and a region."""
        listener = self._listeners[fd]
        try:
            sock, _ = listener.accept()
        except OSError as error:
            # It is gone again, or there are no descriptors left.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(listener)
            return None
        sock.setblocking(False)
        client = LocalClient(b"", LocalSocket(sock, self._buffer))
        name = listener.getsockname()
        is_ours = client.socket.peer_uid() in (0, os.geteuid())
        if isinstance(name, bytes) and not is_ours:
            # Unlike a path, an abstract name has no mode that says who may connect.
            client.socket.close()
            return None
        number = next(self._ids)
        client.key = number.to_bytes(_KEY_NBYTES, "big")
        self._make_region(client, number, is_ours)
        try:
            if client.region is None:
                client.socket.send(welcome, [])
            else:
                client.socket.send_aside(welcome, [], client.region_fd)
        except LocalClosed:
            self._release(client)
            return None
        self._clients[client.key] = client
        return client

    def _turn_away(self, listener: socket.socket) -> None:
        """Closes a connection that there is no descriptor for: it would knock forever."""
        os.close(self._reserve)
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _make_region(self, client: LocalClient, number: int, is_ours: bool) -> None:
        if not self._region_nbytes or self._regions_used() >= self._regions_max:
            return
        try:
            fd = create_memfd(self._region_nbytes, "batchyard-region")
        except OSError as error:
            log.limited("warning", "region_not_made", reason=error)
            return
        try:
            client.mapping = Mapping(fd)
        except OSError as error:
            os.close(fd)
            log.limited("warning", "region_not_made", reason=error)
            return
        client.region_fd = fd
        client.region = Region(number, client.mapping.memory, is_ours)

    def knows(self, key: bytes) -> bool:
        """Whether ``key`` is a client of this front."""
        return key in self._clients

    def clients(self) -> list[bytes]:
        """The keys of all clients."""
        return list(self._clients)

    def regions(self) -> dict[str, int]:
        """How many clients have a region, how many may, and the bytes of each."""
        return {
            "used": self._regions_used(),
            "max": self._regions_max,
            "bytes": self._region_nbytes,
        }

    def _regions_used(self) -> int:
        return sum(client.region is not None for client in self._clients.values())

    def find(self, key: bytes) -> LocalClient | None:
        """The client of that key, if it is still there."""
        return self._clients.get(key)

    def attach(self, worker: WorkerLink, key: bytes) -> None:
        """Has a worker map a client's region, before the first batch that lies in it."""
        client = self._clients[key]
        if client.region is not None:
            worker.attach(client.region.id, client.region_fd)

    def send(self, key: bytes, header: Buffer, frames: Sequence[Buffer]) -> bool:
        """Sends to a client; False when it cannot be answered, and has to go.

        Frames may change afterwards: what is not sent at once is copied.
        """
        client = self._clients[key]
        fd: int | None = None
        nbytes = sum(map(len, frames))
        if nbytes > INLINE_NBYTES:
            try:
                fd = local.memfd_of(frames)
            except OSError as error:
                log.limited("warning", "answer_not_sent", reason=error)
                return False
        try:
            if not client.unsent and _push(client, header, frames, fd):
                return True
        except LocalClosed as error:
            if fd is not None:
                os.close(fd)
            # Else its end of file is on the way.
            return not isinstance(error, NotCarried)
        if fd is None:
            frames = [bytes(frame) for frame in frames]
        client.unsent.append((header, frames, fd, nbytes))
        client.unsent_nbytes += nbytes
        self._epoll.modify(client.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return len(client.unsent) < HIGH_WATER_MARK and client.unsent_nbytes < _UNSENT_NBYTES_MAX

    def flush(self, client: LocalClient) -> None:
        """Sends what waited, as far as the socket takes it. Raises LocalClosed."""
        while client.unsent:
            header, frames, fd, nbytes = client.unsent[0]
            if not _push(client, header, frames, fd):
                return
            client.unsent.popleft()
            client.unsent_nbytes -= nbytes
        self._epoll.modify(client.socket.fileno(), select.EPOLLIN)

    def drop(self, client: LocalClient) -> None:
        """A client is gone, or has to go; its memory is free at once."""
        del self._clients[client.key]
        self._release(client)

    def _release(self, client: LocalClient) -> None:
        client.socket.close()
        for _, _, fd, _ in client.unsent:
            if fd is not None:
                os.close(fd)
        client.unsent.clear()
        if client.mapping is not None:
            client.mapping.close()
            os.close(client.region_fd)

    def finish(self) -> None:
        """Sends what waits to be sent, to those who read."""
        until = time.monotonic() + LINGER_S
        for client in self._clients.values():
            with contextlib.suppress(LocalClosed):
                poll = select.poll()
                poll.register(client.fileno(), select.POLLOUT)
                while client.unsent and (left := until - time.monotonic()) > 0:
                    poll.poll(left * 1e3)
                    self.flush(client)

    def close(self) -> None:
        """Closes everything."""
        for client in list(self._clients.values()):
            self.drop(client)
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        if self._reserve >= 0:
            os.close(self._reserve)
        self._reserve = -1
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _push(client: LocalClient, header: Buffer, frames: Sequence[Buffer], fd: int | None) -> bool:
    """Whether the socket took a message; then its memfd is closed."""
    if fd is None:
        return client.socket.send(header, frames)
    if not client.socket.send_aside(header, frames, fd):
        return False
    os.close(fd)
    return True
