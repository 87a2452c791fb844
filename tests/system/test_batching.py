"""Requests become batches, seen from outside: by models that tell what they were given."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.server import Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import AsyncClient, Client
from batchyard.clients.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)

BATCH = 16
NO_GATE = {"gate": np.zeros(1, np.int64)}
Outputs = dict[str, Any]
_gate_numbers = itertools.count(1)


def gated(name: str, **batching: Any) -> str:
    return model_table(name, callable_path("gated"), **batching)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker, so that a batch that stands before a gate holds everything up."""
    recorded = callable_path("recorded")
    x = {"x": ("float32", [-1])}
    declared = {"inputs": x, "outputs": {"y": ("float32", [-1]), "rows": ("int64", [-1])}}
    config = (
        gated("gated", max_batch_size=BATCH)
        + gated("short_queue", max_batch_size=4, max_enqueued_batches=2)
        + gated("unsplit", max_batch_size=4, enable_large_batch_splitting=False)
        + gated("patient", max_batch_size=3, batch_timeout_micros=60_000_000)
        + gated("timed", max_batch_size=64, batch_timeout_micros=400_000)
        + model_table("sized", recorded, max_batch_size=8, allowed_batch_sizes=[1, 4, 8])
        + model_table("declared", recorded, signature=declared, max_batch_size=8)
        + model_table("fails", callable_path("fails"))
    )
    with Server(config=config) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_stays(server: Server) -> Any:
    yield
    server.wait_until_idle()


@contextmanager
def held_up(server: Server, client: Client) -> Iterator[None]:
    """In the block the server's only worker runs a batch that does not end."""
    gate = next(_gate_numbers)
    # Of a shape that never ran: the broker cannot predict when it ends.
    future = client.submit("gated", {"gate": np.full((1, 1000 + gate), gate)})
    server.gates.wait_until_reached(gate)
    try:
        yield
    finally:
        server.gates.open(gate)
        future.result(DEADLINE_S)


def wait_until_queued(server: Server, rows: int, model: str = "gated") -> None:
    wait_until(
        lambda: server.model_stats(model)["queue_rows"] == rows,
        lambda: f"{rows} rows of {model} wait, but {server.model_stats(model)}",
    )


def batches_of(outputs: list[Outputs]) -> list[int]:
    """The batch that each request was in, of requests that were not split."""
    assert all(len(set(o["batch"].tolist())) == 1 for o in outputs)
    return [o["batch"].tolist()[0] for o in outputs]


def seen(server: Server) -> list[str]:
    return (server.gates.folder / "seen").read_text().splitlines()


def test_single_requests_of_many_threads_become_few_batches(server: Server, client: Client) -> None:
    before = server.model_stats("gated")["requests"]
    with ThreadPoolExecutor(2 * BATCH) as threads:
        with held_up(server, client):
            futures = [threads.submit(client.predict, "gated", NO_GATE) for _ in range(2 * BATCH)]
            arrived = before + 1 + 2 * BATCH
            wait_until(lambda: server.model_stats("gated")["requests"] == arrived, "all arrived")
        outputs = [future.result(DEADLINE_S) for future in futures]
    assert list(Counter(batches_of(outputs)).values()) == [BATCH, BATCH]
    assert all(o["rows"].tolist() == [BATCH] for o in outputs)


def test_requests_of_several_clients_and_sizes_share_a_batch(
    server: Server, client: Client
) -> None:
    with server.client() as other:
        with held_up(server, client):
            futures = [
                source.submit("gated", {"gate": np.full(rows, 0), "n": np.full(rows, rows)})
                for source, rows in ((client, 1), (other, 5), (client, 2), (other, 3))
            ]
            wait_until_queued(server, 11)
        outputs = [future.result(DEADLINE_S) for future in futures]
    assert len(set(batches_of(outputs))) == 1
    assert [len(o["rows"]) for o in outputs] == [1, 5, 2, 3]
    assert {row for o in outputs for row in o["rows"].tolist()} == {11}


def test_rows_of_different_types_and_shapes_never_meet(server: Server, client: Client) -> None:
    kinds = [(np.int64, (1,)), (np.int32, (1,)), (np.int64, (1, 2))] * 2
    with held_up(server, client):
        futures = [
            client.submit("gated", {"gate": np.zeros(shape, dtype)}) for dtype, shape in kinds
        ]
        wait_until_queued(server, 6)
    outputs = [future.result(DEADLINE_S) for future in futures]
    assert sorted(Counter(batches_of(outputs)).values()) == [2, 2, 2]
    for o, (dtype, shape) in zip(outputs, kinds, strict=True):
        assert o["gate"].dtype == dtype
        assert o["gate"].shape == shape


def test_a_full_batch_does_not_wait_for_the_batch_timeout(server: Server, client: Client) -> None:
    futures = [client.submit("patient", NO_GATE) for _ in range(3)]
    assert [f.result(DEADLINE_S)["rows"].tolist() for f in futures] == [[3]] * 3


def test_the_oldest_row_waits_for_the_batch_timeout(client: Client) -> None:
    started = time.monotonic()
    futures = [client.submit("timed", NO_GATE) for _ in range(3)]
    assert [f.result(DEADLINE_S)["rows"].tolist() for f in futures] == [[3]] * 3
    assert time.monotonic() - started >= 0.4


def test_a_deadline_shortens_the_batch_timeout(client: Client) -> None:
    assert client.predict("patient", NO_GATE, timeout=3.0)["rows"].tolist() == [1]


@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (3, 4), (4, 4), (5, 8)])
def test_batches_are_padded_to_an_allowed_size(
    server: Server, client: Client, rows: int, padded: int
) -> None:
    x = np.arange(rows) + 10
    outputs = client.predict("sized", {"x": x})
    assert outputs["y"].tolist() == (2 * x).tolist()
    assert outputs["rows"].tolist() == [padded] * rows
    # With a row of the batch itself.
    assert seen(server)[-1] == str(x.tolist() + [10 + rows - 1] * (padded - rows))


def test_a_large_request_is_split_and_its_answer_put_together(client: Client) -> None:
    x = np.arange(100.0).reshape(100, 1) + np.arange(3)
    outputs = client.predict("sized", {"x": x})
    np.testing.assert_array_equal(outputs["y"], 2 * x)
    assert outputs["rows"].tolist() == [8] * 96 + [4] * 4


def test_a_large_request_is_refused_where_splitting_is_off(client: Client) -> None:
    assert client.predict("unsplit", {"gate": np.zeros(4, np.int64)})["rows"].tolist() == [4] * 4
    with pytest.raises(InvalidArgument, match="5 rows, max_batch_size is 4"):
        client.predict("unsplit", {"gate": np.zeros(5, np.int64)})


def test_a_declared_signature_is_warmed_up_and_checked(server: Server, client: Client) -> None:
    # It is the only one of this server that can be, at one row and at all.
    warmed_up = [lines for lines, _ in itertools.groupby(seen(server))]
    assert warmed_up[:2] == [str([0.0]), str([0.0] * 8)]
    assert client.predict("declared", [1, 2])["y"].tolist() == [2.0, 4.0]
    with pytest.raises(InvalidArgument, match="'x' has dtype int64, needs float32"):
        client.predict("declared", np.array([1]))
    with pytest.raises(InvalidArgument, match="misses input 'x'"):
        client.predict("declared", {})


def test_what_waits_too_long_is_answered_and_never_run(server: Server, client: Client) -> None:
    before = server.model_stats("gated")["batches"]
    with held_up(server, client):
        in_time = client.submit("gated", NO_GATE, timeout=DEADLINE_S)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.predict("gated", NO_GATE, timeout=0.1)
        assert time.monotonic() - started >= 0.09
        # The server has given it up too, and only it.
        wait_until_queued(server, 1)
    assert in_time.result(DEADLINE_S)["rows"].tolist() == [1]
    assert server.model_stats("gated")["batches"] == before + 2


def test_a_full_queue_refuses_at_once(server: Server, client: Client) -> None:
    before = server.model_stats("short_queue")["batches"]

    def submit(rows: int) -> Future[Outputs]:
        return client.submit("short_queue", {"gate": np.zeros(rows, np.int64)})

    with held_up(server, client):
        # A full batch is handed to the busy worker ahead of time; then two may wait.
        futures = [submit(4)]
        wait_until(lambda: server.model_stats("short_queue")["batches"] == before + 1, "ahead")
        futures += [submit(4), submit(4)]
        wait_until_queued(server, 8, "short_queue")
        with pytest.raises(Unavailable, match="the queue is full, 8 rows may wait"):
            submit(1).result(DEADLINE_S)
        assert not any(future.done() for future in futures)
    assert [f.result(DEADLINE_S)["rows"].tolist() for f in futures] == [[4] * 4] * 3


def test_higher_priority_goes_first(server: Server, client: Client) -> None:
    priorities = [-1, 0, 5, 1]
    with held_up(server, client):
        futures = [client.submit("gated", NO_GATE, priority=p) for p in priorities]
        wait_until_queued(server, 4)
    order = batches_of([future.result(DEADLINE_S) for future in futures])
    assert sorted(priorities, reverse=True) == [
        p for _, p in sorted(zip(order, priorities, strict=True))
    ]


def test_the_earliest_deadline_goes_first(server: Server, client: Client) -> None:
    timeouts = [None, 60.0, 30.0, 45.0]
    with held_up(server, client):
        # Different shapes: they cannot share a batch.
        futures = [
            client.submit("gated", {"gate": np.zeros((1, rank), np.int64)}, timeout=timeout)
            for rank, timeout in enumerate(timeouts)
        ]
        wait_until_queued(server, 4)
    order = batches_of([future.result(DEADLINE_S) for future in futures])
    # Without one it counts as due a second after it came.
    ordered = [timeout for _, timeout in sorted(zip(order, timeouts, strict=True))]
    assert ordered == [None, 30.0, 45.0, 60.0]


def test_what_is_cancelled_is_never_run(server: Server, client: Client) -> None:
    before = server.model_stats("gated")["batches"]
    with held_up(server, client):
        future = client.submit("gated", NO_GATE)
        wait_until_queued(server, 1)
        assert future.cancel()
        wait_until_queued(server, 0)
    assert future.cancelled()
    assert server.model_stats("gated")["batches"] == before + 1


def test_what_is_cancelled_while_it_runs_hurts_nobody(server: Server, client: Client) -> None:
    gate = next(_gate_numbers)
    cancelled = client.submit("patient", {"gate": np.array([gate])})
    others = [client.submit("patient", {"gate": np.array([gate])}) for _ in range(2)]
    server.gates.wait_until_reached(gate)
    assert cancelled.cancel()
    server.gates.open(gate)
    assert [f.result(DEADLINE_S)["rows"].tolist() for f in others] == [[3], [3]]


def test_a_client_that_leaves_takes_its_requests_along(server: Server, client: Client) -> None:
    with held_up(server, client):
        with server.client() as leaving:
            future = leaving.submit("gated", NO_GATE)
            wait_until_queued(server, 1)
        with pytest.raises(Cancelled):
            future.result(DEADLINE_S)
        wait_until_queued(server, 0)


def test_what_a_model_raises_is_internal(client: Client) -> None:
    with pytest.raises(Internal, match="ValueError: x must not be negative"):
        client.predict("fails", {"x": np.array([-1])})
    assert client.predict("fails", {"x": np.array([1])})["y"].tolist() == [1]


def test_async_requests_become_few_batches(server: Server, client: Client) -> None:
    async def scenario() -> list[Outputs]:
        async with AsyncClient(server.endpoint) as asynchronous:
            with held_up(server, client):
                requests = [
                    asyncio.create_task(asynchronous.predict("gated", NO_GATE))
                    for _ in range(2 * BATCH)
                ]
                await asyncio.to_thread(wait_until_queued, server, BATCH)
            return await asyncio.gather(*requests)

    outputs = asyncio.run(scenario())
    assert list(Counter(batches_of(outputs)).values()) == [BATCH, BATCH]


def test_async_deadline_and_cancellation(server: Server, client: Client) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.endpoint) as asynchronous:
            with held_up(server, client):
                with pytest.raises(DeadlineExceeded):
                    await asynchronous.predict("gated", NO_GATE, timeout=0.1)
                task = asyncio.create_task(asynchronous.predict("gated", NO_GATE))
                await asyncio.to_thread(wait_until_queued, server, 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.to_thread(wait_until_queued, server, 0)
            outputs = await asynchronous.predict("gated", NO_GATE)
            assert outputs["rows"].tolist() == [1]

    asyncio.run(scenario())
