"""Whether a run's figures would be the same had it lasted longer, and whose they are."""

from __future__ import annotations

import math

import numpy as np

from batchyard.benchmarks.load.plan import Constant, LoadPlan, Poisson
from batchyard.benchmarks.load.recorder import Recorder

# The parts of a run that are compared.
_PART = 0.25
# What a queue in balance does by chance, it hardly does by this factor.
_GROWTH_MAX = 2.0
# Less than this, nobody calls a backlog: the scheduling of processes alone makes it.
_GROWTH_MIN_S = 0.005
_SHARE_LOST_MAX = 0.01
_SIGMAS = 4.0
# Of the deadline, or of the latency's p99 without one.
_LAG_SHARE_OF_P99 = 0.1


def instabilities(recorder: Recorder, plan: LoadPlan) -> list[str]:
    """What says that the server was not in balance, in words; empty when it was.

    Only for loads that are even: steps, ramps and traces have trends of their own.
    """
    found = []
    counts = recorder.counts()
    missing = counts.sent - counts.in_time - counts.late - sum(counts.errors.values())
    if missing > 0:
        found.append(
            f"{missing} requests were not answered within {plan.grace_s:g} s after the end"
        )
    if plan.arrivals is None or isinstance(plan.arrivals, Poisson | Constant):
        first = recorder.between(0, _PART * plan.duration_s)
        last = recorder.between((1 - _PART) * plan.duration_s, plan.duration_s)
        found += _latency_grew(recorder, first, last)
        found += _share_fell(recorder, first, last)
    return found


def _latency_grew(recorder: Recorder, first: slice, last: slice) -> list[str]:
    before, after = recorder.quantile(0.5, first), recorder.quantile(0.5, last)
    if before is None or after is None:
        return []
    if after < _GROWTH_MAX * before or after - before < _GROWTH_MIN_S:
        return []
    return [
        f"the backlog grew: the median latency was {before * 1e3:.3g} ms in the first quarter of "
        f"the run, {after * 1e3:.3g} ms in the last"
    ]


def _share_fell(recorder: Recorder, first: slice, last: slice) -> list[str]:
    before, after = recorder.counts(first), recorder.counts(last)
    if not before.planned or not after.planned:
        return []
    share_before = before.in_time / before.planned
    share_after = after.in_time / after.planned
    # Two shares of binomial counts.
    share = (before.in_time + after.in_time) / (before.planned + after.planned)
    sigma = math.sqrt(share * (1 - share) * (1 / before.planned + 1 / after.planned))
    if share_before - share_after <= max(_SHARE_LOST_MAX, _SIGMAS * sigma):
        return []
    return [
        f"it got worse: {share_before:.2%} were in time in the first quarter of the run, "
        f"{share_after:.2%} in the last"
    ]


def lags(recorder: Recorder, plan: LoadPlan) -> list[str]:
    """What says that the figures are the generator's as well as the server's; empty when not."""
    found = []
    counts = recorder.counts()
    if counts.sent < counts.planned:
        found.append(f"{counts.planned - counts.sent} requests could not be sent in time")
    lag = recorder.send_lag(plan.duration_s + plan.grace_s)
    if plan.arrivals is None or not len(lag):
        return found
    lag_s = float(np.quantile(lag, 0.99))
    if plan.deadline_s is not None:
        bound_s, of = (
            plan.lag_share * plan.deadline_s,
            f"{100 * plan.lag_share:g} % of the deadline",
        )
    else:
        p99_s = recorder.quantile(0.99)
        bound_s, of = _LAG_SHARE_OF_P99 * (p99_s or math.inf), "10 % of the latency's p99"
    if lag_s > bound_s:
        found.append(
            f"the generator was late itself: send lag p99 {lag_s * 1e3:.3g} ms is more than {of}, "
            f"{bound_s * 1e3:.3g} ms"
        )
    return found
