"""The gateways' processes: started, heard, drained, replaced, ended."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from batchyard.pool.children import Child, describe_exit
from batchyard.pool.gateway_sockets import addresses, held
from batchyard.pool.gateways import GatewayLife, GatewayPlan
from batchyard.wire import control, log
from batchyard.wire.control import GatewaySettings, Kind
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.link import LinkClosed


@dataclass(slots=True, eq=False)
class _Process:
    """The place of one of a gateway's processes."""

    name: str
    plan: GatewayPlan
    socket: socket.socket | None
    life: GatewayLife = field(default_factory=GatewayLife)
    child: Child | None = None
    # The exit code that it told before it ended.
    told_code: int = control.EXIT_FAILURE


class Gateways:
    """Used by one thread, whose ``selector`` calls what is registered in it."""

    def __init__(self, plans: Sequence[GatewayPlan], selector: selectors.BaseSelector) -> None:
        self._plans = plans
        self._selector = selector
        self._processes: list[_Process] = []
        self._endpoint = ""
        self._addresses: dict[str, str] = {}

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where each listens, by its name: ``http://127.0.0.1:9090``."""
        return self._addresses

    @contextlib.contextmanager
    def bound(self, endpoint: str) -> Iterator[None]:
        """While their ports are theirs; they talk to the broker at ``endpoint``.

        Raises ConfigurationError when one cannot be had.
        """
        self._endpoint = endpoint
        with contextlib.ExitStack() as sockets:
            for plan in self._plans:
                _check_needs(plan)
                sock = sockets.enter_context(held(plan))
                self._addresses[plan.name] = addresses(plan, sock)
                self._processes += [_Process(name, plan, sock) for name in _names(plan)]
            yield

    def broker_listens(self) -> None:
        """They may be started."""
        for process in self._processes:
            process.life.broker_listens(time.monotonic())

    def next_deadline(self) -> float:
        """When ``advance`` is due at the latest."""
        return min((process.life.start_at for process in self._processes), default=float("inf"))

    def advance(self) -> None:
        """Starts those whose time has come."""
        now = time.monotonic()
        for process in self._processes:
            if process.life.start_at <= now:
                self._start(process)

    def tell(self, packet: list[Any]) -> None:
        """Sends a packet to those that run."""
        for process in self._processes:
            _tell(process, packet)

    def end(self) -> None:
        """Ends all of them: what they have is told by others, or not worth waiting for."""
        for process in self._processes:
            if process.child is not None:
                process.child.kill()
                process.child.reap()

    def _start(self, process: _Process) -> None:
        plan = process.plan
        process.life.started()
        process.told_code = control.EXIT_FAILURE
        options, fds = plan.options, []
        if process.socket is not None:
            host, port = process.socket.getsockname()[:2]
            options = {**options, "host": host, "port": port}
            fds = [] if plan.binds_itself else [process.socket.fileno()]
        settings = GatewaySettings(self._endpoint, plan.devices, options)
        try:
            child = Child(process.name, plan.module, settings.to_wire(), fds)
        except OSError as error:
            self._died(process, f"it cannot be started: {error}")
            return
        process.child = child
        for fd, handler in ((child.link.fileno(), self._heard), (child.sentinel, self._ended)):
            self._selector.register(fd, selectors.EVENT_READ, partial(handler, process, child))

    def _heard(self, process: _Process, child: Child) -> None:
        try:
            packet, _ = child.link.receive()
        except LinkClosed:
            # It is ending; the sentinel tells when it has.
            self._selector.unregister(child.link.fileno())
            return
        if packet[0] == Kind.ANSWERING:
            process.life.answers(time.monotonic())
        elif packet[0] == Kind.FAILED:
            process.told_code = packet[1]
            log.error("gateway_failed", gateway=process.name, reason=packet[2])

    def _ended(self, process: _Process, child: Child) -> None:
        child.link.set_blocking(False)
        with contextlib.suppress(BlockingIOError):
            while child.link.fileno() in self._selector.get_map():
                self._heard(process, child)
        if child.link.fileno() in self._selector.get_map():
            self._selector.unregister(child.link.fileno())
        self._selector.unregister(child.sentinel)
        process.child = None
        self._died(process, describe_exit(child.reap()))

    def _died(self, process: _Process, reason: str) -> None:
        comes_back = process.life.ended(time.monotonic(), process.told_code)
        log.error("gateway_died", gateway=process.name, reason=reason, starts_again=comes_back)


def _tell(process: _Process, packet: list[Any]) -> None:
    if process.child is not None:
        # When it is gone already, its sentinel tells.
        with contextlib.suppress(LinkClosed):
            process.child.link.send(packet)


def _names(plan: GatewayPlan) -> list[str]:
    """As logs call its processes: ``rest``, or ``rest-0`` and ``rest-1``."""
    if plan.processes == 1:
        return [plan.name]
    return [f"{plan.name}-{number}" for number in range(plan.processes)]


def _check_needs(plan: GatewayPlan) -> None:
    missing = [name for name in plan.needs if not _is_installed(name)]
    if missing:
        raise ConfigurationError(
            f"[{plan.name}] port needs {' and '.join(missing)}: pip install 'batchyard[server]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Not even the package that it is in.
        return False
