"""What clients may ask for at once is bounded: requests, their kinds, and what is remembered."""

from __future__ import annotations

from typing import Any

import pytest
from support.broker_builders import make_model, make_signature, make_target
from support.poison import run_all
from support.virtual_broker import VirtualBroker

from batchyard.broker.queue import RequestGroup

SEQUENCE = make_signature((("x", "float32", (None, None)),))
LANES_MAX = 2048


def broker(in_flight_max: int, **parameters: Any) -> VirtualBroker:
    made = VirtualBroker(make_model(**parameters), in_flight_max=in_flight_max)
    made.start_worker()
    return made


# Requests of one client


def test_a_client_may_have_so_many_requests_without_an_answer() -> None:
    b = broker(3)
    b.ask(1, 1)
    refused = b.ask(1, 1)
    assert b.answers[refused] == ["RESOURCE_EXHAUSTED"] * 2
    for words in ("2 requests without an answer", "at most 3", "max_in_flight_per_client"):
        assert words in b.messages[-1]
    assert b.answers[b.ask(1)] == [None]
    assert b.answers[b.ask(1)] == ["RESOURCE_EXHAUSTED"]
    # Others have a count of their own.
    assert b.answers[b.ask(1, 1, 1, client=b"other")] == [None] * 3


def test_requests_count_not_rows() -> None:
    b = broker(2)
    assert b.answers[b.ask(9, 9)] == [None, None]


def test_a_message_counts_until_all_of_it_is_answered() -> None:
    b = broker(4, max_batch_size=2)
    b.ask(*[1] * 4)
    first, ahead = b.tick()
    b.finish(first)
    assert b.answers[b.ask(1)] == ["RESOURCE_EXHAUSTED"]
    b.finish(ahead)
    assert b.answers[b.ask(*[1] * 4)] == [None] * 4


@pytest.mark.parametrize("ends", ["cancel", "leave", "expire", "fail", "no worker"])
def test_whatever_ends_a_message_makes_room(ends: str) -> None:
    b = broker(2, retry=False)
    group = b.ask(1, 1, timeout_s=1.0)
    if ends == "cancel":
        b.cancel(group)
    elif ends == "leave":
        b.leave(b"c")
    elif ends == "expire":
        b.tick_one()
        b.fail(b.running[1])
        b.tick(1.0)
    elif ends == "fail":
        b.fail(b.tick_one())
    else:
        b.lose(0)
        b.reap(0)
        b.start_worker()
    assert None not in b.answers[group]
    assert b.answers[b.ask(1, 1)] == [None, None]


def test_what_is_refused_does_not_count() -> None:
    b = broker(2)
    for _ in range(3):
        b.ask(1, 1, 1)
    assert b.answers[b.ask(1, 1)] == [None, None]


def test_what_runs_again_counts_once() -> None:
    b = broker(2)
    group = b.ask(1, 1)
    b.fail(b.tick_one())
    assert b.answers[b.ask(1)] == ["RESOURCE_EXHAUSTED"]
    run_all(b)
    assert b.answers[group] == ["OK", "OK"]
    assert b.answers[b.ask(1, 1)] == [None, None]


def test_a_message_that_is_sent_again_counts_for_who_sent_it() -> None:
    b = broker(2)
    group = b.ask(1, 1, message_id=1 << 50)
    b.tick()
    again = b.resend(group)
    assert b.answers[b.ask(1, client=b"again")] == ["RESOURCE_EXHAUSTED"]
    assert b.answers[b.ask(1, 1)] == [None, None]
    run_all(b)
    assert b.answers[again] == ["OK", "OK"]


# Kinds of requests


def of_length(b: VirtualBroker, length: int) -> RequestGroup:
    target = make_target(("x", "float32", (None, length)))
    return b.ask(1, target=target, frames=[bytes(4 * length)])


def test_so_many_lanes_may_hold_something() -> None:
    b = VirtualBroker(make_model())
    b.start_workers(SEQUENCE)
    # The books look at all groups after each: too slow for so many.
    b.check_books = lambda: None  # type: ignore[method-assign]
    groups = [of_length(b, length) for length in range(1, LANES_MAX + 1)]
    assert {b.answers[group][0] for group in groups} == {None}
    refused = of_length(b, LANES_MAX + 1)
    assert b.answers[refused] == ["RESOURCE_EXHAUSTED"]
    assert f"requests of {LANES_MAX} kinds" in b.messages[-1]
    # Of a kind that waits already there may be more.
    assert b.answers[of_length(b, 7)] == [None]
    b.cancel(groups[0])
    assert b.answers[of_length(b, LANES_MAX + 1)] == [None]


# What is remembered of targets


def test_a_long_target_is_not_remembered() -> None:
    b = VirtualBroker(make_model(enable_batching=False))
    inputs = [(f"{i}" * 200, "float32", (1,)) for i in range(10, 60)]
    specs = [(name, dtype, (1,)) for name, dtype, _ in inputs]
    b.start_workers(make_signature(specs))
    target = make_target(*inputs)
    assert len(target) > 16 * 1024
    first, second = b.catalog.route(target), b.catalog.route(target)
    assert first is not second
    assert first.lane is second.lane


def test_a_short_target_is_remembered() -> None:
    b = broker(9)
    assert b.catalog.route(make_target()) is b.catalog.route(make_target())
