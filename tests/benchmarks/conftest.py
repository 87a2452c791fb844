"""Made-up results for tests of how results are shown."""

from __future__ import annotations

import pytest

from batchyard.benchmarks.results import Figure, Results


@pytest.fixture
def results() -> Results:
    """Three rounds: a reference, one figure that meets its goal, some that do not or have none."""
    return Results(
        name="made_up",
        machine={"cpu": "an abacus <of wood>", "cores": "2"},
        settings={"seconds": 2.0, "in_flight": 256},
        figures=[
            Figure("echo", "raw echo", "requests/s"),
            Figure("fast", "fast & good", "requests/s", "echo", 2.0),
            Figure("slow", "slow", "requests/s", "echo", 2.0),
            Figure("cpu", "CPU a request", "µs", goal=2.0, lower_is_better=True),
            Figure("p50", "p50", "µs", "cpu", 1.6, lower_is_better=True),
            Figure("fast", "fast & good", "requests/s", "slow"),
            Figure("gone", "not there", "requests/s", "echo", 1.0),
        ],
        measured={
            "echo": [100.0, 200.0, 400.0],
            "fast": [300.0, 500.0, 900.0],
            "slow": [100.0, 200.0, 400.0],
            "cpu": [1.5, 1.0, 9.0],
            "p50": [3.0, 3.0, 9.0],
        },
        skipped={"gone": "is not installed"},
    )
