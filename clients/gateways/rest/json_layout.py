"""Tensors as JSON text, with the line breaks and spaces of TensorFlow Serving.

It indents by four spaces. Within rows (``predictions``) lists stand on one line, and the list of
all rows ends on a line of its own; within columns (``outputs``) each value has its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from batchyard.clients.gateways.rest import json_numbers, json_strings
from batchyard.clients.gateways.rest.json_arrays import tensorflow_name
from batchyard.clients.inputs import Array
from batchyard.wire import dtypes
from batchyard.wire.errors import InvalidArgument

# Strings of outputs whose name ends so are bytes.
_BYTES_SUFFIX = "_bytes"


class Brackets(NamedTuple):
    """What stands around a tensor's values: ``between[n]`` where n lists end and begin."""

    opening: bytes
    between: list[bytes]
    closing: bytes


def rows(arrays: Mapping[str, Array]) -> bytes:
    """``{"predictions": [a row, …]}``."""
    count = _rows_in_common(arrays)
    if len(arrays) == 1:
        ((name, array),) = arrays.items()
        text = b", ".join(_row_texts(name, array, 2))
        return b'{\n    "predictions": [' + text + b"\n    ]\n}"
    texts = [
        [b"            " + json_strings.text(name.encode()) + b": " + text for text in row_texts]
        for name, row_texts in ((name, _row_texts(name, a, 3)) for name, a in arrays.items())
    ]
    objects = (b",\n".join([of_name[row] for of_name in texts]) for row in range(count))
    text = b",".join([b"\n        {\n" + lines + b"\n        }" for lines in objects])
    return b'{\n    "predictions": [' + text + b"\n    ]\n}"


def columns(arrays: Mapping[str, Array]) -> bytes:
    """``{"outputs": a tensor}``, or ``{"outputs": {name: a tensor, …}}``."""
    if len(arrays) == 1:
        ((name, array),) = arrays.items()
        return b'{\n    "outputs": ' + _column_text(name, array, 1) + b"\n}"
    lines = [
        b"        " + json_strings.text(name.encode()) + b": " + _column_text(name, array, 2)
        for name, array in arrays.items()
    ]
    return b'{\n    "outputs": {\n' + b",\n".join(lines) + b"\n    }\n}"


def _rows_in_common(arrays: Mapping[str, Array]) -> int:
    count = 0
    for name, array in arrays.items():
        if not array.ndim:
            raise InvalidArgument(f"Tensor name: {name} has no shape information")
        rows = array.shape[0]
        if rows < 1:
            raise InvalidArgument(f"Tensor name: {name} has invalid batch size: {rows}")
        if count and rows != count:
            raise InvalidArgument(
                f"Tensor name: {name} has inconsistent batch size: {rows} expecting: {count}"
            )
        count = rows
    return count


def _row_texts(name: str, array: Array, levels: int) -> list[bytes]:
    """One text a row, within as many lists and objects."""
    shape = array.shape[1:]
    values = _texts(name, array, levels + len(shape))
    if 0 in shape:
        shape = shape[: shape.index(0)]
        values = [b"[]"] * (array.shape[0] * _size(shape))
    return nest(values, shape, on_one_line(len(shape)), array.shape[0])


def _column_text(name: str, array: Array, levels: int) -> bytes:
    shape = array.shape
    values = _texts(name, array, levels + len(shape))
    if 0 in shape:
        shape = shape[: shape.index(0)]
        values = [b"[]"] * _size(shape)
    (text,) = nest(values, shape, on_lines(len(shape), levels), 1)
    return text


def nest(
    values: list[bytes], shape: tuple[int, ...], brackets: Brackets, count: int
) -> list[bytes]:
    """``count`` texts of tensors of a shape without a zero, from the texts of all their values."""
    texts = values
    for level, size in enumerate(reversed(shape)):
        join = brackets.between[level].join
        texts = [join(texts[i : i + size]) for i in range(0, len(texts), size)]
    assert len(texts) == count
    return [brackets.opening + text + brackets.closing for text in texts]


def on_one_line(rank: int) -> Brackets:
    """``[[1, 2], [3, 4]]``."""
    between = [b"]" * lists + b", " + b"[" * lists for lists in range(rank)]
    return Brackets(b"[" * rank, between, b"]" * rank)


def on_lines(rank: int, levels: int) -> Brackets:
    """Lists within ``levels`` other lists and objects, each value and bracket on its line."""
    opens = [b"[\n" + indent(levels + level + 1) for level in range(rank)]
    closes = [b"\n" + indent(levels + level) + b"]" for level in range(rank)]
    between = []
    for lists in range(rank):
        outside = rank - lists
        ending, beginning = b"".join(reversed(closes[outside:])), b"".join(opens[outside:])
        between.append(ending + b",\n" + indent(levels + outside) + beginning)
    return Brackets(b"".join(opens), between, b"".join(reversed(closes)))


def indent(levels: int) -> bytes:
    """The spaces before what stands within so many lists and objects."""
    return b"    " * levels


def _texts(name: str, array: Array, levels: int) -> list[bytes]:
    dtype = dtypes.from_numpy(array.dtype)
    if dtype == dtypes.STRING:
        return _string_texts(array.ravel().tolist(), name.endswith(_BYTES_SUFFIX), levels)
    if dtype is None or dtype.startswith("complex"):
        shown = tensorflow_name(dtype or array.dtype.name)
        raise InvalidArgument(f"Failed to write JSON value for tensor type: {shown} ({name})")
    return json_numbers.tokens(array)


def _string_texts(values: list[bytes], as_bytes: bool, levels: int) -> list[bytes]:
    if not as_bytes:
        return [json_strings.text(value) for value in values]
    begin = b"{\n" + indent(levels + 1) + b'"b64": '
    end = b"\n" + indent(levels) + b"}"
    return [begin + json_strings.base64_text(value) + end for value in values]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
