"""A worker's batches on the card, from their start by one thread to the answer by another."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.card_batches import double
from support.simulated_driver import Framework, Kind, SimulatedDriver, simulated_driver
from support.waiting import DEADLINE_S, wait_until
from support.worker_link import Model

from batchyard.pool.gpu.card import Card
from batchyard.pool.worker import card_execution
from batchyard.pool.worker.card_execution import CardExecution
from batchyard.pool.worker.intake import Assignment
from batchyard.pool.worker.loading import CannotServe, load
from batchyard.pool.worker.turns import Turns
from batchyard.pool.worker.worker_card import WorkerCard
from batchyard.wire import work
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.protocol import reply_offsets

Array = np.ndarray[Any, Any]
OUTPUTS = 1 << 20
REGION = 5


class Told:
    """What the broker is told, in place of ``Answers``."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[work.Done | work.Failed] = queue.SimpleQueue()
        self.on_replying: Callable[[work.Execute], None] = lambda execute: None

    def replying(self, execute: work.Execute) -> None:
        self.on_replying(execute)

    def answer(self, answer: work.Done | work.Failed, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        self.answers.put(answer)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def running() -> Turns:
    return Turns(1)


@pytest.fixture
def on_card(card: Card, told: Told, running: Turns) -> CardExecution:
    answers: Any = told
    return CardExecution(card, answers, running)


def batch(
    arena: memoryview,
    value: float = 1,
    output_nbytes: int = 4096,
    replies: list[tuple[int, int, int, int, int]] | None = None,
    region: Array | None = None,
) -> Assignment:
    """One row of four, all of one value."""
    memory = np.frombuffer(arena, np.uint8)
    memory[:16].view(np.float32)[:] = value
    places: list[work.PlacedInput] = [("x", "float32", (1, 4), work.ARENA, 0, 16)]
    execute = work.Execute(
        *(1, "m", 7, "s", 1, 1, False, places, []),
        *(OUTPUTS, output_nbytes, replies or [], (0, 4096), [(1, 0, 1, 0, 1)]),
    )
    return Assignment(execute, memory, {} if region is None else {REGION: region})


def finish(on_card: CardExecution) -> None:
    """All that was started."""
    on_card.end()
    on_card.finish_all()


def outputs(arena: memoryview, answer: Any) -> list[list[float]]:
    assert isinstance(answer, work.Done), answer
    found = []
    for _, dtype, shape, offset, _ in answer.outputs:
        assert offset is not None
        found.append(np.ndarray(shape, dtype, arena, offset).ravel().tolist())
    return found


def test_outputs_in_host_memory_alone_are_those_of_the_call(
    on_card: CardExecution, told: Told, arena: memoryview
) -> None:
    same = np.zeros((1, 4), np.float32)
    calls = iter((1, 2))

    def function(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        same[...] = next(calls)
        return {"y": same}

    model = Model(function)
    on_card.start(batch(arena), model)
    first = arena[OUTPUTS : OUTPUTS + 16].tobytes()
    on_card.start(batch(arena), model)
    finish(on_card)
    assert np.frombuffer(first, np.float32).tolist() == [1] * 4
    assert told.answers.get().batch_id == 1
    assert outputs(arena, told.answers.get()) == [[2] * 4]


def test_a_model_is_called_in_its_turn(
    on_card: CardExecution, told: Told, running: Turns, arena: memoryview
) -> None:
    def function(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"y": np.full((1, 4), running.acquire(blocking=False))}

    on_card.start(batch(arena), Model(function))
    finish(on_card)
    assert outputs(arena, told.answers.get()) == [[False] * 4]


def test_one_that_raised_is_answered_when_the_card_is_done_with_it(
    on_card: CardExecution,
    told: Told,
    framework: Framework,
    arena: memoryview,
    driver: SimulatedDriver,
) -> None:
    def function(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        framework.from_dlpack(inputs["x"])
        framework.launch(lambda: time.sleep(0.05))
        raise ValueError("no")

    on_card.start(batch(arena), Model(function))
    finish(on_card)
    assert isinstance(told.answers.get(), work.Failed)
    assert driver.log(Kind.KERNEL)[-1].is_end


@pytest.mark.parametrize("output_nbytes", [4096, 0])
def test_replies_are_announced_before_they_are_written(
    output_nbytes: int, on_card: CardExecution, told: Told, framework: Framework, arena: memoryview
) -> None:
    region = np.zeros(4096, np.uint8)
    seen = []
    told.on_replying = lambda execute: seen.append(region.any())
    replies = [(REGION, 64, reply_offsets([16])[-1], 0, 1)]
    descriptors = len(os.listdir("/proc/self/fd"))
    model = Model(lambda inputs: {"y": double(framework, inputs["x"])})
    on_card.start(batch(arena, 3, output_nbytes, replies, region), model)
    finish(on_card)
    assert seen == [False]
    assert region[64:80].view(np.float32).tolist() == [6] * 4
    done = told.answers.get()
    assert isinstance(done, work.Done)
    assert (done.outputs, done.replied) == ([("y", "float32", (1, 4), None, 0)], True)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_frameworks_give_memory_back_before_a_batch_has_none(
    on_card: CardExecution,
    told: Told,
    arena: memoryview,
    driver: SimulatedDriver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver.cards.set_total(driver.used)
    given_back = []

    def give_back() -> None:
        given_back.append(True)
        driver.cards.set_total(16 << 30)

    monkeypatch.setattr(card_execution, "give_back_cached_memory", give_back)
    on_card.start(batch(arena), Model(lambda inputs: {"y": np.ones((1, 4), np.float32)}))
    finish(on_card)
    assert outputs(arena, told.answers.get()) == [[1] * 4]
    assert given_back


def test_nothing_of_the_last_batch_is_held_while_none_comes(
    on_card: CardExecution, told: Told, arena: memoryview
) -> None:
    finishing = threading.Thread(target=on_card.finish_all)
    finishing.start()
    model = Model(lambda inputs: {"y": np.ones((1, 4), np.float32)})
    gone = weakref.ref(model)
    on_card.start(batch(arena), model)
    del model
    told.answers.get(timeout=DEADLINE_S)
    try:
        wait_until(lambda: gone() is None, "the model is let go of")
    finally:
        on_card.end()
        finishing.join(DEADLINE_S)


def breaks(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model: breaks the card's context, and answers all the same."""
    simulated_driver().break_context(700)
    return {"y": np.ones((1, 4), np.float32)}


def test_a_model_that_breaks_the_card_in_warm_up_does_not_load(card: Card) -> None:
    tensor = {"dtype": "float32", "shape": [-1, 4]}
    signature = {"inputs": {"x": tensor}, "outputs": {"y": tensor}}
    path = f"{Path(__file__)}:breaks"
    source = ModelSource("m", 1, "python", path, [1], signature, device_arrays=True)
    settings = WorkerSettings(0, 0, "gpu:0", None, False, 0, 0, None, 1, [source])
    with pytest.raises(CannotServe, match="broke the card's context when it was warmed up"):
        load(source, settings, lambda share, what: None, WorkerCard(card))
