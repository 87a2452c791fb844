"""The gateways' processes: started, heard, drained, replaced, ended."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from batchyard.pool import events
from batchyard.pool.children import Child, describe_exit
from batchyard.pool.gateway_sockets import addresses, held
from batchyard.pool.gateways import GatewayLife, GatewayPlan
from batchyard.wire import control, log
from batchyard.wire.control import GatewaySettings, Kind
from batchyard.wire.errors import MESSAGE_MAX, BatchyardError, ConfigurationError
from batchyard.wire.link import LinkClosed


@dataclass(slots=True, eq=False)
class _Process:
    """The place of one of a gateway's processes."""

    name: str
    plan: GatewayPlan
    socket: socket.socket | None
    life: GatewayLife = field(default_factory=GatewayLife)
    child: Child | None = None
    # Why it ends, as it told before it did.
    told: events.Death | None = None


class Gateways:
    """Used by one thread, whose ``selector`` calls what is registered in it.

    What happens that concerns others is told to ``happened``.
    """

    def __init__(
        self,
        plans: Sequence[GatewayPlan],
        selector: selectors.BaseSelector,
        happened: Callable[[events.Event], None],
    ) -> None:
        self._plans = plans
        self._selector = selector
        self._happened = happened
        self._drains = False
        self._tickets = itertools.count()
        # Who asked for a reload, and what it calls it.
        self._asked: dict[int, tuple[Child, int]] = {}
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

    def drain(self) -> None:
        """Those that requests come by answer what they have read, and end."""
        self._drains = True
        for process in self._processes:
            if process.plan.takes_requests:
                process.life.drains()
                _tell(process, [Kind.DRAIN])
                if process.socket is not None:
                    # Nobody waits there for a process that does not come.
                    process.socket.close()
        self._look_whether_drained()

    def answer_reload(self, ticket: int, error: BatchyardError | None) -> None:
        """Tells who asked for it; nobody, when that process is gone."""
        child, id = self._asked.pop(ticket)
        if any(process.child is child for process in self._processes):
            number, message = (0, "") if error is None else (error.number, error.message)
            # When it is gone already, its sentinel tells.
            with contextlib.suppress(LinkClosed):
                child.link.send([Kind.RELOADED, id, number, message[:MESSAGE_MAX]])

    def end(self) -> None:
        """Ends all of them: what they have is told by others, or not worth waiting for."""
        for process in self._processes:
            if process.child is not None:
                process.child.kill()
                process.child.reap()

    def _start(self, process: _Process) -> None:
        plan = process.plan
        process.life.started()
        process.told = None
        options, fds = plan.options, []
        if process.socket is not None:
            host, port = process.socket.getsockname()[:2]
            options = {**options, "host": host, "port": port}
            fds = [] if plan.binds_itself else [process.socket.fileno()]
        # One in another's place serves at once, also while a model is being loaded.
        awaits_models = not process.life.has_answered
        settings = GatewaySettings(self._endpoint, plan.devices, options, awaits_models)
        try:
            child = Child(process.name, plan.module, settings.to_wire(), fds)
        except OSError as error:
            self._died(process, events.Death(f"it cannot be started: {error}"))
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
            if all(other.life.has_answered for other in self._processes):
                self._happened(events.GatewaysAnswer())
        elif packet[0] == Kind.FAILED:
            process.told = events.Death(packet[2], packet[1], was_told=True)
            log.error("gateway_failed", gateway=process.name, reason=packet[2])
        elif packet[0] == Kind.RELOAD:
            ticket = next(self._tickets)
            self._asked[ticket] = child, packet[1]
            self._happened(events.ModelsRequested(ticket, packet[2]))

    def _ended(self, process: _Process, child: Child) -> None:
        child.link.set_blocking(False)
        with contextlib.suppress(BlockingIOError):
            while child.link.fileno() in self._selector.get_map():
                self._heard(process, child)
        if child.link.fileno() in self._selector.get_map():
            self._selector.unregister(child.link.fileno())
        self._selector.unregister(child.sentinel)
        process.child = None
        code = child.reap()
        death = process.told or events.Death(describe_exit(code))
        if self._drains and process.plan.takes_requests:
            if code != control.EXIT_OK:
                _log_death(process, death, starts_again=False)
            self._look_whether_drained()
        else:
            self._died(process, death)

    def _died(self, process: _Process, death: events.Death) -> None:
        told_code = death.exit_code if death.was_told else control.EXIT_FAILURE
        comes_back = process.life.ended(time.monotonic(), told_code)
        _log_death(process, death, starts_again=comes_back)
        if not process.life.has_answered:
            self._happened(events.GatewayFailed(process.name, death))

    def _look_whether_drained(self) -> None:
        taking = [process for process in self._processes if process.plan.takes_requests]
        if all(process.child is None for process in taking):
            self._happened(events.GatewaysDrained())


def _log_death(process: _Process, death: events.Death, *, starts_again: bool) -> None:
    log.error("gateway_died", gateway=process.name, reason=death.reason, starts_again=starts_again)


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
