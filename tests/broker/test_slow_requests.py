"""Which answers the broker calls slow, and where it says that their time went."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.broker_builders import make_group, make_lane
from support.log_lines import parse_text

from batchyard.broker.events import Batch, Deliver, Refuse
from batchyard.broker.layout import BatchLayout
from batchyard.broker.queue import Part, RequestGroup, SplitRequest
from batchyard.broker.slow_requests import SlowRequests
from batchyard.broker.times import BatchTimes
from batchyard.wire.errors import DeadlineExceeded
from batchyard.wire.tags import Tag

TRACE = "0af7651916cd43dd8448eb211c80319c"
_ids = count(1)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("batchyard")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.INFO, "batchyard"):
        yield caplog
    logger.propagate = before


def said(lines: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    return [parse_text(record.getMessage()) for record in lines.records]


def deliver(*groups: RequestGroup, dispatched_at: float = 10.0) -> Deliver:
    """The answer of a batch of whole groups: gathered in 1 s, with the worker for 6 s (of which it
    copied for 1 and ran for 3)."""
    parts = [Part(group, 0, group.count, 0, group.total_rows) for group in groups]
    rows = sum(part.rows for part in parts)
    layout = BatchLayout(rows, rows + 1, (), 0, 0)
    batch = Batch(next(_ids), groups[0].lane, parts, rows, layout, (0, 0), 3, dispatched_at)
    batch.times = BatchTimes(dispatched_at, dispatched_at + 1)
    batch.times.finished(dispatched_at + 7, 1.0, 3.0)
    return Deliver(batch, [(part, 0) for part in parts])


def test_where_the_time_went(lines: pytest.LogCaptureFixture) -> None:
    group = make_group(make_lane(), 1, 1, arrived_at=5.0, deadline=20.0)
    group.tags = (Tag(0, 1, "order 7", None), Tag(1, 1, "b", f"00-{TRACE}-b7ad6b7169203331-01"))
    SlowRequests(1.0).delivered(deliver(group), 17.5)
    assert said(lines) == [
        {
            "event": "slow_request",
            "model": "m",
            "version": "1",
            "signature": "serving_default",
            "code": "OK",
            "requests": "2",
            "total_ms": "12500.000",
            "request_id": "order 7,b",
            "trace_id": TRACE,
            "deadline_left_ms": "2500.000",
            "queue_ms": "5000.000",
            "gather_ms": "2000.000",
            "wait_ms": "2000.000",
            "execute_ms": "3000.000",
            "reply_ms": "500.000",
            "rows": "2",
            "batch_rows": "2",
            "padded_rows": "3",
            "batch": said(lines)[0]["batch"],
            "worker": "3",
        }
    ]
    assert lines.records[0].levelname == "WARNING"


def test_only_slow_answers_are_told(lines: pytest.LogCaptureFixture) -> None:
    slow, fast = (make_group(make_lane(), 1, arrived_at=at) for at in (5.0, 9.5))
    SlowRequests(8.0).delivered(deliver(slow, fast), 17.0)
    assert [line["queue_ms"] for line in said(lines)] == ["5000.000"]


def test_a_large_request_is_told_once_it_is_answered(lines: pytest.LogCaptureFixture) -> None:
    group = make_group(make_lane(), 8)
    group.split[0] = split = SplitRequest(8)
    slow_requests = SlowRequests(1.0)
    slow_requests.delivered(deliver(group), 17.0)
    assert not lines.records
    split.keep(0, 8, [], [])
    slow_requests.delivered(deliver(group), 17.0)
    assert len(lines.records) == 1


def test_refusals_are_told(lines: pytest.LogCaptureFixture) -> None:
    group = make_group(make_lane(), 1, 1, 1, deadlines=[7.0, 8.0, 9.0], arrived_at=5.0)
    group.tags = (Tag(0, 1, "a", None), Tag(2, 1, "c", None))
    slow_requests = SlowRequests(2.0)
    slow_requests.refused(Refuse(group, [(1, 2)], DeadlineExceeded("late")), 6.0)
    assert not lines.records
    slow_requests.refused(Refuse(group, [(1, 2)], DeadlineExceeded("late")), 9.0)
    (line,) = said(lines)
    assert (line["code"], line["requests"], line["total_ms"], line["request_id"]) == (
        "DEADLINE_EXCEEDED",
        "2",
        "4000.000",
        "c",
    )
    assert line["deadline_left_ms"] == "-1000.000"


def test_a_slow_server_does_not_write_without_end(lines: pytest.LogCaptureFixture) -> None:
    slow_requests = SlowRequests(1.0)
    for i in range(1000):
        slow_requests.delivered(deliver(make_group(make_lane(), 1)), 17.0 + i / 1000)
    assert len(lines.records) == 10
    slow_requests.delivered(deliver(make_group(make_lane(), 1)), 19.0)
    assert said(lines)[-1]["left_out"] == "990"


def test_batches_of_which_no_times_are_known_take_no_lines(
    lines: pytest.LogCaptureFixture,
) -> None:
    """They were under way when this was turned on."""
    slow_requests = SlowRequests(1.0)
    for _ in range(20):
        slow_requests.delivered(deliver(make_group(make_lane(), 1)), 17.0)
    for _ in range(20):
        unknown = deliver(make_group(make_lane(), 1))
        unknown.batch.times = None
        slow_requests.delivered(unknown, 18.0)
    slow_requests.delivered(deliver(make_group(make_lane(), 1)), 18.0)
    assert len(lines.records) == 11
    assert said(lines)[-1]["left_out"] == "10"


SECONDS = st.floats(0, 1e5)


@given(SECONDS, st.tuples(SECONDS, SECONDS, SECONDS), st.tuples(SECONDS, SECONDS))
def test_the_parts_are_the_whole(
    arrived_at: float, took_s: tuple[float, float, float], told_s: tuple[float, float]
) -> None:
    """Whatever a worker, whose clock is not ours, says of its share."""
    queue_s, gather_s, with_worker_s = took_s
    dispatched_at = arrived_at + queue_s
    times = BatchTimes(dispatched_at, dispatched_at + gather_s)
    times.finished(times.handed_over_at + with_worker_s, *told_s)
    spent = times.spent(arrived_at)
    parts = (spent.queue_s, spent.gather_s, spent.wait_s, spent.execute_s)
    assert all(part >= -1e-6 for part in parts)
    assert sum(parts) == pytest.approx(times.finished_at - arrived_at, abs=1e-6)
