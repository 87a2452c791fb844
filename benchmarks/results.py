"""What a benchmark found: figures by round, and what they come to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from batchyard.benchmarks.progress import ProgressBar


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Where it has a ``reference``, the goal is for the ratio to it, else for the value. Several
    figures may show one ``key``, each beside another reference.
    """

    key: str
    """Its key in ``Results.measured``."""
    title: str
    unit: str
    """``requests/s``, ``µs``, ``GB/s``, ``images/s``, ``share`` …"""
    reference: str | None = None
    """The key of what was measured beside it in the same round."""
    goal: float | None = None
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """What the rounds of one figure come to."""

    figure: Figure
    values: tuple[float, ...]
    """By round."""
    ratios: tuple[float, ...]
    """By round; none where there is no reference, or where nothing of it was measured."""

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios, not the ratio of the medians: a slow round slows both."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing to hold against it."""
        value = self.median if self.figure.reference is None else self.ratio
        if self.figure.goal is None or value is None:
            return None
        if self.figure.lower_is_better:
            return value <= self.figure.goal
        return value >= self.figure.goal


@dataclass(slots=True)
class Results:
    """One run of one benchmark."""

    name: str
    machine: dict[str, str]
    settings: dict[str, Any]
    figures: list[Figure]
    measured: dict[str, list[float]]
    """What each round found, by key; rounds are in the same order everywhere."""
    skipped: dict[str, str] = field(default_factory=dict)
    """What was not measured (a figure's key, or a peer's name), and why."""

    def summaries(self) -> list[Summary]:
        """Every figure that was measured, in order."""
        return [self._summary(figure) for figure in self.figures if self.measured.get(figure.key)]

    def to_json(self) -> dict[str, Any]:
        """All of it, with medians and ratios, as values that JSON has."""
        return {
            "name": self.name,
            "machine": self.machine,
            "settings": self.settings,
            "figures": [
                {
                    **asdict(summary.figure),
                    "median": summary.median,
                    "low": min(summary.values),
                    "high": max(summary.values),
                    "ratio": summary.ratio,
                    "ratios": list(summary.ratios),
                    "met": summary.met,
                }
                for summary in self.summaries()
            ],
            "measured": self.measured,
            "skipped": self.skipped,
        }

    def _summary(self, figure: Figure) -> Summary:
        values = self.measured[figure.key]
        ratios: tuple[float, ...] = ()
        references = self.measured.get(figure.reference) if figure.reference else None
        # A reference of 0 (a measurement too short for one answer) is nothing to compare with.
        if references and all(references):
            ratios = tuple(a / b for a, b in zip(values, references, strict=True))
        return Summary(figure, tuple(values), ratios)


def run_rounds(
    measurements: Mapping[str, Callable[[], Mapping[str, float]]], repeat: int
) -> dict[str, list[float]]:
    """Runs every measurement once a round, in turn, so that all see the machine's moods alike.

    Each gives values by key; the result has the value of each round by key. A person who
    watches is told which measurement runs.
    """
    measured: dict[str, list[float]] = {}
    with ProgressBar("measuring", repeat * len(measurements)) as bar:
        for i in range(repeat):
            for done, (name, measure) in enumerate(measurements.items(), i * len(measurements)):
                bar.show(f"round {i + 1} of {repeat}: {name}", done)
                for key, value in measure().items():
                    measured.setdefault(key, []).append(value)
    return measured
