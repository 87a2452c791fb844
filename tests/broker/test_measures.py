"""What is counted of requests: once each, by the code of the answer, with how long it took."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.broker_builders import make_model, make_predict, make_report, make_target
from support.virtual_broker import VirtualBroker
from support.virtual_counts import assert_counted

from batchyard.broker.catalog import ServedModel
from batchyard.broker.events import BatchFinished, Deliver
from batchyard.broker.measures import (
    BOUNDS_S,
    Histogram,
    Measures,
    count_answers,
    count_turned_away,
)
from batchyard.broker.replies import refusal
from batchyard.wire.errors import Internal, InvalidArgument, NotFound


def broker(**parameters: Any) -> VirtualBroker:
    b = VirtualBroker(make_model(**{"max_batch_size": 4, **parameters}))
    b.start_worker(make_report())
    return b


def served(b: VirtualBroker) -> ServedModel:
    return b.catalog.models["m", 1]


def measures_of(b: VirtualBroker) -> Measures:
    (measures,) = served(b).measures.values()
    return measures


def only_bucket(histogram: Histogram) -> tuple[int, float]:
    """How many there are in the one bucket that has any, and its upper bound."""
    ((i, count),) = [(i, count) for i, count in enumerate(histogram.counts) if count]
    return count, BOUNDS_S[i]


def test_bounds_increase_and_are_inclusive_as_those_of_prometheus() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    histogram = Histogram()
    histogram.add(0.002)
    assert only_bucket(histogram) == (1, 0.002)
    histogram.add(1e9, 3)
    assert histogram.counts[-1] == 3
    assert histogram.sum_s == pytest.approx(0.002 + 3e9)


def test_an_answer_counts_with_the_time_that_it_took() -> None:
    b = broker()
    b.ask(1, 1)
    b.now += 0.03
    batch = b.tick_one()
    b.now += 0.4
    b.finish(batch)
    measures = measures_of(b)
    assert measures.codes == Counter({"OK": 2})
    assert only_bucket(measures.request) == (2, 0.5)
    assert only_bucket(measures.queue) == (2, 0.05)
    assert only_bucket(measures.execution) == (1, 0.5)
    assert measures.request.sum_s == pytest.approx(2 * 0.43)


def test_padding_is_counted() -> None:
    b = broker(allowed_batch_sizes=(2, 4))
    b.ask(1, 1, 1)
    b.finish(b.tick_one())
    assert served(b).padding_rows == 1


def test_a_request_in_pieces_counts_with_its_last() -> None:
    b = broker()
    b.ask(6)
    first = b.tick_one()
    b.finish(first)
    assert not measures_of(b).codes["OK"]
    b.finish(b.tick_one())
    assert measures_of(b).codes == Counter({"OK": 1})


def test_deadlines_are_missed_by_waiting_and_by_running() -> None:
    b = broker()
    ran = b.ask(*[1] * 4, timeout_s=0.1)
    batch = b.tick_one()
    b.ask(1, 1, timeout_s=0.05)
    b.tick(0.2)
    b.finish(batch)
    assert served(b).misses == {"expired": 2, "late": ran.count}
    assert measures_of(b).codes == Counter({"OK": 4, "DEADLINE_EXCEEDED": 2})


def test_a_client_that_leaves_cancels_what_it_had() -> None:
    b = broker()
    b.ask(1, client=b"a")
    batch = b.tick_one()
    b.ask(1, client=b"a")
    b.leave(b"a")
    b.finish(batch)
    assert measures_of(b).codes == Counter({"CANCELLED": 2})
    assert_counted(b)


def test_outputs_that_cannot_be_given_back_count_as_the_error() -> None:
    b = broker()
    b.ask(1, client=b"a")
    second = b.ask(1, 1, client=b"b")
    batch = b.tick_one()
    # The state machine alone: the virtual broker would count it.
    (deliver, *_) = b.state.handle(BatchFinished(batch.id, 8, False), b.now)
    assert isinstance(deliver, Deliver)
    error = Internal("it does not read")
    failed = refusal(b"b", [(second.message_id, 0, 2)], error)
    count_answers(deliver, [(failed, error)], b.now)
    assert measures_of(b).codes == Counter({"OK": 1, "INTERNAL": 2})
    assert sum(measures_of(b).request.counts) == 1


def test_a_message_that_is_turned_away_counts_for_what_is_served_only() -> None:
    b = broker()
    predict = make_predict(make_target(("x", "float32", (None, 7))), [1, 1])
    count_turned_away(b.catalog, predict, InvalidArgument("no"))
    assert measures_of(b).codes == Counter({"INVALID_ARGUMENT": 2})
    for target in (make_target(model="else"), make_target(signature="else"), b"\xc1"):
        count_turned_away(b.catalog, make_predict(target, [1]), NotFound("no"))
    assert measures_of(b).codes == Counter({"INVALID_ARGUMENT": 2})
