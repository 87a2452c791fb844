"""What overload is measured with: simulated GPUs, behind the real server or in virtual time.

Both give a ``Measured`` for a load, so that every part of the benchmark is written once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchyard.benchmarks.callables import BATCH_S
from batchyard.benchmarks.load.plan import Arrivals, MixEntry
from batchyard.benchmarks.simulation.service_times import ConstantTime, LinearTime, ServiceTime

BATCH = 8
"""Rows that a simulated GPU takes at once."""
CAPACITY = BATCH / BATCH_S
"""Requests per second of one."""
WARMUP_S = 2.0
"""Longer than the longest deadline: by then a queue is as long as it gets."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device of known speed: its time in the simulation, and the callable that sleeps it."""

    times: ServiceTime
    callable: str


CONSTANT = Gpu(ConstantTime(BATCH_S), "batchyard.benchmarks.callables:simulated_gpu")
LINEAR = Gpu(LinearTime(BATCH_S / 5, BATCH_S / 10), "batchyard.benchmarks.callables:linear_gpu")
# Each batch costs much and each row little: small batches waste the most.
COSTLY = Gpu(LinearTime(BATCH_S / 2, BATCH_S / 20), "batchyard.benchmarks.callables:costly_gpu")


@dataclass(frozen=True, slots=True)
class Served:
    """Models by name, each on every one of the ``workers``.

    ``batching`` has keys of ``[models.batching]`` beside ``max_batch_size``. Without ``learns`` the
    broker drops only what has expired, and predicts nothing; only the simulation can do that.
    """

    models: Mapping[str, Gpu] = field(default_factory=lambda: {"gpu": CONSTANT})
    workers: int = 1
    max_batch_size: int = BATCH
    batching: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = True

    @property
    def capacity(self) -> float:
        """Rows per second in full batches, when all models take as long."""
        (seconds,) = {gpu.times.seconds(self.max_batch_size) for gpu in self.models.values()}
        return self.workers * self.max_batch_size / seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load came to. What was not observed is NaN."""

    offered: int
    in_time: int
    late: int
    seconds: float
    late_device_share: float
    prediction_p99: float
    """abs(error) ÷ measured execution time."""
    mean_batch_rows: float
    send_lag_p99_s: float
    goodput_by_interval: tuple[float, ...]
    """Answers in time per second, of what was planned in each ``interval_s`` since the start."""

    @property
    def goodput(self) -> float:
        """Answers in time per second."""
        return self.in_time / self.seconds

    @property
    def in_time_share(self) -> float:
        """Of all that was sent."""
        return self.in_time / max(self.offered, 1)


class Server(Protocol):
    """Something that serves, for as long as it is open."""

    def load(
        self,
        arrivals: Arrivals,
        mix: Sequence[MixEntry],
        seconds: float,
        *,
        warmup_s: float = WARMUP_S,
        interval_s: float = 0.25,
    ) -> Measured:
        """Sends requests for so long, after ``warmup_s`` of the same that are not counted."""
        ...

    def highest_rate(self, mix: Sequence[MixEntry], start_rate: float) -> float:
        """The highest Poisson rate with 99 % in time, by the rule of ``load.early_stopping``."""
        ...

    def offline_rate(self, mix: Sequence[MixEntry]) -> float:
        """Requests per second when as many wait as the server likes."""
        ...


class Bench(Protocol):
    """Where servers come from."""

    is_simulated: bool
    seconds: float
    """How long one load is."""
    seed: int
    repeat: int
    """Rounds."""

    def serve(self, served: Served) -> AbstractContextManager[Server]:
        """Raises ServerDidNotStart."""
        ...
