"""JSON values as arrays, by TensorFlow Serving's rules of what may feed which dtype."""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any

import numpy as np

from batchyard.clients.gateways.rest import json_strings
from batchyard.clients.gateways.rest.json_document import json_type, quoted
from batchyard.clients.gateways.signature_checks import tensorflow_name
from batchyard.clients.inputs import Array
from batchyard.wire import dtypes, protocol
from batchyard.wire.errors import InvalidArgument, Unimplemented

# struct refuses what does not fit into an element: other types, and numbers out of range.
STRUCT_CODES = {
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
# Whole numbers beyond are refused: some would become another number.
_WHOLE_MAX = {"float32": (1 << 24) - 1, "float64": (1 << 53) - 1}
_COMPLEX = ("complex64", "complex128")
# Of a call to struct, which takes each value as an argument.
_PACKED_AT_ONCE = 1 << 15

Shape = tuple[int, ...]


def to_array(value: Any, dtype: str) -> Array:
    """The tensor that a JSON value is: a number, a string, lists of them.

    Raises InvalidArgument, and Unimplemented for complex numbers, which JSON has none of.
    """
    check_has_json(value, dtype)
    shape = leading_shape(value)
    array = pack(value, shape, dtype)
    if array is None:
        _refuse(value, 0, shape, dtype)
        raise InvalidArgument(
            f"JSON Value: {quoted(value)} is no tensor of {tensorflow_name(dtype)}"
        )
    return array


def check_has_json(value: Any, dtype: str) -> None:
    """Raises Unimplemented for a dtype that has no JSON."""
    if dtype in _COMPLEX:
        raise Unimplemented(f"Conversion of JSON Value: {quoted(value)} to type: {dtype}")


def leading_shape(value: Any) -> Shape:
    """The lengths of the first list, of the first list in it, and so on."""
    shape: list[int] = []
    while isinstance(value, list):
        if len(shape) == protocol.RANK_MAX:
            raise InvalidArgument(
                f"lists are nested deeper than {protocol.RANK_MAX}, which is the most dimensions "
                "that a tensor may have"
            )
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def pack(value: Any, shape: Shape, dtype: str) -> Array | None:
    """The tensor, or None when the value has not this shape, or holds what is none of ``dtype``."""
    flat = _flatten(value, shape)
    return None if flat is None else _from_flat(flat, shape, dtype)


def _flatten(value: Any, shape: Shape) -> list[Any] | None:
    """The innermost values in their order; None when lists have other lengths."""
    if not shape:
        return None if isinstance(value, list) else [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        return None
    flat = value
    for size in shape[1:]:
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            return None
        flat = list(chain.from_iterable(flat))
    return flat


def _from_flat(flat: list[Any], shape: Shape, dtype: str) -> Array | None:
    kinds = set(map(type, flat))
    if dtype == dtypes.STRING:
        return _strings(flat, shape) if kinds <= {str, dict} else None
    if dtype == "bool":
        return np.array(flat, bool).reshape(shape) if kinds <= {bool} else None
    is_integer = dtype.startswith(("int", "uint"))
    if not kinds <= ({int} if is_integer else {int, float}):
        return None
    if dtype not in STRUCT_CODES:
        return _rounded(flat, shape, dtype)
    array = np.empty(len(flat), dtypes.to_numpy(dtype))
    for start in range(0, len(flat), _PACKED_AT_ONCE):
        part = flat[start : start + _PACKED_AT_ONCE]
        if not pack_numbers(part, array[start : start + len(part)], dtype):
            return None
    return array.reshape(shape)


def pack_numbers(numbers: list[Any], into: Array, dtype: str) -> bool:
    """Writes ints and floats into as many elements. False when one does not fit, or is of the
    wrong type."""
    try:
        struct.pack_into(f"={len(numbers)}{STRUCT_CODES[dtype]}", into.data.cast("B"), 0, *numbers)
    except (struct.error, OverflowError):
        return False
    most = _WHOLE_MAX.get(dtype)
    if most is None or not (np.abs(into) > most).any():
        return True
    return not any(type(number) is int and abs(number) > most for number in numbers)


def _rounded(flat: list[Any], shape: Shape, dtype: str) -> Array | None:
    """Types of ``ml_dtypes``, which struct does not know."""
    exact = np.array(flat, np.float64)
    with np.errstate(over="ignore"):
        array = exact.astype(dtypes.to_numpy(dtype))
    lost = np.isfinite(exact) & ~np.isfinite(array.astype(np.float64))
    return None if lost.any() else array.reshape(shape)


def _strings(flat: list[Any], shape: Shape) -> Array | None:
    array = np.empty(len(flat), object)
    try:
        array[:] = [json_strings.from_json(value) for value in flat]
    except InvalidArgument:
        return None
    return array.reshape(shape)


def first_wrong(items: list[Any], shape: Shape, dtype: str) -> int:
    """Which item is the first that is no tensor of this shape and dtype, if one is not.

    Halves are packed, as quickly as what is right: callers may send millions.
    """
    low, high = 0, len(items)
    while high - low > 1:
        middle = (low + high) // 2
        if pack(items[low:middle], (middle - low, *shape), dtype) is None:
            high = middle
        else:
            low = middle
    return low


def _refuse(value: Any, level: int, shape: Shape, dtype: str) -> None:
    """Raises what is wrong first."""
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise InvalidArgument(
                f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {rank}"
            )
        _refuse_value(value, dtype)
        return
    if level >= rank:
        raise InvalidArgument(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise InvalidArgument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    if value:
        wrong = value[first_wrong(value, shape[level + 1 :], dtype)]
        _refuse(wrong, level + 1, shape, dtype)


def _refuse_value(value: Any, dtype: str) -> None:
    if isinstance(value, dict | str) and dtype == dtypes.STRING:
        json_strings.from_json(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and dtype.startswith(("float", "bfloat")):
        if pack(value, (), dtype) is None:
            raise InvalidArgument(
                f"Cannot convert JSON value: {quoted(value)} to {tensorflow_name(dtype)} without "
                "loss of precision."
            )
        return
    if pack(value, (), dtype) is None:
        raise InvalidArgument(
            f"JSON Value: {quoted(value)} Type: {json_type(value)} is not of expected type: "
            f"{tensorflow_name(dtype)}{_bounds(value, dtype)}"
        )


def _bounds(value: Any, dtype: str) -> str:
    if type(value) is not int or not dtype.startswith(("int", "uint")):
        return ""
    bounds = np.iinfo(dtype)
    return f" ({bounds.min} to {bounds.max})"
