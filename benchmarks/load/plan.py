"""What a load test sends, when, and to whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.signatures import DEFAULT_SIGNATURE


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One kind of request; of several, each is drawn as often as its weight says."""

    model: str
    weight: float = 1.0
    rows: int = 1
    deadline_s: float | None = None
    """From the planned send time; None: there is none, and no answer is late."""
    version: int | None = None
    label: str | None = None
    signature: str = DEFAULT_SIGNATURE
    priority: int = 0
    inputs: Mapping[str, Any] | None = None
    """Nested lists by input name; None: made up from the model's signature, random, seeded."""
    shape: tuple[int, ...] = ()
    """Fills the signature's open dimensions behind the first, in order; 1 where it ends."""

    def __post_init__(self) -> None:
        _check(bool(self.model), "a request needs a model's name")
        _check(self.weight > 0, f"weight {self.weight:g} must be more than 0")
        _check(type(self.rows) is int and self.rows >= 1, f"rows {self.rows} must be 1 or more")
        _check(
            self.deadline_s is None or self.deadline_s > 0,
            f"a deadline of {self.deadline_s} s must be more than 0",
        )


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: gaps are exponential."""

    rate: float

    def __post_init__(self) -> None:
        _check(self.rate > 0, f"rate {self.rate:g} must be more than 0")


@dataclass(frozen=True, slots=True)
class Constant:
    """The same gap between any two."""

    rate: float

    def __post_init__(self) -> None:
        _check(self.rate > 0, f"rate {self.rate:g} must be more than 0")


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded arrivals: seconds from the start, or a file of them (``arrivals.read_trace``)."""

    times: tuple[float, ...] | str


@dataclass(frozen=True, slots=True)
class Steps:
    """Poisson arrivals at one rate after the other: ``((seconds, rate), …)``."""

    steps: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        _check(bool(self.steps), "steps need one at least")
        for seconds, rate in self.steps:
            _check(seconds > 0, f"a step of {seconds:g} s must last more than 0 s")
            _check(rate >= 0, f"rate {rate:g} must be 0 or more")


@dataclass(frozen=True, slots=True)
class Ramp:
    """Poisson arrivals at a rate that grows, or falls, evenly."""

    from_rate: float
    to_rate: float
    seconds: float

    def __post_init__(self) -> None:
        _check(min(self.from_rate, self.to_rate) >= 0, "a ramp's rates must be 0 or more")
        _check(max(self.from_rate, self.to_rate) > 0, "one of a ramp's rates must be more than 0")
        _check(self.seconds > 0, f"a ramp of {self.seconds:g} s must last more than 0 s")


Arrivals = Poisson | Constant | Trace | Steps | Ramp
_ARRIVALS: dict[str, type[Any]] = {
    "poisson": Poisson,
    "constant": Constant,
    "trace": Trace,
    "steps": Steps,
    "ramp": Ramp,
}


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One load test. Rates are requests per second, over all processes."""

    target: str | None
    """``tcp://`` or ``ipc://``: Batchyard (None: where the SDK looks); ``http://HOST:PORT``:
    TensorFlow Serving's REST interface; ``grpc://HOST:PORT``: its gRPC interface."""
    mix: tuple[MixEntry, ...]
    arrivals: Arrivals | None
    """When requests leave, whatever the server does (open loop)."""
    concurrency: int | None
    """So many callers, each waiting for its answer (closed loop). Exactly one of the two."""
    duration_s: float
    warmup_s: float = 2.0
    """Traffic of the same kind before, which is not counted."""
    processes: int = 1
    seed: int = 0
    interval_s: float = 0.25
    """Of the series in the result."""
    grace_s: float = 10.0
    """How long after the end answers are waited for; later ones count as unanswered."""
    lag_share: float = 0.01
    """Of the shortest deadline: a generator whose send lag has a p99 above it was late itself."""

    def __post_init__(self) -> None:
        _check(bool(self.mix), "a load test needs a model")
        _check(
            (self.arrivals is None) != (self.concurrency is None),
            "a load test has a rate or a concurrency, not both",
        )
        _check(self.duration_s > 0, f"a duration of {self.duration_s:g} s must be more than 0")
        _check(self.warmup_s >= 0, f"a warm-up of {self.warmup_s:g} s must be 0 or more")
        _check(self.processes >= 1, f"processes {self.processes} must be 1 or more")
        _check(
            self.concurrency is None or self.concurrency >= self.processes,
            f"concurrency {self.concurrency} must be 1 or more for each process",
        )
        _check(self.interval_s > 0, f"an interval of {self.interval_s:g} s must be more than 0")
        _check(self.seed >= 0, f"seed {self.seed} must be 0 or more")
        _check(self.grace_s >= 0, f"a grace of {self.grace_s:g} s must be 0 or more")

    @property
    def deadline_s(self) -> float | None:
        """The shortest of the mix."""
        return min((e.deadline_s for e in self.mix if e.deadline_s is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """All of it, as values that JSON has."""
        plan = {
            **dataclasses.asdict(self),
            "mix": [dataclasses.asdict(entry) for entry in self.mix],
        }
        if self.arrivals is not None:
            plan["arrivals"] = {
                "kind": type(self.arrivals).__name__.lower(),
                **dataclasses.asdict(self.arrivals),
            }
        return plan

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LoadPlan:
        """Raises ConfigurationError, KeyError or TypeError for what is no plan."""
        arrivals = values["arrivals"]
        return cls(
            **{
                **values,
                "mix": tuple(
                    MixEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in values["mix"]
                ),
                "arrivals": None if arrivals is None else _arrivals_from_json(arrivals),
            }
        )


def _arrivals_from_json(values: Mapping[str, Any]) -> Arrivals:
    fields = {key: _tuples(value) for key, value in values.items() if key != "kind"}
    arrivals: Arrivals = _ARRIVALS[values["kind"]](**fields)
    return arrivals


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _check(holds: bool, needs: str) -> None:
    if not holds:
        raise ConfigurationError(needs)
