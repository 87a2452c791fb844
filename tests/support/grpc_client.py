"""A client of the gRPC gateway, with the messages that Batchyard keeps of TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from batchyard.wire.tensorflow_serving import messages
from batchyard.wire.tensorflow_serving.tensor_proto import from_array, to_array

Array = npt.NDArray[Any]

TIMEOUT_S = 20.0
_RESPONSES = {
    "PredictionService": {
        "Predict": messages.PredictResponse,
        "Classify": messages.ClassificationResponse,
        "Regress": messages.RegressionResponse,
        "MultiInference": messages.MultiInferenceResponse,
        "GetModelMetadata": messages.GetModelMetadataResponse,
    },
    "ModelService": {
        "GetModelStatus": messages.GetModelStatusResponse,
        "HandleReloadConfigRequest": messages.ReloadConfigResponse,
    },
}


def predict_request(
    model: str, inputs: Mapping[str, Array], output_filter: Sequence[str] = (), **spec: Any
) -> Any:
    """The request for a model; ``spec`` has other fields of the ``ModelSpec``."""
    request = messages.PredictRequest(output_filter=output_filter)
    request.model_spec.CopyFrom(messages.ModelSpec(name=model, **spec))
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(from_array(np.asarray(array)))
    return request


class GrpcClient:
    """Calls the methods of both services at an address; use it as a context manager."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None = None, **options: Any
    ) -> None:
        arguments = [
            ("grpc.use_local_subchannel_pool", 1),
            *((f"grpc.{name}", value) for name, value in options.items()),
        ]
        self.channel = (
            grpc.insecure_channel(address, arguments)
            if credentials is None
            else grpc.secure_channel(address, credentials, arguments)
        )

    def method(self, name: str, service: str = "PredictionService") -> Any:
        """What sends a request, which is a message or bytes."""
        return self.channel.unary_unary(
            f"/tensorflow.serving.{service}/{name}",
            lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
            _RESPONSES[service][name].FromString,
        )

    def ask(self, name: str, request: Any, service: str = "PredictionService") -> Any:
        """The response of a method."""
        return self.method(name, service)(request, TIMEOUT_S)

    def predict(self, model: str, inputs: Mapping[str, Array], **more: Any) -> dict[str, Array]:
        """The outputs, as arrays."""
        response = self.ask("Predict", predict_request(model, inputs, **more))
        return {name: to_array(proto) for name, proto in response.outputs.items()}

    def refusal(self, name: str, request: Any, service: str = "PredictionService") -> str:
        """The code and the details with which a method refuses a request."""
        try:
            response = self.ask(name, request, service)
        except grpc.RpcError as error:
            return said(error)
        raise AssertionError(f"{name} answered {response}")

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.channel.close()


def said(error: Any) -> str:
    """``NOT_FOUND: …``"""
    return f"{error.code().name}: {error.details()}"
