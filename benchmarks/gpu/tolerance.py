"""Measurements of which one may fail without the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.gpu.guarded import describe
from batchyard.benchmarks.results import run_rounds
from batchyard.cli.local_server import ServerDidNotStart
from batchyard.wire.errors import BatchyardError

# What says that something cannot be measured, but not that the harness is wrong.
FAILURES = (
    BenchmarkFailed,
    ServerDidNotStart,
    BatchyardError,
    TimeoutError,
    OSError,
    MemoryError,
    # Of what only some parts need.
    ImportError,
)
Measurements = Mapping[str, Callable[[], Mapping[str, float]]]
# Values by their figure's key, one a round; and why what is not there is not, by what was measured.
Found = tuple[dict[str, list[float]], dict[str, str]]


def run_tolerant_rounds(measurements: Measurements, repeat: int) -> Found:
    """As ``run_rounds``: what was measured in every round, and why the rest was not, by name.

    What failed once is not asked again.
    """
    skipped: dict[str, str] = {}

    def tolerant(name: str, measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        if name in skipped:
            return {}
        try:
            return measure()
        except FAILURES as error:
            skipped[name] = describe(error)
            return {}

    wrapped = {
        name: (lambda name=name, measure=measure: tolerant(name, measure))
        for name, measure in measurements.items()
    }
    measured = run_rounds(wrapped, repeat)
    whole = {key: values for key, values in measured.items() if len(values) == repeat}
    return whole, skipped
