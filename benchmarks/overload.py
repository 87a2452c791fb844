"""What deadlines are worth when there is too much to do.

Each part runs servers of its own, real or in virtual time. A part that cannot be measured is told
among what was skipped, and the others go on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from batchyard.benchmarks import (
    overload_models,
    overload_rates,
    overload_server,
    overload_steady,
    overload_step,
)
from batchyard.benchmarks.callables import BATCH_S
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.overload_bench import BATCH, Bench
from batchyard.benchmarks.results import Figure, Results
from batchyard.cli.local_server import ServerDidNotStart
from batchyard.wire.errors import BatchyardError

Measure = Callable[[Bench], Mapping[str, list[float]]]

PARTS: dict[str, tuple[Measure, Sequence[Figure]]] = {
    "rates": (overload_rates.measure, overload_rates.FIGURES),
    "step": (overload_step.measure, overload_step.FIGURES),
    "steady": (overload_steady.measure, overload_steady.FIGURES),
    "models": (overload_models.measure, overload_models.FIGURES),
    "server": (overload_server.measure, overload_server.FIGURES),
}


def run(bench: Bench, only: Sequence[str] = ()) -> Results:
    """Measures all parts, or those named, one after the other."""
    names = [name for name in PARTS if name in only or not only]
    figures: list[Figure] = []
    measured: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    for name in names:
        measure, lines = PARTS[name]
        figures += lines
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            measured |= measure(bench)
        except (BenchmarkFailed, ServerDidNotStart, BatchyardError, TimeoutError) as error:
            skipped[name] = f"{type(error).__name__}: {error}"
    settings = {
        "simulated": bench.is_simulated,
        "seconds": bench.seconds,
        "repeat": bench.repeat,
        "rows a batch": BATCH,
        "batch_s": BATCH_S,
    }
    return Results("overload", describe(), settings, figures, measured, skipped)
