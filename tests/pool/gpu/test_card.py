"""Batches go to a simulated card and come back, and nothing happens before it may."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.simulated_driver import Framework, Kind, SimulatedDriver, Tensor

from batchyard.pool.gpu.card import Card, CardBatch, OutputSpec
from batchyard.pool.gpu.driver import CudaError
from batchyard.wire import dtypes
from batchyard.wire.errors import ResourceExhausted

# Long enough for who does not wait to be seen.
_SLOW_S = 0.05
_ROWS = 1000


class Block:
    """Hands out a part of the arena, piece by piece."""

    def __init__(self, arena: memoryview, offset: int = 0) -> None:
        self._arena = arena
        self._offset = offset

    def array(self, values: Any) -> np.ndarray[Any, Any]:
        values = np.asarray(values)
        array = np.ndarray(values.shape, values.dtype, self._arena, self._offset)
        array[...] = values
        self._offset += (values.nbytes + 63) // 64 * 64
        return array

    def room(self, specs: Sequence[OutputSpec]) -> list[np.ndarray[Any, Any]]:
        return [self.array(np.zeros(nbytes, np.uint8)) for _, _, _, nbytes in specs]


@pytest.fixture
def block(arena: memoryview) -> Block:
    return Block(arena)


def double(framework: Framework, x: Any, gate: threading.Event | None = None) -> Tensor:
    """A kernel that reads an input, after a gate was opened."""
    source = framework.from_dlpack(x)
    target = framework.empty(source.array.shape, source.array.dtype)

    def kernel() -> None:
        if gate is not None:
            assert gate.wait(10)
        target.array[...] = 2 * source.array

    framework.launch(kernel)
    return target


def begin(card: Card, block: Block, value: float = 1) -> CardBatch:
    return card.begin({"x": block.array(np.full(_ROWS, value, np.float32))})


def test_batch_goes_there_and_back(card: Card, framework: Framework, block: Block) -> None:
    x = block.array(np.arange(12, dtype=np.float32).reshape(3, 4))
    words = np.array([b"a", b"b", b"c"], object)
    batch = card.begin({"x": x, "words": words})
    assert batch.arrays["words"] is words
    on_host = np.ones(3)
    y = double(framework, batch.arrays["x"])
    batch.bring([("y", y), ("z", on_host), ("v", y)], block.room)
    (_, first), (_, second), (_, third) = outputs = batch.wait()
    assert [name for name, _ in outputs] == ["y", "z", "v"]
    np.testing.assert_array_equal(first, 2 * x)
    assert second is on_host
    np.testing.assert_array_equal(third, 2 * x)
    assert batch.seconds > 0


@pytest.mark.parametrize("shape", [(), (5,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_all_dtypes(shape: tuple[int, ...], card: Card, framework: Framework, block: Block) -> None:
    values = np.arange(np.prod(shape)).reshape(shape) % 2
    inputs = {name: block.array(values.astype(dtypes.to_numpy(name))) for name in dtypes.NAMES[:-1]}
    batch = card.begin(inputs)
    on_card = [(name, framework.from_dlpack(array)) for name, array in batch.arrays.items()]
    for name, x in inputs.items():
        array = batch.arrays[name]
        assert (array.shape, array.dtype, array.nbytes) == (x.shape, x.dtype, x.nbytes)
    batch.bring(on_card, block.room)
    for name, y in batch.wait():
        assert y.dtype == inputs[name].dtype
        np.testing.assert_array_equal(y, inputs[name])


def test_inputs_side_by_side_are_one_transfer(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    inputs = {str(n): block.array(np.arange(n, dtype=np.int16)) for n in (3, 100, 7)}
    batch = card.begin(inputs)
    tensors = [(name, framework.from_dlpack(array)) for name, array in batch.arrays.items()]
    batch.bring(tensors, block.room)
    for name, array in batch.wait():
        np.testing.assert_array_equal(array, inputs[name])
    (_, end) = driver.log(Kind.COPY_IN)
    assert end.nbytes == 64 + 256 + 14


def test_next_batch_travels_while_one_computes(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    gate = threading.Event()
    first = begin(card, block, 1)
    first.bring([("y", double(framework, first.arrays["x"], gate))], block.room)
    second = begin(card, block, 2)
    card.driver.synchronize_stream(card.copy_in)
    assert len(driver.log(Kind.COPY_IN)) == 4
    assert not [entry for entry in driver.log(Kind.KERNEL) if entry.is_end]
    second.bring([("y", double(framework, second.arrays["x"]))], block.room)
    gate.set()
    assert first.wait()[0][1][0] == 2
    assert second.wait()[0][1][0] == 4


def test_what_is_still_read_is_not_written_over(
    card: Card, framework: Framework, block: Block
) -> None:
    gate = threading.Event()
    first = begin(card, block)
    pointer = first.arrays["x"].pointer
    first.bring([("y", double(framework, first.arrays["x"], gate))], block.room)
    second = begin(card, block)
    assert second.arrays["x"].pointer != pointer
    gate.set()
    first.wait()
    third = begin(card, block)
    assert third.arrays["x"].pointer == pointer
    for batch in (second, third):
        batch.abandon()
    assert card.buffer_nbytes == 2 * (2 << 20)


def test_an_input_that_a_model_kept_stays(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    first = begin(card, block, 5)
    kept = framework.from_dlpack(first.arrays["x"])
    pointer = kept.pointer
    first.bring([], block.room)
    first.wait()
    second = begin(card, block, 6)
    second.bring([], block.room)
    second.wait()
    assert kept.array[0] == 5
    # The model reads it again, and lets go of it: the next transfer there waits for that.
    gate = threading.Event()
    framework.launch(lambda: gate.wait(10) and None)
    del kept
    driver.clear_log()
    batches = [begin(card, block, 7) for _ in range(2)]
    assert pointer in {batch.arrays["x"].pointer for batch in batches}
    gate.set()
    for batch in batches:
        batch.abandon()
    ends = [entry for entry in driver.log(Kind.KERNEL, Kind.COPY_IN) if entry.is_end]
    own = next(i for i, entry in enumerate(ends) if entry.target == pointer)
    assert Kind.KERNEL in {entry.kind for entry in ends[:own]}


def test_wait_covers_transfers_in_that_nobody_reads(
    card: Card, block: Block, driver: SimulatedDriver
) -> None:
    driver.cards.set_bytes_per_s(int(4 * _ROWS / _SLOW_S))
    batch = begin(card, block)
    batch.bring([], block.room)
    assert batch.wait() == []
    assert driver.log(Kind.COPY_IN)[-1].is_end


def test_wait_covers_transfers_out(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batch = begin(card, block)
    driver.cards.set_bytes_per_s(int(4 * _ROWS / _SLOW_S))
    batch.bring([("y", double(framework, batch.arrays["x"]))], block.room)
    batch.wait()
    assert driver.log(Kind.COPY_OUT)[-1].is_end


def test_wait_covers_kernels_without_outputs(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batch = begin(card, block)
    framework.from_dlpack(batch.arrays["x"])
    framework.launch(lambda: time.sleep(_SLOW_S))
    batch.bring([], block.room)
    batch.wait()
    assert driver.log(Kind.KERNEL)[-1].is_end


def test_abandon_waits(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batch = begin(card, block)
    framework.from_dlpack(batch.arrays["x"])
    framework.launch(lambda: time.sleep(_SLOW_S))
    batch.abandon()
    assert driver.log(Kind.KERNEL)[-1].is_end


def test_memory_that_a_model_returns_each_time(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    static = framework.empty((_ROWS,), np.float32)
    batches = []
    with driver.held(Kind.COPY_OUT):
        for value in (1, 2):
            batch = begin(card, block, value)
            x = framework.from_dlpack(batch.arrays["x"])

            def kernel(x: Tensor = x) -> None:
                static.array[...] = x.array

            framework.launch(kernel)
            batch.bring([("y", static)], block.room)
            batches.append(batch)
    assert [batch.wait()[0][1][0] for batch in batches] == [1, 2]
    order = [(e.kind, e.is_end) for e in driver.log(Kind.KERNEL, Kind.COPY_OUT)]
    one = [(kind, is_end) for kind in (Kind.KERNEL, Kind.COPY_OUT) for is_end in (False, True)]
    assert order == one + one


def test_buffers_are_used_again(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver, arena: memoryview
) -> None:
    used = set()
    for i in range(20):
        batch = begin(card, Block(arena), i)
        batch.bring([("y", framework.from_dlpack(batch.arrays["x"]))], Block(arena, 1 << 20).room)
        assert batch.wait()[0][1][0] == i
        if i > 1:
            used.add(driver.live())
    assert len(used) == 1
    assert card.buffer_nbytes == 2 << 20


def test_buffers_grow_with_batches(card: Card, arena: memoryview) -> None:
    for nbytes in (1000, 3 << 20, 1000, 3 << 20):
        batch = card.begin({"x": Block(arena).array(np.zeros(nbytes, np.uint8))})
        batch.abandon()
    assert card.buffer_nbytes == 4 << 20


def test_card_without_memory(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    first = begin(card, block)
    driver.cards.set_total(driver.used)
    with pytest.raises(ResourceExhausted, match="no memory for a batch's inputs of 4000 bytes"):
        begin(card, block)
    first.abandon()
    # What the first had is enough.
    begin(card, block).abandon()


def test_batches_of_several_threads(card: Card, framework: Framework, arena: memoryview) -> None:
    failed: list[object] = []

    def serve(worker: int) -> None:
        framework.make_current()
        for i in range(20):
            own = Block(arena, worker << 18)
            batch = begin(card, own, 100 * worker + i)
            batch.bring([("y", framework.from_dlpack(batch.arrays["x"]))], own.room)
            [(_, y)] = batch.wait()
            if (y != 100 * worker + i).any():
                failed.append((worker, i))

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed


def test_arrays_that_are_not_dense_are_copied_first(
    card: Card, framework: Framework, block: Block
) -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4).T
    batch = card.begin({"x": x})
    batch.bring([("y", framework.from_dlpack(batch.arrays["x"]))], block.room)
    np.testing.assert_array_equal(batch.wait()[0][1], x)


def test_same_bytes_twice(card: Card, framework: Framework, block: Block) -> None:
    x = block.array(np.arange(5))
    batch = card.begin({"a": x, "b": x, "c": x[2:4]})
    outputs = [(name, framework.from_dlpack(array)) for name, array in batch.arrays.items()]
    batch.bring(outputs, block.room)
    assert [y.tolist() for _, y in batch.wait()] == [[0, 1, 2, 3, 4]] * 2 + [[2, 3]]


def test_no_numbers_at_all(card: Card, block: Block) -> None:
    batch = card.begin({"words": np.array([b"a"], object)})
    batch.bring([("y", b"b")], block.room)
    assert batch.wait() == [("y", b"b")]
    with pytest.raises(RuntimeError, match=r"bring\(\)"):
        batch.wait()


def test_page_lock_is_refused(
    driver: SimulatedDriver, framework: Framework, arena: memoryview, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SIMULATED_CARD_PAGE_LOCK_ERROR", "801")
    card = Card.open(arena)
    assert card.why_not_page_locked == (
        "this card, driver or system cannot page-lock shared memory (CUDA_ERROR_NOT_SUPPORTED)"
    )
    block = Block(arena)
    batch = begin(card, block)
    batch.bring([("y", double(framework, batch.arrays["x"]))], block.room)
    assert batch.wait()[0][1][0] == 2
    del batch
    card.close()


@pytest.mark.parametrize("when", ["computing", "before"])
def test_lost_context(
    when: str, card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    assert not card.is_lost
    batch = begin(card, block)
    if when == "before":
        driver.break_context(700)
        with pytest.raises(CudaError, match="illegal memory access") as raised:
            batch.bring([], block.room)
        with pytest.raises(CudaError):
            batch.abandon()
    else:
        gate = threading.Event()
        framework.from_dlpack(batch.arrays["x"])
        framework.launch(lambda: gate.wait(10) and driver.break_context(719))
        batch.bring([], block.room)
        gate.set()
        with pytest.raises(CudaError, match="unspecified launch failure") as raised:
            batch.wait()
    assert raised.value.is_sticky
    assert card.is_lost
    with pytest.raises(CudaError):
        begin(card, block)
    # The errors hold the batch.
    del raised, batch
    gc.collect()


def test_what_fails_between_leaves_nothing(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    def no_room(specs: Sequence[OutputSpec]) -> list[np.ndarray[Any, Any]]:
        raise ResourceExhausted("full")

    for _ in range(2):
        batch = begin(card, block)
        with pytest.raises(ResourceExhausted):
            batch.bring([("y", double(framework, batch.arrays["x"]))], no_room)
        batch.abandon()
    del batch
    assert card.buffer_nbytes == 2 << 20
    assert not driver.log(Kind.COPY_OUT)
