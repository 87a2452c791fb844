"""The packets between the supervisor and its children, over the link that each child inherits.

The first packet to a child is its settings; descriptors travel beside them. A child that sees
its link closed exits: its supervisor is gone. Each packet after the settings is a msgpack array
whose first element is its kind.
"""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

# How a server or a child ends; see docs/architecture.md. 1 is any other failure.
EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_CONFIGURATION = 2
EXIT_DEVICE = 3
EXIT_MODEL = 4
# Of a command, never of a server: Ctrl-C ended it, as shells count.
INTERRUPTED_EXIT = 128 + signal.SIGINT

_PR_SET_PDEATHSIG = 1


class Kind(IntEnum):
    """What a packet is, and who sends it."""

    # supervisor -> broker; DRAIN also to gateways that requests come by: they end, having answered
    ATTACH = 1  # worker_id, slot, pid, device, concurrent_batches, restarts; the link beside it
    REAPED = 2  # worker_id, why it ended, whether its slot will have another
    DRAIN = 3
    RETIRE = 4  # worker_id: no more batches for it; RETIRED when it has none
    MODELS = 5  # ModelSettings of all that is served from now on, as maps
    PING = 6  # PONG is the answer
    KEYS = 7  # the folder of clients' keys is to be read again
    # broker -> supervisor
    LISTENING = 11  # endpoints
    READY = 12  # worker_id, what it said of its models (see ``work.Ready``)
    DRAINED = 13
    RETIRED = 14  # worker_id
    HUNG = 15  # worker_id, why: it is to be killed
    UNLOADED = 16  # name, version: a version that MODELS left out is gone from all workers
    SERVED = 17  # worker_id: it was given its first batch
    PONG = 18  # rows that wait in all queues
    # child -> supervisor
    FAILED = 21  # exit code, message, [model, version] or nil: why the child exits
    # gateway -> supervisor
    ANSWERING = 25
    RELOAD = 27  # id, tables of [[models]] to be served from now on; RELOADED is the answer
    # worker -> supervisor
    LOADING = 26  # which share of its models is loaded and warmed up; what it does now, in words
    # supervisor -> worker
    LINK = 31  # the broker was started anew; the link to it beside it
    # supervisor -> gateway
    RELOADED = 35  # id of RELOAD, an error's number or 0, its message
    # supervisor -> broker, worker, gateway
    LOG = 41  # the fields of ``log.LogSettings``, which have changed


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A version of a model as the broker must know it before a worker has loaded it.

    ``batching`` has the fields of ``broker.policy.BatchingParameters``. ``is_current``: requests
    that name no version get this one. ``retry`` says whether a request may run again after its
    worker died; None: unless the model writes state. ``error`` says why the version cannot be
    served, or is empty.
    """

    name: str
    version: int
    labels: list[str]
    batching: dict[str, Any]
    is_current: bool = True
    retry: bool | None = None
    batch_execution_timeout_s: float = float("inf")
    share: float = 1.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What a broker needs; the arena's descriptor comes beside it.

    ``in_flight_max`` bounds the unanswered requests of one client.
    ``awaited`` are the ids of workers that served a broker before this one: no block is handed
    out before each of them said which it still uses, or is gone. ``is_restarted``: clients of that
    broker are about to come back. ``reports`` is what its workers said of their models, as in
    ``work.Ready``: requests for them can be taken before a worker is ready again.
    ``ipc_gid`` is the group of ipc sockets, if not the process's own. The file of the server's
    keys is named, not sent: whoever needs the secret reads it there. Empty: no keys.
    """

    bind: list[str]
    ipc_mode: int
    max_message_nbytes: int
    queue_nbytes_max: int
    region_nbytes: int
    regions_max: int
    in_flight_max: int
    models: list[ModelSettings]
    awaited: list[int] = field(default_factory=list)
    is_restarted: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)
    ipc_gid: int | None = None
    curve_secret_key_file: str = ""
    curve_clients: str = ""

    def to_wire(self) -> dict[str, Any]:
        """A map of plain values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> BrokerSettings:
        """The settings that ``to_wire`` wrote."""
        return cls(**{**body, "models": [ModelSettings(**model) for model in body["models"]]})


@dataclass(frozen=True, slots=True)
class WarmupRequests:
    """How a worker runs the requests that a SavedModel brings along for its warm-up.

    Each ``iterations`` times, in batches as the broker would make: of ``max_batch_size`` rows at
    most (0: whole), padded up to the next of ``allowed_batch_sizes`` and ``length_buckets``.
    """

    iterations: int
    max_batch_size: int = 0
    allowed_batch_sizes: list[int] = field(default_factory=list)
    length_buckets: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model for a worker to load: a SavedModel's folder, or ``module:callable``.

    ``batch_sizes`` are the sizes to warm up at, increasing. ``signature`` and ``read_in_place`` are
    for the python runtime only: what a SavedModel says of itself, said by the configuration.
    ``device_arrays``: on a GPU the worker brings inputs to it and outputs back, not the runtime.
    ``jit_compile``: XLA compiles a SavedModel's signatures.
    ``warmup_requests`` is None where those that it brings along are not to be run.
    """

    name: str
    version: int
    runtime: str
    path: str
    batch_sizes: list[int]
    signature: dict[str, Any] | None
    read_in_place: bool = True
    device_arrays: bool = False
    jit_compile: bool = False
    warmup_requests: WarmupRequests | None = None

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> ModelSource:
        """The source that ``WorkerSettings.to_wire`` wrote."""
        requests = body["warmup_requests"]
        return cls(
            **{**body, "warmup_requests": None if requests is None else WarmupRequests(**requests)}
        )


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker needs; its link to the broker and the arena's descriptor come beside it.

    ``worker_id`` is another for each process, ``slot`` its place in the pool. ``loads_quietly``:
    others serve meanwhile, so loading must not take their processors away.
    ``memory_limit_mb`` and ``memory_growth`` bind GPU memory; parallelism is in threads, 0 for
    the runtime's own choice.
    """

    worker_id: int
    slot: int
    device: str
    memory_limit_mb: int | None
    memory_growth: bool
    intra_op_parallelism: int
    inter_op_parallelism: int
    cpu_affinity: list[int] | None
    concurrent_batches: int
    models: list[ModelSource]
    loads_quietly: bool = False

    def to_wire(self) -> dict[str, Any]:
        """A map of plain values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> WorkerSettings:
        """The settings that ``to_wire`` wrote."""
        return cls(**{**body, "models": [ModelSource.from_wire(m) for m in body["models"]]})


# Connections that may wait at a gateway's port for a process to take them: a burst of callers, and
# the moments in which one is replaced. The kernel bounds it by net.core.somaxconn, 4096 as Linux
# comes.
BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What a gateway needs; sockets that it listens at come beside it.

    ``endpoint`` is the broker's. ``devices`` has a name, such as ``gpu:0``, and the UUID of each
    GPU that workers may use. ``options`` is the gateway's table of the configuration, with
    ``host`` and ``port`` as they really are: an IP address, and no 0. ``awaits_models``: the server
    starts, and callers are to come when what it serves can be had.
    """

    endpoint: str
    devices: list[tuple[str, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    awaits_models: bool = True

    @property
    def address(self) -> str:
        """``127.0.0.1:8500``, ``[::1]:8500``; empty when there is no port."""
        host, port = self.options.get("host", ""), self.options.get("port")
        if port is None:
            return ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def to_wire(self) -> dict[str, Any]:
        """A map of plain values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> GatewaySettings:
        """The settings that ``to_wire`` wrote."""
        return cls(**{**body, "devices": [(name, uuid) for name, uuid in body["devices"]]})


# A service manager may signal every process of a service; only the supervisor acts on these.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PARENT_SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)


def leave_signals_to_parent() -> None:
    """Has this process ignore the signals that stop a server, or have it read its configuration.

    The supervisor starts children with them blocked, so that none can end a child before this.
    """
    for number in PARENT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENT_SIGNALS)


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies, whatever it is doing then.

    Called by a child as its first act; ``parent_pid`` is who it thinks its parent is. Exits if
    that one is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(EXIT_FAILURE)
