"""Clients whose broker is gone and comes back: what was not answered is sent again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.played_broker import MODEL, PlayedBroker
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import AsyncClient, Client, errors


@pytest.fixture
def broker() -> Iterator[PlayedBroker]:
    with PlayedBroker() as broker:
        yield broker


@pytest.fixture
def client(broker: PlayedBroker) -> Iterator[Client]:
    with Client(broker.endpoint) as client:
        client.metadata(MODEL)
        yield client


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Threads that may wait for the client."""
    with ThreadPoolExecutor() as threads:
        yield threads


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def test_what_was_not_answered_is_sent_again(broker: PlayedBroker, client: Client) -> None:
    answered = client.submit(MODEL, floats(1, 2))
    broker.next().answer()
    assert answered.result(DEADLINE_S)["y"].tolist() == [2, 4]
    waiting = client.submit(MODEL, floats(3), timeout=DEADLINE_S)
    first = broker.next()
    assert not first.resent
    broker.kill()
    broker.start()
    again = broker.next()
    assert again.resent
    assert (again.predict.message_id, again.values) == (first.predict.message_id, [3])
    # What the request still has, not what it had.
    assert isinstance(again.predict.timeouts_us, int)
    assert again.predict.timeouts_us < DEADLINE_S * 1e6
    again.answer()
    assert waiting.result(DEADLINE_S)["y"].tolist() == [6]
    assert broker.asked.empty()


def test_who_drives_the_connection_itself_gets_its_answer(
    broker: PlayedBroker, client: Client, elsewhere: ThreadPoolExecutor
) -> None:
    outputs = elsewhere.submit(client.predict, MODEL, floats(1), timeout=DEADLINE_S)
    first = broker.next()
    broker.kill()
    broker.start()
    again = broker.next()
    assert again.predict.message_id == first.predict.message_id
    again.answer()
    assert outputs.result(DEADLINE_S)["y"].tolist() == [2]


def test_many_requests_are_sent_again_together(
    broker: PlayedBroker, client: Client, elsewhere: ThreadPoolExecutor
) -> None:
    inputs = [floats(i) for i in range(5)]
    many = elsewhere.submit(client.predict_many, MODEL, inputs, timeout=DEADLINE_S)
    broker.next()
    broker.kill()
    broker.start()
    broker.next().answer()
    assert [y["y"].tolist() for y in many.result(DEADLINE_S)] == [[2 * i] for i in range(5)]


def test_what_was_given_up_is_cancelled_right_behind(broker: PlayedBroker, client: Client) -> None:
    client.submit(MODEL, floats(0))
    broker.next()
    # These wait while that is sent, and go together.
    with held_up(client):
        futures = [client.submit(MODEL, floats(i)) for i in range(3)]
    together = broker.next()
    assert together.values == [0, 1, 2]
    broker.kill()
    futures[1].cancel()
    broker.start()
    again = {asked.predict.message_id: asked for asked in (broker.next(), broker.next())}
    segment = [together.predict.message_id, 1, 1]
    wait_until(lambda: broker.cancelled == [segment], "it is cancelled")
    for asked in again.values():
        asked.answer()
    assert [futures[i].result(DEADLINE_S)["y"].tolist() for i in (0, 2)] == [[0], [4]]


@contextlib.contextmanager
def held_up(client: Client) -> Iterator[None]:
    """The client's thread sends nothing meanwhile."""
    thread = client._io
    thread._take_role()
    try:
        yield
    finally:
        thread._role.release()


def test_calls_and_queries_wait_for_the_next_broker(
    broker: PlayedBroker, client: Client, elsewhere: ThreadPoolExecutor
) -> None:
    client._route(MODEL, None, None, "serving_default", 0, None)
    broker.kill()
    wait_until(lambda: not client._io._session.is_up, "the client knows")
    call = client.submit(MODEL, floats(1))
    query = elsewhere.submit(client.stats)
    late = client.submit(MODEL, floats(2), timeout=0.05)
    with pytest.raises(errors.DeadlineExceeded):
        late.result(DEADLINE_S)
    broker.start()
    asked = broker.next()
    assert (asked.values, asked.resent) == ([1], False)
    asked.answer()
    assert call.result(DEADLINE_S)["y"].tolist() == [2]
    assert query.result(DEADLINE_S)["broker"]["epoch"] > 1


def test_nobody_waits_for_longer_than_the_reconnect_timeout(broker: PlayedBroker) -> None:
    with Client(broker.endpoint, reconnect_timeout=0.2) as client:
        call = client.submit(MODEL, floats(1))
        broker.next()
        before = time.monotonic()
        broker.kill()
        with pytest.raises(errors.Unavailable, match=r"lost and no server answered within 0.2 s"):
            call.result(DEADLINE_S)
        assert 0.2 <= time.monotonic() - before < 3
        before = time.monotonic()
        for attempt in (client.stats, lambda: client.predict(MODEL, floats(1))):
            with pytest.raises(errors.Unavailable):
                attempt()
        assert time.monotonic() - before < 0.2
        broker.answers = True
        broker.start()
        wait_until(lambda: works(client), "the client works again")
        assert client.predict(MODEL, floats(4))["y"].tolist() == [8]


def works(client: Client) -> bool:
    with contextlib.suppress(errors.Unavailable):
        return bool(client.stats())
    return False


def test_server_that_drains_gets_no_more(broker: PlayedBroker, client: Client) -> None:
    accepted = client.submit(MODEL, floats(1))
    asked = broker.next()
    lost = client.submit(MODEL, floats(2))
    broker.next()
    broker.drain()
    wait_until(lambda: client._io._session.is_draining, "the client knows")
    with pytest.raises(errors.Unavailable, match="shutting down"):
        client.predict(MODEL, floats(3))
    assert broker.count == 2
    asked.answer()
    assert accepted.result(DEADLINE_S)["y"].tolist() == [2]
    broker.kill()
    # What it had accepted, another may answer in its place; what is new it would not have taken.
    with pytest.raises(errors.Unavailable, match="shutting down"):
        client.predict(MODEL, floats(4))
    assert not lost.done()


def test_another_broker_is_asked_what_the_model_takes(broker: PlayedBroker, client: Client) -> None:
    broker.answers = True
    client.predict(MODEL, floats(1))
    route = client._route(MODEL, None, None, "serving_default", 0, None)
    assert route is client._route(MODEL, None, None, "serving_default", 0, None)
    # Another version answers than the one that was described.
    broker.version = 2
    client.predict(MODEL, floats(1))
    newer = client._route(MODEL, None, None, "serving_default", 0, None)
    assert newer is not route
    client.predict(MODEL, floats(1))
    assert newer is client._route(MODEL, None, None, "serving_default", 0, None)
    broker.refusal = errors.InvalidArgument("not this shape")
    with pytest.raises(errors.InvalidArgument):
        client.predict(MODEL, floats(1))
    assert newer is not client._route(MODEL, None, None, "serving_default", 0, None)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, DEADLINE_S))


async def other_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def test_asynchronous_calls_are_sent_again(broker: PlayedBroker) -> None:
    async def main() -> None:
        async with AsyncClient(broker.endpoint) as client:
            call = asyncio.create_task(client.predict(MODEL, floats(1)))
            first = await other_thread(broker.next)
            await other_thread(broker.kill)
            # It does not know yet, or waits already.
            later = asyncio.create_task(client.predict(MODEL, floats(2), timeout=DEADLINE_S))
            query = asyncio.create_task(client.stats())
            await asyncio.sleep(0)
            broker.answers = True
            await other_thread(broker.start)
            assert (await call)["y"].tolist() == [2]
            assert (await later)["y"].tolist() == [4]
            assert (await query)["broker"]["epoch"] > 1
            assert not first.resent

    run(main())


def test_asynchronous_calls_give_up(broker: PlayedBroker) -> None:
    async def main() -> None:
        async with AsyncClient(broker.endpoint, reconnect_timeout=0.1) as client:
            call = asyncio.create_task(client.predict(MODEL, floats(1)))
            await other_thread(broker.next)
            await other_thread(broker.kill)
            with pytest.raises(errors.Unavailable, match=r"no server answered within 0.1 s"):
                await call
            with pytest.raises(errors.Unavailable):
                await client.predict(MODEL, floats(1))

    run(main())


def test_every_call_is_answered_while_the_broker_dies_again_and_again(
    broker: PlayedBroker, client: Client, elsewhere: ThreadPoolExecutor
) -> None:
    broker.answers = True
    ends = False

    def ask(i: int) -> int:
        answered = 0
        while not ends:
            x = floats(i, answered)
            assert client.predict(MODEL, x, timeout=DEADLINE_S)["y"].tolist() == (2 * x).tolist()
            futures = [client.submit(MODEL, floats(j)) for j in range(5)]
            assert [f.result(DEADLINE_S)["y"][0] for f in futures] == [0, 2, 4, 6, 8]
            answered += 1
        return answered

    asking: list[Future[int]] = [elsewhere.submit(ask, i) for i in range(3)]
    try:
        for _ in range(5):
            count = broker.count
            wait_until(lambda count=count: broker.count > count + 20, "calls are answered")
            broker.kill()
            broker.start()
    finally:
        ends = True
    assert all(future.result(DEADLINE_S) for future in asking)
