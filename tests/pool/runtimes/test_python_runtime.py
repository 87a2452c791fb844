"""Python callables as models: how they are found, what they declare, how they fail."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchyard.pool.runtimes import python
from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.pool.runtimes.python import PythonModel
from batchyard.wire.errors import Internal, OutOfRange, ResourceExhausted
from batchyard.wire.signatures import TensorSpec

SOURCE = """
import numpy as np
from batchyard.wire.errors import OutOfRange

NUMBER = 3

def double(inputs):
    return {"y": inputs["x"] * 2}

class Model:
    factor = 3
    def __call__(self, inputs):
        return {"y": inputs["x"] * self.factor}
    @staticmethod
    def half(inputs):
        return {"y": inputs["x"] / 2}

model = Model()

def two(inputs):
    return {"b": [1], "a": inputs["x"], "more": 0}

def listed(inputs):
    return [inputs["x"]]

def wrong(inputs):
    raise ValueError("no such luck")

def typed(inputs):
    raise OutOfRange("x is beyond 100")

def starved(inputs):
    raise MemoryError("2 GB")
"""
X = {"x": np.array([1.0, 2.0])}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "my_models.py"
    path.write_text(SOURCE)
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        if name.endswith("my_models"):
            del sys.modules[name]


def tensors(**specs: tuple[str, list[int]]) -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in specs.items()}


def run(path: str, signature: dict[str, Any] | None = None) -> dict[str, Any]:
    outputs = PythonModel("m", path, signature).run("serving_default", X)
    return {name: np.asarray(array).tolist() for name, array in outputs}


@pytest.mark.parametrize(
    ("attribute", "y"), [("double", [2, 4]), ("model", [3, 6]), ("Model.half", [0.5, 1])]
)
def test_file_and_callable(file: Path, attribute: str, y: list[float]) -> None:
    assert run(f"{file}:{attribute}") == {"y": y}


def test_module_and_callable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As for `python -m`: the folder that the server was started in.
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert run("my_models:double") == {"y": [2, 4]}


def test_files_of_one_name_are_told_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_text("def double(inputs):\n    return {'z': inputs['x']}\n")
    first = PythonModel("a", f"{file}:double", None)
    assert run(f"{other}:double") == {"z": [1, 2]}
    assert [name for name, _ in first.run("serving_default", X)] == ["y"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module_at_all:f", "ModuleNotFoundError"),
        ("/no/such/file.py:f", "FileNotFoundError"),
        ("{file}:nothing", "AttributeError"),
        ("{file}:NUMBER", "is not callable"),
        ("{broken}:f", "ZeroDivisionError: division by zero"),
        ("{syntax}:f", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_says_why(file: Path, tmp_path: Path, path: str, reason: str) -> None:
    broken, syntax = tmp_path / "broken.py", tmp_path / "syntax.py"
    broken.write_text("1 / 0\n")
    syntax.write_text("def f(:\n")
    path = path.format(file=file, broken=broken, syntax=syntax)
    with pytest.raises(ModelLoadError) as caught:
        PythonModel("m", path, None)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


def test_without_a_signature_anything_goes(file: Path) -> None:
    (spec,) = PythonModel("m", f"{file}:two", None).signatures
    assert (spec.name, spec.inputs, spec.outputs) == ("serving_default", (), ())
    assert spec.open
    assert spec.batched
    assert run(f"{file}:two") == {"b": [1], "a": [1, 2], "more": 0}


def test_signature_is_what_the_configuration_says(file: Path) -> None:
    signature = {
        "inputs": tensors(x=("float32", [-1, 3]), name=("string", [-1])),
        "outputs": tensors(y=("bfloat16", [-1, 2])),
    }
    (spec,) = PythonModel("m", f"{file}:double", signature).signatures
    assert spec.inputs == (
        TensorSpec("name", "string", (None,)),
        TensorSpec("x", "float32", (None, 3)),
    )
    assert spec.outputs == (TensorSpec("y", "bfloat16", (None, 2)),)
    assert spec.batched
    assert not spec.open


def test_fixed_first_dimension_is_not_batched(file: Path) -> None:
    for outputs in (tensors(y=("float32", [1])), tensors(y=("float32", []))):
        signature = {"inputs": tensors(x=("float32", [-1])), "outputs": outputs}
        (spec,) = PythonModel("m", f"{file}:double", signature).signatures
        assert not spec.batched


def test_declared_outputs_come_in_order_and_others_are_left_out(file: Path) -> None:
    signature = {
        "inputs": tensors(x=("float64", [-1])),
        "outputs": tensors(b=("int64", [-1]), a=("float64", [-1])),
    }
    outputs = PythonModel("m", f"{file}:two", signature).run("serving_default", X)
    assert [name for name, _ in outputs] == ["a", "b"]
    assert all(isinstance(array, np.ndarray) for _, array in outputs)


def test_missing_output_is_internal(file: Path) -> None:
    signature = {
        "inputs": tensors(x=("float64", [-1])),
        "outputs": tensors(z=("float64", [-1])),
    }
    with pytest.raises(Internal, match="model 'm' returned no output 'z'"):
        run(f"{file}:double", signature)


def test_what_is_no_dict_is_internal(file: Path) -> None:
    with pytest.raises(Internal, match="must return a dict of arrays, not list"):
        run(f"{file}:listed")


def test_exceptions_are_internal_and_typed_errors_stay(file: Path) -> None:
    with pytest.raises(Internal) as caught:
        run(f"{file}:wrong")
    assert caught.value.message == "model 'm': ValueError: no such luck"
    with pytest.raises(OutOfRange, match="x is beyond 100"):
        run(f"{file}:typed")


def test_without_memory_what_frameworks_keep_unused_is_given_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(python, "give_back_cached_memory", lambda: given_back.append(True))
    with pytest.raises(ResourceExhausted, match="model 'm': the worker has no memory left"):
        run(f"{file}:starved")
    assert given_back == [True]


def test_what_a_file_made_goes_with_the_model(tmp_path: Path) -> None:
    file = tmp_path / "heavy.py"
    file.write_text(
        "class Weights: pass\nweights = Weights()\ndef run(inputs): return {'y': weights}\n"
    )
    model = PythonModel("m", f"{file}:run", None)
    weights = weakref.ref(sys.modules["batchyard_model_heavy"].weights)
    # As a worker does when its models are loaded.
    gc.freeze()
    try:
        del model
        assert weights() is None
        assert "batchyard_model_heavy" not in sys.modules
    finally:
        gc.unfreeze()


def test_a_file_of_the_same_name_is_left(tmp_path: Path) -> None:
    models = []
    for folder in ("1", "2"):
        file = tmp_path / folder / "model.py"
        file.parent.mkdir()
        file.write_text(f"number = [{folder}]\ndef run(inputs): return {{'y': number}}\n")
        models.append(PythonModel("m", f"{file}:run", None))
    try:
        del models[0]
        [(_, y)] = models[0].run("serving_default", {})
        assert y.tolist() == [2]
        assert sys.modules["batchyard_model_model"].number == [2]
    finally:
        gc.unfreeze()
