"""The tuner held against a grid, in virtual time."""

from __future__ import annotations

import json

from batchyard.benchmarks import tuner_grid
from batchyard.benchmarks.tuning.bench import Placement


def test_grid_has_every_point_once() -> None:
    placements = (Placement(2), Placement(1))
    points = tuner_grid.grid_settings(placements)
    assert len(set(points)) == len(points)
    assert len(points) == 2 * len(tuner_grid.SIZES) * len(tuner_grid.TIMEOUTS_MICROS)


def test_throughput_in_virtual_time() -> None:
    results = tuner_grid.run(None, 60.0, 2, simulate=True)
    found = {
        figure["key"]: figure for figure in json.loads(json.dumps(results.to_json()))["figures"]
    }
    assert found["tuned"]["ratio"] >= tuner_grid.GOAL_SCORE
    assert found["tuner_s"]["ratio"] < 0.2


def test_the_served_model_is_one() -> None:
    subject = tuner_grid.sleeper_subject()
    assert subject.served.batching.enable_batching
    assert subject.placements[0].workers == subject.cores
