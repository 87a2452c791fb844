"""The simulation beside a real server, whose workers sleep: the same requests fare the same."""

from __future__ import annotations

import pytest

from batchyard.benchmarks.load.plan import MixEntry, Poisson
from batchyard.benchmarks.overload_bench import CAPACITY, Bench, Measured, Served
from batchyard.benchmarks.overload_served import ServedBench
from batchyard.benchmarks.overload_virtual import VirtualBench

_SECONDS = 2.0
_WARMUP_S = 0.5
_DEADLINE_S = 0.1
_SEED = 7
# A machine that is busy with other things makes the server worse for a moment, never better.
_ATTEMPTS = 4
_WITHIN = 0.05


def measure(bench: Bench, load: float) -> Measured:
    with bench.serve(Served()) as server:
        mix = [MixEntry("gpu", deadline_s=_DEADLINE_S)]
        return server.load(Poisson(load * CAPACITY), mix, _SECONDS, warmup_s=_WARMUP_S)


def differences(real: Measured, simulated: Measured) -> dict[str, float]:
    """How far counts of the real run are off, as shares of the simulated ones."""
    return {
        "goodput": real.goodput / simulated.goodput - 1,
        "in_time_share": real.in_time_share / simulated.in_time_share - 1,
        "mean_batch_rows": real.mean_batch_rows / simulated.mean_batch_rows - 1,
    }


@pytest.mark.parametrize("load", [0.8, 2.0])
def test_simulation_agrees_with_the_server(load: float) -> None:
    found = []
    for attempt in range(_ATTEMPTS):
        seed = _SEED + attempt
        real = measure(ServedBench(_SECONDS, 1, seed), load)
        simulated = measure(VirtualBench(_SECONDS, 1, seed), load)
        # Both plan by the seed.
        assert real.offered == simulated.offered
        found.append(differences(real, simulated))
        if all(abs(difference) < _WITHIN for difference in found[-1].values()):
            return
    raise AssertionError(found)
