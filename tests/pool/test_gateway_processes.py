"""The sockets of gateways, which the supervisor has before anything starts."""

from __future__ import annotations

import selectors
import socket
from pathlib import Path

import pytest

from batchyard.pool.gateway_processes import Gateways
from batchyard.pool.gateways import GatewayPlan
from batchyard.wire.errors import ConfigurationError


def gateways(host: str = "127.0.0.1", port: int = 0, needs: tuple[str, ...] = ()) -> Gateways:
    plan = GatewayPlan("metrics", "nothing", host, port, needs)
    return Gateways([plan], selectors.DefaultSelector())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_free_port_is_known_at_once(host: str) -> None:
    if host == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    made = gateways(host)
    with made.bound("ipc:///x"):
        url = made.addresses["metrics"]
        port = int(url.rpartition(":")[2])
        assert url.startswith("http://[::1]:" if host == "::1" else "http://")
        with socket.create_connection((host, port)):
            # It waits for a process that answers.
            assert made.next_deadline() == float("inf")


def test_what_cannot_be_listened_at_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=rf"127.0.0.1 port {port}.*another server"),
            gateways(port=port).bound("ipc:///x"),
        ):
            pass
    with (
        pytest.raises(ConfigurationError, match=r"cannot listen at 192\.0\.2\.1 port 0"),
        gateways("192.0.2.1").bound("ipc:///x"),
    ):
        pass


def test_what_is_not_installed_is_named() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"needs no_such_module: pip install"),
        gateways(needs=("socket", "no_such_module")).bound("ipc:///x"),
    ):
        pass
