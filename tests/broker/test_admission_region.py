"""What a message claims of its client's region is checked before anything reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.broker_builders import (
    NO_INPUTS,
    make_catalog,
    make_predict,
    make_signature,
    make_target,
)
from support.virtual_arena import make_region

from batchyard.broker.admission import admit
from batchyard.broker.catalog import Catalog
from batchyard.broker.queue import Region, RegionRows, RequestGroup
from batchyard.wire.errors import InvalidArgument, NotFound, ResourceExhausted
from batchyard.wire.protocol import DIM_MAX, Predict, RegionPlaces
from batchyard.wire.signatures import Shape
from batchyard.wire.tensors import Buffer, encode_strings

# Rows of 8 bytes, and strings.
PAIR = make_signature(
    (("a", "float32", (None, 2)), ("b", "string", (None,))), (("y", "float32", (None,)),)
)
TWO = make_signature((("a", "float32", (None, 2)), ("b", "int8", (None, 3))))
FIXED = make_signature((("x", "float32", (3, 2)),), (("y", "float32", (3,)),))
SCALAR = make_signature((("x", "float64", ()),), (("y", "float32", ()),))
NOTHING = make_signature((), (("y", "float32", ()),))
A: tuple[str, str, Shape] = ("a", "float32", (None, 2))
B: tuple[str, str, Shape] = ("b", "string", (None,))
B8: tuple[str, str, Shape] = ("b", "int8", (None, 3))
SIZE = 1024
REGION = make_region(SIZE)
ONE_STRING = encode_strings([b"s"])


def admitted(
    catalog: Catalog, predict: Predict, *frames: Buffer, region: Region | None = REGION
) -> RequestGroup:
    return admit(catalog, b"client", region, predict, list(frames), 100.0)


def predict(
    *inputs: tuple[str, str, Shape],
    rows: int | list[int] | None = 1,
    offsets: Sequence[list[int] | None] = (),
    replies: list[tuple[int, int]] | None = None,
) -> Predict:
    places = RegionPlaces(list(offsets), replies)
    return make_predict(make_target(*inputs), rows, None, 7, places)


def offsets_of(group: RequestGroup, i: int) -> list[int]:
    source = group.sources[i]
    assert isinstance(source, RegionRows)
    assert source.region is REGION
    return source.offsets


def test_inputs_may_lie_in_the_region_and_in_frames() -> None:
    message = predict(A, B, rows=[2, 1], offsets=[[512, 0], None], replies=[(64, 8), (0, 0)])
    frame = encode_strings([b"1", b"2", b"3"])
    group = admitted(make_catalog(PAIR), message, frame)
    assert offsets_of(group, 0) == [512, 0]
    assert group.sources[1] == frame
    assert group.shapes == [(3, 2), (3,)]
    # Three rows of 8 bytes lie in the region.
    assert group.nbytes == len(frame) + 24
    assert (group.region, group.replies) == (REGION, [(64, 8), (0, 0)])
    assert (group.count, group.total_rows, group.rows) == (2, 3, [2, 1])


def test_inputs_in_the_region_come_in_the_signatures_order() -> None:
    frame = bytes(3)
    group = admitted(make_catalog(TWO), predict(B8, A, offsets=[None, [8]]), frame)
    assert group.sources[1] == frame
    assert offsets_of(group, 0) == [8]
    both = admitted(make_catalog(TWO), predict(B8, A, offsets=[[3], [8]]))
    assert (offsets_of(both, 0), offsets_of(both, 1)) == ([8], [3])


def test_all_may_be_frames_and_only_the_replies_in_the_region() -> None:
    message = predict(A, B8, rows=2, offsets=[None, None], replies=[(0, 64), (64, 960)])
    group = admitted(make_catalog(TWO), message, bytes(16), bytes(6))
    assert group.sources == [bytes(16), bytes(6)]
    assert (group.region, group.replies, group.nbytes) == (REGION, [(0, 64), (64, 960)], 22)


def test_a_message_that_does_not_speak_of_the_region_has_none() -> None:
    message = make_predict(make_target(A, B8), 1)
    group = admitted(make_catalog(TWO), message, bytes(8), bytes(3))
    assert (group.region, group.replies) == (None, None)


def test_rows_may_lie_up_to_the_last_byte() -> None:
    message = predict(A, B8, rows=[1, 2], offsets=[[SIZE - 8, SIZE - 16], [SIZE - 3, SIZE - 6]])
    group = admitted(make_catalog(TWO), message)
    assert offsets_of(group, 1) == [SIZE - 3, SIZE - 6]


def test_whole_shapes_in_the_region() -> None:
    inputs = (("x", "float32", (3, 2)),)
    fixed = admitted(make_catalog(FIXED), predict(*inputs, rows=None, offsets=[[SIZE - 24]]))
    assert (fixed.shapes, offsets_of(fixed, 0)) == ([(3, 2)], [SIZE - 24])
    with pytest.raises(InvalidArgument, match="24 bytes at 1001 do not lie"):
        admitted(make_catalog(FIXED), predict(*inputs, rows=None, offsets=[[SIZE - 23]]))
    scalar = (("x", "float64", ()),)
    group = admitted(make_catalog(SCALAR), predict(*scalar, rows=None, offsets=[[SIZE - 8]]))
    assert offsets_of(group, 0) == [SIZE - 8]
    with pytest.raises(InvalidArgument, match="8 bytes at 1020 do not lie"):
        admitted(make_catalog(SCALAR), predict(*scalar, rows=None, offsets=[[SIZE - 4]]))
    # One request of a batched signature whose target gives the rows.
    rows = (("a", "float32", (5, 2)), ("b", "int8", (5, 3)))
    whole = admitted(make_catalog(TWO), predict(*rows, rows=None, offsets=[[SIZE - 40], [0]]))
    assert (whole.count, whole.total_rows, whole.rows) == (1, 5, [5])
    with pytest.raises(InvalidArgument, match="40 bytes at 985 do not lie"):
        admitted(make_catalog(TWO), predict(*rows, rows=None, offsets=[[SIZE - 39], [0]]))


def test_a_signature_without_inputs_may_have_reply_space() -> None:
    message = make_predict(NO_INPUTS, None, None, 7, RegionPlaces([], [(0, 64)]))
    assert admitted(make_catalog(NOTHING), message).replies == [(0, 64)]


# Lies

BOTH = [[0], [8]]
WRONG: dict[str, tuple[Predict, list[Buffer], list[str]]] = {
    "past the end": (
        predict(A, B8, offsets=[[SIZE - 7], [0]]),
        [],
        ["'a'", "8 bytes at 1017", "region of 1024 bytes"],
    ),
    "second input past the end": (
        predict(A, B8, offsets=[[0], [SIZE - 2]]),
        [],
        ["'b'", "3 bytes at 1022"],
    ),
    "second request past the end": (
        predict(A, B8, rows=[1, 2], offsets=[[0, SIZE - 15], [0, 0]]),
        [],
        ["'a'", "16 bytes at 1009"],
    ),
    "behind the end": (predict(A, B8, offsets=[[SIZE + 64], [0]]), [], ["'a'", "at 1088"]),
    "huge offset": (predict(A, B8, offsets=[[DIM_MAX], [0]]), [], ["'a'", f"at {DIM_MAX}"]),
    "huge rows": (
        predict(A, B8, rows=[1 << 21], offsets=[[0], [0]]),
        [],
        ["'a'", f"{8 << 21} bytes at 0"],
    ),
    "too few inputs": (predict(A, B8, offsets=[[0]]), [], ["0 tensor frames and 1 inputs"]),
    "no inputs": (predict(A, B8, offsets=[]), [], ["0 tensor frames and 0 inputs", "needs 2"]),
    "too many inputs": (predict(A, B8, offsets=[[0], [0], [0]]), [], ["3 inputs in the region"]),
    "too many nils": (
        predict(A, B8, offsets=[[0], None, None]),
        [bytes(3), b""],
        ["2 tensor frames and 1 inputs", "needs 2"],
    ),
    "a frame for what lies in the region": (
        predict(A, B8, offsets=BOTH),
        [bytes(8)],
        ["1 tensor frames and 2 inputs", "needs 2 together"],
    ),
    "no frame for what does not": (
        predict(A, B8, offsets=[[0], None]),
        [],
        ["0 tensor frames and 1 inputs"],
    ),
    "frame too short beside the region": (
        predict(A, B8, rows=2, offsets=[[0, 8], None]),
        [bytes(5)],
        ["'b'", "frame has 5 bytes"],
    ),
    "reply past the end": (
        predict(A, B8, offsets=BOTH, replies=[(960, 65)]),
        [],
        ["a reply of 65 bytes at 960", "region of 1024 bytes"],
    ),
    "reply behind the end": (
        predict(A, B8, offsets=BOTH, replies=[(SIZE + 64, 0)]),
        [],
        ["a reply of 0 bytes at 1088"],
    ),
    "huge reply": (
        predict(A, B8, offsets=BOTH, replies=[(0, DIM_MAX)]),
        [],
        [f"a reply of {DIM_MAX} bytes"],
    ),
    "huge reply offset": (
        predict(A, B8, offsets=BOTH, replies=[(DIM_MAX, 64)]),
        [],
        [f"at {DIM_MAX}"],
    ),
    "misaligned reply": (
        predict(A, B8, offsets=BOTH, replies=[(32, 64)]),
        [],
        ["64 bytes at 32", "not 64-byte aligned"],
    ),
    "second reply misaligned": (
        predict(A, B8, rows=2, offsets=[[0, 8], [0, 3]], replies=[(0, 64), (65, 64)]),
        [],
        ["at 65"],
    ),
    "different rows in the shape": (
        predict(("a", "float32", (3, 2)), B8, rows=[1, 1], offsets=[[0, 8], [0, 3]]),
        [],
        ["'a' has 3 rows, the message 2"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_message_that_lies_about_its_region(name: str) -> None:
    message, frames, words = WRONG[name]
    with pytest.raises(InvalidArgument) as caught:
        admitted(make_catalog(TWO), message, *frames)
    assert caught.value.message.startswith("model 'm' signature 'serving_default'")
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(("offsets", "replies"), [([[0], [0]], None), ([None, None], [(0, 64)])])
def test_a_client_without_a_region_cannot_speak_of_one(
    offsets: list[list[int] | None], replies: list[tuple[int, int]] | None
) -> None:
    message = predict(A, B8, offsets=offsets, replies=replies)
    frames = [bytes(8), bytes(3)] if offsets[0] is None else []
    with pytest.raises(InvalidArgument, match="speaks of a region, but the client has none"):
        admitted(make_catalog(TWO), message, *frames, region=None)


def test_what_is_looked_at_must_not_change_afterwards() -> None:
    with pytest.raises(InvalidArgument, match="'b': tensors of string cannot lie in a region"):
        admitted(make_catalog(PAIR), predict(A, B, offsets=[None, [0]]), bytes(8))
    flags = make_signature((("x", "bool", (None,)),))
    with pytest.raises(InvalidArgument, match="'x': tensors of bool cannot lie in a region"):
        admitted(make_catalog(flags), predict(("x", "bool", (None,)), offsets=[[0]]))


def test_nothing_is_looked_at_before_the_route_is_known() -> None:
    message = make_predict(make_target(A, model="other"), 1, None, 7, RegionPlaces([[1 << 40]], []))
    with pytest.raises(NotFound):
        admitted(make_catalog(TWO), message)


def test_what_is_never_batched_is_alone_in_its_message() -> None:
    message = predict(("x", "float32", (3, 2)), rows=2, offsets=[[0, 24]])
    with pytest.raises(InvalidArgument, match="a message of its own, not 2"):
        admitted(make_catalog(FIXED), message)


def test_rows_beyond_any_arena_are_refused() -> None:
    wide = make_signature((("x", "uint8", None),))
    message = predict(("x", "uint8", (None, *[DIM_MAX] * 31)), offsets=[[0]])
    with pytest.raises(ResourceExhausted):
        admitted(make_catalog(wide), message)


def test_rows_in_the_region_are_bounded_by_their_number_too() -> None:
    empty = make_signature((("x", "float32", (None, None)),))
    message = predict(("x", "float32", (None, 0)), rows=[1 << 23], offsets=[[SIZE]])
    with pytest.raises(InvalidArgument, match="rows, may have at most"):
        admitted(make_catalog(empty), message)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=3)
numbers = st.integers(0, SIZE + 8) | st.sampled_from([SIZE - 8, SIZE, DIM_MAX])


@given(rows=sizes | st.integers(1, 3), data=st.data())
def test_whatever_is_taken_lies_in_the_region(rows: int | list[int], data: st.DataObject) -> None:
    each = [1] * rows if isinstance(rows, int) else rows
    n = len(each)
    offsets = st.none() | st.lists(numbers, min_size=n, max_size=n)
    aligned = st.sampled_from([0, 64, 512, 960, SIZE, 32, SIZE + 64])
    spaces = st.lists(st.tuples(aligned, numbers), min_size=n, max_size=n)
    inputs = data.draw(st.lists(offsets, min_size=2, max_size=2))
    replies = data.draw(st.none() | spaces)
    frames = [
        bytes(sum(each) * row) for row, place in zip((8, 3), inputs, strict=True) if place is None
    ]
    lies = any(
        start + count * row > SIZE
        for row, place in zip((8, 3), inputs, strict=True)
        for start, count in zip(place or (), each, strict=False)
    ) or any(start % 64 or start + room > SIZE for start, room in replies or ())
    message = predict(A, B8, rows=rows, offsets=inputs, replies=replies)
    try:
        group = admitted(make_catalog(TWO), message, *frames)
    except InvalidArgument:
        assert lies
        return
    assert not lies
    assert group.total_rows == np.sum(each)
    assert group.replies == replies
