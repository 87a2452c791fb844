"""What deadlines are worth when there is too much to do.

Each part runs servers of its own, real or in virtual time. A part that cannot be measured is told
among what was skipped, and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchyard.benchmarks import (
    overload_models,
    overload_rates,
    overload_server,
    overload_steady,
    overload_step,
)
from batchyard.benchmarks.callables import BATCH_S
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.overload_bench import BATCH, Bench
from batchyard.benchmarks.parts import Part, measure_parts
from batchyard.benchmarks.results import Results

PARTS: dict[str, Part[Bench]] = {
    "rates": (overload_rates.measure, overload_rates.FIGURES),
    "step": (overload_step.measure, overload_step.FIGURES),
    "steady": (overload_steady.measure, overload_steady.FIGURES),
    "models": (overload_models.measure, overload_models.FIGURES),
    "server": (overload_server.measure, overload_server.FIGURES),
}


def run(bench: Bench, only: Sequence[str] = ()) -> Results:
    """Measures all parts, or those named, one after the other."""
    found = measure_parts(PARTS, bench, only)
    settings = {
        "simulated": bench.is_simulated,
        "seconds": bench.seconds,
        "repeat": bench.repeat,
        "rows a batch": BATCH,
        "batch_s": BATCH_S,
    }
    return Results("overload", describe(), settings, found.figures, found.measured, found.skipped)
