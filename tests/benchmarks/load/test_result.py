"""Plans and results survive a file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.benchmarks.load.histogram import Histogram
from batchyard.benchmarks.load.plan import (
    Arrivals,
    Constant,
    LoadPlan,
    MixEntry,
    Poisson,
    Ramp,
    Steps,
    Trace,
)
from batchyard.benchmarks.load.result import Interval, LoadResult
from batchyard.wire.errors import ConfigurationError

ENTRY = MixEntry("m", 2.5, 4, 0.1, 3, None, "other", 1, {"x": [[1, 2]]}, (224, 224))
RESULT = LoadResult(
    plan=LoadPlan(None, (ENTRY, MixEntry("n")), Poisson(100), None, 10.0),
    machine={"cores": "2"},
    started_at="2026-01-01T00:00:00+00:00",
    planned=10,
    sent=9,
    in_time=5,
    late=1,
    errors={"UNAVAILABLE": 2},
    unanswered=2,
    duration_s=10.0,
    latency=Histogram.of(np.array([0.001, 0.02, 3.0])),
    latency_in_time=Histogram(),
    send_lag=Histogram.of(np.full(1000, 1e-4)),
    intervals=[Interval(0.0, 3, 1, 1, {"INTERNAL": 1}, 0.01, None, 4, 2.5)],
    batch_rows={1: 4, 32: 7},
    by_model={"m": {"planned": 10, "errors": {}}},
    stable=False,
    why_unstable="it rained",
    error_messages={"UNAVAILABLE": "too many"},
)


def through_json(values: Any) -> Any:
    return json.loads(json.dumps(values))


@pytest.mark.parametrize(
    "arrivals",
    [
        Poisson(3.5),
        Constant(2),
        Trace((0.5, 1.0)),
        Trace("/some/file"),
        Steps(((1.0, 2.0), (3.0, 0.0))),
        Ramp(1, 2, 3),
        None,
    ],
)
def test_plan_round_trip(arrivals: Arrivals | None) -> None:
    concurrency = 4 if arrivals is None else None
    plan = LoadPlan("tcp://a:1", (ENTRY, MixEntry("n")), arrivals, concurrency, 5.0, seed=3)
    assert LoadPlan.from_json(through_json(plan.to_json())) == plan
    assert plan.deadline_s == 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"mix": ()},
        {"concurrency": 3},
        {"arrivals": None},
        {"duration_s": 0.0},
        {"warmup_s": -1.0},
        {"processes": 0},
        {"interval_s": 0.0},
        {"seed": -1},
        {"grace_s": -1.0},
        {"arrivals": None, "concurrency": 2, "processes": 3},
    ],
)
def test_what_is_no_plan(change: dict[str, Any]) -> None:
    values = {"mix": (ENTRY,), "arrivals": Poisson(1), "concurrency": None, "duration_s": 1.0}
    with pytest.raises(ConfigurationError):
        LoadPlan(target=None, **{**values, **change})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Poisson(0),
        lambda: Constant(-1),
        lambda: Steps(()),
        lambda: Steps(((0.0, 1.0),)),
        lambda: Steps(((1.0, -1.0),)),
        lambda: Ramp(0, 0, 1),
        lambda: Ramp(1, 2, 0),
        lambda: Ramp(-1, 2, 1),
    ],
)
def test_what_are_no_arrivals(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_result_round_trip() -> None:
    values = through_json(RESULT.to_json())
    assert LoadResult.from_json(values) == RESULT
    # For whoever reads the file without this program.
    assert values["goodput"] == 0.5
    assert values["offered_rate"] == 1.0
    assert values["quantiles"]["latency"]["max_s"] == pytest.approx(3.0, rel=1e-3)
    assert RESULT.in_time_share == 0.5


@pytest.mark.parametrize("values", [{}, [], 3, {"format": "batchyard-load-1"}])
def test_what_is_no_result(values: Any) -> None:
    with pytest.raises(ValueError, match="result of `batchyard load"):
        LoadResult.from_json(values)


# A histogram is large, whatever it holds.
@settings(max_examples=25)
@given(st.lists(st.floats(0, 3600), min_size=1, max_size=100))
def test_quantiles_have_three_digits(seconds: list[float]) -> None:
    histogram = Histogram.of(np.array(seconds))
    assert histogram.count == len(seconds)
    assert Histogram.decode(histogram.encode()) == histogram
    assert histogram.quantile(1.0) == pytest.approx(max(seconds), rel=1e-3, abs=1e-6)
    assert histogram.max == pytest.approx(max(seconds), rel=1e-3, abs=1e-6)
    assert histogram.quantile(0.5) == pytest.approx(
        sorted(seconds)[(len(seconds) - 1) // 2], rel=1e-3, abs=1e-6
    )
    assert histogram.mean == pytest.approx(float(np.mean(seconds)), rel=2e-3, abs=2e-6)


def test_histograms_add_up() -> None:
    one, other = Histogram.of(np.full(3, 0.5)), Histogram()
    other.record(2.0, 3)
    other.record(-1.0)
    one.add(other)
    one.add(Histogram())
    assert one.count == 7
    assert one.quantile(0.1) == 0.0
    assert one.quantile(0.5) == pytest.approx(0.5, rel=1e-3)
    assert one.quantile(1) == pytest.approx(2.0, rel=1e-3)
    assert Histogram().quantile(0.5) == Histogram().max == Histogram().mean == 0.0
