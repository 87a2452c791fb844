"""Requests: groups as they arrived, and parts of them.

Requests of one message stay together as a ``RequestGroup``: the broker spends no Python on each
request where it can spend it on the message. A ``Part`` is a run of a group's requests, or some
rows of a single large one; lanes hold parts, batches are made of parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from batchyard.broker.policy import NEVER
from batchyard.wire.protocol import OutputHeader
from batchyard.wire.tags import Tag
from batchyard.wire.tensors import Buffer

if TYPE_CHECKING:
    from batchyard.broker.lane import Lane


@dataclass(slots=True, eq=False)
class SplitRequest:
    """A request of more rows than a batch holds, while its pieces come back.

    ``rows_left`` counts those that no batch has answered. What follows is kept by the replies:
    ``rows_missing`` counts those without outputs in ``pieces``, the output headers and frames of
    each piece by its first row in the group. ``failed`` says that the request was answered with
    an error because its pieces do not fit together.
    """

    rows_left: int
    rows_missing: int = field(init=False)
    pieces: dict[int, tuple[list[OutputHeader], list[bytes]]] = field(default_factory=dict)
    failed: bool = False

    def __post_init__(self) -> None:
        self.rows_missing = self.rows_left

    def keep(
        self, row_start: int, rows: int, headers: list[OutputHeader], frames: list[bytes]
    ) -> None:
        """The outputs of a piece."""
        self.pieces[row_start] = headers, frames
        self.rows_missing -= rows

    @property
    def is_complete(self) -> bool:
        """Whether the outputs of every piece are there."""
        return not self.rows_missing


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Memory that a client shares with the server. The client may write to it at any moment.

    ``is_ours``: the client is a process of the server's user, which could do worse.
    """

    id: int
    memory: memoryview
    is_ours: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class RegionRows:
    """An input that lies in a region: the rows of request i begin at ``offsets[i]``."""

    region: Region
    offsets: list[int]


@dataclass(slots=True, eq=False)
class Ticket:
    """How many rows of a group that have a deadline are in its lane, and since when.

    ``is_noted``: it stands among those of its lane, perhaps without rows.
    """

    arrived_at: float
    rows: int = 0
    is_noted: bool = False


# Most groups need no set of their own.
_NONE: frozenset[int] = frozenset()
# Where an input lies until its batch is made: in a frame of the message, or in a region.
Source = Buffer | RegionRows


@dataclass(slots=True, eq=False)
class RequestGroup:
    """The requests of one message, all for one lane.

    ``rows`` lists the rows of each request; None when each has one (or, in a lane that is not
    batched, when there is only one request). ``sources`` has one for each of the signature's
    inputs, ``shapes`` its whole shape. ``region`` is the client's when the message speaks of it;
    ``replies`` then may say where in it each request's outputs may be written
    (offset, nbytes). Deadlines are in the broker's clock; ``deadlines`` is None when all share
    ``earliest_deadline``.
    """

    client: bytes
    message_id: int
    lane: Lane
    count: int
    total_rows: int
    rows: list[int] | None
    sources: list[Source]
    shapes: list[tuple[int, ...]]
    nbytes: int
    arrived_at: float
    region: Region | None = None
    replies: list[tuple[int, int]] | None = None
    tags: tuple[Tag, ...] = ()
    earliest_deadline: float = NEVER
    deadlines: list[float] | None = None
    # How the group fares: requests without an answer, and rows that still wait in the lane.
    unanswered: int = 0
    queued_rows: int = 0
    ticket: Ticket | None = None
    # Parts of it that are on workers, and refusals (actions) that wait for their return: workers
    # may write to its reply space until then.
    running: int = 0
    last_words: tuple[Any, ...] = ()
    # Requests that were answered, of a group of which others were not.
    answered: set[int] | frozenset[int] = _NONE
    # Requests that were refused while a batch may hold rows of them: nobody wants those rows.
    dropped: set[int] | frozenset[int] = _NONE
    split: dict[int, SplitRequest] = field(default_factory=dict)
    _row_starts: list[int] | None = None

    def __post_init__(self) -> None:
        self.unanswered = self.count

    def row_start(self, request: int) -> int:
        """The group's row at which a request begins; for ``count``, the total."""
        if self.rows is None:
            return request
        if self._row_starts is None:
            self._row_starts = [0, *accumulate(self.rows)]
        return self._row_starts[request]

    def fitting(self, rows: int) -> int:
        """How many of its requests, from the first, are within so many rows."""
        if self.total_rows <= rows:
            return self.count
        fitting = 0
        while self.row_start(fitting + 1) <= rows:
            fitting += 1
        return fitting

    def mark_answered(self, requests: Iterable[int]) -> None:
        """Requests have their answer, while others have not."""
        if not isinstance(self.answered, set):
            self.answered = set()
        self.answered.update(requests)

    def mark_dropped(self, requests: Iterable[int]) -> None:
        """Requests were refused."""
        if not isinstance(self.dropped, set):
            self.dropped = set()
        self.dropped.update(requests)

    def was_told(self, request: int) -> bool:
        """Whether the replies answered a large request themselves: its pieces did not fit."""
        split = self.split.get(request)
        return split is not None and split.failed

    def parts(self, max_rows: int) -> list[Part]:
        """The group as parts; requests of more than ``max_rows`` rows are parts of their own."""
        if self.rows is None or max(self.rows) <= max_rows:
            return [Part(self, 0, self.count, 0, self.total_rows)]
        parts: list[Part] = []
        first = 0
        for request, rows in enumerate(self.rows):
            if rows <= max_rows:
                continue
            if first < request:
                parts.append(self._run(first, request))
            self.split[request] = SplitRequest(rows)
            parts.append(self._run(request, request + 1))
            first = request + 1
        if first < self.count:
            parts.append(self._run(first, self.count))
        return parts

    def _run(self, first: int, stop: int) -> Part:
        start = self.row_start(first)
        return Part(self, first, stop - first, start, self.row_start(stop) - start)


@dataclass(slots=True, eq=False)
class Part:
    """Requests ``first`` to ``first + count`` of a group, or a piece of one large request.

    ``row_start`` counts from the group's first row.
    """

    group: RequestGroup
    first: int
    count: int
    row_start: int
    rows: int

    @property
    def earliest_deadline(self) -> float:
        """The earliest of its requests' deadlines."""
        deadlines = self.group.deadlines
        if deadlines is None:
            return self.group.earliest_deadline
        return min(deadlines[self.first : self.first + self.count])

    @property
    def least_rows(self) -> int:
        """The fewest rows that can be cut off: a row of a large request, else its first request."""
        if self.first in self.group.split:
            return 1
        return self.group.row_start(self.first + 1) - self.row_start

    def take(self, room: int) -> Part | None:
        """Cuts off and returns what fits into ``room`` rows, fewer than this part has.

        None when nothing does: requests stay whole, but for those that no batch could hold.
        """
        group = self.group
        if self.first in group.split:
            piece = Part(group, self.first, 1, self.row_start, room)
            self.row_start += room
            self.rows -= room
            return piece
        count = 0
        end = self.row_start + room
        while group.row_start(self.first + count + 1) <= end:
            count += 1
        if not count:
            return None
        rows = group.row_start(self.first + count) - self.row_start
        taken = Part(group, self.first, count, self.row_start, rows)
        self.first += count
        self.count -= count
        self.row_start += rows
        self.rows -= rows
        return taken

    def cut(self, requests: int) -> tuple[Part, Part]:
        """Its first so many requests, fewer than it has, and the rest."""
        middle = self.first + requests
        rows = self.group.row_start(middle) - self.row_start
        return (
            Part(self.group, self.first, requests, self.row_start, rows),
            Part(
                self.group, middle, self.count - requests, self.row_start + rows, self.rows - rows
            ),
        )

    def cut_rows(self, rows: int) -> tuple[Part, Part]:
        """Its first so many rows, and the rest: pieces of its one request from now on."""
        group, request = self.group, self.first
        if request not in group.split:
            group.split[request] = SplitRequest(self.rows)
        return (
            Part(group, request, 1, self.row_start, rows),
            Part(group, request, 1, self.row_start + rows, self.rows - rows),
        )

    def without(self, taken: Part) -> list[Part]:
        """What is left of it without ``taken``, another part of its group."""
        if self.first in self.group.split:
            start, end = self.row_start, self.row_start + self.rows
            taken_end = taken.row_start + taken.rows
            rows = [(start, min(end, taken.row_start)), (max(start, taken_end), end)]
            return [Part(self.group, self.first, 1, a, b - a) for a, b in rows if a < b]
        return self.divide(range(taken.first, taken.first + taken.count))[0]

    def late_requests(self, now: float) -> Collection[int]:
        """Those of its requests whose deadline has passed."""
        if self.earliest_deadline > now:
            return ()
        requests = range(self.first, self.first + self.count)
        deadlines = self.group.deadlines
        if deadlines is None:
            return requests
        return {request for request in requests if deadlines[request] <= now}

    def divide(self, requests: Container[int]) -> tuple[list[Part], list[Part]]:
        """The runs of this part that are not in ``requests``, and those that are."""
        if self.first in self.group.split:
            return ([], [self]) if self.first in requests else ([self], [])
        sides: tuple[list[Part], list[Part]] = ([], [])
        first = self.first
        for request in range(self.first + 1, self.first + self.count + 1):
            inside = first in requests
            if request < self.first + self.count and (request in requests) == inside:
                continue
            start = self.group.row_start(first)
            rows = self.group.row_start(request) - start
            sides[inside].append(Part(self.group, first, request - first, start, rows))
            first = request
        return sides


def without_requests(
    parts: Iterable[Part], unwanted: Callable[[Part], Collection[int]]
) -> tuple[list[Part], list[Part]]:
    """The parts without the requests that are ``unwanted`` of each, and those."""
    kept, removed = list[Part](), list[Part]()
    for part in parts:
        requests = unwanted(part)
        if not requests:
            kept.append(part)
            continue
        stay, go = part.divide(requests)
        kept.extend(stay)
        removed.extend(go)
    return kept, removed


def by_client(parts: list[Part]) -> list[Part]:
    """One client's rows side by side: its reply is then one slice of each output."""
    return sorted(parts, key=_client_of) if len(parts) > 1 else parts


def _client_of(part: Part) -> bytes:
    return part.group.client
