"""SavedModels that XLA compiles: for the batch sizes that are allowed, before they are served."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.in_tensorflow import (
    compilations,
    describe,
    functions_left,
    keeps_inputs,
    load,
    run,
    run_compiled,
)

from batchyard.wire.control import ModelSource

Ask = Callable[..., Any]
SIZES = [1, 2, 4]


def source(path: Path) -> ModelSource:
    return ModelSource("m", 1, "savedmodel", str(path), SIZES, None, jit_compile=True)


def rows(count: int) -> dict[str, Any]:
    return {"x": np.arange(4 * count, dtype=np.float32).reshape(count, 4)}


def test_compiles_for_the_allowed_sizes_and_not_while_it_serves(
    ask_tensorflow: Ask, savedmodels: Path
) -> None:
    sizes = (4, 1, 2, 1, 3, 3)
    calls = [("serving_default", {"x": np.ones((rows, 1), np.float32)}) for rows in sizes]
    counts = ask_tensorflow(compilations, source(savedmodels / "half_plus_two_tf2" / "1"), *calls)
    loading, *serving = counts
    assert loading == len(SIZES)
    # Three rows are no size that is allowed.
    assert serving == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("kind", ["keras_module", "decides"])
def test_outputs_are_those_of_the_model_as_it_is(
    ask_tensorflow: Ask, savedmodels: Path, kind: str
) -> None:
    path = savedmodels / kind / "1"
    calls = [("serving_default", rows(2)), ("serving_default", {"x": -rows(4)["x"]})]
    for compiled, plain in zip(
        ask_tensorflow(run_compiled, path, *calls), ask_tensorflow(run, path, *calls), strict=True
    ):
        assert compiled.keys() == plain.keys()
        np.testing.assert_allclose(compiled["y"], plain["y"], rtol=1e-5)


def test_model_of_tensorflow_1_that_is_compiled_in_part(
    ask_tensorflow: Ask, savedmodels: Path
) -> None:
    path = savedmodels / "reads_reference" / "1"
    calls = [("serving_default", rows(1)), ("more", rows(1))]
    tripled, more = ask_tensorflow(run_compiled, path, *calls)
    assert tripled["y"].tolist() == [[0, 3, 6, 9]]
    assert more["y"].tolist() == [[5, 6, 7, 8]]


def test_what_xla_does_not_compile_runs_as_it_is(ask_tensorflow: Ask, savedmodels: Path) -> None:
    path = savedmodels / "decides" / "1"
    x = np.array([1.5, 20.25], np.float32)
    (outputs,) = ask_tensorflow(run_compiled, path, ("shown", {"x": x}))
    assert outputs["y"].tolist() == [8, 9]


def test_signatures_are_the_same(ask_tensorflow: Ask, savedmodels: Path) -> None:
    for kind in ("decides", "counter_resource"):
        path = savedmodels / kind / "1"
        specs, stateful = ask_tensorflow(describe, path)
        assert ask_tensorflow(describe, path, jit_compile=True) == (specs, stateful)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("counter", r"object by object.*set jit_compile = false.* reference type"),
        ("matrix_half_plus_two", r"none of .*set jit_compile = false.* operation VariableV2"),
        ("bad", r"/1: Cannot parse file"),
        ("empty", r"/1: SavedModel file does not exist"),
        ("keras_words", r"none of .*serving_default: input 'inputs' is of strings"),
    ],
)
def test_model_that_cannot_be_compiled_says_what_to_change(
    ask_tensorflow: Ask, savedmodels: Path, kind: str, reason: str
) -> None:
    path = savedmodels / kind / "1"
    report, refusal = ask_tensorflow(load, source(path))
    assert report is None
    assert refusal.startswith(f"model 'm' does not load: {path}: ")
    assert re.search(reason, refusal)


@pytest.mark.parametrize("way", ["session", "compiled", "functions"])
def test_no_way_to_call_holds_inputs(ask_tensorflow: Ask, savedmodels: Path, way: str) -> None:
    assert not ask_tensorflow(keeps_inputs, savedmodels / "product" / "1", way)


@pytest.mark.parametrize("way", ["compiled", "functions"])
def test_functions_go_with_their_model(ask_tensorflow: Ask, savedmodels: Path, way: str) -> None:
    """The garbage collector is told to leave what is loaded alone."""
    assert ask_tensorflow(functions_left, savedmodels / "product" / "1", way) <= 0


@pytest.mark.parametrize("runs", [run, run_compiled])
def test_half_precision_stays_what_it_is(
    ask_tensorflow: Ask, savedmodels: Path, runs: Callable[..., Any]
) -> None:
    names = ("serving_default", "half", "brain")
    outputs = ask_tensorflow(
        runs, savedmodels / "keras_mixed" / "1", *[(name, rows(2)) for name in names]
    )
    y = [output["y"] for output in outputs]
    assert [array.dtype.name for array in y] == ["float32", "float16", "bfloat16"]
    # Two bytes of the same numbers.
    np.testing.assert_allclose(y[1].astype(float), y[2].astype(float), rtol=2**-6)
