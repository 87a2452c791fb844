"""Every request that was accepted, until it is answered: one writer of what waits and what is owed.

Each is answered exactly once: by outputs (``answered``), or by a ``Refuse``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from batchyard.broker.deadlines import Deadlines
from batchyard.broker.events import Action, Refuse
from batchyard.broker.lane import Lane
from batchyard.broker.measures import EXPIRED
from batchyard.broker.queue import Part, RequestGroup
from batchyard.broker.retries import Death, Refusal, Retries, after_death, after_error
from batchyard.wire.errors import (
    BatchyardError,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

# Below, message ids are counted by their clients: two may have the same.
UNIQUE_ID_MIN = 1 << 40
# Lanes that may hold something at once: each turn looks at all of them.
_WAITING_LANES_MAX = 2048


class Ledger:
    """``queue_nbytes_max`` bounds the tensors that wait, of all lanes; ``in_flight_max`` the
    requests of one client that have no answer."""

    def __init__(self, queue_nbytes_max: int, in_flight_max: int) -> None:
        # Messages that are not answered whole, by client and message id.
        self.groups: dict[tuple[bytes, int], RequestGroup] = {}
        # Those whose id no other client's message can have.
        self._by_unique_id: dict[int, RequestGroup] = {}
        # Lanes that hold something.
        self.waiting: dict[Lane, None] = {}
        self.retries = Retries()
        self.deadlines = Deadlines()
        self.queue_nbytes = 0
        self._queue_nbytes_max = queue_nbytes_max
        self._in_flight_max = in_flight_max
        # Requests of those messages, by client.
        self._in_flight: dict[bytes, int] = {}

    @property
    def clients(self) -> Collection[bytes]:
        """Those that have requests without an answer."""
        return self._in_flight.keys()

    # What arrives

    def objection(self, group: RequestGroup, fitting: int) -> BatchyardError | None:
        """Why none of a message can be taken, of which ``fitting`` requests have room."""
        if not fitting:
            return self.queue_full(group, 0)
        if (group.client, group.message_id) in self.groups:
            return InvalidArgument(
                f"message id {group.message_id} is in use by a message not yet answered"
            )
        in_flight = self._in_flight.get(group.client, 0)
        if in_flight + group.count > self._in_flight_max:
            return ResourceExhausted(
                f"the client has {in_flight} requests without an answer and sends {group.count}, "
                f"may have at most {self._in_flight_max} (max_in_flight_per_client under [broker])"
            )
        if len(self.waiting) >= _WAITING_LANES_MAX and group.lane not in self.waiting:
            return ResourceExhausted(
                f"requests of {len(self.waiting)} kinds (models, signatures and row shapes) wait, "
                "no more may"
            )
        if self.queue_nbytes and self.queue_nbytes + group.nbytes > self._queue_nbytes_max:
            return ResourceExhausted(
                f"{self.queue_nbytes} bytes of tensors wait, of {self._queue_nbytes_max} "
                "(max_queue_mb under [broker])"
            )
        return None

    def queue_full(self, group: RequestGroup, request: int) -> BatchyardError:
        """Why a request, the first of its group that found no room, has to go."""
        lane = group.lane
        where = f"model {lane.model.name!r}"
        bound = (
            f"{lane.max_queued_rows} rows may wait (max_enqueued_batches = "
            f"{lane.parameters.max_enqueued_batches})"
        )
        rows = group.row_start(request + 1) - group.row_start(request)
        if rows > lane.max_queued_rows:
            return InvalidArgument(f"{where}: the request has {rows} rows, at most {bound}")
        return Unavailable(f"{where}: the queue is full, {bound}")

    def accept(self, group: RequestGroup) -> None:
        """Takes a message: it waits in its lane."""
        self.groups[group.client, group.message_id] = group
        self._in_flight[group.client] = self._in_flight.get(group.client, 0) + group.count
        if group.message_id >= UNIQUE_ID_MIN:
            self._by_unique_id[group.message_id] = group
        group.lane.model.requests += group.count
        group.lane.append(group)
        self.joined_queue([Part(group, 0, group.count, 0, group.total_rows)])
        self.deadlines.add(group)

    def sent_before(self, group: RequestGroup) -> RequestGroup | None:
        """The same message, as it came by a connection that was lost, if it is not answered."""
        known = self._by_unique_id.get(group.message_id)
        return known if known is not None and known.client != group.client else None

    # What waits

    def joined_queue(self, parts: Iterable[Part]) -> None:
        """Parts wait, in their lane or to run again."""
        for part in parts:
            group = part.group
            lane = group.lane
            lane.model.queued_rows += part.rows
            if not group.queued_rows:
                self.queue_nbytes += group.nbytes
            group.queued_rows += part.rows
            if lane.queued_rows:
                self.waiting[lane] = None

    def left_queue(self, parts: Iterable[Part]) -> None:
        """Parts no longer wait. A group's frames are held until its last part."""
        for part in parts:
            group = part.group
            lane = group.lane
            lane.model.queued_rows -= part.rows
            group.queued_rows -= part.rows
            if not group.queued_rows:
                self.queue_nbytes -= group.nbytes
            if not lane.queued_rows:
                self.waiting.pop(lane, None)

    def expire(self, now: float, *lanes: Lane) -> list[Refuse]:
        """Refuses what is late: what runs again, and in lanes where it may be the case."""
        error = DeadlineExceeded("the deadline passed while the request waited for a worker")
        expired = self.retries.expire(now)
        for lane in (*self.deadlines.due(now), *lanes):
            expired += lane.expire(now)
        self.left_queue(expired)
        return self.refuse_late(expired, error, EXPIRED)

    def refuse_late(self, parts: Iterable[Part], error: BatchyardError, why: str) -> list[Refuse]:
        """Answers requests that missed their deadline, ``why`` by the names of ``measures``."""
        refusals: list[Refusal] = []
        # Of large requests, whose pieces are one.
        known: set[tuple[RequestGroup, int]] = set()
        for part in parts:
            group = part.group
            refusals.append((group, requests_of(part)))
            if (group, part.first) not in known:
                group.lane.model.misses[why] += part.count
            if part.first in group.split:
                known.add((group, part.first))
        return self.refuse(refusals, error)

    # What is answered

    def answered_all(self, parts: Iterable[Part]) -> list[tuple[Part, int]]:
        """The same for all parts of a batch, one after the other."""
        answered: list[tuple[Part, int]] = []
        row = 0
        for part in parts:
            answered += self.answered(part, row)
            row += part.rows
        return answered

    def answered(self, part: Part, row: int) -> list[tuple[Part, int]]:
        """Outputs are there for a part, which began at ``row``: where the wanted runs of it lie."""
        group = part.group
        wanted = part.divide(group.dropped)[0] if group.dropped else [part]
        for run in wanted:
            self._count_answers(run)
        return [(run, row + run.row_start - part.row_start) for run in wanted]

    def _count_answers(self, part: Part) -> None:
        """A part's requests are answered, but for one that is large and not complete."""
        group = part.group
        split = group.split.get(part.first)
        if split is not None:
            split.rows_left -= part.rows
            if split.rows_left:
                return
        group.unanswered -= part.count
        if group.unanswered:
            group.mark_answered(requests_of(part))
        elif not group.last_words:
            self._forget(group)

    def refuse(self, refusals: Iterable[Refusal], error: BatchyardError) -> list[Refuse]:
        """Answers those of the requests that have no answer yet with an error.

        Their rows leave their lanes, each lane looked at once; those on a worker will come back
        to nobody.
        """
        actions: list[Refuse] = []
        lanes: dict[Lane, None] = {}
        for group, requests in refusals:
            refused = [request for request in requests if request not in group.answered]
            if not refused:
                continue
            group.mark_answered(refused)
            group.mark_dropped(refused)
            group.unanswered -= len(refused)
            # A client takes its reply space back with the last answer to a message: so a refusal
            # waits until no worker may write there.
            waits = group.replies is not None and group.running > 0
            if not group.unanswered and not waits:
                self._forget(group)
            if group.queued_rows:
                lanes[group.lane] = None
            told = [request for request in refused if not group.was_told(request)]
            if not told:
                continue
            refusal = Refuse(group, _runs(told), error)
            if waits:
                group.last_words = (*group.last_words, refusal)
            else:
                actions.append(refusal)
        for lane in lanes:
            self.left_queue(lane.remove_dropped())
        if lanes and self.retries:
            self.left_queue(self.retries.remove_dropped())
        return actions

    def came_to_nothing(
        self, parts: list[Part], now: float, reason: BatchyardError | Death
    ) -> Iterable[Action]:
        """A batch raised, or its worker died with it."""
        wanted = still_wanted(parts)
        if wanted:
            verdict = (
                after_death(wanted, reason)
                if isinstance(reason, Death)
                else after_error(wanted, reason)
            )
            if verdict.retries:
                self.retries.add(verdict.retries)
                self.joined_queue(wanted)
            if verdict.error is not None:
                yield from self.refuse(verdict.refusals, verdict.error)
        yield from self.left_worker(parts)
        if any(part.earliest_deadline <= now for part in wanted):
            yield from self.expire(now)

    def abandon(self, groups: Iterable[RequestGroup], error: BatchyardError) -> list[Refuse]:
        """Refuses whole messages when nobody is there to be told; what they would be told."""
        groups = list(groups)
        unheard = self.refuse([(group, range(group.count)) for group in groups], error)
        for group in groups:
            unheard += group.last_words
            group.last_words = ()
            self._forget_if_answered(group)
        return unheard

    def left_worker(self, parts: Iterable[Part]) -> Iterable[Action]:
        """Nobody writes any more to the reply space of the requests of a batch."""
        for part in parts:
            group = part.group
            group.running -= 1
            if group.replies is not None and not group.running:
                yield from group.last_words
                group.last_words = ()
                self._forget_if_answered(group)

    def _forget_if_answered(self, group: RequestGroup) -> None:
        if not group.unanswered and self.groups.get((group.client, group.message_id)) is group:
            self._forget(group)

    def _forget(self, group: RequestGroup) -> None:
        """Every request of a group is answered."""
        del self.groups[group.client, group.message_id]
        if self._by_unique_id.get(group.message_id) is group:
            del self._by_unique_id[group.message_id]
        left = self._in_flight[group.client] - group.count
        if left:
            self._in_flight[group.client] = left
        else:
            del self._in_flight[group.client]
        self.deadlines.settle(group)


def requests_of(part: Part) -> range:
    """The numbers of a part's requests in its group."""
    return range(part.first, part.first + part.count)


def still_wanted(parts: Iterable[Part]) -> list[Part]:
    """The parts without requests that have an answer."""
    return [run for part in parts for run in part.divide(part.group.dropped)[0]]


def _runs(requests: list[int]) -> list[tuple[int, int]]:
    """Increasing numbers as runs ``(first, count)``."""
    runs: list[tuple[int, int]] = []
    for request in requests:
        if runs and sum(runs[-1]) == request:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((request, 1))
    return runs
