"""The highest rate at which enough requests are in time, and the highest rate at all.

Pure but for the trials that it asks for, so that tests run it against servers made of arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from batchyard.benchmarks.load.early_stopping import Counts, Rule

# A trial that fails says so at once, one that passes needs its time: rather too high than too low.
_GROWTH = 2.0
# So many more callers must bring so much more throughput to be worth trying still more.
_GAIN = 0.03
# Steps down from what the short trials found until a long one passes.
_MOST_CONFIRMATIONS = 12


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate that was tried, and what came of it."""

    rate: float
    seed: int
    in_time: int
    late: int
    seconds: float
    passed: bool
    why: str
    confirms: bool = False
    """A long one, at the rate that the short ones found."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a trial saw: its counts, and why they cannot be trusted, where that is so."""

    counts: Counts
    unstable: str = ""
    """Why the run does not stand for the long run: a growing queue, a generator that lags."""


Attempt = Callable[[float, int, Rule], Observed]
"""Loads a server at a rate, with a seed, until the rule is decided."""


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate that passed (0: none did), and all trials in their order."""

    rate: float
    failed_at: float | None
    """The lowest rate that failed, twice or for long; None where the search found none."""
    share: float
    confidence: float
    tolerance: float
    trials: list[Trial] = field(default_factory=list)
    offline: dict[int, float] = field(default_factory=dict)
    """Answers a second with so many callers in a closed loop."""

    @property
    def offline_rate(self) -> float | None:
        """The highest throughput with everything queued."""
        return max(self.offline.values(), default=None)

    @property
    def server_over_offline(self) -> float | None:
        """How much of its throughput the server keeps when answers must be in time."""
        return self.rate / self.offline_rate if self.offline_rate else None

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Found:
        """What ``to_json`` gave, also after a file has made texts of the numbers of callers."""
        trials = [Trial(**trial) for trial in value["trials"]]
        offline = {int(callers): rate for callers, rate in value["offline"].items()}
        return cls(**{**value, "trials": trials, "offline": offline})


def find_rate(
    attempt: Attempt,
    start_rate: float,
    rule: Rule,
    *,
    tolerance: float = 0.02,
    most_trials: int = 40,
    least_rate: float = 0.1,
    most_rate: float | None = None,
    seed: int = 0,
    confirm: Rule | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """The highest rate that passes, within ``tolerance`` of it.

    Rates grow until one fails, then the interval between what passed and what failed is halved.
    The search ends when what failed lies within the tolerance of what passed and has failed
    twice: where the second time passes, the first was a hiccup and the search goes on upwards.

    The rule takes requests to be late independently of each other, but they come in swarms, all
    the more the closer a queue is to growing without end: a short trial may see none. With
    ``confirm``, a rule for longer trials, the rate is lowered by the tolerance until one passes.
    """
    if start_rate <= 0 or tolerance <= 0:
        raise ValueError("start_rate and tolerance must be above 0")
    bounds = _Bounds(start_rate, tolerance, most_rate)
    trials: list[Trial] = []

    def tried(rate: float, by: Rule) -> bool:
        # Another seed each time: the same arrivals would have the same bad luck.
        trial = _judged(rate, seed + len(trials), attempt, by.at(rate), by is confirm)
        trials.append(trial)
        on_trial(trial)
        return trial.passed

    while len(trials) < most_trials:
        rate = bounds.next_rate()
        if rate is None or rate < least_rate:
            break
        bounds.learn(rate, tried(rate, rule))
    best = bounds.passed
    failed_at = bounds.failed if bounds.failures > 1 else None
    if confirm is not None and best:
        steps = [best / (1 + tolerance) ** i for i in range(_MOST_CONFIRMATIONS)]
        best = 0.0
        for rate in steps:
            if tried(rate, confirm):
                best = rate
                break
            failed_at = rate
    return Found(best, failed_at, rule.share, rule.confidence, tolerance, trials)


def find_offline(
    throughput: Callable[[int], float], callers: int = 64, most_callers: int = 4096
) -> dict[int, float]:
    """Answers a second by the number of callers in a closed loop, doubled while that helps."""
    found = {callers: throughput(callers)}
    while callers * 2 <= most_callers:
        before = max(found.values())
        callers *= 2
        found[callers] = throughput(callers)
        if found[callers] < before * (1 + _GAIN):
            break
    return found


class _Bounds:
    """What passed, what failed, and so what to try next."""

    def __init__(self, start_rate: float, tolerance: float, most_rate: float | None) -> None:
        self.passed = 0.0
        self.failed: float | None = None
        self.failures = 0
        self._start_rate = start_rate
        self._tolerance = tolerance
        self._most_rate = most_rate
        self._growth = _GROWTH

    def next_rate(self) -> float | None:
        """None when there is nothing left to try."""
        if self.failed is None:
            return self._higher()
        if not self.passed:
            return self.failed / _GROWTH
        if self.failed > self.passed * (1 + self._tolerance):
            return (self.passed + self.failed) / 2
        return self.failed if self.failures < 2 else None

    def learn(self, rate: float, passed: bool) -> None:
        """What came of ``next_rate``."""
        if not passed:
            self.failures = self.failures + 1 if rate == self.failed else 1
            self.failed = rate
            return
        self.passed = rate
        if self.failed == rate:
            # It had failed by accident: what is higher is open again, and probably near.
            self.failed, self.failures = None, 0
            self._growth = 1 + 2 * self._tolerance
        elif self.failed is None:
            self._growth = min(_GROWTH, 1 + 2 * (self._growth - 1))

    def _higher(self) -> float | None:
        if not self.passed:
            rate = self._start_rate
        elif self._most_rate is not None and self.passed >= self._most_rate:
            return None
        else:
            rate = self.passed * self._growth
        return rate if self._most_rate is None else min(rate, self._most_rate)


def _judged(rate: float, seed: int, attempt: Attempt, rule: Rule, confirms: bool) -> Trial:
    observed = attempt(rate, seed, rule)
    counts = observed.counts
    enough = rule.passed(counts)
    if enough and not observed.unstable:
        why = f"{counts.share:.2%} in time"
    elif enough:
        why = observed.unstable
    else:
        how = "only" if rule.failed(counts) else "undecided at"
        why = f"{how} {counts.share:.2%} in time"
        why += f"; {observed.unstable}" if observed.unstable else ""
    return Trial(
        rate=rate,
        seed=seed,
        in_time=counts.in_time,
        late=counts.late,
        seconds=counts.seconds,
        passed=enough and not observed.unstable,
        why=why,
        confirms=confirms,
    )
