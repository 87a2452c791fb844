"""What ran and runs again: which rows of a batch that came to nothing, how, and until when.

A batch that raised is split in halves until the request that raised is alone. One that its worker
died with has its requests run singly, because one of them may be the reason: see docs/failures.md.
Such rows do not go back to their lanes, where they would meet new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, RequestGroup, without_requests
from batchyard.wire.errors import (
    Aborted,
    BatchyardError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unknown,
)

# How long the last worker that serves is spared suspects while another is on its way.
_SPARED_S = 30.0
# What a row may be the reason of. Others are the model's, whatever it is given.
_OF_ROWS = (
    Aborted,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    Unknown,
)

# Requests of a group that are to be answered with an error.
Refusal = tuple[RequestGroup, Iterable[int]]


@dataclass(slots=True, eq=False)
class Retry:
    """Parts of one lane that are the next batch. A suspect runs where nothing else does.

    ``looked_since`` is when a worker was first looked for.
    """

    parts: list[Part]
    is_suspect: bool = False
    looked_since: float = NEVER


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a worker while it ran a batch, and why it came.

    ``was_suspect``: the batch was one request, alone on a worker set apart, after another had died
    with it.
    """

    why: str
    was_suspect: bool


@dataclass(slots=True)
class Verdict:
    """What becomes of a batch that came to nothing."""

    retries: list[Retry] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    error: BatchyardError | None = None


class Retries:
    """Those that wait for a worker, in their order."""

    def __init__(self) -> None:
        self._waiting: list[Retry] = []
        # Whether nobody has looked for a worker since the last one came.
        self.is_fresh = False
        # When a suspect has waited for a worker beside the last one for long enough.
        self.risk_at = NEVER

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Retry]:
        return iter(list(self._waiting))

    @property
    def has_suspects(self) -> bool:
        """Whether any waits for a worker of its own."""
        return any(retry.is_suspect for retry in self._waiting)

    def add(self, retries: Iterable[Retry]) -> None:
        """Rows that are to run again."""
        self._waiting += retries
        self.is_fresh = True

    def may_risk(self, retry: Retry, now: float) -> bool:
        """Whether a suspect may run on the last worker that serves, though another is to come."""
        retry.looked_since = min(retry.looked_since, now)
        risk_at = retry.looked_since + _SPARED_S
        if risk_at > now:
            self.risk_at = min(self.risk_at, risk_at)
        return risk_at <= now

    def remove(self, retry: Retry) -> None:
        """It is handed over."""
        self._waiting.remove(retry)

    def remove_dropped(self) -> list[Part]:
        """Takes out and returns the requests that were dropped, of all groups."""
        return self._keep(lambda part: part.group.dropped)

    def expire(self, now: float) -> list[Part]:
        """Takes out and returns every request whose deadline has passed."""
        return self._keep(lambda part: part.late_requests(now))

    def _keep(self, unwanted: Callable[[Part], Collection[int]]) -> list[Part]:
        removed: list[Part] = []
        for retry in self._waiting:
            retry.parts, gone = without_requests(retry.parts, unwanted)
            removed += gone
        self._waiting = [retry for retry in self._waiting if retry.parts]
        return removed


def after_error(parts: list[Part], error: BatchyardError) -> Verdict:
    """What becomes of requests whose batch raised."""
    lane = parts[0].group.lane
    requests = sum(part.count for part in parts)
    if lane.model.may_retry and isinstance(error, _OF_ROWS):
        if requests > 1:
            return Verdict(_halves(parts, requests // 2))
        if isinstance(error, ResourceExhausted) and _may_cut(parts[0]):
            head, tail = parts[0].cut_rows(parts[0].rows // 2)
            return Verdict([Retry([head]), Retry([tail])])
    return Verdict([], _all_of(parts), error)


def _halves(parts: list[Part], requests: int) -> list[Retry]:
    head: list[Part] = []
    for i, part in enumerate(parts):
        if part.count > requests:
            tail = parts[i + 1 :]
            if requests:
                first, rest = part.cut(requests)
                return [Retry([*head, first]), Retry([rest, *tail])]
            return [Retry(head), Retry([part, *tail])]
        head.append(part)
        requests -= part.count
    return [Retry(head)]


def _may_cut(part: Part) -> bool:
    """Whether fewer rows of its one request may run, and the answer be put together."""
    lane = part.group.lane
    return part.rows > 1 and lane.signature.batched and lane.parameters.enable_large_batch_splitting


def after_death(parts: list[Part], death: Death) -> Verdict:
    """What becomes of requests whose worker died while it ran them."""
    model = parts[0].group.lane.model
    where = f"model {model.name!r}: the worker died while it ran this ({death.why})"
    if not model.may_retry:
        return Verdict([], _all_of(parts), Unavailable(f"{where}; it is not tried again"))
    if death.was_suspect:
        culprit = Internal(f"{where}, alone, as another had before; it is not tried again")
        return Verdict([], _all_of(parts), culprit)
    each = [single for part in parts for single in _singles(part)]
    return Verdict([Retry([single], is_suspect=True) for single in each])


def _singles(part: Part) -> list[Part]:
    """A part for each of its requests."""
    singles = []
    while part.count > 1:
        single, part = part.cut(1)
        singles.append(single)
    return [*singles, part]


def _all_of(parts: list[Part]) -> list[Refusal]:
    return [(part.group, range(part.first, part.first + part.count)) for part in parts]
