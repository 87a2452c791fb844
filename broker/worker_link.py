"""The broker's end of a worker's link."""

from __future__ import annotations

import os
import select
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from batchyard.wire import work
from batchyard.wire.link import Link, LinkClosed


@dataclass(slots=True, eq=False)
class WorkerLink:
    """Packets that did not fit into the link yet wait in ``unsent``, with their descriptors.

    ``regions`` are the ids of those that the worker has mapped.
    """

    id: int
    slot: int
    pid: int
    device: str
    concurrent_batches: int
    link: Link
    epoll: select.epoll
    restarts: int = 0
    state: str = "STARTING"
    # Whether the supervisor was told that it is given batches.
    serves: bool = False
    unsent: deque[tuple[list[Any], list[int]]] = field(default_factory=deque)
    regions: set[int] = field(default_factory=set)

    @property
    def is_closed(self) -> bool:
        """Whether the worker is not heard of any more."""
        return self.link.fileno() < 0

    def send(self, packet: list[Any], fds: list[int]) -> None:
        """Sends a packet, now or as soon as there is room; to nobody when the worker is gone.

        Raises OSError when there are no descriptors left to send it with.
        """
        if self.link.fileno() < 0:
            return
        if not self.unsent:
            try:
                self.link.send(packet, fds)
                return
            except BlockingIOError:
                self.epoll.modify(self.link.fileno(), select.EPOLLIN | select.EPOLLOUT)
            except LinkClosed:
                # Its end of file is on the way, and then its batches are answered.
                return
        # The caller may close its own before there is room.
        self.unsent.append((packet, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Sends what waited, as far as there is room. Raises LinkClosed."""
        while self.unsent:
            try:
                self.link.send(*self.unsent[0])
            except LinkClosed:
                raise
            except OSError:
                # No room yet, or no descriptor for a long one.
                return
            self._forget_first()
        self.epoll.modify(self.link.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Closes the link; what waited is not sent."""
        while self.unsent:
            self._forget_first()
        self.regions.clear()
        self.link.close()

    def _forget_first(self) -> None:
        _, fds = self.unsent.popleft()
        for fd in fds:
            os.close(fd)

    def attach(self, region: int, fd: int) -> None:
        """Has the worker map a region, if it has not yet. Raises OSError."""
        if region not in self.regions:
            self.send(work.Attach(region).to_wire(), [fd])
            self.regions.add(region)

    def detach(self, region: int) -> None:
        """Has the worker unmap a region, if it has mapped it."""
        if region in self.regions:
            self.regions.discard(region)
            self.send(work.Detach(region).to_wire(), [])
