"""What a simulation came to, request by request and batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Outcome(IntEnum):
    """What became of a request; each has one."""

    IN_TIME = 1
    LATE = 2
    """Answered with outputs after its deadline."""
    DROPPED = 3
    """Refused after it had waited: DEADLINE_EXCEEDED, or UNAVAILABLE of a queue that stands."""
    REFUSED = 4
    """Refused on arrival."""


@dataclass(frozen=True, slots=True)
class Requests:
    """An element a request, in the order of their planned send times. Times are seconds."""

    planned: Floats
    answered: Floats
    """When the client had the answer, whatever it was."""
    outcome: npt.NDArray[np.uint8]
    """An ``Outcome``."""
    model: npt.NDArray[np.int32]
    """Its place in ``SimulationResult.models``."""
    rows: Ints
    deadline_s: Floats
    """From the planned moment; infinity for none."""
    device_s: Floats
    """Device time that it used: of each batch, its rows' share."""


@dataclass(frozen=True, slots=True)
class Batches:
    """An element a batch, in the order in which they ended."""

    handed_over: Floats
    start: Floats
    execution_s: Floats
    rows: Ints
    padded_rows: Ints
    worker: npt.NDArray[np.int32]
    model: npt.NDArray[np.int32]
    predicted_s: Floats
    """What the broker expected when it handed it over; NaN where it expected nothing."""


_Table = TypeVar("_Table", Requests, Batches)


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """A run, or a part of one: see ``window`` and ``of_model``.

    Rates are per second of ``duration_s``, and count requests by their planned send times.
    """

    models: Sequence[str]
    workers: int
    start_s: float
    duration_s: float
    requests: Requests
    batches: Batches
    errors: dict[str, int]
    """Of the whole run, by code."""
    turns: int
    """How often the broker of the whole run looked for what to do."""

    # Outcomes

    @property
    def offered(self) -> int:
        """Requests that were sent."""
        return len(self.requests.planned)

    def count(self, outcome: Outcome) -> int:
        """How many requests ended so."""
        return int(np.count_nonzero(self.requests.outcome == outcome))

    @property
    def in_time(self) -> int:
        """Answered within their deadlines, or without one."""
        return self.count(Outcome.IN_TIME)

    @property
    def late(self) -> int:
        """Answered after their deadlines."""
        return self.count(Outcome.LATE)

    @property
    def dropped(self) -> int:
        """Refused after they had waited."""
        return self.count(Outcome.DROPPED)

    @property
    def refused(self) -> int:
        """Refused on arrival."""
        return self.count(Outcome.REFUSED)

    @property
    def in_time_share(self) -> float:
        """Of all that were sent; 1 of none."""
        return self.in_time / self.offered if self.offered else 1.0

    @property
    def offered_rate(self) -> float:
        """Requests per second."""
        return self.offered / self.duration_s

    @property
    def goodput(self) -> float:
        """Requests answered in time, per second."""
        return self.in_time / self.duration_s

    @property
    def row_goodput(self) -> float:
        """Rows of requests answered in time, per second."""
        rows = self.requests.rows[self.requests.outcome == Outcome.IN_TIME]
        return float(rows.sum()) / self.duration_s

    # Latencies

    @property
    def latencies(self) -> Floats:
        """Seconds from the planned moment to the answer, of all requests that got outputs."""
        served = self.requests.outcome <= Outcome.LATE
        latencies: Floats = (self.requests.answered - self.requests.planned)[served]
        return latencies

    def latency(self, quantile: float) -> float:
        """In seconds, of the answers with outputs; NaN when there are none."""
        latencies = self.latencies
        return float(np.quantile(latencies, quantile)) if len(latencies) else float("nan")

    def latency_histogram(self, bins: int | Sequence[float] = 50) -> tuple[Ints, Floats]:
        """Counts, and the bins' edges in seconds, as ``numpy.histogram`` gives them."""
        counts, edges = np.histogram(self.latencies, bins)
        return counts.astype(np.int64), edges.astype(np.float64)

    # Devices

    @property
    def mean_batch_rows(self) -> float:
        """Rows of a batch on average, without padding; NaN without batches."""
        return float(self.batches.rows.mean()) if len(self.batches.rows) else float("nan")

    @property
    def batch_rows(self) -> dict[int, int]:
        """How many batches had so many rows."""
        sizes, counts = np.unique(self.batches.rows, return_counts=True)
        return dict(zip(sizes.tolist(), counts.tolist(), strict=True))

    @property
    def busy_s(self) -> float:
        """Device time of all batches."""
        return float(self.batches.execution_s.sum())

    @property
    def busy_share(self) -> float:
        """Of all workers' time, for workers that run one batch at once."""
        return self.busy_s / (self.workers * self.duration_s)

    @property
    def late_device_share(self) -> float:
        """Of the device time of these requests, that which went into answers that were late."""
        return self._device_share(self.requests.outcome == Outcome.LATE)

    @property
    def wasted_device_share(self) -> float:
        """Of the device time of these requests, that which nobody has anything of."""
        return self._device_share(self.requests.outcome != Outcome.IN_TIME)

    def _device_share(self, chosen: npt.NDArray[np.bool_]) -> float:
        total = float(self.requests.device_s.sum())
        return float(self.requests.device_s[chosen].sum()) / total if total else 0.0

    @property
    def prediction_errors(self) -> Floats:
        """abs(predicted - measured) ÷ measured execution time, of batches with a prediction."""
        batches = self.batches
        errors: Floats = np.abs(batches.predicted_s - batches.execution_s) / batches.execution_s
        return errors[~np.isnan(errors)]

    # Parts

    def window(self, start_s: float, stop_s: float) -> SimulationResult:
        """Of the requests planned in that time, and the batches that began in it."""
        planned, start = self.requests.planned, self.batches.start
        return replace(
            self,
            start_s=start_s,
            duration_s=stop_s - start_s,
            requests=_chosen(self.requests, (planned >= start_s) & (planned < stop_s)),
            batches=_chosen(self.batches, (start >= start_s) & (start < stop_s)),
        )

    def of_model(self, name: str) -> SimulationResult:
        """Of one model's requests and batches."""
        place = list(self.models).index(name)
        return replace(
            self,
            requests=_chosen(self.requests, self.requests.model == place),
            batches=_chosen(self.batches, self.batches.model == place),
        )

    def by_model(self) -> dict[str, SimulationResult]:
        """Each model's."""
        return {name: self.of_model(name) for name in self.models}

    def series(self, interval_s: float) -> dict[str, Floats]:
        """What happened in each interval: ``t`` its start, ``offered`` and each outcome by planned
        time, ``answered_in_time`` by the moment of the answer; all but ``t`` are counts."""
        count = max(int(np.ceil(self.duration_s / interval_s - 1e-9)), 1)
        edges = self.start_s + np.arange(count + 1) * interval_s
        requests = self.requests
        series: dict[str, Any] = {"t": edges[:-1]}
        series["offered"] = np.histogram(requests.planned, edges)[0]
        for outcome in Outcome:
            chosen = requests.outcome == outcome
            series[outcome.name.lower()] = np.histogram(requests.planned[chosen], edges)[0]
        in_time = requests.answered[requests.outcome == Outcome.IN_TIME]
        series["answered_in_time"] = np.histogram(in_time, edges)[0]
        return {key: np.asarray(values, np.float64) for key, values in series.items()}

    def summary(self) -> dict[str, Any]:
        """The counts and shares that one looks at first."""
        errors = self.prediction_errors
        return {
            "offered": self.offered,
            "in_time": self.in_time,
            "late": self.late,
            "dropped": self.dropped,
            "refused": self.refused,
            "goodput": self.goodput,
            "in_time_share": self.in_time_share,
            "latency_p50_s": self.latency(0.5),
            "latency_p99_s": self.latency(0.99),
            "mean_batch_rows": self.mean_batch_rows,
            "busy_share": self.busy_share,
            "late_device_share": self.late_device_share,
            "prediction_error_p99": float(np.quantile(errors, 0.99)) if len(errors) else None,
        }


def _chosen(table: _Table, mask: npt.NDArray[np.bool_]) -> _Table:
    columns = {field.name: getattr(table, field.name)[mask] for field in fields(table)}
    return type(table)(**columns)
