"""The broker's state machine: one writer of every request, lane, batch, block and worker.

``handle(event, now) -> actions``. No socket, clock or thread is in here, so tests and
simulations drive it in virtual time. Times are seconds of any clock that never goes back.

Every request that arrived is answered exactly once: by a ``Deliver`` that completes it, or by a
``Refuse``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from batchyard.broker import events, policy
from batchyard.broker.catalog import Catalog
from batchyard.broker.deadlines import Deadlines
from batchyard.broker.events import Action, Batch, Deliver, Dispatch, Event, Refuse
from batchyard.broker.layout import BatchLayout, plan_layout
from batchyard.broker.queue import Lane, Part, RequestGroup, by_client
from batchyard.broker.scheduler import Scheduler, WorkerState
from batchyard.wire.blocks import Block, BlockAllocator
from batchyard.wire.errors import (
    BatchyardError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

# What may hold a batch's block: the worker until it answers, replies that read outputs, a model
# that kept its inputs, and a lost worker until it is reaped.
WORKER, REPLIES, MODEL, UNREAPED = "worker", "replies", "model", "unreaped"


# Requests of a group that are to be answered with an error.
Refusal = tuple[RequestGroup, Iterable[int]]


class BrokerState:
    """See the module. ``queue_nbytes_max`` bounds the tensors that wait, of all lanes."""

    def __init__(self, catalog: Catalog, arena_nbytes: int, queue_nbytes_max: int) -> None:
        self.catalog = catalog
        self.allocator = BlockAllocator(arena_nbytes)
        self.workers: dict[int, WorkerState] = {}
        self.batches: dict[int, Batch] = {}
        self.groups: dict[tuple[bytes, int], RequestGroup] = {}
        self.queue_nbytes = 0
        self.draining = False
        self._queue_nbytes_max = queue_nbytes_max
        self._waiting: dict[Lane, None] = {}
        self._scheduler = Scheduler(self._waiting, self.workers)
        self._deadlines = Deadlines()
        self._batch_ids = count(1)
        self._handlers: dict[type[Any], Callable[[Any, float], Iterable[Action]]] = {
            events.RequestsArrived: self._requests_arrived,
            events.RequestsCancelled: self._requests_cancelled,
            events.ClientLeft: self._client_left,
            events.WorkerReady: self._worker_ready,
            events.BatchFinished: self._batch_finished,
            events.BatchFailed: self._batch_failed,
            events.InputsReleased: lambda event, _: self._let_go(event.batch_id, MODEL),
            events.BatchDelivered: lambda event, _: self._let_go(event.batch_id, REPLIES),
            events.WorkerLost: self._worker_lost,
            events.WorkerReaped: self._worker_reaped,
            events.DrainStarted: self._drain_started,
            events.TimePassed: self._time_passed,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Takes a fact in and says what is to be done.

        Batches are formed on ``TimePassed`` only: the loop tells it once it has drained its
        sockets, so that what arrived together can leave together.
        """
        self._scheduler.something_changed()
        return list(self._handlers[type(event)](event, now))

    def next_wakeup(self) -> float:
        """When ``TimePassed`` is due at the latest, if nothing else happens; may be in the past."""
        return min(self._scheduler.next_ripe(), self._deadlines.next)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits, so that ``TimePassed`` would change nothing."""
        return not self._waiting and self._deadlines.next == policy.NEVER

    @property
    def is_idle(self) -> bool:
        """Whether every request that arrived is answered."""
        return not self.groups

    def _requests_arrived(self, event: events.RequestsArrived, now: float) -> Iterable[Action]:
        group = event.group
        lane = group.lane
        fitting = lane.fitting(group)
        full = self._queue_full(group, fitting) if fitting < group.count else None
        error = self._objection(group) if fitting else full
        if error is not None:
            group.unanswered = 0
            return [Refuse(group, [(0, group.count)], error)]
        self.groups[group.client, group.message_id] = group
        lane.model.requests += group.count
        lane.model.queued_rows += group.total_rows
        self.queue_nbytes += group.nbytes
        lane.append(group)
        self._waiting[lane] = None
        self._deadlines.add(group)
        if full is None:
            return []
        return self._refuse([(group, range(fitting, group.count))], full)

    def _queue_full(self, group: RequestGroup, request: int) -> BatchyardError:
        """Why a request, the first of its group that found no room, has to go."""
        lane = group.lane
        where = f"model {lane.model.name!r}"
        bound = (
            f"{lane.max_queued_rows} rows may wait (max_enqueued_batches = "
            f"{lane.model.parameters.max_enqueued_batches})"
        )
        rows = group.row_start(request + 1) - group.row_start(request)
        if rows > lane.max_queued_rows:
            return InvalidArgument(f"{where}: the request has {rows} rows, at most {bound}")
        return Unavailable(f"{where}: the queue is full, {bound}")

    def _objection(self, group: RequestGroup) -> BatchyardError | None:
        if self.draining:
            return Unavailable("the server is shutting down")
        if (group.client, group.message_id) in self.groups:
            return InvalidArgument(
                f"message id {group.message_id} is in use by a message not yet answered"
            )
        if self.queue_nbytes and self.queue_nbytes + group.nbytes > self._queue_nbytes_max:
            return ResourceExhausted(
                f"{self.queue_nbytes} bytes of tensors wait, of {self._queue_nbytes_max} "
                "(max_queue_mb under [broker])"
            )
        return None

    def _requests_cancelled(self, event: events.RequestsCancelled, now: float) -> Iterable[Action]:
        refusals: list[Refusal] = []
        for message_id, first, requested in event.segments:
            group = self.groups.get((event.client, message_id))
            if group is not None:
                stop = min(first + requested, group.count) if requested else group.count
                refusals.append((group, range(first, stop)))
        return self._refuse(refusals, Cancelled("the client gave the request up"))

    def _client_left(self, event: events.ClientLeft, now: float) -> Iterable[Action]:
        groups = [g for (client, _), g in self.groups.items() if client == event.client]
        self._refuse([(g, range(g.count)) for g in groups], Cancelled("the client left"))
        # Nobody is there to be told.
        for group in groups:
            group.last_words = ()
            self._forget_if_answered(group)
        return []

    def _worker_ready(self, event: events.WorkerReady, now: float) -> Iterable[Action]:
        self.workers[event.worker_id] = WorkerState(
            event.worker_id, event.ready.device, event.concurrent_batches
        )
        for report in event.ready.models:
            self.catalog.worker_ready(event.worker_id, report)
        return []

    def _batch_finished(self, event: events.BatchFinished, now: float) -> Iterable[Action]:
        batch = self._came_back(event.batch_id, event.kept)
        if batch is None:
            return
        batch.holders.add(REPLIES)
        lane = batch.lane
        if event.output_nbytes or not event.replied:
            # Not of outputs that all went into regions.
            lane.learn_output_nbytes(event.output_nbytes, batch.layout.padded_rows)
        parts: list[tuple[Part, int]] = []
        row = 0
        for part in batch.parts:
            group = part.group
            wanted = part.divide(group.dropped)[0] if group.dropped else [part]
            for run in wanted:
                parts.append((run, row + run.row_start - part.row_start))
                self._count_answers(run)
            row += part.rows
        yield Deliver(batch, parts, event.replied)
        yield from self._left_worker(batch)

    def _batch_failed(self, event: events.BatchFailed, now: float) -> Iterable[Action]:
        batch = self._came_back(event.batch_id, event.kept)
        if batch is not None:
            self._free_if_unheld(batch)
            yield from self._fail(batch, event.error)
            yield from self._left_worker(batch)

    def _fail(self, batch: Batch, error: BatchyardError) -> Iterable[Action]:
        return self._refuse([(part.group, _requests_of(part)) for part in batch.parts], error)

    def _came_back(self, batch_id: int, kept: bool) -> Batch | None:
        """The batch, no longer on its worker; None when the worker was lost before."""
        batch = self.batches.get(batch_id)
        if batch is None or WORKER not in batch.holders:
            return None
        worker = self.workers[batch.worker_id]
        del worker.batches[batch.id]
        worker.batches_done += 1
        batch.lane.model.in_execution -= 1
        batch.is_running = False
        batch.holders.remove(WORKER)
        if kept:
            batch.holders.add(MODEL)
            batch.lane.model.reads_in_place = False
        return batch

    def _left_worker(self, batch: Batch) -> Iterable[Action]:
        """Nobody writes any more to the reply space of the batch's requests."""
        for part in batch.parts:
            group = part.group
            group.running -= 1
            if group.replies is not None and not group.running:
                yield from group.last_words
                group.last_words = ()
                self._forget_if_answered(group)

    def _worker_lost(self, event: events.WorkerLost, now: float) -> Iterable[Action]:
        self.catalog.worker_lost(event.worker_id)
        worker = self.workers.pop(event.worker_id, None)
        if worker is None:
            return
        for batch in worker.batches.values():
            batch.lane.model.in_execution -= 1
            batch.holders.discard(WORKER)
            batch.holders.add(UNREAPED)
            yield from self._fail(
                batch, Unavailable(f"worker {worker.id} ({worker.device}) died while it ran this")
            )
        for batch in self.batches.values():
            if batch.worker_id == worker.id and MODEL in batch.holders:
                batch.holders.add(UNREAPED)
                batch.holders.remove(MODEL)
        for lane in list(self._waiting):
            if not lane.model.workers:
                error = Unavailable(f"model {lane.model.name!r} has no worker left")
                groups = {id(part.group): part.group for part in lane.parts}.values()
                yield from self._refuse([(g, range(g.count)) for g in groups], error)

    def _worker_reaped(self, event: events.WorkerReaped, now: float) -> Iterable[Action]:
        for batch in list(self.batches.values()):
            if batch.worker_id == event.worker_id:
                if batch.is_running:
                    batch.is_running = False
                    yield from self._left_worker(batch)
                self._let_go(batch.id, UNREAPED)

    def _drain_started(self, event: events.DrainStarted, now: float) -> Iterable[Action]:
        self.draining = True
        return []

    def _time_passed(self, event: events.TimePassed, now: float) -> Iterable[Action]:
        if self._deadlines.next <= now:
            yield from self._expire(now)
        self._scheduler.memory_came_back()
        while self._waiting:
            chosen = self._scheduler.choose(now)
            if chosen is None:
                return
            lane, worker = chosen
            parts, layout = self._form(lane)
            if layout is None:
                yield from self._refuse_too_large(lane, parts)
                continue
            block = self.allocator.allocate(layout.nbytes)
            if block is None:
                # Smaller batches must not go first, or this one might never find room.
                lane.give_back(parts)
                self._scheduler.memory_is_short(now)
                return
            yield Dispatch(self._dispatch(lane, worker, parts, layout, block, now))

    def _expire(self, now: float) -> Iterable[Action]:
        error = DeadlineExceeded("the deadline passed while the request waited for a worker")
        for lane in self._deadlines.due(now):
            expired = lane.expire(now)
            self._left_queue(expired)
            late = [(part.group, _requests_of(part)) for part in expired]
            yield from self._refuse(late, error)

    def _form(self, lane: Lane) -> tuple[list[Part], BatchLayout | None]:
        """Takes the lane's next batch; no layout when its first request fits into no arena."""
        max_rows = lane.max_rows
        while True:
            parts = lane.take(max_rows)
            rows = sum(part.rows for part in parts)
            layout = plan_layout(lane, by_client(parts), rows)
            if layout.output_offset > self.allocator.nbytes:
                lane.give_back(parts)
                least = parts[0].least_rows
                if rows <= least:
                    return [lane.parts[0]], None
                max_rows = max(rows // 2, least)
                continue
            if layout.nbytes > self.allocator.nbytes:
                # Outputs without room in the block travel in a memfd of their own.
                layout = BatchLayout(
                    rows, layout.padded_rows, layout.inputs, layout.output_offset, 0
                )
            return parts, layout

    def _refuse_too_large(self, lane: Lane, parts: list[Part]) -> Iterable[Action]:
        part = parts[0]
        error = ResourceExhausted(
            f"model {lane.model.name!r}: the request does not fit into the arena of "
            f"{self.allocator.nbytes} bytes; send fewer rows, or raise arena_mb under [pool]"
        )
        return self._refuse([(part.group, [part.first])], error)

    def _dispatch(
        self,
        lane: Lane,
        worker: WorkerState,
        parts: list[Part],
        layout: BatchLayout,
        block: Block,
        now: float,
    ) -> Batch:
        batch = Batch(
            next(self._batch_ids),
            lane,
            by_client(parts),
            layout.rows,
            layout,
            block,
            worker.id,
            now,
            {WORKER},
        )
        self.batches[batch.id] = worker.batches[batch.id] = batch
        model = lane.model
        model.in_execution += 1
        model.batches += 1
        model.batch_rows[layout.rows] += 1
        for part in parts:
            part.group.running += 1
        self._left_queue(parts)
        return batch

    def _left_queue(self, parts: Iterable[Part]) -> None:
        """Parts no longer wait in their lane. A group's frames are held until its last part."""
        for part in parts:
            group = part.group
            lane = group.lane
            lane.model.queued_rows -= part.rows
            group.queued_rows -= part.rows
            if not group.queued_rows:
                self.queue_nbytes -= group.nbytes
            if not lane.parts:
                self._waiting.pop(lane, None)

    def _count_answers(self, part: Part) -> None:
        """Outputs are there for a part: its requests are answered, but for an unfinished one."""
        group = part.group
        split = group.split.get(part.first)
        if split is not None:
            split.rows_left -= part.rows
            if split.rows_left:
                return
        group.unanswered -= part.count
        if group.unanswered:
            group.mark_answered(_requests_of(part))
        elif not group.last_words:
            self._forget(group)

    def _refuse(self, refusals: Iterable[Refusal], error: BatchyardError) -> list[Action]:
        """Answers those of the requests that have no answer yet with an error.

        Their rows leave their lanes, each lane looked at once; those on a worker will come back
        to nobody.
        """
        actions: list[Action] = []
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
            self._left_queue(lane.remove_dropped())
        return actions

    def _forget_if_answered(self, group: RequestGroup) -> None:
        if not group.unanswered and self.groups.get((group.client, group.message_id)) is group:
            self._forget(group)

    def _forget(self, group: RequestGroup) -> None:
        """Every request of a group is answered."""
        del self.groups[group.client, group.message_id]
        self._deadlines.settle(group)

    def _let_go(self, batch_id: int, holder: str) -> Iterable[Action]:
        batch = self.batches.get(batch_id)
        if batch is not None:
            batch.holders.discard(holder)
            self._free_if_unheld(batch)
        return []

    def _free_if_unheld(self, batch: Batch) -> None:
        if not batch.holders:
            del self.batches[batch.id]
            self.allocator.free(batch.block)
            self._scheduler.memory_came_back()


def _requests_of(part: Part) -> range:
    return range(part.first, part.first + part.count)


def _runs(requests: list[int]) -> list[tuple[int, int]]:
    """Increasing numbers as runs ``(first, count)``."""
    runs: list[tuple[int, int]] = []
    for request in requests:
        if runs and sum(runs[-1]) == request:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((request, 1))
    return runs
