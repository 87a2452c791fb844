"""Lies about where tensors lie: each is refused, before anything is read or written there."""

from __future__ import annotations

from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostility import ECHO, MIB, ROW, SIZE
from support.local_clients import LocalClient, target
from support.server import Server
from support.waiting import DEADLINE_S

from batchyard.wire import protocol
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import DIM_MAX, MessageType, Target


def test_done_right_it_is_answered(bad: LocalClient) -> None:
    """What the others of this file leave out is what this does."""
    x = bad.array(128, (2, ROW // 4), "<f4")
    x[:] = [[1], [2]]
    bad.predict(ECHO, [2], inputs=[[128]], replies=[(MIB, 4 * ROW)])
    result = bad.result()
    assert (result.segments, result.in_region) == ([(1, 0, 1)], True)
    ((name, dtype, shape),) = result.outputs
    assert (name, dtype, shape) == ("x", "float32", (2, ROW // 4))
    assert (bad.array(MIB, shape, "<f4") == x).all()
    bad.predict(ECHO, 1, bytes(ROW), message_id=2)
    assert not bad.result().in_region


def check_refused(bad: LocalClient, message_id: int = 1) -> None:
    failure = bad.error()
    assert (failure.segments, failure.number) == ([(message_id, 0, 0)], InvalidArgument.number)
    # It may go on, and do better.
    bad.predict(ECHO, 1, message_id=99, inputs=[[0]])
    assert bad.result().segments == [(99, 0, 1)]


@pytest.mark.parametrize(
    "offset", [SIZE, SIZE - ROW + 1, SIZE - 1, SIZE + 64, DIM_MAX, 1 << 31, (1 << 32) - 64]
)
def test_inputs_that_do_not_lie_in_the_region(bad: LocalClient, offset: int) -> None:
    bad.predict(ECHO, 1, inputs=[[offset]])
    check_refused(bad)
    bad.predict(ECHO, 2, inputs=[[0, offset]])
    check_refused(bad)


@pytest.mark.parametrize(
    "places",
    [
        7,
        {},
        [],
        [[[0]]],
        [[[0]], None, None],
        [[0], None],
        [[[-1]], None],
        [[[-(1 << 62)]], None],
        [[[1 << 63]], None],
        [[[0.0]], None],
        [[["0"]], None],
        [[[True]], None],
        [[[0, 0]], None],
        [[[]], None],
        [[[0], [0]], None],
        [[[None]], None],
        [[[0]], [[0, 64, 64]]],
        [[[0]], [[0]]],
        [[[0]], [[0, -1]]],
        [[[0]], [[-64, 64]]],
        [[[0]], 0],
        [[[0]], []],
        [[[0]], [[0, ROW], [0, ROW]]],
        [[None], [[0, ROW]]],
        [[], None],
        [[[0]], [[SIZE, 64]]],
        [[[0]], [[0, SIZE + 1]]],
        [[[0]], [[SIZE - 64, 65]]],
        [[[0]], [[63, ROW]]],
        [[[0]], [[DIM_MAX, DIM_MAX]]],
    ],
)
def test_places_that_are_none(bad: LocalClient, places: Any) -> None:
    bad.send(protocol.encode(MessageType.PREDICT, [1, ECHO, 1, None, places]))
    check_refused(bad)


@pytest.mark.parametrize("rows", [SIZE // ROW + 1, 1 << 20, (1 << 40) - 1])
def test_more_rows_than_the_region_holds(bad: LocalClient, rows: int) -> None:
    bad.predict(ECHO, [rows], inputs=[[0]])
    check_refused(bad)


@pytest.mark.parametrize("dtype", ["bool", "string"])
def test_what_must_be_checked_cannot_lie_where_it_changes(bad: LocalClient, dtype: str) -> None:
    bad.predict(target("echo", x=(dtype, (None, 2))), 1, inputs=[[0]])
    check_refused(bad)


def test_who_has_no_region_cannot_speak_of_one(server: Server) -> None:
    header = protocol.encode_predict(5, ECHO, 1, None, protocol.RegionPlaces([[0]], None))
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(server.endpoint)
        dealer.send(header)
        assert dealer.poll(int(DEADLINE_S * 1000))
        type_, body = protocol.decode(dealer.recv())
    assert type_ is MessageType.ERROR
    assert protocol.decode_error(body).number == InvalidArgument.number


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.one_of(st.none(), st.integers(1, 5), st.lists(st.integers(1, 5), max_size=3)),
    inputs=st.lists(
        st.one_of(st.none(), st.lists(st.sampled_from([0, 4, 64, SIZE // 2, SIZE - ROW, SIZE]))),
        max_size=2,
    ),
    replies=st.one_of(
        st.none(),
        st.lists(
            st.tuples(
                st.sampled_from([0, 64, 65, SIZE - 64, SIZE]),
                st.sampled_from([0, 1, 64, ROW, 2 * ROW, SIZE]),
            )
        ),
    ),
    frames=st.lists(st.sampled_from([b"", bytes(ROW), bytes(3 * ROW)]), max_size=2),
)
def test_every_message_with_places_is_answered_once(
    bad: LocalClient, rows: Any, inputs: Any, replies: Any, frames: list[bytes]
) -> None:
    places = (inputs, replies)
    bad.send(protocol.encode(MessageType.PREDICT, [7, ECHO, rows, None, places]), frames)
    type_, body, _ = bad.answer()
    if type_ is MessageType.ERROR:
        assert protocol.decode_error(body).number == InvalidArgument.number
        return
    count = protocol.count_of(rows)
    answered = 0
    while True:
        assert type_ is MessageType.RESULT
        segments = protocol.decode_result(body).segments
        assert all(message_id == 7 for message_id, _, _ in segments)
        answered += sum(number for _, _, number in segments)
        if answered >= count:
            assert answered == count
            return
        type_, body, _ = bad.answer()


def test_a_model_that_nobody_serves(bad: LocalClient) -> None:
    to = Target("nobody", None, None, "serving_default", 0, ()).encode()
    bad.predict(to, 1, inputs=[[0]], replies=[(0, 64)])
    assert bad.error().segments == [(1, 0, 0)]
