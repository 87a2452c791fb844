"""Benchmarks of several parts, which are measured one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.progress import ProgressBar
from batchyard.benchmarks.results import Figure
from batchyard.cli.local_server import ServerDidNotStart
from batchyard.wire.errors import BatchyardError

How = TypeVar("How")
# What measures a part, and the lines that it fills.
Part = tuple[Callable[[How], Mapping[str, list[float]]], Sequence[Figure]]


@dataclass(slots=True)
class Found:
    """What the parts came to; ``skipped`` says by name why one did not."""

    figures: list[Figure] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def measure_parts(parts: Mapping[str, Part[How]], how: How, only: Sequence[str]) -> Found:
    """Measures all parts, or those named. One that fails does not end the others."""
    found = Found()
    wanted = [name for name in parts if not only or name in only]
    with ProgressBar("measuring", len(wanted)) as bar:
        for done, name in enumerate(wanted):
            measure, lines = parts[name]
            found.figures += lines
            bar.note(f"measuring {name} ...")
            bar.show(name, done)
            try:
                found.measured |= measure(how)
            except (BenchmarkFailed, ServerDidNotStart, BatchyardError, TimeoutError) as error:
                found.skipped[name] = f"{type(error).__name__}: {error}"
    return found
