"""A bench in virtual time: a device of known l(b), with noise, behind a queue.

For tests of the procedure, and for ``batchyard bench tuner --simulate``.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from batchyard.benchmarks.tuning.bench import (
    CannotRun,
    Execution,
    Load,
    Placement,
    Setting,
    backlog_grew,
    warmup_s,
)
from batchyard.benchmarks.tuning.virtual_queue import Outcome, VirtualQueue

# What an experiment takes beside itself with a real server: generators start, and warm up.
_AROUND_S = 0.4
_RUNS = 5


def linear(base_s: float, row_s: float) -> Callable[[int], float]:
    """Each row takes its time."""
    return lambda rows: base_s + row_s * rows


def flat(base_s: float, free_rows: int, row_s: float) -> Callable[[int], float]:
    """Up to ``free_rows`` take the same, each further one its time."""
    return lambda rows: base_s + row_s * max(0, rows - free_rows)


def stepped(base_s: float, step_rows: int, step_s: float) -> Callable[[int], float]:
    """Rows are worked off in waves."""
    return lambda rows: base_s + step_s * -(-rows // step_rows)


_DEFAULTS = Setting(Placement(1), 64, max_enqueued_batches=100)


@dataclass(slots=True)
class SyntheticBench:
    """``seconds(rows, placement)`` is how long a batch takes, but for the noise."""

    seconds: Callable[[int, Placement], float]
    device: Literal["cpu", "gpu"] = "cpu"
    cores: int = 1
    rows_per_request: int = 1
    placements: tuple[Placement, ...] = (Placement(1),)
    defaults: Setting = _DEFAULTS
    most_rows: int = 1024
    most_waiting_rows: int = 1_000_000
    overhead_s: float = 0.0
    """Of each batch, beside its execution."""
    noise: float = 0.0
    """The standard deviation of a batch's time, as a share of it."""
    start_s: float = 2.0
    """How long a server takes to start."""
    cannot_run_from: int | None = None
    """Batches of so many rows do not fit into the device's memory."""
    seed: int = 1
    trials: int = 0
    _spent_s: float = 0.0
    _choose: random.Random = field(init=False)
    _started: set[Placement] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._choose = random.Random(self.seed)

    def spent_s(self) -> float:
        return self._spent_s

    def execution(self, setting: Setting, rows: int) -> Execution:
        if self.cannot_run_from is not None and rows >= self.cannot_run_from:
            raise CannotRun(f"out of memory with {rows} rows")
        self._start(setting.placement)
        runs = [self._took(setting.placement, rows) for _ in range(_RUNS)]
        self._spent_s += sum(runs) + 0.05
        return Execution(rows, statistics.median(runs), runs[0])

    def saturate(self, setting: Setting, concurrency: int, seconds: float) -> Load:
        queue = self._queue(setting, float("inf"), seconds, warmup_s(None))
        outcome = queue.closed_loop(concurrency, seconds, warmup_s(None))
        return _load(setting, None, outcome, seconds)

    def offer(self, setting: Setting, rate: float, deadline_s: float, seconds: float) -> Load:
        before_s = warmup_s(deadline_s)
        queue = self._queue(setting, deadline_s, seconds, before_s)
        outcome = queue.open_loop(rate, seconds, before_s, self._choose)
        quarter = max(1, len(outcome.latencies) // 4)
        first, last = outcome.latencies[:quarter] or [0.0], outcome.latencies[-quarter:] or [0.0]
        medians = statistics.median(first), statistics.median(last)
        growing = backlog_grew(*medians, seconds, deadline_s)
        return _load(setting, rate, outcome, seconds, growing)

    def _queue(
        self, setting: Setting, deadline_s: float, seconds: float, before_s: float
    ) -> VirtualQueue:
        self._start(setting.placement)
        self._spent_s += before_s + seconds + _AROUND_S
        self.trials += 1
        placement = setting.placement
        return VirtualQueue(
            lambda rows: self.seconds(rows, placement) + self.overhead_s,
            setting,
            self.rows_per_request,
            deadline_s,
            lambda rows: self._took(placement, rows),
        )

    def _start(self, placement: Placement) -> None:
        if placement not in self._started:
            self._started.add(placement)
            self._spent_s += self.start_s

    def _took(self, placement: Placement, rows: int) -> float:
        exact_s = self.seconds(rows, placement) + self.overhead_s
        return exact_s * max(0.2, self._choose.gauss(1.0, self.noise))


def _load(
    setting: Setting, rate: float | None, outcome: Outcome, seconds: float, growing: bool = False
) -> Load:
    latencies = sorted(outcome.latencies) or [0.0]
    return Load(
        setting=setting,
        rate=rate,
        seconds=seconds,
        requests=outcome.arrived,
        answered_rate=outcome.in_time / seconds,
        in_time_share=outcome.in_time / outcome.arrived if outcome.arrived else 0.0,
        mean_s=statistics.fmean(latencies),
        p50_s=latencies[len(latencies) // 2],
        p99_s=latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
        batch_rows=statistics.fmean(outcome.batches) if outcome.batches else None,
        growing=growing,
        errors=(("UNAVAILABLE", outcome.refused),) if outcome.refused else (),
    )
