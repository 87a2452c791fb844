"""A ``PredictResponse``, as bytes, with one copy of its tensors.

A protobuf message takes a tensor's bytes in and copies them once more when it becomes bytes itself.
Numbers are in ``tensor_content``, which clients read fastest, and in the field of their dtype as well,
such as ``float_val``: there TensorFlow Serving has them, and many clients look nowhere else.
The layout: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving.messages import PredictResponse, TensorProto
from batchyard.wire.tensorflow_serving.tensor_proto import dtype_enum, from_array
from batchyard.wire.tensorflow_serving.value_fields import packed, value_field_number
from batchyard.wire.tensors import Buffer, encode

Array = npt.NDArray[Any]

# A field's number and that a length and so many bytes follow.
_LENGTH_DELIMITED = 2
_OUTPUTS = bytes([PredictResponse.OUTPUTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_CONTENT = bytes([TensorProto.TENSOR_CONTENT_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
_VALUES_NBYTES_MAX = 64 << 20
# Of the entries that a map consists of.
_KEY, _VALUE = bytes([1 << 3 | _LENGTH_DELIMITED]), bytes([2 << 3 | _LENGTH_DELIMITED])


def encode_response(
    name: str,
    version: int,
    signature_name: str,
    outputs: Mapping[str, Array],
    *,
    with_values: bool = True,
) -> bytes:
    """The message for the outputs of a model's version and signature.

    Without ``with_values``, and of outputs beyond 64 MiB, numbers are in ``tensor_content`` alone.
    Raises InvalidArgument for an output of a dtype that TensorFlow does not have.
    """
    parts: list[Buffer] = [_spec(name, version, signature_name)]
    for alias, array in outputs.items():
        dtype = dtypes.from_numpy(array.dtype)
        if dtype is None or dtype == dtypes.STRING:
            tensor: list[Buffer] = [from_array(array).SerializeToString()]
        else:
            tensor = _numbers(array, dtype, with_values=with_values)
        nbytes = sum(map(len, tensor))
        key = alias.encode()
        entry = b"".join([_KEY, _varint(len(key)), key, _VALUE, _varint(nbytes)])
        parts += (_OUTPUTS, _varint(len(entry) + nbytes), entry, *tensor)
    return b"".join(parts)


def _numbers(array: Array, dtype: str, *, with_values: bool) -> list[Buffer]:
    tensor: list[Buffer] = [_head(dtype, array.shape), encode(array, dtype)]
    if with_values and 0 < array.nbytes <= _VALUES_NBYTES_MAX:
        values = packed(array, dtype)
        tag = _varint(value_field_number(dtype) << 3 | _LENGTH_DELIMITED)
        tensor += (tag + _varint(len(values)), values)
    return tensor


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
def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A tensor up to the bytes of its elements."""
    proto = TensorProto(dtype=dtype_enum(dtype))
    proto.tensor_shape.SetInParent()
    count = 1
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
        count *= size
    head: bytes = proto.SerializeToString()
    return head + _CONTENT + _varint(count * dtypes.itemsize(dtype))


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
