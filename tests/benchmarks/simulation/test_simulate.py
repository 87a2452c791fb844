"""The simulation: what is known of queues comes out, and nobody is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.benchmarks.simulation import (
    Bursts,
    Constant,
    ConstantTime,
    Drift,
    Gamma,
    Gaussian,
    LinearTime,
    MixEntry,
    Outcome,
    Outliers,
    Overheads,
    Poisson,
    SimulatedModel,
    SimulationResult,
    Trace,
    Traffic,
    Workers,
    simulate,
)
from batchyard.wire.errors import NotFound

NO_OVERHEADS = Overheads(0.0, 0.0, 0.0, 0.0, turn_s=1e-9)
MODEL = SimulatedModel("m", ConstantTime(0.02), batching={"max_batch_size": 8})


def run(
    rate: float,
    seconds: float,
    deadline_s: float | None = None,
    model: SimulatedModel = MODEL,
    workers: int = 1,
    seed: int = 0,
    overheads: Overheads | None = None,
) -> SimulationResult:
    traffic = Traffic(Poisson(rate), [MixEntry("m", deadline_s=deadline_s)])
    return simulate([model], [Workers(workers)], [traffic], seconds, seed=seed, overheads=overheads)


def test_one_request_takes_its_way_and_its_time() -> None:
    overheads = Overheads(0.001, 0.002, 0.003, 0.004, turn_s=0.0005)
    traffic = Traffic(Trace((1.0,)), [MixEntry("m")])
    result = simulate([MODEL], [Workers()], [traffic], 2.0, overheads=overheads)
    assert result.offered == result.in_time == 1
    assert result.latency(0.5) == pytest.approx(0.001 + 0.002 + 0.02 + 0.003 + 0.004)
    assert result.batches.start == pytest.approx([1.003])
    assert result.busy_share == pytest.approx(0.01)


def test_deadline_is_the_clients() -> None:
    traffic = Traffic(Constant(1.0), [MixEntry("m", deadline_s=0.03)])
    slow_reply = Overheads(0.0, 0.0, 0.0, reply_s=0.02, turn_s=1e-9)
    result = simulate([MODEL], [Workers()], [traffic], 5.0, overheads=slow_reply)
    assert result.in_time == 0
    result = simulate([MODEL], [Workers()], [traffic], 5.0, overheads=NO_OVERHEADS)
    assert result.in_time == 5


def test_single_rows_wait_as_in_m_d_1() -> None:
    """Pollaczek and Khinchin: the mean wait is load · s / 2(1 - load)."""
    model = SimulatedModel("m", ConstantTime(0.01), batching={"max_batch_size": 1})
    result = run(70.0, 500.0, model=model, overheads=NO_OVERHEADS)
    wait_s = result.latencies.mean() - 0.01
    assert wait_s == pytest.approx(0.7 * 0.01 / (2 * 0.3), rel=0.06)
    assert result.busy_share == pytest.approx(0.7, rel=0.02)
    assert result.mean_batch_rows == 1


def test_full_batches_leave_at_the_devices_pace() -> None:
    result = run(4000.0, 5.0).window(1.0, 5.0)
    assert result.batch_rows.keys() == {8}
    assert result.busy_share == pytest.approx(1.0, abs=0.02)
    ended = np.sort(result.batches.start + result.batches.execution_s)
    assert np.diff(ended).min() >= 0.02 - 1e-9


def test_workers_share_the_work() -> None:
    result = run(1100.0, 20.0, workers=4)
    assert result.in_time == result.offered
    rows = np.bincount(result.batches.worker, result.batches.rows)
    assert len(rows) == 4
    assert rows.sum() == result.offered


def test_times_by_padded_rows_and_speed() -> None:
    model = SimulatedModel(
        "m",
        LinearTime(0.004, 0.002),
        batching={"max_batch_size": 8, "allowed_batch_sizes": [4, 8]},
    )
    traffic = Traffic(Constant(1.0), [MixEntry("m", rows=3)])
    result = simulate([model], [Workers(speed=2.0)], [traffic], 3.0)
    assert result.batches.padded_rows.tolist() == [4, 4, 4]
    assert result.batches.execution_s == pytest.approx([0.006] * 3)
    assert result.requests.device_s == pytest.approx([0.006] * 3)


def test_request_larger_than_a_batch() -> None:
    traffic = Traffic(Constant(1.0), [MixEntry("m", rows=20)])
    result = simulate([MODEL], [Workers(2)], [traffic], 3.0)
    assert result.offered == result.in_time == 3
    assert sorted(result.batch_rows.items()) == [(4, 3), (8, 6)]
    assert result.requests.device_s == pytest.approx([0.06] * 3)


def test_batches_that_run_at_once() -> None:
    traffic = Traffic(Poisson(700.0), [MixEntry("m")])
    result = simulate([MODEL], [Workers(concurrent_batches=2)], [traffic], 10.0)
    assert result.in_time == result.offered


def test_models_on_workers_of_their_own() -> None:
    models = [SimulatedModel(name, ConstantTime(0.01)) for name in ("a", "b")]
    workers = [Workers(1, models=["a"]), Workers(1, models=["b"])]
    mix = [MixEntry("a", weight=3.0), MixEntry("b", deadline_s=0.5)]
    result = simulate(models, workers, [Traffic(Poisson(1000.0), mix)], 5.0)
    by_model = result.by_model()
    assert by_model["a"].offered + by_model["b"].offered == result.offered
    assert by_model["a"].offered / by_model["b"].offered == pytest.approx(3, rel=0.1)
    assert set(by_model["a"].batches.worker) == {0}
    assert set(by_model["b"].batches.worker) == {1}


def test_disturbances() -> None:
    slow = SimulatedModel("m", ConstantTime(0.02), [Drift(5.0, 2.0)])
    result = run(10.0, 10.0, model=slow)
    assert result.window(0.0, 4.9).batches.execution_s == pytest.approx(0.02)
    assert result.window(5.1, 10.0).batches.execution_s == pytest.approx(0.04)
    noisy = SimulatedModel("m", ConstantTime(0.02), [Gaussian(0.1), Outliers(0.1, 5.0)])
    times = run(100.0, 50.0, model=noisy).batches.execution_s
    assert np.mean(times > 0.06) == pytest.approx(0.1, abs=0.03)


def test_same_seed_same_run() -> None:
    noisy = SimulatedModel("m", ConstantTime(0.02), [Gaussian(0.1)])
    runs = [run(500.0, 5.0, 0.1, noisy, 2, seed) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0].requests.answered, runs[1].requests.answered)
    assert runs[0].offered != runs[2].offered


def test_series_and_windows_add_up() -> None:
    result = run(800.0, 10.0, 0.1)
    series = result.series(0.5)
    assert len(series["t"]) == 20
    outcomes = [series[outcome.name.lower()] for outcome in Outcome]
    assert np.array_equal(np.sum(outcomes, axis=0), series["offered"])
    halves = [result.window(0.0, 5.0), result.window(5.0, 10.0)]
    assert sum(half.offered for half in halves) == result.offered
    assert sum(half.in_time for half in halves) == result.in_time
    counts, edges = result.latency_histogram(20)
    assert counts.sum() == len(result.latencies)
    assert len(edges) == 21


def test_unknown_model() -> None:
    with pytest.raises(NotFound, match="'other'"):
        simulate([MODEL], [Workers()], [Traffic(Poisson(1.0), [MixEntry("other")])], 1.0)


_ARRIVALS = st.one_of(
    st.builds(Poisson, st.sampled_from([200.0, 900.0, 3000.0])),
    st.builds(Gamma, st.just(800.0), st.sampled_from([0.5, 3.0])),
    st.builds(Bursts, st.just(100.0), st.just(4000.0), st.just(0.1), st.just(0.05)),
)
_ENTRY = st.builds(
    MixEntry,
    st.sampled_from(["a", "b"]),
    weight=st.floats(0.1, 3.0),
    rows=st.sampled_from([1, 1, 3, 8, 20]),
    deadline_s=st.sampled_from([None, 0.01, 0.05, 0.3]),
    priority=st.integers(0, 1),
)


@settings(max_examples=40, deadline=None)
@given(
    arrivals=_ARRIVALS,
    mix=st.lists(_ENTRY, min_size=1, max_size=4),
    workers=st.lists(
        st.builds(Workers, st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=2
    ),
    jitter=st.sampled_from([[], [Gaussian(0.2)], [Outliers(0.1, 10.0)]]),
    seed=st.integers(0, 1000),
    learns=st.booleans(),
)
def test_each_request_has_one_outcome(
    arrivals: Any,
    mix: list[MixEntry],
    workers: list[Workers],
    jitter: list[Any],
    seed: int,
    learns: bool,
) -> None:
    """The recorder asserts that none is answered twice, the engine that none is forgotten."""
    models = [
        SimulatedModel("a", LinearTime(0.003, 0.001), jitter, {"max_batch_size": 8}),
        SimulatedModel("b", ConstantTime(0.02), jitter, {"batch_timeout_micros": 5000}),
    ]
    result = simulate(models, workers, [Traffic(arrivals, mix)], 0.5, seed=seed, learns=learns)
    assert sum(result.count(outcome) for outcome in Outcome) == result.offered
    assert sum(result.errors.values()) == result.dropped + result.refused
    assert np.all(result.requests.answered >= result.requests.planned)
    used_s = result.requests.device_s[result.requests.outcome == Outcome.REFUSED]
    assert not used_s.any()
    # What a batch took is all on the requests that were in it.
    assert result.requests.device_s.sum() <= result.busy_s + 1e-6
    deadlines = result.requests.planned + result.requests.deadline_s
    in_time = result.requests.outcome == Outcome.IN_TIME
    assert np.all(result.requests.answered[in_time] <= deadlines[in_time] + 1e-9)


@pytest.mark.parametrize("slow_first", [True, False])
def test_a_slow_device_drops_nothing_that_a_quick_one_can_do(slow_first: bool) -> None:
    slow, quick = Workers(1, device="cpu:0", speed=0.1), Workers(3, device="gpu:0")
    workers = [slow, quick] if slow_first else [quick, slow]
    light = Traffic(Poisson(50), [MixEntry("m", deadline_s=0.1)])
    result = simulate([MODEL], workers, [light], 5.0)
    assert result.in_time == result.offered
    heavy = Traffic(Poisson(2400), [MixEntry("m", deadline_s=0.1)])
    assert simulate([MODEL], workers, [heavy], 5.0).goodput >= 0.97 * 3 * 8 / 0.02


def test_a_slow_device_helps_where_there_is_time() -> None:
    workers = [Workers(1, device="gpu:0"), Workers(1, device="cpu:0", speed=0.5)]
    heavy = Traffic(Poisson(1200), [MixEntry("m", deadline_s=0.5)])
    assert simulate([MODEL], workers, [heavy], 5.0).goodput >= 0.95 * 1.5 * 8 / 0.02


@pytest.mark.parametrize(("batch_s", "deadline_s"), [(0.02, 0.03), (3.0, 9.0), (10.0, 15.0)])
def test_no_device_time_is_spent_on_late_answers_however_long_batches_take(
    batch_s: float, deadline_s: float
) -> None:
    # What is measured seldom, because it takes long, is doubted no sooner for it.
    model = SimulatedModel("m", ConstantTime(batch_s), batching={"max_batch_size": 8})
    seconds = 50 * batch_s
    result = run(2 * 8 / batch_s, seconds, deadline_s, model)
    assert result.late == 0
    # The tighter the deadline, the fewer can wait for the next batch.
    least = 0.9 if deadline_s >= 2 * batch_s else 0.45
    assert result.in_time >= least * 8 / batch_s * seconds
