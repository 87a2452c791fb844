"""The search for the highest rate, against servers made of arithmetic."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.benchmarks.load.early_stopping import Counts, Rule
from batchyard.benchmarks.load.search import (
    Found,
    Observed,
    find_offline,
    find_rate,
)

RULE = Rule(least_s=2.0, most_s=60.0)
Share = Callable[[float], float]


def server(
    share_at: Share, hiccups: frozenset[int] = frozenset()
) -> Callable[[float, int, Rule], Observed]:
    """One whose share of requests in time depends on the rate alone, but for some trials."""
    tried = 0

    def attempt(rate: float, seed: int, rule: Rule) -> Observed:
        nonlocal tried
        share = 0.5 if tried in hiccups else share_at(rate)
        tried += 1
        chance = random.Random(seed)
        in_time = late = 0
        while True:
            for _ in range(max(1, int(rate / 4))):
                if chance.random() < share:
                    in_time += 1
                else:
                    late += 1
            counts = Counts(in_time, late, (in_time + late) / rate)
            if rule.decided(counts):
                return Observed(counts)

    return attempt


def cliff(capacity: float) -> Share:
    """All in time below the capacity, half of them above it."""
    return lambda rate: 0.9995 if rate <= capacity else 0.5


@given(st.floats(5, 3000), st.floats(0.02, 30))
def test_finds_the_capacity(capacity: float, start_over_capacity: float) -> None:
    found = find_rate(server(cliff(capacity)), capacity * start_over_capacity, RULE)
    assert capacity / 1.021 <= found.rate <= capacity
    assert found.failed_at is not None
    assert capacity < found.failed_at <= found.rate * 1.021
    assert len(found.trials) <= 22


@pytest.mark.parametrize("hiccup", range(12))
def test_one_hiccup_does_not_decide(hiccup: int) -> None:
    found = find_rate(server(cliff(900.0), frozenset([hiccup])), 100.0, RULE)
    assert 900 / 1.05 <= found.rate <= 900
    last = [trial for trial in found.trials if trial.rate == found.failed_at]
    assert [trial.passed for trial in last] == [False, False]
    # Two trials with the same arrivals would have the same luck.
    assert len({trial.seed for trial in found.trials}) == len(found.trials)


def test_a_share_that_slopes_is_found_where_it_is_shown_to_hold() -> None:
    # 99 % at 500: just below, a trial would take longer than it may.
    found = find_rate(server(lambda rate: 1 - 0.01 * (rate / 500) ** 4), 100.0, RULE)
    assert 450 <= found.rate <= 505
    # What is far from the goal is decided soon.
    assert min(trial.seconds for trial in found.trials) <= 5.0


def test_swarms_that_short_trials_do_not_see() -> None:
    def attempt(rate: float, seed: int, rule: Rule) -> Observed:
        long = rule.least_s >= 30
        late = 0.5 if rate > 600 else 0.05 if long and rate > 500 else 0.0
        sent = round(rate * 30)
        return Observed(Counts(round(sent * (1 - late)), round(sent * late), 30.0))

    assert 600 / 1.021 <= find_rate(attempt, 100.0, RULE).rate <= 600
    found = find_rate(attempt, 100.0, RULE, confirm=Rule(least_s=30.0))
    assert 500 / 1.021 <= found.rate <= 500
    assert found.failed_at == pytest.approx(found.rate * 1.02)
    assert [trial.passed for trial in found.trials if trial.confirms][-2:] == [False, True]


def test_what_no_long_trial_confirms_is_not_found() -> None:
    def attempt(rate: float, seed: int, rule: Rule) -> Observed:
        late = round(rate) if rule.least_s == 30 or rate > 500 else 0
        return Observed(Counts(round(30 * rate) - late, late, rule.least_s))

    found = find_rate(attempt, 100.0, RULE, confirm=Rule(least_s=30.0))
    assert found.rate == 0
    assert len(found.trials) < 40


def test_a_growing_queue_does_not_pass() -> None:
    calm = server(cliff(2000.0))

    def attempt(rate: float, seed: int, rule: Rule) -> Observed:
        return Observed(calm(rate, seed, rule).counts, "its queue grows" if rate > 300 else "")

    found = find_rate(attempt, 100.0, RULE)
    assert 300 / 1.021 <= found.rate <= 300
    assert "its queue grows" in {trial.why for trial in found.trials}


def test_a_server_that_is_never_in_time() -> None:
    found = find_rate(server(lambda rate: 0.2), 100.0, RULE, least_rate=1.0)
    assert found.rate == 0
    assert all(trial.rate >= 1.0 for trial in found.trials)


def test_no_more_than_the_generator_can_send() -> None:
    found = find_rate(server(cliff(1e9)), 100.0, RULE, most_rate=1000.0)
    assert found.rate == 1000.0
    assert found.failed_at is None


def test_no_more_trials_than_allowed() -> None:
    seen = []
    found = find_rate(server(cliff(900.0)), 1.0, RULE, most_trials=5, on_trial=seen.append)
    assert seen == found.trials
    assert len(seen) == 5
    assert found.failed_at is None


def test_undecided_is_not_passed() -> None:
    def attempt(rate: float, seed: int, rule: Rule) -> Observed:
        return Observed(Counts(300, 2, rule.most_s))

    found = find_rate(attempt, 100.0, RULE, least_rate=50.0)
    assert found.trials[0].why.startswith("undecided at 99.34%")
    assert found.rate == 0


def test_offline_doubles_callers_while_that_helps() -> None:
    found = find_offline(lambda callers: min(1000.0, 3.0 * callers), callers=64)
    assert list(found) == [64, 128, 256, 512, 1024]
    assert max(found.values()) == 1000.0
    assert list(find_offline(lambda callers: float(callers), callers=64, most_callers=256)) == [
        64,
        128,
        256,
    ]


def test_found_as_json() -> None:
    found = find_rate(server(cliff(900.0)), 800.0, RULE)
    found = Found(
        found.rate, found.failed_at, 0.99, 0.99, 0.02, found.trials, {64: 900.0, 128: 1000.0}
    )
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.offline_rate == 1000.0
    assert found.server_over_offline == found.rate / 1000.0
