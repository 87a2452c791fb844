"""Which models may be shown inputs that somebody else may change, and what such models do."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.in_tensorflow import bears_changing_inputs, savedmodel_bears_changing_inputs
from support.waiting import DEADLINE_S, wait_until
from support.worker_link import Model

from batchyard.pool.runtimes import graph_state
from batchyard.pool.runtimes.base import LoadedModel
from batchyard.pool.runtimes.python import PythonModel
from batchyard.pool.worker import process
from batchyard.pool.worker.intake import Ended
from batchyard.wire import arena, work
from batchyard.wire.control import WorkerSettings
from batchyard.wire.errors import Internal
from batchyard.wire.link import Link

Ask = Callable[..., Any]

# TensorFlow's graphs


@pytest.mark.parametrize(
    ("name", "bears"),
    [
        ("arithmetic", True),
        ("multiplies", True),
        ("multiplies_in_function", True),
        ("sorts_beside", True),
        ("sorts", False),
        ("finds_the_best", False),
        ("gathers", False),
        ("sorts_in_function", False),
        ("sorts_in_branch", False),
        ("sorts_before", False),
        ("looks_up", False),
    ],
)
def test_graphs(ask_tensorflow: Ask, name: str, bears: bool) -> None:
    assert ask_tensorflow(bears_changing_inputs, name) is bears


@pytest.mark.parametrize(
    ("kind", "bears"),
    [
        ("half_plus_two_tf2", True),
        ("image_mean", True),
        ("keras_export", True),
        ("sorted_rows", False),
        ("embedding", False),
    ],
)
def test_savedmodels(ask_tensorflow: Ask, savedmodels: Path, kind: str, bears: bool) -> None:
    assert ask_tensorflow(savedmodel_bears_changing_inputs, savedmodels / kind / "1") is bears


def node(name: str, op: str, *inputs: str, attr: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(name=name, op=op, input=list(inputs), attr=attr or {})


def calls(*functions: str) -> dict[str, Any]:
    """An attribute that names functions, as protocol buffers have it."""
    named = [SimpleNamespace(name=name) for name in functions]
    empty = SimpleNamespace(func=[])
    if len(named) == 1:
        attr = SimpleNamespace(HasField=lambda field: field == "func", func=named[0], list=empty)
    else:
        attr = SimpleNamespace(HasField=lambda _: False, list=SimpleNamespace(func=named))
    return {"f": attr}


def graph(*nodes: Any, **functions: Sequence[Any]) -> Any:
    library = [
        SimpleNamespace(signature=SimpleNamespace(name=name), node_def=list(body))
        for name, body in functions.items()
    ]
    return SimpleNamespace(node=nodes, library=SimpleNamespace(function=library))


X = node("x", "Placeholder")


@pytest.mark.parametrize("op", ["OfTomorrow", "relu", "ReluX", "XRelu", "Relu\n", ""])
def test_an_operation_that_is_not_known_is_not_trusted(op: str) -> None:
    assert graph_state.bears_changing_inputs(graph(X, node("y", "Relu", "x")), ["y:0"])
    assert not graph_state.bears_changing_inputs(graph(X, node("y", op, "x")), ["y:0"])


@pytest.mark.parametrize("op", ["Relu", "TopKV2"])
@pytest.mark.parametrize(
    ("caller", "attr"),
    [("PartitionedCall", calls("f")), ("f", None), ("PartitionedCall", calls("g", "f"))],
    ids=["called", "as an operation", "in a list"],
)
def test_functions_are_what_they_do(op: str, caller: str, attr: Any) -> None:
    body = [node("z", "PartitionedCall", attr=calls("inner"))]
    found = graph(
        X, node("y", caller, "x", attr=attr), f=body, g=[], inner=[node("w", op)], other=[]
    )
    assert graph_state.bears_changing_inputs(found, ["y:0"]) == (op == "Relu")


def test_a_function_that_calls_itself_ends() -> None:
    body = [node("z", "f")]
    assert graph_state.bears_changing_inputs(graph(X, node("y", "f", "x"), f=body), ["y:0"])


# Callables

SOURCE = """
import threading

calls = []

def doubles(inputs):
    calls.append({name: array.flags.writeable for name, array in inputs.items()})
    inputs["x"] *= 2
    return {"y": inputs["x"], "z": inputs["z"]}

def own(inputs):
    calls.append(1)
    raise ValueError("assignment destination is read-only")

def other(inputs):
    calls.append(1)
    raise ValueError("no such luck")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "writing_models.py"
    path.write_text(SOURCE)
    return path


def python_model(file: Path, name: str, **options: Any) -> tuple[PythonModel, list[Any]]:
    """A model, and what it notes of its calls."""
    model = PythonModel("m", f"{file}:{name}", None, **options)
    noted: list[Any] = model._found.function.__globals__["calls"]
    return model, noted


def inputs_of_client() -> dict[str, Any]:
    x, z = np.array([1.0, 2.0]), np.array([3.0])
    x.flags.writeable = False
    return {"x": x, "z": z}


def test_callables_are_shown_a_clients_memory_unless_exempted(file: Path) -> None:
    for value in (True, False):
        model, _ = python_model(file, "other", read_in_place=value)
        assert model.bears_changing_inputs is value
        assert not model.any_thread
    assert python_model(file, "other")[0].bears_changing_inputs


def test_a_callable_that_writes_gets_copies_from_then_on(file: Path) -> None:
    model, noted = python_model(file, "doubles")
    for _ in range(3):
        inputs = inputs_of_client()
        outputs = dict(model.run("serving_default", inputs))
        assert outputs["y"].tolist() == [2, 4]
        assert inputs["x"].tolist() == [1, 2]
        # What it may write to is not copied.
        assert outputs["z"] is inputs["z"]
    # It was called once too often, the first time.
    assert [seen["x"] for seen in noted] == [False, True, True, True]


@pytest.mark.parametrize(
    ("name", "read_only", "times"),
    [("other", True, 1), ("own", False, 1), ("own", True, 2)],
)
def test_other_errors_are_the_callables_own(
    file: Path, name: str, read_only: bool, times: int
) -> None:
    model, noted = python_model(file, name)
    inputs = inputs_of_client()
    inputs["x"].flags.writeable = not read_only
    with pytest.raises(Internal, match="model 'm': ValueError: "):
        model.run("serving_default", inputs)
    assert len(noted) == times


# Threads of a worker


class Bound(Model):
    """Minds on which thread it runs."""

    any_thread = False


class Serving:
    """A worker's threads, and the broker's end of their link."""

    def __init__(self, count: int, models: Sequence[LoadedModel], device: str = "cpu") -> None:
        fd = arena.create_memfd(4096, "test-arena")
        self._arena = arena.Mapping(fd)
        os.close(fd)
        self.link, theirs = Link.pair()
        self._before = set(threading.enumerate())
        self._batch_id = 0
        settings = WorkerSettings(0, 0, device, None, False, 0, 0, None, count, [])
        self._worker = process.Worker(settings, theirs, self._arena)
        self._worker._models.update({(f"m{i}", 1): model for i, model in enumerate(models)})

        def serve() -> None:
            with contextlib.suppress(Ended):
                self._worker.serve()

        threading.Thread(target=serve).start()

    @property
    def threads(self) -> set[threading.Thread]:
        # Those that are only being begun cannot be joined yet.
        return {thread for thread in threading.enumerate() if thread.is_alive()} - self._before

    def wait_for_threads(self, count: int) -> None:
        """One may answer a batch before the next is begun."""
        wait_until(lambda: len(self.threads) >= count, lambda: f"{count} threads: {self.threads}")
        assert len(self.threads) == count

    def attach(self, region: int) -> None:
        fd = arena.create_memfd(64, "test-region")
        self.link.send(work.Attach(region).to_wire(), [fd])
        os.close(fd)

    def run(self) -> None:
        """A batch, which is answered."""
        places: list[work.PlacedInput] = [("x", "uint8", (1,), work.ARENA, 0, 1)]
        # The worker may still be forgetting the last one when its answer is here.
        self._batch_id += 1
        execute = work.Execute(
            self._batch_id, "m0", 1, "s", 1, 1, False, places, [], 64, 1024, [], (0, 4096), []
        )
        self.link.send(execute.to_wire())
        assert select.select([self.link], [], [], DEADLINE_S)[0], "the worker does not answer"
        assert self.link.receive()[0][0] == work.Kind.DONE

    def close(self) -> None:
        self.link.close()
        self._worker._intake.end()
        for thread in self.threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        self._worker._intake.close()
        self._arena.close()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("kinds", "more"), [([Model], 1), ([Bound], 0), ([Model, Bound], 0), ([Bound, Model], 0)]
)
def test_only_models_that_do_not_mind_get_a_thread_more(
    count: int, kinds: Sequence[type[Model]], more: int
) -> None:
    """It gathers the next batch out of regions while one runs."""
    ran_on: set[int] = set()

    def note(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        ran_on.add(threading.get_ident())
        return inputs

    serving = Serving(count, [kind(note) for kind in kinds])
    try:
        serving.run()
        serving.wait_for_threads(count)
        for region in (1, 2):
            serving.attach(region)
            for _ in range(5):
                serving.run()
            serving.wait_for_threads(count + more)
        assert len(ran_on) <= count + more
    finally:
        serving.close()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("kinds", "more"), [([Model], 1), ([Model, Bound], 0)])
def test_on_a_gpu_they_have_it_from_the_start(
    count: int, kinds: Sequence[type[Model]], more: int
) -> None:
    """It launches the next batch behind the one that runs."""
    serving = Serving(count, [kind(lambda inputs: inputs) for kind in kinds], "gpu:0")
    try:
        for region in (1, 2):
            serving.run()
            serving.wait_for_threads(count + more)
            serving.attach(region)
    finally:
        serving.close()
