"""A load that can be borne, for long: nobody is to be late, and predictions are to hold."""

from __future__ import annotations

from batchyard.benchmarks.load.plan import MixEntry, Poisson
from batchyard.benchmarks.overload_bench import CAPACITY, Bench, Served
from batchyard.benchmarks.results import Figure

# As many as show that one in ten thousand is late with 99 % confidence.
_REQUESTS = 46_050
_LOAD = 0.8
_DEADLINE_S = 0.1

FIGURES = [
    Figure("steady_in_time", f"in time at 0.8x, {_REQUESTS} requests, 100ms", "share", goal=0.9999),
    Figure("steady_late", "of these late", "requests", goal=0, lower_is_better=True),
    Figure(
        "prediction_p99",
        "prediction, p99 of error ÷ measured, 0.8x",
        "share",
        goal=0.02,
        lower_is_better=True,
    ),
]


def measure(bench: Bench) -> dict[str, list[float]]:
    """One long load."""
    rate = _LOAD * CAPACITY
    with bench.serve(Served()) as server:
        mix = [MixEntry("gpu", deadline_s=_DEADLINE_S)]
        measured = server.load(Poisson(rate), mix, _REQUESTS / rate)
    return {
        "steady_in_time": [measured.in_time_share],
        "steady_late": [float(measured.late)],
        "prediction_p99": [measured.prediction_p99],
    }
