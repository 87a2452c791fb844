"""Load that steps up: how long until as much is answered in time as ever will be."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from batchyard.benchmarks.callables import BATCH_S
from batchyard.benchmarks.load.plan import MixEntry, Steps
from batchyard.benchmarks.overload_bench import CAPACITY, Bench, Served, Server
from batchyard.benchmarks.results import Figure

_DEADLINES_S = {"60ms": 0.06, "100ms": 0.1, "1s": 1.0}
_LOW, _HIGH = 0.8, 1.4
# How long the load is low and high, in deadlines and beside: what waits is worked off by then, and
# a queue is as long as it gets.
_PHASE, _PHASE_S = 6.0, 0.5
# The plateau is what the last part of a step comes to.
_PLATEAU = 1 / 3
_REACHED = 0.95
# Standard errors of a window over the steps: what may be chance is not held against it.
_CHANCE = 3.0
# In lengths of a load: of all steps together.
_LENGTHS = {True: 20.0, False: 8.0}

FIGURES = [
    Figure(
        f"settled_{name}",
        f"0.8x to 1.4x: time to 95 % of the plateau, {name}",
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
    phase = math.ceil((_PHASE * deadline_s + _PHASE_S) / BATCH_S)
    phase_s = phase * BATCH_S
    count = math.ceil(_LENGTHS[bench.is_simulated] * bench.seconds / (2 * phase_s))
    measured = server.load(
        Steps(((phase_s, _LOW * CAPACITY), (phase_s, _HIGH * CAPACITY)) * count),
        [MixEntry("gpu", deadline_s=deadline_s)],
        count * 2 * phase_s,
        interval_s=BATCH_S,
    )
    goodput = np.asarray(measured.goodput_by_interval[: count * 2 * phase])
    after = goodput.reshape(count, 2 * phase)[:, phase:]
    return settled_after(after, BATCH_S, max(deadline_s / 2, 2 * BATCH_S))


def settled_after(goodput: npt.NDArray[np.float64], interval_s: float, window_s: float) -> float:
    """Seconds until the goodput is, and from then on stays, at 95 % of what it ends with.

    ``goodput`` has a row for each step and a column for each interval since; what is
    looked at are its means over ``window_s``, and of these the median over the steps.
    """
    steps, intervals = goodput.shape
    plateau = goodput[:, -max(round(intervals * _PLATEAU), 1) :].mean()
    width = max(round(window_s / interval_s), 1)
    windows = np.lib.stride_tricks.sliding_window_view(goodput, width, axis=1).mean(axis=2)
    error = windows.std(axis=0, ddof=1) / math.sqrt(steps) if steps > 1 else 0.0
    # The median: a machine that stops for a moment does so in one of the steps.
    below = np.flatnonzero(np.median(windows, axis=0) + _CHANCE * error < _REACHED * plateau)
    return 0.0 if not len(below) else float(below[-1] + 1) * interval_s
