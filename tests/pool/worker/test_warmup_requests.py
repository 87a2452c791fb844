"""The requests that a SavedModel brings along for its own warm-up."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.in_tensorflow import load, read_warmup_records
from support.tf_records import write_records
from support.worker_process import saved_model

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.pool.worker.warmup_requests import WarmupRan, run_requests
from batchyard.wire.control import WarmupRequests
from batchyard.wire.errors import InvalidArgument, NotFound, Unimplemented
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.tensorflow_serving.messages import Example, PredictionLog
from batchyard.wire.tensorflow_serving.tensor_proto import from_array

Array = npt.NDArray[Any]
Ask = Callable[..., Any]

ONCE = WarmupRequests(1)
_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"
_X = TensorSpec("x", "float32", (None, None))
_EXAMPLES = (TensorSpec("inputs", "string", None),)
_SIGNATURES = (
    SignatureSpec("serving_default", (_X,), (TensorSpec("y", "float32", (None,)),), True),
    SignatureSpec("whole", (TensorSpec("x", "float32", (3,)),), (), False),
    SignatureSpec("classes", _EXAMPLES, (), True, _CLASSIFY),
    SignatureSpec("values", _EXAMPLES, (), True, _REGRESS),
)


class Model:
    """Remembers what it was run with."""

    signature_def = b""
    stateful = bears_changing_inputs = any_thread = False
    signatures: Sequence[SignatureSpec] = _SIGNATURES

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, list[Any]]]] = []

    def let_go(self) -> None:
        """It holds on to nothing."""

    def run(self, signature: str, inputs: Mapping[str, Array]) -> Sequence[tuple[str, Array]]:
        self.seen.append((signature, {name: array.tolist() for name, array in inputs.items()}))
        rows = len(next(iter(inputs.values())))
        return [("y", np.zeros((rows, 5), np.int8))]


def predict(x: Array, signature: str = "", name: str = "x", **fields: Any) -> Any:
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature
    request.inputs[name].CopyFrom(from_array(x))
    request.output_filter.extend(fields.get("output_filter", ()))
    return log


def example(**features: float) -> Any:
    message = Example()
    for name, value in features.items():
        message.features.feature[name].float_list.value.append(value)
    return message


def of_examples(kind: str, signature: str, *examples: Any) -> Any:
    log = PredictionLog()
    request = getattr(log, kind).request
    request.model_spec.signature_name = signature
    request.input.example_list.examples.extend(examples)
    return log


def multi_inference(*tasks: tuple[str, str]) -> Any:
    log = PredictionLog()
    request = log.multi_inference_log.request
    request.input.example_list_with_context.context.CopyFrom(example(x=2.0))
    request.input.example_list_with_context.examples.append(example(x2=3.0))
    for signature, method in tasks:
        request.tasks.add(method_name=method).model_spec.signature_name = signature
    return log


def ran(*logs: Any, how: WarmupRequests = ONCE) -> list[tuple[str, dict[str, list[Any]]]]:
    model = Model()
    run_requests(model, [log.SerializeToString() for log in logs], how)
    return model.seen


def rows(count: int, length: int = 1) -> Array:
    return np.arange(count * length, dtype=np.float32).reshape(count, length)


def test_each_kind_of_record_runs() -> None:
    seen = ran(
        predict(rows(2)),
        of_examples("classify_log", "classes", example(x=1.0), example(x=2.0)),
        of_examples("regress_log", "values", example(x=1.0)),
        multi_inference(("classes", _CLASSIFY), ("values", _REGRESS)),
        PredictionLog(),
    )
    assert [(name, {key: len(x) for key, x in inputs.items()}) for name, inputs in seen] == [
        ("serving_default", {"x": 2}),
        ("classes", {"inputs": 2}),
        ("values", {"inputs": 1}),
        ("classes", {"inputs": 1}),
        ("values", {"inputs": 1}),
    ]
    merged = Example.FromString(seen[-1][1]["inputs"][0])
    assert {name: list(f.float_list.value) for name, f in merged.features.feature.items()} == {
        "x": [2.0],
        "x2": [3.0],
    }


def test_each_runs_as_often_as_asked() -> None:
    assert len(ran(predict(rows(1)), predict(rows(2)), how=WarmupRequests(3))) == 6


def test_they_are_cut_and_padded_as_batches_are() -> None:
    how = WarmupRequests(1, 4, [2, 4], [3])
    shapes = [np.shape(inputs["x"]) for _, inputs in ran(predict(rows(5, 2)), how=how)]
    assert shapes == [(4, 3), (2, 3)]
    ((_, inputs),) = ran(predict(np.float32([[7, 8]])), how=how)
    # Rows repeat the last, lengths the first element of the request's tensor.
    assert inputs == {"x": [[7, 8, 7], [7, 8, 7]]}


def test_what_is_not_batched_runs_as_it_is() -> None:
    how = WarmupRequests(1, 2, [2], [8])
    assert ran(predict(rows(3)[:, 0], "whole"), how=how) == [("whole", {"x": [0, 1, 2]})]


def test_what_outputs_take() -> None:
    record = predict(rows(3)).SerializeToString()
    assert run_requests(Model(), [record] * 2, ONCE) == WarmupRan(2, {"serving_default": 5})


@pytest.mark.parametrize(
    ("log", "error", "message"),
    [
        (predict(rows(1), "none"), NotFound, "no signature 'none'; it has 'classes', "),
        (predict(rows(1), name="z"), InvalidArgument, "needs the inputs x, got z"),
        (predict(rows(1).astype(int)), InvalidArgument, "'x' has dtype int64, needs float32"),
        (predict(rows(1)[0]), InvalidArgument, r"'x' has shape \(1,\), needs \(\?, \?\)"),
        (predict(rows(1), output_filter=["z"]), InvalidArgument, "no output 'z'"),
        (of_examples("classify_log", "classes"), InvalidArgument, "Input is empty"),
        (
            of_examples("classify_log", "serving_default", example(x=1.0)),
            InvalidArgument,
            "needs the inputs x, got inputs",
        ),
        (
            multi_inference(("classes", "tensorflow/serving/predict")),
            Unimplemented,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (PredictionLog(session_run_log={}), Unimplemented, "Unsupported log_type for warmup"),
    ],
)
def test_what_cannot_run_is_named(log: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f": record 2: .*{message}"):
        ran(predict(rows(1)), log)


def test_what_is_no_prediction_log() -> None:
    with pytest.raises(InvalidArgument, match=": record 1: Failed to parse warmup record"):
        run_requests(Model(), [b"malformed_record"], ONCE)


def test_there_is_a_most_of_records() -> None:
    records = [b""] * 1000
    assert run_requests(Model(), records, ONCE).records == 1000
    with pytest.raises(InvalidArgument, match=r"Number of warmup records exceeds .* \(1000\)"):
        run_requests(Model(), [*records, b""], ONCE)


def test_a_file_that_is_no_tfrecord_file(ask_tensorflow: Ask, tmp_path: Path) -> None:
    path = tmp_path / "records"
    write_records(path, [b"one", b""])
    assert ask_tensorflow(read_warmup_records, path) == [b"one", b""]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelLoadError, match=f"{path}: .*; it must be a TFRecord file"):
        ask_tensorflow(read_warmup_records, path)


@pytest.fixture
def copied(savedmodels: Path, tmp_path: Path) -> Path:
    """A SavedModel with an empty folder for what it brings along."""
    folder = tmp_path / "1"
    shutil.copytree(savedmodels / "half_plus_two" / "00000123", folder)
    (folder / "assets.extra").mkdir()
    return folder


def test_a_model_loads_with_its_requests(ask_tensorflow: Ask, copied: Path) -> None:
    path = copied / "assets.extra" / "tf_serving_warmup_requests"
    good = of_examples("regress_log", "regress_x_to_y", example(x=2.0)).SerializeToString()
    write_records(path, [good])
    source = replace(saved_model(copied), warmup_requests=ONCE)
    report, _ = ask_tensorflow(load, source)
    nbytes = {each.spec.name: each.output_row_nbytes for each in report.signatures}
    # What is made up is no tf.Example with an x: only the request shows what is put out.
    assert nbytes["regress_x_to_y"] == 4
    assert nbytes["regress_x_to_y2"] is None
    write_records(path, [good, predict(rows(1), "none").SerializeToString()])
    report, reason = ask_tensorflow(load, source)
    assert report is None
    assert reason.startswith(f"model 'm' does not load: {path}: record 2: the model has no signatu")
    report, _ = ask_tensorflow(load, saved_model(copied))
    assert report is not None
