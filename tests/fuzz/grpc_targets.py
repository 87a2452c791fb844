"""What the gRPC gateway decodes: tensors, and the examples of requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.documents import NotADocument, fields, refused
from google.protobuf.message import DecodeError

from batchyard.wire import dtypes
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.example_requests import ExamplesRequest, serialized_examples
from batchyard.wire.tensorflow_serving.messages import ClassificationRequest, TensorProto
from batchyard.wire.tensorflow_serving.predict_response import encode_response
from batchyard.wire.tensorflow_serving.tensor_proto import (
    EXPANDED_NBYTES_MAX,
    dtype_enum,
    from_array,
    to_array,
)

_TENSORS = Path(__file__).parents[1] / "wire/tensorflow_serving/tensors.json"


def tensor_protos() -> list[Any]:
    """What TensorFlow writes."""
    return [[bytes.fromhex(tensor["proto"])] for tensor in json.loads(_TENSORS.read_text())]


def example_requests() -> list[Any]:
    """Requests of both kinds."""
    plain, with_context = ClassificationRequest(), ClassificationRequest()
    plain.model_spec.name = "m"
    plain.input.example_list.examples.add().features.feature["x"].SetInParent()
    listed = with_context.input.example_list_with_context
    listed.context.features.feature["c"].bytes_list.value.append(b"y")
    listed.examples.add()
    return [[plain.SerializeToString()], [with_context.SerializeToString()], [b""]]


def check_tensor_proto(document: Any) -> None:
    """``[message]``: a tensor."""
    (data,) = fields(document, bytes)
    proto = _parsed(TensorProto, data)
    try:
        array = to_array(proto)
    except InvalidArgument as error:
        refused(error, InvalidArgument)
        return
    dtype = dtypes.from_numpy(array.dtype)
    assert dtype is not None
    assert dtype_enum(dtype) == proto.dtype
    assert array.shape == tuple(dim.size for dim in proto.tensor_shape.dim)
    assert array.nbytes <= max(EXPANDED_NBYTES_MAX, 8 * len(data))
    if dtype == dtypes.STRING:
        assert all(type(item) is bytes for item in array.ravel().tolist())
    if array.nbytes <= 1 << 16:
        again = to_array(from_array(array))
        assert (again.shape == array.shape and again.tobytes() == array.tobytes()) or (
            dtype == dtypes.STRING and again.tolist() == array.tolist()
        )
        assert encode_response("m", 1, "s", {"y": array})


def check_examples(document: Any) -> None:
    """``[message]``: a request of classify or regress."""
    (data,) = fields(document, bytes)
    request = _parsed(ExamplesRequest, data)
    try:
        examples = serialized_examples(request)
    except InvalidArgument as error:
        refused(error, InvalidArgument, naming="Input is empty")
        return
    assert examples.ndim == 1
    assert len(examples) > 0
    assert examples.dtype == np.dtype(object)
    assert all(type(example) is bytes for example in examples)


def _parsed(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise NotADocument from None
