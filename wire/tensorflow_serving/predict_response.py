"""A ``PredictResponse``, as bytes, with one copy of its tensors.

A protobuf message takes a tensor's bytes in and copies them once more when it becomes bytes itself.
The layout: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving.messages import PredictResponse, TensorProto
from batchyard.wire.tensorflow_serving.tensor_proto import dtype_enum, from_array, values_field
from batchyard.wire.tensors import Buffer, encode

Array = npt.NDArray[Any]

# A field's number and that a length and so many bytes follow.
_LENGTH_DELIMITED = 2
_OUTPUTS = bytes([PredictResponse.OUTPUTS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])
# Their fields have numbers as the bytes that they have in memory, one after the other.
_SAME_BYTES = frozenset(
    {
        *("float32", "float64", "complex64", "complex128"),
        *("bool", "float8_e5m2", "float8_e4m3fn"),
    }
)
# What has the same bytes as a number that its field takes.
_AS_BITS = {"float16": np.uint16, "bfloat16": np.uint16}
# Numbers that are written at once: each takes up to 100 bytes meanwhile.
_AT_ONCE = 65_536
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
        else:
            is_same = as_content or dtype in _SAME_BYTES
            content = encode(array, dtype) if is_same else _varints(array, dtype)
            field = "tensor_content" if as_content else values_field(dtype)
            head = _head(dtype, array.shape, field) + _varint(len(content))
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
def _head(dtype: str, shape: tuple[int, ...], field: str) -> bytes:
    """A tensor up to the length of the field that ends it."""
    proto = TensorProto(dtype=dtype_enum(dtype))
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    head: bytes = proto.SerializeToString()
    number = TensorProto.DESCRIPTOR.fields_by_name[field].number
    return head + _varint(number << 3 | _LENGTH_DELIMITED)


def _varints(array: Array, dtype: str) -> bytes:
    """Whole numbers as protobuf has them: 7 bits in a byte, negative ones as those of 64 bits."""
    numbers = array.ravel()
    if dtype in _AS_BITS:
        numbers = numbers.view(_AS_BITS[dtype])
    wide = np.uint64 if numbers.dtype.kind == "u" else np.int64
    parts = range(0, len(numbers), _AT_ONCE)
    return b"".join(_packed(numbers[i : i + _AT_ONCE].astype(wide)) for i in parts)


def _packed(numbers: Array) -> bytes:
    bits = numbers.view(np.uint64)
    most = -(-int(bits.max()).bit_length() // 7) or 1
    groups = bits[:, None] >> np.arange(0, 7 * most, 7, dtype=np.uint64)
    encoded = groups.astype(np.uint8) & 0x7F
    # All but the last byte of a number say that another follows.
    encoded |= (groups >= 0x80).view(np.uint8) << 7
    is_needed = groups != 0
    is_needed[:, 0] = True
    written: bytes = encoded[is_needed].tobytes()
    return written


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
