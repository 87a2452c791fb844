"""The feeders of a server: as many processes as it takes, and the rate that they see together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.guarded import GuardedChild

_MODULE = "batchyard.benchmarks.gpu.feeder"
# Until every worker is busy and every client answered once.
_WARM_UP_S = 0.3
# One batch runs, one is brought to the card, and two are on their way.
BATCHES_A_WORKER = 4
# A batch may take longer than all that was asked for.
_PATIENCE_S = 900.0


class Feeders:
    """Processes that keep batches under way; they end with the block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._stack = ExitStack()
        self._all: list[GuardedChild] = []
        self._children: list[GuardedChild] = []

    def __enter__(self) -> Self:
        self._all = [self._stack.enter_context(GuardedChild(_MODULE)) for _ in range(self._count)]
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def connect(self, endpoint: str, shape: Sequence[int], workers: int = 1) -> None:
        """Gets ready to feed a server with batches of this shape, enough for so many workers."""
        batches = BATCHES_A_WORKER * workers
        self._children = self._all[:batches]
        self._rows = shape[0]
        for child, share in zip(self._children, _shares(batches, len(self._children)), strict=True):
            child.tell("connect", endpoint=endpoint, shape=list(shape), batches=share)
        for child in self._children:
            child.hear()

    def first_answer(self, model: str) -> Sequence[float]:
        """Of a model to the first row."""
        numbers: list[float] = self._children[0].ask("first_answer", model=model)
        return numbers

    def p50_us(self, model: str, seconds: float) -> float:
        """Of one request at a time of one row."""
        return float(self._children[0].ask("p50", model=model, seconds=seconds))

    def rows_per_s(self, model: str, rows: int, seconds: float) -> float:
        """Rows a second by requests of so many, when there is always more to do."""
        begin = time.monotonic() + _WARM_UP_S
        for child in self._children:
            child.tell("feed", model=model, rows=rows, until=begin + seconds)
        times: list[float] = []
        for child in self._children:
            times += child.hear(seconds + _PATIENCE_S)
        return rate(times, begin, begin + seconds, max(self._rows // rows, 1)) * rows


def _shares(total: int, parts: int) -> list[int]:
    return [len(range(i, total, parts)) for i in range(parts)]


def rate(times: Sequence[float], begin: float, end: float, at_once: int) -> float:
    """Answers a second between two moments, of which ``at_once`` come together with a batch.

    From one answer to another that has the same place in its batch: a batch that is cut by the
    end of the measurement does not count. What is answered after the end does, where there would
    be nothing to tell a rate from otherwise. Raises BenchmarkFailed when there is nothing even so.
    """
    after = sorted(time for time in times if time >= begin)
    within = [time for time in after if time <= end]
    for answers in (within, after):
        steps = (len(answers) - 1) // at_once
        if steps > 0 and answers[steps * at_once] > answers[0]:
            return steps * at_once / (answers[steps * at_once] - answers[0])
    raise BenchmarkFailed("too few batches were answered to tell a rate: give more --seconds")
