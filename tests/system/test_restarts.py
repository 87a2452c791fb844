"""Real processes that die: others come in their place, and nothing is left of them."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.server import BROKER, WORKER, Server, callable_path, model_table
from support.waiting import DEADLINE_S, wait_until

from batchyard.clients import Client
from batchyard.wire import control

GATED = model_table("gated", callable_path("gated"), max_batch_size=1)
TWO_WORKERS = '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n' + GATED
NO_GATE = {"gate": np.zeros(1, np.int64)}
ECHO = ("--model", f"echo={callable_path('echo')}")
GOOD = "def f(inputs):\n    return inputs\n"
# A killed worker is noticed within 50 ms; a busy machine may take longer to say so.
NOTICED_S = 0.5


def workers(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.stats()["workers"]
    return found


def wait_until_ready(server: Server, restarts: list[int]) -> None:
    """Waits until each slot has a worker that serves, after so many restarts."""
    wait_until(
        lambda: (
            [w["restarts"] for w in workers(server)] == restarts
            and all(w["state"] in ("READY", "BUSY") for w in workers(server))
        ),
        lambda: f"all are ready, but {workers(server)}\n{server.log_tail}",
    )


def test_a_worker_that_is_killed_comes_back() -> None:
    with Server(config=TWO_WORKERS) as server, server.client() as client:
        (victim, survivor) = (w["pid"] for w in workers(server))
        started = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "event=worker_died" in server.log, "it is noticed", NOTICED_S)
        assert time.monotonic() - started < NOTICED_S
        wait_until_ready(server, [1, 0])
        pids = [w["pid"] for w in workers(server)]
        assert pids[1] == survivor
        assert sorted(pids) == sorted(server.processes(WORKER))
        assert client.predict("gated", NO_GATE)["pid"].tolist()[0] in pids
        server.wait_until_idle()
        server.stop()


def test_the_only_worker_comes_back_and_requests_wait_for_it() -> None:
    with Server(config=GATED) as server, server.client() as client:
        (victim,) = server.processes(WORKER)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in server.processes(WORKER), "it is gone")
        answer = client.predict("gated", NO_GATE, timeout=DEADLINE_S)
        assert answer["pid"].tolist() == server.processes(WORKER) != [victim]


def test_a_worker_that_cannot_come_back_leaves_the_others_serving(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(GOOD)
    config = '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n'
    with (
        Server(config=config + model_table("m", f"{file}:f")) as server,
        server.client() as client,
    ):
        file.write_text("raise RuntimeError('gone wrong')")
        os.kill(server.processes(WORKER)[0], signal.SIGKILL)
        wait_until(lambda: "event=worker_given_up" in server.log, "it is given up")
        wait_until(
            lambda: sorted(w["state"] for w in workers(server)) == ["FAILED", "READY"],
            lambda: f"one is FAILED: {workers(server)}",
        )
        assert client.predict("m", {"x": [1.0]})["x"].tolist() == [1.0]
        file.write_text(GOOD)
        server.signal(signal.SIGHUP)
        wait_until(
            lambda: [w["state"] for w in workers(server)] == ["READY", "READY"],
            lambda: f"it is tried again: {server.log_tail}",
        )
        server.stop()


def test_when_no_worker_can_come_back_the_server_ends(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(GOOD)
    with Server("--model", f"m={file}:f") as server:
        file.write_text("raise RuntimeError('gone wrong')")
        os.kill(server.processes(WORKER)[0], signal.SIGKILL)
        assert server.wait_for_exit() == control.EXIT_MODEL
        assert "batchyard: model 'm' does not load" in server.log


def test_a_broker_that_is_killed_comes_back_where_it_was() -> None:
    with Server(config=TWO_WORKERS, ipc=True) as server:
        pids = sorted(server.processes(WORKER))
        for _ in range(3):
            (broker,) = server.processes(BROKER)
            os.kill(broker, signal.SIGKILL)
            wait_until(
                lambda broker=broker: server.processes(BROKER) not in ([], [broker]), "another came"
            )
            for endpoint in server.endpoints:
                with Client(endpoint) as client:
                    assert client.predict("gated", NO_GATE, timeout=DEADLINE_S)["pid"][0] in pids
        assert sorted(server.processes(WORKER)) == pids
        server.forget_client()
        wait_until_ready(server, [0, 0])
        server.wait_until_idle()
        server.stop()


def test_a_broker_that_cannot_bind_again_ends_the_server() -> None:
    with Server(*ECHO) as server:
        (broker,) = server.processes(BROKER)
        port = int(server.endpoint.rpartition(":")[2])
        # Stopped, so that the next one is not faster than this test.
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(broker, signal.SIGKILL)
        pidfd = os.pidfd_open(broker)
        select.select([pidfd], [], [], DEADLINE_S)
        os.close(pidfd)
        with socket.create_server(("127.0.0.1", port)):
            os.kill(server.pid, signal.SIGCONT)
            assert server.wait_for_exit() == control.EXIT_FAILURE
        assert f"batchyard: cannot bind tcp://127.0.0.1:{port}" in server.log


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    config = "[pool]\nbatch_execution_timeout = 0.3\n" + GATED
    with Server(config=config) as server, server.client() as client:
        (victim,) = server.processes(WORKER)
        running = client.submit("gated", {"gate": np.array([1])})
        server.gates.wait_until_reached(1)
        wait_until(lambda: "event=worker_hung" in server.log, "it is noticed")
        server.gates.open(1)
        assert running.result(DEADLINE_S)["pid"].tolist() != [victim]
        wait_until_ready(server, [1])
        server.stop()


def test_workers_that_die_while_it_drains_are_replaced() -> None:
    with Server(config=GATED) as server, server.client() as client:
        running = client.submit("gated", {"gate": np.array([1])})
        victim = server.gates.wait_until_reached(1)
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.stats()["broker"]["draining"], "it drains")
        server.gates.open(1)
        os.kill(victim, signal.SIGKILL)
        assert running.result(DEADLINE_S)["rows"].tolist() == [1]
        assert server.wait_for_exit() == control.EXIT_OK
