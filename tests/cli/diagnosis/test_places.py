"""Where a server may listen, and who is in the way."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from support.findings import levels, only

from batchyard.cli.diagnosis.listeners import Holder, holder_of
from batchyard.cli.diagnosis.places import (
    IpcPlace,
    Port,
    check_ipc,
    check_no_ipc,
    check_port,
    look_at_ipc,
    look_at_port,
)

USER = 1000


@pytest.mark.parametrize(
    ("place", "level", "says"),
    [
        (IpcPlace("/run/b/broker", "/run/b", True, 0o755, USER), "ok", "/run/b/broker"),
        (IpcPlace("/" + "x" * 107, "/", True, 0o755, 0), "failure", "has 108 bytes"),
        (IpcPlace("/" + "x" * 102, "/", True, 0o755, 0), "warning", "no room for .local"),
        (IpcPlace("/run/b", "/run", False, 0o755, 0), "failure", "cannot be written"),
        (IpcPlace("/w/b", "/w", True, 0o777, 0), "warning", "everybody may write to /w"),
        (IpcPlace("/tmp/b", "/tmp", True, 0o1777, 0), "ok", "/tmp/b"),
        (IpcPlace("/h/b", "/h", True, 0o755, 1001), "warning", "belongs to user 1001"),
    ],
)
def test_ipc(place: IpcPlace, level: str, says: str) -> None:
    finding = check_ipc(place, USER, server_runs=False)
    assert finding.level == level
    assert says in finding.found
    levels([finding])


def test_the_folder_of_a_service_belongs_to_its_user() -> None:
    place = IpcPlace("/run/batchyard/broker", "/run/batchyard", True, 0o755, 64796)
    assert levels([check_ipc(place, 0, server_runs=True)]) == {"ipc path": "ok"}


def test_the_nearest_folder_is_looked_at(tmp_path: Path) -> None:
    place = look_at_ipc(f"{tmp_path}/not/there/broker")
    assert (place.folder, place.is_writable, place.owner) == (str(tmp_path), True, os.geteuid())


def test_no_ipc_endpoint() -> None:
    assert check_no_ipc(["tcp://127.0.0.1:1", "ipc:///a"], {}) == []
    assert check_no_ipc([], {}) == []
    assert "XDG_RUNTIME_DIR" in only(check_no_ipc(["tcp://127.0.0.1:1"], {})).remedy


@pytest.mark.parametrize(
    ("port", "is_ours", "level", "says"),
    [
        (Port("127.0.0.1", 8600), False, "ok", "free"),
        (
            Port("::1", 1, errno.EADDRINUSE, Holder(7, "nginx")),
            False,
            "failure",
            "process 7 (nginx)",
        ),
        (Port("::1", 1, errno.EADDRINUSE), False, "failure", "process of another user"),
        (Port("::1", 1, errno.EADDRINUSE, Holder(7, "python")), True, "ok", "the server that runs"),
        (Port("::1", 80, errno.EACCES), False, "failure", "may not bind it"),
        (Port("10.9.9.9", 1, errno.EADDRNOTAVAIL), False, "failure", "no address of this machine"),
        (Port("::1", 1, errno.EINVAL), False, "failure", "Invalid argument"),
    ],
)
def test_port(port: Port, is_ours: bool, level: str, says: str) -> None:
    finding = check_port(port, "tcp", is_ours)
    assert finding.level == level
    assert says in finding.found
    levels([finding])


def test_a_port_of_this_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        found = look_at_port("127.0.0.1", number)
        assert (found.error, found.holder and found.holder.pid) == (errno.EADDRINUSE, os.getpid())
    assert look_at_port("127.0.0.1", number) == Port("127.0.0.1", number)
    assert look_at_port("192.0.2.1", number).error == errno.EADDRNOTAVAIL
    assert look_at_port("no.such.host.invalid", number).error == errno.EADDRNOTAVAIL


def test_the_holder_may_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "proc/net").mkdir(parents=True)
    line = "0: 0100007F:2198 00000000:0000 0A 0:0 0:0 0 1000 0 4711 1"
    (tmp_path / "proc/net/tcp").write_text(f"header\n{line}\n")
    (tmp_path / "proc/12/fd").mkdir(parents=True)
    assert holder_of(0x2198, tmp_path) is None
    (tmp_path / "proc/12/fd/3").symlink_to("socket:[4711]")
    (tmp_path / "proc/12/cmdline").write_bytes(b"nginx\0-g\0")
    assert holder_of(0x2198, tmp_path) == Holder(12, "nginx -g")
    assert holder_of(80, tmp_path) is None
