"""Numbers in JSON, digit by digit as TensorFlow Serving prints them.

A float has six significant digits, as ``%g`` prints it, when they say it exactly; else as many as
always do: nine of a float32, seventeen of a float64. Whole ones end in ``.0``, unless they have an
exponent.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import orjson

from batchyard.clients.inputs import Array

_FLOAT32 = struct.Struct("f")
_NON_FINITE = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


def float_text(value: float, is_double: bool) -> bytes:
    """A float64 or, as the float64 that it equals, a float32."""
    if not math.isfinite(value):
        return _NON_FINITE[str(value)]
    text = b"%.6g" % value
    again = float(text)
    if (again if is_double else _as_float32(again)) != value:
        text = b"%.*g" % (17 if is_double else 9, value)
    return text if b"." in text or b"e" in text else text + b".0"


def _as_float32(value: float) -> float:
    rounded: float = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    return rounded


def tokens(array: Array) -> list[bytes]:
    """Each element's text, in C order: of numbers and bools."""
    if array.dtype.kind in "biu":
        return integer_tokens(array)
    is_double = array.dtype == np.float64
    values = array.astype(np.float64).ravel().tolist()
    return [float_text(value, is_double) for value in values]


def integer_tokens(array: Array) -> list[bytes]:
    """Each element's text: of whole numbers and bools."""
    if not array.size:
        return []
    flat = np.ascontiguousarray(array).reshape(-1)
    return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
