"""Fronts for local clients, and clients of them, all closed in the end."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from support.waiting import DEADLINE_S

from batchyard.broker.local_front import LocalClient, LocalFront
from batchyard.wire import local
from batchyard.wire.access import Access
from batchyard.wire.arena import Mapping
from batchyard.wire.local import INLINE_NBYTES, LocalSocket

REGION_NBYTES = 1 << 16
WELCOME = b"welcome"
LARGE = b"x" * (INLINE_NBYTES + 1)


class Fronts:
    """Makes fronts and clients, and closes them in the end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.epoll = select.epoll()
        stack.callback(self.epoll.close)
        self.endpoint = f"ipc://{folder}/broker"
        self._stack = stack

    def front(
        self,
        region_nbytes: int = REGION_NBYTES,
        regions_max: int = 2,
        endpoints: Sequence[str] | None = None,
    ) -> LocalFront:
        front = LocalFront(self.epoll, region_nbytes, regions_max)
        self._stack.callback(front.close)
        front.listen([self.endpoint] if endpoints is None else endpoints, Access(0o600))
        return front

    def path(self) -> str:
        path = local.socket_path(self.endpoint)
        assert path is not None
        return path

    def connect(self, front: LocalFront, address: str | None = None) -> tuple[LocalClient, Client]:
        """A client that the front has let in."""
        client = Client(self.path() if address is None else address)
        self._stack.callback(client.close)
        accepted = self.accept(front)
        assert accepted is not None
        self.epoll.register(accepted.fileno(), select.EPOLLIN)
        return accepted, client

    def accept(self, front: LocalFront) -> LocalClient | None:
        (fd,) = select.select(front.listener_filenos(), [], [], DEADLINE_S)[0]
        return front.accept(fd, WELCOME)


class Client:
    """The other end."""

    def __init__(self, address: str) -> None:
        found = local.connect(address)
        assert found is not None
        self.socket: LocalSocket = found
        self.region: Mapping | None = None

    def read(self) -> tuple[bytes, list[bytes]]:
        """The next message; raises LocalClosed at the end."""
        assert select.select([self.socket], [], [], DEADLINE_S)[0], "the broker says nothing"
        message = self.socket.receive_with_fd()
        assert message is not None
        header, frames, fd = message
        if fd is not None:
            self.region = Mapping(fd)
            os.close(fd)
        return bytes(header), [bytes(frame) for frame in frames]

    def close(self) -> None:
        self.socket.close()
        if self.region is not None:
            self.region.close()


def fill(front: LocalFront, client: LocalClient, frames: list[bytes]) -> int:
    """Numbered answers to one that does not read, until some wait; how many it was sent."""
    sent = 0
    while len(client.unsent) < 3:
        assert front.send(client.key, b"%d" % sent, frames)
        sent += 1
        assert sent < 10_000
    return sent
