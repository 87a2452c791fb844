"""What reaches a service manager, over sockets as systemd has them."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.pool.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that is listened to, and its address as NOTIFY_SOCKET has it."""
    name = "@batchyard-" + secrets.token_hex(8)
    address = name if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name[1:]}" if request.param == "abstract" else address)
        listener.settimeout(5)
        yield listener, address


def test_variables_arrive_in_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    ServiceManager(address).tell({"READY": 1, "STATUS": "Serving größe"})
    assert listener.recv(4096).decode() == "READY=1\nSTATUS=Serving größe"


def test_no_text_breaks_a_line_or_the_datagram(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    service_manager = ServiceManager(address)
    service_manager.tell({"STATUS": "a\nREADY=1\n\r\nb"})
    assert listener.recv(4096) == b"STATUS=a; READY=1; b"
    service_manager.tell({"STATUS": "\U0001f600" * 5000, "READY": 1})
    text = listener.recv(65536)
    assert len(text) <= 4096
    assert text.decode().endswith("…\nREADY=1")
    service_manager.tell({"STATUS": "\udcff"})
    assert listener.recv(4096) == b"STATUS=?"


def test_it_is_taken_from_the_environment_that_children_get() -> None:
    environ = {
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    assert ServiceManager.from_environment(environ).watchdog_s == 30
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "often"},
        {"WATCHDOG_USEC": "3000000"},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(environ: dict[str, str]) -> None:
    assert ServiceManager.from_environment(environ).watchdog_s == float("inf")


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:2:1", "@nobody-listens-here"])
def test_nobody_who_listens_is_not_missed(address: str) -> None:
    ServiceManager.from_environment({"NOTIFY_SOCKET": address}).tell({"READY": 1})
