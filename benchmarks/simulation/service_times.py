"""How long a simulated device takes for a batch: a time by padded rows, and what disturbs it."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class ServiceTime(Protocol):
    """Seconds that a batch takes when nothing disturbs it."""

    def seconds(self, rows: int) -> float:
        """Of a batch of so many padded rows."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantTime:
    """The same for every batch: a device that computes all its rows at once."""

    each_s: float

    def seconds(self, rows: int) -> float:
        """See ``ServiceTime``."""
        return self.each_s


@dataclass(frozen=True, slots=True)
class LinearTime:
    """``alpha_s`` + ``beta_s`` · rows."""

    alpha_s: float
    beta_s: float

    def seconds(self, rows: int) -> float:
        """See ``ServiceTime``."""
        return self.alpha_s + self.beta_s * rows


class TableTime:
    """Measured times; between two sizes on the line through them, beyond the ends on the last."""

    def __init__(self, by_rows: Mapping[int, float]) -> None:
        """Seconds by padded rows; two sizes at least."""
        if len(by_rows) < 2:
            raise ValueError("a table of service times needs two sizes at least")
        self._sizes = sorted(by_rows)
        self._times = [by_rows[size] for size in self._sizes]

    def seconds(self, rows: int) -> float:
        """See ``ServiceTime``."""
        i = min(max(bisect_left(self._sizes, rows), 1), len(self._sizes) - 1)
        low, high = self._sizes[i - 1], self._sizes[i]
        share = (rows - low) / (high - low)
        return max(self._times[i - 1] * (1 - share) + self._times[i] * share, 0.0)


class Disturbance(Protocol):
    """What makes a run longer or shorter than it should be."""

    def factor(self, draw: random.Random, at: float) -> float:
        """By how much, of a run that begins ``at`` seconds from the start."""
        ...


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Normal with mean 1 and standard deviation ``cv``; never below a tenth."""

    cv: float

    def factor(self, draw: random.Random, at: float) -> float:
        """See ``Disturbance``."""
        return max(draw.gauss(1.0, self.cv), 0.1)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """The exponential of a normal of standard deviation ``sigma``; its median is 1."""

    sigma: float

    def factor(self, draw: random.Random, at: float) -> float:
        """See ``Disturbance``."""
        return math.exp(draw.gauss(0.0, self.sigma))


@dataclass(frozen=True, slots=True)
class Outliers:
    """A share of the runs takes ``times`` as long."""

    share: float
    times: float

    def factor(self, draw: random.Random, at: float) -> float:
        """See ``Disturbance``."""
        return self.times if draw.random() < self.share else 1.0


@dataclass(frozen=True, slots=True)
class Drift:
    """From ``since_s`` to ``until_s`` every run takes ``times`` as long: a device that throttles,
    or that another process uses too."""

    since_s: float
    times: float
    until_s: float = math.inf

    def factor(self, draw: random.Random, at: float) -> float:
        """See ``Disturbance``."""
        return self.times if self.since_s <= at < self.until_s else 1.0
