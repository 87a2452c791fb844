"""From what became of each request to what became of all: counts, histograms, a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.records import ANSWERED, FAILED, SKIPPED, Outcomes
from batchyard.benchmarks.load.result import Interval
from batchyard.benchmarks.load.server_watch import Queue
from batchyard.wire.errors import BY_NUMBER, Unknown

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counts:
    """Each planned request is one of in time, late, an error, unanswered."""

    planned: int
    sent: int
    in_time: int
    late: int
    errors: dict[str, int]

    @property
    def unanswered(self) -> int:
        """Under way, or not sent."""
        return self.planned - self.in_time - self.late - sum(self.errors.values())


class Recorder:
    """Judges the requests of a run by their deadlines. Latency counts from the planned time."""

    def __init__(self, outcomes: Outcomes, mix: Sequence[MixEntry]) -> None:
        # In the order of the planned times, so that an interval is a slice.
        order = np.argsort(outcomes.planned, kind="stable")
        self.planned = outcomes.planned[order]
        self.latency = outcomes.done[order] - self.planned
        self.lag = outcomes.sent[order] - self.planned
        self.kind = outcomes.kind[order]
        self._mix = mix
        self._outcome = outcomes.outcome[order]
        deadlines = np.array(
            [np.inf if entry.deadline_s is None else entry.deadline_s for entry in mix]
        )
        self.answered: Mask = self._outcome == ANSWERED
        self.in_time: Mask = self.answered & (self.latency <= deadlines[self.kind])
        self.sent: Mask = ~np.isnan(self.lag) & (self._outcome != SKIPPED)

    def counts(self, chosen: slice | Mask = slice(None)) -> Counts:
        """Of all requests, or of those chosen."""
        outcome = self._outcome[chosen]
        in_time = int(np.count_nonzero(self.in_time[chosen]))
        numbers = np.bincount(outcome[outcome >= FAILED] - FAILED)
        errors = {
            BY_NUMBER.get(int(number), Unknown).code: int(numbers[number])
            for number in np.flatnonzero(numbers)
        }
        return Counts(
            planned=len(outcome),
            sent=int(np.count_nonzero(self.sent[chosen])),
            in_time=in_time,
            late=int(np.count_nonzero(outcome == ANSWERED)) - in_time,
            errors=errors,
        )

    def by_model(self) -> dict[str, dict[str, Any]]:
        """The counts of each model, and quantiles of its answers' latency."""
        models = list(dict.fromkeys(entry.model for entry in self._mix))
        model_of_kind = np.array([models.index(entry.model) for entry in self._mix])
        found = {}
        for i, model in enumerate(models):
            chosen: Mask = model_of_kind[self.kind] == i
            counts = self.counts(chosen)
            found[model] = {
                "planned": counts.planned,
                "sent": counts.sent,
                "in_time": counts.in_time,
                "late": counts.late,
                "errors": counts.errors,
                "unanswered": counts.unanswered,
                "p50_s": self.quantile(0.5, chosen),
                "p99_s": self.quantile(0.99, chosen),
            }
        return found

    def quantile(self, q: float, chosen: slice | Mask = slice(None)) -> float | None:
        """Of the latency of the answers with outputs; None when there are none."""
        latency = self.latency[chosen][self.answered[chosen]]
        return float(np.quantile(latency, q)) if len(latency) else None

    def latency_histogram(self) -> Histogram:
        """Of all answers with outputs."""
        return Histogram.of(self.latency[self.answered])

    def latency_in_time_histogram(self) -> Histogram:
        """Of those before their deadlines."""
        return Histogram.of(self.latency[self.in_time])

    def send_lag(self, given_up_at: float) -> npt.NDArray[np.float64]:
        """Of every planned request; of those that were never sent, up to when that was clear."""
        return np.where(np.isnan(self.lag), given_up_at - self.planned, self.lag)

    def between(self, start: float, end: float) -> slice:
        """The requests that were planned in a part of the run."""
        first, last = np.searchsorted(self.planned, [start, end])
        return slice(int(first), int(last))

    def interval(self, start: float, end: float, queue: Queue | None) -> Interval:
        """What came of the requests that were planned in a part of the run."""
        chosen = self.between(start, end)
        counts = self.counts(chosen)
        return Interval(
            t=start,
            sent=counts.sent,
            in_time=counts.in_time,
            late=counts.late,
            errors=counts.errors,
            p50_s=self.quantile(0.5, chosen),
            p99_s=self.quantile(0.99, chosen),
            queue_rows=None if queue is None else queue.rows,
            batch_rows=None if queue is None else queue.mean_batch_rows,
        )


def interval_starts(duration_s: float, interval_s: float) -> list[float]:
    """Where the intervals of a run begin; the last may be shorter."""
    count = int(np.ceil(round(duration_s / interval_s, 9)))
    return [i * interval_s for i in range(count)]


def interval_end(start: float, interval_s: float) -> float:
    """Where the next interval begins, to the last bit: no request is in two."""
    return (round(start / interval_s) + 1) * interval_s
