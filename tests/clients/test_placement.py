"""Which tensors of a call lie in the region, and who gets room for outputs there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.regions import made_region
from support.sessions import make_route

from batchyard.clients.placement import Placement, place
from batchyard.clients.region import ClientRegion
from batchyard.wire.arena import align
from batchyard.wire.protocol import reply_offsets
from batchyard.wire.tensors import LARGE_NBYTES

NBYTES = 1 << 20
LARGE = LARGE_NBYTES // 4
Array = npt.NDArray[Any]


@pytest.fixture
def region() -> Iterator[ClientRegion]:
    with made_region(NBYTES) as region:
        yield region


def floats(elements: int, rows: int = 1) -> Array:
    return np.arange(rows * elements, dtype=np.float32).reshape(rows, elements)


def placed(region: ClientRegion | None, arrays: list[Array], **options: Any) -> Placement | None:
    """For a signature of inputs of these dtypes; the arrays' rows."""
    dtypes = ["string" if array.dtype == object else array.dtype.name for array in arrays]
    return place(region, make_route(dtypes, **options), arrays, len(arrays[0]))


def room_left(region: ClientRegion) -> bool:
    return region.empty((NBYTES,), np.dtype(np.uint8)) is not None


def test_without_a_region_nothing_is_placed() -> None:
    arrays = [floats(LARGE)]
    before = list(arrays)
    assert placed(None, arrays) is None
    assert arrays[0] is before[0]


@pytest.mark.parametrize(("elements", "is_placed"), [(LARGE - 1, False), (LARGE, True)])
def test_only_large_arrays_are_placed(region: ClientRegion, elements: int, is_placed: bool) -> None:
    assert (placed(region, [floats(elements)]) is not None) == is_placed


def test_large_array_is_copied_into_the_region(region: ClientRegion) -> None:
    given = floats(LARGE)
    arrays = [given]
    placement = placed(region, arrays)
    assert placement is not None
    assert placement.region is region
    assert arrays[0] is not given
    assert np.array_equal(arrays[0], given)
    assert placement.offsets == [region.offset_of(arrays[0])]
    assert placement.reply is None


def test_the_copy_has_the_shape_and_dtype_of_the_array(region: ClientRegion) -> None:
    given = np.arange(2 * LARGE, dtype=np.int16).reshape(2, -1, 8)
    arrays = [given]
    assert placed(region, arrays) is not None
    assert (arrays[0].shape, arrays[0].dtype) == (given.shape, given.dtype)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_array_in_the_region_is_named_where_it_lies(region: ClientRegion, start: int) -> None:
    whole = region.empty((4, LARGE), np.dtype(np.float32))
    assert whole is not None
    part = whole[start:]
    arrays = [part]
    placement = placed(region, arrays)
    assert placement is not None
    assert arrays[0] is part
    offset = region.offset_of(whole)
    assert offset is not None
    assert placement.offsets == [offset + start * whole.strides[0]]


def test_array_of_another_region_is_copied(region: ClientRegion) -> None:
    with made_region(NBYTES) as other:
        array = other.empty((1, LARGE), np.dtype(np.float32))
        assert array is not None
        array[:] = 7
        arrays: list[Array] = [array]
        assert placed(region, arrays) is not None
    assert (arrays[0] == 7).all()
    assert region.offset_of(arrays[0]) == 0


def test_small_arrays_beside_a_large_one_travel_as_frames(region: ClientRegion) -> None:
    small = floats(10)
    arrays = [small, floats(LARGE)]
    placement = placed(region, arrays)
    assert placement is not None
    assert placement.offsets[0] is None
    assert placement.offsets[1] is not None
    assert arrays[0] is small


def test_strings_and_bools_are_never_placed(region: ClientRegion) -> None:
    strings = np.full((1, LARGE_NBYTES), b"a", object)
    bools = np.ones((1, LARGE_NBYTES), bool)
    for array in (strings, bools):
        assert placed(region, [array]) is None
    assert room_left(region)
    # Also where they are in the region already.
    mine = region.empty((1, LARGE_NBYTES), np.dtype(bool))
    assert mine is not None
    assert placed(region, [mine]) is None


def test_bools_beside_a_large_array_stay_frames(region: ClientRegion) -> None:
    arrays: list[Array] = [np.ones((1, LARGE_NBYTES), bool), floats(LARGE)]
    placement = placed(region, arrays)
    assert placement is None or placement.offsets[0] is None


def test_full_region_places_nothing(region: ClientRegion) -> None:
    held = region.empty((NBYTES - LARGE_NBYTES,), np.dtype(np.uint8))
    given = [floats(LARGE), floats(LARGE) + 1]
    arrays = list(given)
    assert placed(region, arrays) is None
    assert all(np.array_equal(a, b) for a, b in zip(arrays, given, strict=True))
    del arrays, held
    assert room_left(region)


def test_the_copy_comes_back_with_the_call(region: ClientRegion) -> None:
    arrays = [floats(LARGE)]
    placement = placed(region, arrays, outputs=[("float32", (None, LARGE))])
    assert placement is not None
    assert not room_left(region)
    del placement, arrays
    assert room_left(region)


# Room for outputs


def test_declared_outputs_get_room(region: ClientRegion) -> None:
    outputs: list[Any] = [("float32", (None, LARGE)), ("int64", (None, 3))]
    placement = placed(region, [floats(1, rows=3)], outputs=outputs)
    assert placement is not None
    assert placement.offsets == [None]
    assert placement.reply is not None
    assert placement.reply_offset == region.offset_of(placement.reply)
    assert placement.reply_offset % 64 == 0
    assert placement.reply.nbytes >= reply_offsets([3 * 4 * LARGE, 3 * 24])[-1]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_room_is_enough_for_any_number_of_outputs(region: ClientRegion, count: int) -> None:
    # One byte past what is aligned each.
    shape = (None, LARGE_NBYTES // 8 + 1)
    placement = placed(region, [floats(1)], outputs=[("uint8", shape)] * count)
    if count * shape[1] < LARGE_NBYTES // 2:
        assert placement is None
        return
    if placement is not None:
        assert placement.reply is not None
        assert placement.reply.nbytes >= reply_offsets([shape[1]] * count)[-1]
    else:
        assert align(shape[1]) * count < LARGE_NBYTES


def test_small_outputs_get_none(region: ClientRegion) -> None:
    assert placed(region, [floats(1)], outputs=[("float32", (None, 100))]) is None
    placement = placed(region, [floats(LARGE)], outputs=[("float32", (None, 100))])
    assert placement is not None
    assert placement.reply is None


@pytest.mark.parametrize(
    "outputs",
    [
        [("string", (None,))],
        [("float32", (None, LARGE)), ("string", (None,))],
        [("float32", (None, None))],
        [("float32", None)],
    ],
)
def test_outputs_of_unknown_size_get_none_at_first(region: ClientRegion, outputs: Any) -> None:
    assert placed(region, [floats(1)], outputs=outputs) is None


def test_a_reply_that_finds_no_room_does_not_keep_inputs_out(region: ClientRegion) -> None:
    outputs: list[Any] = [("uint8", (None, NBYTES))]
    placement = placed(region, [floats(LARGE)], outputs=outputs)
    assert placement is not None
    assert placement.reply is None
    assert placement.offsets == [0]


def test_sizes_are_learned_for_each_row(region: ClientRegion) -> None:
    route = make_route(["float32"], [("float32", (None, None))])
    assert not route.has_large_reply(3)
    route.learn_outputs(3 * LARGE_NBYTES, 3)
    assert route.has_large_reply(1)
    assert route.reply_nbytes(1) >= LARGE_NBYTES
    assert route.reply_nbytes(5) >= 5 * LARGE_NBYTES
    # Less does not take it back.
    route.learn_outputs(30, 3)
    assert route.reply_nbytes(5) >= 5 * LARGE_NBYTES
    # A size that does not divide by the rows is rounded up.
    route.learn_outputs(6 * LARGE_NBYTES + 1, 3)
    assert route.reply_nbytes(3) > 6 * LARGE_NBYTES
    placement = place(region, route, [floats(1)], 1)
    assert placement is not None
    assert placement.reply is not None


def test_what_a_signature_says_is_not_learned_anew() -> None:
    route = make_route(["float32"], [("float32", (None, 2))])
    before = route.reply_nbytes(10)
    route.learn_outputs(10 * LARGE_NBYTES, 1)
    assert route.reply_nbytes(10) == before
    strings = make_route(["float32"], [("string", (None,))])
    strings.learn_outputs(10 * LARGE_NBYTES, 1)
    assert not strings.has_large_reply(10)


def test_signature_that_is_not_batched_gets_room_for_its_whole_outputs(
    region: ClientRegion,
) -> None:
    route = make_route(["float32"], [("float32", (2, LARGE))], batched=False)
    assert route.has_large_reply(0)
    assert route.reply_nbytes(0) >= 2 * LARGE_NBYTES
    assert place(region, route, [floats(1)], 0) is not None
