"""How long batches take, as it is learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker.durations import Durations, Errors

seconds = st.floats(1e-6, 1e3)


def learned(*runs: tuple[int, float], now: float = 0.0) -> Durations:
    durations = Durations()
    for rows, took in runs:
        durations.learn(rows, took, now)
    return durations


def test_nothing_is_known_at_first() -> None:
    assert not Durations().is_known
    assert learned((1, 1.0)).is_known


@given(st.lists(st.floats(1.0, 2.0), min_size=2, max_size=30))
def test_it_is_the_second_longest_of_the_last_ten_runs(runs: list[float]) -> None:
    durations = learned(*((4, took) for took in runs))
    assert durations.expected(4) == sorted(runs[-10:])[-2]


@given(
    st.lists(st.floats(0.9, 1.1), min_size=3, max_size=9),
    st.lists(st.floats(3.0, 1e6), min_size=1, max_size=2),
)
def test_outliers_move_nothing(runs: list[float], outliers: list[float]) -> None:
    assert learned(*((4, took) for took in [*runs, *outliers])).expected(4) <= max(runs)


def test_between_two_sizes_and_beyond_them_it_is_on_their_line() -> None:
    durations = learned((2, 1.0), (2, 1.0), (6, 3.0), (6, 3.0))
    assert [durations.expected(rows) for rows in (1, 2, 3, 4, 6, 8)] == [
        1.0,
        1.0,
        1.5,
        2.0,
        3.0,
        4.0,
    ]


def test_beyond_the_largest_it_is_never_less() -> None:
    assert learned((2, 3.0), (2, 3.0), (6, 1.0), (6, 1.0)).expected(8) == 1.0
    assert learned((2, 3.0)).expected(8) == 3.0


def test_a_size_that_ran_once_is_believed_as_far_as_its_neighbours_confirm_it() -> None:
    around = [(2, 1.0), (2, 1.0), (6, 3.0), (6, 3.0)]
    assert learned(*around, (4, 99.0)).expected(4) == 2.0
    assert learned(*around, (4, 1.5)).expected(4) == 1.5
    assert learned(*around, (4, 9.0), (4, 9.0)).expected(4) == 9.0
    assert learned((4, 99.0)).expected(4) == 99.0


def test_it_follows_a_device_that_becomes_slower_or_faster_after_three_runs() -> None:
    durations = learned(*[(4, 1.0)] * 10, (4, 5.0), (4, 5.0))
    assert durations.expected(4) == 1.0
    durations.learn(4, 5.0, 0.0)
    assert durations.expected(4) == 5.0
    for _ in range(3):
        durations.learn(4, 1.0, 0.0)
    assert durations.expected(4) == 1.0


def test_the_warm_up_says_nothing_that_batches_have_not() -> None:
    durations = Durations()
    durations.seed(4, 1.0)
    durations.seed(4, 1.0)
    assert durations.expected(4) == 1.0
    durations.learn(4, 2.0, 0.0)
    durations.seed(4, 9.0)
    durations.seed(8, 9.0)
    assert durations.expected(8) == 1.0


@pytest.mark.parametrize(("age", "least"), [(0.0, 8.0), (1.0, 8.0), (2.0, 4.0), (4.0, 1.0)])
def test_what_was_not_measured_for_long_is_doubted(age: float, least: float) -> None:
    durations = learned((4, 8.0), now=100.0)
    assert durations.least(4, 100.0 + age) == least
    assert durations.expected(4) == 8.0


def test_a_size_is_doubted_though_others_are_measured_but_not_below_smaller_ones() -> None:
    durations = learned((8, 8.0), (8, 8.0), now=100.0)
    durations.learn(2, 3.0, 110.0)
    assert durations.least(8, 110.0) == 3.0
    assert durations.least(4, 110.0) == 3.0
    durations.learn(8, 8.0, 110.0)
    assert durations.least(8, 110.0) == 8.0


def test_what_was_only_warmed_up_is_doubted_from_when_it_is_asked_for() -> None:
    durations = Durations()
    durations.seed(4, 8.0)
    assert durations.least(4, 50.0) == 8.0
    assert durations.least(4, 53.0) == 2.0


def test_times_are_steady_when_all_but_one_are_much_the_same() -> None:
    assert learned((4, 1.0), (4, 1.2), (4, 1.1), (4, 9.0)).is_steady(4)
    assert not learned((4, 1.0), (4, 1.4), (4, 1.4)).is_steady(4)
    # Not to be said of what ran twice, or at another size.
    assert not learned((4, 1.0), (4, 1.0)).is_steady(4)
    assert not learned(*[(4, 1.0)] * 3).is_steady(5)


def test_handing_over_is_learned_beside_it() -> None:
    durations = Durations()
    assert durations.handing_s == 0.0
    for took in (0.001, 0.0019, 0.0015):
        durations.learn_handing(took)
    assert durations.handing_s == 0.0015


def test_errors_are_counted_by_quantiles() -> None:
    errors = Errors()
    assert (errors.accuracy.count, errors.accuracy.p99) == (0, 0.0)
    for i in range(100):
        errors.add(1.0 + i / 100, 1.0)
    errors.add(1.0, 0.0)
    accuracy = errors.accuracy
    assert (accuracy.count, accuracy.p50, accuracy.p99) == pytest.approx((100, 0.49, 0.98))
