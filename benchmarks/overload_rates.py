"""Goodput beyond capacity: what is answered in time at twice and four times the load."""

from __future__ import annotations

import math
from collections.abc import Iterator

from batchyard.benchmarks.load.plan import MixEntry, Poisson
from batchyard.benchmarks.overload_bench import CAPACITY, WARMUP_S, Bench, Measured, Served, Server
from batchyard.benchmarks.overload_virtual import VirtualBench
from batchyard.benchmarks.results import Figure

DEADLINES_S = (0.06, 0.1, 1.0)
# Loads near the capacity, of which the best is the peak.
_PEAK_LOADS = (0.9, 1.0, 1.25)
# In deadlines: until then the queue grows even at the least of the overloads, and its growth would
# pass for goodput.
_WARMUP = 5.0
_OVERLOADS = {"twice": 2.0, "four": 4.0}
_SEED = 1


def _figures() -> Iterator[Figure]:
    for deadline_s in DEADLINES_S:
        name = _name(deadline_s)
        yield Figure(f"peak_{name}", f"peak goodput, deadline {name}", "requests/s")
        for key, factor in _OVERLOADS.items():
            title = f"goodput at {factor:g}x load, {name}"
            yield Figure(f"{key}_{name}", title, "requests/s", f"peak_{name}", goal=0.97)
        title = f"the same at 2x beside learning nothing, {name}"
        yield Figure(f"twice_{name}", title, "requests/s", f"baseline_{name}", goal=1.5)
        yield Figure(
            f"late_share_{name}",
            f"device time of late answers at 2x, {name}",
            "share",
            goal=0.001,
            lower_is_better=True,
        )
        yield Figure(
            f"send_lag_{name}",
            f"send lag, p99 of the worst load, {name}",
            "deadlines",
            goal=0.01,
            lower_is_better=True,
        )


def measure(bench: Bench) -> dict[str, list[float]]:
    """Every load in turn, for each of the deadlines."""
    found: dict[str, list[float]] = {}
    with bench.serve(Served()) as server:
        for _ in range(bench.repeat):
            for deadline_s in DEADLINES_S:
                for key, value in _round(bench, server, deadline_s).items():
                    found.setdefault(f"{key}_{_name(deadline_s)}", []).append(value)
    baseline = VirtualBench(bench.seconds, bench.repeat, _SEED)
    with baseline.serve(Served(learns=False)) as server:
        for _ in range(bench.repeat):
            for deadline_s in DEADLINES_S:
                measured = _load(baseline, server, deadline_s, 2.0)
                # One answer, so that there is something to compare with when there is none.
                least = 1 / measured.seconds
                goodputs = found.setdefault(f"baseline_{_name(deadline_s)}", [])
                goodputs.append(max(measured.goodput, least))
    return found


def _round(bench: Bench, server: Server, deadline_s: float) -> dict[str, float]:
    near = [_load(bench, server, deadline_s, load) for load in _PEAK_LOADS]
    beyond = {key: _load(bench, server, deadline_s, load) for key, load in _OVERLOADS.items()}
    found = {
        "peak": max(measured.goodput for measured in near),
        **{key: measured.goodput for key, measured in beyond.items()},
        "late_share": beyond["twice"].late_device_share,
    }
    if not bench.is_simulated:
        lag_s = max(measured.send_lag_p99_s for measured in (*near, *beyond.values()))
        found["send_lag"] = lag_s / deadline_s
    return found


def _load(bench: Bench, server: Server, deadline_s: float, load: float) -> Measured:
    mix = [MixEntry("gpu", deadline_s=deadline_s)]
    warmup_s = max(WARMUP_S, _WARMUP * deadline_s)
    return server.load(Poisson(load * CAPACITY), mix, bench.seconds, warmup_s=warmup_s)


def _name(deadline_s: float) -> str:
    return f"{math.floor(deadline_s * 1000)}ms" if deadline_s < 1 else f"{deadline_s:g}s"


FIGURES = [*_figures()]
