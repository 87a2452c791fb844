"""What the check says of one thing: a line of the page, with the figure and its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

_WIDTHS = (8, 11, 24)


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``found`` has the figure, ``bound`` what it is held against."""

    framework: str
    check: str
    outcome: Outcome
    found: str
    bound: str = ""

    def __str__(self) -> str:
        parts = (self.outcome, self.framework, self.check)
        begin = " ".join(f"{part:<{width}}" for part, width in zip(parts, _WIDTHS, strict=True))
        return f"{begin} {self.found}{f' ({self.bound})' if self.bound else ''}"

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)


def held(framework: str, check: str, holds: bool, found: str, bound: str = "") -> Verdict:
    """OK if it holds, FAILED otherwise."""
    return Verdict(framework, check, Outcome.OK if holds else Outcome.FAILED, found, bound)


def skipped(framework: str, check: str, why: str) -> Verdict:
    """It cannot be checked here."""
    return Verdict(framework, check, Outcome.SKIPPED, why)


def summary(verdicts: Sequence[Verdict]) -> str:
    """``12 ok, 0 FAILED, 2 skipped``."""
    outcomes = [verdict.outcome for verdict in verdicts]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in Outcome)
