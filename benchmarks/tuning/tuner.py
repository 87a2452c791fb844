"""What the steps of a tuning share: the goal, what is known, what was chosen and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batchyard.benchmarks.table import number
from batchyard.benchmarks.tuning.bench import (
    CannotRun,
    Deadline,
    Execution,
    Goal,
    Placement,
    Setting,
)
from batchyard.benchmarks.tuning.contest import Contest, Verdict, contest_for
from batchyard.benchmarks.tuning.curve import Curve
from batchyard.benchmarks.tuning.lab import Lab
from batchyard.benchmarks.tuning.virtual_queue import predicted_rate

# Larger batches that gain less, twice in a row, gain nothing.
_GAIN = 1.03
_SIZES_WITHOUT_GAIN = 2
# What a batch costs beside its rows is spread thin by then, and nobody wants to wait longer.
_LONGEST_BATCH_S = 0.3
# A server does a little worse than its execution times alone would.
_LIKELY = 0.93
# More requests a second than that are a load for others than the device.
_FAST = 3000.0


class GoalOutOfReach(Exception):
    """No setting can reach the goal; the message says why."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A parameter, what it was set to, why, and the measurements behind it."""

    key: str
    value: Any
    reason: str
    verdicts: tuple[Verdict, ...] = ()


@dataclass(slots=True)
class Tuner:
    """The state of one tuning."""

    lab: Lab
    goal: Goal
    contest: Contest = field(init=False)
    curves: dict[Placement, Curve] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # Whether batches may wait until they are full while their size is sought, as the guide has it.
    may_wait: bool = True
    _expected: dict[Setting, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.contest = contest_for(self.goal, self.lab)
        self.lab.batch_s = self._batch_s

    @property
    def champion(self) -> Setting:
        """The best setting so far."""
        assert self.contest.champion is not None
        return self.contest.champion

    @property
    def curve(self) -> Curve:
        """l(b) where the champion runs."""
        return self.curves[self.champion.placement]

    @property
    def rows(self) -> int:
        """Of each request."""
        return self.lab.bench.rows_per_request

    def chose(self, key: str, value: Any, reason: str, verdicts: list[Verdict]) -> None:
        """Notes a choice."""
        self.choices.append(Choice(key, value, reason, tuple(verdicts)))
        self.lab.tell(f"{key} = {value}: {reason}")

    def expected_rate(self, setting: Setting) -> float:
        """Requests a second that l(b) promises of a setting."""
        if setting not in self._expected:
            self._expected[setting] = self._promised(setting)
        return self._expected[setting]

    def likely_rate(self, setting: Setting) -> float:
        """What a search had better begin with.

        Of a fast model execution times promise what no client and no broker can carry: then what
        callers get who never stop asking says more.
        """
        likely = _LIKELY * self.expected_rate(setting)
        if isinstance(self.goal, Deadline) and likely > _FAST:
            saturated = self.lab.saturate(setting, likely)
            likely = min(likely, _LIKELY * saturated.answered_rate)
        return likely

    def _promised(self, setting: Setting) -> float:
        curve = self.curves[setting.placement]
        if isinstance(self.goal, Deadline):
            goal = self.goal
            return predicted_rate(curve.seconds, setting, self.rows, goal.deadline_s, goal.share)
        return setting.threads * curve.rows_per_s(setting.max_batch_size) / self.rows

    def _batch_s(self, setting: Setting) -> float:
        curve = self.curves.get(setting.placement)
        return curve.seconds(setting.max_batch_size) if curve is not None else 0.0

    def measure_curve(self, placement: Placement) -> Curve:
        """l(b) for 1, 2, 4, … times the rows of a request, as far as it is of use."""
        self.lab.step = f"execution time with {placement}"
        found: list[Execution] = []
        rows, best, without_gain = self.rows, 0.0, 0
        while rows <= max(self.lab.bench.most_rows, self.rows):
            try:
                found.append(self.lab.execution(Setting(placement, rows), rows))
            except CannotRun as error:
                if not found:
                    raise GoalOutOfReach(f"not even {rows} rows can run: {error}") from error
                self.notes.append(f"batches of {rows} rows cannot run here: {error}")
                break
            if found[-1].median_s > self._longest_batch_s():
                break
            gained = rows / found[-1].median_s > _GAIN * best
            best = max(best, rows / found[-1].median_s)
            without_gain = 0 if gained else without_gain + 1
            if without_gain >= _SIZES_WITHOUT_GAIN:
                break
            rows *= 2
        curve = self.curves[placement] = Curve(found)
        self._check_deadline(curve)
        return curve

    def _longest_batch_s(self) -> float:
        goal = self.goal
        return goal.deadline_s if isinstance(goal, Deadline) else _LONGEST_BATCH_S

    def _check_deadline(self, curve: Curve) -> None:
        least_s = curve.seconds(self.rows)
        if isinstance(self.goal, Deadline) and least_s >= self.goal.deadline_s:
            rows = "one row" if self.rows == 1 else f"{self.rows} rows"
            raise GoalOutOfReach(
                f"{rows} alone take {number(1e3 * least_s)} ms: no deadline of "
                f"{1e3 * self.goal.deadline_s:g} ms can be met"
            )
