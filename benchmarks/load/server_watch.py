"""Samples a Batchyard server's own counters while it is under load."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of the models in question, together, at one moment."""

    at: float
    """CLOCK_MONOTONIC."""
    queue_rows: int
    batch_rows: Counter[int]
    """How many batches of so many rows there were since the server started."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Of one interval: the rows that waited at its end, and the batches formed in it."""

    rows: float
    mean_batch_rows: float | None


class ServerWatch:
    """Asks ``client.stats()`` again and again, on a thread and a connection of its own."""

    def __init__(self, address: str | None, models: Collection[str]) -> None:
        """Raises Unavailable when nobody answers."""
        self._client = Client(address)
        self._models = frozenset(models)
        self._samples: list[Sample] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        # Ends a question that a server does not answer any more.
        self._client.close()
        if self._thread is not None:
            self._thread.join()

    def start(self, start_at: float, interval_s: float, count: int) -> None:
        """Samples at ``start_at`` and at the end of each of ``count`` intervals after it."""
        due = [start_at + i * interval_s for i in range(count + 1)]
        self._thread = threading.Thread(target=self._run, args=(due,), daemon=True)
        self._thread.start()

    def _run(self, due: list[float]) -> None:
        for at, after in zip(due, [*due[1:], math.inf], strict=True):
            now = time.monotonic()
            if now >= after:
                # The server took its time to answer: this moment is over.
                continue
            if self._stopping.wait(max(at - now, 0.0)):
                return
            try:
                self._samples.append(self._take(self._client.stats()))
            except BatchyardError:
                # It is being restarted, or is gone: then there is no telling.
                continue

    def _take(self, stats: dict[str, Any]) -> Sample:
        models = [model for model in stats["models"] if model["name"] in self._models]
        batch_rows: Counter[int] = Counter()
        for model in models:
            batch_rows.update({int(rows): n for rows, n in model["batch_rows"].items()})
        return Sample(time.monotonic(), sum(model["queue_rows"] for model in models), batch_rows)

    def queue(self, start: float, end: float) -> Queue | None:
        """Between two moments; None without a sample at either."""
        before, after = self._near(start, end - start), self._near(end, end - start)
        if before is None or after is None or before is after:
            return None
        formed = after.batch_rows - before.batch_rows
        batches = formed.total()
        rows = sum(rows * n for rows, n in formed.items())
        return Queue(after.queue_rows, rows / batches if batches else None)

    def batch_rows(self, start: float, end: float) -> dict[int, int]:
        """How many batches of so many rows were formed between two moments, as far as known."""
        samples = [s for s in list(self._samples) if s.at >= start]
        within = [s for s in samples if s.at <= end] + [s for s in samples if s.at > end][:1]
        if len(within) < 2:
            return {}
        # A server that was started again counts from 0: a Counter keeps no negative differences.
        return dict(within[-1].batch_rows - within[0].batch_rows)

    def _near(self, at: float, interval_s: float) -> Sample | None:
        """The sample that was taken for a moment: within half an interval after it."""
        for sample in reversed(list(self._samples)):
            if at <= sample.at < at + interval_s / 2:
                return sample
        return None
