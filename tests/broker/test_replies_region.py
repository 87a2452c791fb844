"""Outputs that the worker wrote into clients' regions: who is told so, and who gets frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.broker_builders import make_signature
from support.virtual_arena import (
    VirtualArena,
    answer,
    failure,
    floats,
    make_region,
    output,
    put_rows,
)

from batchyard.broker.events import Batch
from batchyard.broker.queue import RequestGroup
from batchyard.broker.replies import Reply, replies, reply_places
from batchyard.wire import errors, protocol
from batchyard.wire.protocol import MessageType, Result

FLOATS = make_signature((("x", "float32", (None, 2)),), (("y", "float32", (None,)),))
WHOLE = make_signature((("x", "float32", (3, 2)),), (("y", "float32", (3,)),))
ONE, TWO = make_region(4096, 1), make_region(4096, 2)
SPACE = 64


def spaces(count: int, start: int = 1024, nbytes: int = SPACE) -> list[tuple[int, int]]:
    return [(start + 64 * i, nbytes) for i in range(count)]


def ask(
    arena: VirtualArena,
    *rows: int,
    client: bytes = b"1",
    at: list[tuple[int, int]] | None = None,
    **more: Any,
) -> RequestGroup:
    """Requests that came in frames, with reply space for each."""
    region = {b"1": ONE, b"2": TWO}[client]
    places = spaces(len(rows)) if at is None else at
    values = floats(*range(sum(rows)))
    return arena.send(
        values, rows=rows, client=client, region=region, offsets=[None], replies=places, **more
    )


def written(reply: Reply) -> Result:
    """What a RESULT without frames says."""
    type_, body = protocol.decode(reply.header)
    assert (type_, reply.frames) == (MessageType.RESULT, [])
    result = protocol.decode_result(body)
    assert result.in_region
    return result


def ran(
    arena: VirtualArena, batch: Batch, *outputs: npt.NDArray[Any], replied: bool = True
) -> list[Reply]:
    """The messages that come of a batch with these outputs."""
    named = [output(f"y{i}", array) for i, array in enumerate(outputs)]
    return list(replies(arena.finish(batch, replied=replied), named))


def zeros(*shape: int) -> npt.NDArray[Any]:
    return np.zeros(shape, np.float32)


# Where workers may write


def test_each_request_has_its_place_and_its_rows() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8)
    ask(arena, 2, 1, client=b"2", at=[(64, 128), (0, 32)])
    ask(arena, 1, client=b"1", at=[(512, 64)])
    arena.send(floats(9), client=b"0")
    # The clients' rows are sorted by client.
    assert reply_places(arena.tick_one()) == [
        (1, 512, 64, 1, 1),
        (2, 64, 128, 2, 2),
        (2, 0, 32, 4, 1),
    ]


def test_a_batch_out_of_the_middle_of_a_message_has_the_places_of_its_requests() -> None:
    arena = VirtualArena(FLOATS, workers=2, max_batch_size=3)
    ask(arena, 1, 2, 2, 1)
    first, second = arena.tick()
    assert reply_places(first) == [(1, 1024, 64, 0, 1), (1, 1088, 64, 1, 2)]
    assert reply_places(second) == [(1, 1152, 64, 0, 2), (1, 1216, 64, 2, 1)]


def test_pieces_of_a_large_request_have_no_place() -> None:
    arena = VirtualArena(FLOATS, workers=3, max_batch_size=2)
    ask(arena, 3, 1)
    first, second = arena.tick()
    assert reply_places(first) == []
    assert reply_places(second) == [(1, 1088, 64, 1, 1)]


def test_who_brought_no_space_has_none() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8)
    arena.send(floats(1), client=b"1", region=ONE, offsets=[[0]])
    arena.send(floats(2), client=b"2")
    assert reply_places(arena.tick_one()) == []


def test_what_is_never_batched_has_its_place() -> None:
    arena = VirtualArena(WHOLE)
    arena.send(floats(1, 2, 3), region=ONE, offsets=[None], replies=[(64, 64)])
    assert reply_places(arena.tick_one()) == [(1, 64, 64, 0, 1)]


# Who is told what


def test_each_client_gets_one_message_without_frames() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8)
    # Two outputs, each aligned, take 128 bytes.
    one = ask(arena, 1, 1, at=[(0, 128), (128, 128)])
    two = ask(arena, 2, client=b"2", at=[(0, 128)])
    more = ask(arena, 1, at=[(256, 128)])
    first, second = ran(arena, arena.tick_one(), zeros(5), zeros(5, 3))
    assert (first.client, second.client) == (b"1", b"2")
    assert written(first) == Result(
        [(one.message_id, 0, 2), (more.message_id, 0, 1)],
        1,
        [("y0", "float32", (3,)), ("y1", "float32", (3, 3))],
        True,
    )
    assert written(second).segments == [(two.message_id, 0, 1)]
    assert written(second).outputs == [("y0", "float32", (2,)), ("y1", "float32", (2, 3))]


def test_those_without_space_get_frames() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8)
    one = ask(arena, 1)
    two = arena.send(floats(1, 2), client=b"2")
    same = arena.send(floats(3), client=b"1", region=ONE, offsets=[[0]])
    values = np.array([0, 1, 2, 3], np.float32)
    first, second, third = ran(arena, arena.tick_one(), values)
    assert (first.client, written(first).segments) == (b"1", [(one.message_id, 0, 1)])
    assert (second.client, answer(second)) == (b"1", ([(same.message_id, 0, 1)], {"y0": [1.0]}))
    assert answer(third) == ([(two.message_id, 0, 2)], {"y0": [2.0, 3.0]})


def test_who_has_too_little_room_gets_frames_and_the_others_do_not() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8)
    # Two outputs, each aligned: 128 bytes for one row, and 256 for two of 20 floats and 1.
    group = ask(arena, 1, 1, 2, 1, at=[(0, 128), (128, 127), (256, 128), (512, 256)])
    y = np.arange(5, dtype=np.float32)
    wide = np.repeat(y, 16).reshape(5, 16)
    first, second = ran(arena, arena.tick_one(), y, wide)
    assert written(first).segments == [(group.message_id, 0, 1), (group.message_id, 3, 1)]
    assert written(first).outputs == [("y0", "float32", (2,)), ("y1", "float32", (2, 16))]
    segments, got = answer(second)
    assert segments == [(group.message_id, 1, 2)]
    assert got["y0"] == [1.0, 2.0, 3.0]


def test_space_of_no_bytes_holds_outputs_of_no_bytes() -> None:
    arena = VirtualArena(FLOATS)
    group = ask(arena, 1, at=[(64, 0)])
    (reply,) = ran(arena, arena.tick_one(), zeros(1, 0))
    assert written(reply).segments == [(group.message_id, 0, 1)]


def test_without_the_workers_word_all_get_frames() -> None:
    arena = VirtualArena(FLOATS)
    group = ask(arena, 1, 1)
    (reply,) = ran(arena, arena.tick_one(), np.array([5, 6], np.float32), replied=False)
    assert answer(reply) == ([(group.message_id, 0, 2)], {"y0": [5.0, 6.0]})


def test_padding_is_not_told_of() -> None:
    arena = VirtualArena(FLOATS, allowed_batch_sizes=(4,))
    ask(arena, 1, 1)
    (reply,) = ran(arena, arena.tick_one(), zeros(4, 2))
    assert written(reply).outputs == [("y0", "float32", (2, 2))]


def test_requests_that_were_given_up_are_left_out() -> None:
    arena = VirtualArena(FLOATS)
    group = ask(arena, 1, 2, 1)
    batch = arena.tick_one()
    arena.cancel(group, 1, 1)
    (reply,) = ran(arena, batch, zeros(4))
    assert written(reply).segments == [(group.message_id, 0, 1), (group.message_id, 2, 1)]
    assert written(reply).outputs == [("y0", "float32", (2,))]


def test_a_client_that_left_is_told_nothing() -> None:
    arena = VirtualArena(FLOATS)
    ask(arena, 1)
    two = ask(arena, 1, client=b"2")
    batch = arena.tick_one()
    arena.leave(b"1")
    (reply,) = ran(arena, batch, zeros(2))
    assert (reply.client, written(reply).segments) == (b"2", [(two.message_id, 0, 1)])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_a_request_alone_in_its_batch_has_the_outputs_as_they_are(shape: tuple[int, ...]) -> None:
    arena = VirtualArena(FLOATS)
    group = ask(arena, 2)
    batch = arena.tick_one()
    assert batch.alone
    (reply,) = ran(arena, batch, zeros(*shape))
    assert written(reply).segments == [(group.message_id, 0, 1)]
    assert written(reply).outputs == [("y0", "float32", shape)]


def test_the_room_of_a_request_alone_is_for_its_outputs_whatever_its_rows() -> None:
    arena = VirtualArena(FLOATS)
    group = ask(arena, 2, at=[(0, 128)])
    (reply,) = ran(arena, arena.tick_one(), zeros(20))
    assert written(reply).segments == [(group.message_id, 0, 1)]


def test_a_request_alone_whose_outputs_have_no_room_gets_frames() -> None:
    arena = VirtualArena(FLOATS)
    # 17 floats whatever the rows.
    group = ask(arena, 2, at=[(0, 64)])
    (reply,) = ran(arena, arena.tick_one(), zeros(17), replied=True)
    assert answer(reply) == ([(group.message_id, 0, 1)], {"y0": [0.0] * 17})


def test_what_is_never_batched_is_told_the_outputs_as_they_are() -> None:
    arena = VirtualArena(WHOLE)
    arena.send(floats(1, 2, 3), region=ONE, offsets=[None], replies=[(64, 64)])
    (reply,) = ran(arena, arena.tick_one(), zeros(2, 3))
    assert written(reply).outputs == [("y0", "float32", (2, 3))]


def test_a_large_request_gets_frames_put_together_from_its_pieces() -> None:
    arena = VirtualArena(FLOATS, workers=3, max_batch_size=2)
    group = ask(arena, 3, 1)
    first, second = arena.tick()
    assert ran(arena, first, np.array([0, 1], np.float32), replied=False) == []
    messages = ran(arena, second, np.array([2, 9], np.float32))
    whole = [m for m in messages if m.frames]
    (told,) = [m for m in messages if not m.frames]
    assert written(told).segments == [(group.message_id, 1, 1)]
    assert [answer(m) for m in whole] == [([(group.message_id, 0, 1)], {"y0": [0.0, 1.0, 2.0]})]


def test_outputs_that_are_not_row_by_row_are_refused_with_reply_space_too() -> None:
    arena = VirtualArena(FLOATS)
    ask(arena, 1)
    ask(arena, 1, client=b"2")
    # The worker does not say that it wrote them.
    found = ran(arena, arena.tick_one(), zeros(7), replied=False)
    assert [failure(reply).number for reply in found] == [errors.Internal.number] * 2


def test_inputs_and_replies_in_one_region() -> None:
    arena = VirtualArena(FLOATS)
    group = arena.send(
        floats(1, 2), rows=[2], client=b"1", region=ONE, offsets=[[64]], replies=[(128, 64)]
    )
    batch = arena.tick_one()
    assert batch.layout.inputs[0].region is ONE
    assert reply_places(batch) == [(1, 128, 64, 0, 2)]
    put_rows(ONE, [64], floats(1, 2), [2])
    (reply,) = ran(arena, batch, zeros(2))
    assert written(reply).segments == [(group.message_id, 0, 1)]
