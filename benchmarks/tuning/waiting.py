"""How long a batch may wait, what sizes it may have, and how many may wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from batchyard.benchmarks.table import number
from batchyard.benchmarks.tuning.bench import (
    VERY_HIGH_TIMEOUT_MICROS,
    VERY_MANY_BATCHES,
    Deadline,
    Load,
    Setting,
)
from batchyard.benchmarks.tuning.contest import MARGIN, RateContest, Verdict
from batchyard.benchmarks.tuning.tuner import Tuner

# "1 to 10 ms tried, 0 may be best."
_TIMEOUTS_MICROS = (1_000, 2_000, 5_000, 10_000)
# Where callers never stop asking, batches are full anyway: the shortest and the longest will do.
_BULK_TIMEOUTS_MICROS = (1_000, 10_000)
# A queue's bound is tried a little below what can be served, where every refusal is one too many,
# and under much more than that.
_BELOW, _OVERLOAD = 0.95, 1.5


def choose_timeout(tuner: Tuner) -> None:
    """``batch_timeout_micros``."""
    contest = tuner.contest
    before = len(contest.verdicts)
    tuner.lab.step = "batch_timeout_micros"
    start = tuner.champion
    waited = start.batch_timeout_micros == VERY_HIGH_TIMEOUT_MICROS
    for micros in (0, *_timeouts(tuner)) if waited else _timeouts(tuner):
        # As long as it is for ever, a shorter one need only be as good.
        margin = 0.0 if tuner.champion.batch_timeout_micros == VERY_HIGH_TIMEOUT_MICROS else MARGIN
        contest.challenge(replace(start, batch_timeout_micros=micros), margin)
    verdicts = contest.verdicts[before:]
    chosen = tuner.champion.batch_timeout_micros
    tuner.chose("batch_timeout_micros", chosen, _why_timeout(tuner, verdicts), verdicts)


def choose_allowed_sizes(tuner: Tuner) -> None:
    """``allowed_batch_sizes``: powers of two where few sizes pay, else every size."""
    contest = tuner.contest
    before = len(contest.verdicts)
    tuner.lab.step = "allowed_batch_sizes"
    start = tuner.champion
    few_are_wanted = tuner.lab.bench.device == "gpu" or tuner.curve.compiles
    if start.max_batch_size > 1:
        few = replace(start, allowed_batch_sizes=_powers_of_two(start.max_batch_size))
        contest.challenge(few, 0.0 if few_are_wanted else MARGIN)
    verdicts = contest.verdicts[before:]
    chosen = list(tuner.champion.allowed_batch_sizes)
    reason = _why_sizes(tuner, verdicts, few_are_wanted)
    tuner.chose("allowed_batch_sizes", chosen, reason, verdicts)


def choose_bound(tuner: Tuner) -> Setting:
    """``max_enqueued_batches``, in the end; the champion with it."""
    tuner.lab.step = "max_enqueued_batches"
    if isinstance(tuner.contest, RateContest):
        chosen = _bound_for_deadlines(tuner, tuner.contest)
    else:
        chosen = _bound_for_bulk(tuner)
    return replace(tuner.champion, max_enqueued_batches=chosen)


def _timeouts(tuner: Tuner) -> list[int]:
    goal = tuner.goal
    if not isinstance(goal, Deadline):
        return list(_BULK_TIMEOUTS_MICROS)
    room_s = goal.deadline_s - tuner.curve.seconds(tuner.rows)
    return [micros for micros in _TIMEOUTS_MICROS if micros / 1e6 < room_s]


def _why_timeout(tuner: Tuner, verdicts: Sequence[Verdict]) -> str:
    chosen = tuner.champion.batch_timeout_micros
    tried = "; ".join(
        f"{v.setting.batch_timeout_micros / 1e3:g} ms: {v.words}"
        for v in verdicts
        if v.setting.batch_timeout_micros != chosen and v.load is not None
    )
    if chosen == 0 and not tried:
        what = "No time was left to try others; batches grow while all threads are busy"
    elif chosen == 0:
        what = "Nothing is gained by waiting: batches grow anyway while all threads are busy"
    elif chosen == VERY_HIGH_TIMEOUT_MICROS:
        what = "Batches are worth waiting for until they are full, or their deadline is near"
    else:
        what = f"Waiting {chosen / 1e3:g} ms fills batches: {number(tuner.contest.rate)}/s"
    return f"{what} ({tried})." if tried else f"{what}."


def _powers_of_two(most: int) -> tuple[int, ...]:
    return (*(1 << i for i in range((most - 1).bit_length())), most)


def _why_sizes(tuner: Tuner, verdicts: Sequence[Verdict], few_are_wanted: bool) -> str:
    champion = tuner.champion
    if not verdicts:
        return "There is one size only."
    if verdicts[-1].load is None:
        return "No time was left to try fewer; every size is allowed."
    found = verdicts[-1].words
    why = (
        "Each new size costs more when it comes for the first time"
        if tuner.curve.compiles
        else "A GPU likes few sizes"
        if few_are_wanted
        else "Padding to few sizes"
    )
    if champion.allowed_batch_sizes:
        return f"{why}; padded to powers of two it does as well or better ({found})."
    if few_are_wanted:
        return f"Powers of two do worse, padding being paid for: {found}."
    return f"{why} gains nothing here: {found}; every size is allowed."


def _bound_for_deadlines(tuner: Tuner, contest: RateContest) -> int:
    """As many as threads, as the guide says, if that serves as many as more would."""
    champion, goal = tuner.champion, contest.goal
    guide = champion.threads
    in_time = contest.rate * goal.deadline_s * tuner.rows / champion.max_batch_size
    enough = max(guide + math.ceil(in_time), 2 * guide)
    loads: dict[int, tuple[Load, Load]] = {}
    for bound in (guide, enough):
        if not tuner.lab.has_time and loads:
            break
        setting = replace(champion, max_enqueued_batches=bound)
        below = tuner.lab.offer(setting, _BELOW * contest.rate, goal)
        over = tuner.lab.offer(setting, _OVERLOAD * contest.rate, goal)
        loads[bound] = below, over
    chosen = _better_bound(contest, guide, enough, loads)
    verdicts = [
        Verdict(
            load.setting,
            load,
            load.answered_rate,
            won=load.setting.max_enqueued_batches == chosen,
        )
        for pair in loads.values()
        for load in pair
    ]
    tuner.chose("max_enqueued_batches", chosen, _why_bound(chosen, guide, loads), verdicts)
    return chosen


def _better_bound(
    contest: RateContest, guide: int, enough: int, loads: dict[int, tuple[Load, Load]]
) -> int:
    guide_below, guide_over = loads[guide]
    if not contest.holds(guide_below):
        return enough
    if enough not in loads:
        return guide
    no_worse = guide_over.in_time_share >= (1 - MARGIN) * loads[enough][1].in_time_share
    return guide if no_worse else enough


def _why_bound(chosen: int, guide: int, loads: dict[int, tuple[Load, Load]]) -> str:
    texts = [
        f"with {bound} waiting {100 * below.in_time_share:.1f} % were in time at "
        f"{number(below.rate or 0)}/s and {100 * over.in_time_share:.1f} % at "
        f"{number(over.rate or 0)}/s"
        for bound, (below, over) in loads.items()
    ]
    if chosen == guide:
        what = "As many as batch threads, as the guide says: the queue stays short, threads busy"
    else:
        what = (
            "More than the guide says: as many as can still be answered in time, so that none is "
            "refused that could be; the broker refuses the others by its prediction"
        )
    return f"{what}; {'; '.join(texts)}."


def _bound_for_bulk(tuner: Tuner) -> int:
    champion = tuner.champion
    most = tuner.lab.bench.most_waiting_rows // champion.max_batch_size
    chosen = max(champion.threads, min(most, VERY_MANY_BATCHES))
    reason = (
        f"Large, for bulk: {chosen * champion.max_batch_size:,} rows may wait, which fits into a "
        "quarter of what the queue may hold. Not measured: with more callers than that, each gets "
        "UNAVAILABLE and has to ask again."
    )
    tuner.chose("max_enqueued_batches", chosen, reason, [])
    return chosen
