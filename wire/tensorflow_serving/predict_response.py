"""A ``PredictResponse``, as bytes, with one copy of its tensors.

A protobuf message takes a tensor's bytes in and copies them once more when it becomes bytes itself.
The layout: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving.messages import PredictResponse, TensorProto
from batchyard.wire.tensorflow_serving.tensor_proto import dtype_enum, from_array, values_of_array
from batchyard.wire.tensors import Buffer, encode

Array = npt.NDArray[Any]

# A field's number and that a length and so many bytes follow.
_LENGTH_DELIMITED = 2
_OUTPUTS = bytes([PredictResponse.OUTPUTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_CONTENT = bytes([TensorProto.TENSOR_CONTENT_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
# Fields in which numbers have the bytes that they have in memory, one after the other.
_SAME_BYTES = {
    dtype: bytes([number << 3 | _LENGTH_DELIMITED])
    for dtype, number in {
        "float32": TensorProto.FLOAT_VAL_FIELD_NUMBER,
        "float64": TensorProto.DOUBLE_VAL_FIELD_NUMBER,
        "complex64": TensorProto.SCOMPLEX_VAL_FIELD_NUMBER,
        "complex128": TensorProto.DCOMPLEX_VAL_FIELD_NUMBER,
        "bool": TensorProto.BOOL_VAL_FIELD_NUMBER,
    }.items()
}
# Of the entries that a map consists of.
_KEY, _VALUE = bytes([1 << 3 | _LENGTH_DELIMITED]), bytes([2 << 3 | _LENGTH_DELIMITED])


def encode_response(
    name: str,
    version: int,
    signature_name: str,
    outputs: Mapping[str, Array],
    *,
    as_content: bool = True,
) -> bytes:
    """The message for the outputs of a model's version and signature.

    ``as_content``: numbers are in ``tensor_content``, else in the field of their dtype, such as
    ``float_val``. Raises InvalidArgument for an output of a dtype that TensorFlow does not have.
    """
    parts: list[Buffer] = [_spec(name, version, signature_name)]
    for alias, array in outputs.items():
        dtype = dtypes.from_numpy(array.dtype)
        content: Buffer = b""
        if dtype is None or dtype == dtypes.STRING:
            head = from_array(array).SerializeToString()
        elif as_content or dtype in _SAME_BYTES:
            field = _CONTENT if as_content else _SAME_BYTES[dtype]
            head, content = _head(dtype, array.shape, field), encode(array, dtype)
        else:
            head = values_of_array(array).SerializeToString()
        nbytes = len(head) + len(content)
        key = alias.encode()
        entry = b"".join([_KEY, _varint(len(key)), key, _VALUE, _varint(nbytes), head])
        parts += (_OUTPUTS, _varint(len(entry) + len(content)), entry, content)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _spec(name: str, version: int, signature_name: str) -> bytes:
    """All of the message but its outputs: where they come in it is of no account."""
    response = PredictResponse()
    response.model_spec.name = name
    response.model_spec.version.value = version
    response.model_spec.signature_name = signature_name
    encoded: bytes = response.SerializeToString()
    return encoded


@lru_cache(maxsize=1024)
def _head(dtype: str, shape: tuple[int, ...], field: bytes) -> bytes:
    """A tensor up to the bytes of its elements, which end it."""
    proto = TensorProto(dtype=dtype_enum(dtype))
    proto.tensor_shape.SetInParent()
    count = 1
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
        count *= size
    head: bytes = proto.SerializeToString()
    return head + field + _varint(count * dtypes.itemsize(dtype))


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
