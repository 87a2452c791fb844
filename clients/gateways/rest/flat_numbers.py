"""Large arrays of numbers straight from the text of a request.

A request of one input is mostly one nested list of numbers. Made a tree of Python lists, it takes
twice the time and ten times the memory: here brackets only say the shape, and the numbers between
them are parsed a piece at a time. What is not of this plain form, or is wrong anywhere, is left to
the general way, which also says what is wrong.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from batchyard.clients.gateways.rest.json_arrays import STRUCT_CODES, Shape, pack_numbers
from batchyard.clients.gateways.rest.json_document import parse
from batchyard.clients.inputs import Array
from batchyard.wire import dtypes, protocol
from batchyard.wire.errors import InvalidArgument

# Smaller requests are parsed sooner as they are.
_BODY_MIN = 512
# Of text parsed at once: its numbers, as Python objects, fit the processor's cache.
_PIECE = 1 << 15

_NAME = rb'"([^"\\\x00-\x1f\x7f-\xff]*)"'
_HEAD = re.compile(
    rb'\s*\{\s*(?:"signature_name"\s*:\s*' + _NAME + rb"\s*,\s*)?"
    rb'"(instances|inputs)"\s*:\s*(\{\s*' + _NAME + rb"\s*:\s*)?(?=\[)"
)
_TAIL = re.compile(rb'\s*(\}\s*)?(?:,\s*"signature_name"\s*:\s*' + _NAME + rb"\s*)?\}\s*")
# The longest tail that there may be.
_TAIL_MAX = 1024

_SPACE = b" \t\r\n"
# NaN and Infinity too: whether what they stand in is a number, the parser says.
_OF_NUMBERS = b"0123456789+-.eEINafinty"
_ONE_CLASS = bytes.maketrans(_OF_NUMBERS, b"0" * len(_OF_NUMBERS))
# From a number's code to a bracket's, and back: numpy sees them sooner than bytes.find does.
_INTO_LIST = ord("[") - ord("0")
_OUT_OF_LIST = (ord("0") - ord("]")) % 256
_WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")


class Plain(NamedTuple):
    """Where a body has its array: ``body[start:end]``. ``name`` is None when it names no input."""

    signature_name: str
    key: str
    name: str | None
    start: int
    end: int


def find(body: bytes) -> Plain | None:
    """Where the array is, if the body has one and little else."""
    if len(body) < _BODY_MIN:
        return None
    head = _HEAD.match(body)
    end = body.rfind(b"]") + 1
    if head is None or end <= head.end() or len(body) - end > _TAIL_MAX:
        return None
    tail = _TAIL.fullmatch(body, end)
    before, key, opens, name = head.groups()
    if tail is None or (tail[1] is None) != (opens is None):
        return None
    if (before is not None and tail[2] is not None) or (opens and key == b"instances"):
        return None
    signature = before or tail[2] or b""
    named = None if name is None else name.decode()
    return Plain(signature.decode(), key.decode(), named, head.end(), end)


def read(body: bytes, plain: Plain, dtype: str) -> Array | None:
    """The tensor; None when it is not as plain as it seems."""
    if dtype not in STRUCT_CODES:
        return None
    # As many, if there are no empty lists.
    text = np.frombuffer(body, np.uint8)[plain.start : plain.end]
    count = int(np.count_nonzero(text == ord(","))) + 1
    array = np.empty(count, dtypes.to_numpy(dtype))
    brackets = []
    place, start = 0, plain.start
    while start <= plain.end:
        end = _piece_end(body, start, plain.end)
        piece = body[start:end]
        outline = _outline(piece)
        numbers = None if outline is None else _numbers(piece)
        if outline is None or numbers is None or place + len(numbers) > count:
            return None
        if not pack_numbers(numbers, array[place : place + len(numbers)], dtype):
            return None
        brackets.append(outline)
        place += len(numbers)
        start = end + 1
    shape = _shape_of(b",".join(brackets))
    return array.reshape(shape) if shape is not None and place == count else None


def _piece_end(body: bytes, start: int, end: int) -> int:
    """Where a comma ends the piece, or the array ends."""
    if end - start <= _PIECE:
        return end
    comma = body.find(b",", start + _PIECE, end)
    return end if comma < 0 else comma


def _outline(piece: bytes) -> bytes | None:
    """Only brackets and commas, and what is neither they nor of numbers; None when a number
    touches the outside of a list."""
    outline = piece.translate(_ONE_CLASS, _SPACE)
    codes = np.frombuffer(outline, np.uint8)
    steps = codes[1:] - codes[:-1]
    if (steps == _INTO_LIST).any() or (steps == _OUT_OF_LIST).any():
        return None
    return outline.translate(None, b"0")


def _numbers(piece: bytes) -> list[int | float] | None:
    try:
        numbers: list[int | float] = parse(b"[" + piece.translate(_WITHOUT_BRACKETS) + b"]")
    except InvalidArgument:
        return None
    return numbers


def _shape_of(outline: bytes) -> Shape | None:
    """The shape of lists that hold so many lists each; None when lists differ in length."""
    rank = _leading(outline)
    if not 0 < rank <= protocol.RANK_MAX:
        return None
    # From the inside: where the first list of each level ends, of how many lists it is.
    end = outline.find(b"]")
    if end < rank:
        return None
    sizes = [end - rank + 1]
    unit = b"[" + b"," * (end - rank) + b"]"
    for level in range(2, rank + 1):
        end = outline.find(b"]" * level, end - level + 2)
        if end < 0:
            return None
        length = end + level - (rank - level)
        size, rest = divmod(length - 1, len(unit) + 1)
        # Not by ``join``: that takes 88 bytes a list.
        unit = b"[%b]" % ((unit + b",") * size)[:-1]
        if rest or len(unit) != length:
            return None
        sizes.append(size)
    return tuple(reversed(sizes)) if unit == outline else None


def _leading(outline: bytes) -> int:
    """How many lists open at the start."""
    for place in range(protocol.RANK_MAX + 2):
        if outline[place : place + 1] != b"[":
            return place
    return protocol.RANK_MAX + 1
