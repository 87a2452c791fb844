"""``batchyard status``: what a server says of itself, for people and for scripts."""

from __future__ import annotations

import contextlib
import json
import socket
from functools import partial
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.server import Server

from batchyard.cli import connecting, status
from batchyard.cli.status import command
from batchyard.clients import Client


def test_json_is_what_the_contract_says(server: Server) -> None:
    result = CliRunner().invoke(command, ["--json", "--endpoint", server.endpoint])
    assert (result.exit_code, result.stderr) == (0, "")
    stats = json.loads(result.stdout)
    assert {"pid", "epoch", "uptime_s"} <= stats["broker"].keys()
    assert stats["broker"]["pid"] in server.processes()
    (worker,) = stats["workers"]
    assert {"id", "pid", "device", "state", "restarts"} <= worker.keys()
    assert (worker["device"], worker["state"]) == ("cpu", "READY")
    models = {model["name"]: model for model in stats["models"]}
    assert set(models) == {"double", "upper", "echo"}
    keys = {"name", "version", "state", "signatures", "queue_rows", "requests", "batches"}
    assert keys <= models["double"].keys()
    assert models["double"]["state"] == "AVAILABLE"
    assert stats["arena"].keys() >= {"bytes", "used_bytes"}


def test_requests_are_counted(server: Server) -> None:
    before = server.model_stats("echo")
    with server.client() as client:
        for _ in range(3):
            client.predict("echo", {"x": [1.0]})
    after = server.model_stats("echo")
    assert after["requests"] - before["requests"] == 3
    assert after["batches"] - before["batches"] == 3


def test_table_names_workers_and_models(server: Server) -> None:
    result = CliRunner().invoke(command, ["--endpoint", server.endpoint])
    assert (result.exit_code, result.stderr) == (0, "")
    broker, *rest = result.stdout.splitlines()
    stats = server.stats()
    assert broker.startswith(f"broker pid {stats['broker']['pid']}, up ")
    text = "\n".join(rest)
    for word in ("READY", "cpu", "double", "upper", "echo", "AVAILABLE", "rows waiting"):
        assert word in text
    assert str(stats["workers"][0]["pid"]) in text


NAMES = ["a_name_that_is_longer_than_a_narrow_terminal_" * 2, "[bold]name"]


@pytest.mark.parametrize("width", [None, 60, 80])
def test_names_are_not_cut(monkeypatch: pytest.MonkeyPatch, width: int | None) -> None:
    monkeypatch.setattr(status, "connected", lambda _: contextlib.nullcontext(Told()))
    if width is not None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    assert "…" not in result.stdout
    if width is None:
        assert all(name in result.stdout for name in [*NAMES, "AVAILABLE", "rows waiting"])
    else:
        assert max(map(len, click.unstyle(result.stdout).splitlines())) <= width


class Told:
    """A client whose server has models with names that are hard to show."""

    def stats(self) -> dict[str, Any]:
        counts = {"requests": 10**9, "batches": 10**8, "queue_rows": 0, "error": ""}
        model = {"version": 1, "is_current": True, "state": "AVAILABLE", **counts}
        worker = {"id": 0, "pid": 9, "device": "cpu", "state": "READY", "restarts": 0}
        return {
            "broker": {"pid": 8, "uptime_s": 1.0},
            "arena": {"used_bytes": 0, "bytes": 1 << 20},
            "workers": [{**worker, "batches": 3}],
            "models": [{"name": name, **model} for name in NAMES],
        }


def test_no_server_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "Client", partial(Client, connect_timeout=0.2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    result = CliRunner().invoke(command, ["--endpoint", endpoint])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("batchyard: UNAVAILABLE: ")
