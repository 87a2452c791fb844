"""A lane: requests that wait, and may share a batch."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchyard.broker.durations import Durations
from batchyard.broker.measures import Measures
from batchyard.broker.policy import NEVER, BatchingParameters, padded_rows
from batchyard.broker.queue import Part, RequestGroup, Ticket, without_requests
from batchyard.wire.dtypes import STRING
from batchyard.wire.signatures import SignatureSpec

if TYPE_CHECKING:
    from batchyard.broker.catalog import ServedModel
    from batchyard.broker.layout import BatchLayout

# What has no deadline takes the room that others leave. Once it has waited for so long it gets at
# least a quarter of each batch, and its lane is as urgent as if it were due.
_PATIENCE_S = 1.0
_SHARE_OF_PATIENT = 4
# A queue that was not short for so long is a standing one.
_STANDING_S = 0.1
# Tickets without rows that may be kept at least.
_SPARE_TICKETS = 64


@dataclass(slots=True, eq=False)
class Lane:
    """Requests that may share a batch: same model, version, signature, priority and row shapes.

    ``row_shapes`` has one shape for each input, None where ``pad_variable_length_inputs`` lets
    the dimension differ between requests. In a lane that is not batched a request counts as one
    row, whatever its shapes. ``max_rows`` is the most that one batch may hold. ``durations`` is
    what is known of its batches, by kind of device; other lanes may share it.
    """

    model: ServedModel
    signature: SignatureSpec
    priority: int
    row_shapes: tuple[tuple[int | None, ...], ...]
    max_rows: int
    batch_timeout_s: float
    # Bytes that the outputs of one row took so far, at most.
    output_row_nbytes: int
    durations: dict[str, Durations] = field(default_factory=dict)
    queued_rows: int = 0
    # Rows that may wait; beyond, requests are refused.
    max_queued_rows: int = field(init=False)
    # Layouts of batches of so many rows, where rows are all that they depend on.
    layouts: dict[int, BatchLayout] = field(default_factory=dict)
    # Whether all rows have the same bytes.
    has_fixed_rows: bool = field(init=False)
    # Its signature's.
    measures: Measures = field(init=False)
    # The model's when the lane was made: what waits was cut by them.
    parameters: BatchingParameters = field(init=False)
    # Sizes that batches run at, increasing: those allowed, or powers of two for all.
    sizes: list[int] = field(init=False)
    # What has a deadline, the earliest first; and what has none, as it came.
    _timed: list[Part] = field(default_factory=list)
    _untimed: deque[Part] = field(default_factory=deque)
    _untimed_rows: int = 0
    # Rows that patient ones may have of batches, and have not had.
    _untimed_due: int = 0
    # Of what has a deadline, by arrival; those of which nothing is left here are forgotten late.
    _tickets: deque[Ticket] = field(default_factory=deque)
    # When the queue was last shorter than ``queue_delay_target_micros``.
    _short_at: float = -NEVER

    def __post_init__(self) -> None:
        self.parameters = parameters = self.model.parameters
        self.measures = self.model.measures.setdefault(self.signature.name, Measures())
        batch = parameters.max_batch_size if self.signature.batched else 1
        self.max_queued_rows = parameters.max_enqueued_batches * batch
        self.has_fixed_rows = self.signature.batched and not (
            any(spec.dtype == STRING for spec in self.signature.inputs)
            or any(None in shape for shape in self.row_shapes)
        )
        allowed = parameters.allowed_batch_sizes or tuple(
            1 << i for i in range(self.max_rows.bit_length())
        )
        self.sizes = sorted({*(size for size in allowed if size < self.max_rows), self.max_rows})

    # What waits

    @property
    def parts(self) -> list[Part]:
        """All that waits, the most urgent first."""
        return [*self._timed, *self._untimed]

    @property
    def earliest_deadline(self) -> float:
        """The earliest deadline of what waits."""
        return self._timed[0].earliest_deadline if self._timed else NEVER

    @property
    def earliest_due(self) -> float:
        """The same, with what has no deadline."""
        waits_since = self._untimed[0].group.arrived_at if self._untimed else NEVER
        return min(self.earliest_deadline, waits_since + _PATIENCE_S)

    @property
    def first_rows(self) -> int:
        """The fewest rows that can be taken."""
        return (self._timed or self._untimed)[0].least_rows

    @property
    def oldest_arrival(self) -> float:
        """When the oldest of what waits arrived, in the broker's clock."""
        tickets = self._tickets
        while tickets and not tickets[0].rows:
            tickets.popleft().is_noted = False
        timed = tickets[0].arrived_at if tickets else NEVER
        return min(timed, self._untimed[0].group.arrived_at) if self._untimed else timed

    def fitting(self, group: RequestGroup, running_rows: int = 0) -> int:
        """How many of a group's requests there is room for; so many rows of it need none."""
        return group.fitting(self.max_queued_rows - self.queued_rows + running_rows)

    def rows_before(self, deadline: float) -> int:
        """About how many rows go before a request with that deadline that comes now."""
        timed = self._timed
        timed_rows = self.queued_rows - self._untimed_rows
        if timed and timed[-1].earliest_deadline > deadline:
            # As if parts were of one size.
            place = bisect_right(timed, deadline, key=_deadline_of)
            timed_rows = timed_rows * place // len(timed)
        if not self._untimed or self._untimed[0].group.arrived_at + _PATIENCE_S > deadline:
            return timed_rows
        return timed_rows + min(self._untimed_rows, timed_rows // (_SHARE_OF_PATIENT - 1) + 1)

    def rows_due_after(self, when: float, enough: int) -> int:
        """How many rows are due then or later, or never; at most about ``enough``."""
        rows = self._untimed_rows
        timed = self._timed
        for i in range(bisect_left(timed, when, key=_deadline_of), len(timed)):
            if rows >= enough:
                break
            rows += timed[i].rows
        return rows

    @property
    def shed_at(self) -> float:
        """When requests of its model were last refused or dropped because they would be late."""
        return self.model.shed_at

    # How long it takes

    def expected(self, rows: int, kind: str) -> float | None:
        """How long a batch of so many rows will run on that kind of device, if that is known."""
        durations = self.durations.get(kind)
        if durations is None or not durations.is_known:
            return None
        return durations.expected(self.padded(rows))

    def is_steady(self, rows: int, kind: str) -> bool:
        """Whether batches of so many rows always run for much the same time there."""
        durations = self.durations.get(kind)
        return durations is not None and durations.is_steady(self.padded(rows))

    def least(self, rows: int, kind: str, now: float) -> float | None:
        """How long it will surely take, from handing it over to its answer."""
        durations = self.durations.get(kind)
        if durations is None or not durations.is_known:
            return None
        return durations.least(self.padded(rows), now, self.model.in_execution > 0)

    def longest(self, rows: int) -> float | None:
        """The same, on the slowest kind of device; with handing it over."""
        longest: float | None = None
        for durations in self.durations.values():
            if durations.is_known:
                seconds = durations.expected(self.padded(rows)) + durations.handing_s
                longest = seconds if longest is None else max(longest, seconds)
        return longest

    @property
    def handing_s(self) -> float:
        """How long a batch takes beside its execution, on the slowest kind of device."""
        return max((durations.handing_s for durations in self.durations.values()), default=0.0)

    def padded(self, rows: int) -> int:
        """The size at which a batch of so many rows runs."""
        return padded_rows(rows, self.parameters.allowed_batch_sizes)

    # Coming and going

    def append(self, group: RequestGroup) -> None:
        """A group arrived."""
        if not self._untimed:
            self._short_at = group.arrived_at
        for part in group.parts(self.max_rows):
            self._enter(part)

    def take(self, max_rows: int, now: float = -NEVER) -> list[Part]:
        """Takes the most urgent parts, together at most ``max_rows`` rows."""
        untimed = self._untimed
        if not self._timed:
            return self._take_untimed(max_rows)
        first: list[Part] = []
        if untimed and now - untimed[0].group.arrived_at >= _PATIENCE_S:
            first = self._take_patient(max_rows)
        room = max(max_rows - sum(part.rows for part in first), 0)
        taken = self._take_timed(room)
        room -= sum(part.rows for part in taken)
        return [*taken, *first, *(self._take_untimed(room) if room and not self._timed else ())]

    def _take_patient(self, max_rows: int) -> list[Part]:
        """A quarter of a batch of what has no deadline. Where requests do not fit into that, or
        the most urgent one does not fit beside it, they save it up for a later batch."""
        due = self._untimed_due - (-max_rows // _SHARE_OF_PATIENT)
        self._untimed_due = due = min(due, self.max_rows)
        rows, least = min(due, max_rows), self._untimed[0].least_rows
        if rows < max_rows and self._timed[0].least_rows > max_rows - rows:
            return []
        if max_rows < least <= due:
            # In a batch of its own.
            rows = least
        taken = self._take_untimed(rows)
        taken_rows = sum(part.rows for part in taken)
        # What they leave others use.
        self._untimed_due = self._untimed_due - taken_rows if self._untimed else 0
        return taken

    def _take_timed(self, room: int) -> list[Part]:
        timed = self._timed
        taken: list[Part] = []
        whole = 0
        while room and whole < len(timed):
            part = timed[whole]
            if part.rows > room:
                break
            whole += 1
            taken.append(part)
            room -= part.rows
            self._count(part, -part.rows, True)
        del timed[:whole]
        head = timed[0].take(room) if room and timed else None
        if head is not None:
            rest = timed[0]
            taken.append(head)
            self._count(head, -head.rows, True)
            if rest.group.deadlines is not None:
                # What is left of it may be less urgent than what follows.
                del timed[0]
                self._count(rest, -rest.rows, True)
                self._enter(rest)
        return taken

    def _take_untimed(self, room: int) -> list[Part]:
        untimed = self._untimed
        taken: list[Part] = []
        while room and untimed:
            part = untimed[0]
            if part.rows <= room:
                untimed.popleft()
            else:
                head = part.take(room)
                if head is None:
                    break
                part = head
            taken.append(part)
            room -= part.rows
            self._count(part, -part.rows, False)
        return taken

    def give_back(self, parts: list[Part]) -> None:
        """Puts parts that ``take`` returned back to where they were."""
        for part in reversed(parts):
            self._enter(part, is_back=True)

    def learn_output_nbytes(self, nbytes: int, rows: int) -> None:
        """Notes what the outputs of ``rows`` rows took; one large answer is slowly forgotten."""
        known = self.output_row_nbytes
        self.output_row_nbytes = max(-(-nbytes // rows), known * 7 // 8)
        if self.output_row_nbytes != known:
            self.layouts.clear()

    def remove_dropped(self) -> list[Part]:
        """Takes out and returns the requests that were dropped, of all groups."""
        return self._remove(lambda part: part.group.dropped)

    def expire(self, now: float) -> list[Part]:
        """Takes out and returns every request whose deadline has passed."""
        timed = self._timed
        until = bisect_right(timed, now, key=_deadline_of)
        late = timed[:until]
        del timed[:until]
        removed: list[Part] = []
        for part in late:
            self._count(part, -part.rows, True)
            stay, go = part.divide(part.late_requests(now))
            removed += go
            for kept in stay:
                self._enter(kept)
        return removed

    def drop_due_before(self, finish: float) -> list[Part]:
        """Takes out and returns every request that is late if its answer comes at ``finish``."""
        return self.expire(math.nextafter(finish, -math.inf))

    def shed(self, now: float) -> list[Part]:
        """Takes out and returns what waits for too long in a queue that stands, if asked to.

        Controlled delay for servers, as in Maurer's "Fail at Scale" (ACM Queue, 2015): what has no
        deadline may wait longer than the target only while the queue was short lately.
        """
        target_s = self.parameters.queue_delay_target_micros / 1e6
        if not target_s or not self._untimed:
            self._short_at = now
            return []
        if now - self._untimed[0].group.arrived_at < target_s:
            self._short_at = now
        if now - self._short_at < _STANDING_S:
            return []
        removed = []
        while self._untimed and now - self._untimed[0].group.arrived_at >= target_s:
            part = self._untimed.popleft()
            self._count(part, -part.rows, False)
            removed.append(part)
        return removed

    def take_out(self, taken: Part) -> None:
        """Takes out what a part of a group that waits here stands for."""
        group = taken.group
        for queue in (self._timed, self._untimed):
            here = [part for part in queue if part.group is group]
            for part in here:
                queue.remove(part)
                self._count(part, -part.rows, queue is self._timed)
            # As they were: the first in front of what came later.
            self.give_back([rest for part in here for rest in part.without(taken)])

    def _remove(self, unwanted: Callable[[Part], Collection[int]]) -> list[Part]:
        timed, late = without_requests(self._timed, unwanted)
        untimed, others = without_requests(self._untimed, unwanted)
        for removed, is_timed in ((late, True), (others, False)):
            for part in removed:
                self._count(part, -part.rows, is_timed)
        if others:
            self._untimed = deque(untimed)
        if late:
            # Of a part whose requests differ, what is left may be due later, or never.
            self._timed = []
            for part in timed:
                self._count(part, -part.rows, True)
                self._enter(part)
        return late + others

    def _enter(self, part: Part, is_back: bool = False) -> None:
        deadline = part.earliest_deadline
        timed = self._timed
        if deadline == NEVER:
            if is_back:
                self._untimed.appendleft(part)
            else:
                self._untimed.append(part)
        elif is_back:
            timed.insert(bisect_left(timed, deadline, key=_deadline_of), part)
        elif not timed or timed[-1].earliest_deadline <= deadline:
            timed.append(part)
        else:
            insort(timed, part, key=_deadline_of)
        self._count(part, part.rows, deadline < NEVER)

    def _count(self, part: Part, rows: int, is_timed: bool) -> None:
        """So many rows more, of a part that is among those with a deadline or not."""
        self.queued_rows += rows
        if not is_timed:
            self._untimed_rows += rows
            return
        group = part.group
        ticket = group.ticket
        if ticket is None:
            ticket = group.ticket = Ticket(group.arrived_at)
        ticket.rows += rows
        if not ticket.is_noted:
            self._note_arrival(ticket)

    def _note_arrival(self, ticket: Ticket) -> None:
        ticket.is_noted = True
        tickets = self._tickets
        if not tickets or tickets[-1].arrived_at <= ticket.arrived_at:
            tickets.append(ticket)
        elif tickets[0].arrived_at >= ticket.arrived_at:
            tickets.appendleft(ticket)
        else:
            # Seldom: what came back after others had come.
            self._tickets = tickets = deque(sorted((*tickets, ticket), key=_arrival_of))
        if len(tickets) > 2 * len(self._timed) + _SPARE_TICKETS:
            for stale in (t for t in tickets if not t.rows):
                stale.is_noted = False
            self._tickets = deque(t for t in tickets if t.rows)


def _deadline_of(part: Part) -> float:
    return part.earliest_deadline


def _arrival_of(ticket: Ticket) -> float:
    return ticket.arrived_at
