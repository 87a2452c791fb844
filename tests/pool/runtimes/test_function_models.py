"""SavedModels called as functions, as they are where inputs are on a card: here on the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.in_tensorflow import (
    describe,
    describe_functions,
    published,
    run,
    run_functions,
    run_functions_at_once,
    run_misaligned,
    taken_by_dlpack,
)

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.wire import dtypes
from batchyard.wire.errors import Internal, InvalidArgument

Ask = Callable[..., Any]
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize("kind", ["decides", "counter_resource", "multi_io", "fixed_first_dim"])
def test_it_says_of_itself_what_a_session_says(
    ask_tensorflow: Ask, savedmodels: Path, kind: str
) -> None:
    path = savedmodels / kind / "1"
    specs, stateful = ask_tensorflow(describe, path)
    signature_def = ask_tensorflow(published, path)
    assert ask_tensorflow(describe_functions, path) == (specs, stateful, signature_def)


@pytest.mark.parametrize(
    ("kind", "jit_compile"), [("decides", False), ("decides", True), ("keras_mixed", False)]
)
def test_outputs_are_a_sessions(
    ask_tensorflow: Ask, savedmodels: Path, kind: str, jit_compile: bool
) -> None:
    path = savedmodels / kind / "1"
    names = ["serving_default"] + ["half", "brain"] * (kind == "keras_mixed")
    calls = [(name, {"x": x}) for name in names for x in (X, -X)]
    expected = ask_tensorflow(run, path, *calls)
    got = ask_tensorflow(run_functions, path, *calls, jit_compile=jit_compile)
    for outputs, right in zip(got, expected, strict=True):
        assert outputs["y"].dtype == right["y"].dtype
        np.testing.assert_allclose(outputs["y"], right["y"], rtol=1e-3)


@pytest.mark.parametrize(
    "dtype", [name for name in dtypes.NAMES if name != "string" and not name.startswith("float8")]
)
def test_memory_of_every_dtype_is_taken(ask_tensorflow: Ask, dtype: str) -> None:
    x = np.array([[1, 0, 1]]).astype(dtypes.to_numpy(dtype))
    taken = ask_tensorflow(taken_by_dlpack, x)
    assert taken.dtype == x.dtype
    assert taken.tolist() == x.tolist()
    assert ask_tensorflow(taken_by_dlpack, x[:0]).shape == (0, 3)


def test_strings_come_beside_numbers(ask_tensorflow: Ask, savedmodels: Path) -> None:
    inputs = {
        "name": np.array([b"you", b"me"], object),
        "b": X,
        "a": np.array([10, 20], np.int32),
    }
    call = ("serving_default", inputs)
    (outputs,) = ask_tensorflow(run_functions, savedmodels / "multi_io" / "1", call)
    assert list(outputs) == ["greeting", "pair", "total"]
    assert outputs["greeting"].tolist() == [b"hello you", b"hello me"]
    assert outputs["total"].tolist() == [16.0, 42.0]


def test_models_of_tensorflow_1(ask_tensorflow: Ask, savedmodels: Path) -> None:
    # Of another rank than declared, as TensorFlow Serving's own first example.
    calls = [("serving_default", {"x": np.array([1, 2], np.float32)})]
    path = savedmodels / "half_plus_two" / "00000123"
    (outputs,) = ask_tensorflow(run_functions, path, *calls)
    assert outputs["y"].tolist() == [2.5, 3.0]


def test_state_is_kept(ask_tensorflow: Ask, savedmodels: Path) -> None:
    calls = [("incr_counter", {})] * 2 + [("get_counter", {})]
    outputs = ask_tensorflow(run_functions, savedmodels / "counter_resource" / "1", *calls)
    assert [float(output["output"]) for output in outputs] == [1.0, 2.0, 2.0]


def test_several_threads_get_their_own_answers(ask_tensorflow: Ask, savedmodels: Path) -> None:
    values = [np.full((3, 4), n, np.float32) for n in range(1, 5)]
    answers = ask_tensorflow(run_functions_at_once, savedmodels / "decides" / "1", values)
    for x, outputs in zip(values, answers, strict=True):
        assert all((y == 2 * x + 3).all() for y in outputs)


def test_errors_are_a_sessions(ask_tensorflow: Ask, savedmodels: Path) -> None:
    path = savedmodels / "raises" / "1"
    x = {"x": np.array([100], np.float32)}
    said = []
    for way in (run, run_functions):
        with pytest.raises(InvalidArgument) as caught:
            ask_tensorflow(way, path, ("serving_default", x))
        said.append(caught.value.message)
    assert said[0] == said[1]


def test_misaligned_memory_is_an_error_and_not_the_end(
    ask_tensorflow: Ask, savedmodels: Path
) -> None:
    with pytest.raises(Internal, match="must be 64-byte aligned"):
        ask_tensorflow(run_misaligned, savedmodels / "half_plus_two_tf2" / "1")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("counter", r"object by object, which device_arrays needs \(set device_arrays = false\)"),
        ("dtypes", r"dtype float8_e4m3fn, which TensorFlow does not take by DLPack: set device_a"),
    ],
)
def test_what_cannot_be_called_so_says_what_to_change(
    ask_tensorflow: Ask, savedmodels: Path, kind: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        ask_tensorflow(describe_functions, savedmodels / kind / "1")
