"""What a session does when its connection is lost: it waits, sends again, and gives up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.sessions import (
    Promise,
    answer,
    drain,
    error_of,
    flush,
    make_call,
    outputs_of,
    promise_of,
    refuse,
    welcome,
)

from batchyard.clients.calls import Call
from batchyard.clients.relay import Query
from batchyard.clients.session import NEVER, Message, Session
from batchyard.wire import protocol
from batchyard.wire.errors import (
    BatchyardError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from batchyard.wire.protocol import MessageType


def bodies(messages: list[Message]) -> list[tuple[MessageType, list[Any]]]:
    return [protocol.decode(header) for header, _, _ in messages]


def come_back(session: Session, now: float = 1.0) -> list[Message]:
    """Loses the connection, and has another: what is sent by it."""
    session.lost(now)
    assert session.flush([], now) == []
    welcome(session)
    assert session.has_output
    messages = session.flush([], now)
    assert not session.has_output
    return messages


def test_ids_of_messages_are_no_other_clients() -> None:
    ids = [flush(Session(), make_call([1]))[0].id for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(1 << 40 <= number < 1 << 62 for number in ids)


def test_unanswered_message_is_sent_again_as_it_was(session: Session) -> None:
    calls = [make_call([1], deadline=9.0), make_call([2, 3], rows=[1, 1]), make_call([4, 5])]
    (first,) = flush(session, *calls)
    (header, frames, _), *others = come_back(session, now=4.0)
    assert not others
    type_, body = protocol.decode(header)
    assert type_ is MessageType.PREDICT
    again = protocol.decode_predict(body)
    assert again.resent
    assert not first.predict.resent
    assert (again.message_id, again.target, again.rows) == (first.id, b"t", first.predict.rows)
    assert again.timeouts_us == [5_000_000, None, None, None]
    assert frames == first.frames
    answer(session, [(first.id, 0, 4)], y=[10, 20, 30, 40, 50])
    assert [outputs_of(calls[0]), outputs_of(calls[2])] == [{"y": [10]}, {"y": [40, 50]}]
    assert session.is_idle


def test_what_wants_no_answer_is_cancelled_right_behind(session: Session) -> None:
    answered, cancelled, late, wanted = (
        make_call([1]),
        make_call([2]),
        make_call([3], deadline=2.0),
        make_call([4]),
    )
    many = make_call([5, 6, 7], rows=[1, 1, 1])
    (sent,) = flush(session, answered, wanted, cancelled, late, many)
    answer(session, [(sent.id, 0, 1), (sent.id, 5, 1)], y=[10, 60])
    session.cancel(cancelled)
    session.expire(2.5)
    assert isinstance(error_of(late), DeadlineExceeded)
    _, cancel = come_back(session, now=3.0)
    gone = [[sent.id, 0, 1], [sent.id, 2, 2], [sent.id, 5, 1]]
    assert bodies([cancel]) == [(MessageType.CANCEL, gone)]
    refuse(session, [tuple(segment) for segment in gone], Cancelled("given up"))
    assert not promise_of(many).done()
    answer(session, [(sent.id, 1, 1), (sent.id, 4, 1), (sent.id, 6, 1)], y=[40, 50, 70])
    assert outputs_of(wanted) == {"y": [40]}
    assert [each["y"].tolist() for each in promise_of(many).result] == [[50], [60], [70]]
    assert session.is_idle


def test_requests_that_are_answered_twice_count_once(session: Session) -> None:
    """The server cannot cancel what a worker had begun, or has done, before the CANCEL came."""
    many = make_call([1, 2, 3], rows=[1, 1, 1])
    (sent,) = flush(session, many)
    answer(session, [(sent.id, 0, 2)], y=[10, 20])
    come_back(session)
    answer(session, [(sent.id, 0, 1)], y=[11])
    answer(session, [(sent.id, 1, 1)], y=[21])
    assert not promise_of(many).done()
    answer(session, [(sent.id, 2, 1)], y=[30])
    assert [each["y"].tolist() for each in promise_of(many).result] == [[10], [20], [30]]
    assert session.is_idle


def test_a_call_that_has_ended_keeps_its_answer(session: Session) -> None:
    many, other = make_call([1, 2], rows=[1, 1]), make_call([3])
    (sent,) = flush(session, many, other)
    answer(session, [(sent.id, 0, 2)], y=[10, 20])
    results = promise_of(many).result
    come_back(session)
    answer(session, [(sent.id, 0, 3)], y=[11, 21, 30])
    assert [each["y"].tolist() for each in results] == [[10], [20]]
    assert outputs_of(other) == {"y": [30]}
    assert session.is_idle


def test_what_nobody_waits_for_is_not_sent_again(session: Session) -> None:
    late, cancelled = make_call([1], deadline=2.0), make_call([2], target=b"u")
    flush(session, late, cancelled)
    session.cancel(cancelled)
    session.expire(2.5)
    assert come_back(session) == []
    assert session.is_idle


def test_loss_before_anything_was_said_again_changes_nothing(session: Session) -> None:
    call = make_call([1])
    (sent,) = flush(session, call)
    session.lost(1.0)
    session.lost(2.0)
    welcome(session)
    session.flush([], 2.0)
    messages = come_back(session, 3.0)
    assert [body[0] for _, body in bodies(messages)] == [sent.id]
    answer(session, [(sent.id, 0, 1)], y=[10])
    assert outputs_of(call) == {"y": [10]}


def test_calls_that_come_meanwhile_wait_too(session: Session) -> None:
    session.lost(1.0)
    late, cancelled, call = make_call([1], deadline=2.0), make_call([2]), make_call([3])
    assert flush(session, late, cancelled, call, now=1.0) == []
    assert not session.is_idle
    session.cancel(cancelled)
    session.expire(2.5)
    assert isinstance(error_of(late), DeadlineExceeded)
    welcome(session)
    other = make_call([4])
    (sent,) = flush(session, other, now=3.0)
    # It is new to every server.
    assert not sent.predict.resent
    assert sent.values() == [3, 4]
    answer(session, [(sent.id, 0, 2)], y=[30, 40])
    assert [outputs_of(call), outputs_of(other)] == [{"y": [30]}, {"y": [40]}]


def test_queries_are_asked_again(session: Session) -> None:
    before, meanwhile = Promise(), Promise()
    session.query("stats", {}, before)
    (asked,) = session.flush([], 0.0)
    session.lost(1.0)
    session.query("models", {"a": 1}, meanwhile)
    welcome(session)
    again, new = session.flush([], 1.0)
    assert again == asked
    (_, (query_id, *what)), *_ = bodies([new])
    assert what == ["models", {"a": 1}]
    session.receive(protocol.encode(MessageType.ANSWER, [query_id, 0, "", "yes"]), [])
    assert meanwhile.result == "yes"
    assert not before.done()


class OtherServer:
    """Takes what it is given, or nothing."""

    def __init__(self) -> None:
        self.is_there = True
        self.calls: list[Call] = []
        self.queries: list[Query] = []

    def has_other(self, session: Session) -> bool:
        return self.is_there

    def take(self, session: Session, call: Call) -> bool:
        if self.is_there:
            self.calls.append(call)
        return self.is_there

    def take_query(self, session: Session, query: Query) -> bool:
        if self.is_there:
            self.queries.append(query)
        return self.is_there

    def changed(self, session: Session) -> None: ...


def test_what_comes_when_the_server_is_gone_already_goes_to_another(session: Session) -> None:
    """Another thread chose this server just before."""
    session.relay = other = OtherServer()
    other.is_there = False
    session.lost(1.0)
    session.query("stats", {}, Promise())
    flush(session, make_call([1]))
    assert not other.queries
    other.is_there = True
    session.query("models", {}, Promise())
    flush(session, make_call([2]))
    assert ([query.what for query in other.queries], len(other.calls)) == (["models"], 1)
    session.hand_over()
    assert ([query.what for query in other.queries], len(other.calls)) == (["models", "stats"], 2)
    assert session.is_idle


def test_all_fails_when_no_server_comes_in_time() -> None:
    session = Session(2.0)
    sent, waiting, query = make_call([1]), make_call([2]), Promise()
    flush(session, sent)
    session.query("stats", {}, query)
    session.lost(1.0)
    session.flush([waiting], 1.0)
    # Another try of the socket's that came to nothing.
    session.lost(2.5)
    assert session.next_deadline() == 3.0
    session.expire(2.9)
    assert not promise_of(sent).done()
    session.expire(3.0)
    for error in (error_of(sent), error_of(waiting), query.error):
        assert isinstance(error, Unavailable)
        assert error.message == (
            "the connection to the server was lost and no server answered within 2 s"
        )
    assert session.next_deadline() == NEVER
    assert session.is_idle
    # Nobody waits for a server that has been gone for long.
    session.flush([later := make_call([3])], 9.0)
    session.query("stats", {}, asked := Promise())
    assert isinstance(error_of(later), Unavailable)
    assert isinstance(asked.error, Unavailable)
    welcome(session)
    (again,) = flush(session, make_call([4]), now=10.0)
    assert again.values() == [4]


def test_without_a_timeout_all_fails_at_once() -> None:
    session = Session(0.0)
    call = make_call([1])
    flush(session, call)
    session.lost(1.0)
    assert error_of(call).message == "the connection to the server was lost"
    flush(session, later := make_call([2]))
    assert isinstance(error_of(later), Unavailable)


def test_server_that_drains_gets_no_more_calls(session: Session) -> None:
    welcome(session, epoch=1)
    accepted = make_call([1])
    (sent,) = flush(session, accepted)
    drain(session)
    flush(session, refused := make_call([2]))
    assert error_of(refused).message == "the server is shutting down"
    # It still says how it fares.
    session.query("stats", {}, Promise())
    assert len(session.flush([], 0.0)) == 1
    # The same server, once more.
    welcome(session, epoch=1)
    flush(session, refused := make_call([2]))
    assert isinstance(error_of(refused), Unavailable)
    answer(session, [(sent.id, 0, 1)], y=[10])
    assert outputs_of(accepted) == {"y": [10]}
    # Another.
    welcome(session, epoch=2)
    assert len(flush(session, make_call([3]))) == 1


def test_what_a_server_that_drains_had_accepted_waits_for_the_next(session: Session) -> None:
    call = make_call([1])
    flush(session, call)
    drain(session)
    session.lost(1.0)
    assert not call.promise.done()
    flush(session, later := make_call([2]))
    assert isinstance(error_of(later), Unavailable)
    welcome(session, epoch=7)
    assert len(flush(session, make_call([3]))) == 2


def test_message_that_is_too_large_for_the_next_server_fails_alone(session: Session) -> None:
    large, small = make_call([1] * 100, target=b"u"), make_call([2])
    flush(session, large, small)
    session.lost(1.0)
    welcome(session, max_message_nbytes=200)
    (message,) = session.flush([], 1.0)
    assert len(message[1][0]) == 4
    assert isinstance(error_of(large), InvalidArgument)
    assert not promise_of(small).done()


@pytest.mark.parametrize("error", [InvalidArgument("shape"), NotFound("no signature")])
def test_refused_call_has_the_route_looked_up_anew(session: Session, error: BatchyardError) -> None:
    call = make_call([1])
    (sent,) = flush(session, call)
    assert call.route.connection == 1
    refuse(session, [(sent.id, 0, 0)], error)
    assert call.route.connection == -1


@pytest.mark.parametrize("version", [1, 2])
def test_answer_of_another_version_has_the_route_looked_up_anew(
    session: Session, version: int
) -> None:
    one, two = make_call([1]), make_call([2])
    for call in (one, two):
        call.route._served_version = version
    (sent,) = flush(session, one, two)
    answer(session, [(sent.id, 0, 2)], y=np.array([1, 2]))
    assert one.route.connection == (1 if version == 1 else -1)
