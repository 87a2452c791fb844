"""What a client's thread sleeps on."""

from __future__ import annotations

import select

from batchyard.clients.connection import Connection


class Watch:
    """Waits for whatever a connection has now: its local socket comes and goes."""

    def __init__(self, epoll: select.epoll, connection: Connection, wakeup: int) -> None:
        self._epoll = epoll
        self._connection = connection
        self._far: list[int] = []
        self._local = -1
        self._mask = 0
        epoll.register(wakeup, select.EPOLLIN)

    def update(self, idle: bool, has_unsent: bool) -> None:
        """Follows the connection.

        ``idle``: somebody else may read from the local socket; only its end is of interest.
        ``has_unsent``: something waits to be sent.
        """
        if not self._far:
            self._far = self._connection.filenos()
            for fd in self._far:
                self._epoll.register(fd, select.EPOLLIN)
        mask = 0 if idle else select.EPOLLIN
        if has_unsent and self._connection.wants_to_send:
            mask |= select.EPOLLOUT
        local = self._connection.local_fileno()
        if (local, mask) == (self._local, self._mask):
            return
        if local != self._local:
            # A descriptor that was closed is out of the set already.
            if local >= 0:
                self._epoll.register(local, mask)
        elif local >= 0:
            self._epoll.modify(local, mask)
        self._local, self._mask = local, mask

    def forget(self) -> None:
        """The connection is about to have other descriptors."""
        for fd in self._far:
            self._epoll.unregister(fd)
        self._far = []
        if self._local >= 0 and self._local == self._connection.local_fileno():
            self._epoll.unregister(self._local)
        self._local = -1

    def wait(self, timeout_s: float) -> list[int]:
        """Descriptors that are ready."""
        ready = [fd for fd, _ in self._epoll.poll(timeout_s)]
        if any(fd in self._far for fd in ready):
            self._connection.look_again()
        return ready
