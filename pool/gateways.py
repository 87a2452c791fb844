"""Which gateways a server has, and when each is started: once the broker listens, and again when it
died. Pure.

A gateway is a client of the broker in processes of its own, behind a port that the supervisor
holds: callers who come while one is being replaced wait there. It dying does not touch serving, so
it is never given up for that, but it is not started without a pause for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from batchyard.pool.config import Config
from batchyard.pool.inventory import VisibleDevice
from batchyard.pool.restarts import LASTING_REASONS, Restarts

_NEVER = float("inf")
# Between starts of one that never gets to answer.
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """A gateway: its name in logs, what it runs, and where it listens; port 0 is a free one.

    ``needs`` are modules of others. ``devices`` are names and UUIDs of GPUs. ``options`` is its
    table of the configuration. ``scheme`` begins its address. ``binds_itself``: its processes each
    bind the port, instead of sharing a socket that listens there. ``opens_itself``: that socket
    listens when they have it do so. ``takes_requests``: a server that drains waits for what it has
    accepted.
    """

    name: str
    module: str
    host: str
    port: int | None
    needs: tuple[str, ...] = ()
    devices: list[tuple[str, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    scheme: str = "http://"
    socket_path: str | None = None
    takes_socket_over: bool = False
    binds_itself: bool = False
    opens_itself: bool = False
    takes_requests: bool = False


def plan_gateways(config: Config, devices: Iterable[VisibleDevice]) -> list[GatewayPlan]:
    """Those that the configuration asks for."""
    plans = []
    if config.rest.port is not None:
        plans.append(
            GatewayPlan(
                name="rest",
                module="batchyard.clients.gateways.rest",
                host=config.rest.host,
                port=config.rest.port,
                needs=("httptools", "orjson", "prometheus_client", "google.protobuf"),
                options=config.rest.model_dump(),
                processes=config.rest.processes,
                opens_itself=True,
                takes_requests=True,
            )
        )
    if config.grpc.port is not None or config.grpc.socket_path is not None:
        plans.append(
            GatewayPlan(
                name="grpc",
                module="batchyard.clients.gateways.grpc",
                host=config.grpc.host,
                port=config.grpc.port,
                needs=("grpc", "grpc_health", "google.protobuf"),
                options=config.grpc.model_dump(),
                processes=config.grpc.processes,
                scheme="",
                socket_path=config.grpc.socket_path,
                takes_socket_over=config.grpc.takes_socket_over,
                binds_itself=True,
                takes_requests=True,
            )
        )
    if config.metrics.port is not None:
        plans.append(
            GatewayPlan(
                name="metrics",
                module="batchyard.clients.gateways.metrics",
                host=config.metrics.host,
                port=config.metrics.port,
                needs=("aiohttp", "prometheus_client"),
                devices=[(device.label, device.uuid) for device in devices],
                options=config.metrics.model_dump(),
            )
        )
    return plans


class GatewayLife:
    """The processes that hold one place of a gateway, one after the other."""

    def __init__(self) -> None:
        self.start_at = _NEVER
        self.has_answered = False
        self._begun = False
        self._answers_since: float | None = None
        self._deaths = Restarts()

    def broker_listens(self, now: float) -> None:
        """There is somebody to ask. It may be said again."""
        if not self._begun:
            self._begun = True
            self.start_at = now

    def started(self) -> None:
        """It was started, as ``start_at`` said."""
        self.start_at = _NEVER
        self._answers_since = None

    def answers(self, now: float) -> None:
        """It takes requests."""
        self.has_answered = True
        self._answers_since = now

    def drains(self) -> None:
        """No other is started after it, whatever happens."""
        self._begun = True
        self.start_at = _NEVER

    def ended(self, now: float, told_code: int) -> bool:
        """It died; ``told_code`` is the exit code that it told as its reason. Whether it will be
        started again: not where the next would end in the same way."""
        if told_code in LASTING_REASONS:
            return False
        since = self._answers_since
        pause_s = self._deaths.pause_after(None if since is None else now - since, told_code)
        self.start_at = now + (_LONGEST_PAUSE_S if pause_s is None else pause_s)
        return True
