"""Settings against each other: the champion, and challengers that take its place when better.

To find the highest rate of every setting takes a search of many trials each. To know whether a
setting is better than the champion takes one: the challenger has to hold a rate that is somewhat
higher than the champion's. Only a setting that does is searched for the highest that it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from batchyard.benchmarks.table import number
from batchyard.benchmarks.tuning.bench import Deadline, Goal, Load, Setting, Throughput
from batchyard.benchmarks.tuning.lab import Lab

# Less than this is taken for chance.
MARGIN = 0.03
_CLIMB = 1.04
# A throughput is steadier than a share in time: it needs less time to be known.
_THROUGHPUT_STRETCH = 0.6
_SEARCH_TRIALS = 8
_CLOSE_ENOUGH = 1.045
# The next lower rate, of one that was missed.
_LEAST_STEP, _MOST_STEP = 0.75, 0.92


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one setting came to beside the champion of then."""

    setting: Setting
    load: Load | None
    """The trial that decided; None: there was no time for one."""
    score: float
    """Requests a second that it reached; of one that lost a rate contest, in time."""
    won: bool

    @property
    def words(self) -> str:
        """For a table."""
        if self.load is None:
            return "not tried: no time was left"
        if self.load.rate is None:
            mean_ms = number(1e3 * self.load.mean_s)
            return f"{number(self.load.answered_rate)} requests/s, mean {mean_ms} ms"
        share = f"{100 * self.load.in_time_share:.1f} % in time"
        growing = ", but ever later" if self.load.growing else ""
        return f"{share}{growing} at {number(self.load.rate)}/s"


@dataclass(slots=True)
class Contest(ABC):
    """One champion at a time, and what it reaches."""

    lab: Lab
    champion: Setting | None = None
    rate: float = 0.0
    """Requests a second that the champion reaches."""
    verdicts: list[Verdict] = field(default_factory=list)

    def enter(self, setting: Setting, guess: float) -> Verdict:
        """A first champion, which is expected to reach about ``guess``; or a challenger of one
        that reaches anything."""
        if self.rate:
            return self.challenge(setting, hint=guess)
        verdict = self._measured(setting, guess)
        self.champion, self.rate = setting, verdict.score
        return self._noted(verdict)

    def challenge(self, setting: Setting, margin: float = MARGIN, hint: float = 0.0) -> Verdict:
        """Becomes the champion when it is better by more than ``margin``; by 0, when as good.

        ``hint`` is the rate that it is expected to reach, if that is known.
        """
        if not self.lab.has_time:
            return self._noted(Verdict(setting, None, 0.0, won=False))
        verdict = self._compared(setting, margin, hint)
        if verdict.won:
            # One as good as the champion has shown a little less, or a little more, by chance.
            self.champion, self.rate = setting, max(self.rate, verdict.score)
        return self._noted(verdict)

    def _to_beat(self, margin: float) -> float:
        # At the very edge the champion itself would win as often as not.
        return (1 + margin) * self.rate if margin else (1 - MARGIN / 2) * self.rate

    def _noted(self, verdict: Verdict) -> Verdict:
        self.verdicts.append(verdict)
        return verdict

    @abstractmethod
    def _measured(self, setting: Setting, guess: float) -> Verdict: ...

    @abstractmethod
    def _compared(self, setting: Setting, margin: float, hint: float) -> Verdict: ...


class ThroughputContest(Contest):
    """By the requests a second that callers get who never stop asking."""

    def _measured(self, setting: Setting, guess: float) -> Verdict:
        load = self.lab.saturate(setting, guess, _THROUGHPUT_STRETCH)
        return Verdict(setting, load, load.answered_rate, won=True)

    def _compared(self, setting: Setting, margin: float, hint: float) -> Verdict:
        load = self.lab.saturate(setting, self.rate, _THROUGHPUT_STRETCH)
        won = load.answered_rate > self._to_beat(margin)
        return Verdict(setting, load, load.answered_rate, won=won)


@dataclass(slots=True)
class RateContest(Contest):
    """By the highest Poisson rate at which enough requests are answered in time."""

    goal: Deadline = field(kw_only=True)

    def holds(self, load: Load) -> bool:
        """Whether enough were in time, and would be if it went on."""
        return load.in_time_share >= self.goal.share and not load.growing

    def _measured(self, setting: Setting, guess: float) -> Verdict:
        return self.search(setting, guess)

    def _compared(self, setting: Setting, margin: float, hint: float) -> Verdict:
        load = self.lab.offer(setting, self._to_beat(margin), self.goal)
        if not self.holds(load):
            return Verdict(setting, load, self._goodput(load), won=False)
        # It is better. How much, decides only what the next ones have to beat.
        guess = max(_CLIMB * _rate(load), hint)
        return self.search(setting, guess, held=load)

    def search(
        self,
        setting: Setting,
        guess: float,
        trials: int = _SEARCH_TRIALS,
        held: Load | None = None,
    ) -> Verdict:
        """The highest rate that a setting holds, to a few percent, looked for around a guess.

        ``held`` is a trial that it has passed already. It ranks settings by single trials;
        ``benchmarks.load.search`` proves a rate by many.
        """
        missed: Load | None = None
        rate, growth = guess, _CLIMB
        for _ in range(trials):
            if held is not None and self.lab.is_late:
                break
            load = self.lab.offer(setting, rate, self.goal)
            if self.holds(load):
                held = load
            else:
                missed = load
            if held is not None and missed is not None:
                low, high = _rate(held), _rate(missed)
                if high <= _CLOSE_ENOUGH * low:
                    break
                rate = (low * high) ** 0.5
            elif held is not None:
                rate, growth = growth * _rate(held), growth**2
            else:
                # What was answered in time under too much load may be about what it can bear.
                rate = min(max(self._goodput(load), _LEAST_STEP * rate), _MOST_STEP * rate)
        if held is None:
            assert missed is not None
            return Verdict(setting, missed, 0.0, won=False)
        return Verdict(setting, held, _rate(held), won=True)

    @staticmethod
    def _goodput(load: Load) -> float:
        return load.in_time_share * _rate(load)


def contest_for(goal: Goal, lab: Lab) -> Contest:
    """By what the goal says."""
    match goal:
        case Throughput():
            return ThroughputContest(lab)
        case Deadline():
            return RateContest(lab, goal=goal)


def _rate(load: Load) -> float:
    assert load.rate is not None
    return load.rate
