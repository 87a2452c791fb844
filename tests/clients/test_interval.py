"""What happened between two answers of ``Client.metrics()``."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.metrics_samples import BOUNDS_S, busy_pair, histogram, measure, model, sample, worker

from batchyard.clients.interval import Distribution, Interval, between, changes


def interval(before: dict[str, object], after: dict[str, object]) -> Interval:
    found = between(before, after)
    assert found is not None
    return found


def test_rates_are_of_what_was_added() -> None:
    found = interval(*busy_pair())
    double = found.models[0]
    assert (found.seconds, found.cpu, found.clients) == (2.0, 0.25, 3)
    assert (double.requests, double.good) == (2820 + 60, 2820 - 80)
    assert list(double.errors.items()) == [("UNAVAILABLE", 54), ("DEADLINE_EXCEEDED", 6)]
    assert double.misses == {"refused": 3, "dropped": 2, "expired": 1, "late": 80}
    assert double.batch_rows == {16: 20, 32: 80}
    assert (double.batches, double.mean_rows) == (100, 28.8)
    assert double.padding == pytest.approx(120 / 3000)
    assert double.prediction_error == 0.04
    assert double.execution.mean_s == pytest.approx(0.00685)


def test_percentiles_lie_evenly_inside_of_a_bucket() -> None:
    latency = interval(*busy_pair()).models[0].request
    assert latency.count == 2820
    # 0, 100, 1000, 1500, 200, 15, 4, 1
    assert latency.quantile(0.5) == pytest.approx(0.005 + 0.005 * (1410 - 1100) / 1500)
    assert latency.quantile(0.95) == pytest.approx(0.01 + 0.01 * (2679 - 2600) / 200)
    assert latency.quantile(1.0) == math.inf


def test_nothing_has_no_percentiles() -> None:
    idle = interval(sample(1.0), sample(2.0)).models[0]
    assert (idle.request.quantile(0.5), idle.request.mean_s, idle.mean_rows) == (None, None, None)
    assert (idle.requests, idle.good, idle.errors, idle.padding) == (0, 0, {}, 0.0)
    assert idle.prediction_error is None


def test_workers() -> None:
    first, second = interval(*busy_pair()).workers
    assert (first.busy, first.batches, first.state) == (pytest.approx(0.8), 100, "BUSY")
    assert (second.busy, second.restarts, second.pid) == (0.0, 1, 333)


def test_a_batch_longer_than_the_interval_is_no_more_than_all() -> None:
    long = sample(2.0, workers=[worker(busy_s=9.0)])
    assert interval(sample(1.0), long).workers[0].busy == 1.0


def test_all_models_together() -> None:
    measures = [measure("a", codes={"OK": 3}, request_seconds=histogram([1, 2, 0, 0, 0, 0, 0, 0]))]
    both = [model("a", measures=measures, queue_rows=1), model("b", measures=measures * 2)]
    total = interval(sample(1.0, []), sample(2.0, both)).total
    assert (total.requests, total.queue_rows, total.request.count) == (9, 1, 9)
    assert list(total.request.counts) == [3, 6, 0, 0, 0, 0, 0, 0]


def test_no_models_at_all() -> None:
    total = interval(sample(1.0, []), sample(2.0, [])).total
    assert (total.requests, total.request.quantile(0.99)) == (0, None)


def test_a_broker_that_was_started_again_counts_from_its_start() -> None:
    before, after = busy_pair()
    after["broker"] |= {"epoch": 8, "uptime_s": 0.5, "cpu_s": 0.1}
    found = interval(before, after)
    assert (found.seconds, found.cpu) == (0.5, pytest.approx(0.2))
    assert found.models[0].requests == 2985 + 60
    assert changes(before, after) == ["the broker was started again"]


def test_a_model_that_came_back_counts_from_its_start() -> None:
    before, after = busy_pair()
    # Unloaded and loaded again: its counters are less than before.
    after["models"][0] |= {"batches": 4, "batch_rows": {"1": 4}, "rows": 4}
    after["models"][0]["measures"] = [
        measure(codes={"OK": 4}, request_seconds=histogram([4, 0, 0, 0, 0, 0, 0, 0], 0.001))
    ]
    double = interval(before, after).models[0]
    assert (double.batches, double.rows, double.requests) == (4, 4, 4)
    assert (double.batch_rows, double.request.count) == ({1: 4}, 4)
    assert double.request.sum_s == 0.001


def test_no_time_passed() -> None:
    before, after = busy_pair()
    assert between(after, after) is None
    assert between(after, before) is None


def test_what_a_person_should_see() -> None:
    before, after = busy_pair()
    after["broker"]["draining"] = True
    after["workers"][0]["state"] = "FAILED"
    after["models"][0]["state"] = "UNLOADING"
    after["models"][1] = model("double", 2, state="LOADING")
    assert changes(before, after) == [
        "the server is draining: it takes no more requests",
        "worker 0 failed",
        "worker 1 was started again",
        "double version 1 is UNLOADING",
        "double version 2 is LOADING",
        "<script>alert(1)</script> version 3 is gone",
    ]
    assert changes(after, copy.deepcopy(after)) == []


@given(
    st.lists(st.integers(0, 50), min_size=8, max_size=8).filter(any),
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
def test_quantiles_grow_and_lie_in_a_bucket_that_is_not_empty(
    counts: list[int], shares: list[float]
) -> None:
    distribution = Distribution(BOUNDS_S, counts, 0.0)
    found = [distribution.quantile(q) for q in sorted(shares)]
    assert found == sorted(found, key=lambda seconds: seconds or 0.0)
    for seconds in found:
        assert seconds is not None
        edges = [0.0, *BOUNDS_S, math.inf]
        assert any(
            count and low <= seconds <= high
            for count, low, high in zip(counts, edges, edges[1:], strict=False)
        )
