"""A batch's outputs go back to those who sent its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.broker_builders import make_signature
from support.virtual_arena import Array, VirtualArena, answer, failure, floats, output, words

from batchyard.broker import events
from batchyard.broker.events import Refuse
from batchyard.broker.replies import Reply, replies
from batchyard.wire import errors

FLOATS = make_signature((("x", "float32", (None, 2)),), (("y", "float32", (None,)),))
STRINGS = make_signature((("x", "string", (None, 2)),), (("y", "string", (None,)),))


def test_each_client_gets_one_message_with_its_own_rows() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=8)
    one = arena.send(floats(1, 2), client=b"1")
    two = arena.send(floats(3, 4, 5), rows=[2, 1], client=b"2")
    more = arena.send(floats(6), client=b"1")
    deliver = arena.finish(arena.tick_one())
    # The first client's rows come first: its two messages lie side by side.
    first, second = replies(deliver, [output("y", np.arange(6, dtype=np.float32))])
    assert (first.client, second.client) == (b"1", b"2")
    assert answer(first) == (
        [(one.message_id, 0, 2), (more.message_id, 0, 1)],
        {"y": [0.0, 1.0, 2.0]},
    )
    assert answer(second) == ([(two.message_id, 0, 2)], {"y": [3.0, 4.0, 5.0]})
    # One slice of each output, not copied.
    assert all(isinstance(frame, memoryview) for reply in (first, second) for frame in reply.frames)


def test_rows_that_nobody_wants_are_cut_out() -> None:
    arena = VirtualArena(STRINGS, max_batch_size=8)
    group = arena.send(words(*[[b"", b""]] * 5), rows=[1, 2, 1, 1])
    batch = arena.tick_one()
    arena.cancel(group, 1, 2)
    outputs = [
        output("y", np.array([b"0", b"11", b"", b"333", b"4"], object)),
        output("z", np.arange(10, dtype=np.int64).reshape(5, 2)),
    ]
    (reply,) = replies(arena.finish(batch), outputs)
    assert answer(reply) == (
        [(group.message_id, 0, 1), (group.message_id, 3, 1)],
        {"y": [b"0", b"4"], "z": [[0, 1], [8, 9]]},
    )


def test_padding_is_cut_off() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=4, allowed_batch_sizes=(4,))
    arena.send(floats(1, 2), client=b"1")
    arena.send(floats(3), client=b"2")
    deliver = arena.finish(arena.tick_one())
    values = np.array([1.5, 2.5, 3.5, 99.0], ml_dtypes.bfloat16)
    got = [answer(reply)[1] for reply in replies(deliver, [output("y", values)])]
    assert got == [{"y": [1.5, 2.5]}, {"y": [3.5]}]


def test_a_batch_that_all_its_clients_left_has_no_reply() -> None:
    arena = VirtualArena(FLOATS)
    arena.send(floats(1), client=b"1")
    arena.send(floats(2), client=b"2")
    batch = arena.tick_one()
    arena.leave(b"1")
    arena.leave(b"2")
    assert list(replies(arena.finish(batch), [output("y", np.zeros(2, np.float32))])) == []


@pytest.mark.parametrize("shape", [(), (1,), (3, 2)], ids=["scalar", "one row", "other rows"])
def test_outputs_that_are_not_row_by_row_are_refused(shape: tuple[int, ...]) -> None:
    arena = VirtualArena(FLOATS)
    clients = (b"1", b"2")
    for client in clients:
        arena.send(floats(1), client=client)
    deliver = arena.finish(arena.tick_one())
    outputs = [output("y", np.zeros(2, np.float32)), output("z", np.zeros(shape, np.float32))]
    found = list(replies(deliver, outputs))
    assert [reply.client for reply in found] == list(clients)
    for reply in found:
        assert failure(reply).number == errors.Internal.number
        for part in ("'m'", "'z'", str(shape), "batch of 2 rows", "enable_batching = false"):
            assert part in failure(reply).message


@pytest.mark.parametrize("alone", [True, False])
def test_a_request_alone_in_its_batch_gets_the_outputs_as_they_are(alone: bool) -> None:
    # Padding is company, too: the outputs would depend on it.
    arena = VirtualArena(FLOATS, allowed_batch_sizes=() if alone else (1, 4))
    group = arena.send(floats(1, 2), rows=[2])
    outputs = [output("y", np.array(7.0, np.float32)), output("z", np.zeros((5, 0), np.int8))]
    (reply,) = replies(arena.finish(arena.tick_one()), outputs)
    if alone:
        assert answer(reply) == ([(group.message_id, 0, 1)], {"y": 7.0, "z": [[]] * 5})
    else:
        assert failure(reply).number == errors.Internal.number


def test_what_is_never_batched_gets_the_outputs_as_they_are() -> None:
    arena = VirtualArena(FLOATS, enable_batching=False)
    group = arena.send(floats(1, 2, 3))
    (reply,) = replies(
        arena.finish(arena.tick_one()), [output("y", np.array([[1, 2]], np.float32))]
    )
    assert answer(reply) == ([(group.message_id, 0, 1)], {"y": [[1.0, 2.0]]})


# Large requests


def answered_with(arena: VirtualArena, *outputs: Array) -> list[Reply]:
    """The messages that come of the batches that go out now, one with each of the outputs."""
    found: list[Reply] = []
    for batch, array in zip(arena.tick(), outputs, strict=True):
        found += replies(arena.finish(batch), [output("y", array)])
    return found


def test_a_split_request_is_put_together_in_its_order() -> None:
    arena = VirtualArena(FLOATS, workers=3, max_batch_size=4, allowed_batch_sizes=(1, 4))
    group = arena.send(floats(*range(9)), rows=[9])
    batches = arena.tick()
    messages = []
    for batch in reversed(batches):
        first = arena.gather(batch)[0][:, 0]
        strings = np.array([b"%d" % value for value in first], object)
        outputs = [output("y", first * 10), output("z", strings)]
        messages += list(replies(arena.finish(batch), outputs))
    (reply,) = messages
    segments, got = answer(reply)
    assert segments == [(group.message_id, 0, 1)]
    assert got == {"y": [10.0 * i for i in range(9)], "z": [b"%d" % i for i in range(9)]}


def test_pieces_of_other_row_shapes_make_one_error() -> None:
    arena = VirtualArena(FLOATS, workers=3, max_batch_size=2)
    group = arena.send(floats(*range(6)), rows=[6])
    (reply,) = answered_with(arena, *(np.zeros((2, columns), np.int8) for columns in (3, 3, 4)))
    assert failure(reply).segments == [(group.message_id, 0, 1)]
    for part in ("split over batches", "'y'", "(3,)", "(4,)", "at most 2 rows"):
        assert part in failure(reply).message


def test_a_split_request_of_a_model_that_is_not_row_by_row_is_refused_once() -> None:
    arena = VirtualArena(FLOATS, workers=3, max_batch_size=2)
    arena.send(floats(*range(6)), rows=[6])
    (reply,) = answered_with(arena, *[np.array(1.0, np.float32)] * 3)
    assert failure(reply).number == errors.Internal.number


def test_a_split_request_that_was_refused_is_not_refused_again_by_its_deadline() -> None:
    arena = VirtualArena(FLOATS, max_batch_size=2)
    arena.send(floats(*range(6)), rows=[6], timeout_s=1.0)
    first, _ = arena.tick()
    (refused,) = replies(arena.finish(first), [output("y", np.array(1.0, np.float32))])
    assert failure(refused).number == errors.Internal.number
    arena.now += 1.0
    # Without the books of VirtualBroker, which know of no answer by the replies.
    actions = arena.state.handle(events.TimePassed(), arena.now)
    assert not any(isinstance(action, Refuse) for action in actions)


def test_pieces_of_a_request_that_meet_again_in_one_batch_make_one_answer() -> None:
    # Its first rows are long: tried as a batch of 4, given back, sent as 2. What was cut stays
    # cut, so the last batch has two pieces.
    signature = make_signature((("x", "string", (None,)),), (("y", "string", (None,)),))
    arena = VirtualArena(signature, workers=2, arena_nbytes=1024, max_batch_size=4)
    rows = np.array([b"a" * 390, b"b" * 390, b"c" * 390, b"d", b"e"], object)
    group = arena.send(rows, rows=[5])
    answers = []
    while batches := arena.tick():
        for batch in batches:
            outputs = [output("y", arena.gather(batch)[0])]
            answers += list(map(answer, replies(arena.finish(batch), outputs)))
    assert answers == [([(group.message_id, 0, 1)], {"y": rows.tolist()})]


class CountedPieces(dict[int, Any]):
    """The pieces of a split request; counts how many are looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[int]:
        for key in super().__iter__():
            self.looked_at += 1
            yield key

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for key in self:
            yield self[key]

    def items(self) -> Iterator[tuple[int, Any]]:  # type: ignore[override]
        for key in self:
            yield key, self[key]


def test_each_piece_is_not_compared_with_all_that_are_kept() -> None:
    count = 2000
    arena = VirtualArena(FLOATS, max_batch_size=1, max_enqueued_batches=count)
    group = arena.send(np.zeros((count, 2), np.float32), rows=[count])
    pieces = group.split[0].pieces = CountedPieces()
    messages: list[Reply] = []
    while not messages:
        for batch in arena.tick():
            outputs = [output("y", np.zeros(1, np.float32))]
            messages += replies(arena.finish(batch), outputs)
    assert len(pieces) == count
    assert count <= pieces.looked_at <= 3 * count
