"""The client's protocol without sockets: what is sent together, and how it ends unanswered."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from support.sessions import (
    NEVER,
    Promise,
    answer,
    error_of,
    flush,
    make_call,
    outputs_of,
    promise_of,
    refuse,
)

from batchyard.clients import deadlines
from batchyard.clients.deadlines import deadline_after
from batchyard.clients.session import CONNECTION_LOST, Session, Via
from batchyard.wire import protocol
from batchyard.wire.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from batchyard.wire.protocol import LARGE_FRAME_NBYTES, MessageType
from batchyard.wire.tensors import decode_strings

# What travels together


def test_calls_for_one_target_travel_as_one_message(session: Session) -> None:
    calls = [make_call([1]), make_call([2]), make_call([3])]
    (sent,) = flush(session, *calls)
    assert sent.predict.target == b"t"
    assert sent.predict.rows == 3
    assert sent.predict.timeouts_us is None
    assert sent.values() == [1, 2, 3]


def test_each_target_has_its_own_message(session: Session) -> None:
    a, b = flush(
        session,
        make_call([1], target=b"a"),
        make_call([2], target=b"b"),
        make_call([3], target=b"a"),
    )
    assert (a.predict.target, a.values()) == (b"a", [1, 3])
    assert (b.predict.target, b.values()) == (b"b", [2])
    assert a.id != b.id


def test_rows_are_a_list_when_a_request_has_several(session: Session) -> None:
    (sent,) = flush(session, make_call([1]), make_call([2, 3]), make_call([4, 5], rows=[1, 1]))
    assert sent.predict.rows == [1, 2, 1, 1]
    assert sent.values() == [1, 2, 3, 4, 5]


def test_strings_are_joined(session: Session) -> None:
    calls = [make_call([b"a\0", "é"], dtype="string"), make_call([b""], dtype="string")]
    (sent,) = flush(session, *calls)
    assert decode_strings(sent.frames[0], 3).tolist() == [b"a\0", "é".encode(), b""]


def test_inputs_are_joined_each_in_its_own_frame(session: Session) -> None:
    calls = [make_call([1]), make_call([2])]
    for i, call in enumerate(calls):
        call.input_dtypes = ["float32", "int16"]
        call.arrays.append(np.array([10 + i], np.int16))
    (sent,) = flush(session, *calls)
    assert sent.values("float32", 0) == [1, 2]
    assert sent.values("int16", 1) == [10, 11]


def test_requests_of_a_signature_that_is_not_batched_travel_alone(session: Session) -> None:
    calls = [make_call([1], rows=None), make_call([2], rows=None)]
    sent = flush(session, *calls)
    assert [message.predict.rows for message in sent] == [None, None]
    answer(session, [(sent[1].id, 0, 1)], y=np.float32(7))
    assert outputs_of(calls[1]) == {"y": 7}
    assert not promise_of(calls[0]).done()


def test_a_message_carries_1024_requests(session: Session) -> None:
    first, second = flush(session, *[make_call([i]) for i in range(1025)])
    assert (first.predict.rows, second.predict.rows) == (1024, 1)
    assert second.values() == [1024]


def test_a_joined_message_stays_below_a_large_frame(session: Session) -> None:
    # Three quarters of the limit each: two would be more than it.
    width = LARGE_FRAME_NBYTES * 3 // 4 // 4
    sent = flush(session, *[make_call([i], width=width) for i in range(3)])
    assert [message.predict.rows for message in sent] == [1, 1, 1]
    quarter = LARGE_FRAME_NBYTES // 4 // 4
    assert len(flush(session, *[make_call([i], width=quarter) for i in range(8)])) == 2


def test_large_tensors_travel_alone_without_a_copy(session: Session) -> None:
    large = make_call([2], width=LARGE_FRAME_NBYTES // 4)
    before, alone, after = flush(session, make_call([1]), large, make_call([3]))
    assert [before.predict.rows, alone.predict.rows, after.predict.rows] == [1, 1, 1]
    assert np.shares_memory(np.frombuffer(alone.frames[0], np.float32), large.arrays[0])


def test_message_beyond_the_servers_limit_is_refused(session: Session) -> None:
    session.receive(protocol.encode(MessageType.WELCOME, [1, 1000]), [])
    large, small = make_call([1], width=250), make_call([2], target=b"u")
    (sent,) = flush(session, large, small)
    assert sent.values() == [2]
    assert isinstance(error_of(large), InvalidArgument)
    assert "the server takes messages of at most 1000" in error_of(large).message


def test_a_string_that_cannot_be_encoded_fails_only_its_own_call(session: Session) -> None:
    good, bad = make_call([b"a"], dtype="string"), make_call([b"b"], dtype="string")
    bad.arrays[0][0] = 3
    flush(session, good, bad)
    assert isinstance(error_of(bad), InvalidArgument)
    assert not promise_of(good).done()


def test_text_that_utf8_cannot_hold_is_an_invalid_argument(session: Session) -> None:
    call = make_call(["\ud800"], dtype="string")
    flush(session, call)
    assert isinstance(error_of(call), InvalidArgument)


# Deadlines


def test_one_calls_time_left_is_a_number_of_microseconds(session: Session) -> None:
    (sent,) = flush(session, make_call([1, 2], rows=[1, 1], deadline=100.5), now=100.0)
    assert sent.predict.timeouts_us == 500_000


def test_several_calls_time_left_is_listed_for_each_request(session: Session) -> None:
    calls = [
        make_call([1], deadline=2.0),
        make_call([2]),
        make_call([3, 4], rows=[1, 1], deadline=3),
    ]
    (sent,) = flush(session, *calls, now=1.0)
    assert sent.predict.timeouts_us == [1_000_000, None, 2_000_000, 2_000_000]


def test_what_is_late_before_sending_is_not_sent(session: Session) -> None:
    call = make_call([1], deadline=1.0)
    assert flush(session, call, now=1.0) == []
    assert isinstance(error_of(call), DeadlineExceeded)


def test_expire_ends_what_is_late_and_nothing_else(session: Session) -> None:
    calls = [make_call([i], deadline=d) for i, d in enumerate((2.0, 1.0, NEVER))]
    (sent,) = flush(session, *calls)
    assert session.next_deadline() == 1.0
    session.expire(0.999)
    assert not any(promise_of(call).done() for call in calls)
    session.expire(1.0)
    assert isinstance(error_of(calls[1]), DeadlineExceeded)
    assert session.next_deadline() == 2.0
    # The answer may still come, for all of them.
    answer(session, [(sent.id, 0, 3)], y=[1, 2, 3])
    assert outputs_of(calls[2]) == {"y": [3]}
    assert session.next_deadline() == NEVER


def test_what_is_answered_is_not_held_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_KEPT_MIN", 4)
    session = Session()
    waits = make_call([0], deadline=1.0)
    flush(session, waits)
    arrays, promises = [], []
    for _ in range(50):
        call = make_call([1], deadline=3600.0)
        arrays.append(weakref.ref(call.arrays[0]))
        promises.append(weakref.ref(promise_of(call)))
        (sent,) = flush(session, call)
        answer(session, [(sent.id, 0, 1)], y=[10])
        assert outputs_of(call) == {"y": [10]}
        del call, sent
    assert not any(array() is not None for array in arrays)
    # Their promises have the outputs.
    assert sum(promise() is not None for promise in promises) < 4
    assert session.next_deadline() == 1.0
    assert not promise_of(waits).done()


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_timeout_must_be_a_time(timeout: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout must be a number of seconds from 0"):
        deadline_after(timeout, 5.0)


def test_deadline_after() -> None:
    assert deadline_after(None, 5.0) == NEVER
    assert deadline_after(0, 5.0) == 5.0
    assert deadline_after(float("inf"), 5.0) == NEVER


def test_a_timeout_of_ages_can_be_sent(session: Session) -> None:
    (sent,) = flush(session, make_call([1], deadline=deadline_after(1e15, 0.0)))
    assert sent.predict.timeouts_us != 0


# Giving up, queries, and the end


def test_cancel_before_sending_sends_nothing(session: Session) -> None:
    call, other = make_call([1]), make_call([2])
    session.cancel(call)
    (sent,) = flush(session, call, other)
    assert sent.values() == [2]


def test_cancel_after_sending_tells_the_broker_which(session: Session) -> None:
    calls = [make_call([1]), make_call([2, 3], rows=[1, 1])]
    (sent,) = flush(session, *calls)
    session.cancel(calls[1])
    ((header, frames, via),) = session.flush([], 0.0)
    type_, body = protocol.decode(header)
    # Which way the requests took is not known here.
    assert (type_, frames, via) == (MessageType.CANCEL, [], Via.BOTH)
    assert protocol.decode_segments(body) == [(sent.id, 1, 2)]
    # The others' answer comes all the same, with or without the rows of what was given up.
    refuse(session, [(sent.id, 1, 2)], Cancelled("gone"))
    answer(session, [(sent.id, 0, 1)], y=[10])
    assert outputs_of(calls[0]) == {"y": [10]}


def test_cancel_after_the_answer_sends_nothing(session: Session) -> None:
    call = make_call([1])
    (sent,) = flush(session, call)
    answer(session, [(sent.id, 0, 1)], y=[10])
    session.cancel(call)
    assert session.flush([], 0.0) == []


def test_fail_ends_calls_and_queries_and_forgets_them(session: Session) -> None:
    query = Promise()
    call = make_call([1], deadline=5.0)
    (sent,) = flush(session, call)
    session.query("stats", {}, query)
    session.fail(CONNECTION_LOST)
    assert isinstance(error_of(call), Unavailable)
    assert isinstance(query.error, Unavailable)
    assert session.next_deadline() == NEVER
    assert session.flush([], 0.0) == []
    answer(session, [(sent.id, 0, 1)], y=[10])


def test_query_is_answered_by_its_id(session: Session) -> None:
    stats, models = Promise(), Promise()
    session.query("stats", {"a": 1}, stats)
    session.query("models", {}, models)
    bodies = [protocol.decode(header)[1] for header, _, _ in session.flush([], 0.0)]
    assert [body[1:] for body in bodies] == [["stats", {"a": 1}], ["models", {}]]
    session.receive(protocol.encode(MessageType.ANSWER, [bodies[1][0], 0, "", [7]]), [])
    session.receive(protocol.encode(MessageType.ANSWER, [bodies[0][0], 5, "who?", None]), [])
    assert models.result == [7]
    assert isinstance(stats.error, NotFound)
    # A second answer has nobody to go to.
    session.receive(protocol.encode(MessageType.ANSWER, [bodies[1][0], 0, "", [8]]), [])


def test_what_the_server_would_not_read_fails_alone(session: Session) -> None:
    # Of a message that it does not read it cannot tell which it was: all that wait would end.
    name = "n" * (protocol.HEADER_NBYTES_MAX + 1)
    long, other, query = make_call([1], target=name.encode()), make_call([2]), Promise()

    (sent,) = flush(session, long, other)
    session.query("metadata", {"model": name}, query)

    assert sent.values() == [2]
    assert isinstance(error_of(long), InvalidArgument)
    assert isinstance(query.error, InvalidArgument)
    assert not flush(session)
