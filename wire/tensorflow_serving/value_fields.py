"""A tensor's numbers in the field of their dtype, as protobuf packs them: ``float_val`` and so on.

Clients read them there (``response.outputs["y"].float_val``), because TensorFlow Serving writes them
there. Floats are packed as the bytes that they have in memory; integers as varints:
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.tensorflow_serving.messages import TensorProto
from batchyard.wire.tensors import Buffer, encode

Array = npt.NDArray[Any]

_FIELDS = {
    "bool": "bool_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "float32": "float_val",
    "float64": "double_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "float8_e5m2": "float8_val",
    "float8_e4m3fn": "float8_val",
    dtypes.STRING: "string_val",
}
_AS_IN_MEMORY = frozenset(
    {"bool", "float32", "float64", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn"}
)
# A varint has 7 bits a byte.
_VARINT_NBYTES_MAX = 10
_SHIFTS = np.arange(_VARINT_NBYTES_MAX, dtype=np.uint64) * np.uint64(7)
# So many integers at a time: each takes 100 bytes meanwhile.
_CHUNK = 1 << 16


def value_field(dtype: str) -> str:
    """The field of TensorProto that a dtype's elements are in."""
    return _FIELDS.get(dtype, "int_val")


def value_field_number(dtype: str) -> int:
    """The number of that field."""
    number: int = TensorProto.DESCRIPTOR.fields_by_name[value_field(dtype)].number
    return number


def packed(array: Array, dtype: str) -> Buffer:
    """What is in that field, of numbers."""
    if dtype in _AS_IN_MEMORY:
        return encode(array, dtype)
    flat = array.ravel()
    if value_field(dtype) == "half_val":
        flat = flat.view(np.uint16)
    # A negative number is one of 64 bits, whatever it was.
    wide = flat.astype(np.int64 if flat.dtype.kind == "i" else np.uint64).view(np.uint64)
    chunks = (wide[start : start + _CHUNK] for start in range(0, len(wide), _CHUNK))
    return b"".join(map(_varints, chunks))


def _varints(numbers: npt.NDArray[np.uint64]) -> bytes:
    nbytes = -(-int(numbers.max()).bit_length() // 7)
    if nbytes <= 1:
        return numbers.astype(np.uint8).tobytes()
    shifted = numbers[:, None] >> _SHIFTS[:nbytes]
    is_there = shifted > 0
    is_there[:, 0] = True
    groups = (shifted & np.uint64(0x7F)).astype(np.uint8)
    # All but a number's last say that another follows.
    groups[:, :-1] |= is_there[:, 1:].astype(np.uint8) << 7
    return groups[is_there].tobytes()
