"""A client's region: who has which part of it, and when a part is free again."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.regions import made_region
from support.waiting import DEADLINE_S

from batchyard.clients.region import ClientRegion, empty
from batchyard.wire.blocks import Block, BlockAllocator

NBYTES = 64 * 1024
U8 = np.dtype(np.uint8)
Array = npt.NDArray[Any]


@pytest.fixture
def region() -> Iterator[ClientRegion]:
    with made_region(NBYTES) as region:
        yield region


def take_all(region: ClientRegion) -> Array:
    """All of a region that nobody has any part of."""
    array = region.empty((NBYTES,), U8)
    assert array is not None
    return array


def test_arrays_are_aligned_and_apart(region: ClientRegion) -> None:
    arrays = [region.empty((n, 3), np.dtype(np.float32)) for n in (1, 7, 100)]
    places = []
    for value, array in enumerate(arrays):
        assert array is not None
        assert array.flags.c_contiguous
        assert array.flags.writeable
        array[:] = value
        offset = region.offset_of(array)
        assert offset is not None
        assert offset % 64 == 0
        places.append((offset, offset + array.nbytes))
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    assert [array.max() for array in arrays if array is not None] == [0, 1, 2]


def test_offset_of_finds_any_part_and_nothing_else(region: ClientRegion) -> None:
    array = region.empty((10, 4), np.dtype(np.int32))
    assert array is not None
    start = region.offset_of(array)
    assert start is not None
    assert region.offset_of(array[3:]) == start + 48
    assert region.offset_of(array.reshape(-1).view(np.uint8)[5:]) == start + 5
    assert region.offset_of(np.zeros(10)) is None
    with made_region(NBYTES) as other:
        assert other.offset_of(array) is None
        assert region.offset_of(take_all(other)) is None


@pytest.mark.parametrize(
    "derive",
    [
        lambda array: array[3:5],
        lambda array: array[::-2],
        lambda array: array.reshape(2, -1).T[1:],
        lambda array: array.view(np.float64),
        memoryview,
        lambda array: memoryview(array)[5:10],
        lambda array: np.frombuffer(array, np.int16, 4, 8),
        lambda array: np.asarray(array[4:])[2:].reshape(-1, 2),
        lambda array: np.lib.stride_tricks.sliding_window_view(array, 3),
        lambda array: [array[:1], array[-1:]],
    ],
)
def test_the_last_view_gives_the_memory_back(
    region: ClientRegion, derive: Callable[[Array], Any]
) -> None:
    array = take_all(region)
    first = derive(array)
    second = derive(array)
    del array
    assert region.empty((1,), U8) is None
    del first
    assert region.empty((1,), U8) is None
    del second
    take_all(region)


def test_a_copy_does_not_hold_the_memory(region: ClientRegion) -> None:
    copies = [take_all(region).copy(), take_all(region)[::2] + 1]
    take_all(region)
    assert all(region.offset_of(copy) is None for copy in copies)


def test_memory_in_a_cycle_comes_back_with_the_collector(region: ClientRegion) -> None:
    cycle: list[Any] = [take_all(region)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    take_all(region)


def test_full_regions_give_nothing(region: ClientRegion) -> None:
    held = region.empty((NBYTES - 64,), U8)
    assert region.empty((65,), U8) is None
    last = region.empty((64,), U8)
    assert last is not None
    assert region.empty((1,), U8) is None
    ordinary = empty(region, (3, 2), np.float32)
    assert region.offset_of(ordinary) is None
    assert ordinary.shape == (3, 2)
    assert ordinary.dtype == np.float32
    del last
    assert region.offset_of(empty(region, 16, np.int32)) == NBYTES - 64
    assert held is not None


def test_more_than_all_of_it_is_ordinary_memory(region: ClientRegion) -> None:
    assert region.empty((NBYTES + 1,), U8) is None
    assert region.empty((1 << 40, 1 << 40), U8) is None
    take_all(region)


@pytest.mark.parametrize("shape", [0, (0,), (3, 0, 5), [0, 2]])
def test_nothing_takes_no_room(region: ClientRegion, shape: Any) -> None:
    assert region.empty((0,), U8) is None
    array = empty(region, shape, np.float32)
    assert array.shape == ((shape,) if isinstance(shape, int) else tuple(shape))
    take_all(region)


@pytest.mark.parametrize("shape", [5, (5,), [5], (5, 1), ()])
def test_empty_takes_shapes_as_numpy_does(region: ClientRegion, shape: Any) -> None:
    array = empty(region, shape, "f4")
    assert array.shape == np.empty(shape).shape
    assert array.dtype == np.float32
    assert region.offset_of(array) == 0
    assert empty(None, shape, "f4").shape == array.shape


def test_a_shape_that_is_none_takes_no_room(region: ClientRegion) -> None:
    for shape in (-1, (-1,), (2, -3)):
        with pytest.raises(ValueError, match="negative dimensions"):
            empty(region, shape, np.uint8)
    take_all(region)


def test_python_objects_are_never_in_shared_memory(region: ClientRegion) -> None:
    take_all(region)[:] = 7
    array = empty(region, 4, object)
    offset = region.offset_of(array)
    # Not looked into before this: what others wrote there would be taken for pointers.
    assert offset is None
    assert array.tolist() == [None] * 4


def test_arrays_may_die_on_any_thread(region: ClientRegion) -> None:
    """Each thread fills its own arrays, hands them to the next to drop, and sees them whole."""
    threads = 4
    boxes: list[list[Array]] = [[] for _ in range(threads)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(400):
            array = region.empty((100 + 37 * (i % 7),), U8)
            if array is None:
                boxes[number].clear()
                continue
            array[:] = number
            if (array != number).any():
                wrong.append(i)
            boxes[(number + 1) % threads].append(array)
            if len(boxes[number]) > 8:
                boxes[number].pop(0)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE_S)
        assert not worker.is_alive()
    assert not wrong
    boxes.clear()
    take_all(region)


def test_arrays_may_die_while_their_own_thread_allocates(
    region: ClientRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may run at any moment, also inside of ``empty``."""
    allocate = BlockAllocator.allocate

    def collecting(self: BlockAllocator, *arguments: int) -> Block | None:
        gc.collect()
        return allocate(self, *arguments)

    monkeypatch.setattr(BlockAllocator, "allocate", collecting)
    got: list[Array | None] = []

    def work() -> None:
        cycle: list[Any] = [region.empty((100,), U8)]
        cycle.append(cycle)
        del cycle
        got.append(region.empty((100,), U8))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "it waits for itself"
    got.clear()
    take_all(region)


def test_region_goes_with_its_last_array() -> None:
    with made_region(NBYTES) as region:
        array = take_all(region)
        gone = weakref.ref(region)
    del region
    assert array is not None
    del array
    gc.collect()
    assert gone() is None


_READ_AFTER_CLOSE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from support.regions import made_region
with made_region(1 << 20) as region:
    array = region.empty((1 << 18,), np.dtype(np.float32))
    array[:] = 3
    view = array[10:20]
    del array
view += 1
assert (view == 4).all()
"""


def test_arrays_outlive_the_end_of_the_region() -> None:
    # In a process of its own: memory that is unmapped kills who reads it.
    script = [sys.executable, "-c", _READ_AFTER_CLOSE, __file__.rpartition("/clients/")[0]]
    ended = subprocess.run(script, check=False, timeout=DEADLINE_S, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_closed_region_has_no_room() -> None:
    with made_region(NBYTES) as region:
        held = region.empty((100,), U8)
    assert region.empty((100,), U8) is None
    assert region.offset_of(empty(region, 100, np.uint8)) is None
    assert held is not None


SIZES = st.integers(0, NBYTES // 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 100)), max_size=60))
def test_random_arrays_never_overlap_and_all_come_back(
    steps: list[tuple[bool, int, int]],
) -> None:
    with made_region(NBYTES) as region:
        held: list[tuple[Array, int]] = []
        for number, (drop, nbytes, which) in enumerate(steps):
            if drop and held:
                array, value = held.pop(which % len(held))
                assert (array == value).all()
                del array
                continue
            made = region.empty((nbytes,), U8)
            if made is None:
                used = sum(-(-array.nbytes // 64) * 64 for array, _ in held)
                # The largest of so many gaps at most is at least as large as their mean.
                assert not nbytes or -(-nbytes // 64) * 64 * (len(held) + 1) > NBYTES - used
                continue
            made[:] = number % 256
            # A view of it, to hold it by that alone.
            held.append((made[:], number % 256))
            del made
        assert all((array == value).all() for array, value in held)
        held.clear()
        take_all(region)
