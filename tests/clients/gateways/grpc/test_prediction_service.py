"""What the methods ask of inference, and how its answers are written."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from batchyard.clients.gateways.grpc.prediction_service import PredictionService
from batchyard.clients.gateways.inference import (
    Classifications,
    ModelSpec,
    Prediction,
    Regressions,
)
from batchyard.clients.gateways.served_model import ServedModel
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving import messages
from batchyard.wire.tensorflow_serving.example_requests import (
    ExamplesRequest,
    MultiExamplesRequest,
)

ANSWERED = ModelSpec("m", 3, None, "s")
LABELS = np.array([[b"a", b"\xc3\xa9"]], object)
SCORES = np.array([[0.5, 0.25]], np.float32)


class PlayedInference:
    """Gives ``result``, and keeps what it was asked."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.options: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        async def asked(*_: Any, **options: Any) -> Any:
            self.options = options
            return self.result

        return asked


def ask(method: str, request: Any, result: Any) -> tuple[bytes, dict[str, Any]]:
    """The response's bytes, and the options that inference got."""
    inference: Any = PlayedInference(result)
    call: Any = SimpleNamespace(timeout=1.5, request_id="r")
    response = asyncio.run(getattr(PredictionService(inference), method)(request, call))
    return response, inference.options


def examples(message_class: Any = ExamplesRequest) -> Any:
    request = message_class()
    request.input.example_list.examples.append(b"")
    if message_class is ExamplesRequest:
        request.model_spec.name = "m"
    else:
        request.tasks.add().model_spec.name = "m"
    return request


CLASSES = Classifications(ANSWERED, LABELS, SCORES)
VALUES = Regressions(ANSWERED, np.array([1.5], np.float32))
MODEL = ServedModel(3, messages.SignatureDefMap(), {})


@pytest.mark.parametrize(
    ("method", "request_", "result"),
    [
        ("predict", messages.PredictRequest(model_spec={"name": "m"}), Prediction(ANSWERED, {})),
        ("classify", examples(), CLASSES),
        ("regress", examples(), VALUES),
        ("multi_inference", examples(MultiExamplesRequest), [CLASSES, VALUES]),
    ],
)
def test_deadlines_and_names_are_passed_on(method: str, request_: Any, result: Any) -> None:
    _, options = ask(method, request_, result)

    assert options == {"timeout": 1.5, "request_id": "r"}


def test_metadata_is_asked_anew() -> None:
    request = messages.GetModelMetadataRequest(
        model_spec={"name": "m"}, metadata_field=["signature_def"]
    )

    _, options = ask("get_model_metadata", request, MODEL)

    assert options == {"timeout": 1.5, "fresh": True}


@pytest.mark.parametrize(
    ("classes", "scores", "expected"),
    [
        (LABELS, SCORES, [("a", 0.5), ("\u00e9", 0.25)]),
        (LABELS, None, [("a", 0.0), ("\u00e9", 0.0)]),
        (None, SCORES, [("", 0.5), ("", 0.25)]),
    ],
)
def test_classes_may_lack_labels_or_scores(classes: Any, scores: Any, expected: Any) -> None:
    response, _ = ask("classify", examples(), Classifications(ANSWERED, classes, scores))

    read = messages.ClassificationResponse.FromString(response)
    (found,) = read.result.classifications
    assert [(c.label, c.score) for c in found.classes] == expected
    assert read.model_spec == messages.ModelSpec(name="m", version={"value": 3}, signature_name="s")


def test_results_of_tasks_are_in_their_order() -> None:
    response, _ = ask("multi_inference", examples(MultiExamplesRequest), [VALUES, CLASSES])

    results = messages.MultiInferenceResponse.FromString(response).results
    assert [result.WhichOneof("result") for result in results] == [
        "regression_result",
        "classification_result",
    ]
    assert [one.value for one in results[0].regression_result.regressions] == [1.5]


def test_a_class_that_is_no_text() -> None:
    wrong = Classifications(ANSWERED, np.array([[b"\xff"]], object), None)

    with pytest.raises(InvalidArgument, match="is not UTF-8"):
        ask("classify", examples(), wrong)


def test_inputs_are_bounded() -> None:
    request = messages.PredictRequest(model_spec={"name": "m"})
    for i in range(1025):
        request.inputs[f"x{i}"].dtype = 1

    with pytest.raises(InvalidArgument, match="1025 inputs, at most 1024"):
        ask("predict", request, None)


def test_values_that_are_left_out_are_bounded_for_all_inputs_together() -> None:
    request = messages.PredictRequest(model_spec={"name": "m"})
    for i in range(2):
        proto = request.inputs[f"x{i}"]
        proto.dtype = 1
        proto.tensor_shape.dim.add(size=10 << 20)
        proto.float_val.append(1.0)

    with pytest.raises(InvalidArgument, match="values that are left out may take 67108864 bytes"):
        ask("predict", request, None)
