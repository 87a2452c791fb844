"""The broker in virtual time when memory is short.

``VirtualBroker`` checks that no block is handed out while something may still read or write it;
these tests say that what waits for memory goes on, or why it cannot.
"""

from __future__ import annotations

from typing import Any

from support.broker_builders import ROW_NBYTES, make_model, make_signature, make_target
from support.virtual_broker import VirtualBroker

from batchyard.broker.queue import RequestGroup
from batchyard.wire.tensors import encode_strings

STRINGS = make_signature((("x", "string", (None,)),), ())


def broker(workers: int = 1) -> VirtualBroker:
    """An arena of 9 rows. A batch of 4 takes 5, one more for the alignment of its output."""
    made = VirtualBroker(make_model(), arena_nbytes=9 * ROW_NBYTES)
    for _ in range(workers):
        made.start_worker()
    return made


def strings_broker(**parameters: Any) -> VirtualBroker:
    b = VirtualBroker(make_model(**parameters), arena_nbytes=1024)
    b.start_workers(STRINGS, workers=2)
    return b


def ask_strings(b: VirtualBroker, *items: bytes) -> RequestGroup:
    target = make_target(("x", "string", (None,)))
    return b.ask(len(items), target=target, frames=[encode_strings(items)])


def test_the_block_of_a_lost_worker_is_not_used_before_it_is_reaped() -> None:
    b = broker(workers=2)
    first = b.ask(4)
    lost = b.tick_one()
    b.lose(lost.worker_id)
    group = b.ask(4)
    assert b.tick(1.0) == []
    b.reap(lost.worker_id)
    # What it ran goes first, where nothing else does.
    b.finish(b.tick_one())
    b.finish(b.tick_one())
    assert b.answers[first] == b.answers[group] == ["OK"]


def test_inputs_that_a_model_kept_hold_the_block_until_it_lets_go() -> None:
    b = broker()
    b.ask(4)
    batch = b.tick_one()
    b.finish(batch, kept=True)
    b.ask(4)
    assert b.tick() == []
    b.release(batch)
    assert b.tick_one().rows == 4


def test_inputs_that_a_lost_worker_kept_hold_the_block_until_it_is_reaped() -> None:
    b = broker(workers=2)
    b.ask(4)
    batch = b.tick_one()
    b.fail(batch, kept=True)
    b.lose(batch.worker_id)
    b.ask(4)
    assert b.tick() == []
    b.reap(batch.worker_id)
    assert b.tick_one().rows == 4


def test_the_block_is_held_until_the_replies_have_left() -> None:
    b = broker()
    b.ask(4)
    batch = b.tick_one()
    b.finish(batch, delivered=False)
    b.ask(4)
    assert b.tick() == []
    b.deliver(batch)
    assert b.tick_one().block == batch.block


def test_when_the_arena_is_full_requests_wait_and_grow() -> None:
    b = broker(workers=3)
    b.ask(4)
    first = b.tick_one()
    b.ask(2)
    b.ask(1, timeout_s=1.0)
    second = b.tick_one()
    b.ask(2)
    assert b.tick(0.1) == b.tick(0.1) == []
    b.ask(2)
    b.finish(first)
    assert [part.rows for part in b.tick_one().parts] == [2, 2]
    b.finish(second)


def test_waiting_for_memory_wakes_nobody() -> None:
    b = broker(workers=2)
    b.ask(4)
    batch = b.tick_one()
    b.ask(4)
    assert b.tick() == []
    assert b.state.next_wakeup() == float("inf")
    b.finish(batch)
    assert b.tick_one().rows == 4


def test_a_block_that_comes_back_wakes_what_waited_for_it() -> None:
    # The loop hears that replies left after it told that time passed: with nothing due it would
    # sleep, a worker idle and the arena empty.
    b = broker(workers=2)
    b.ask(4)
    batch = b.tick_one()
    b.finish(batch, delivered=False)
    b.ask(4)
    assert b.tick() == []
    b.deliver(batch)
    assert b.state.next_wakeup() <= b.now


def test_outputs_for_which_the_block_has_no_room_go_without() -> None:
    b = broker()
    b.ask(4)
    b.finish(b.tick_one(), output_nbytes=4 * 3 * ROW_NBYTES)
    b.ask(4)
    batch = b.tick_one()
    assert (batch.layout.output_nbytes, batch.layout.nbytes) == (0, 4 * ROW_NBYTES)
    b.finish(batch)
    # Fewer rows leave room for theirs.
    b.ask(2)
    assert b.tick_one().layout.output_nbytes == 2 * 3 * ROW_NBYTES + ROW_NBYTES


def test_strings_too_large_for_one_batch_go_in_smaller_ones() -> None:
    b = strings_broker()
    groups = [ask_strings(b, b"s" * 400) for _ in range(3)]
    rows = []
    for _ in groups:
        for batch in b.tick():
            rows.append(batch.rows)
            b.finish(batch)
    assert (sum(rows), max(rows) < 3) == (3, True)
    assert [b.answers[group] for group in groups] == [["OK"]] * 3


def test_a_request_larger_than_the_arena_is_refused_and_the_next_one_served() -> None:
    b = strings_broker()
    before, large, after = (ask_strings(b, b"s" * n) for n in (10, 2000, 20))
    for _ in range(3):
        for batch in b.tick():
            b.finish(batch)
    assert b.answers[large] == ["RESOURCE_EXHAUSTED"]
    for words in ("'m'", "arena of 1024 bytes", "arena_mb"):
        assert words in b.messages[-1]
    assert b.answers[before] == b.answers[after] == ["OK"]


def test_a_request_that_fits_alone_is_not_refused_for_its_neighbour() -> None:
    b = strings_broker(max_batch_size=8)
    first = ask_strings(b, *[b"s" * 150] * 4)
    second = ask_strings(b, b"s" * 600)
    for _ in range(2):
        for batch in b.tick():
            b.finish(batch)
    assert b.answers[first] == b.answers[second] == ["OK"]
