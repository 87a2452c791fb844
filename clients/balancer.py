"""Which of several servers a call goes to: the one with the least waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# What a server said of its queue is worth nothing later: batches take milliseconds.
_SAID_FOR_S = 0.1


class Said(Protocol):
    """The last answer of a server."""

    @property
    def queued_rows(self) -> int: ...


class Standing(Protocol):
    """How this client stands with a server."""

    @property
    def takes_calls(self) -> bool:
        """Whether it is there, and not about to end."""
        ...

    @property
    def is_awaited(self) -> bool:
        """Whether it is gone, but not for so long that calls would not wait for it."""
        ...

    @property
    def last_result(self) -> Said | None:
        """The last that it said, when it was an answer to calls."""
        ...


class Balancer:
    """Remembers what it saw of the servers. It has no lock: no order of calls harms it."""

    def __init__(self) -> None:
        self._turn = 0
        # By server: its last answer, and when it was seen here first.
        self._said: dict[Standing, tuple[Said | None, float]] = {}

    def choose(self, servers: Sequence[tuple[Standing, int]], now: float) -> int:
        """The place in ``servers`` of the one to send a call to.

        Beside each stands how many requests of this client are under way there. That and the rows
        that the server said to wait there is what a call would wait for. Ties take turns. When
        none takes calls: one that a call may wait for, or else any, where it fails.
        """
        able = [i for i, (server, _) in enumerate(servers) if server.takes_calls]
        able = able or [i for i, (server, _) in enumerate(servers) if server.is_awaited]
        able = able or list(range(len(servers)))
        self._turn += 1
        start = self._turn % len(able)
        return min(
            [*able[start:], *able[:start]],
            key=lambda i: servers[i][1] + self._queued_rows(servers[i][0], now),
        )

    def _queued_rows(self, server: Standing, now: float) -> int:
        result = server.last_result
        known, since = self._said.get(server, (None, now))
        if result is not known:
            since = now
            self._said[server] = result, since
        return 0 if result is None or now - since > _SAID_FOR_S else result.queued_rows
