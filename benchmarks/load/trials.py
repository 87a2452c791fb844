"""The trials of a search, carried out against a real server."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from batchyard.benchmarks.load.early_stopping import Counts, Rule
from batchyard.benchmarks.load.plan import LoadPlan, Poisson
from batchyard.benchmarks.load.result import LoadResult, Progress
from batchyard.benchmarks.load.run import run_load
from batchyard.benchmarks.load.search import Found, Observed, Trial, find_offline, find_rate
from batchyard.wire.errors import ConfigurationError

Run = Callable[[LoadPlan, Callable[[Progress], None]], LoadResult]

# Most servers keep a little less than this of their throughput when answers must be in time.
_START_OF_OFFLINE = 0.7
_START_RATE = 50.0
_OFFLINE_S = 5.0
# Late requests come in swarms: a few batches without one say little.
_LEAST_S = 5.0
_MOST_S = 60.0
_CONFIRM_S = 30.0
_DRAIN_MOST_S = 10.0


def find(
    plan: LoadPlan,
    *,
    share: float = 0.99,
    tolerance: float = 0.02,
    offline: bool = True,
    start_rate: float | None = None,
    most_s: float = _MOST_S,
    confirm_s: float = _CONFIRM_S,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    progress: Callable[[Progress], None] = lambda progress: None,
    run: Run = run_load,
) -> Found:
    """The highest Poisson rate with a share of all requests inside their deadlines.

    The plan says what is sent to whom; its arrivals and duration do not matter. ``offline``
    measures the highest throughput of a closed loop first. The last trial lasts ``confirm_s``; 0
    leaves it out. Raises what ``run_load`` raises, and
    ConfigurationError where requests have no deadline.
    """
    if any(entry.deadline_s is None for entry in plan.mix):
        raise ConfigurationError("a search for the highest rate needs a deadline for each request")
    rule = rule_for(plan, share, tolerance, most_s)
    throughput = {} if not offline else measure_offline(plan, progress, run)
    if start_rate is None:
        start_rate = _START_OF_OFFLINE * max(throughput.values(), default=0.0) or _START_RATE
    found = find_rate(
        Trials(plan, progress, run),
        start_rate,
        rule,
        tolerance=tolerance,
        seed=plan.seed,
        confirm=_longer(rule, confirm_s) if confirm_s else None,
        on_trial=on_trial,
    )
    return replace(found, offline=throughput)


def rule_for(plan: LoadPlan, share: float, tolerance: float, most_s: float = _MOST_S) -> Rule:
    """A rule whose trials are long enough to tell a rate from one above what a server can do.

    At a rate too high by the tolerance it takes deadline ÷ tolerance until the queue is so long
    that requests are late.
    """
    deadline_s = max(entry.deadline_s or 0.0 for entry in plan.mix)
    least_s = min(most_s, max(_LEAST_S, deadline_s / tolerance))
    return Rule(share=share, least_s=least_s, most_s=most_s)


def _longer(rule: Rule, least_s: float) -> Rule:
    least_s = max(rule.least_s, least_s)
    return replace(rule, least_s=least_s, most_s=max(rule.most_s, least_s))


def measure_offline(
    plan: LoadPlan,
    progress: Callable[[Progress], None] = lambda progress: None,
    run: Run = run_load,
    seconds: float = _OFFLINE_S,
) -> dict[int, float]:
    """Answers a second by the number of callers, who have no deadlines."""
    mix = tuple(replace(entry, deadline_s=None) for entry in plan.mix)

    def throughput(callers: int) -> float:
        asked = replace(plan, mix=mix, arrivals=None, concurrency=callers, duration_s=seconds)
        return run(asked, progress).goodput

    return find_offline(throughput, callers=max(64, plan.processes))


class Trials:
    """Each trial is a run of its own, ended as soon as it is decided."""

    def __init__(
        self, plan: LoadPlan, progress: Callable[[Progress], None], run: Run = run_load
    ) -> None:
        self._plan = plan
        self._progress = progress
        self._run = run
        self._drained_at = 0.0

    def __call__(self, rate: float, seed: int, rule: Rule) -> Observed:
        """See search.Attempt."""
        # What an overloaded server still has to do must not burden the next trial.
        time.sleep(max(0.0, self._drained_at - time.monotonic()))
        observed = self._observed(rate, seed, rule)
        if not rule.passed(observed.counts):
            left_s = min(observed.counts.seconds, _DRAIN_MOST_S)
            self._drained_at = time.monotonic() + left_s
        return observed

    def _observed(self, rate: float, seed: int, rule: Rule) -> Observed:
        plan = replace(
            self._plan,
            arrivals=Poisson(rate),
            concurrency=None,
            duration_s=rule.most_s,
            seed=seed,
        )

        most_in_flight = _most_in_flight(plan, rate)

        def watch(progress: Progress) -> None:
            self._progress(progress)
            in_flight = min(progress.unanswered, most_in_flight)
            counts = Counts(
                in_time=progress.in_time,
                late=progress.late
                + sum(progress.errors.values())
                + progress.unanswered
                - in_flight,
                seconds=progress.t,
                in_flight=in_flight,
            )
            if progress.t > 0 and (rule.passed(counts) or rule.failed(counts)):
                raise _Decided(counts)

        try:
            result = self._run(plan, watch)
        except _Decided as decided:
            return Observed(decided.counts)
        late = result.planned - result.in_time
        return Observed(Counts(result.in_time, late, result.duration_s), result.why_unstable)


def _most_in_flight(plan: LoadPlan, rate: float) -> int:
    """Of what has no answer: more was not planned within the last deadline, beyond chance. The rest
    is overdue, or was never sent."""
    deadlines = [entry.deadline_s for entry in plan.mix]
    if None in deadlines:
        return sys.maxsize
    expected = rate * max(deadline for deadline in deadlines if deadline is not None)
    return math.ceil(expected + 4 * math.sqrt(expected) + 1)


class _Decided(Exception):
    """Ends a run before its time."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
