"""Inputs that a model holds on to: their block comes back when it lets go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.worker_link import Array, Broker, worker_link

from batchyard.pool.worker import kept_inputs
from batchyard.wire import work


@pytest.fixture
def broker() -> Iterator[Broker]:
    with worker_link() as made:
        yield made


def test_inputs_that_the_model_keeps_are_released_later(broker: Broker) -> None:
    kept: list[Array] = []

    def keep(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        kept.append(inputs["x"][1:])
        return {}

    broker.serve(keep)
    broker.send(batch_id=3, x=np.arange(4))
    assert broker.done().kept
    assert kept[0].tolist() == [1, 2, 3]
    assert broker.hears_nothing()
    kept.clear()
    assert broker.receive() == ([work.Kind.RELEASED, 3], [])


def test_inputs_that_a_failed_run_keeps_are_released_later(broker: Broker) -> None:
    kept: list[Array] = []

    def keep(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        kept.append(inputs["x"])
        raise ValueError("and now?")

    broker.serve(keep)
    broker.send(batch_id=3, x=np.arange(4))
    assert broker.failed().kept
    kept.clear()
    assert broker.receive() == ([work.Kind.RELEASED, 3], [])


def test_inputs_in_a_cycle_are_collected_before_the_answer(broker: Broker) -> None:
    def tie(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        cycle: list[Any] = [inputs["x"]]
        cycle.append(cycle)
        return {}

    gc.disable()
    try:
        broker.serve(tie)
        broker.send(batch_id=3, x=np.arange(4))
        assert not broker.done().kept
    finally:
        gc.enable()


class KeepsUntilAsked:
    """Holds its input as TensorFlow may: until it is called again, or asked for the third time."""

    def __init__(self) -> None:
        self.kept: list[Array] = []
        self.asked = 0

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.kept.append(inputs["x"])
        return {}

    def let_go(self) -> None:
        self.asked += 1
        if self.asked == 3:
            self.kept.clear()


def test_a_model_is_asked_to_let_go_while_nothing_runs(broker: Broker) -> None:
    broker.serve(KeepsUntilAsked())
    broker.send(batch_id=3, x=np.arange(4))
    assert broker.done().kept
    assert broker.receive() == ([work.Kind.RELEASED, 3], [])


def test_strings_are_copies_and_need_no_release(broker: Broker) -> None:
    kept: list[Array] = []

    def keep(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        kept.append(inputs["x"])
        return {}

    broker.serve(keep)
    broker.send(x=np.array([b"abc"], object))
    assert not broker.done().kept
    assert kept[0].tolist() == [b"abc"]


def test_release_never_comes_before_the_answer(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker would hold the block for ever: it forgets a release that it does not expect."""
    kept: list[Array] = []

    def keep(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        kept.append(inputs["x"])
        return {}

    def finalize_then_drop(*args: Any) -> Any:
        # Another thread of the model lets go just then.
        finalizer = weakref.finalize(*args)
        kept.clear()
        return finalizer

    patched = SimpleNamespace(ref=weakref.ref, finalize=finalize_then_drop)
    monkeypatch.setattr(kept_inputs, "weakref", patched)
    broker.serve(keep)
    broker.send(batch_id=3, x=np.arange(4))
    kinds = [broker.receive()[0][0] for _ in range(2)]
    assert kinds == [work.Kind.DONE, work.Kind.RELEASED]
