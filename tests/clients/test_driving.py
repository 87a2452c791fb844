"""``predict`` reads the local socket on its caller's thread, and gives way when others need it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.regions import far_client, offset_in_region
from support.server import BROKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client, errors
from batchyard.clients.session import Session

# What ends at once on an idle machine.
SOON_S = 3.0
CONFIG = '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n' + "".join(
    model_table(name, callable_path(name), max_batch_size=size)
    for name, size in (("gated", 1), ("echo", 64))
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(config=CONFIG) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


_gates = iter(range(1, 1000))
NO_GATE = {"gate": np.array([0])}


@contextlib.contextmanager
def readers() -> Iterator[list[int]]:
    """The threads that took in messages of the broker, one for each message."""
    seen: list[int] = []
    receive = Session.receive

    def noting(self: Session, *message: Any) -> None:
        seen.append(threading.get_ident())
        receive(self, *message)

    with mock.patch.object(Session, "receive", noting):
        yield seen


def echo(client: Client, value: int, **options: Any) -> Any:
    return client.predict("echo", {"x": np.array([value])}, **options)["x"].tolist()


def let_drive(client: Client) -> None:
    """Waits until the client's own thread sleeps: then the next ``predict`` does without it."""
    # It asks the broker what a model takes, once.
    client.predict("gated", NO_GATE)

    def drives() -> bool:
        with readers() as seen:
            echo(client, 0)
        return seen == [threading.get_ident()]

    wait_until(drives, "a predict reads its own answer")


@contextlib.contextmanager
def driving(server: Server, client: Client) -> Iterator[tuple[Future[Any], Callable[[], None]]]:
    """A ``predict`` on a thread of its own, which the server holds up; and what lets it go on."""
    let_drive(client)
    gate = next(_gates)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.predict, "gated", {"gate": np.array([gate])})
        try:
            server.gates.wait_until_reached(gate)
            yield future, lambda: server.gates.open(gate)
        finally:
            server.gates.open(gate)


def test_predict_reads_its_own_answer(client: Client) -> None:
    let_drive(client)
    with readers() as seen:
        for i in range(5):
            assert echo(client, i) == [i]
        x = client.empty((1, 100_000), np.int32)
        x[:] = 3
        assert (client.predict("echo", {"x": x})["x"] == 3).all()
    assert seen.count(threading.get_ident()) >= 5


def test_submit_leaves_that_to_the_clients_thread(client: Client) -> None:
    let_drive(client)
    with readers() as seen:
        assert client.submit("echo", {"x": np.array([1])}).result(DEADLINE_S)["x"] == [1]
    assert threading.get_ident() not in seen


def test_without_a_short_way_the_clients_thread_does_it(server: Server) -> None:
    with far_client(server) as client, readers() as seen:
        for i in range(20):
            assert echo(client, i) == [i]
        assert threading.get_ident() not in seen


def test_others_are_served_while_one_drives(server: Server, client: Client) -> None:
    with driving(server, client) as (held, open_gate):
        assert client.submit("echo", {"x": np.array([1])}).result(DEADLINE_S)["x"] == [1]
        assert echo(client, 2, timeout=DEADLINE_S) == [2]
        assert client.stats()["broker"]["pid"] in server.processes(BROKER)
        assert [r["x"] for r in client.predict_many("echo", [{"x": [i]} for i in (3, 4)])] == [3, 4]
        assert not held.done()
        open_gate()
        assert held.result(DEADLINE_S)["rows"].tolist() == [1]
    let_drive(client)


def test_what_was_sent_before_is_answered_while_one_drives(server: Server, client: Client) -> None:
    let_drive(client)
    first, second = next(_gates), next(_gates)
    future = client.submit("gated", {"gate": np.array([first])})
    server.gates.wait_until_reached(first)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.predict, "gated", {"gate": np.array([second])})
        server.gates.wait_until_reached(second)
        server.gates.open(first)
        assert future.result(DEADLINE_S)["rows"].tolist() == [1]
        assert not held.done()
        server.gates.open(second)
        assert held.result(DEADLINE_S)["rows"].tolist() == [1]


def test_closing_ends_who_drives(server: Server) -> None:
    client = server.client()
    with driving(server, client) as (held, _):
        started = time.monotonic()
        client.close()
        with pytest.raises(errors.Cancelled, match="the client was closed"):
            held.result(DEADLINE_S)
        assert time.monotonic() - started < SOON_S
    with pytest.raises(errors.Cancelled):
        echo(client, 1)


def test_deadline_passes_while_one_drives(server: Server, client: Client) -> None:
    let_drive(client)
    gate = next(_gates)
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        client.predict("gated", {"gate": np.array([gate])}, timeout=0.3)
    assert 0.25 < time.monotonic() - started < SOON_S
    # Its answer has nobody to go to, and is nobody else's.
    server.gates.open(gate)
    for i in range(20):
        assert echo(client, i) == [i]


def test_a_deadline_of_another_call_is_kept_while_one_drives(
    server: Server, client: Client
) -> None:
    with driving(server, client) as (held, _):
        gate = next(_gates)
        started = time.monotonic()
        late = client.submit("gated", {"gate": np.array([gate])}, timeout=0.2)
        with pytest.raises(errors.DeadlineExceeded):
            late.result(DEADLINE_S)
        assert time.monotonic() - started < SOON_S
        server.gates.open(gate)
        assert not held.done()


def test_many_threads_each_get_their_own(client: Client) -> None:
    def work(thread: int) -> bool:
        for i in range(100):
            value = 1000 * thread + i
            if i % 10 == 3:
                result = client.submit("echo", {"x": np.array([value])}).result(DEADLINE_S)
                assert result["x"].tolist() == [value]
            elif i % 10 == 6:
                x = np.full((1, 20_000), value, np.float64)
                assert (client.predict("echo", {"x": x})["x"] == value).all()
            else:
                assert echo(client, value, timeout=DEADLINE_S) == [value]
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def interrupt_main_when(ready: Callable[[], object]) -> threading.Thread:
    """Ctrl-C for the main thread, once ``ready`` returns true."""
    main = threading.main_thread().ident
    assert main is not None

    def work() -> None:
        wait_until(ready, "it is time for Ctrl-C")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("drives", [True, False])
def test_ctrl_c_gives_the_request_up(server: Server, client: Client, drives: bool) -> None:
    running, other, queued = (next(_gates) for _ in range(3))
    with server.client() as busy:
        # Both workers are held up, and each has its next batch: what comes now waits.
        gates = [running, other, 0, 0]
        futures = [busy.submit("gated", {"gate": np.array([gate])}) for gate in gates]
        for gate in (running, other):
            server.gates.wait_until_reached(gate)
        if not drives:
            futures.append(client.submit("gated", {"gate": np.array([0])}))
        waiting = len(futures) - len(gates)

        def waits(rows: int) -> bool:
            return bool(server.model_stats("gated")["queue_rows"] == rows)

        wait_until(lambda: waits(waiting), "all of that has arrived")
        # The route must be known: asking for it would wait elsewhere.
        client._route("gated", None, None, "serving_default", 0, None)
        thread = interrupt_main_when(lambda: waits(waiting + 1))
        with pytest.raises(KeyboardInterrupt):
            client.predict("gated", {"gate": np.array([queued])})
        thread.join(DEADLINE_S)
        wait_until(lambda: waits(waiting), "the server knows that nobody waits for it")
        for gate in (running, other):
            server.gates.open(gate)
        for future in futures:
            assert future.result(DEADLINE_S)["rows"].tolist() == [1]
    assert not server.gates.is_reached(queued)
    assert echo(client, 5, timeout=DEADLINE_S) == [5]


def test_server_that_dies_ends_who_drives(server: Server) -> None:
    config = model_table("echo", callable_path("echo")) + model_table(
        "gated", callable_path("gated")
    )
    with Server(config=config) as first, first.client(reconnect_timeout=0) as client:
        before = client.empty(100)
        before[:] = 3
        with driving(first, client) as (held, _):
            started = time.monotonic()
            first.kill()
            with pytest.raises(errors.Unavailable, match="the connection to the server was lost"):
                held.result(DEADLINE_S)
            assert time.monotonic() - started < SOON_S
        first.wait_for_exit()
        with Server(config=config, bind=(first.endpoint,)):

            def works() -> bool:
                with contextlib.suppress(errors.Unavailable):
                    return bool(echo(client, 6) == [6])
                return False

            wait_until(works, "the client works again")
            # It has a region again, which is not the one of old.
            wait_until(lambda: offset_in_region(client.empty(100)) is not None, "a region")
            x = client.empty((1, 100_000))
            x[:] = 4
            assert (client.predict("echo", {"x": x})["x"] == 4).all()
            let_drive(client)
