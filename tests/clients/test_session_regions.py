"""The client's protocol without sockets: calls whose tensors lie in the region."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.regions import made_region
from support.sessions import (
    Sent,
    answer,
    error_of,
    flush,
    make_call,
    outputs_of,
    promise_of,
    refuse,
)

from batchyard.clients.calls import Call
from batchyard.clients.placement import Placement
from batchyard.clients.region import ClientRegion
from batchyard.clients.session import CONNECTION_LOST, Session, Via
from batchyard.wire import protocol
from batchyard.wire.errors import Cancelled, DeadlineExceeded, Internal, Unavailable
from batchyard.wire.protocol import OutputHeader, Result, Segment, reply_offsets

NBYTES = 1 << 20
REPLY = 4096
Array = npt.NDArray[Any]


@pytest.fixture
def region(session: Session) -> Iterator[ClientRegion]:
    with made_region(NBYTES) as region:
        session.region = region
        yield region


def take(region: ClientRegion, nbytes: int) -> Array:
    array = region.empty((nbytes,), np.dtype(np.uint8))
    assert array is not None
    return array


def placed_call(
    region: ClientRegion,
    values: list[float],
    *,
    reply: int = 0,
    in_region: bool = True,
    **options: Any,
) -> Call:
    """A call whose input lies in the region, or its outputs are to, or both."""
    call = make_call(values, **options)
    offset: int | None = None
    if in_region:
        copy = region.empty(call.arrays[0].shape, call.arrays[0].dtype)
        assert copy is not None
        copy[:] = call.arrays[0]
        call.arrays[0] = copy
        offset = region.offset_of(copy)
    space = take(region, reply) if reply else None
    reply_offset = 0 if space is None else region.offset_of(space) or 0
    call.placement = Placement(region, [offset], in_region, space, reply_offset)
    return call


def answer_in_region(session: Session, segments: list[Segment], *outputs: OutputHeader) -> None:
    """A worker has written outputs, which the headers describe, into the region."""
    session.receive(protocol.encode_result(Result(segments, 1, list(outputs), True)), [])


def write(region: ClientRegion, sent: Sent, request: int, *outputs: Array) -> None:
    """What a worker writes for a request: it knows only what the message says."""
    assert sent.predict.region is not None
    assert sent.predict.region.replies is not None
    offset, nbytes = sent.predict.region.replies[request]
    places = reply_offsets([output.nbytes for output in outputs])
    assert places[-1] <= nbytes
    memory = np.frombuffer(region._mapping.memory, np.uint8)
    for start, output in zip(places, outputs, strict=False):
        np.ndarray(output.shape, output.dtype, memory, offset + start)[...] = output


# What is sent


def test_input_in_the_region_is_named_and_not_sent(session: Session, region: ClientRegion) -> None:
    take_first = take(region, 100)
    (sent,) = flush(session, placed_call(region, [1, 2]))
    assert sent.predict.region is not None
    assert (sent.predict.region.inputs, sent.predict.region.replies) == ([[128]], None)
    assert (sent.frames, sent.via, sent.predict.rows) == ([], Via.LOCAL, [2])
    assert take_first is not None


def test_calls_placed_alike_share_a_message(session: Session, region: ClientRegion) -> None:
    calls = [placed_call(region, [i, i], reply=REPLY) for i in range(3)]
    (sent,) = flush(session, *calls)
    assert sent.predict.region is not None
    placements = [call.placement for call in calls]
    offsets = [p.offsets[0] for p in placements if p is not None]
    replies = [(p.reply_offset, REPLY) for p in placements if p is not None]
    assert sent.predict.region.inputs == [offsets]
    assert sent.predict.region.replies == replies
    assert sent.predict.rows == [2, 2, 2]
    assert len(set(offsets)) == len(set(replies)) == 3


def test_calls_placed_otherwise_have_messages_of_their_own(
    session: Session, region: ClientRegion
) -> None:
    calls = [
        make_call([1]),
        placed_call(region, [2]),
        placed_call(region, [3], reply=REPLY),
        placed_call(region, [4], reply=REPLY, in_region=False),
        make_call([5]),
        placed_call(region, [6]),
    ]
    messages = flush(session, *calls)
    seen = {}
    for sent in messages:
        places = sent.predict.region
        inputs = None if places is None else [offsets is not None for offsets in places.inputs]
        seen[str(inputs), places is not None and places.replies is not None] = sent
    assert len(seen) == len(messages) == 4
    assert seen["None", False].values() == [1, 5]
    assert seen["[True]", False].predict.rows == 2
    assert seen["[True]", True].frames == []
    reply_only = seen["[False]", True]
    assert reply_only.values() == [4]
    assert reply_only.via is Via.LOCAL


def test_each_input_is_named_or_sent(session: Session, region: ClientRegion) -> None:
    calls = [placed_call(region, [i]) for i in range(2)]
    for i, call in enumerate(calls):
        call.input_dtypes = ["float32", "int16"]
        call.arrays.append(np.array([10 + i], np.int16))
        assert call.placement is not None
        call.placement.offsets.append(None)
    (sent,) = flush(session, *calls)
    assert sent.predict.region is not None
    assert sent.predict.region.inputs == [[0, 64], None]
    assert sent.values("int16") == [10, 11]


def test_placement_of_a_lost_connection_falls_back_to_frames(session: Session) -> None:
    with made_region(NBYTES) as lost, made_region(NBYTES) as new:
        session.region = new
        before = placed_call(lost, [1], reply=REPLY)
        (sent,) = flush(session, before, make_call([2]), make_call([3]))
        assert (sent.predict.region, sent.via) == (None, Via.ANY)
        assert sent.values() == [1, 2, 3]
        answer(session, [(sent.id, 0, 3)], y=[10, 20, 30])
        assert outputs_of(before) == {"y": [10]}
        # Nothing of it holds the reply space of old.
        take(lost, NBYTES)


def test_without_any_region_left_frames_are_sent(session: Session) -> None:
    with made_region(NBYTES) as lost:
        (sent,) = flush(session, placed_call(lost, [1, 2]))
    assert (sent.predict.region, sent.values()) == (None, [1, 2])


def test_cancel_takes_both_ways(session: Session, region: ClientRegion) -> None:
    call = placed_call(region, [1], reply=REPLY)
    (sent,) = flush(session, call)
    session.cancel(call)
    ((header, _, via),) = session.flush([], 0.0)
    assert protocol.decode_segments(protocol.decode(header)[1]) == [(sent.id, 0, 1)]
    assert via is Via.BOTH


# Answers


def test_results_in_the_region_are_cut_by_rows(session: Session, region: ClientRegion) -> None:
    calls = [placed_call(region, [0] * rows, reply=REPLY) for rows in (1, 3, 2)]
    (sent,) = flush(session, *calls)
    for request, rows in enumerate((1, 3, 2)):
        y = np.full((rows, 5), request, np.float32)
        write(region, sent, request, y, np.full(rows, 10 + request, np.int64))
    headers = [("y", "float32", (6, 5)), ("z", "int64", (6,))]
    answer_in_region(session, [(sent.id, 0, 3)], *headers)
    for request, (call, rows) in enumerate(zip(calls, (1, 3, 2), strict=True)):
        assert outputs_of(call) == {"y": [[request] * 5] * rows, "z": [10 + request] * rows}
        for output in promise_of(call).result.values():
            assert region.offset_of(output) is not None
            assert output.flags.writeable


def test_results_of_several_messages_come_in_any_order(
    session: Session, region: ClientRegion
) -> None:
    first, second = (placed_call(region, [0, 0], reply=REPLY) for _ in range(2))
    (a,), (b,) = flush(session, first), flush(session, second)
    write(region, a, 0, np.array([1, 2], np.float32))
    write(region, b, 0, np.array([3, 4], np.float32))
    answer_in_region(session, [(b.id, 0, 1), (a.id, 0, 1)], ("y", "float32", (4,)))
    assert outputs_of(first) == {"y": [1, 2]}
    assert outputs_of(second) == {"y": [3, 4]}


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (0, 4)])
def test_whole_outputs_of_a_request_have_any_shape(
    session: Session, region: ClientRegion, shape: tuple[int, ...]
) -> None:
    """One whole request made the batch (``broker.events.Batch.alone``)."""
    call = placed_call(region, [0, 0], reply=REPLY)
    (sent,) = flush(session, call)
    y, z = np.full(shape, 3, np.float64), np.full((2,), 4, np.int8)
    write(region, sent, 0, y, z)
    answer_in_region(session, [(sent.id, 0, 1)], ("y", "float64", shape), ("z", "int8", (2,)))
    result = promise_of(call).result
    assert np.array_equal(result["y"], y)
    assert np.array_equal(result["z"], z)


def test_some_of_a_message_may_be_answered_by_frames(
    session: Session, region: ClientRegion
) -> None:
    """Their reply space was too small, or their rows were split."""
    calls = [placed_call(region, [0], reply=REPLY) for _ in range(3)]
    (sent,) = flush(session, *calls)
    answer(session, [(sent.id, 1, 1)], y=[20])
    for request in (0, 2):
        write(region, sent, request, np.array([10 * request], np.float32))
    segments = [(sent.id, 0, 1), (sent.id, 2, 1)]
    answer_in_region(session, segments, ("y", "float32", (2,)))
    assert [outputs_of(call) for call in calls] == [{"y": [0]}, {"y": [20]}, {"y": [20]}]


def test_memory_is_held_as_long_as_it_must_be(session: Session, region: ClientRegion) -> None:
    call = placed_call(region, [0] * 16, reply=NBYTES - 64)
    (sent,) = flush(session, call)
    write(region, sent, 0, np.zeros(16, np.float32))
    answer_in_region(session, [(sent.id, 0, 1)], ("y", "float32", (16,)))
    # The input is free, the outputs' place is not.
    take(region, 64)
    assert region.empty((65,), np.dtype(np.uint8)) is None
    kept = promise_of(call).result["y"][3:4]
    promise_of(call).result = None
    assert region.empty((65,), np.dtype(np.uint8)) is None
    del kept
    take(region, NBYTES)


@pytest.mark.parametrize("ending", ["late", "cancelled"])
def test_memory_of_what_was_given_up_is_held_until_it_is_answered(
    session: Session, region: ClientRegion, ending: str
) -> None:
    """A worker may still read and write there."""
    deadline = 1.0 if ending == "late" else float("inf")
    call = placed_call(region, [0] * 16, reply=NBYTES - 64, deadline=deadline)
    (sent,) = flush(session, call)
    if ending == "late":
        session.expire(1.0)
        assert isinstance(error_of(call), DeadlineExceeded)
    else:
        session.cancel(call)
    del call
    assert region.empty((1,), np.dtype(np.uint8)) is None
    assert not session.is_idle
    refuse(session, [(sent.id, 0, 1)], Cancelled("gone"))
    take(region, NBYTES)


def test_memory_comes_back_with_an_error(session: Session, region: ClientRegion) -> None:
    call = placed_call(region, [0], reply=REPLY)
    (sent,) = flush(session, call)
    refuse(session, [(sent.id, 0, 0)], Internal("no"))
    assert error_of(call).message == "no"
    take(region, NBYTES)


def test_memory_comes_back_with_the_connection(session: Session, region: ClientRegion) -> None:
    call = placed_call(region, [0], reply=REPLY)
    flush(session, call)
    session.fail(CONNECTION_LOST)
    assert isinstance(error_of(call), Unavailable)
    del call
    take(region, NBYTES)


def test_results_in_a_region_that_nobody_named_cannot_be_read(
    session: Session, region: ClientRegion
) -> None:
    call = make_call([1])
    (sent,) = flush(session, call)
    answer_in_region(session, [(sent.id, 0, 1)], ("y", "float32", (1,)))
    assert "cannot be read" in error_of(call).message


def test_results_beyond_their_place_cannot_be_read(session: Session, region: ClientRegion) -> None:
    call = placed_call(region, [1], reply=REPLY)
    (sent,) = flush(session, call)
    answer_in_region(session, [(sent.id, 0, 1)], ("y", "float32", (REPLY,)))
    assert "cannot be read" in error_of(call).message


def test_large_results_by_frames_are_learned_from(session: Session) -> None:
    call = make_call([1, 2])
    assert not call.route.has_large_reply(2)
    (sent,) = flush(session, call)
    answer(session, [(sent.id, 0, 1)], y=np.zeros((2, 100_000), np.float32))
    assert call.route.has_large_reply(2)
    assert call.route.reply_nbytes(2) >= 800_000
    assert call.route.reply_nbytes(4) >= 1_600_000
