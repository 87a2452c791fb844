"""What the tuner may ask: experiments with a server, real or in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

# While experimenting nothing is to be refused for want of room in the queue.
VERY_MANY_BATCHES = 10_000
# As good as for ever: a batch that leaves by it has waited in vain.
VERY_HIGH_TIMEOUT_MICROS = 10_000_000


# Before a run, and not counted: a queue needs a few deadlines to be as long as it gets.
_WARMUP_S, _WARMUP_DEADLINES, _LONGEST_WARMUP_S = 0.4, 4, 2.0
# A run of so many deadlines shows by late answers that the server cannot keep up.
_LONG_DEADLINES = 20
# By this share of the deadline medians of a queue in balance do not differ.
_GROWTH = 0.15


def warmup_s(deadline_s: float | None) -> float:
    """How long requests come before they are counted."""
    return max(_WARMUP_S, min(_WARMUP_DEADLINES * (deadline_s or 0.0), _LONGEST_WARMUP_S))


def backlog_grew(first_s: float, last_s: float, seconds: float, deadline_s: float) -> bool:
    """Whether latency grew from the first quarter of a run to the last so that it will be too long.

    Both are medians. Only of a run that is short beside the deadline: in a longer one more than a
    few answers are late.
    """
    return seconds < _LONG_DEADLINES * deadline_s and last_s > first_s + _GROWTH * deadline_s


@dataclass(frozen=True, slots=True)
class Placement:
    """The processes that run batches."""

    workers: int
    concurrent_batches: int = 1
    """Batches that each of them runs at once."""

    @property
    def room(self) -> int:
        """Batches that run at once."""
        return self.workers * self.concurrent_batches

    def __str__(self) -> str:
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        if self.concurrent_batches == 1:
            return workers
        return f"{workers}, {self.concurrent_batches} batches at once each"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is tuned. Names are those of ``[models.batching]``."""

    placement: Placement
    max_batch_size: int
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = VERY_MANY_BATCHES
    num_batch_threads: int | None = None
    allowed_batch_sizes: tuple[int, ...] = ()

    @property
    def threads(self) -> int:
        """Batches that run at once."""
        room = self.placement.room
        return room if self.num_batch_threads is None else min(room, self.num_batch_threads)


@dataclass(frozen=True, slots=True)
class Throughput:
    """The goal: as many requests a second as can be, however long each waits."""

    def __str__(self) -> str:
        return "throughput"


@dataclass(frozen=True, slots=True)
class Deadline:
    """The goal: the highest Poisson rate at which this share of requests is answered in time."""

    deadline_s: float
    share: float = 0.99

    def __str__(self) -> str:
        return f"the highest rate with p{100 * self.share:g} within {1e3 * self.deadline_s:g} ms"


Goal = Throughput | Deadline


@dataclass(frozen=True, slots=True)
class Execution:
    """Batches of exactly so many rows, one after the other."""

    rows: int
    median_s: float
    first_s: float
    """The first of them: where it takes much longer, every new size costs something."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one kind for a while."""

    setting: Setting
    rate: float | None
    """Requests a second that were offered (open loop); None: as many as were answered."""
    seconds: float
    requests: int
    answered_rate: float
    """Requests a second that were answered, in time where there is a deadline."""
    in_time_share: float
    """Of the requests that were offered; 1 where there is no deadline and no error."""
    mean_s: float
    p50_s: float
    p99_s: float
    batch_rows: float | None = None
    """The mean of the batches that were formed."""
    errors: tuple[tuple[str, int], ...] = ()
    growing: bool = False
    """The backlog grew: what was in time now would not be for long."""
    doubt: str = ""
    """Why the figures may say more of the generator than of the server; empty when all is well."""


class CannotRun(Exception):
    """A batch of that size does not run here (memory, say); the message says why."""


class Bench(Protocol):
    """A server that is set up as asked before each experiment."""

    device: Literal["cpu", "gpu"]
    cores: int
    rows_per_request: int
    placements: tuple[Placement, ...]
    """Those that may be chosen, the guide's first; one, when there is no choice."""
    defaults: Setting
    """What a user gets who says nothing."""
    most_rows: int
    """The largest batch that memory lets one think of."""
    most_waiting_rows: int
    """The most rows that memory lets wait."""

    def spent_s(self) -> float:
        """Seconds since the start, those between experiments too."""
        ...

    def execution(self, setting: Setting, rows: int) -> Execution:
        """How long a batch of exactly ``rows`` takes. Raises CannotRun."""
        ...

    def saturate(self, setting: Setting, concurrency: int, seconds: float) -> Load:
        """So many callers, each waiting for its answer."""
        ...

    def offer(self, setting: Setting, rate: float, deadline_s: float, seconds: float) -> Load:
        """Poisson arrivals of requests that have a deadline."""
        ...
