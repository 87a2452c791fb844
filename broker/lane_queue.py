"""What waits in a lane, in the order in which it leaves."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, Ticket, without_requests

# What goes by its arrival takes the room that others leave. Once something without a deadline has
# waited for so long, that gets at least a quarter of each batch, and the lane is as urgent as if it
# were due.
PATIENCE_S = 1.0
_SHARE_OF_PATIENT = 4
# A deadline that is farther away does not matter yet.
NEAR_S = 1.0
# What comes near within so much of that is brought forward at the same time: each look takes as
# long as what waits is long.
_LOOK_AHEAD = 1.25
# Tickets without rows that may be kept at least.
_SPARE_TICKETS = 64


@dataclass(slots=True, eq=False)
class LaneQueue:
    """Parts of groups: those with a near deadline by that, the earliest first; then, as they came,
    those with a far one and those without.

    ``max_rows`` is the most that one batch may hold.
    """

    max_rows: int
    queued_rows: int = field(default=0, init=False)
    # What has a deadline that is near, the earliest first; what has one that is far, by arrival;
    # and what has none, as it came.
    _near: list[Part] = field(default_factory=list, init=False)
    _far: deque[Part] = field(default_factory=deque, init=False)
    _untimed: deque[Part] = field(default_factory=deque, init=False)
    _far_rows: int = field(default=0, init=False)
    _untimed_rows: int = field(default=0, init=False)
    # No far deadline is earlier.
    _far_deadline: float = field(default=NEVER, init=False)
    # The latest moment that is known of.
    _seen_at: float = field(default=-NEVER, init=False)
    # Rows that patient ones may have of batches, and have not had.
    _patient_due: int = field(default=0, init=False)
    # Of what has a deadline, by arrival; those of which nothing is left here are forgotten late.
    _tickets: deque[Ticket] = field(default_factory=deque, init=False)

    def near_s(self) -> float:
        """How far away a deadline is that matters."""
        return NEAR_S

    # What waits

    @property
    def parts(self) -> list[Part]:
        """All that waits, in its order."""
        return [*self._near, *sorted((*self._far, *self._untimed), key=_arrival_of)]

    @property
    def earliest_deadline(self) -> float:
        """The earliest deadline of what waits. No far one is earlier; it may be a little later."""
        near = self._near
        if not self._far:
            return near[0].earliest_deadline if near else NEVER
        return min(near[0].earliest_deadline, self._far_deadline) if near else self._far_deadline

    @property
    def earliest_due(self) -> float:
        """The same, with what has no deadline."""
        waits_since = self._untimed[0].group.arrived_at if self._untimed else NEVER
        return min(self.earliest_deadline, waits_since + PATIENCE_S)

    @property
    def first_rows(self) -> int:
        """The fewest rows that can be taken."""
        return (self._near or self._older())[0].least_rows

    @property
    def oldest_arrival(self) -> float:
        """When the oldest of what waits arrived, in the broker's clock."""
        tickets = self._tickets
        while tickets and not tickets[0].rows:
            tickets.popleft().is_noted = False
        timed = tickets[0].arrived_at if tickets else NEVER
        return min(timed, self._untimed[0].group.arrived_at) if self._untimed else timed

    def rows_before(self, deadline: float) -> int:
        """About how many rows go before a request with that deadline that comes now."""
        near = self._near
        rows = self.queued_rows - self._untimed_rows - self._far_rows
        if near and near[-1].earliest_deadline > deadline:
            # As if parts were of one size.
            place = bisect_right(near, deadline, key=_deadline_of)
            rows = rows * place // len(near)
        if deadline >= self._far_deadline:
            rows += self._far_rows
        if not self._untimed or self._untimed[0].group.arrived_at + PATIENCE_S > deadline:
            return rows
        return rows + min(self._untimed_rows, rows // (_SHARE_OF_PATIENT - 1) + 1)

    def rows_due_after(self, when: float, enough: int) -> int:
        """How many rows are due then or later, or never; at most about ``enough``."""
        rows = self._untimed_rows
        if when <= self._far_deadline:
            rows += self._far_rows
        else:
            rows += sum(part.rows for part in self._far if part.earliest_deadline >= when)
        near = self._near
        for i in range(bisect_left(near, when, key=_deadline_of), len(near)):
            if rows >= enough:
                break
            rows += near[i].rows
        return rows

    # Leaving

    def bring_forward(self, now: float) -> None:
        """What has come near its deadline goes by that from now on."""
        if now > self._seen_at:
            self._seen_at = now
        if self._far:
            near_s = self.near_s()
            if self._far_deadline - now <= near_s:
                self._bring_forward(now + near_s * _LOOK_AHEAD)

    def take(self, max_rows: int, now: float = -NEVER) -> list[Part]:
        """Takes the first parts, together at most ``max_rows`` rows."""
        untimed = self._untimed
        if not self._near:
            return self._take_by_arrival(max_rows)
        first: list[Part] = []
        if untimed and now - untimed[0].group.arrived_at >= PATIENCE_S:
            first = self._take_patient(max_rows)
        room = max(max_rows - sum(part.rows for part in first), 0)
        taken = self._take_near(room)
        room -= sum(part.rows for part in taken)
        return [*taken, *first, *(self._take_by_arrival(room) if room and not self._near else ())]

    def _take_patient(self, max_rows: int) -> list[Part]:
        """A quarter of a batch of what goes by its arrival. Where requests do not fit into that, or
        the most urgent one does not fit beside it, they save it up for a later batch."""
        due = self._patient_due - (-max_rows // _SHARE_OF_PATIENT)
        self._patient_due = due = min(due, self.max_rows)
        rows, least = min(due, max_rows), self._older()[0].least_rows
        if rows < max_rows and self._near[0].least_rows > max_rows - rows:
            return []
        if max_rows < least <= due:
            # In a batch of its own.
            rows = least
        taken = self._take_by_arrival(rows)
        taken_rows = sum(part.rows for part in taken)
        # What they leave others use.
        self._patient_due = self._patient_due - taken_rows if self._untimed else 0
        return taken

    def _take_near(self, room: int) -> list[Part]:
        near = self._near
        taken: list[Part] = []
        whole = 0
        while room and whole < len(near):
            part = near[whole]
            if part.rows > room:
                break
            whole += 1
            taken.append(part)
            room -= part.rows
            self._count(part, -part.rows, True)
        del near[:whole]
        head = near[0].take(room) if room and near else None
        if head is not None:
            rest = near[0]
            taken.append(head)
            self._count(head, -head.rows, True)
            if rest.group.deadlines is not None:
                # What is left of it may be less urgent than what follows.
                del near[0]
                self._count(rest, -rest.rows, True)
                self._enter(rest)
        return taken

    def _take_by_arrival(self, room: int) -> list[Part]:
        taken: list[Part] = []
        while room:
            queue = self._older()
            if not queue:
                break
            part = queue[0]
            if part.rows <= room:
                queue.popleft()
            else:
                head = part.take(room)
                if head is None:
                    break
                part = head
            taken.append(part)
            room -= part.rows
            self._left(queue, part)
        return taken

    def _older(self) -> deque[Part]:
        """Of what has a far deadline and what has none, the one whose first came earlier."""
        far, untimed = self._far, self._untimed
        if not far:
            return untimed
        if not untimed or far[0].group.arrived_at <= untimed[0].group.arrived_at:
            return far
        return untimed

    def give_back(self, parts: list[Part]) -> None:
        """Puts parts that ``take`` returned back to where they were."""
        for part in reversed(parts):
            self._enter(part, is_back=True)

    def remove_dropped(self) -> list[Part]:
        """Takes out and returns the requests that were dropped, of all groups."""
        return self._remove(lambda part: part.group.dropped)

    def expire(self, now: float) -> list[Part]:
        """Takes out and returns every request whose deadline has passed."""
        if self._far_deadline <= now:
            self._bring_forward(now)
        near = self._near
        until = bisect_right(near, now, key=_deadline_of)
        late = near[:until]
        del near[:until]
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

    def take_out(self, taken: Part) -> None:
        """Takes out what a part of a group that waits here stands for."""
        group = taken.group
        for queue in (self._near, self._far, self._untimed):
            here = [part for part in queue if part.group is group]
            for part in here:
                queue.remove(part)
                self._left(queue, part)
            # As they were: the first in front of what came later.
            self.give_back([rest for part in here for rest in part.without(taken)])

    def _remove(self, unwanted: Callable[[Part], Collection[int]]) -> list[Part]:
        removed: list[Part] = []
        is_timed = False
        for queue in (self._near, self._far, self._untimed):
            kept, gone = without_requests(queue, unwanted)
            if not gone:
                continue
            is_timed = is_timed or queue is not self._untimed
            removed += gone
            queue.clear()
            queue.extend(kept)
            for part in gone:
                self._left(queue, part)
        if is_timed:
            # Of a part whose requests differ, what is left may be due later, or never.
            timed = [*self._near, *self._far]
            for queue in (self._near, self._far):
                for part in queue:
                    self._count(part, -part.rows, True)
                queue.clear()
            self._far_rows, self._far_deadline = 0, NEVER
            for part in timed:
                self._enter(part)
        return removed

    # Inside

    def _enter(self, part: Part, is_back: bool = False) -> None:
        deadline = part.earliest_deadline
        self._count(part, part.rows, deadline < NEVER)
        if deadline == NEVER:
            if is_back:
                self._untimed.appendleft(part)
            else:
                self._untimed.append(part)
        elif self._is_far(deadline, part.group.arrived_at):
            self._far_rows += part.rows
            self._far_deadline = min(self._far_deadline, deadline)
            self._place_far(part, is_back)
        elif is_back:
            self._near.insert(bisect_left(self._near, deadline, key=_deadline_of), part)
        else:
            self._place_near(part, deadline)

    def _is_far(self, deadline: float, arrived_at: float) -> bool:
        left = deadline - (arrived_at if arrived_at > self._seen_at else self._seen_at)
        return left > NEAR_S and left > self.near_s()

    def _place_near(self, part: Part, deadline: float) -> None:
        near = self._near
        if not near or near[-1].earliest_deadline <= deadline:
            near.append(part)
        else:
            insort(near, part, key=_deadline_of)

    def _place_far(self, part: Part, is_back: bool) -> None:
        far = self._far
        arrived_at = part.group.arrived_at
        if not far or (far[-1].group.arrived_at <= arrived_at and not is_back):
            far.append(part)
        elif far[0].group.arrived_at >= arrived_at:
            far.appendleft(part)
        else:
            # Seldom: what came back after others had come.
            self._far = deque(sorted([part, *far], key=_arrival_of))

    def _bring_forward(self, until: float) -> None:
        """What is due until then goes by its deadline."""
        stay: deque[Part] = deque()
        self._far_deadline = NEVER
        for part in self._far:
            deadline = part.earliest_deadline
            if deadline <= until:
                self._far_rows -= part.rows
                self._place_near(part, deadline)
            else:
                self._far_deadline = min(self._far_deadline, deadline)
                stay.append(part)
        self._far = stay

    def _left(self, queue: Collection[Part], part: Part) -> None:
        """A part, or the first rows of the first, is no longer in one of the queues."""
        self._count(part, -part.rows, queue is not self._untimed)
        if queue is self._far:
            self._far_rows -= part.rows
            if not queue:
                self._far_deadline = NEVER

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
            self._tickets = tickets = deque(sorted((*tickets, ticket), key=_ticket_of))
        if len(tickets) > 2 * (len(self._near) + len(self._far)) + _SPARE_TICKETS:
            for stale in (t for t in tickets if not t.rows):
                stale.is_noted = False
            self._tickets = deque(t for t in tickets if t.rows)


def _deadline_of(part: Part) -> float:
    return part.earliest_deadline


def _arrival_of(part: Part) -> float:
    return part.group.arrived_at


def _ticket_of(ticket: Ticket) -> float:
    return ticket.arrived_at
