"""SIGHUP to a real server: what the configuration says now is what is served."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from support.server import WORKER, Server, callable_path, model_table
from support.waiting import wait_until

from batchyard.clients.errors import NotFound
from batchyard.wire import control

ECHO = model_table("echo", callable_path("echo"))
OTHER = model_table("other", callable_path("recorded"))
ROW = {"x": np.ones(1)}


def reload(server: Server, config: str) -> None:
    (server.folder / "config.toml").write_text(config)
    server.signal(signal.SIGHUP)


def names(server: Server) -> set[str]:
    return {m["name"] for m in server.stats()["models"] if m["state"] == "AVAILABLE"}


def test_models_are_added_and_removed_without_a_lost_request() -> None:
    config = '[[pool.workers]]\ndevice = "cpu"\ncount = 2\n'
    with Server(config=config + ECHO) as server, server.client() as client:
        stop = threading.Event()
        answers: list[bool] = []

        def ask() -> None:
            while not stop.is_set():
                answers.append(client.predict("echo", ROW)["x"].tolist() == [1.0])

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            first = server.processes(WORKER)
            reload(server, config + ECHO + OTHER)
            wait_until(lambda: "event=version_switched" in server.log, lambda: server.log_tail)
            assert names(server) == {"echo", "other"}
            assert client.predict("other", ROW)["y"].tolist() == [2.0]
            wait_until(lambda: not set(first) & set(server.processes(WORKER)), "they are replaced")
            reload(server, config + ECHO)
            wait_until(lambda: names(server) == {"echo"}, lambda: server.log_tail)
            with pytest.raises(NotFound, match="'other' is not served here"):
                client.predict("other", ROW)
            # No process has it any more, though each loaded it once.
            reload(server, config + ECHO + OTHER)
            wait_until(lambda: "other" in names(server), lambda: server.log_tail)
            assert client.predict("other", ROW)["y"].tolist() == [2.0]
        finally:
            stop.set()
            asking.join()
        assert answers
        assert all(answers)
        server.stop()


def test_batching_parameters_change_where_they_are() -> None:
    with Server(config=ECHO) as server, server.client() as client:
        pids = server.processes(WORKER)
        reload(server, model_table("echo", callable_path("echo"), max_batch_size=7))
        wait_until(lambda: client.metadata("echo")["max_batch_size"] == 7, lambda: server.log_tail)
        assert server.processes(WORKER) == pids
        server.stop()


def test_a_bad_configuration_changes_nothing() -> None:
    with Server(config=ECHO) as server, server.client() as client:
        reload(server, "[[models]]\nname = 3\n")
        wait_until(lambda: "event=reload_refused" in server.log, "it is refused")
        assert "models[0].path: is missing" in server.log
        assert client.predict("echo", ROW)["x"].tolist() == [1.0]
        server.stop()


def test_what_needs_a_restart_is_told() -> None:
    with Server(config=ECHO) as server:
        reload(server, "[pool]\narena_mb = 7\n" + ECHO)
        wait_until(lambda: "setting=pool.arena_mb" in server.log, lambda: server.log_tail)
        server.stop()


def test_a_model_that_does_not_load_leaves_the_others(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import os\nos.kill(os.getpid(), 9)\n")
    with Server(config=ECHO) as server, server.client() as client:
        reload(server, ECHO + model_table("bad", f"{bad}:f"))
        wait_until(lambda: "event=version_failed model=bad" in server.log, "it is given up")
        wait_until(lambda: server.model_stats("bad")["error"], "the status tells")
        assert client.predict("echo", ROW)["x"].tolist() == [1.0]
        server.stop()


def test_a_signal_to_every_process_is_one_to_the_server() -> None:
    with Server(config=ECHO) as server:
        pids = server.processes()
        for pid in (*pids, server.pid):
            os.kill(pid, signal.SIGHUP)
        wait_until(lambda: "event=reloaded" in server.log, lambda: server.log_tail)
        assert server.processes() == pids
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == control.EXIT_OK
