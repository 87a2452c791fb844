"""Processes that start, stop and die: what the others do then, and what is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.server import BROKER, WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.clients.errors import DeadlineExceeded, Internal, Unavailable
from batchyard.wire import control

GATED = model_table("gated", callable_path("gated"), max_batch_size=1)
TWO_WORKERS = '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n' + GATED
NO_GATE = {"gate": np.zeros(1, np.int64)}
ECHO = ("--model", f"echo={callable_path('echo')}")
# The kernel ends a child whose parent dies; this is for a busy machine.
AT_ONCE_S = 2.0

Outputs = dict[str, Any]


def run_at_gate(server: Server, client: Client, gate: int) -> tuple[Future[Outputs], int]:
    """A request that runs until its gate is opened, and the worker that runs it."""
    future = client.submit("gated", {"gate": np.array([gate])})
    return future, server.gates.wait_until_reached(gate)


def stop_by_sigterm(server: Server) -> None:
    server.signal(signal.SIGTERM)


def stop_by_ctrl_c(server: Server) -> None:
    server.press_ctrl_c()


def stop_as_systemd_does(server: Server) -> None:
    for pid in (*server.processes(), server.pid):
        os.kill(pid, signal.SIGTERM)


STOPS = [stop_by_sigterm, stop_by_ctrl_c, stop_as_systemd_does]


@pytest.mark.parametrize("stop", STOPS)
def test_stopping_answers_what_was_accepted(stop: Callable[[Server], None]) -> None:
    with Server(config=GATED) as server, server.client() as client:
        running, _ = run_at_gate(server, client, 1)
        waiting = [client.submit("gated", NO_GATE) for _ in range(5)]
        wait_until(lambda: server.model_stats("gated")["requests"] == 6, "all were accepted")
        last = client.submit("gated", {"gate": np.array([2])})
        wait_until(lambda: server.model_stats("gated")["requests"] == 7, "it was accepted too")
        stop(server)
        wait_until(lambda: server.stats()["broker"]["draining"], "it drains")
        with pytest.raises(Unavailable, match="shutting down"):
            client.predict("gated", NO_GATE)
        assert not running.done()
        server.gates.open(1)
        for future in (running, *waiting):
            assert future.result(DEADLINE_S)["rows"].tolist() == [1]
        assert not last.done()
        server.gates.open(2)
        assert server.wait_for_exit() == control.EXIT_OK
        assert server.log.splitlines()[-1].endswith("event=stopped")


def test_an_answer_that_came_before_the_connection_was_lost_counts() -> None:
    with Server(config=GATED) as server, server.client() as client:
        running, _ = run_at_gate(server, client, 1)
        ended = threading.Event()
        late = client.submit("gated", NO_GATE, timeout=0.1)
        # Its callback holds the client's thread up: answer and loss are there when it goes on.
        late.add_done_callback(lambda _: ended.wait(DEADLINE_S))
        with pytest.raises(DeadlineExceeded):
            late.result(DEADLINE_S)
        server.signal(signal.SIGTERM)
        server.gates.open(1)
        assert server.wait_for_exit() == control.EXIT_OK
        ended.set()
        assert running.result(DEADLINE_S)["rows"].tolist() == [1]


def test_a_second_signal_stops_at_once() -> None:
    with Server(config=GATED) as server, server.client() as client:
        running, _ = run_at_gate(server, client, 1)
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.stats()["broker"]["draining"], "it drains")
        since_s = server.stats()["broker"]["uptime_s"]
        # In the first half second it counts as the first.
        server.signal(signal.SIGTERM)
        wait_until(
            lambda: server.stats()["broker"]["uptime_s"] > since_s + 0.6, "the moment is over"
        )
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == control.EXIT_FAILURE
        with pytest.raises(Unavailable):
            running.result(DEADLINE_S)


def test_signals_of_one_moment_leave_the_exit_code_alone() -> None:
    with Server(config=GATED) as server:

        def is_over() -> bool:
            os.kill(server.pid, signal.SIGTERM)
            # What is not reaped yet can be signalled.
            return Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

        wait_until(is_over, "it ended")
        assert server.wait_for_exit() == control.EXIT_OK


def test_draining_has_an_end() -> None:
    with (
        Server("--drain-timeout-s", "0.2", config=GATED) as server,
        server.client() as client,
    ):
        running, _ = run_at_gate(server, client, 1)
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == control.EXIT_FAILURE
        assert "drain_timeout_s = 0.2" in server.log
        with pytest.raises(Unavailable):
            running.result(DEADLINE_S)


def test_children_die_with_the_supervisor() -> None:
    with (
        Server(config=TWO_WORKERS) as server,
        server.client(reconnect_timeout=0) as client,
    ):
        # One is busy, and its model looks at nothing that the supervisor could tell it.
        running, _ = run_at_gate(server, client, 1)
        children = server.processes()
        assert len(children) == 3
        started = time.monotonic()
        server.kill()
        wait_until(lambda: not server.processes(), "all are gone", AT_ONCE_S)
        with pytest.raises(Unavailable):
            running.result(AT_ONCE_S)
        assert time.monotonic() - started < AT_ONCE_S
        server.assert_nothing_left()


def test_children_that_load_die_with_the_supervisor(slow_model: str) -> None:
    with Server("--model", f"m={slow_model}", wait=False) as server:
        wait_until((server.working_folder / "loading").exists, "it loads")
        server.kill()
        wait_until(lambda: not server.processes(), "all are gone", AT_ONCE_S)
        server.assert_nothing_left()


def test_a_server_starts_where_a_killed_one_left_its_socket() -> None:
    with Server(*ECHO, bind=(), ipc=True) as killed:
        killed.kill()
        assert killed.ipc_path.exists()
        bind = (f"ipc://{killed.ipc_path}",)
        with Server(*ECHO, bind=bind) as server, server.client() as client:
            assert client.predict("echo", {"x": [1]})["x"].tolist() == [1]
            server.stop()


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_one_of_two_workers_dies(busy: bool) -> None:
    with Server(config=TWO_WORKERS) as server, server.client() as client:
        pids = server.processes(WORKER)
        running, victim = run_at_gate(server, client, 1)
        if not busy:
            (victim,) = set(pids) - {victim}
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "event=worker_died" in server.log, "it is noticed")
        server.gates.open(1)
        # What it ran runs again elsewhere.
        (answered_by,) = running.result(DEADLINE_S)["pid"].tolist()
        assert answered_by != victim
        for _ in range(5):
            assert client.predict("gated", NO_GATE)["pid"].tolist() != [victim]
        # The dead one's blocks come back once it is reaped.
        server.wait_until_idle()
        server.stop()


def test_a_model_that_kills_its_process() -> None:
    config = '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n'
    with (
        Server(config=config + model_table("fails", callable_path("fails"))) as server,
        server.client() as client,
    ):
        with pytest.raises(Internal, match="died"):
            client.predict("fails", {"x": np.array([-9])})
        assert client.predict("fails", {"x": np.array([1])})["y"].tolist() == [1]
        # It was tried once more, and no more.
        assert server.log.count("event=worker_died") == 2
        server.wait_until_idle()


def test_the_only_worker_dies() -> None:
    with Server(config=GATED) as server, server.client() as client:
        running, worker = run_at_gate(server, client, 1)
        waiting = client.submit("gated", NO_GATE)
        server.gates.open(1)
        os.kill(worker, signal.SIGKILL)
        for future in (running, waiting):
            assert future.result(DEADLINE_S)["rows"].tolist() == [1]
        server.stop()


def test_the_broker_dies() -> None:
    with Server(config=TWO_WORKERS) as server, server.client() as client:
        running, _ = run_at_gate(server, client, 1)
        (broker,) = server.processes(BROKER)
        os.kill(broker, signal.SIGKILL)
        assert client.predict("gated", NO_GATE, timeout=DEADLINE_S)["rows"].tolist() == [1]
        server.gates.open(1)
        # The batch went on meanwhile, and is not run again.
        assert running.result(DEADLINE_S)["batch"].tolist() == [1]
        assert "event=broker_restarted" in server.log
        server.forget_client()
        server.stop()


def test_ipc_sockets_are_removed() -> None:
    with Server(*ECHO, ipc=True) as server:
        assert server.ipc_path.is_socket()
        assert server.ipc_path.stat().st_mode & 0o777 == 0o600
        server.stop()


def test_ipc_sockets_are_removed_when_the_broker_died() -> None:
    with Server(*ECHO, ipc=True) as server:
        (broker,) = server.processes(BROKER)
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: "event=broker_restarted" in server.log, "there is another")
        assert server.ipc_path.is_socket()
        server.stop()


@pytest.mark.parametrize("stop", STOPS)
def test_stopping_while_a_model_loads(slow_model: str, stop: Callable[[Server], None]) -> None:
    with Server("--model", f"m={slow_model}", wait=False) as server:
        wait_until((server.working_folder / "loading").exists, "it loads")
        stop(server)
        assert server.wait_for_exit() == control.EXIT_OK
        assert "Traceback" not in server.log
