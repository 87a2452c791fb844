"""Batches go to a simulated card and come back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.card_batches import Block, begin, double
from support.simulated_driver import Framework, Kind, SimulatedDriver

from batchyard.pool.gpu.card import Card, OutputSpec
from batchyard.pool.gpu.driver import CudaError
from batchyard.wire import dtypes
from batchyard.wire.errors import ResourceExhausted


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


def test_so_many_buffers_are_kept_as_were_in_use_at_once(card: Card, block: Block) -> None:
    for _ in range(2):
        batches = [begin(card, block) for _ in range(5)]
        kept = [batch.arrays["x"] for batch in batches]
        for batch in batches:
            batch.abandon()
        assert card.buffer_nbytes == 5 * (2 << 20)
        del kept, batch, batches
    # Of what models kept beyond that, one is.
    kept = []
    for _ in range(8):
        batch = begin(card, block)
        kept.append(batch.arrays["x"])
        batch.abandon()
    assert card.buffer_nbytes == 8 * (2 << 20)
    kept.clear()
    begin(card, block).abandon()
    assert card.buffer_nbytes == 6 * (2 << 20)


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


@pytest.mark.parametrize(
    ("name", "is_lost"),
    [
        # Not among the errors that CUDA's reference calls the end of a context.
        ("CUDA_ERROR_MPS_RPC_FAILURE", True),
        ("CUDA_ERROR_SYSTEM_NOT_READY", True),
        # A model captures a graph meanwhile.
        ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", False),
    ],
)
def test_a_card_is_lost_that_cannot_be_waited_for(
    name: str, is_lost: bool, card: Card, driver: SimulatedDriver
) -> None:
    cuda: Any = pytest.importorskip("cuda.bindings.driver")
    driver.break_context(int(getattr(cuda.CUresult, name)))
    assert card.is_lost == is_lost


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
