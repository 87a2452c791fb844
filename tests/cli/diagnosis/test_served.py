"""Models' files, a server that answers, and systemd's units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.findings import levels, only

from batchyard.cli.diagnosis import service
from batchyard.cli.diagnosis.models import Readability, check_model, look_at_model
from batchyard.cli.diagnosis.server import ask_server, check_server, reachable
from batchyard.cli.diagnosis.service import check_units
from batchyard.wire.errors import Internal, Unauthenticated

WORKER = {"id": 0, "device": "cpu", "state": "READY", "restarts": 0}
MODEL = {"name": "m", "version": 1, "state": "AVAILABLE", "error": ""}
STATS: dict[str, Any] = {
    "broker": {"uptime_s": 5, "draining": False},
    "workers": [WORKER],
    "models": [MODEL],
    "arena": {"bytes": 100, "used_bytes": 10},
}


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"workers": [{**WORKER, "state": "FAILED"}]}, "worker 0", "failure"),
        ({"workers": [{**WORKER, "restarts": 2}]}, "worker 0", "warning"),
        ({"workers": []}, "server", "warning"),
        ({"models": [{**MODEL, "state": "LOADING"}]}, "model m version 1", "warning"),
        ({"models": [{**MODEL, "error": "no"}]}, "model m version 1", "failure"),
        ({"arena": {"bytes": 100, "used_bytes": 95}}, "arena", "warning"),
        ({"broker": {"uptime_s": 5, "draining": True}}, "server", "warning"),
    ],
)
def test_a_server_that_is_not_well(change: dict[str, Any], check: str, level: str) -> None:
    finding = only(check_server({**STATS, **change}, None))
    assert (finding.check, finding.level) == (check, level)


def test_servers() -> None:
    assert levels(check_server(STATS, None)) == {"server": "ok"}
    assert levels(check_server(None, None)) == {"server": "ok"}
    assert levels(check_server(None, Internal("x"))) == {"server": "failure"}
    assert levels(check_server(None, Unauthenticated("x"))) == {"server": "warning"}


def test_where_a_server_is_found() -> None:
    bound = ["tcp://*:1", "tcp://0.0.0.0:2", "tcp://h:3", "ipc:///a", "tcp://127.0.0.1:*"]
    assert reachable(bound) == ["ipc:///a", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "tcp://h:3"]
    assert ask_server([]) == (None, None)


def test_a_model_that_all_can_read(tmp_path: Path) -> None:
    for name in ("1/saved_model.pb", "1/variables/variables.index"):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).touch(0o644)
    found = look_at_model("m", tmp_path / "m")
    assert (found.files, found.refused) == (2, "")
    (tmp_path / "m/1/variables/variables.index").chmod(0o600)
    # pytest's own folder is closed to others, and on the way.
    assert look_at_model("m", tmp_path / "m").private


def test_a_model_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/saved_model.pb").symlink_to(tmp_path / "nowhere")
    assert look_at_model("m", tmp_path / "m").refused == str(tmp_path / "m/saved_model.pb")


@pytest.mark.parametrize(
    ("found", "is_root", "level"),
    [
        (Readability("m", "/m", 2), True, "ok"),
        (Readability("m", "/m", 2, private="/m/a"), True, "warning"),
        (Readability("m", "/m", 2, private="/m/a"), False, "ok"),
        (Readability("m", "/m", 2, refused="/m/a"), False, "failure"),
    ],
)
def test_reading_a_model(found: Readability, is_root: bool, level: str) -> None:
    assert levels([check_model(found, is_root)]) == {"model m": level}


SHOWN = """\
Id=batchyard.service
LoadState={load}
ActiveState={active}
SubState=x
Result=exit-code
NRestarts={restarts}
UnitFileState={file}
StatusText=2 models, 4 workers
ExecMainStatus=4

Id=batchyard@a.service
LoadState=not-found
ActiveState=inactive
"""


@pytest.mark.parametrize(
    ("load", "active", "restarts", "file", "level", "says"),
    [
        ("loaded", "active", "0", "enabled", "ok", "active (x): 2 models, 4 workers"),
        ("loaded", "failed", "0", "enabled", "failure", "exit code 4"),
        ("loaded", "active", "3", "enabled", "warning", "restarted 3 times"),
        ("loaded", "active", "0", "disabled", "warning", "not at boot"),
        ("bad-setting", "inactive", "0", "", "failure", "bad-setting"),
    ],
)
def test_units(load: str, active: str, restarts: str, file: str, level: str, says: str) -> None:
    said = SHOWN.format(load=load, active=active, restarts=restarts, file=file)
    (finding,) = check_units(service.parse(said), "")
    assert (finding.check, finding.level) == ("unit batchyard.service", level)
    assert says in finding.found
    levels([finding])


def test_no_units(tmp_path: Path) -> None:
    assert levels(check_units([], "")) == {"systemd": "ok"}
    assert levels(check_units(*service.read_units(tmp_path))) == {"systemd": "ok"}
