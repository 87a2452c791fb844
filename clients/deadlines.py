"""The deadlines of calls, and their ends when these have passed."""

from __future__ import annotations

import heapq
from itertools import count

from batchyard.clients.calls import NEVER, Call, fail
from batchyard.wire.errors import DeadlineExceeded, InvalidArgument

# Those that are kept before those of answered calls are dropped.
_KEPT_MIN = 64


class Deadlines:
    """Of the calls of one session: one that another took over is that one's to end."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call]] = []
        self._kept_max = _KEPT_MIN
        self._tie = count()

    def add(self, call: Call) -> None:
        """The call is to end when its deadline has passed."""
        call.keeper = self
        heapq.heappush(self._heap, (call.deadline, next(self._tie), call))
        if len(self._heap) >= self._kept_max:
            # What is answered must not wait for its deadline with all that it holds.
            self._heap = [entry for entry in self._heap if not entry[2].promise.done()]
            heapq.heapify(self._heap)
            self._kept_max = max(2 * len(self._heap), _KEPT_MIN)

    def first(self) -> float:
        """When ``expire`` is due; infinity for never."""
        while self._heap and self._heap[0][2].promise.done():
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else NEVER

    def expire(self, now: float) -> None:
        """Ends what is late."""
        while self._heap and self._heap[0][0] <= now:
            _, _, call = heapq.heappop(self._heap)
            if call.keeper is self:
                fail(call, DeadlineExceeded("the deadline passed before an answer came"))

    def clear(self) -> None:
        """All have ended."""
        self._heap.clear()


def deadline_after(timeout: float | None, now: float) -> float:
    """The time that lies ``timeout`` seconds after ``now``; InvalidArgument when it is no time."""
    if timeout is None:
        return NEVER
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArgument(f"timeout must be a number of seconds from 0, not {timeout!r}")
    return now + timeout
