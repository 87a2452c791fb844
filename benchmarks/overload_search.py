"""The highest rate at which enough requests are answered in time."""

from __future__ import annotations

from collections.abc import Sequence

from batchyard.benchmarks.load.plan import MixEntry, Poisson
from batchyard.benchmarks.overload_bench import Bench, Server

# Halvings of what is between none and all of the capacity.
_TRIALS = 7


def highest_rate(
    bench: Bench, server: Server, mix: Sequence[MixEntry], capacity: float, share: float
) -> float:
    """In requests per second, by Poisson arrivals; 0 when even the lowest tried is too high."""
    low, high = 0.0, capacity
    for _ in range(_TRIALS):
        rate = (low + high) / 2
        if server.load(Poisson(rate), mix, bench.seconds).in_time_share >= share:
            low = rate
        else:
            high = rate
    return low
