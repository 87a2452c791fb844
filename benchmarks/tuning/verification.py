"""What was chosen beside what there was before, in turn, so that both see the machine's moods."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from batchyard.benchmarks.tuning.bench import Deadline, Load, Setting
from batchyard.benchmarks.tuning.contest import MARGIN, RateContest
from batchyard.benchmarks.tuning.tuner import Tuner

_ROUNDS = 2
STRETCH = 1.2
# Less and less is asked until it is held in every round together.
_FALL = 0.96
_FALLS = 4
_SEARCH_TRIALS = 4


@dataclass(frozen=True, slots=True)
class Verification:
    """Requests a second, of which enough were in time where there is a deadline."""

    setting: Setting
    """The better of the two."""
    rate: float
    before_rate: float
    chosen: tuple[Load, ...]
    before: tuple[Load, ...]
    holds: bool
    """Whether the chosen one held its rate; without a deadline always."""

    @property
    def ratio(self) -> float:
        """How much more it reaches than before; inf when that reached nothing."""
        return self.rate / self.before_rate if self.before_rate else float("inf")


def verify(tuner: Tuner, chosen: Setting) -> Verification:
    """By the goal."""
    tuner.lab.step = "verification"
    if isinstance(tuner.contest, RateContest):
        return _verify_rate(tuner, tuner.contest, chosen)
    return _verify_throughput(tuner, chosen)


def _verify_throughput(tuner: Tuner, chosen: Setting) -> Verification:
    lab, rate = tuner.lab, tuner.contest.rate
    before = lab.bench.defaults
    loads: dict[Setting, list[Load]] = {chosen: [], before: []}
    for _ in range(_ROUNDS):
        for setting in loads:
            loads[setting].append(lab.saturate(setting, rate, stretch=STRETCH))
    rates = {s: statistics.median(load.answered_rate for load in loads[s]) for s in loads}
    # What is there already stays, if it is clearly better than all that was found.
    better = before if rates[before] > (1 + MARGIN) * rates[chosen] else chosen
    return Verification(
        better, rates[chosen], rates[before], tuple(loads[chosen]), tuple(loads[before]), True
    )


def _verify_rate(tuner: Tuner, contest: RateContest, chosen: Setting) -> Verification:
    lab, goal = tuner.lab, contest.goal
    before = lab.bench.defaults
    rate, holds = contest.rate, False
    of_chosen: list[Load] = []
    of_before: list[Load] = []
    for _ in range(1 + _FALLS):
        of_chosen, of_before = [], []
        for _ in range(_ROUNDS):
            of_chosen.append(lab.offer(chosen, rate, goal, stretch=STRETCH))
            holds = _held(of_chosen, goal)
            if not holds:
                break
            of_before.append(lab.offer(before, rate, goal, stretch=STRETCH))
        if holds:
            break
        rate *= _FALL
    before_rate, before_is_better = _compared_with_before(tuner, contest, chosen, of_before, rate)
    better = before if before_is_better else chosen
    return Verification(better, rate, before_rate, tuple(of_chosen), tuple(of_before), holds)


def _compared_with_before(
    tuner: Tuner, contest: RateContest, chosen: Setting, loads: list[Load], rate: float
) -> tuple[float, bool]:
    """The highest rate that what there was before holds, and whether it is the better one."""
    lab, goal = tuner.lab, contest.goal
    before = lab.bench.defaults
    if not loads:
        # Even the chosen one did not hold what was asked in the end.
        loads = [lab.offer(before, rate, goal, stretch=STRETCH)]
    if not _held(loads, goal):
        guess = 0.95 * _share(loads) * rate
        return contest.search(before, guess, trials=_SEARCH_TRIALS).score, False
    # It holds that rate as well. To be the better one it has to hold one that the other does not.
    higher = (1 + MARGIN) * rate
    held = []
    for setting in (before, chosen):
        again = [lab.offer(setting, higher, goal, stretch=STRETCH) for _ in range(_ROUNDS)]
        held.append(_held(again, goal))
        if not held[0]:
            return rate, False
    better = not held[1]
    return higher if better else rate, better


def _held(loads: list[Load], goal: Deadline) -> bool:
    return _share(loads) >= goal.share and not all(load.growing for load in loads)


def _share(loads: list[Load]) -> float:
    requests = sum(load.requests for load in loads)
    return sum(load.in_time_share * load.requests for load in loads) / requests if requests else 0.0
