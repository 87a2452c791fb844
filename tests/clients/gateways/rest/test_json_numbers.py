"""The digits of floats: %.6g where that is exact, else as many as always are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from batchyard.clients.gateways.rest.json_decimals import decimals_text
from batchyard.clients.gateways.rest.json_numbers import float_texts
from batchyard.clients.inputs import Array


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9000000, b"9e+06"),
        (999999, b"999999.0"),
        (0.5, b"0.5"),
        (0.0003, b"0.0003"),
        (0.00003, b"3e-05"),
        (555557.5, b"555557.5"),
        (3, b"3.0"),
        (0.2, b"0.2"),
        (0.1 + 0.7, b"0.8"),
        (1 / 3, b"0.333333343"),
        (16777216, b"16777216.0"),
        (1234567.0, b"1234567.0"),
        (0.0, b"0.0"),
        (-0.0, b"-0.0"),
        (-1.5e-7, b"-1.5e-07"),
        (3.4028234663852886e38, b"3.40282347e+38"),
        (1e-45, b"1.4013e-45"),
        (math.nan, b"NaN"),
        (math.inf, b"Infinity"),
        (-math.inf, b"-Infinity"),
    ],
)
def test_float32(value: float, text: bytes) -> None:
    assert float_texts([float(np.float32(value))], is_double=False) == [text]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2, b"0.2"),
        (1 / 3, b"0.33333333333333331"),
        (123456789.0, b"123456789.0"),
        (1e17, b"1e+17"),
        (2.0**60, b"1.152921504606847e+18"),
        (1.7976931348623157e308, b"1.7976931348623157e+308"),
        (5e-324, b"4.94066e-324"),
    ],
)
def test_float64(value: float, text: bytes) -> None:
    assert float_texts([value], is_double=True) == [text]


def check(values: Array) -> None:
    is_double = values.dtype == np.float64
    one_by_one = float_texts(values.astype(np.float64).tolist(), is_double=is_double)
    with np.errstate(all="raise"):
        together = decimals_text(values, [(1, b", "), (3, b"; ")], is_double=is_double)
    assert together.replace(b"; ", b", ").split(b", ") == one_by_one
    assert together.count(b"; ") == (len(values) - 1) // 3


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)))
def test_float32_together_and_one_by_one(values: Array) -> None:
    check(values)


@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats()))
def test_float64_together_and_one_by_one(values: Array) -> None:
    check(values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_of_each_kind(dtype: type) -> None:
    random = np.random.default_rng(7)
    count = 6000
    with np.errstate(all="ignore"):
        for values in (
            random.integers(0, 1 << 63, count).view(np.float64),
            random.integers(0, 1 << 32, count).astype(np.uint32).view(np.float32),
            random.random(count),
            random.normal(size=count) * 10 ** random.uniform(-20, 12, count),
            random.integers(0, 1 << 20, count) / 8192,
            random.integers(0, 10**8, count),
            random.integers(0, 10**6, count) / 10.0 ** random.integers(0, 38, count),
            10.0 ** np.arange(-46, 39),
            2.0 ** np.arange(-150, 128),
            # So near to a half in the ninth digit that float64 cannot tell.
            np.array([3.072132665e-18, 6.606743785000001e-29, 4.303735865e-15, 1.241188955e-13]),
            np.array([999999.5, 9999995, 999999.95, 0.00009999995, 99999.95, 0, -0.0, -1]),
        ):
            check(values.astype(dtype))


def test_six_digits_that_lie_about_halfway_between_two_float32() -> None:
    """Of all below 1e-17, those that are nearest to that: float64 is just exact enough."""
    nearest = [784327e-36, 723893e-39, 712479e-27, 645063e-40, 771519e-31, 397617e-32, 644005e-26]
    with np.errstate(under="ignore"):
        values = np.array(nearest).astype(np.float32)
        check(values)
        for towards in (0, 1):
            check(np.nextafter(values, np.float32(towards)))
