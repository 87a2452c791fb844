"""One client, two servers: whichever ends, and however, every call is answered."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.held_up import HeldUp
from support.server import BROKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.wire import control

CONFIG = "".join(model_table(name, callable_path(name)) for name in ("echo", "gated"))
CALLERS = 4


class Load:
    """Threads that ask as fast as they get answers, and check them."""

    def __init__(self, client: Client) -> None:
        self.answered = [0] * CALLERS
        self._client = client
        self._ends = threading.Event()
        self._threads = ThreadPoolExecutor(CALLERS)
        self._asking: list[Future[None]] = []

    def _ask(self, i: int) -> None:
        while not self._ends.is_set():
            # One in four is large enough to lie in a region.
            x = np.full((1, 40_000 if self.answered[i] % 4 == 0 else 4), self.answered[i])
            futures = [self._client.submit("echo", {"x": x}, timeout=DEADLINE_S) for _ in range(2)]
            outputs = self._client.predict("echo", {"x": x}, timeout=DEADLINE_S)
            for y in (outputs, *(future.result(DEADLINE_S) for future in futures)):
                assert np.array_equal(y["x"], x)
            self.answered[i] += 1

    def wait_for_answers(self, number: int = 20) -> None:
        """Each caller gets some more."""
        goal = [n + number for n in self.answered]

        def reached() -> bool:
            failed = [future for future in self._asking if future.done()]
            for future in failed:
                future.result()
            return all(n >= m for n, m in zip(self.answered, goal, strict=True))

        wait_until(reached, "all callers get answers")

    def __enter__(self) -> Load:
        self._asking = [self._threads.submit(self._ask, i) for i in range(CALLERS)]
        return self

    def stop(self) -> None:
        """All that was asked must have been answered."""
        self._ends.set()
        self._threads.shutdown()
        for future in self._asking:
            future.result()

    def __exit__(self, *_: Any) -> None:
        self.stop()


def stop(server: Server) -> None:
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit() == control.EXIT_OK


def kill(server: Server) -> None:
    server.kill()
    server.wait_for_exit()


@pytest.mark.parametrize("end", [stop, kill], ids=["SIGTERM", "SIGKILL"])
def test_every_call_is_answered_when_one_ends(end: Callable[[Server], None]) -> None:
    with (
        Server(config=CONFIG) as one,
        Server(config=CONFIG) as other,
        Client([one.endpoint, other.endpoint]) as client,
        Load(client) as load,
    ):
        load.wait_for_answers()
        for server in (one, other):
            assert server.model_stats("echo")["requests"] > 0
        end(one)
        load.wait_for_answers()
        with Server(config=CONFIG, bind=(one.endpoint,)) as again:
            wait_until(lambda: again.model_stats("echo")["requests"], "it is used again")
            end(other)
            load.wait_for_answers()
            # Before its server ends.
            load.stop()


def test_who_drives_the_connection_itself_goes_to_another_server() -> None:
    """The server that refuses it lives on: it has something to do for somebody else."""
    with (
        Server(config=CONFIG) as one,
        Server(config=CONFIG) as other,
        one.client() as somebody,
        Client([one.endpoint, other.endpoint]) as client,
    ):
        for _ in range(4):
            client.predict("echo", {"x": [1]})
        held = HeldUp(one, somebody)
        one.signal(signal.SIGTERM)
        wait_until(lambda: one.stats()["broker"]["draining"], "it drains")
        started = time.monotonic()
        for i in range(4):
            outputs = client.predict("echo", {"x": [i]}, timeout=DEADLINE_S)
            assert outputs["x"].tolist() == [i]
        assert time.monotonic() - started < DEADLINE_S / 2
        held.open()
        assert held.future.result(DEADLINE_S)["rows"].tolist() == [1]
        assert one.wait_for_exit() == control.EXIT_OK


def test_every_call_is_answered_while_the_only_broker_dies() -> None:
    with Server(config=CONFIG) as server, server.client() as client, Load(client) as load:
        for _ in range(3):
            load.wait_for_answers()
            (broker,) = server.processes(BROKER)
            os.kill(broker, signal.SIGKILL)
        load.wait_for_answers()


def test_a_server_that_still_loads_gets_no_calls_for_long(slow_model: str) -> None:
    """It says UNAVAILABLE; the other has the model."""
    loading = model_table("echo", slow_model)
    with (
        Server(config=CONFIG) as one,
        Server(config=loading, bind=(), ipc=True, wait=False) as other,
    ):
        wait_until((other.working_folder / "loading").exists, "it loads")
        endpoint = f"ipc://{other.ipc_path}"
        with Client(endpoint) as client:
            assert client.stats()["models"][0]["state"] == "LOADING"
        with Client([endpoint, one.endpoint]) as client, Load(client) as load:
            load.wait_for_answers()
