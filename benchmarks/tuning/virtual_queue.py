"""Batches of a queue in virtual time: what a setting would come to if l(b) were all there is.

The tuner predicts with it where to look; in the end measurements decide. Every request has the
same rows and the same deadline, so that the earliest deadline is the oldest request. For the
broker itself in virtual time see ``batchyard bench overload --simulate``.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from batchyard.benchmarks.tuning.bench import Setting

Seconds = Callable[[int], float]
_NEVER = float("inf")
# Enough that 99 % in time is told from 98 %, few enough for milliseconds.
_PREDICTED_REQUESTS = 1000
_BISECTIONS = 6


@dataclass(slots=True)
class Outcome:
    """What came of the requests that arrived after the warm-up."""

    arrived: int = 0
    in_time: int = 0
    refused: int = 0
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


class VirtualQueue:
    """One lane and the batch threads that serve it."""

    def __init__(
        self,
        seconds: Seconds,
        setting: Setting,
        rows_per_request: int = 1,
        deadline_s: float = _NEVER,
        took: Seconds | None = None,
    ) -> None:
        """``seconds(rows)`` is what a batch is expected to take; it takes that, or ``took``."""
        self._seconds = seconds
        self._took = took or seconds
        self._setting = setting
        self._rows = rows_per_request
        self._deadline_s = deadline_s
        self._most = max(1, setting.max_batch_size // rows_per_request)
        self._bound = setting.max_enqueued_batches * self._most

    def open_loop(
        self, rate: float, seconds: float, warmup_s: float, choose: random.Random
    ) -> Outcome:
        """Poisson arrivals."""
        gaps = (choose.expovariate(rate) for _ in itertools.count())
        ends = warmup_s + seconds
        times = list(itertools.takewhile(lambda t: t < ends, itertools.accumulate(gaps)))
        return self._run(times, warmup_s, ends, again=False)

    def closed_loop(self, callers: int, seconds: float, warmup_s: float) -> Outcome:
        """Callers that ask again as soon as they are answered."""
        return self._run([0.0] * callers, warmup_s, warmup_s + seconds, again=True)

    def _run(self, coming: list[float], begins: float, ends: float, *, again: bool) -> Outcome:
        """``coming`` is a heap of arrivals; they come ``again`` when they are answered."""
        outcome = Outcome()
        timeout_s = self._setting.batch_timeout_micros / 1e6
        free = [0.0] * self._setting.threads
        waiting: deque[float] = deque()
        while coming or waiting:
            if not waiting:
                waiting.append(heapq.heappop(coming))
            goes = self._gather(coming, waiting, free[0], timeout_s, outcome, begins)
            batch = self._take(waiting, goes, outcome, begins)
            if not batch:
                continue
            done = goes + self._took(self._padded(len(batch) * self._rows))
            heapq.heapreplace(free, done)
            if done >= begins:
                outcome.batches.append(len(batch) * self._rows)
            for arrived in batch:
                # In a closed loop what is answered counts; in an open one, what was asked.
                if begins <= (done if again else arrived) < ends:
                    outcome.arrived += 1
                    outcome.latencies.append(done - arrived)
                    outcome.in_time += done - arrived <= self._deadline_s
                if again and done < ends:
                    heapq.heappush(coming, done)
        return outcome

    def _gather(
        self,
        coming: list[float],
        waiting: deque[float],
        free_at: float,
        timeout_s: float,
        outcome: Outcome,
        begins: float,
    ) -> float:
        """Takes in what arrives until the next batch goes; when that is."""
        goes = max(free_at, self._ripe_at(waiting, timeout_s))
        while coming and coming[0] <= goes:
            arrived = heapq.heappop(coming)
            if len(waiting) >= self._bound:
                outcome.arrived += arrived >= begins
                outcome.refused += arrived >= begins
                continue
            waiting.append(arrived)
            if len(waiting) <= self._most:
                goes = max(free_at, arrived, self._ripe_at(waiting, timeout_s))
        return goes

    def _ripe_at(self, waiting: deque[float], timeout_s: float) -> float:
        count = len(waiting)
        if count >= self._most:
            return waiting[self._most - 1]
        oldest = waiting[0]
        latest = oldest + self._deadline_s - self._seconds(self._padded((count + 1) * self._rows))
        return max(waiting[-1], min(oldest + timeout_s, latest))

    def _take(
        self, waiting: deque[float], now: float, outcome: Outcome, begins: float
    ) -> list[float]:
        """The next batch, without those at the head that it would answer late."""
        count = min(len(waiting), self._most)
        too_old = now + self._seconds(self._padded(count * self._rows)) - self._deadline_s
        while waiting and waiting[0] < too_old:
            outcome.arrived += waiting.popleft() >= begins
        return [waiting.popleft() for _ in range(min(len(waiting), self._most))]

    def _padded(self, rows: int) -> int:
        sizes = self._setting.allowed_batch_sizes
        return sizes[bisect_left(sizes, rows)] if sizes and rows <= sizes[-1] else rows


def predicted_rate(
    seconds: Seconds, setting: Setting, rows_per_request: int, deadline_s: float, share: float
) -> float:
    """The highest rate at which ``share`` is in time, to a few percent; 0 when there is none."""
    most = max(1, setting.max_batch_size // rows_per_request) * rows_per_request
    if seconds(rows_per_request) > deadline_s:
        return 0.0
    capacity = setting.threads * most / seconds(most) / rows_per_request
    queue = VirtualQueue(seconds, setting, rows_per_request, deadline_s)
    low, high = 0.0, capacity
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        run_s = _PREDICTED_REQUESTS / rate
        outcome = queue.open_loop(rate, run_s, 0.1 * run_s, random.Random(1))
        if outcome.in_time >= share * outcome.arrived:
            low = rate
        else:
            high = rate
    return low
