"""Whole load tests of servers that speak TensorFlow Serving's interfaces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from support.tensorflow_serving import StandIn, grpc_stand_in, rest_stand_in

from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.run import run_load

pytest.importorskip("grpc")
Make = Callable[[], AbstractContextManager[StandIn]]


def plan(target: str, *mix: MixEntry) -> LoadPlan:
    return LoadPlan(target, mix, Poisson(100.0), None, 1.0, warmup_s=0.2, seed=1)


@pytest.mark.parametrize(("scheme", "make"), [("http", rest_stand_in), ("grpc", grpc_stand_in)])
def test_every_request_has_its_outcome(scheme: str, make: Make) -> None:
    with make() as stand_in:
        result = run_load(
            plan(
                f"{scheme}://127.0.0.1:{stand_in.port}",
                MixEntry("double", rows=3),
                MixEntry("names"),
                MixEntry("full"),
            )
        )
    full = result.by_model["full"]
    assert result.errors == {"UNAVAILABLE": full["planned"]}
    assert "Too many requests" in result.error_messages["UNAVAILABLE"]
    assert result.in_time == result.planned - full["planned"] > 0
    assert result.latency.count == result.in_time
    # What only Batchyard tells.
    assert result.batch_rows == {}


@pytest.mark.parametrize(("scheme", "make"), [("http", rest_stand_in), ("grpc", grpc_stand_in)])
def test_deadlines_that_the_server_lets_pass(scheme: str, make: Make) -> None:
    with make() as stand_in:
        stand_in.stuck_s = 0.5
        target = f"{scheme}://127.0.0.1:{stand_in.port}"
        result = run_load(plan(target, MixEntry("stuck", deadline_s=0.1)))
    assert result.errors == {"DEADLINE_EXCEEDED": result.planned}
