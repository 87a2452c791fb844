"""The early-stopping rule: LoadGen's figures, exact binomials, and what looking often costs."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.benchmarks.load.early_stopping import Counts, Rule, at_most, least_in_time

RULE = Rule(share=0.99, least_s=0.0)


def exactly_at_most(events: int, draws: int, probability: Fraction) -> Fraction:
    """The binomial's sum, without rounding."""
    return sum(
        (
            math.comb(draws, k) * probability**k * (1 - probability) ** (draws - k)
            for k in range(events + 1)
        ),
        Fraction(0),
    )


def test_figures_of_loadgen() -> None:
    # Those that its single-stream floors come from: 64 queries for p90 and 662 for p99.
    assert least_in_time(0, 0.99, 0.99) == 459
    assert least_in_time(1, 0.99, 0.99) + 1 == 662
    assert least_in_time(1, 0.9, 0.99) + 1 == 64


@given(st.integers(0, 60), st.integers(1, 300), st.sampled_from([0.01, 0.1, 0.5]))
def test_binomial_is_exact(events: int, draws: int, probability: float) -> None:
    exact = float(exactly_at_most(min(events, draws), draws, Fraction(probability)))
    assert at_most(events, draws, probability) == pytest.approx(exact, rel=1e-9, abs=1e-12)


@given(st.integers(0, 3000))
def test_as_few_as_may_be_pass(late: int) -> None:
    needed = least_in_time(late, 0.99, 0.99)
    assert at_most(late, needed + late, 0.01) <= 0.01 < at_most(late, needed - 1 + late, 0.01)
    assert needed < least_in_time(late + 1, 0.99, 0.99)


@given(st.integers(0, 20_000), st.integers(0, 2000))
def test_no_trial_both_passes_and_fails(in_time: int, late: int) -> None:
    counts = Counts(in_time, late, 1.0)
    assert not (RULE.passed(counts) and RULE.failed(counts))


def test_nothing_passes_before_its_time_but_may_fail() -> None:
    rule = Rule(least_s=2.0)
    assert not rule.passed(Counts(5000, 0, 1.9))
    assert rule.passed(Counts(5000, 0, 2.0))
    assert rule.failed(Counts(0, 5, 0.1))
    assert not rule.failed(Counts(100, 0, 0.1))
    assert not rule.failed(Counts(0, 0, 0.0))


def test_those_on_the_way_may_be_late() -> None:
    assert RULE.passed(Counts(459, 0, 1.0))
    assert not RULE.passed(Counts(459, 0, 1.0, in_flight=1))
    assert RULE.passed(Counts(least_in_time(3, 0.99, 0.99), 0, 1.0, in_flight=200))


def test_undecided_until_the_longest_time() -> None:
    rule = Rule(most_s=10.0)
    assert not rule.decided(Counts(300, 2, 9.9))
    assert rule.decided(Counts(300, 2, 10.0))


def test_rare_requests_take_longer() -> None:
    assert RULE.at(1000.0).most_s == 60.0
    assert RULE.at(5.0).most_s == pytest.approx((least_in_time(5, 0.99, 0.99) + 5) / 5)


def test_looking_often_keeps_the_promise() -> None:
    """Looked at all the time, a share of 98.5 % never passes, and one of 99.5 % never fails.

    In 100 runs of up to 30,000 requests each, 99 % itself passes 15 times, 98.9 % once.
    """
    chance = random.Random(1)
    for share, wanted in ((0.985, "failed"), (0.995, "passed")):
        for _ in range(40):
            assert ended(share, chance) == wanted


def ended(share: float, chance: random.Random) -> str:
    in_time = late = 0
    for i in range(30_000):
        if chance.random() < share:
            in_time += 1
        else:
            late += 1
        if i % 50 == 0:
            counts = Counts(in_time, late, 1.0)
            if RULE.passed(counts):
                return "passed"
            if RULE.failed(counts):
                return "failed"
    return "undecided"


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"confidence": 0.0}, {"least_s": 70.0}])
def test_rules_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        Rule(**wrong)
