"""Numbers in JSON, digit by digit as TensorFlow Serving prints them.

A float has six significant digits, as ``%g`` prints it, when they say it exactly; else as many as
always do: nine of a float32, seventeen of a float64. Whole ones end in ``.0``, unless they have an
exponent.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_NON_FINITE = {b"nan": b"NaN", b"-nan": b"NaN", b"inf": b"Infinity", b"-inf": b"-Infinity"}


def float_texts(values: Sequence[float], *, is_double: bool) -> list[bytes]:
    """Each number's text: of float64, or of float32 as the float64 that it equals."""
    count = len(values)
    numbers = tuple(values)
    short = (b"%.6g " * count % numbers).split()
    full = ((b"%.17g " if is_double else b"%.9g ") * count % numbers).split()
    again: Sequence[float] = [float(text) for text in short]
    if not is_double:
        again = struct.unpack(f"{count}f", struct.pack(f"{count}f", *again))
    return [
        _as_float(text if said == value else all_digits)
        for text, said, value, all_digits in zip(short, again, values, full, strict=True)
    ]


def _as_float(text: bytes) -> bytes:
    return text if b"." in text or b"e" in text else _NON_FINITE.get(text) or text + b".0"
