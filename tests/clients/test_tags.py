"""Request ids in a client's messages, and in the errors that callers get."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.sessions import answer, error_of, flush, make_call, refuse

from batchyard.clients.calls import Call
from batchyard.clients.session import Session
from batchyard.clients.tracing import Label, make_label
from batchyard.wire import protocol
from batchyard.wire.errors import InvalidArgument, NotFound
from batchyard.wire.protocol import MessageType
from batchyard.wire.tags import Tag, Timing


class Span:
    """In the place of ``clients.spans.CallSpan``."""

    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def __init__(self) -> None:
        self.timings: list[tuple[Timing, int]] = []

    def timed(self, timing: Timing, version: int) -> None:
        self.timings.append((timing, version))


def named(call: Call, request_id: str | None, span: Span | None = None) -> Call:
    call.label = Label(request_id, span)  # type: ignore[arg-type]
    return call


def session_with(features: Sequence[str] | None) -> Session:
    """A session whose server has said which it has."""
    session = Session()
    welcome(session, features)
    return session


def welcome(session: Session, features: Sequence[str] | None) -> None:
    more = [] if features is None else ["name", list(features)]
    session.receive(protocol.encode(MessageType.WELCOME, [1, 1 << 30, *more]), [])


def test_named_calls_share_a_message_with_others() -> None:
    span = Span()
    (sent,) = flush(
        session_with(["tags", "more"]),
        make_call([1.0]),
        named(make_call([2.0]), "a"),
        named(make_call([3.0, 4.0], rows=[1, 1]), "b", span),
        make_call([5.0]),
        named(make_call([6.0]), None, span),
    )
    assert sent.predict.tags == (
        Tag(1, 1, "a", None),
        Tag(2, 2, "b", span.traceparent),
        Tag(5, 1, None, span.traceparent),
    )
    assert sent.values() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_without_names_the_message_is_as_ever() -> None:
    ((header, _, _),) = session_with(["tags"]).flush([make_call([1.0])], 0.0)
    assert len(protocol.decode(header)[1]) == 4


@pytest.mark.parametrize("features", [None, [], ["others"]])
def test_an_older_server_does_not_get_names(features: list[str] | None) -> None:
    session = session_with(features)
    call = named(make_call([1.0]), "a")
    (sent,) = flush(session, call)
    assert sent.predict.tags == ()
    refuse(session, [(sent.id, 0, 1)], NotFound("no such model"))
    # The caller hears of it all the same.
    assert error_of(call).request_id == "a"
    assert str(error_of(call)) == "NOT_FOUND: no such model (request a)"


def test_what_is_sent_again_has_its_names() -> None:
    session = session_with(["tags"])
    flush(session, make_call([0.0]), named(make_call([1.0]), "a"))
    session.lost(1.0)
    welcome(session, ["tags"])
    (sent,) = flush(session, now=1.0)
    assert (sent.predict.resent, sent.predict.tags) == (True, (Tag(1, 1, "a", None),))
    session.lost(2.0)
    welcome(session, None)
    (sent,) = flush(session, now=2.0)
    assert (sent.predict.resent, sent.predict.tags) == (True, ())


def test_timings_reach_the_spans_of_their_segment() -> None:
    session = session_with(["tags"])
    spans = [Span(), Span(), Span()]
    calls = [named(make_call([i]), None, span) for i, span in enumerate(spans)]
    (sent,) = flush(session, *calls)
    timing = Timing(1, 1, 2, 3, 4, 5, 6, 7)
    result = protocol.Result(
        [(sent.id, 0, 1), (sent.id, 1, 1)], 9, [("y", "int8", (2,))], timings=[timing]
    )
    session.receive(protocol.encode_result(result), [b"\1\2"])
    assert [span.timings for span in spans] == [[], [(timing, 9)], []]
    answer(session, [(sent.id, 2, 1)], y=[3])
    assert spans[2].timings == []


def test_errors_without_a_name_say_none() -> None:
    session = session_with(["tags"])
    call = make_call([1.0])
    (sent,) = flush(session, call)
    refuse(session, [(sent.id, 0, 1)], NotFound("no such model"))
    assert error_of(call).request_id is None
    assert str(error_of(call)) == "NOT_FOUND: no such model"


def test_a_bad_id_is_the_callers_error() -> None:
    with pytest.raises(InvalidArgument, match="request_id must be"):
        make_label(None, "m", "s", "predict", "a\nb")
