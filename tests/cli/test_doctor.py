"""``batchyard doctor``: its report, its exit code, and machines on which little works."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.server import Server

from batchyard.cli.diagnosis import examination
from batchyard.cli.doctor import command

CONFIG = '[broker]\nbind = ["tcp://127.0.0.1:{port}"]\n[[models]]\nname = "m"\npath = "{path}"\n'


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["--no-tensorflow", *arguments])


def findings(*arguments: str) -> dict[str, dict[str, str]]:
    return by_check(doctor("--json", *arguments))


def by_check(result: Result) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(result.stdout)["findings"]}


def config(folder: Path, port: int, path: str | None = None) -> str:
    file = folder / "pool.toml"
    model = folder / "m"
    model.mkdir(exist_ok=True)
    (model / "saved_model.pb").touch()
    file.write_text(CONFIG.format(port=port, path=path or model))
    return str(file)


def test_report_is_a_line_each_with_the_remedy_below() -> None:
    result = doctor()
    assert result.exit_code in (0, 1)
    *lines, last = result.stdout.splitlines()
    assert last.split(", ")[0].endswith(" ok")
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        level = line.split()[0]
        assert level in ("ok", "warning", "failure", "->")
        assert (level in ("warning", "failure")) == after.startswith("          -> ")


def test_everything_is_looked_at() -> None:
    found = findings()
    expected = {"configuration", "python", "packages", "memory", "processors", "clock", "kernel"}
    assert expected | {"shared memory", "open files", "server", "systemd"} <= set(found)
    assert not [f for f in found.values() if "could not be looked at" in f["found"]]


def test_a_port_that_is_taken_fails(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        path = config(tmp_path, number)
        result = doctor("--json", path)
        found = by_check(result)
    assert result.exit_code == 1
    assert found[f"port {number}"]["level"] == "failure"
    assert f"process {os.getpid()} " in found[f"port {number}"]["found"]
    # Somebody is there, who is no server of ours.
    assert found["server"]["level"] == "failure"
    assert found["configuration"]["found"].endswith("pool.toml can be served: m")
    assert found["model m"]["level"] in ("ok", "warning")


def test_a_configuration_that_does_not_work_fails(tmp_path: Path) -> None:
    found = findings(config(tmp_path, 1, path="/no/such/model"))
    assert found["configuration"]["level"] == "failure"
    assert "/no/such/model" in found["configuration"]["found"]
    (tmp_path / "broken.toml").write_text("[pool]\narena_mb = 0\n")
    assert "arena_mb" in doctor(str(tmp_path / "broken.toml")).stdout


def test_a_server_that_runs_is_found(server: Server, tmp_path: Path) -> None:
    number = server.endpoint.rpartition(":")[2]
    found = findings(config(tmp_path, int(number)))
    assert found["server"]["found"].startswith("has run for ")
    assert found[f"port {number}"]["found"].startswith("the server that runs has it")


def test_one_thing_that_cannot_be_looked_at_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no /proc here")

    monkeypatch.setattr(examination.memory, "read_memory", broken)
    found = findings()
    assert (found["memory"]["level"], found["systemd"]["level"][:2]) == ("warning", "ok")
    assert "no /proc here" in found["memory"]["found"]


def test_without_the_servers_packages_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("raise ImportError('no pydantic')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "batchyard.cli", "doctor", "--no-tensorflow"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "no pydantic" in ended.stdout
    assert "-> pip install 'batchyard[cpu]'" in ended.stdout
