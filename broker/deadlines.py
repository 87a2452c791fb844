"""The deadlines of requests that are not answered."""

from __future__ import annotations

import heapq
from itertools import count

from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import RequestGroup


class Deadlines:
    """A heap of groups by the next of their requests' deadlines."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, RequestGroup]] = []
        self._settled = 0
        self._tie = count()

    @property
    def next(self) -> float:
        """The earliest deadline; it may be that of a group that is answered."""
        return self._heap[0][0] if self._heap else NEVER

    def add(self, group: RequestGroup) -> None:
        """A group was accepted."""
        if group.earliest_deadline < NEVER:
            self._push(group.earliest_deadline, group)

    def settle(self, group: RequestGroup) -> None:
        """Every request of a group is answered."""
        if group.earliest_deadline == NEVER:
            return
        self._settled += 1
        # Not more of the heap than half is of groups that are answered, whatever timeouts
        # clients give.
        if self._settled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].unanswered]
            heapq.heapify(self._heap)
            self._settled = 0

    def due(self, now: float) -> list[Lane]:
        """Lanes in which requests may have expired by now."""
        lanes: dict[Lane, None] = {}
        while self._heap and self._heap[0][0] <= now:
            _, _, group = heapq.heappop(self._heap)
            if group.unanswered:
                lanes[group.lane] = None
                if group.deadlines is not None:
                    later = min((d for d in group.deadlines if d > now), default=NEVER)
                    if later < NEVER:
                        self._push(later, group)
        return list(lanes)

    def _push(self, deadline: float, group: RequestGroup) -> None:
        heapq.heappush(self._heap, (deadline, next(self._tie), group))
