"""Many floats to JSON text at once, with the digits of ``json_numbers.float_texts``.

Each number is a row of bytes: groups of digits looked up in tables, a separator, and NUL wherever
the number needs nothing; what is left without the NULs is the text. Numbers whose digits float64
cannot tell for certain (of a float32 those at the edge of rounding, and below 1e-37 or from 1e21;
of a float64 all that need more than six digits) are printed by Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from batchyard.clients.gateways.rest.json_numbers import float_texts
from batchyard.clients.inputs import Array

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]
# Four bytes each.
Groups = npt.NDArray[np.uint32]

# Of numbers at once: their columns fit the processor's cache.
_AT_ONCE = 8192
# What float64 loses of nine digits is a thousandth of this.
_NEAR_HALF = 0.5 - 1e-6
_NUMBER_NBYTES = 28
# Exponents of ten of the first digit.
_TENS_MIN, _TENS_MAX = -37, 21
# From here on float64 has exactly all powers of ten that six digits need.
_TENS_EXACT = -17
_TENS = range(_TENS_MIN, _TENS_MAX + 3)


def _group(texts: Sequence[str]) -> Groups:
    """A table of texts of up to four characters, each as one number."""
    return np.array(texts, "S4").view(np.uint32)


_FULL3 = [f"{n:03}" for n in range(1000)]
_SHORT3 = ["", *(f"{n}" for n in range(1, 1000))]
_UNITS3 = [*_FULL3, "0", *_SHORT3[1:]]
_MILLIONS = _group(_SHORT3)
# 1000 more where nothing stands before.
_THOUSANDS = _group([*_FULL3, *_SHORT3])
# 1000 more where nothing stands before; 2000 more where nothing follows.
_UNITS = _group([*(f"{text}." for text in _UNITS3), *_UNITS3])
# 10,000 more where nothing follows; 20,000 where a number ends in .0.
_FOUR = [f"{n:04}" for n in range(10_000)]
_FRACTIONS = _group([*_FOUR, *(text.rstrip("0") for text in _FOUR), "0"])
# The exponent of ten of a power of two: as great as that of a number below its double, or one less.
_TWOS_MIN = -1100
_TENS_OF_TWOS = np.floor(np.arange(_TWOS_MIN, 1100) * np.log10(2.0)).astype(np.intp)


def _by_tens(value_of: Callable[[int], float]) -> Floats:
    """A table of a number for each exponent of ten, from ``_TENS_MIN``."""
    return np.array([value_of(tens) for tens in _TENS], np.float64)


_POWER = _by_tens(lambda tens: float(f"1e{tens}"))
# What makes whole numbers of six and nine digits: by the first multiplied, by the second divided.
_UP = {
    6: _by_tens(lambda tens: 10.0 ** max(5 - tens, 0)),
    9: _by_tens(lambda tens: 10.0 ** max(8 - tens, 0)),
}
_DOWN = {
    6: _by_tens(lambda tens: 10.0 ** max(tens - 5, 0)),
    9: _by_tens(lambda tens: 10.0 ** max(tens - 8, 0)),
}
# Where nine digits come out exactly: the 24 bits of a float32 times 5**12, which has 28, and what
# is left after a division lies nowhere near a half unless it is one.
_IS_EXACT = _by_tens(lambda tens: -8 <= 8 - tens <= 12) == 1

# For exponents of numbers of nine digits, then of six.
_LAYOUTS = [(tens, 9) for tens in _TENS] + [(tens, 6) for tens in _TENS]
_HAS_E = np.array([tens < -4 or tens >= n for tens, n in _LAYOUTS])
# Digits after the point, of nine.
_AFTER = [8 if has_e else 8 - tens for (tens, _), has_e in zip(_LAYOUTS, _HAS_E, strict=True)]
_ONES = np.array([10.0**after for after in _AFTER])
_TO_TWELVE = np.array([10.0 ** (12 - after) for after in _AFTER])
_EXPONENTS = _group(
    [f"e{t:+03}" if has_e else "" for (t, _), has_e in zip(_LAYOUTS, _HAS_E, strict=True)]
)


def decimals_text(values: Array, ends: Sequence[tuple[int, bytes]], *, is_double: bool) -> bytes:
    """The numbers of a flat array, float64 or float32, in their order.

    ``ends`` says what stands after each number: of pairs ``(every, separator)``, by rising
    numbers, the last whose number divides how many numbers there are before. After the last
    number stands nothing.
    """
    width = max(-(-len(separator) // 4) for _, separator in ends)
    fields = [("number", np.uint32, (_NUMBER_NBYTES // 4,)), ("end", np.uint32, (width,))]
    columns = np.zeros(min(len(values), _AT_ONCE), fields)
    padded = [
        (every, np.frombuffer(separator.ljust(width * 4, b"\0"), np.uint32))
        for every, separator in ends
    ]
    parts = []
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        rows = columns[: len(part)]
        with np.errstate(all="ignore"):
            _write_numbers(rows["number"], part, is_double)
        for every, separator in padded:
            rows["end"][(every - 1 - start) % every :: every] = separator
        if start + len(part) == len(values):
            rows["end"][-1] = 0
        parts.append(rows.tobytes().translate(None, b"\0"))
    return b"".join(parts)


def _write_numbers(rows: Groups, values: Array, is_double: bool) -> None:
    exact = values.astype(np.float64)
    size = np.abs(exact)
    is_zero = exact == 0
    # Neither zero nor NaN nor infinite.
    is_in_range = (size >= 10.0**_TENS_MIN) & (size < 10.0**_TENS_MAX)
    if not is_in_range.all():
        size = np.where(is_in_range, size, 1.0)
    place = _TENS_OF_TWOS[np.frexp(size)[1] - 1 - _TWOS_MIN] - _TENS_MIN
    place += size >= _POWER[place + 1]
    digits, layout, is_certain = _digits(size, place, is_double)
    if is_zero.any():
        digits[is_zero] = 0
    _write_groups(rows, digits, layout)
    is_negative = np.signbit(exact)
    if is_negative.any():
        rows[:, 0] <<= 8 * is_negative.astype(np.uint32)
        rows[:, 0] |= ord("-") * is_negative.astype(np.uint32)
    is_open = ~is_zero & ~(is_certain & is_in_range)
    if is_double:
        # Six digits were tried: all seventeen it is.
        is_long = is_open & is_in_range & (place >= _TENS_EXACT - _TENS_MIN)
        is_long &= exact != np.rint(exact)
        full = b"%.17g " * int(np.count_nonzero(is_long)) % tuple(exact[is_long].tolist())
        _write_texts(rows, is_long, full.split())
        is_open &= ~is_long
    _write_texts(rows, is_open, float_texts(exact[is_open].tolist(), is_double=is_double))


def _write_texts(rows: Groups, which: Flags, texts: list[bytes]) -> None:
    if texts:
        rows[which] = np.array(texts, f"S{_NUMBER_NBYTES}").view(np.uint32).reshape(len(texts), -1)


def _digits(size: Floats, place: Places, is_double: bool) -> tuple[Floats, Places, Flags]:
    """Nine digits as a whole number, their layout, and whether all that is certain."""
    is_large = bool((place > 5 - _TENS_MIN).any())
    # At the edge of rounding it does not matter which way: six digits are not enough there.
    six = np.rint(_scaled(size, place, 6, is_large))
    again = six / _UP[6][place]
    if is_large:
        again *= _DOWN[6][place]
    is_six = (again if is_double else again.astype(np.float32)) == size
    if is_double:
        is_exact = place >= _TENS_EXACT - _TENS_MIN
        digits, is_certain = six * 1000, is_six & is_exact
    else:
        scaled = _scaled(size, place, 9, is_large)
        nine = np.rint(scaled)
        is_certain = (np.abs(scaled - nine) < _NEAR_HALF) | _IS_EXACT[place]
        digits = np.where(is_six, six * 1000, nine)
        # Also where powers of ten are not exact: of all numbers of six digits there, the nearest to
        # what lies halfway between two float32 is 2**-48 of itself away; errors are below 2**-51.
        is_certain |= is_six
    carries = digits >= 1e9
    if carries.any():
        digits[carries] = 1e8
        place = place + carries
    return digits, place + is_six * np.intp(len(_TENS)), is_certain


def _scaled(size: Floats, place: Places, n: int, is_large: bool) -> Floats:
    """With ``n`` digits before the point."""
    scaled = size * _UP[n][place]
    if is_large:
        scaled /= _DOWN[n][place]
    return scaled


def _write_groups(rows: Groups, digits: Floats, layout: Places) -> None:
    ones = _ONES[layout]
    whole = np.floor(digits / ones)
    fraction = ((digits - whole * ones) * _TO_TWELVE[layout]).astype(np.intp)
    first = fraction // 100_000_000
    rest = fraction - first * 100_000_000
    second = rest // 10_000
    third = rest - second * 10_000
    has_e = _HAS_E[layout]
    _write_whole(rows, whole.astype(np.intp), (fraction == 0) & has_e)
    first += (rest == 0) * np.intp(10_000)
    first[(fraction == 0) & ~has_e] = 20_000
    second += (third == 0) * np.intp(10_000)
    rows[:, 3] = _FRACTIONS[first]
    rows[:, 4] = _FRACTIONS[second]
    rows[:, 5] = _FRACTIONS[third + 10_000]
    rows[:, 6] = _EXPONENTS[layout]


def _write_whole(rows: Groups, whole: Places, is_all: Flags) -> None:
    units = whole
    if (whole >= 1000).any():
        thousands = whole // 1000
        units = whole - thousands * 1000
        millions = thousands // 1000
        rows[:, 0] = _MILLIONS[millions]
        thousands -= millions * 1000
        rows[:, 1] = _THOUSANDS[thousands + (millions == 0) * np.intp(1000)]
    else:
        rows[:, :2] = 0
    units = units + (whole < 1000) * np.intp(1000)
    units += is_all * np.intp(2000)
    rows[:, 2] = _UNITS[units]
