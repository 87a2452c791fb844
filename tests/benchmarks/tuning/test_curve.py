"""What follows from measured execution times alone."""

from __future__ import annotations

import pytest

from batchyard.benchmarks.tuning.bench import Execution
from batchyard.benchmarks.tuning.curve import Curve


def curve(*points: tuple[int, float], first: float = 0.0) -> Curve:
    return Curve([Execution(rows, seconds, first or seconds) for rows, seconds in points])


def test_between_sizes_lies_the_line() -> None:
    measured = curve((1, 0.010), (4, 0.016), (8, 0.020))
    assert measured.seconds(4) == 0.016
    assert measured.seconds(2) == pytest.approx(0.012)
    assert measured.seconds(16) == pytest.approx(0.028)


def test_a_larger_batch_is_never_quicker() -> None:
    assert curve((1, 0.010), (2, 0.009), (4, 0.012)).seconds(2) == 0.010


def test_one_size_alone_grows_by_rows() -> None:
    assert curve((2, 0.010)).seconds(4) == pytest.approx(0.020)
    assert curve((2, 0.010)).seconds(1) == 0.010


def test_sizes_that_make_most_rows() -> None:
    measured = curve((1, 0.010), (8, 0.011), (16, 0.0215), (32, 0.050))
    assert measured.fastest == 16
    assert measured.smallest_within(0.97) == 8
    assert measured.rows_per_s(8) == pytest.approx(8 / 0.011)


def test_what_compiles_is_slow_at_first() -> None:
    assert curve((1, 0.01), (2, 0.01), (4, 0.01), first=0.5).compiles
    assert not curve((1, 0.01), (2, 0.01), (4, 0.01), first=0.03).compiles
