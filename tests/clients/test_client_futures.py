"""The futures of the synchronous client, and what becomes of them when it is closed."""

from __future__ import annotations

import concurrent.futures
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from support.held_up import HeldUp
from support.server import Server
from support.waiting import wait_until

from batchyard.clients import Client, errors
from batchyard.clients.connection import Connection

WAIT_S = 10.0


def test_futures_complete_like_any_others(client: Client) -> None:
    futures = {client.submit("double", [[i, i]]): i for i in range(20)}
    assert not concurrent.futures.wait(futures, WAIT_S).not_done
    for future, i in futures.items():
        assert future.result()["y"].tolist() == [[2 * i] * 2]
    given: Any = futures
    completed = concurrent.futures.as_completed(given, WAIT_S)
    assert all(future.exception() is None for future in completed)


def test_callbacks_run_once_when_the_answer_is_there(client: Client, server: Server) -> None:
    called: queue.Queue[Future[Any]] = queue.Queue()
    with HeldUp(server, client) as held:
        held.future.add_done_callback(called.put)
        assert called.empty()
    assert called.get(timeout=WAIT_S) is held.future
    assert held.future.result()["rows"].tolist() == [1]


def test_waiting_for_a_result_can_time_out(client: Client, server: Server) -> None:
    with HeldUp(server, client) as held:
        with pytest.raises(TimeoutError):
            held.future.result(0.01)
        assert held.future.running() is False
    assert "rows" in held.future.result(WAIT_S)


def test_deadline_passes_while_the_server_works(client: Client, server: Server) -> None:
    with HeldUp(server, client, timeout=0.3) as held:
        with pytest.raises(errors.DeadlineExceeded):
            held.future.result(WAIT_S)
        with pytest.raises(errors.DeadlineExceeded):
            client.predict("double", [[1, 2]], timeout=0.05)
    assert client.predict("double", [[1, 2]], timeout=WAIT_S)["y"].tolist() == [[2, 4]]


def test_cancel_reaches_the_server(client: Client, server: Server) -> None:
    with HeldUp(server, client):
        waiting = client.submit("double", [[1, 2]])
        wait_until(lambda: server.model_stats("double")["queue_rows"] == 1, "it is queued")
        assert waiting.cancel()
        assert waiting.cancelled()
        wait_until(lambda: server.model_stats("double")["queue_rows"] == 0, "it left the queue")
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()
    done = client.submit("double", [[1, 2]])
    done.result(WAIT_S)
    assert not done.cancel()


def test_wait_sees_that_a_future_is_cancelled(client: Client, server: Server) -> None:
    with HeldUp(server, client):
        waiting = client.submit("double", [[1, 2]])
        assert waiting.cancel()
        done, _ = concurrent.futures.wait([waiting], timeout=0.2)
    assert done == {waiting}


def test_callback_must_not_wait_for_its_own_client(client: Client, server: Server) -> None:
    raised: queue.Queue[BaseException] = queue.Queue()

    def ask(_: Future[Any]) -> None:
        try:
            client.stats()
        except BaseException as error:
            raised.put(error)

    with HeldUp(server, client) as held:
        held.future.add_done_callback(ask)
    assert isinstance(raised.get(timeout=WAIT_S), RuntimeError)
    assert client.stats()


# What waits for itself cannot be ended, so these run in a process of their own. Each gets the
# endpoint, the number of a gate and the file that opens it, and prints what it saw.
_PREAMBLE = """
import sys, threading
from pathlib import Path
import numpy as np
from batchyard.clients import Client
client = Client(sys.argv[1])
row = {"x": np.zeros(1)}
client.predict("echo", row)
gated = {"gate": np.array([int(sys.argv[2])])}
future, other = client.submit("gated", gated), client.submit("gated", gated)
"""
_PREDICT_IN_CALLBACK = """
called = threading.Event()
def ask(_):
    try:
        client.predict("echo", row)
    except RuntimeError:
        called.set()
future.add_done_callback(ask)
Path(sys.argv[3]).touch()
print("refused" if called.wait(2) else "waits", flush=True)
"""
_CANCEL_IN_CALLBACK = """
future.add_done_callback(lambda _: other.cancel())
future.cancel()
print(other.cancelled(), flush=True)
"""
_CALL_WHILE_CLOSING = """
late = []
def again(_):
    other.cancel()
    late.append(client.submit("echo", row))
future.add_done_callback(again)
client.close()
print(type(late[0].exception(1)).__name__, flush=True)
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (_PREDICT_IN_CALLBACK, "refused"),
        (_CANCEL_IN_CALLBACK, "True"),
        (_CALL_WHILE_CLOSING, "Cancelled"),
    ],
    ids=["predict", "cancel", "close"],
)
def test_callbacks_may_use_the_client_but_not_wait(
    server: Server, script: str, expected: str
) -> None:
    number = next(HeldUp.numbers)
    gate = server.gates.folder / f"open-{number}"
    arguments = [server.endpoint, str(number), str(gate)]
    code = _PREAMBLE + script + "import os\nos._exit(0)\n"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            timeout=4,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
    except subprocess.TimeoutExpired:
        pytest.fail("it waits for itself")
    finally:
        gate.touch()
    assert ended.stdout.strip() == expected


# The end


def test_close_ends_what_waits(server: Server) -> None:
    client = server.client()
    with HeldUp(server, client) as held:
        waiting = client.submit("double", [[1, 2]])
        client.close()
        for future in (held.future, waiting):
            with pytest.raises(errors.Cancelled, match="the client was closed"):
                future.result(WAIT_S)
    client.close()


def test_closed_client_answers_with_cancelled(server: Server) -> None:
    with server.client() as client:
        client.predict("double", [[1, 2]])
    for call in (lambda: client.predict("double", [[1, 2]]), client.stats, client.models):
        with pytest.raises(errors.Cancelled):
            call()


def test_close_in_a_callback(server: Server) -> None:
    client = server.client()
    with HeldUp(server, client) as held:
        held.future.add_done_callback(lambda _: client.close())
        # Behind a gate of its own: its answer must not come with the other one's.
        number = next(HeldUp.numbers)
        other = client.submit("gated", {"gate": np.array([number])})
    try:
        with pytest.raises(errors.Cancelled):
            other.result(WAIT_S)
        client.close()
    finally:
        server.gates.open(number)


def test_what_comes_while_closing_ends_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server.client()
    client.predict("double", [[1, 2]])
    late: list[Future[Any]] = []
    close = Connection.close

    def close_slowly(connection: Connection) -> None:
        other = threading.Thread(target=lambda: late.append(client.submit("double", [[1, 2]])))
        other.start()
        other.join()
        close(connection)

    monkeypatch.setattr(Connection, "close", close_slowly)
    client.close()
    assert isinstance(late[0].exception(timeout=1.0), errors.Cancelled)
