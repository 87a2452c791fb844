"""What a load test found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.plan import LoadPlan

# Changes when a reader of the one before would misread it.
FORMAT = "batchyard-load-1"

_HISTOGRAMS = ("latency", "latency_in_time", "send_lag")


@dataclass(frozen=True, slots=True)
class Interval:
    """What came of the requests that were planned in one part of the run."""

    t: float
    """Its start, in seconds from the run's."""
    sent: int
    in_time: int
    late: int
    errors: dict[str, int]
    p50_s: float | None
    """Of the answers with outputs; None when there were none."""
    p99_s: float | None
    queue_rows: float | None
    """Waiting in the server at its end; None where the server does not tell."""
    batch_rows: float | None
    """The mean of the batches that the server formed in it."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One run. Each planned request is one of in time, late, an error, unanswered."""

    plan: LoadPlan
    machine: dict[str, str]
    started_at: str
    """UTC, ISO 8601."""
    planned: int
    sent: int
    """Those that the generators got rid of before the end."""
    in_time: int
    late: int
    """Answered with outputs after the deadline."""
    errors: dict[str, int]
    """By code."""
    unanswered: int
    """Not answered when the run and its grace were over, or never sent."""
    duration_s: float
    latency: Histogram
    """Of answers with outputs, from the planned send time."""
    latency_in_time: Histogram
    send_lag: Histogram
    """How much later than planned requests were sent: how far the generator is to be trusted."""
    intervals: list[Interval]
    batch_rows: dict[int, int]
    """How many batches of so many rows the server formed; empty where it does not tell."""
    by_model: dict[str, dict[str, Any]]
    """planned, sent, in_time, late, errors, unanswered, p50_s and p99_s of each model."""
    stable: bool
    """Whether the server kept up, and the generator too: then the figures hold."""
    why_unstable: str = ""
    """In words; empty when stable."""
    generator_kept_up: bool = True
    """Whether requests left when they were planned to; part of ``stable``."""
    error_messages: dict[str, str] = field(default_factory=dict)
    """The first message of each code."""

    @property
    def offered_rate(self) -> float:
        """Planned requests per second."""
        return self.planned / self.duration_s

    @property
    def goodput(self) -> float:
        """Requests answered in time, per second of planned time."""
        return self.in_time / self.duration_s

    @property
    def in_time_share(self) -> float:
        """Of all that were planned."""
        return self.in_time / self.planned if self.planned else 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it, with the rates and the usual quantiles for whoever reads it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            "format": FORMAT,
            **fields,
            "plan": self.plan.to_json(),
            "offered_rate": self.offered_rate,
            "goodput": self.goodput,
            "quantiles": {name: _quantiles(getattr(self, name)) for name in _HISTOGRAMS},
            **{name: getattr(self, name).encode() for name in _HISTOGRAMS},
            "intervals": [dataclasses.asdict(interval) for interval in self.intervals],
            "batch_rows": {str(rows): count for rows, count in sorted(self.batch_rows.items())},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LoadResult:
        """Raises ValueError for what is no result of this format."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"is no result of `batchyard load --json` ({FORMAT})")
        try:
            fields = {f.name: values[f.name] for f in dataclasses.fields(cls)}
            return cls(
                **{
                    **fields,
                    "plan": LoadPlan.from_json(values["plan"]),
                    **{name: Histogram.decode(values[name]) for name in _HISTOGRAMS},
                    "intervals": [Interval(**interval) for interval in values["intervals"]],
                    "batch_rows": {int(rows): n for rows, n in values["batch_rows"].items()},
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"is an incomplete result of `batchyard load`: {error}") from None


@dataclass(frozen=True, slots=True)
class Progress:
    """How a run fares while it goes on; counts are of all that was planned up to ``t``."""

    t: float
    """Seconds since the start; negative while it warms up."""
    duration_s: float
    planned: int
    in_time: int
    late: int
    errors: dict[str, int]
    unanswered: int
    """Under way, or not sent yet."""
    recent: Interval | None
    """The last interval that is over; None before there is one."""
    send_lag_p99_s: float


def _quantiles(histogram: Histogram) -> dict[str, float]:
    return {
        "mean_s": histogram.mean,
        "p50_s": histogram.quantile(0.5),
        "p90_s": histogram.quantile(0.9),
        "p99_s": histogram.quantile(0.99),
        "p999_s": histogram.quantile(0.999),
        "max_s": histogram.max,
    }
