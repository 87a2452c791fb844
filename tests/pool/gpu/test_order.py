"""Nothing happens on the card before it may, and what may happens at once."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
from support.card_batches import ROWS, Block, begin, double
from support.simulated_driver import Framework, Kind, SimulatedDriver, Tensor

from batchyard.pool.gpu.card import Card, CardBatch
from batchyard.pool.gpu.driver import CudaError
from batchyard.wire.errors import ResourceExhausted

# Long enough for who does not wait to be seen.
_SLOW_S = 0.05


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


def test_it_does_so_again_and_again(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batches: list[tuple[CardBatch, threading.Event]] = []
    for i in range(6):
        batch = begin(card, block)
        # From the third on in a buffer that was used before; and the one before computes still.
        card.driver.synchronize_stream(card.copy_in)
        ended = [entry for entry in driver.log(Kind.KERNEL) if entry.is_end]
        assert len(ended) == max(0, i - 1)
        gate = threading.Event()
        batch.bring([("y", double(framework, batch.arrays["x"], gate))], block.room)
        batches.append((batch, gate))
        if i:
            before, gate = batches[-2]
            gate.set()
            before.wait()
    gate = batches[-1][1]
    gate.set()
    batch.wait()
    assert card.buffer_nbytes == 2 * (2 << 20)


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
    begin(card, block, 6).abandon()
    assert kept.array[0] == 5
    # The model reads it again, and lets go of it. While that is so, others are used, or new ones.
    gate = threading.Event()
    framework.launch(lambda: gate.wait(10) and None)
    del kept
    batches = [begin(card, block, 7) for _ in range(2)]
    assert pointer not in {batch.arrays["x"].pointer for batch in batches}
    assert card.buffer_nbytes == 3 * (2 << 20)
    # Where there is no memory for one, its transfer waits for the reading.
    card.driver.synchronize_stream(card.copy_in)
    driver.clear_log()
    driver.cards.set_total(driver.used)
    batches.append(begin(card, block, 8))
    assert batches[-1].arrays["x"].pointer == pointer
    assert not driver.log(Kind.COPY_IN)
    gate.set()
    for batch in batches:
        batch.abandon()
    ends = [entry.kind for entry in driver.log(Kind.KERNEL, Kind.COPY_IN) if entry.is_end]
    assert ends == [Kind.KERNEL, Kind.COPY_IN]


@pytest.mark.parametrize("when", ["before the worker looks", "while an input is kept"])
def test_streams_that_a_model_has_ended(
    when: str, card: Card, framework: Framework, block: Block
) -> None:
    # Its stream is used again: else the next would lie where that of the model lay.
    first = begin(card, block)
    first.bring([], block.room)
    first.wait()
    stream = card.driver.stream()
    batch = begin(card, block, 5)
    kept: Any = batch.arrays["x"].__dlpack__(stream=card.driver.address(stream))
    y = double(framework, batch.arrays["x"])
    if when == "before the worker looks":
        card.driver.destroy_stream(stream)
    batch.bring([("y", y)], block.room)
    assert batch.wait()[0][1][0] == 10
    if when == "while an input is kept":
        card.driver.destroy_stream(stream)
    del kept, y
    begin(card, block, 6).abandon()
    assert not card.is_lost


def test_no_third_buffer_only_because_two_are_still_read(
    card: Card, framework: Framework, block: Block
) -> None:
    kept = []
    for _ in range(2):
        batch = begin(card, block)
        kept.append(framework.from_dlpack(batch.arrays["x"]))
        batch.bring([], block.room)
        batch.wait()
    gate = threading.Event()
    framework.launch(lambda: gate.wait(10) and None)
    kept.clear()
    batch = begin(card, block)
    assert card.buffer_nbytes == 2 * (2 << 20)
    gate.set()
    batch.abandon()


def test_a_batch_takes_no_time_while_the_one_before_computes(
    card: Card, framework: Framework, block: Block
) -> None:
    gate = threading.Event()
    batches, lefts = [], []
    for _ in range(2):
        batch = begin(card, block)
        batch.bring([("y", double(framework, batch.arrays["x"], gate))], block.room)
        batches.append(batch)
        lefts.append(card.last_left)
    # The second's inputs are there long before the first is done.
    card.driver.synchronize_stream(card.copy_in)
    gate.set()
    for batch in batches:
        batch.wait()
    first, second = (left.handle for left in lefts if left is not None)
    assert batches[1].seconds == card.driver.seconds_between(first, second)


def test_wait_covers_transfers_in_that_nobody_reads(
    card: Card, block: Block, driver: SimulatedDriver
) -> None:
    driver.cards.set_bytes_per_s(int(4 * ROWS / _SLOW_S))
    batch = begin(card, block)
    batch.bring([], block.room)
    assert batch.wait() == []
    assert driver.log(Kind.COPY_IN)[-1].is_end


def test_wait_covers_transfers_out(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batch = begin(card, block)
    driver.cards.set_bytes_per_s(int(4 * ROWS / _SLOW_S))
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


def test_kernels_wait_for_the_transfer_in(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    with driver.held(Kind.COPY_IN):
        batch = begin(card, block)
        y = double(framework, batch.arrays["x"])
        batch.bring([("y", y)], block.room)
    batch.wait()
    order = [entry.kind for entry in driver.log(Kind.COPY_IN, Kind.KERNEL)]
    assert order == [Kind.COPY_IN] * 2 + [Kind.KERNEL] * 2


def test_outputs_are_kept_until_they_were_copied(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batch = begin(card, block)
    y = double(framework, batch.arrays["x"])
    kept = weakref.ref(y)
    with driver.held(Kind.COPY_OUT):
        batch.bring([("y", y)], block.room)
        del y
        assert kept() is not None
    batch.wait()
    assert kept() is None


def test_transfers_that_were_begun_end_when_one_fails(
    card: Card, block: Block, driver: SimulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_in, count = card.driver.copy_in, itertools.count()

    def fails_once(*arguments: Any) -> None:
        if next(count) == 1:
            raise CudaError("CUDA_ERROR_OUT_OF_MEMORY", "no")
        copy_in(*arguments)

    monkeypatch.setattr(card.driver, "copy_in", fails_once)
    driver.cards.set_bytes_per_s(int(4 * ROWS / _SLOW_S))
    x = block.array(np.zeros(ROWS, np.float32))
    block.array(np.zeros(64, np.uint8))
    with pytest.raises(ResourceExhausted, match="the card has no memory left: no"):
        card.begin({"x": x, "y": block.array(np.zeros(ROWS, np.float32))})
    assert driver.log(Kind.COPY_IN)[-1].is_end


def test_abandon_waits(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    batch = begin(card, block)
    framework.from_dlpack(batch.arrays["x"])
    framework.launch(lambda: time.sleep(_SLOW_S))
    batch.abandon()
    assert driver.log(Kind.KERNEL)[-1].is_end


def test_abandon_waits_for_transfers_while_a_stream_is_captured(
    card: Card, block: Block, driver: SimulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "a stream is captured")

    driver.cards.set_bytes_per_s(int(4 * ROWS / _SLOW_S))
    batch = begin(card, block)
    monkeypatch.setattr(card.driver, "synchronize", refuse)
    batch.abandon()
    assert driver.log(Kind.COPY_IN)[-1].is_end
    # The card's own end waits as usual.
    monkeypatch.undo()


def test_memory_that_a_model_returns_each_time(
    card: Card, framework: Framework, block: Block, driver: SimulatedDriver
) -> None:
    static = framework.empty((ROWS,), np.float32)
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
