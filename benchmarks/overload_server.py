"""MLPerf's two scenarios: the highest rate with 99 % in time, beside all rows at once."""

from __future__ import annotations

from collections.abc import Iterator

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.overload_bench import CONSTANT, LINEAR, Bench, Gpu, Served, Server
from batchyard.benchmarks.overload_served import serve_mobilenet
from batchyard.benchmarks.results import Figure

# The deadline, in times of the largest batch.
_DEADLINE = 3
# Batches of 8 are few for chance: when everything beyond the two next batches is refused, which
# is the best that can be done, Poisson arrivals lose 1 % at 0.89 of the offline rate.
_GOALS = {8: None, 32: 0.93}
_GPUS: dict[str, Gpu] = {"constant": CONSTANT, "linear": LINEAR}
_MOBILENET_BATCH = 32
# Of the offline rate: where a search begins.
_START = 0.7


def _figures() -> Iterator[Figure]:
    for kind in _GPUS:
        for batch, goal in _GOALS.items():
            title = f"highest rate, 99 % in 3 batches of {batch} ({kind} time)"
            yield _figure(f"{kind}_{batch}", title, goal)
    title = f"the same, MobileNetV2 on the CPU, batches of {_MOBILENET_BATCH}"
    yield _figure("mobilenet", title, 0.85)


def _figure(name: str, title: str, goal: float | None) -> Figure:
    return Figure(f"server_{name}", title, "requests/s", f"offline_{name}", goal)


def measure(bench: Bench) -> dict[str, list[float]]:
    """Each kind of GPU and each batch size; a real network where there is a real server."""
    found: dict[str, list[float]] = {}
    for kind, gpu in _GPUS.items():
        for batch in _GOALS:
            with bench.serve(Served({"gpu": gpu}, max_batch_size=batch)) as server:
                found |= _measure(server, "gpu", f"{kind}_{batch}", batch, bench.repeat)
    if not bench.is_simulated:
        with serve_mobilenet(_MOBILENET_BATCH, bench.seed) as (model, server):
            found |= _measure(server, model, "mobilenet", _MOBILENET_BATCH, bench.repeat)
    return found


def _measure(
    server: Server, model: str, name: str, batch: int, repeat: int
) -> dict[str, list[float]]:
    rates, offline = [], []
    for _ in range(repeat):
        offline.append(server.offline_rate([MixEntry(model)]))
        mix = [MixEntry(model, deadline_s=_DEADLINE * batch / offline[-1])]
        rates.append(server.highest_rate(mix, _START * offline[-1]))
    return {f"server_{name}": rates, f"offline_{name}": offline}


FIGURES = [*_figures()]
