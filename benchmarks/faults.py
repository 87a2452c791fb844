"""What becomes of requests when processes die, hang, are told to stop or to load something new.

Each part runs servers of its own. A part that cannot be measured is told among what was skipped,
and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchyard.benchmarks import (
    faults_broker,
    faults_detection,
    faults_kills,
    faults_poison,
    faults_soak,
    faults_versions,
)
from batchyard.benchmarks.faults_run import Effort
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.parts import Part, measure_parts
from batchyard.benchmarks.results import Results

PARTS: dict[str, Part[Effort]] = {
    "kills": (faults_kills.measure, faults_kills.FIGURES),
    "detection": (faults_detection.measure, faults_detection.FIGURES),
    "poison": (faults_poison.measure, faults_poison.FIGURES),
    "broker": (faults_broker.measure_broker, faults_broker.BROKER_FIGURES),
    "drain": (faults_broker.measure_drain, faults_broker.DRAIN_FIGURES),
    "versions": (faults_versions.measure, faults_versions.FIGURES),
    "soak": (faults_soak.measure, faults_soak.FIGURES),
}


def run(effort: Effort, only: Sequence[str] = ()) -> Results:
    """Measures all parts, or those named, one after the other."""
    found = measure_parts(PARTS, effort, only)
    settings = {
        "seconds": effort.seconds or "as the goals ask",
        "times": effort.times or "as the goals ask",
        "seed": effort.seed,
        "workers": faults_kills.WORKERS,
        "rows a batch": faults_kills.BATCH,
        "batch_s": faults_kills.BATCH_S,
    }
    return Results("faults", describe(), settings, found.figures, found.measured, found.skipped)
