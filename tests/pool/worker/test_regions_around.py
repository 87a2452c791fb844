"""What a worker does with regions around a run: what models keep, and the batch after."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from support.waiting import DEADLINE_S, wait_until
from support.worker_link import Array, Broker, Function, worker_link

from batchyard.pool.worker import kept_inputs
from batchyard.wire import work

ONE, TWO = 1, 2


@pytest.fixture
def broker() -> Iterator[Broker]:
    with worker_link() as made:
        yield made


def put(memory: memoryview, offset: int, array: Array) -> int:
    """Writes an array; how many bytes it has."""
    memory[offset : offset + array.nbytes] = array.tobytes()
    return int(array.nbytes)


def values(memory: memoryview, offset: int, count: int) -> list[Any]:
    """``count`` float32."""
    array: list[Any] = np.frombuffer(memory, np.float32, count, offset).tolist()
    return array


def returns(*outputs: Array) -> Function:
    return lambda _: {f"y{i}": array for i, array in enumerate(outputs)}


def floats(*items: float) -> Array:
    return np.array(items, np.float32)


# Inputs that a model keeps


def test_an_input_in_a_region_that_the_model_keeps_is_told_of(broker: Broker) -> None:
    kept: list[Array] = []

    def keep(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        kept.append(inputs["x"])
        return {}

    broker.serve(keep)
    put(broker.attach(ONE), 64, floats(1))
    broker.send(batch_id=3, placed=[("x", "float32", (1,), ONE, 64, 4)])
    assert broker.done().kept
    broker.detach(ONE)
    assert kept[0].tolist() == [1]
    kept.clear()
    assert broker.receive() == ([work.Kind.RELEASED, 3], [])


def test_a_batch_that_keeps_two_memories_is_released_once(broker: Broker) -> None:
    kept: list[Array] = []

    def keep(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if not inputs:
            return {}
        kept.extend(inputs.values())
        return {}

    broker.serve(keep)
    put(broker.attach(ONE), 64, floats(1))
    broker.send(batch_id=3, placed=[("x", "float32", (1,), ONE, 64, 4)], a=floats(2))
    assert broker.done().kept
    kept.pop(0)
    # Not yet: the other is read still, also when another batch has come and gone.
    broker.send(batch_id=4)
    assert broker.done().batch_id == 4
    assert broker.hears_nothing()
    kept.clear()
    assert broker.receive() == ([work.Kind.RELEASED, 3], [])


class KeepsUntilAskedTwice:
    """Another thread of the model reads the input a moment longer."""

    def __init__(self) -> None:
        self.kept: list[Array] = []
        self.asked = 0

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.kept.extend(inputs.values())
        return {}

    def let_go(self) -> None:
        self.asked += 1
        if self.asked == 2:
            self.kept.clear()


@pytest.mark.parametrize("in_region", [True, False])
def test_a_client_that_waits_for_its_memory_is_worth_asking_twice(
    broker: Broker, in_region: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A garbage collection of all that tests have loaded may take longer than a worker's patience.
    monkeypatch.setattr(kept_inputs, "_REGION_PATIENCE_S", DEADLINE_S)
    model = KeepsUntilAskedTwice()
    broker.serve(model)
    if in_region:
        put(broker.attach(ONE), 64, floats(1))
        broker.send(placed=[("x", "float32", (1,), ONE, 64, 4)])
    else:
        broker.send(x=floats(1))
    assert broker.done().kept != in_region
    if not in_region:
        assert broker.receive() == ([work.Kind.RELEASED, 1], [])


# The thread that gathers ahead


class Gate:
    """A model whose runs wait until they are let through; counts them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.entered = 0
        self.permits = threading.Semaphore(0)

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        with self.lock:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)
        assert self.permits.acquire(timeout=DEADLINE_S)
        with self.lock:
            self.inside -= 1
        return {"y": inputs["x"].copy()}


def test_without_regions_there_is_no_thread_more(broker: Broker) -> None:
    broker.serve(returns(floats(1)), threads=2)
    broker.send()
    broker.done()
    assert broker.threads == 2


def test_the_next_batch_is_gathered_while_one_runs(broker: Broker) -> None:
    gate = Gate()
    broker.serve(gate)
    memory = broker.attach(ONE)
    for i in range(2):
        put(memory, 64 * i, floats(i + 1))
        broker.send(
            batch_id=i,
            placed=[("x", "float32", (1,), work.ARENA, 4096 * (i + 1), 4)],
            copies=[(ONE, 64 * i, 4096 * (i + 1), 4)],
        )
    target = broker.arena.memory
    wait_until(lambda: values(target, 2 * 4096, 1) == [2], "the second batch is gathered")
    wait_until(lambda: gate.entered == 1, "one of them runs")
    assert broker.hears_nothing()
    # Rewritten now, the client's memory changes nothing.
    memory[:128] = bytes(128)
    found = {}
    for _ in range(2):
        gate.permits.release()
        done = broker.done()
        # Here both write to the same place; the other waits for its permit.
        found[done.batch_id] = broker.outputs(done)["y"].tolist()
    assert found == {0: [1], 1: [2]}
    assert gate.most == 1
    assert broker.threads == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_models_run_than_threads_were_asked_for(broker: Broker, threads: int) -> None:
    gate = Gate()
    broker.serve(gate, threads=threads)
    broker.attach(ONE)
    batches = 3 * (threads + 1)
    for i in range(batches):
        broker.send(batch_id=i, offset=1024 * i, output_nbytes=64, x=floats(i))
    for n in range(batches):
        expected = min(n + threads, batches)
        wait_until(lambda e=expected: gate.entered == e, f"{expected} runs have begun")  # type: ignore[misc]
        gate.permits.release()
    assert {broker.done().batch_id for _ in range(batches)} == set(range(batches))
    assert gate.most == threads
    assert broker.threads == threads + 1
