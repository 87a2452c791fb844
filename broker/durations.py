"""How long batches take: learned from those that ran, for those that are to run.

A high quantile over a short window, as Clockwork (OSDI 2020) has it: of the last ten runs of a
size the second longest, so that outliers move nothing. Times are seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from itertools import islice

# Runs of one size that are remembered.
_WINDOW = 10
# Where the shortest run is so much of the second longest, the next can be predicted.
_STEADY = 0.75
_MEDIAN_OF = 5
_OUTLIER = 2.0
# What was not measured for so long is doubted: each time so much more halves it.
_DOUBTED_AFTER_S = 1.0
# How many predictions are remembered to say how good they are.
_ERRORS = 1024


class Window:
    """The last few runs of a size: the second longest of them, without outliers.

    An outlier is more than twice the median of the last five: so a device that becomes slower, or
    faster, is believed after three runs.
    """

    __slots__ = ("_values", "high", "is_steady", "learned_at")

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)
        self.high = 0.0
        # Whether they are much the same.
        self.is_steady = False
        # None of the warm-up, until somebody asks.
        self.learned_at: float | None = None

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """One more value; the oldest is forgotten."""
        forgotten = self._values[0] if len(self._values) == _WINDOW else self.high
        self._values.append(value)
        if forgotten < self.high >= value >= _STEADY * self.high:
            # Neither was, or is, one that matters.
            return
        last = sorted(islice(reversed(self._values), _MEDIAN_OF))
        bound = _OUTLIER * last[(len(last) - 1) // 2]
        values = sorted(value for value in self._values if value <= bound)
        self.high = values[-2] if len(values) > 1 else values[0]
        self.is_steady = len(values) > 2 and values[0] >= _STEADY * self.high

    def least(self, now: float) -> float:
        """What was not measured lately counts for less and less: whoever refuses work because of a
        prediction gets no measurement that could correct it."""
        if self.learned_at is None:
            self.learned_at = now
        doubted_s = now - self.learned_at - _DOUBTED_AFTER_S
        if doubted_s <= 0:
            return self.high
        return float(self.high * 0.5 ** (doubted_s / _DOUBTED_AFTER_S))


class Durations:
    """What one signature takes for batches of rows of one shape, on one kind of device."""

    def __init__(self) -> None:
        # By padded rows.
        self._runs: dict[int, Window] = {}
        # The sizes that ran, increasing; and of them those that ran more than once.
        self._sizes: list[int] = []
        self._trusted: list[int] = []
        self._expected: dict[int, float] = {}
        self._handing = Window()
        # Not of the warm-up only.
        self._has_run = False

    @property
    def is_known(self) -> bool:
        """Whether anything ran."""
        return bool(self._sizes)

    @property
    def handing_s(self) -> float:
        """From handing a batch to an idle worker to having its answer, but for its execution."""
        return self._handing.high

    def seed(self, rows: int, seconds: float) -> None:
        """A run of the warm-up. It says nothing that batches have not said."""
        if not self._has_run:
            self._add(rows, seconds)

    def learn(self, rows: int, seconds: float, now: float) -> None:
        """A batch of so many padded rows ran for so long."""
        self._add(rows, seconds).learned_at = now
        self._has_run = True

    def learn_handing(self, seconds: float) -> None:
        """What a batch on a worker that was idle took beside its execution."""
        self._handing.add(seconds)

    def expected(self, rows: int) -> float:
        """How long a batch of so many padded rows will run; only if anything ``is_known``."""
        seconds = self._expected.get(rows)
        if seconds is None:
            seconds = self._expected[rows] = self._estimate(rows)
        return seconds

    def is_steady(self, rows: int) -> bool:
        """Whether batches of that size always run for much the same time."""
        runs = self._runs.get(rows)
        return runs is not None and runs.is_steady

    def least(self, rows: int, now: float) -> float:
        """How long it will surely run: as expected, unless that is doubted; then as long as
        smaller batches do."""
        expected = self.expected(rows)
        size = rows if rows in self._runs else self._above(rows)
        if self._runs[size].least(now) >= self._runs[size].high:
            return expected
        # What lies between neighbours is as good as they are.
        last = bisect_left(self._sizes, rows) + 1
        sure = (self._runs[size].least(now) for size in self._sizes[:last])
        return min(expected, max(sure))

    def _above(self, rows: int) -> int:
        """The next size that ran, or the last."""
        return self._sizes[min(bisect_left(self._sizes, rows), len(self._sizes) - 1)]

    def _add(self, rows: int, seconds: float) -> Window:
        runs = self._runs.get(rows)
        if runs is None:
            runs = self._runs[rows] = Window()
            insort(self._sizes, rows)
        was = runs.high
        runs.add(seconds)
        if len(runs) == 2:
            insort(self._trusted, rows)
        if runs.high != was or len(runs) <= 2:
            self._expected.clear()
        return runs

    def _estimate(self, rows: int) -> float:
        runs = self._runs.get(rows)
        if runs is not None and (len(runs) > 1 or not self._trusted):
            return runs.high
        line = self._on_line(self._trusted or self._sizes, rows)
        # Of a size that ran once it is not known whether that was an outlier.
        return line if runs is None else min(runs.high, line)

    def _on_line(self, sizes: list[int], rows: int) -> float:
        """Between the neighbours among ``sizes``; beyond the last, on as between the ends."""
        i = bisect_left(sizes, rows)
        if i < len(sizes) and (not i or sizes[i] == rows):
            # Of fewer rows than ever ran it is not known how much less they take.
            return self._runs[sizes[i]].high
        if len(sizes) == 1:
            return self._runs[sizes[0]].high
        low, high = (sizes[i - 1], sizes[i]) if i < len(sizes) else (sizes[0], sizes[-1])
        a, b = self._runs[low].high, self._runs[high].high
        return max(a + (b - a) * (rows - low) / (high - low), 0.0 if i < len(sizes) else b)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far predictions were off: abs(predicted - measured) ÷ measured."""

    count: int
    p50: float
    p99: float


class Errors:
    """Predictions beside what was measured."""

    def __init__(self) -> None:
        self._errors: deque[float] = deque(maxlen=_ERRORS)
        self._count = 0

    def add(self, predicted_s: float, measured_s: float) -> None:
        """A batch that was predicted ran."""
        if measured_s > 0:
            self._errors.append(abs(predicted_s - measured_s) / measured_s)
            self._count += 1

    @property
    def accuracy(self) -> Accuracy:
        """Of the last thousand; ``count`` has all."""
        errors = sorted(self._errors)
        if not errors:
            return Accuracy(0, 0.0, 0.0)
        last = len(errors) - 1
        return Accuracy(self._count, errors[last // 2], errors[round(last * 0.99)])
