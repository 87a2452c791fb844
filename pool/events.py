"""What happens to a server's processes (events), and what is to be done about it (actions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from batchyard.pool.config import Config
from batchyard.pool.model_set import Key
from batchyard.pool.versions import Found
from batchyard.wire import control
from batchyard.wire.control import ModelSettings, ModelSource
from batchyard.wire.errors import BatchyardError
from batchyard.wire.log import LogSettings


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended: as it said itself, or as the kernel tells.

    ``model`` is the version that it could not load, if it said so.
    """

    reason: str
    exit_code: int = control.EXIT_FAILURE
    model: Key | None = None
    was_told: bool = False

    def of(self, process: str) -> str:
        """The reason, for a person who is told nothing else."""
        return self.reason if self.was_told else f"{process} ended: {self.reason}"


class Cause(Enum):
    """Why the configuration was read again."""

    SIGNAL = "signal"
    POLL = "poll"
    GATEWAY = "gateway"


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The server was asked to start."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The clock is to be looked at."""


@dataclass(frozen=True, slots=True)
class BrokerListening:
    """The broker is bound."""

    endpoints: Sequence[str]


@dataclass(frozen=True, slots=True)
class BrokerEnded:
    """The broker was reaped."""

    death: Death


@dataclass(frozen=True, slots=True)
class BrokerDrained:
    """The broker has answered all that it accepted."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The broker may give a worker batches."""

    id: int


@dataclass(frozen=True, slots=True)
class BrokerAnswered:
    """The broker does not hang; so many rows wait in its queues."""

    queued_rows: int = 0


@dataclass(frozen=True, slots=True)
class WorkerServed:
    """A worker was given its first batch."""

    id: int


@dataclass(frozen=True, slots=True)
class WorkerRetired:
    """A worker has no batch left, and gets no more."""

    id: int


@dataclass(frozen=True, slots=True)
class WorkerHung:
    """A batch has run too long on a worker."""

    id: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """A worker was reaped."""

    id: int
    death: Death


@dataclass(frozen=True, slots=True)
class VersionUnloaded:
    """A version that is not served any more is gone from all workers."""

    key: Key


@dataclass(frozen=True, slots=True)
class VersionsFound:
    """Models' folders were looked at."""

    found: Found


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """The configuration is to be read again; ConfigurationRead or ConfigurationRefused follows."""


@dataclass(frozen=True, slots=True)
class ModelsRequested:
    """A gateway asked for these tables of ``[[models]]`` to be served, and none else."""

    ticket: int
    models: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ConfigurationRead:
    """The configuration was read again, and models' folders were looked at."""

    config: Config
    found: Found
    cause: Cause = Cause.SIGNAL


@dataclass(frozen=True, slots=True)
class ConfigurationRefused:
    """It was read again, and cannot work."""

    message: str
    cause: Cause = Cause.SIGNAL


@dataclass(frozen=True, slots=True)
class GatewaysAnswer:
    """Every process of every gateway has taken requests once."""


@dataclass(frozen=True, slots=True)
class GatewayFailed:
    """A gateway's process ended before it ever took requests."""

    name: str
    death: Death


@dataclass(frozen=True, slots=True)
class GatewaysDrained:
    """The gateways that requests come by have answered what they had read, and ended."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A signal said stop."""


Event = (
    Started
    | TimePassed
    | BrokerListening
    | BrokerEnded
    | BrokerDrained
    | WorkerReady
    | WorkerRetired
    | WorkerServed
    | BrokerAnswered
    | WorkerHung
    | WorkerEnded
    | VersionUnloaded
    | VersionsFound
    | ReloadRequested
    | ModelsRequested
    | ConfigurationRead
    | ConfigurationRefused
    | GatewaysAnswer
    | GatewayFailed
    | GatewaysDrained
    | StopRequested
)

# Actions


@dataclass(frozen=True, slots=True)
class StartBroker:
    """Start the broker, on these endpoints or, if there are none yet, on the configured ones."""

    endpoints: Sequence[str]
    models: list[ModelSettings]
    awaited: list[int]


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a worker's process, and attach it to the broker."""

    id: int
    slot: int
    sources: Mapping[Key, ModelSource]
    loads_quietly: bool
    restarts: int


@dataclass(frozen=True, slots=True)
class LinkWorker:
    """Give a worker a link to the broker that was started anew."""

    id: int
    slot: int
    restarts: int


@dataclass(frozen=True, slots=True)
class EndWorker:
    """Have a worker that has no batches end."""

    id: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """Kill a worker."""

    id: int


@dataclass(frozen=True, slots=True)
class KillBroker:
    """Kill the broker."""


@dataclass(frozen=True, slots=True)
class TellBroker:
    """Send the broker a packet of ``wire.control``."""

    packet: list[object]


@dataclass(frozen=True, slots=True)
class DrainGateways:
    """Have the gateways that requests come by answer what they have read, and end."""


@dataclass(frozen=True, slots=True)
class ReadModels:
    """Read the configuration, with these tables of ``[[models]]`` instead of its own."""

    models: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ResumePolls:
    """What ReadModels was for is over: the configuration's own models may replace those."""


@dataclass(frozen=True, slots=True)
class AnswerReload:
    """Tell the gateway that asked how it ended."""

    ticket: int
    error: BatchyardError | None


@dataclass(frozen=True, slots=True)
class ReportReady:
    """Say that every worker and every gateway can take requests."""

    endpoints: Sequence[str]


@dataclass(frozen=True, slots=True)
class TellServiceManager:
    """Tell whoever started the server what is true now, by sd_notify's names."""

    variables: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Stop:
    """End what still runs: nobody needs it any more."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End what still runs: the server cannot go on. ``exit_code`` is one of ``wire.control``."""

    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class ConfigureLogs:
    """Write logs in another way from now on, in all processes."""

    settings: LogSettings


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the log."""

    level: str
    event: str
    fields: Mapping[str, object]


Action = (
    StartBroker
    | StartWorker
    | LinkWorker
    | EndWorker
    | KillWorker
    | KillBroker
    | TellBroker
    | DrainGateways
    | ReadModels
    | ResumePolls
    | AnswerReload
    | ReportReady
    | TellServiceManager
    | Stop
    | Fail
    | ConfigureLogs
    | Log
)
