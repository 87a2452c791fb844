"""Load on a real server, by real generators."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.server import Server, model_table

from batchyard.benchmarks.load.fleet import Fleet, GeneratorFailed
from batchyard.benchmarks.load.plan import Constant, LoadPlan, MixEntry, Poisson, Ramp
from batchyard.benchmarks.load.records import SharedRecords
from batchyard.benchmarks.load.result import LoadResult, Progress
from batchyard.benchmarks.load.run import run_load
from batchyard.benchmarks.load.schedule import make_schedule
from batchyard.wire.errors import (
    ConfigurationError,
    InvalidArgument,
    NotFound,
)

SIGNATURE = {"inputs": {"x": ("float32", [-1, 4])}, "outputs": {"y": ("float32", [-1, 4])}}
# 20 ms a batch of 8 at most: 400 rows a second.
BATCHING = {"max_batch_size": 8, "batch_timeout_micros": 2000, "max_enqueued_batches": 50}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    path = "batchyard.benchmarks.callables:simulated_gpu"
    config = "".join(model_table(n, path, signature=SIGNATURE, **BATCHING) for n in ("gpu", "b"))
    with Server(config=config) as running:
        yield running


def assert_all_counted(result: LoadResult) -> None:
    outcomes = result.in_time + result.late + sum(result.errors.values()) + result.unanswered
    assert outcomes == result.planned
    assert result.send_lag.count == result.planned
    assert result.latency.count == result.in_time + result.late
    assert sum(interval.in_time for interval in result.intervals) == result.in_time
    assert sum(model["planned"] for model in result.by_model.values()) == result.planned
    assert LoadResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_open_loop_of_several_processes_and_models(server: Server) -> None:
    mix = (MixEntry("gpu", weight=2, deadline_s=30), MixEntry("b", rows=2, deadline_s=30))
    plan = LoadPlan(server.endpoint, mix, Poisson(80), None, 1.5, warmup_s=0.3, processes=2)
    seen: list[Progress] = []
    result = run_load(plan, seen.append)
    assert_all_counted(result)
    schedule = make_schedule(plan)
    assert result.planned == sum(schedule.times >= 0) > 50
    assert result.sent == result.in_time == result.planned
    assert {name: counts["planned"] for name, counts in result.by_model.items()} == {
        "gpu": sum((schedule.times >= 0) & (schedule.kinds == 0)),
        "b": sum((schedule.times >= 0) & (schedule.kinds == 1)),
    }
    # The server's own counters: never more rows than were sent, in batches that it may form.
    assert sum(rows * n for rows, n in result.batch_rows.items()) > 0
    assert max(result.batch_rows) <= BATCHING["max_batch_size"]
    assert [interval.t for interval in result.intervals] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    # A device's time is in every latency.
    assert result.latency.quantile(0.01) >= 0.0199
    assert seen
    assert all(p.planned <= result.planned for p in seen)
    assert result.machine["cores"]


def test_overload_loses_nothing(server: Server) -> None:
    mix = (MixEntry("gpu", deadline_s=0.3),)
    result = run_load(LoadPlan(server.endpoint, mix, Constant(1600), None, 1.0, warmup_s=0.2))
    assert_all_counted(result)
    assert result.planned == 1600
    # It can answer 400 in the second and a little more until the last deadline.
    assert result.in_time < 800
    assert result.errors
    assert set(result.error_messages) >= set(result.errors)
    assert result.latency_in_time.max <= 0.301
    server.wait_until_idle()


def test_closed_loop(server: Server) -> None:
    plan = LoadPlan(server.endpoint, (MixEntry("gpu"),), None, 5, 0.6, warmup_s=0.1, processes=2)
    result = run_load(plan)
    assert_all_counted(result)
    assert result.in_time == result.planned
    # Never more than five under way, for 20 ms each.
    assert 5 <= result.planned <= 5 * 35


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": "nobody"}, NotFound, "'nobody'"),
        ({"signature": "other"}, NotFound, "has no signature 'other'; it has 'serving_default'"),
        ({"inputs": {"x": [[1, 2]]}}, InvalidArgument, r"needs \(\?, 4\)"),
        ({"inputs": {"z": [[1, 2]]}}, InvalidArgument, "no input 'z'"),
        ({"version": 7}, NotFound, "version"),
    ],
)
def test_requests_that_cannot_be_served(
    server: Server, change: dict[str, object], error: type[Exception], says: str
) -> None:
    entry = MixEntry(**{"model": "gpu", **change})  # type: ignore[arg-type]
    with pytest.raises(error, match=says):
        run_load(LoadPlan(server.endpoint, (entry,), Ramp(1, 2, 1), None, 1.0))


def test_an_endpoint_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="endpoint 'nonsense'"):
        run_load(LoadPlan("nonsense", (MixEntry("m"),), Poisson(9), None, 1.0))


def test_a_generator_that_dies_is_an_error(server: Server) -> None:
    plan = LoadPlan(server.endpoint, (MixEntry("gpu"),), Poisson(50), None, 60.0, processes=2)
    with pytest.raises(GeneratorFailed, match=r"load\.generator ended"):
        kill_one_of_two(plan)


def kill_one_of_two(plan: LoadPlan) -> None:
    with ExitStack() as stack:
        records = [stack.enter_context(SharedRecords(10_000)) for _ in range(2)]
        fleet = stack.enter_context(Fleet(plan, records))
        fleet.prepare()
        fleet.start(time.monotonic())
        assert not fleet.wait(0.01)
        fleet.processes[1].kill()
        fleet.wait(30.0)
