"""From what became of each request to counts: nothing that was planned vanishes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchyard.benchmarks.load.plan import LoadPlan, MixEntry, Poisson
from batchyard.benchmarks.load.recorder import Recorder, interval_end, interval_starts
from batchyard.benchmarks.load.records import (
    ANSWERED,
    FAILED,
    PENDING,
    SKIPPED,
    Outcomes,
    Records,
    SharedRecords,
)
from batchyard.benchmarks.load.server_watch import Queue
from batchyard.benchmarks.load.stability import instabilities, lags
from batchyard.wire.errors import DeadlineExceeded, Unavailable

MIX = (MixEntry("a", deadline_s=0.1), MixEntry("b"), MixEntry("a", rows=2, deadline_s=0.5))
Row = tuple[float, float, float, int, int]


def outcomes(rows: list[Row]) -> Outcomes:
    """Of planned, sent, done, kind, outcome."""
    columns = list(zip(*rows, strict=True)) or [()] * 5
    floats = [np.array(column, np.float64) for column in columns[:3]]
    return Outcomes(*floats, np.array(columns[3], np.uint16), np.array(columns[4], np.uint8))


def judged() -> Recorder:
    nan = math.nan
    return Recorder(
        outcomes(
            [
                (1.0, 1.001, 1.05, 0, ANSWERED),
                (0.0, 0.001, 0.2, 0, ANSWERED),  # late
                (0.5, 0.501, 0.9, 2, ANSWERED),
                (0.6, 0.6, 9.0, 1, ANSWERED),  # has no deadline
                (1.2, 1.2, 1.21, 0, FAILED + Unavailable.number),
                (1.3, 1.3, 1.4, 0, FAILED + DeadlineExceeded.number),
                (1.4, 1.4, 1.5, 1, FAILED + Unavailable.number),
                (1.5, 1.5, nan, 0, PENDING),
                (1.6, 1.9, nan, 0, SKIPPED),
                (1.7, nan, nan, 0, PENDING),
                (1.8, 1.8, 1.9, 0, FAILED + 99),
            ]
        ),
        MIX,
    )


def test_each_request_has_one_outcome() -> None:
    counts = judged().counts()
    assert counts.planned == 11
    assert counts.sent == 9
    assert counts.in_time == 3
    assert counts.late == 1
    assert counts.errors == {"UNAVAILABLE": 2, "DEADLINE_EXCEEDED": 1, "UNKNOWN": 1}
    assert counts.unanswered == 3


def test_models_add_up() -> None:
    by_model = judged().by_model()
    assert list(by_model) == ["a", "b"]
    assert by_model["a"]["planned"] == 9
    assert by_model["a"]["late"] == 1
    assert by_model["b"]["errors"] == {"UNAVAILABLE": 1}
    assert by_model["b"]["p50_s"] == pytest.approx(8.4)
    assert sum(counts["unanswered"] for counts in by_model.values()) == 3


def test_latency_and_lag_count_from_the_planned_time() -> None:
    recorder = judged()
    assert recorder.latency_histogram().count == 4
    assert recorder.latency_histogram().max == pytest.approx(8.4, rel=1e-3)
    assert recorder.latency_in_time_histogram().count == 3
    lag = recorder.send_lag(given_up_at=4.0)
    assert len(lag) == 11
    # One that was never sent was late until that was clear.
    assert lag.max() == pytest.approx(2.3)
    assert sorted(lag)[-2] == pytest.approx(0.3)


def test_intervals_are_by_planned_time() -> None:
    interval = judged().interval(0.5, 1.25, Queue(7, 3.5))
    assert (interval.t, interval.sent, interval.in_time, interval.late) == (0.5, 4, 3, 0)
    assert interval.errors == {"UNAVAILABLE": 1}
    assert interval.p50_s == pytest.approx(0.4)
    assert (interval.queue_rows, interval.batch_rows) == (7, 3.5)
    assert judged().interval(2.0, 3.0, None).p50_s is None
    assert interval_starts(1.0, 0.25) == [0.0, 0.25, 0.5, 0.75]
    assert interval_starts(1.1, 0.25) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert len(interval_starts(0.3, 0.1)) == 3


rows_of_any_kind = st.lists(
    st.tuples(
        st.floats(0, 2),
        st.floats(0, 3),
        st.floats(0, 4),
        st.sampled_from(range(len(MIX))),
        st.sampled_from([PENDING, ANSWERED, SKIPPED, FAILED + 4, FAILED + 14, FAILED + 200]),
    ),
    max_size=60,
)


@given(rows_of_any_kind, st.floats(0.05, 3))
# Where 29 · 0.05 + 0.05 is more than 30 · 0.05.
@example([(1.5, 0.0, 0.0, 0, ANSWERED)], 0.05)
def test_nothing_vanishes(rows: list[Row], interval_s: float) -> None:
    recorder = Recorder(outcomes(rows), MIX)
    counts = recorder.counts()
    assert counts.planned == len(rows)
    assert min(counts.in_time, counts.late, counts.unanswered) >= 0
    assert counts.unanswered == sum(row[4] in (PENDING, SKIPPED) for row in rows)
    starts = interval_starts(2.0 + 1e-9, interval_s)
    parts = [recorder.interval(start, interval_end(start, interval_s), None) for start in starts]
    assert sum(part.in_time for part in parts) == counts.in_time
    assert sum(part.late for part in parts) == counts.late
    assert sum(sum(part.errors.values()) for part in parts) == sum(counts.errors.values())
    assert recorder.latency_histogram().count == counts.in_time + counts.late
    by_model = recorder.by_model().values()
    for name in ("planned", "sent", "in_time", "late", "unanswered"):
        assert sum(model[name] for model in by_model) == getattr(counts, name)


def test_records_reach_the_parent() -> None:
    with SharedRecords(5) as shared:
        records = Records(shared.path, 5)
        # A warm-up, one that was answered, one that waits; two more that a closed loop might send.
        for i, (planned, sent, done, outcome) in enumerate(
            [(-1.0, 99.0, 99.5, ANSWERED), (0.5, 100.5, 101.0, ANSWERED), (1.5, 101.5, 0, PENDING)]
        ):
            records.planned[i], records.sent[i], records.done[i] = planned, sent, done
            records.kind[i], records.outcome[i] = i, outcome
        seen = shared.outcomes(start_at=100.0)
        assert seen.planned.tolist() == [0.5, 1.5]
        assert seen.sent.tolist() == [0.5, 1.5]
        assert seen.done[0] == 1.0
        assert np.isnan(seen.done[1])
        assert seen.kind.tolist() == [1, 2]
        assert seen.outcome.tolist() == [ANSWERED, PENDING]
        # Of an open loop all count, sent or not.
        assert len(shared.outcomes(100.0, 5).planned) == 4
        assert np.isnan(shared.outcomes(100.0, 5).sent[-1])
        assert len(Outcomes.joined([seen, seen]).up_to(1.0).planned) == 2


def run_of(latency: Any, lag: float = 0.0, deadline_s: float | None = None) -> list[str]:
    """What is found of a run of 10 s at 400/s with a latency by planned time."""
    planned = np.arange(0, 10, 1 / 400)
    took = np.array([latency(t) for t in planned])
    mix = (MixEntry("m", deadline_s=deadline_s),)
    plan = LoadPlan(None, mix, Poisson(400), None, 10.0)
    done = planned + took
    code = np.where(np.isnan(done), PENDING, ANSWERED).astype(np.uint8)
    kind = np.zeros(len(planned), np.uint16)
    recorder = Recorder(Outcomes(planned, planned + lag, done, kind, code), mix)
    return [*instabilities(recorder, plan), *lags(recorder, plan)]


def test_a_server_in_balance_is_stable() -> None:
    assert run_of(lambda t: 0.03) == []
    # It oscillates, by more than the bound, but does not grow.
    assert run_of(lambda t: 0.03 + 0.02 * math.sin(t * 20)) == []
    # What does not matter: a server that is fast stays fast.
    assert run_of(lambda t: 0.001 + t * 1e-4) == []


def test_a_growing_backlog_is_not() -> None:
    (found,) = run_of(lambda t: 0.03 + 0.05 * t)
    assert found.startswith("the backlog grew: the median latency was 92.")
    (found,) = run_of(lambda t: 0.06 + 0.006 * t, deadline_s=0.1)
    assert "100.00% were in time in the first quarter of the run, 0.00% in the last" in found


def test_no_answer_is_not() -> None:
    (found,) = run_of(lambda t: math.nan if t > 9.99 else 0.03)
    assert found == "3 requests were not answered within 10 s after the end"


def test_a_late_generator_is_not() -> None:
    assert run_of(lambda t: 0.03, lag=0.0009, deadline_s=0.1) == []
    (found,) = run_of(lambda t: 0.03, lag=0.0011, deadline_s=0.1)
    assert found == (
        "the generator was late itself: send lag p99 1.1 ms is more than 1 % of the deadline, 1 ms"
    )
    (found,) = run_of(lambda t: 0.03, lag=0.004)
    assert "10 % of the latency's p99" in found
