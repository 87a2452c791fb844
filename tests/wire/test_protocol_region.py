"""The parts of messages that speak of a client's region: any values, there and back or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchyard.wire import protocol
from batchyard.wire.arena import ALIGNMENT
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import MessageType, RegionPlaces, Result

OFFSETS = st.integers(0, protocol.DIM_MAX)
ROWS = st.one_of(st.none(), st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=5))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([-(1 << 63), protocol.DIM_MAX, protocol.DIM_MAX + 1, (1 << 64) - 1]),
    st.floats(),
    st.text(max_size=2),
    st.binary(max_size=2),
)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=1), inner),
    max_leaves=12,
)


@st.composite
def places_of(draw: st.DrawFn, count: int) -> RegionPlaces:
    offsets = st.lists(OFFSETS, min_size=count, max_size=count)
    replies = st.lists(st.tuples(OFFSETS, OFFSETS), min_size=count, max_size=count)
    inputs = draw(st.lists(st.none() | offsets, max_size=3))
    return RegionPlaces(inputs, draw(st.none() | replies))


@given(ROWS, st.data())
def test_predict_in_a_region_round_trip(rows: int | list[int] | None, data: st.DataObject) -> None:
    places = data.draw(places_of(protocol.count_of(rows)))
    header = protocol.encode_predict(7, b"target", rows, None, places)
    type_, body = protocol.decode(header)
    assert type_ is MessageType.PREDICT
    predict = protocol.decode_predict(body)
    assert predict == protocol.Predict(7, b"target", rows, None, places)
    assert protocol.encode_predict(7, predict.target, rows, None, predict.region) == header


@given(ROWS, st.data(), st.booleans())
def test_predict_resent_round_trip(
    rows: int | list[int] | None, data: st.DataObject, resent: bool
) -> None:
    places = data.draw(st.none() | places_of(protocol.count_of(rows)))
    header = protocol.encode_predict(7, b"target", rows, None, places, resent)
    predict = protocol.decode_predict(protocol.decode(header)[1])
    assert predict == protocol.Predict(7, b"target", rows, None, places, resent)


@pytest.mark.parametrize("value", [0, 1, None, "yes", []])
def test_resent_is_a_truth_value(value: object) -> None:
    with pytest.raises(InvalidArgument, match="resent must be a bool"):
        protocol.decode_predict([1, b"t", 2, None, None, value])


def test_a_region_part_that_is_nil_is_none() -> None:
    assert protocol.decode_predict([1, b"t", 2, None, None]).region is None


@given(ROWS, ANYTHING)
@example([1], [[[True]], None])
@example(2, [[[0, 1]], [[0, 1], [0, True]]])
def test_any_region_part_is_refused_or_of_the_right_types(
    rows: int | list[int] | None, places: Any
) -> None:
    try:
        region = protocol.decode_predict([1, b"t", rows, None, places]).region
    except InvalidArgument as error:
        # The answer can be sent.
        protocol.encode_error([(1, 0, 0)], error)
        return
    if places is None:
        assert region is None
        return
    assert region is not None
    count = protocol.count_of(rows)
    numbers = [n for offsets in region.inputs for n in offsets or ()]
    numbers += [n for reply in region.replies or () for n in reply]
    assert all(type(n) is int and 0 <= n <= protocol.DIM_MAX for n in numbers)
    assert all(offsets is None or len(offsets) == count for offsets in region.inputs)
    assert region.replies is None or len(region.replies) == count


@given(
    st.lists(st.tuples(OFFSETS, OFFSETS, OFFSETS), max_size=3),
    st.lists(st.tuples(st.text(max_size=2), st.just("float32"), st.tuples(OFFSETS)), max_size=2),
    st.booleans(),
    st.integers(0, 1 << 40),
)
def test_result_round_trip(segments: Any, outputs: Any, in_region: bool, queued_rows: int) -> None:
    result = Result(segments, 3, outputs, in_region, queued_rows)
    _, body = protocol.decode(protocol.encode_result(result))
    assert body[3:] == [in_region, queued_rows]
    assert protocol.decode_result(body) == result


def test_a_result_may_end_after_its_outputs() -> None:
    # Those of a broker that does not say what waits.
    assert protocol.decode_result([[], 1, []]) == Result([], 1, [])
    assert protocol.decode_result([[], 1, [], True]) == Result([], 1, [], in_region=True)


@pytest.mark.parametrize("value", [False, None])
def test_a_fourth_field_may_say_that_there_are_frames(value: object) -> None:
    assert not protocol.decode_result([[], 1, [], value]).in_region


@given(st.lists(st.integers(0, 1 << 20), max_size=5))
def test_outputs_lie_aligned_one_after_the_other_in_the_reply_space(sizes: list[int]) -> None:
    offsets = protocol.reply_offsets(sizes)
    assert len(offsets) == len(sizes) + 1
    assert offsets[0] == 0
    for nbytes, start, end in zip(sizes, offsets, offsets[1:], strict=False):
        assert start % ALIGNMENT == 0
        assert start + nbytes <= end < start + nbytes + ALIGNMENT
