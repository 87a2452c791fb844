"""TensorFlow Serving's published messages, by their names.

``published.binpb`` is a ``FileDescriptorSet`` of what the package tensorflow-serving-api publishes
(Apache License 2.0; https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis), and
of what that needs of TensorFlow: ``tests/support/published_messages.py`` makes it. They live in a
pool of their own, beside which TensorFlow's can be loaded in the same process.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SERVING = "tensorflow.serving"
_TENSORFLOW = "tensorflow"


def _read_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    published = resources.files(__package__).joinpath("published.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(published).file:
        pool.Add(file)
    return pool


POOL = _read_pool()


def message_class(full_name: str) -> Any:
    """The class of a message such as ``tensorflow.serving.PredictRequest``. Raises KeyError."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


ModelSpec = message_class(f"{_SERVING}.ModelSpec")
PredictRequest = message_class(f"{_SERVING}.PredictRequest")
PredictResponse = message_class(f"{_SERVING}.PredictResponse")
Input = message_class(f"{_SERVING}.Input")
ClassificationRequest = message_class(f"{_SERVING}.ClassificationRequest")
ClassificationResponse = message_class(f"{_SERVING}.ClassificationResponse")
RegressionRequest = message_class(f"{_SERVING}.RegressionRequest")
RegressionResponse = message_class(f"{_SERVING}.RegressionResponse")
MultiInferenceRequest = message_class(f"{_SERVING}.MultiInferenceRequest")
MultiInferenceResponse = message_class(f"{_SERVING}.MultiInferenceResponse")
GetModelMetadataRequest = message_class(f"{_SERVING}.GetModelMetadataRequest")
GetModelMetadataResponse = message_class(f"{_SERVING}.GetModelMetadataResponse")
SignatureDefMap = message_class(f"{_SERVING}.SignatureDefMap")
GetModelStatusRequest = message_class(f"{_SERVING}.GetModelStatusRequest")
GetModelStatusResponse = message_class(f"{_SERVING}.GetModelStatusResponse")
ReloadConfigRequest = message_class(f"{_SERVING}.ReloadConfigRequest")
ReloadConfigResponse = message_class(f"{_SERVING}.ReloadConfigResponse")
ModelServerConfig = message_class(f"{_SERVING}.ModelServerConfig")
PredictionLog = message_class(f"{_SERVING}.PredictionLog")

TensorProto = message_class(f"{_TENSORFLOW}.TensorProto")
TensorInfo = message_class(f"{_TENSORFLOW}.TensorInfo")
SignatureDef = message_class(f"{_TENSORFLOW}.SignatureDef")
Example = message_class(f"{_TENSORFLOW}.Example")
