"""The queue that the tuner predicts with does what is known of queues."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from batchyard.benchmarks.tuning.bench import Placement, Setting
from batchyard.benchmarks.tuning.virtual_queue import VirtualQueue, predicted_rate

ONE = Setting(Placement(1), max_batch_size=1)


def test_little_load_waits_for_nothing() -> None:
    queue = VirtualQueue(lambda rows: 0.010, ONE)
    outcome = queue.open_loop(1.0, 200.0, 0.0, random.Random(1))
    assert outcome.arrived == len(outcome.latencies)
    assert sorted(outcome.latencies)[len(outcome.latencies) // 2] == pytest.approx(0.010)


def test_one_server_at_half_load_waits_as_pollaczek_and_khinchine_say() -> None:
    # M/D/1: the mean time in the queue is half of a service at load one half.
    queue = VirtualQueue(lambda rows: 0.010, ONE)
    outcome = queue.open_loop(50.0, 2000.0, 10.0, random.Random(3))
    mean_s = sum(outcome.latencies) / len(outcome.latencies)
    assert mean_s == pytest.approx(0.015, rel=0.05)


def test_callers_that_never_stop_get_full_batches() -> None:
    setting = replace(ONE, placement=Placement(2), max_batch_size=8)
    outcome = VirtualQueue(lambda rows: 0.010, setting).closed_loop(32, 5.0, 1.0)
    assert set(outcome.batches) == {8}
    assert outcome.in_time / 5.0 == pytest.approx(1600, rel=0.02)


def test_a_batch_that_does_not_fill_waits_for_its_timeout() -> None:
    setting = replace(ONE, max_batch_size=8, batch_timeout_micros=30_000)
    outcome = VirtualQueue(lambda rows: 0.010, setting).closed_loop(4, 4.0, 0.5)
    assert set(outcome.batches) == {4}
    assert outcome.latencies[0] == pytest.approx(0.040)


def test_what_would_be_late_does_not_run() -> None:
    queue = VirtualQueue(lambda rows: 0.010, ONE, deadline_s=0.025)
    outcome = queue.open_loop(200.0, 20.0, 1.0, random.Random(1))
    assert max(outcome.latencies) <= 0.025 + 1e-9
    assert outcome.in_time == len(outcome.latencies) < outcome.arrived
    assert outcome.in_time / 20.0 == pytest.approx(100, rel=0.03)


def test_the_bound_refuses() -> None:
    setting = replace(ONE, max_enqueued_batches=1)
    outcome = VirtualQueue(lambda rows: 0.010, setting).open_loop(400.0, 10, 1, random.Random(1))
    assert outcome.refused == outcome.arrived - len(outcome.latencies) > 0
    assert max(outcome.latencies) <= 0.020 + 1e-9


def test_requests_of_several_rows_share_batches() -> None:
    setting = replace(ONE, max_batch_size=8)
    outcome = VirtualQueue(lambda rows: 0.010, setting, 3).closed_loop(12, 2.0, 0.1)
    assert set(outcome.batches) == {6}


def test_padding_is_paid_for() -> None:
    setting = replace(ONE, max_batch_size=8, allowed_batch_sizes=(1, 8))
    outcome = VirtualQueue(lambda rows: 0.001 * rows, setting).closed_loop(2, 2.0, 0.1)
    assert outcome.latencies[-1] == pytest.approx(0.008 + 0.001, abs=0.008)


@pytest.mark.parametrize(("deadline_s", "low", "high"), [(0.009, 0, 0), (0.1, 80, 95)])
def test_predicted_rate(deadline_s: float, low: float, high: float) -> None:
    assert low <= predicted_rate(lambda rows: 0.010, ONE, 1, deadline_s, 0.99) <= high
