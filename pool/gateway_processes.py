"""The gateways' processes, and the sockets that they listen at.

The supervisor binds and keeps the sockets: a port that is taken is known before anything starts,
and stays the same when a gateway is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from batchyard.pool.children import Child, describe_exit
from batchyard.pool.gateways import GatewayLife, GatewayPlan
from batchyard.wire import control, log
from batchyard.wire.control import GatewaySettings, Kind
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.link import LinkClosed

_BACKLOG = 128


@dataclass(slots=True, eq=False)
class _Gateway:
    plan: GatewayPlan
    socket: socket.socket
    life: GatewayLife = field(default_factory=GatewayLife)
    child: Child | None = None
    # The exit code that it told before it ended.
    told_code: int = control.EXIT_FAILURE


class Gateways:
    """Used by one thread, whose ``selector`` calls what is registered in it."""

    def __init__(self, plans: Sequence[GatewayPlan], selector: selectors.BaseSelector) -> None:
        self._plans = plans
        self._selector = selector
        self._gateways: list[_Gateway] = []
        self._endpoint = ""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where each listens, by its name: ``http://127.0.0.1:9090``."""
        return {gateway.plan.name: _url(gateway.socket) for gateway in self._gateways}

    @contextlib.contextmanager
    def bound(self, endpoint: str) -> Iterator[None]:
        """While their sockets are bound; they talk to the broker at ``endpoint``.

        Raises ConfigurationError when one cannot be.
        """
        self._endpoint = endpoint
        with contextlib.ExitStack() as sockets:
            for plan in self._plans:
                _check_needs(plan)
                self._gateways.append(_Gateway(plan, sockets.enter_context(_listen(plan))))
            yield

    def broker_listens(self) -> None:
        """They may be started."""
        for gateway in self._gateways:
            gateway.life.broker_listens(time.monotonic())

    def next_deadline(self) -> float:
        """When ``advance`` is due at the latest."""
        return min((gateway.life.start_at for gateway in self._gateways), default=float("inf"))

    def advance(self) -> None:
        """Starts those whose time has come."""
        now = time.monotonic()
        for gateway in self._gateways:
            if gateway.life.start_at <= now:
                self._start(gateway)

    def tell(self, packet: list[Any]) -> None:
        """Sends a packet to those that run."""
        for gateway in self._gateways:
            if gateway.child is not None:
                # When it is gone already, its sentinel tells.
                with contextlib.suppress(LinkClosed):
                    gateway.child.link.send(packet)

    def end(self) -> None:
        """Ends all of them: what they have is told by others, or not worth waiting for."""
        for gateway in self._gateways:
            if gateway.child is not None:
                gateway.child.kill()
                gateway.child.reap()

    def _start(self, gateway: _Gateway) -> None:
        plan = gateway.plan
        gateway.life.started()
        gateway.told_code = control.EXIT_FAILURE
        settings = GatewaySettings(self._endpoint, plan.devices)
        try:
            child = Child(plan.name, plan.module, settings.to_wire(), [gateway.socket.fileno()])
        except OSError as error:
            self._died(gateway, f"it cannot be started: {error}")
            return
        gateway.child = child
        for fd, handler in ((child.link.fileno(), self._heard), (child.sentinel, self._ended)):
            self._selector.register(fd, selectors.EVENT_READ, partial(handler, gateway, child))

    def _heard(self, gateway: _Gateway, child: Child) -> None:
        try:
            packet, _ = child.link.receive()
        except LinkClosed:
            # It is ending; the sentinel tells when it has.
            self._selector.unregister(child.link.fileno())
            return
        if packet[0] == Kind.ANSWERING:
            gateway.life.answers(time.monotonic())
        elif packet[0] == Kind.FAILED:
            gateway.told_code = packet[1]
            log.error("gateway_failed", gateway=gateway.plan.name, reason=packet[2])

    def _ended(self, gateway: _Gateway, child: Child) -> None:
        child.link.set_blocking(False)
        with contextlib.suppress(BlockingIOError):
            while child.link.fileno() in self._selector.get_map():
                self._heard(gateway, child)
        if child.link.fileno() in self._selector.get_map():
            self._selector.unregister(child.link.fileno())
        self._selector.unregister(child.sentinel)
        gateway.child = None
        self._died(gateway, describe_exit(child.reap()))

    def _died(self, gateway: _Gateway, reason: str) -> None:
        comes_back = gateway.life.ended(time.monotonic(), gateway.told_code)
        log.error("gateway_died", gateway=gateway.plan.name, reason=reason, starts_again=comes_back)


def _check_needs(plan: GatewayPlan) -> None:
    missing = [name for name in plan.needs if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"[{plan.name}] port needs {' and '.join(missing)}: pip install 'batchyard[server]'"
        )


def _listen(plan: GatewayPlan) -> socket.socket:
    where = f"cannot listen at {plan.host} port {plan.port} ([{plan.name}] host, port)"
    try:
        family, *_, address = socket.getaddrinfo(
            plan.host, plan.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((str(address[0]), plan.port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "; is another server running there?" if is_taken else ""
        raise ConfigurationError(f"{where}: {reason}{hint}") from error


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
