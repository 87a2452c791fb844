"""Four models on four GPUs: as shipped, beside fixed timeouts that know no execution times."""

from __future__ import annotations

from collections.abc import Mapping

from batchyard.benchmarks.load.plan import MixEntry, Poisson
from batchyard.benchmarks.overload_bench import COSTLY, Bench, Served, Server
from batchyard.benchmarks.overload_virtual import VirtualBench
from batchyard.benchmarks.results import Figure

_MODELS = 4
_WORKERS = 4
_BATCH = 16
# Twice the largest batch.
_DEADLINE_S = 0.052
# Of the capacity: where a search begins.
_START = 0.7
_SEED = 1
_BATCH_TIMEOUTS_US = (0, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_CAPACITY = _WORKERS * _BATCH / COSTLY.times.seconds(_BATCH)
# Of the capacity with full batches: the overload at which goodput is compared.
_OVERLOAD = 1.5

FIGURES = [
    Figure("models_rate", "4 models x 4 GPUs: highest rate, 99 % in time", "requests/s"),
    Figure(
        "models_rate",
        "the same beside the best fixed timeout",
        "requests/s",
        "models_rate_fixed",
        goal=1.2,
    ),
    Figure("models_goodput", f"4 models x 4 GPUs: goodput at {_OVERLOAD:g}x", "requests/s"),
    Figure(
        "models_goodput",
        "the same beside the best fixed timeout",
        "requests/s",
        "models_goodput_fixed",
        goal=1.2,
    ),
]


def measure(bench: Bench) -> dict[str, list[float]]:
    """As shipped, and every timeout of the grid."""
    with bench.serve(_served({}, learns=True)) as server:
        rate, goodput = _measure(bench, server)
    # Servers with fixed timeouts know no execution times: only the simulation can run them.
    virtual = VirtualBench(bench.seconds, bench.repeat, _SEED)
    fixed = []
    for timeout_us in _BATCH_TIMEOUTS_US:
        batching = {"batch_timeout_micros": timeout_us}
        with virtual.serve(_served(batching, learns=False)) as server:
            fixed.append(_measure(virtual, server))
    return {
        "models_rate": [rate],
        "models_goodput": [goodput],
        # One answer at least, so that there is something to compare with.
        "models_rate_fixed": [max(rate for rate, _ in fixed) or 1 / bench.seconds],
        "models_goodput_fixed": [max(goodput for _, goodput in fixed) or 1 / bench.seconds],
    }


def _served(batching: Mapping[str, int], learns: bool) -> Served:
    return Served(
        {f"gpu{i}": COSTLY for i in range(_MODELS)},
        _WORKERS,
        _BATCH,
        batching,
        learns,
    )


def _measure(bench: Bench, server: Server) -> tuple[float, float]:
    mix = [MixEntry(f"gpu{i}", deadline_s=_DEADLINE_S) for i in range(_MODELS)]
    rate = server.highest_rate(mix, _START * _CAPACITY)
    return rate, server.load(Poisson(_OVERLOAD * _CAPACITY), mix, bench.seconds).goodput
