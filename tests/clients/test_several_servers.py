"""Clients of several servers, each played: where calls go, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.played_broker import MODEL, Asked, PlayedBroker
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import AsyncClient, Client, errors

Brokers = list[PlayedBroker]


@pytest.fixture
def brokers() -> Iterator[Brokers]:
    with PlayedBroker() as one, PlayedBroker() as other:
        yield [one, other]


@pytest.fixture
def client(brokers: Brokers) -> Iterator[Client]:
    with Client([broker.endpoint for broker in brokers]) as client:
        client.metadata(MODEL)
        yield client


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def ask(client: Client, *values: float) -> Future[Any]:
    return client.submit(MODEL, floats(*values), timeout=DEADLINE_S)


def result(future: Future[Any]) -> list[float]:
    values: list[float] = future.result(DEADLINE_S)["y"].tolist()
    return values


def one_each(client: Client, brokers: Brokers) -> tuple[list[Future[Any]], list[Asked]]:
    """A call at each server, unanswered."""
    futures = [ask(client, 1), ask(client, 2)]
    asked = [broker.next() for broker in brokers]
    assert sorted(a.values[0] for a in asked) == [1, 2]
    return futures, asked


def up(client: Client) -> int:
    return sum(driver.session.takes_calls for driver in client._io.drivers)  # type: ignore


def test_calls_go_where_less_is_under_way(brokers: Brokers, client: Client) -> None:
    futures, asked = one_each(client, brokers)
    for a in asked:
        a.answer()
    assert [result(future) for future in futures] == [[2], [4]]
    held, (first, _) = one_each(client, brokers)
    first.answer()
    wait_until(lambda: any(future.done() for future in held), "one is answered")
    for _ in range(3):
        future = ask(client, 5)
        brokers[0].next().answer()
        assert result(future) == [10]


def test_calls_go_where_less_is_said_to_wait(brokers: Brokers, client: Client) -> None:
    brokers[0].answers = brokers[1].answers = True
    brokers[0].queued_rows = 1000
    for _ in range(4):
        client.predict(MODEL, floats(1))
    before = brokers[0].count
    for _ in range(10):
        client.predict(MODEL, floats(1))
    # What it said holds for a tenth of a second only.
    assert brokers[0].count - before <= 2


def test_what_a_lost_server_had_goes_to_another_at_once(brokers: Brokers, client: Client) -> None:
    futures, asked = one_each(client, brokers)
    brokers[0].kill()
    moved = brokers[1].next()
    assert moved.values == asked[0].values
    for a in (moved, asked[1]):
        a.answer()
    assert sorted(result(future)[0] for future in futures) == [2, 4]
    # New calls know.
    later = ask(client, 5)
    brokers[1].next().answer()
    assert result(later) == [10]
    # It is back.
    brokers[0].start()
    wait_until(lambda: up(client) == 2, "both are up")
    one_each(client, brokers)


def test_who_waits_on_its_own_thread_gets_the_answer_of_another(
    brokers: Brokers, client: Client
) -> None:
    with ThreadPoolExecutor() as elsewhere:
        waiting = [
            elsewhere.submit(client.predict, MODEL, floats(i), timeout=DEADLINE_S) for i in range(2)
        ]
        asked = [broker.next() for broker in brokers]
        brokers[0].kill()
        brokers[1].next().answer()
        asked[1].answer()
        assert [f.result(DEADLINE_S)["y"].tolist() for f in waiting] == [[0], [2]]


def test_what_must_not_run_twice_is_not_sent_elsewhere(brokers: Brokers) -> None:
    for broker in brokers:
        broker.retry = False
    with Client([broker.endpoint for broker in brokers]) as client:
        futures, asked = one_each(client, brokers)
        brokers[0].kill()
        asked[1].answer()
        ended = [future.exception(DEADLINE_S) for future in futures]
        (error,) = [e for e in ended if e is not None]
        assert isinstance(error, errors.Unavailable)
        assert "must not run twice" in error.message
        assert brokers[1].asked.empty()


def test_server_that_drains_gets_no_more_and_answers_what_it_has(
    brokers: Brokers, client: Client
) -> None:
    futures, asked = one_each(client, brokers)
    brokers[0].drain()
    later = [ask(client, 5) for _ in range(4)]
    brokers[1].answers = True
    while not brokers[1].asked.empty():
        brokers[1].next().answer()
    assert [result(future) for future in later] == [[10]] * 4
    for a in asked:
        a.answer()
    assert sorted(result(future)[0] for future in futures) == [2, 4]


def test_calls_that_cross_the_draining_go_to_another(brokers: Brokers, client: Client) -> None:
    """The server refuses them; the client learns only then why."""
    brokers[1].answers = True
    drained = brokers[0]
    drained.tell_draining = False
    drained.drain()
    assert [result(ask(client, i)) for i in range(6)] == [[2 * i] for i in range(6)]
    many = client.predict_many(MODEL, [floats(i) for i in range(6)], timeout=DEADLINE_S)
    assert [outputs["y"].tolist() for outputs in many] == [[2 * i] for i in range(6)]


def test_all_wait_until_any_server_is_back(brokers: Brokers, client: Client) -> None:
    futures, _ = one_each(client, brokers)
    for broker in brokers:
        broker.kill()
    wait_until(lambda: up(client) == 0, "both are gone")
    futures.append(ask(client, 3))
    brokers[1].answers = True
    brokers[1].start()
    assert sorted(result(future)[0] for future in futures) == [2, 4, 6]


def test_all_fails_when_none_comes_in_time(brokers: Brokers) -> None:
    endpoints = [broker.endpoint for broker in brokers]
    with Client(endpoints, reconnect_timeout=0.2) as client:
        futures, _ = one_each(client, brokers)
        for broker in brokers:
            broker.kill()
        for future in futures:
            with pytest.raises(errors.Unavailable, match="no server answered within"):
                future.result(DEADLINE_S)
        with pytest.raises(errors.Unavailable):
            client.stats()


def test_server_that_comes_later_is_used(brokers: Brokers) -> None:
    with PlayedBroker(starts=False) as late:
        endpoints = [late.endpoint, brokers[0].endpoint]
        with Client(endpoints) as client:
            client.metadata(MODEL)
            assert up(client) == 1
            late.start()
            wait_until(lambda: up(client) == 2, "both are up")
            one_each(client, [late, brokers[0]])


def test_two_ways_to_the_same_server_are_one(brokers: Brokers) -> None:
    broker = brokers[0]
    broker.answers = True
    with Client([broker.endpoint, broker.endpoint]) as client:
        wait_until(lambda: len(client._io.drivers) == 1, "one way is left")  # type: ignore
        assert result(ask(client, 1)) == [2]


def test_no_server_at_all(brokers: Brokers) -> None:
    endpoints = [broker.endpoint for broker in brokers]
    for broker in brokers:
        broker.kill()
    threads = threading.active_count()
    with pytest.raises(errors.Unavailable, match=f"at {endpoints[0]}, {endpoints[1]} within"):
        Client(endpoints, connect_timeout=0.05)
    assert threading.active_count() == threads


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, DEADLINE_S))


def test_an_asynchronous_client_does_the_same(brokers: Brokers) -> None:
    endpoints = [broker.endpoint for broker in brokers]

    async def main() -> None:
        in_thread = asyncio.get_running_loop().run_in_executor
        async with AsyncClient(endpoints) as client:
            calls = [asyncio.create_task(client.predict(MODEL, floats(i))) for i in (1, 2)]
            asked = [await in_thread(None, broker.next) for broker in brokers]
            await in_thread(None, brokers[0].kill)
            moved = await in_thread(None, brokers[1].next)
            for a in (moved, asked[1]):
                a.answer()
            assert [(await call)["y"].tolist() for call in calls] == [[2], [4]]
            brokers[1].answers = True
            for broker in brokers[:1]:
                broker.answers = True
                await in_thread(None, broker.start)
            await in_thread(None, brokers[1].drain)
            answers = await asyncio.gather(*(client.predict(MODEL, floats(i)) for i in range(9)))
            assert [outputs["y"].tolist() for outputs in answers] == [[2 * i] for i in range(9)]

    run(main())


def test_every_call_is_answered_while_servers_come_and_go(brokers: Brokers, client: Client) -> None:
    ends = False
    for broker in brokers:
        broker.answers = True

    def work(i: int) -> int:
        answered = 0
        while not ends:
            x = floats(i, answered)
            assert client.predict(MODEL, x, timeout=DEADLINE_S)["y"].tolist() == (2 * x).tolist()
            futures = [ask(client, j) for j in range(5)]
            assert [result(future) for future in futures] == [[2 * j] for j in range(5)]
            answered += 1
        return answered

    with ThreadPoolExecutor() as elsewhere:
        working = [elsewhere.submit(work, i) for i in range(3)]
        try:
            for i in range(8):
                count = sum(broker.count for broker in brokers)
                wait_until(lambda n=count + 20: sum(b.count for b in brokers) > n, "answers")
                if i % 3 == 2:
                    brokers[i % 2].drain()
                brokers[i % 2].kill()
                brokers[i % 2].start()
        finally:
            ends = True
        assert all(future.result(DEADLINE_S) for future in working)
    with contextlib.suppress(errors.Unavailable):
        client.stats()
