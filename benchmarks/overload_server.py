"""MLPerf's two scenarios: the highest rate with 99 % in time, beside all rows at once."""

from __future__ import annotations

from collections.abc import Iterator

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.overload_bench import CONSTANT, LINEAR, Bench, Gpu, Served
from batchyard.benchmarks.overload_search import highest_rate
from batchyard.benchmarks.results import Figure

_SHARE = 0.99
# The deadline, in times of the largest batch.
_DEADLINE = 3
# Batches of 8 are few for chance: when everything beyond the two next batches is refused, which
# is the best that can be done, Poisson arrivals lose 1 % at 0.89 of the offline rate.
_GOALS = {8: None, 32: 0.93}
_GPUS: dict[str, Gpu] = {"constant": CONSTANT, "linear": LINEAR}


def _figures() -> Iterator[Figure]:
    for kind in _GPUS:
        for batch, goal in _GOALS.items():
            yield Figure(
                f"server_{kind}_{batch}",
                f"highest rate, 99 % in 3 batches of {batch} ({kind} time)",
                "requests/s",
                f"offline_{kind}_{batch}",
                goal=goal,
            )


def measure(bench: Bench) -> dict[str, list[float]]:
    """Each kind of GPU and each batch size."""
    found: dict[str, list[float]] = {}
    for kind, gpu in _GPUS.items():
        for batch in _GOALS:
            seconds = gpu.times.seconds(batch)
            offline = batch / seconds
            with bench.serve(Served({"gpu": gpu}, max_batch_size=batch)) as server:
                mix = [MixEntry("gpu", deadline_s=_DEADLINE * seconds)]
                rate = highest_rate(bench, server, mix, offline, _SHARE)
            found[f"server_{kind}_{batch}"] = [rate]
            found[f"offline_{kind}_{batch}"] = [offline]
    return found


FIGURES = [*_figures()]
