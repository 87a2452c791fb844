"""What the doctor says of one thing: how it is, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How something is: ``WARNING`` works, but not as well as it could, or not for long."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``remedy`` is a sentence; empty when all is well."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """It works, but something should be done."""
    return Finding(check, Level.WARNING, found, remedy)


def failure(check: str, found: str, remedy: str) -> Finding:
    """A server does not start, or does not serve."""
    return Finding(check, Level.FAILURE, found, remedy)


def mebibytes(nbytes: float) -> str:
    """``512 MiB``, or ``16.0 GiB`` from one GiB on."""
    mib = nbytes / 2**20
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
