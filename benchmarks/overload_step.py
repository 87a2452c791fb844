"""Load that steps up: how long until as much is answered in time as ever will be."""

from __future__ import annotations

import numpy as np

from batchyard.benchmarks.load.plan import MixEntry, Steps
from batchyard.benchmarks.overload_bench import BATCH_S, CAPACITY, Bench, Served, Server
from batchyard.benchmarks.results import Figure

_DEADLINES_S = {"60ms": 0.06, "100ms": 0.1, "1s": 1.0}
_LOW, _HIGH = 0.8, 1.4
# Long enough for what waits to be worked off, and for a queue to be as long as it gets.
_LOW_S, _HIGH_S = 6.0, 6.0
# The plateau is what the last part of a step comes to.
_PLATEAU_S = 2.0
_REACHED = 0.95
# The mean of several steps is looked at: in one, arrivals alone differ by more than is looked for.
_STEPS = {True: 40, False: 5}

FIGURES = [
    Figure(
        f"settled_{name}",
        f"0.8x to 1.4x: time to 95 % of the plateau ÷ deadline {name}",
        "deadlines",
        goal=1.0,
        lower_is_better=True,
    )
    for name in _DEADLINES_S
]


def measure(bench: Bench) -> dict[str, list[float]]:
    """Steps up and down, for each of the deadlines."""
    with bench.serve(Served()) as server:
        return {
            f"settled_{name}": [_settled_after(bench, server, deadline_s) / deadline_s]
            for name, deadline_s in _DEADLINES_S.items()
        }


def _settled_after(bench: Bench, server: Server, deadline_s: float) -> float:
    count = _STEPS[bench.is_simulated]
    steps = ((_LOW_S, _LOW * CAPACITY), (_HIGH_S, _HIGH * CAPACITY)) * count
    measured = server.load(
        Steps(steps),
        [MixEntry("gpu", deadline_s=deadline_s)],
        count * (_LOW_S + _HIGH_S),
        warmup_s=0.0,
        interval_s=BATCH_S,
    )
    period = round((_LOW_S + _HIGH_S) / BATCH_S)
    goodput = np.asarray(measured.goodput_by_interval[: period * count])
    high = goodput.reshape(count, period).mean(axis=0)[round(_LOW_S / BATCH_S) :]
    return settled_after(high, BATCH_S, max(deadline_s / 2, 2 * BATCH_S))


def settled_after(goodput: np.ndarray, interval_s: float, window_s: float) -> float:
    """Seconds until the goodput is, and from then on stays, at 95 % of what it ends with.

    ``goodput`` is by interval since the step; its mean over each ``window_s`` is looked at.
    """
    plateau = goodput[-round(_PLATEAU_S / interval_s) :].mean()
    width = round(window_s / interval_s)
    means = np.convolve(goodput, np.ones(width) / width, mode="valid")
    below = np.flatnonzero(means < _REACHED * plateau)
    return 0.0 if not len(below) else float(below[-1] + 1) * interval_s
