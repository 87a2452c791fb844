"""``TensorProto`` to numpy and back, without TensorFlow and without Python's numbers in between.

The values of a tensor are in ``tensor_content``, as the bytes that they have in memory, or in the
field of their dtype, where TensorFlow leaves out repetitions of the last value, and zeros. numpy
takes such a field as one array since protobuf 7.34: 150,528 floats in 20 us; before, each became
a number of Python's first (5 ms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.wire import dtypes
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import RANK_MAX
from batchyard.wire.tensorflow_serving.messages import POOL, TensorProto

Array = npt.NDArray[Any]

# What a tensor of which TensorFlow left values out may take: a message of a few bytes can speak of
# any number of them.
EXPANDED_NBYTES_MAX = 64 * 1024 * 1024


@dataclass(slots=True)
class Room:
    """How much the tensors of one request may still take that are spoken of so."""

    nbytes: int = EXPANDED_NBYTES_MAX


_SIZE_MAX = (1 << 63) - 1
# Bytes of a number of 64 bits, 7 of them in each.
_VARINT_MAX = 10

_ENUM = POOL.FindEnumTypeByName("tensorflow.DataType")
_OTHER_NAMES = {"float16": "DT_HALF", "float32": "DT_FLOAT", "float64": "DT_DOUBLE"}
_ENUM_BY_NAME: dict[str, int] = {
    name: _ENUM.values_by_name[_OTHER_NAMES.get(name, f"DT_{name.upper()}")].number
    for name in dtypes.NAMES
}
_NAME_BY_ENUM = {number: name for name, number in _ENUM_BY_NAME.items()}
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
_OTHER_INTEGERS = "int_val"


def dtype_name(enum: int) -> str:
    """The name of ``wire.dtypes`` for a number of the enum ``DataType``.

    Raises KeyError for one that models cannot be fed here.
    """
    return _NAME_BY_ENUM[enum]


def dtype_enum(name: str) -> int:
    """The number of the enum ``DataType`` for a name of ``wire.dtypes``. Raises KeyError."""
    return _ENUM_BY_NAME[name]


def to_array(proto: TensorProto, room: Room | None = None) -> Array:
    """The array that a message holds; an object array of ``bytes`` for strings.

    ``room`` is that of all tensors of a request; None: of this one alone.
    Read-only, a view of the message's bytes, where they are in ``tensor_content``. Raises
    InvalidArgument for a dtype, a shape or values that make no tensor.
    """
    dtype = _NAME_BY_ENUM.get(proto.dtype)
    if dtype is None:
        raise InvalidArgument(f"dtype {_show_dtype(proto.dtype)} cannot be fed to a model here")
    shape = _shape(proto)
    count = math.prod(shape)
    try:
        if count == 0:
            return np.empty(shape, dtypes.to_numpy(dtype))
        content = proto.tensor_content
        if not content:
            array = _from_values(proto, dtype, count, room or Room())
        elif dtype == dtypes.STRING:
            array = _from_string_content(content, count)
        else:
            array = _from_content(content, dtype, count)
        return array.reshape(shape)
    except (ValueError, ImportError) as error:
        # More dimensions, or a larger array, than numpy has; or ml_dtypes is missing.
        raise InvalidArgument(f"{dtype} of shape {_show_shape(shape)}: {error}") from None


def from_array(array: Array) -> TensorProto:
    """The message that holds an array: ``tensor_content`` for numbers, ``string_val`` for strings.

    Raises InvalidArgument for a dtype that TensorFlow does not have.
    """
    dtype = dtypes.from_numpy(array.dtype)
    if dtype is None:
        raise InvalidArgument(f"an array of dtype {array.dtype} is no tensor of TensorFlow's")
    proto = TensorProto(dtype=_ENUM_BY_NAME[dtype])
    add = proto.tensor_shape.dim.add
    for size in array.shape:
        add(size=size)
    if not array.shape:
        proto.tensor_shape.SetInParent()
    if dtype == dtypes.STRING:
        proto.string_val.extend(
            item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()
        )
    else:
        proto.tensor_content = array.tobytes()
    return proto


def values_field(dtype: str) -> str:
    """The field that has a tensor's values where ``tensor_content`` has not."""
    return _FIELDS.get(dtype, _OTHER_INTEGERS)


def _shape(proto: TensorProto) -> tuple[int, ...]:
    if proto.tensor_shape.unknown_rank:
        raise InvalidArgument("tensor_shape must give a tensor's sizes, not unknown_rank")
    dims = proto.tensor_shape.dim
    if len(dims) > RANK_MAX:
        raise InvalidArgument(f"tensor_shape has {len(dims)} sizes, at most {RANK_MAX} are taken")
    shape = tuple([dim.size for dim in dims])
    if shape and min(shape) < 0:
        raise InvalidArgument(f"tensor_shape {_show_shape(shape)} has a negative size")
    if math.prod([size or 1 for size in shape]) > _SIZE_MAX:
        raise InvalidArgument(f"tensor_shape {_show_shape(shape)} has more than 2**63 elements")
    return shape


def _from_content(content: bytes, dtype: str, count: int) -> Array:
    nbytes = count * dtypes.itemsize(dtype)
    if len(content) != nbytes:
        raise InvalidArgument(
            f"tensor_content has {len(content)} bytes, {count} elements of {dtype} take {nbytes}"
        )
    array: Array = np.frombuffer(content, dtypes.to_numpy(dtype))
    if dtype == "bool" and array.view(np.uint8).max() > 1:
        raise InvalidArgument("the bytes of a bool's tensor_content must be 0 or 1")
    return array


def _from_string_content(content: bytes, count: int) -> Array:
    """Strings in one piece: a varint for the length of each, then the bytes of all."""
    if count > len(content):
        raise InvalidArgument(
            f"tensor_content has {len(content)} bytes, {count} strings take at least as many"
        )
    lengths, place = _varints(content, count)
    # A sum of numbers this small cannot overflow.
    total = int(lengths.sum()) if lengths.max() <= len(content) else 1 << 64
    if place + total != len(content):
        raise InvalidArgument(
            f"tensor_content has {len(content) - place} bytes of strings, which are not what their "
            "lengths sum to"
        )
    offsets = np.concatenate(([place], place + np.cumsum(lengths, dtype=np.int64))).tolist()
    array: Array = np.empty(count, object)
    array[:] = [content[start:stop] for start, stop in pairwise(offsets)]
    return array


def _varints(content: bytes, count: int) -> tuple[Array, int]:
    """The numbers at the beginning of ``content``, uint64, and how many bytes they take."""
    head = np.frombuffer(content, np.uint8, min(len(content), _VARINT_MAX * count))
    ends = np.flatnonzero(head < 0x80)[:count]
    starts = np.concatenate(([0], ends[:-1] + 1))
    widths = ends - starts[: len(ends)] + 1
    if len(ends) < count or widths.max() > _VARINT_MAX:
        raise InvalidArgument("tensor_content ends within the lengths of its strings")
    numbers = np.zeros(count, np.uint64)
    for i in range(int(widths.max())):
        has = widths > i
        bits = (head[starts[has] + i] & 0x7F).astype(np.uint64)
        numbers[has] |= bits << np.uint64(7 * i)
    return numbers, int(ends[-1]) + 1


def _from_values(proto: TensorProto, dtype: str, count: int, room: Room) -> Array:
    field = values_field(dtype)
    array = _convert(getattr(proto, field), dtype, field)
    given = len(array)
    if given == count:
        return array
    if given > count:
        raise InvalidArgument(
            f"{field} has {given} elements, tensor_shape {_show_shape(_shape(proto))} {count}"
        )
    # As TensorFlow reads it: the last value goes on, and where there is none it is zero.
    if not given:
        array = np.full(1, b"") if dtype == dtypes.STRING else np.zeros(1, array.dtype)
        array = array.astype(dtypes.to_numpy(dtype))
    itemsize = 8 + len(array[-1]) if dtype == dtypes.STRING else dtypes.itemsize(dtype)
    if count * itemsize > room.nbytes:
        raise InvalidArgument(
            f"{field} has {given} elements, tensor_shape {_show_shape(_shape(proto))} {count}: "
            f"values that are left out may take {EXPANDED_NBYTES_MAX} bytes of a request at most"
        )
    room.nbytes -= count * itemsize
    whole: Array = np.empty(count, array.dtype)
    whole[: len(array)] = array
    whole[len(array) :] = array[-1]
    return whole


def _convert(values: Any, dtype: str, field: str) -> Array:
    """The elements of a field as the dtype that they stand for."""
    if dtype == dtypes.STRING:
        strings: Array = np.empty(len(values), object)
        strings[:] = list(values)
        return strings
    want = dtypes.to_numpy(dtype)
    if field == "float8_val":
        return np.frombuffer(values, want)
    given: Array = np.array(values) if values else np.empty(0, want)
    if field == "half_val":
        return _narrow(given, np.dtype(np.uint16), dtype, field).view(want)
    if field in ("scomplex_val", "dcomplex_val"):
        if len(given) % 2:
            raise InvalidArgument(f"{field} has {len(given)} numbers, two make an element")
        return given.astype(want, copy=False) if not len(given) else given.view(want)
    return _narrow(given, want, dtype, field)


def _narrow(given: Array, want: np.dtype, dtype: str, field: str) -> Array:
    if given.dtype == want:
        return given
    narrowed: Array = given.astype(want)
    if not np.array_equal(narrowed, given):
        raise InvalidArgument(f"{field} has values that {dtype} does not hold")
    return narrowed


def _show_dtype(enum: int) -> str:
    value = _ENUM.values_by_number.get(enum)
    return str(enum) if value is None else str(value.name)


def _show_shape(shape: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, shape[:8]))
    return f"({shown}{', …' if len(shape) > 8 else ''})"
