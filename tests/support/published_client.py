"""A client that nobody here wrote: the stubs of tensorflow-serving-api, in a process of its own.

PYTHONPATH=tests python -P tests/support/published_client.py HOST:PORT
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from support.published_messages import leave_tensorflow_out

_TIMEOUT_S = 30.0
_TESTS = Path(__file__).parent.parent


def answers_of(address: str) -> dict[str, str]:
    """What a server answers: text protobufs by the names of ``_requests``, or codes and details."""
    said = subprocess.run(
        [sys.executable, "-P", __file__, address],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
        timeout=100,
    ).stdout
    answers: dict[str, str] = json.loads(said)
    return answers


def _api(name: str) -> Any:
    """A module of the published package, which is not to be imported where it may be absent."""
    return importlib.import_module(f"tensorflow_serving.apis.{name}")


def _tensor(array: Any) -> Any:
    tensor_pb2 = importlib.import_module("tensorflow.core.framework.tensor_pb2")
    dims = {"dim": [{"size": size} for size in array.shape]}
    return tensor_pb2.TensorProto(dtype=1, tensor_shape=dims, float_val=array.ravel().tolist())


def _with_examples(request: Any) -> Any:
    for value in (1.0, 2.0, 5.0):
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return request


def _requests(predictions: Any, models: Any) -> dict[str, Callable[[], Any]]:
    x = np.array([[1.0], [2.0], [5.0]], np.float32)
    spec = {"name": "half_plus_two"}

    def predict(**fields: Any) -> Any:
        request = _api("predict_pb2").PredictRequest(**{"model_spec": spec, **fields})
        request.inputs["x"].CopyFrom(_tensor(x))
        return predictions.Predict(request, _TIMEOUT_S)

    def classify(signature: str) -> Any:
        request = _api("classification_pb2").ClassificationRequest(
            model_spec={**spec, "signature_name": signature}
        )
        return predictions.Classify(_with_examples(request), _TIMEOUT_S)

    def regress() -> Any:
        request = _api("regression_pb2").RegressionRequest(
            model_spec={**spec, "signature_name": "regress_x_to_y"}
        )
        return predictions.Regress(_with_examples(request), _TIMEOUT_S)

    def multi_inference() -> Any:
        request = _api("inference_pb2").MultiInferenceRequest()
        for method in ("regress", "classify"):
            request.tasks.add(
                method_name=f"tensorflow/serving/{method}",
                model_spec={**spec, "signature_name": f"{method}_x_to_y"},
            )
        return predictions.MultiInference(_with_examples(request), _TIMEOUT_S)

    def metadata() -> Any:
        request = _api("get_model_metadata_pb2").GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        response = predictions.GetModelMetadata(request, _TIMEOUT_S)
        signatures = _api("get_model_metadata_pb2").SignatureDefMap()
        assert response.metadata["signature_def"].Unpack(signatures)
        return signatures.signature_def["serving_default"]

    def status() -> Any:
        request = _api("get_model_status_pb2").GetModelStatusRequest(model_spec=spec)
        return models.GetModelStatus(request, _TIMEOUT_S)

    def reload() -> Any:
        request = _api("model_management_pb2").ReloadConfigRequest()
        request.config.model_config_list.config.add(name="a", base_path="/nowhere")
        return models.HandleReloadConfigRequest(request, _TIMEOUT_S)

    return {
        "predict": predict,
        "predict of some": lambda: predict(output_filter=["y"]),
        "predict of none": lambda: predict(output_filter=["z"]),
        "predict by nobody": lambda: predict(model_spec={"name": "nobody"}),
        "classify": lambda: classify("classify_x_to_y"),
        "classify by regress": lambda: classify("regress_x_to_y"),
        "regress": regress,
        "multi_inference": multi_inference,
        "metadata": metadata,
        "status": status,
        "reload": reload,
    }


def main() -> None:
    leave_tensorflow_out()
    answers = {}
    with grpc.insecure_channel(sys.argv[1]) as channel:
        predictions = _api("prediction_service_pb2_grpc").PredictionServiceStub(channel)
        models = _api("model_service_pb2_grpc").ModelServiceStub(channel)
        for name, ask in _requests(predictions, models).items():
            try:
                answers[name] = text_format.MessageToString(ask(), as_one_line=True)
            except grpc.RpcError as error:
                answers[name] = f"{error.code().name}: {error.details()}"
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
