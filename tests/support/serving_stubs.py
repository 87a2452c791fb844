"""TensorFlow Serving's published stubs, in a process of its own: they are nobody's here.

    with stubs_process() as ask:
        ask(predict, "localhost:8500", "half_plus_two", [2.0])

Needs tensorflow-serving-api. Refusals are raised as ours of the same code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from support.asked_process import answer_questions, asked_process

from batchyard.wire.errors import from_wire

_TIMEOUT_S = 20.0
_FLOAT = 1


# Who answered: a model's name, version and signature.
Spec = tuple[str, int, str]


def stubs_process() -> AbstractContextManager[Callable[..., Any]]:
    """A function that has another one of this module run where the stubs are."""
    return asked_process(__file__)


def predict(
    address: str,
    model: str,
    x: Sequence[float],
    *,
    shape: Sequence[int] = (1,),
    signature: str = "serving_default",
    output_filter: Sequence[str] = (),
    **spec: Any,
) -> tuple[Mapping[str, list[float]], Spec]:
    """The floats of each output, from where TensorFlow Serving's own tests take them."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest(output_filter=output_filter)
    _write_spec(request.model_spec, model, signature, **spec)
    tensor = request.inputs["x"]
    tensor.dtype = _FLOAT
    tensor.float_val.extend(x)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    response = _call(_predictions(address).Predict, request)
    assert all(output.dtype == _FLOAT for output in response.outputs.values())
    outputs = {name: list(output.float_val) for name, output in response.outputs.items()}
    return outputs, _spec(response.model_spec)


def classify(
    address: str, model: str, signature: str, x: Sequence[float]
) -> tuple[list[list[tuple[str, float]]], Spec]:
    """Labels and scores of each example."""
    from tensorflow_serving.apis import classification_pb2

    request = classification_pb2.ClassificationRequest()
    _write_examples(request, model, signature, x)
    response = _call(_predictions(address).Classify, request)
    return _classes(response.result), _spec(response.model_spec)


def regress(
    address: str, model: str, signature: str, x: Sequence[float]
) -> tuple[list[float], Spec]:
    """The value of each example."""
    from tensorflow_serving.apis import regression_pb2

    request = regression_pb2.RegressionRequest()
    _write_examples(request, model, signature, x)
    response = _call(_predictions(address).Regress, request)
    return _values(response.result), _spec(response.model_spec)


def multi_inference(
    address: str, model: str, tasks: Sequence[tuple[str, str]], x: Sequence[float]
) -> list[tuple[Any, Spec]]:
    """The result of each task, ``(signature, classify or regress)``."""
    from tensorflow_serving.apis import inference_pb2

    request = inference_pb2.MultiInferenceRequest()
    for signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        _write_spec(task.model_spec, model, signature)
    _add_examples(request, x)
    response = _call(_predictions(address).MultiInference, request)
    return [
        (
            _values(result.regression_result)
            if result.HasField("regression_result")
            else _classes(result.classification_result),
            _spec(result.model_spec),
        )
        for result in response.results
    ]


def signatures(address: str, model: str) -> tuple[dict[str, str], Spec]:
    """The method of each signature."""
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    _write_spec(request.model_spec, model)
    response = _call(_predictions(address).GetModelMetadata, request)
    assert list(response.metadata) == ["signature_def"]
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    methods = {name: each.method_name for name, each in found.signature_def.items()}
    return methods, _spec(response.model_spec)


def statuses(address: str, model: str, **spec: Any) -> list[tuple[int, str, int]]:
    """Version, state and error code of each version."""
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    _write_spec(request.model_spec, model, **spec)
    response = _call(_models(address).GetModelStatus, request)
    states = get_model_status_pb2.ModelVersionStatus.State
    return [
        (status.version, states.Name(status.state), status.status.error_code)
        for status in response.model_version_status
    ]


def reload(address: str, folders: Mapping[str, str]) -> tuple[int, str]:
    """Code and message of a reload to these models."""
    from tensorflow_serving.apis import model_management_pb2

    request = model_management_pb2.ReloadConfigRequest()
    for name, folder in folders.items():
        request.config.model_config_list.config.add(
            name=name, base_path=folder, model_platform="tensorflow"
        )
    response = _call(_models(address).HandleReloadConfigRequest, request)
    return response.status.error_code, response.status.error_message


def _write_spec(
    message: Any,
    name: str,
    signature: str = "",
    *,
    version: int | None = None,
    label: str | None = None,
) -> None:
    message.name = name
    message.signature_name = signature
    if version is not None:
        message.version.value = version
    if label is not None:
        message.version_label = label


def _write_examples(request: Any, model: str, signature: str, x: Sequence[float]) -> None:
    _write_spec(request.model_spec, model, signature)
    _add_examples(request, x)


def _add_examples(request: Any, x: Sequence[float]) -> None:
    for value in x:
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)


def _classes(result: Any) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def _values(result: Any) -> list[float]:
    return [regression.value for regression in result.regressions]


def _spec(message: Any) -> Spec:
    return message.name, message.version.value, message.signature_name


def _call(method: Any, request: Any) -> Any:
    import grpc

    try:
        return method(request, _TIMEOUT_S)
    except grpc.RpcError as error:
        raise from_wire(error.code().value[0], error.details()) from None


@functools.cache
def _channel(address: str) -> Any:
    import grpc

    return grpc.insecure_channel(address)


def _predictions(address: str) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(_channel(address))


def _models(address: str) -> Any:
    from tensorflow_serving.apis import model_service_pb2_grpc

    return model_service_pb2_grpc.ModelServiceStub(_channel(address))


if __name__ == "__main__":
    from support.published_messages import leave_tensorflow_out

    leave_tensorflow_out()
    answer_questions(globals())
