"""SavedModels in TensorFlow's own words: what is loaded, what runs, what errors become.

TensorFlow is in a process of its own; see ``support.in_tensorflow``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.in_tensorflow import describe, published, run

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.wire import dtypes
from batchyard.wire.errors import InvalidArgument, NotFound
from batchyard.wire.signatures import TensorSpec
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap

Ask = Callable[..., Any]


def test_signatures_are_those_of_the_savedmodel(ask_tensorflow: Ask, savedmodels: Path) -> None:
    signatures, stateful = ask_tensorflow(describe, savedmodels / "half_plus_two" / "00000123")
    by_name = {spec.name: spec for spec in signatures}
    assert list(by_name) == [
        "classify_x_to_y",
        "regress_x2_to_y3",
        "regress_x_to_y",
        "regress_x_to_y2",
        "serving_default",
    ]
    default = by_name["serving_default"]
    assert default.inputs == (TensorSpec("x", "float32", (None, 1)),)
    assert default.outputs == (TensorSpec("y", "float32", (None, 1)),)
    assert default.method_name == "tensorflow/serving/predict"
    assert by_name["regress_x_to_y"].method_name == "tensorflow/serving/regress"
    # Of unknown rank, as TensorFlow Serving's own model has it.
    assert by_name["regress_x_to_y"].inputs == (TensorSpec("inputs", "string", None),)
    assert all(spec.batched for spec in signatures)
    assert not stateful


def test_the_signatures_as_the_savedmodel_has_them(ask_tensorflow: Ask, savedmodels: Path) -> None:
    serialized = ask_tensorflow(published, savedmodels / "half_plus_two" / "00000123")
    signatures = SignatureDefMap.FromString(serialized).signature_def
    regress = signatures["regress_x_to_y"]
    assert regress.method_name == "tensorflow/serving/regress"
    assert regress.inputs["inputs"].name == "tf_example:0"
    assert regress.inputs["inputs"].tensor_shape.unknown_rank
    assert [dim.size for dim in regress.outputs["outputs"].tensor_shape.dim] == [-1, 1]
    serialized = ask_tensorflow(published, savedmodels / "half_plus_two_tf2" / "1")
    # With the one that initialises it: TensorFlow Serving shows that too.
    assert "__saved_model_init_op" in SignatureDefMap.FromString(serialized).signature_def


@pytest.mark.parametrize(
    ("kind", "batched"),
    [("fixed_first_dim", False), ("scalar_input", False), ("unknown_rank", True)],
)
def test_what_can_be_batched(
    ask_tensorflow: Ask, savedmodels: Path, kind: str, batched: bool
) -> None:
    signatures, _ = ask_tensorflow(describe, savedmodels / kind / "1")
    assert [spec.batched for spec in signatures if not spec.name.startswith("_")] == [batched]


@pytest.mark.parametrize("kind", ["counter", "counter_resource"])
def test_counter_is_stateful_and_counts(ask_tensorflow: Ask, savedmodels: Path, kind: str) -> None:
    path = savedmodels / kind / "1"
    signatures, stateful = ask_tensorflow(describe, path)
    assert stateful
    # References are told by the type that they refer to.
    assert {spec.outputs[0].dtype for spec in signatures} == {"float32"}
    outputs = ask_tensorflow(
        run,
        path,
        ("incr_counter", {}),
        ("incr_counter_by", {"delta": np.float32(2.5)}),
        ("get_counter", {}),
    )
    assert [float(output["output"]) for output in outputs] == [1.0, 3.5, 3.5]


@pytest.mark.parametrize("x", [[[1.0], [2.0]], [1.0, 2.0]])
def test_shapes_are_checked_no_more_than_by_tensorflow_serving(
    ask_tensorflow: Ask, savedmodels: Path, x: Any
) -> None:
    """Its own first example feeds rank 1 to an input of shape (?, 1)."""
    call = ("serving_default", {"x": np.array(x, np.float32)})
    (outputs,) = ask_tensorflow(run, savedmodels / "half_plus_two" / "00000123", call)
    assert np.array_equal(outputs["y"], np.array(x) / 2 + 2)


def test_several_inputs_and_outputs(ask_tensorflow: Ask, savedmodels: Path) -> None:
    inputs = {
        "name": np.array([b"you", b"me"], object),
        "b": np.arange(8, dtype=np.float32).reshape(2, 4),
        "a": np.array([10, 20], np.int32),
    }
    default, second = ask_tensorflow(
        run, savedmodels / "multi_io" / "1", ("serving_default", inputs), ("second", inputs)
    )
    assert list(default) == ["greeting", "pair", "total"]
    assert default["greeting"].tolist() == [b"hello you", b"hello me"]
    assert default["pair"].shape == (2, 2, 2)
    assert default["total"].tolist() == second["amount"].tolist() == [16.0, 42.0]


def test_every_dtype_goes_in_and_out(ask_tensorflow: Ask, savedmodels: Path) -> None:
    signatures, _ = ask_tensorflow(describe, savedmodels / "dtypes" / "1")
    assert {spec.name for spec in signatures} == set(dtypes.NAMES)
    calls = []
    for name in dtypes.NAMES:
        x = np.array([[b"a\0", b""]], object) if name == "string" else np.array([[1, 0]])
        calls.append((name, {"x": x.astype(dtypes.to_numpy(name))}))
    for (name, inputs), outputs in zip(
        calls, ask_tensorflow(run, savedmodels / "dtypes" / "1", *calls), strict=True
    ):
        assert dtypes.from_numpy(outputs["y"].dtype) == name
        assert outputs["y"].tolist() == inputs["x"][:, ::-1].tolist()
    assert ml_dtypes.bfloat16 == dtypes.to_numpy("bfloat16")


def test_errors_keep_their_code_and_name_the_model(ask_tensorflow: Ask, savedmodels: Path) -> None:
    path = savedmodels / "raises" / "1"
    x = {"x": np.array([100], np.float32)}
    with pytest.raises(InvalidArgument) as caught:
        ask_tensorflow(run, path, ("serving_default", x))
    assert caught.value.message.startswith("model 'm' signature 'serving_default': ")
    assert "x is too large" in caught.value.message
    # What follows is TensorFlow's own trace.
    assert "[[" not in caught.value.message
    with pytest.raises(NotFound, match="/nonexistent/batchyard"):
        ask_tensorflow(run, path, ("missing", x))


def test_error_that_quotes_bytes_that_are_no_text(ask_tensorflow: Ask, savedmodels: Path) -> None:
    call = ("regress_x_to_y", {"inputs": np.array([b"\xff\xfe no example"], object)})
    with pytest.raises(InvalidArgument, match="model 'm' signature 'regress_x_to_y': "):
        ask_tensorflow(run, savedmodels / "half_plus_two" / "00000123", call)


def test_signatures_that_cannot_run_leave_the_others(
    ask_tensorflow: Ask, savedmodels: Path
) -> None:
    path = savedmodels / "partly_broken" / "1"
    signatures, _ = ask_tensorflow(describe, path)
    assert [spec.name for spec in signatures] == ["serving_default"]
    ((outputs),) = ask_tensorflow(run, path, ("serving_default", {"x": np.ones(3, np.float32)}))
    assert outputs["y"].tolist() == [2.0, 2.0, 2.0]


def test_an_operation_of_a_package_that_is_missing(ask_tensorflow: Ask, savedmodels: Path) -> None:
    said = r"/foreign_operation/1: operation 'NormalizeU8' is not .* tensorflow-text, "
    with pytest.raises(ModelLoadError, match=said):
        ask_tensorflow(describe, savedmodels / "foreign_operation" / "1")


@pytest.mark.parametrize("kind", ["bad", "empty", "no_signatures"])
def test_what_does_not_load_says_where(ask_tensorflow: Ask, savedmodels: Path, kind: str) -> None:
    path = savedmodels / kind / "1"
    with pytest.raises(ModelLoadError) as caught:
        ask_tensorflow(describe, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
