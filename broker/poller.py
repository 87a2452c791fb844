"""What the broker's loop waits for: descriptors, and who is called when one is ready."""

from __future__ import annotations

import select
from collections.abc import Callable

# Below this, epoll's own resolution of a millisecond would be too coarse.
_FINE_TIMEOUT_S = 0.05
# Longer than any wait need be.
_TIMEOUT_MAX_S = 3600.0

Handler = Callable[[int], None]


class Poller:
    """Used by one thread. Whoever wants to write to a descriptor that is known here may tell
    ``epoll`` so."""

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll
        self._handlers: dict[int, Handler] = {}

    def handle(self, fd: int, handler: Handler) -> None:
        """Has ``handler`` called with epoll's mask whenever ``fd`` is ready."""
        self._handlers[fd] = handler
        self.epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """A descriptor is about to be closed."""
        del self._handlers[fd]
        self.epoll.unregister(fd)

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        """Descriptors that are ready, with their masks."""
        if timeout_s <= 0:
            return self.epoll.poll(0)
        if timeout_s < _FINE_TIMEOUT_S:
            # select counts in microseconds, epoll in whole milliseconds.
            select.select([self.epoll], [], [], timeout_s)
            return self.epoll.poll(0)
        return self.epoll.poll(None if timeout_s > _TIMEOUT_MAX_S else timeout_s)

    def serve(self, ready: list[tuple[int, int]]) -> None:
        """Calls the handlers of what is ready."""
        for fd, mask in ready:
            # An earlier one of them may have ended a later one.
            if fd in self._handlers:
                self._handlers[fd](mask)
