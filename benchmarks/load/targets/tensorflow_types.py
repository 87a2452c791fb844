"""TensorFlow's element types as its public interfaces name and number them.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/types.proto
"""

from __future__ import annotations

from batchyard.wire import dtypes
from batchyard.wire.errors import Unimplemented

_TYPES = (
    ("DT_FLOAT", 1, "float32"),
    ("DT_DOUBLE", 2, "float64"),
    ("DT_INT32", 3, "int32"),
    ("DT_UINT8", 4, "uint8"),
    ("DT_INT16", 5, "int16"),
    ("DT_INT8", 6, "int8"),
    ("DT_STRING", 7, dtypes.STRING),
    ("DT_COMPLEX64", 8, "complex64"),
    ("DT_INT64", 9, "int64"),
    ("DT_BOOL", 10, "bool"),
    ("DT_BFLOAT16", 14, "bfloat16"),
    ("DT_UINT16", 17, "uint16"),
    ("DT_COMPLEX128", 18, "complex128"),
    ("DT_HALF", 19, "float16"),
    ("DT_UINT32", 22, "uint32"),
    ("DT_UINT64", 23, "uint64"),
    ("DT_FLOAT8_E5M2", 24, "float8_e5m2"),
    ("DT_FLOAT8_E4M3FN", 25, "float8_e4m3fn"),
)
NUMBERS = {wire: number for _, number, wire in _TYPES}
_BY_NAME = {name: wire for name, _, wire in _TYPES}
_BY_NUMBER = {number: wire for _, number, wire in _TYPES}


def wire_name(type_: str | int) -> str:
    """Our name for a type that a server names or numbers. Raises Unimplemented for others."""
    found = _BY_NAME.get(type_) if isinstance(type_, str) else _BY_NUMBER.get(type_)
    if found is None:
        raise Unimplemented(f"inputs of TensorFlow's type {type_} cannot be made up or sent here")
    return found


def shape(sizes: list[int], unknown_rank: bool) -> tuple[int | None, ...] | None:
    """Our shape for one of TensorFlow's, where -1 is an open dimension."""
    return None if unknown_rank else tuple(None if size < 0 else size for size in sizes)
