"""Gateways' processes and their ports, as the supervisor holds them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import DEADLINE_S

from batchyard.pool import events
from batchyard.pool.gateway_processes import Gateways
from batchyard.pool.gateways import GatewayPlan
from batchyard.wire.errors import Aborted, ConfigurationError

TESTS = Path(__file__).parent.parent
PLAN = GatewayPlan("stub", "support.stub_gateway", "127.0.0.1", 0, takes_requests=True)


class Holder:
    """What a supervisor does for its gateways."""

    def __init__(self, *plans: GatewayPlan) -> None:
        self.selector = selectors.DefaultSelector()
        self.events: list[events.Event] = []
        self.gateways = Gateways(plans, self.selector, self.events.append)

    def turn(self) -> None:
        for key, _ in self.selector.select(0.02):
            if self.selector.get_map().get(key.fd) is key:
                key.data()
        self.gateways.advance()

    def turn_until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.events
            self.turn()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def address(self) -> tuple[str, int]:
        host, _, port = self.gateways.addresses["stub"].rpartition("/")[2].rpartition(":")
        return host, int(port)

    def ask(self, line: str) -> socket.socket:
        """A connection that has sent it."""
        connection = socket.create_connection(self.address(), DEADLINE_S)
        connection.sendall(f"{line}\n".encode())
        return connection

    def answer(self, connection: socket.socket) -> str:
        """All that comes, while the gateways' events are looked after."""
        connection.setblocking(False)
        read = b""

        def is_over() -> bool:
            nonlocal read
            try:
                data = connection.recv(4096)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            read += data
            return not data

        self.turn_until(is_over)
        connection.close()
        return read.decode().strip()

    def say(self, line: str) -> str:
        return self.answer(self.ask(line))


@contextlib.contextmanager
def held(*plans: GatewayPlan, starts: bool = True) -> Iterator[Holder]:
    holder = Holder(*plans)
    with holder.selector, holder.gateways.bound("ipc:///nowhere"):
        try:
            if starts:
                holder.gateways.broker_listens()
            yield holder
        finally:
            holder.gateways.end()


@pytest.fixture(autouse=True)
def _finds_the_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def of(**fields: Any) -> GatewayPlan:
    return dataclasses.replace(PLAN, **fields)


# Ports


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("opened_by", ["us", "opens_itself", "binds_itself"])
def test_a_free_port_is_known_at_once(host: str, opened_by: str) -> None:
    if host == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    plan = of(host=host, **({} if opened_by == "us" else {opened_by: True}))
    with held(plan, starts=False) as holder:
        url = holder.gateways.addresses["stub"]
        port = int(url.rpartition(":")[2])
        assert url.startswith("http://[::1]:" if host == "::1" else "http://")
        assert holder.gateways.next_deadline() == float("inf")
        if opened_by != "us":
            # Nobody is there yet.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, port))
        else:
            # It waits for a process that answers.
            socket.create_connection((host, port)).close()


@pytest.mark.parametrize("binds_itself", [False, True])
@pytest.mark.parametrize("opens_itself", [False, True])
@pytest.mark.parametrize("shares", [False, True])
def test_what_cannot_be_listened_at_is_named(
    binds_itself: bool, opens_itself: bool, shares: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=shares) as other:
        port = other.getsockname()[1]
        message = rf"127.0.0.1 port {port} \(\[stub\] host, port\).*another server"
        plan = of(port=port, binds_itself=binds_itself, opens_itself=opens_itself)
        with pytest.raises(ConfigurationError, match=message), held(plan):
            pass
    message = r"cannot listen at 192\.0\.2\.1 port 0"
    with pytest.raises(ConfigurationError, match=message), held(of(host="192.0.2.1")):
        pass
    message = r"cannot listen at no\.such\.host\.invalid port 1"
    plan = of(host="no.such.host.invalid", port=1)
    with pytest.raises(ConfigurationError, match=message), held(plan):
        pass


@pytest.mark.parametrize("binds_itself", [False, True])
def test_a_port_that_is_held_is_nobody_elses(binds_itself: bool) -> None:
    with held(of(binds_itself=True), starts=False) as holder:
        plan = of(port=holder.address()[1], binds_itself=binds_itself)
        with pytest.raises(ConfigurationError, match="another server"), held(plan):
            pass


def test_a_unix_sockets_path_is_one_servers(tmp_path: Path) -> None:
    path = tmp_path / "grpc"
    plan = of(port=None, scheme="", socket_path=str(path))
    with held(plan, starts=False) as holder:
        assert holder.gateways.addresses["stub"] == f"unix:{path}"
        message = rf"cannot bind {path}: another server is running there"
        with pytest.raises(ConfigurationError, match=message), held(plan):
            pass
        path.touch()
    assert list(tmp_path.iterdir()) == []


def test_a_unix_sockets_path_may_be_taken_over(tmp_path: Path) -> None:
    plan = of(port=None, scheme="", socket_path=str(tmp_path / "grpc"), takes_socket_over=True)
    with held(plan, starts=False), held(plan, starts=False) as second:
        assert second.gateways.addresses["stub"] == f"unix:{tmp_path / 'grpc'}"


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.module"])
def test_what_is_not_installed_is_named(module: str) -> None:
    message = rf"\[stub\] port needs {module}: pip install"
    with pytest.raises(ConfigurationError, match=message), held(of(needs=("socket", module))):
        pass


# Processes


def test_several_share_a_port_and_are_replaced_one_by_one() -> None:
    # Those that share a socket: tests/system/test_gateways.py.
    with held(of(processes=2, binds_itself=True)) as holder:
        holder.turn_until(lambda: holder.of(events.GatewaysAnswer))
        pids: set[str] = set()
        holder.turn_until(lambda: len(pids) == 2 or pids.add(holder.say("pid")))
        dead = min(pids)
        os.kill(int(dead), signal.SIGKILL)
        # Its own connections may break meanwhile.
        holder.turn_until(lambda: len(pids) == 3 or pids.add(holder.say("pid") or dead))
        # It had answered: its death is no failure of the start.
        assert not holder.of(events.GatewayFailed)


def test_those_that_cannot_start_say_why() -> None:
    failures = {
        "exit": ("exit code 7", 1),
        "refuses": ("stub: its file is wrong", 2),
        "raises": ("stub: ValueError: odd", 1),
    }
    with held(*(of(name=name, options={"fails": name}) for name in failures)) as holder:
        holder.turn_until(lambda: len({e.name for e in holder.of(events.GatewayFailed)}) == 3)
        for failed in holder.of(events.GatewayFailed):
            assert (failed.death.reason, failed.death.exit_code) == failures[failed.name]
        assert not holder.of(events.GatewaysAnswer)


def test_one_that_has_not_begun_ends_at_once() -> None:
    with held(of(options={"fails": "hangs"})) as holder:
        holder.turn_until(lambda: holder.gateways.next_deadline() == float("inf"))
        holder.gateways.drain()
        holder.turn_until(lambda: holder.of(events.GatewaysDrained))
        assert not holder.of(events.GatewayFailed)


def test_what_was_read_is_answered_before_the_end() -> None:
    with held(PLAN, dataclasses.replace(PLAN, name="other", takes_requests=False)) as holder:
        holder.turn_until(lambda: holder.of(events.GatewaysAnswer))
        request = holder.ask("hold")
        early = socket.create_connection(holder.address(), DEADLINE_S)
        # What came before them is read when this one is answered.
        pid = holder.say("pid")
        holder.gateways.drain()
        holder.turn_until(lambda: _is_refused(holder))
        assert not holder.of(events.GatewaysDrained)
        early.sendall(b"release\n")
        assert holder.answer(early) == "1"
        assert holder.answer(request) == pid
        holder.turn_until(lambda: holder.of(events.GatewaysDrained))
        # The other one goes on, and none is started in place of the first.
        assert holder.gateways.next_deadline() == float("inf")


def _is_refused(holder: Holder) -> bool:
    try:
        socket.create_connection(holder.address(), DEADLINE_S).close()
    except OSError:
        return True
    return False


def test_a_server_without_requests_by_gateways_is_drained_of_them_at_once() -> None:
    with held(of(takes_requests=False), starts=False) as holder:
        holder.gateways.drain()
        assert holder.events == [events.GatewaysDrained()]


def test_reloads_are_answered_to_who_asked() -> None:
    with held(PLAN) as holder:
        holder.turn_until(lambda: holder.of(events.GatewaysAnswer))
        first, second = holder.ask('[{"name": "a"}]'), holder.ask('[{"name": "b"}]')
        holder.turn_until(lambda: len(holder.of(events.ModelsRequested)) == 2)
        tickets = {e.models[0]["name"]: e.ticket for e in holder.of(events.ModelsRequested)}
        holder.gateways.answer_reload(tickets["b"], Aborted("replaced"))
        assert holder.answer(second) == "ABORTED: replaced"
        holder.gateways.answer_reload(tickets["a"], None)
        assert holder.answer(first) == "OK"
        assert "models take more than 16 MiB to name" in holder.say("too much")
        # Who asked may die: nobody is told, and the next one is not confused.
        pid = int(holder.say("pid"))
        connection = holder.ask("[]")
        holder.turn_until(lambda: len(holder.of(events.ModelsRequested)) == 3)
        os.kill(pid, signal.SIGKILL)
        assert holder.answer(connection) == ""
        holder.turn_until(lambda: holder.say("pid") not in ("", str(pid)))
        holder.gateways.answer_reload(holder.of(events.ModelsRequested)[-1].ticket, None)
        assert holder.say("pid")
