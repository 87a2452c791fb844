"""Tensors as JSON text, with the line breaks and spaces of TensorFlow Serving.

It indents by four spaces. Within rows (``predictions``) lists stand on one line, and the list of
all rows ends on a line of its own; within columns (``outputs``) each value has its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import orjson

from batchyard.clients.gateways.rest import json_numbers, json_strings
from batchyard.clients.gateways.rest.json_decimals import decimals_text
from batchyard.clients.gateways.signature_checks import tensorflow_name
from batchyard.clients.inputs import Array
from batchyard.wire import dtypes
from batchyard.wire.errors import InvalidArgument

# Strings of outputs whose name ends so are bytes.
_BYTES_SUFFIX = "_bytes"
# So many floats and more are sooner printed together than one by one.
_DECIMALS_MIN = 64
_NEXT_TEXT = b"\xff"
# The only separator that is sooner put after each float than in the place of a mark.
_COMMA = b", "

Shape = tuple[int, ...]


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
    return _nested(name, array, array.shape[1:], levels, on_one_line)


def _column_text(name: str, array: Array, levels: int) -> bytes:
    (text,) = _nested(name, array, array.shape, levels, lambda rank: on_lines(rank, levels))
    return text


def _nested(
    name: str, array: Array, shape: Shape, levels: int, brackets_of: Callable[[int], Brackets]
) -> list[bytes]:
    """A text for every tensor of ``shape`` in the array."""
    dtype = dtypes.from_numpy(array.dtype)
    if dtype is None or dtype.startswith("complex"):
        shown = tensorflow_name(dtype or array.dtype.name)
        raise InvalidArgument(f"Failed to write JSON value for tensor type: {shown} ({name})")
    if 0 in shape:
        # The innermost lists are empty.
        shape = shape[: shape.index(0)]
        count = math.prod(array.shape[: array.shape.index(0)])
        return nest([b"[]"] * count, shape, brackets_of(len(shape)))
    brackets = brackets_of(len(shape))
    if dtype == dtypes.STRING:
        strings = array.ravel().tolist()
        as_bytes = name.endswith(_BYTES_SUFFIX)
        return nest(_string_texts(strings, as_bytes, levels + len(shape)), shape, brackets)
    return _nest_numbers(array, shape, brackets)


def number_texts(array: Array) -> list[bytes]:
    """Each number of a flat array."""
    return _nest_numbers(array, (), on_one_line(0))


def _nest_numbers(array: Array, shape: Shape, brackets: Brackets) -> list[bytes]:
    if array.dtype.kind in "biu":
        return _nest_integers(array, shape, brackets)
    if array.size >= _DECIMALS_MIN:
        return _nest_decimals(array, shape, brackets)
    is_double = array.dtype == np.float64
    values = array.astype(np.float64).ravel().tolist()
    return nest(json_numbers.float_texts(values, is_double=is_double), shape, brackets)


def _nest_integers(array: Array, shape: Shape, brackets: Brackets) -> list[bytes]:
    """Of whole numbers and bools: other JSON in which other separators are put."""
    if not array.size:
        return []
    rank = len(shape)
    texts = np.ascontiguousarray(array).reshape(-1, *shape)
    text = orjson.dumps(texts, option=orjson.OPT_SERIALIZE_NUMPY)[rank + 1 : -rank - 1]
    for level in range(rank, 0, -1):
        text = text.replace(b"]" * level + b"," + b"[" * level, _mark(level))
    return _put_separators(text.replace(b",", _mark(0)), brackets)


def _nest_decimals(array: Array, shape: Shape, brackets: Brackets) -> list[bytes]:
    every = 1
    ends = []
    for level, separator in enumerate(_separators(brackets)):
        ends.append((every, separator if separator == _COMMA else _mark(level)))
        every *= shape[-1 - level] if level < len(shape) else 1
    is_double = array.dtype == np.float64
    values = array if is_double else array.astype(np.float32, copy=False)
    return _put_separators(decimals_text(values.ravel(), ends, is_double=is_double), brackets)


def _put_separators(text: bytes, brackets: Brackets) -> list[bytes]:
    """The tensors in a text that has marks where separators belong."""
    for level, separator in enumerate(_separators(brackets)):
        text = text.replace(_mark(level), separator)
    return (brackets.opening + text + brackets.closing).split(_NEXT_TEXT)


def _separators(brackets: Brackets) -> list[bytes]:
    """What stands between values, and in the end between tensors."""
    return [*brackets.between, brackets.closing + _NEXT_TEXT + brackets.opening]


def _mark(level: int) -> bytes:
    """What stands where so many lists end and begin: one byte that is in no number or separator."""
    return bytes([128 + level])


def nest(values: list[bytes], shape: Shape, brackets: Brackets) -> list[bytes]:
    """Tensors of a shape without a zero, of the texts of all their values."""
    texts = values
    for size, separator in zip(reversed(shape), brackets.between, strict=True):
        join = separator.join
        texts = [join(texts[i : i + size]) for i in range(0, len(texts), size)]
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


def _string_texts(values: list[bytes], as_bytes: bool, levels: int) -> list[bytes]:
    if not as_bytes:
        return [json_strings.text(value) for value in values]
    begin = b"{\n" + indent(levels + 1) + b'"b64": '
    end = b"\n" + indent(levels) + b"}"
    return [begin + json_strings.base64_text(value) + end for value in values]
