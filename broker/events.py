"""What the broker's state machine is told (events, facts in the past tense) and what it wants
done (actions, commands).

They are not to be changed; frozen dataclasses would cost twice as much to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchyard.broker.catalog import ServedModel
from batchyard.broker.lane import Lane
from batchyard.broker.layout import BatchLayout
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, RequestGroup
from batchyard.broker.retries import Retry
from batchyard.broker.times import BatchTimes
from batchyard.wire.blocks import Block
from batchyard.wire.errors import BatchyardError
from batchyard.wire.protocol import Segment
from batchyard.wire.work import Ready, Resumed

# What may hold a batch's block: the worker until it answers, replies that read outputs, a model
# that kept its inputs, and a lost worker until it is reaped.
WORKER, REPLIES, MODEL, UNREAPED = "worker", "replies", "model", "unreaped"


@dataclass(slots=True, eq=False)
class Batch:
    """Rows that run together. It owns its block until nothing reads or writes it any more."""

    id: int
    lane: Lane
    parts: list[Part]
    rows: int
    layout: BatchLayout
    block: Block
    worker_id: int
    dispatched_at: float
    # Why the block cannot be given to another batch yet.
    holders: set[str] = field(default_factory=set)

    # When its worker took it up, as far as the broker can tell; NEVER while it waits there.
    running_since: float = NEVER
    # Why its rows are not to meet new ones, if they are not: what they were before.
    retry: Retry | None = None
    # Whether its worker may still write to reply space of its requests.
    is_running: bool = True
    # Whether one whole request, and no padding, made it: its outputs are as they are.
    alone: bool = False
    # How long it was predicted to run, if that could be; whether such batches always take much the
    # same; and whether its worker had nothing else.
    expected_s: float | None = None
    is_steady: bool = False
    was_idle: bool = False
    # When it was where, if anybody wants to know.
    times: BatchTimes | None = None

    def __post_init__(self) -> None:
        part = self.parts[0]
        self.alone = (
            len(self.parts) == 1
            and part.count == 1
            and part.first not in part.group.split
            and self.rows == self.layout.padded_rows
        )


# Events


@dataclass(slots=True)
class RequestsArrived:
    """A message that passed admission. ``resent``: it may have arrived before."""

    group: RequestGroup
    resent: bool = False


@dataclass(slots=True)
class RequestsCancelled:
    """A client gave requests up."""

    client: bytes
    segments: list[Segment]


@dataclass(slots=True)
class ClientLeft:
    """A client closed its connection and wants no answers."""

    client: bytes


@dataclass(slots=True)
class WorkerAttached:
    """A slot has a process, which may be loading."""

    slot: int


@dataclass(slots=True)
class WorkerReady:
    """A worker has loaded its models. It has the place ``slot`` in the pool, after others."""

    worker_id: int
    concurrent_batches: int
    ready: Ready
    slot: int = -1


@dataclass(slots=True)
class BatchesResumed:
    """A worker told what it still has of a broker before this one."""

    worker_id: int
    resumed: Resumed


@dataclass(slots=True)
class BatchFinished:
    """A worker ran a batch. ``kept``: the model still reads the inputs. ``replied``: outputs of
    requests whose reply space has room for them are there. ``execution_s``: how long the model
    ran; 0 when that is not known."""

    batch_id: int
    output_nbytes: int
    kept: bool
    replied: bool = False
    execution_s: float = 0.0


@dataclass(slots=True)
class BatchFailed:
    """A batch raised in the worker."""

    batch_id: int
    error: BatchyardError
    kept: bool


@dataclass(slots=True)
class InputsReleased:
    """The model let go of a batch's inputs."""

    batch_id: int


@dataclass(slots=True)
class BatchDelivered:
    """No reply reads the batch's outputs any more."""

    batch_id: int


@dataclass(slots=True)
class WorkerLost:
    """A worker's link closed: it answers nothing more, but may still write."""

    worker_id: int


@dataclass(slots=True)
class WorkerReaped:
    """A lost worker's process is gone: it writes nothing more.

    ``why`` it ended. ``comes_back``: its slot will have another. ``slot`` is None for one that this
    broker never had.
    """

    worker_id: int
    why: str = "it died"
    comes_back: bool = False
    slot: int | None = -1


@dataclass(slots=True)
class WorkerRetiring:
    """A worker is to get no more batches."""

    worker_id: int


@dataclass(slots=True)
class ModelsChanged:
    """All that is served from now on."""

    models: list[ServedModel]


@dataclass(slots=True)
class DrainStarted:
    """Take no more requests, finish those that were taken."""


@dataclass(slots=True)
class TimePassed:
    """Look at the clock, and at everything that arrived since."""


Event = (
    RequestsArrived
    | RequestsCancelled
    | ClientLeft
    | WorkerAttached
    | WorkerReady
    | BatchesResumed
    | BatchFinished
    | BatchFailed
    | InputsReleased
    | BatchDelivered
    | WorkerLost
    | WorkerReaped
    | WorkerRetiring
    | ModelsChanged
    | DrainStarted
    | TimePassed
)


# Actions


@dataclass(slots=True)
class Dispatch:
    """Copy the batch's rows into its block and hand it to its worker."""

    batch: Batch


@dataclass(slots=True)
class Deliver:
    """Answer the batch's parts with its outputs, then tell ``BatchDelivered``.

    ``parts`` pairs each part that someone waits for with its first row in the batch. With
    ``replied`` those whose group has ``replies`` have their outputs there, where they fit.
    """

    batch: Batch
    parts: list[tuple[Part, int]]
    replied: bool = False


@dataclass(slots=True)
class Refuse:
    """Answer requests of a group with an error. ``requests`` are runs ``(first, count)``."""

    group: RequestGroup
    requests: list[tuple[int, int]]
    error: BatchyardError


@dataclass(slots=True)
class Kill:
    """End a worker: it hangs. It is lost already."""

    worker_id: int
    why: str


@dataclass(slots=True)
class Retired:
    """A retiring worker has nothing left. It is lost already."""

    worker_id: int


@dataclass(slots=True)
class Unload:
    """A version is gone: have the workers forget it."""

    name: str
    version: int


@dataclass(slots=True)
class Forget:
    """Nobody will ask for the outputs of a resumed batch any more."""

    batch_id: int


Action = Dispatch | Deliver | Refuse | Kill | Retired | Unload | Forget
