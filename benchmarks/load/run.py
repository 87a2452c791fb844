"""Runs one load test: the parent of the generators."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from batchyard.benchmarks.load.fleet import Fleet
from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.plan import LoadPlan, MixEntry
from batchyard.benchmarks.load.recorder import Recorder, interval_end, interval_starts
from batchyard.benchmarks.load.records import Outcomes, SharedRecords
from batchyard.benchmarks.load.result import Interval, LoadResult, Progress
from batchyard.benchmarks.load.schedule import make_schedule
from batchyard.benchmarks.load.server_watch import ServerWatch
from batchyard.benchmarks.load.stability import instabilities, lags
from batchyard.benchmarks.load.targets.base import is_batchyard
from batchyard.benchmarks.machine import describe

# From telling the generators to the first request of the warm-up.
_START_IN_S = 0.1
# No process gets more answers than that; the memory is not touched before it is used.
_CLOSED_LOOP_RATE_MAX = 200_000
_PROGRESS_S = 0.5
# Counting meanwhile takes no larger share of a processor that the server needs too.
_PROGRESS_COST_MAX = 0.05


class Stopped(KeyboardInterrupt):
    """Ctrl-C came before the end; ``result`` is of the part of the run that was planned until then.

    What had no answer yet counts as unanswered.
    """

    def __init__(self, result: LoadResult) -> None:
        super().__init__()
        self.result = result


def run_load(plan: LoadPlan, progress: Callable[[Progress], None] | None = None) -> LoadResult:
    """Carries out a plan; ``progress`` is told now and then how it fares.

    Raises ConfigurationError for a target or a trace that is none, a BatchyardError when the
    server cannot be reached or does not take such requests, GeneratorFailed, and Stopped.
    """
    schedule = make_schedule(plan)
    machine = describe()
    with ExitStack() as stack:
        counts = _counts(plan, len(schedule.times))
        records = [
            stack.enter_context(SharedRecords(_closed_capacity(plan) if count is None else count))
            for count in counts
        ]
        fleet = stack.enter_context(Fleet(plan, records))
        fleet.prepare()
        watch = None
        if is_batchyard(plan.target):
            models = {entry.model for entry in schedule.mix}
            watch = stack.enter_context(ServerWatch(plan.target, models))
        started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        start_at = time.monotonic() + _START_IN_S + plan.warmup_s
        fleet.start(start_at)
        starts = interval_starts(plan.duration_s, plan.interval_s)
        if watch is not None:
            watch.start(start_at, plan.interval_s, len(starts))
        view = _View(plan, schedule.mix, list(zip(records, counts, strict=True)), watch, start_at)
        try:
            _follow(fleet, view, progress, start_at)
        except KeyboardInterrupt:
            ran_s = min(math.floor((time.monotonic() - start_at) * 100) / 100, plan.duration_s)
            if ran_s <= 0:
                # Of the warm-up nothing counts.
                raise
            part = view.of_first(ran_s)
            raise Stopped(part.result(started_at, machine, fleet.messages)) from None
        return view.result(started_at, machine, fleet.messages)


def _follow(
    fleet: Fleet, view: _View, progress: Callable[[Progress], None] | None, start_at: float
) -> None:
    """Until all generators have ended."""
    pause_s = _PROGRESS_S
    while not fleet.wait(pause_s):
        if progress is not None:
            asked_at = time.monotonic()
            progress(view.progress(asked_at - start_at))
            taken_s = time.monotonic() - asked_at
            pause_s = max(_PROGRESS_S, taken_s / _PROGRESS_COST_MAX)


def _counts(plan: LoadPlan, total: int) -> list[int | None]:
    """How many requests each process has to send; None for the callers of a closed loop."""
    if plan.concurrency is not None:
        return [None] * plan.processes
    return [len(range(i, total, plan.processes)) for i in range(plan.processes)]


def _closed_capacity(plan: LoadPlan) -> int:
    return math.ceil((plan.warmup_s + plan.duration_s) * _CLOSED_LOOP_RATE_MAX)


class _View:
    """What can be said of a run, while it goes on and when it is over."""

    def __init__(
        self,
        plan: LoadPlan,
        mix: Sequence[MixEntry],
        records: Sequence[tuple[SharedRecords, int | None]],
        watch: ServerWatch | None,
        start_at: float,
    ) -> None:
        self._plan = plan
        self._mix = mix
        self._records = records
        self._watch = watch
        self._start_at = start_at
        # Whether more was planned than is told of.
        self._is_part = False

    def of_first(self, seconds: float) -> _View:
        """The same of a run that was to end then, and nothing waited for."""
        plan = replace(self._plan, duration_s=seconds, grace_s=0.0)
        part = _View(plan, self._mix, self._records, self._watch, self._start_at)
        part._is_part = True
        return part

    def _outcomes(self) -> Outcomes:
        outcomes = Outcomes.joined(
            [records.outcomes(self._start_at, count) for records, count in self._records]
        )
        return outcomes.up_to(self._plan.duration_s) if self._is_part else outcomes

    def _interval(self, recorder: Recorder, start: float) -> Interval:
        end = min(interval_end(start, self._plan.interval_s), self._plan.duration_s)
        queue = None
        if self._watch is not None:
            # Its samples lie on the grid, also the one after the end of the last interval.
            grid_end = start + self._plan.interval_s
            queue = self._watch.queue(self._start_at + start, self._start_at + grid_end)
        return recorder.interval(start, end, queue)

    def progress(self, t: float) -> Progress:
        """How it fares ``t`` seconds after the start."""
        planned_until = min(max(t, 0.0), self._plan.duration_s)
        recorder = Recorder(self._outcomes().up_to(planned_until), self._mix)
        counts = recorder.counts()
        over = [
            start
            for start in interval_starts(planned_until, self._plan.interval_s)
            if start + self._plan.interval_s <= planned_until
        ]
        lag = recorder.lag[recorder.sent]
        return Progress(
            t=t,
            duration_s=self._plan.duration_s,
            planned=counts.planned,
            in_time=counts.in_time,
            late=counts.late,
            errors=counts.errors,
            unanswered=counts.unanswered,
            recent=self._interval(recorder, over[-1]) if over else None,
            send_lag_p99_s=float(np.quantile(lag, 0.99)) if len(lag) else 0.0,
        )

    def result(
        self, started_at: str, machine: dict[str, str], messages: dict[str, str]
    ) -> LoadResult:
        """What came of it, when all generators have ended."""
        plan = self._plan
        recorder = Recorder(self._outcomes(), self._mix)
        counts = recorder.counts()
        late_generator = lags(recorder, plan)
        reasons = [*instabilities(recorder, plan), *late_generator]
        batch_rows = {}
        if self._watch is not None:
            batch_rows = self._watch.batch_rows(self._start_at, self._start_at + plan.duration_s)
        return LoadResult(
            plan=plan,
            machine=machine,
            started_at=started_at,
            planned=counts.planned,
            sent=counts.sent,
            in_time=counts.in_time,
            late=counts.late,
            errors=counts.errors,
            unanswered=counts.unanswered,
            duration_s=plan.duration_s,
            latency=recorder.latency_histogram(),
            latency_in_time=recorder.latency_in_time_histogram(),
            send_lag=Histogram.of(recorder.send_lag(plan.duration_s + plan.grace_s)),
            intervals=[
                self._interval(recorder, start)
                for start in interval_starts(plan.duration_s, plan.interval_s)
            ],
            batch_rows=batch_rows,
            by_model=recorder.by_model(),
            stable=not reasons,
            why_unstable="; ".join(reasons),
            generator_kept_up=not late_generator,
            error_messages=messages,
        )
