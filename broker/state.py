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
from batchyard.broker.catalog import Catalog, ServedModel
from batchyard.broker.deadlines import Deadlines
from batchyard.broker.events import (
    Action,
    Batch,
    BatchFailed,
    Deliver,
    Dispatch,
    Event,
    Forget,
    Kill,
    Refuse,
    Retired,
    Unload,
)
from batchyard.broker.layout import BatchLayout, plan_layout
from batchyard.broker.queue import Lane, Part, RequestGroup, by_client
from batchyard.broker.resumption import UNIQUE_ID_MIN, Orphan, Orphans, Outcome, part_of
from batchyard.broker.retries import Refusal, Retries, after_death, after_error
from batchyard.broker.scheduler import Scheduler, WorkerState
from batchyard.broker.watchdog import Watchdog
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
# Lanes that may hold something at once: each turn looks at all of them.
_WAITING_LANES_MAX = 2048


class BrokerState:
    """See the module."""

    def __init__(
        self,
        catalog: Catalog,
        arena_nbytes: int,
        queue_nbytes_max: int,
        in_flight_max: int = 1 << 62,
        awaited: Iterable[int] = (),
    ) -> None:
        """``queue_nbytes_max`` bounds the tensors that wait, of all lanes; ``in_flight_max`` the
        requests of one client that have no answer. ``awaited`` are the workers of a broker before
        this one: until each of them told what it still has, or is gone, nothing may be dispatched.
        """
        self.catalog = catalog
        self.allocator = BlockAllocator(arena_nbytes)
        self.workers: dict[int, WorkerState] = {}
        self.awaited = set(awaited)
        self.batches: dict[int, Batch] = {}
        self.groups: dict[tuple[bytes, int], RequestGroup] = {}
        self.queue_nbytes = 0
        self.draining = False
        self._queue_nbytes_max = queue_nbytes_max
        self._in_flight_max = in_flight_max
        # Requests of messages that are not answered whole, by client.
        self._in_flight: dict[bytes, int] = {}
        # Lost workers that are not reaped, and slots whose next worker is not ready.
        self._lost: dict[int, WorkerState] = {}
        self._coming_back: set[int] = set()
        self._retired: list[ServedModel] = []
        self._waiting: dict[Lane, None] = {}
        self._retries = Retries()
        self._orphans = Orphans(self.allocator)
        self._watchdog = Watchdog()
        self._scheduler = Scheduler(self._waiting, self.workers)
        self._deadlines = Deadlines()
        self._batch_ids = count(1)
        self._handlers: dict[type[Any], Callable[[Any, float], Iterable[Action]]] = {
            events.RequestsArrived: self._requests_arrived,
            events.RequestsCancelled: self._requests_cancelled,
            events.ClientLeft: self._client_left,
            events.WorkerReady: self._worker_ready,
            events.BatchesResumed: self._batches_resumed,
            events.BatchFinished: self._batch_finished,
            events.BatchFailed: self._batch_failed,
            events.InputsReleased: self._inputs_released,
            events.BatchDelivered: lambda event, _: self._let_go(event.batch_id, REPLIES),
            events.WorkerLost: self._worker_lost,
            events.WorkerReaped: self._worker_reaped,
            events.WorkerRetiring: self._worker_retiring,
            events.ModelsChanged: self._models_changed,
            events.DrainStarted: self._drain_started,
            events.TimePassed: self._time_passed,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Takes a fact in and says what is to be done.

        Batches are formed on ``TimePassed`` only: the loop tells it once it has drained its
        sockets, so that what arrived together can leave together.
        """
        self._scheduler.something_changed()
        actions = list(self._handlers[type(event)](event, now))
        if self._retired:
            actions += self._unload_idle()
        return actions

    def next_wakeup(self) -> float:
        """When ``TimePassed`` is due at the latest, if nothing else happens; may be in the past."""
        if self.awaited:
            return self._deadlines.next
        return min(
            self._scheduler.next_ripe(),
            self._deadlines.next,
            self._watchdog.at,
            self._orphans.next_expiry if self._orphans else policy.NEVER,
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits or runs, so that ``TimePassed`` would change nothing."""
        return (
            not (self._waiting or self._retries or self._orphans)
            and self._deadlines.next == policy.NEVER
            and self._watchdog.at == policy.NEVER
        )

    def is_resumed(self, batch_id: int) -> bool:
        """Whether a batch of a broker before this one has that id, and may still be claimed."""
        return self._orphans.get(batch_id) is not None

    @property
    def is_idle(self) -> bool:
        """Whether every request that arrived is answered."""
        return not self.groups

    def _requests_arrived(self, event: events.RequestsArrived, now: float) -> Iterable[Action]:
        group = event.group
        lane = group.lane
        before = self._sent_before(group) if event.resent else None
        fitting = lane.fitting(group)
        full = self._queue_full(group, fitting) if fitting < group.count else None
        error = self._objection(group) if fitting else full
        if error is not None:
            group.unanswered = 0
            return [Refuse(group, [(0, group.count)], error)]
        self.groups[group.client, group.message_id] = group
        self._in_flight[group.client] = self._in_flight.get(group.client, 0) + group.count
        lane.model.requests += group.count
        lane.append(group)
        self._joined_queue([Part(group, 0, group.count, 0, group.total_rows)])
        self._deadlines.add(group)
        actions: list[Action] = []
        if event.resent:
            actions += self._resume(group, before, now)
        if full is not None:
            actions += self._refuse([(group, range(fitting, group.count))], full)
        return actions

    def _sent_before(self, group: RequestGroup) -> RequestGroup | None:
        """The same message, as it came by a connection that was lost."""
        if group.message_id < UNIQUE_ID_MIN:
            return None
        for (client, message_id), known in self.groups.items():
            if message_id == group.message_id and client != group.client:
                return known
        return None

    def _resume(
        self, group: RequestGroup, before: RequestGroup | None, now: float
    ) -> Iterable[Action]:
        """What of a message that was sent again is running need not run again."""
        claims = self._orphans.claim(group)
        taken = [part for _, part in claims]
        if before is not None:
            taken += self._take_over(group, before)
        for part in taken:
            group.lane.take_out(part)
            group.running += 1
        self._left_queue(taken)
        if not group.lane.model.may_retry:
            running = {request for part in taken for request in _requests_of(part)}
            others = [request for request in range(group.count) if request not in running]
            error = Unavailable(
                f"model {group.lane.model.name!r}: the connection was lost while this may have "
                "run; it is not tried again"
            )
            yield from self._refuse([(group, others)], error)
        for orphan in {orphan.id: orphan for orphan, _ in claims}.values():
            if orphan.outcome is not None:
                yield from self._settle_orphan(orphan, now)

    def _take_over(self, group: RequestGroup, before: RequestGroup) -> list[Part]:
        """The running parts of a message are those of the same one that was sent again."""
        taken = []
        for batch in self.batches.values():
            for i, part in enumerate(batch.parts):
                if part.group is not before or not batch.is_running or before.replies is not None:
                    continue
                mine = part_of(group, part.first, part.count, part.row_start, part.rows)
                if mine is not None and group.lane is batch.lane:
                    batch.parts[i] = mine
                    before.running -= 1
                    taken.append(mine)
        self._abandon([before], Cancelled("it was sent again"))
        return taken

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
        if self._in_flight.get(group.client, 0) + group.count > self._in_flight_max:
            return ResourceExhausted(
                f"the client has {self._in_flight.get(group.client, 0)} requests without an "
                f"answer, may have at most {self._in_flight_max} (max_in_flight_per_client under "
                "[broker])"
            )
        if len(self._waiting) >= _WAITING_LANES_MAX and group.lane not in self._waiting:
            return ResourceExhausted(
                f"requests of {len(self._waiting)} kinds (models, signatures and row shapes) wait, "
                "no more may"
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
        self._abandon(groups, Cancelled("the client left"))
        return []

    def _abandon(self, groups: list[RequestGroup], error: BatchyardError) -> None:
        """Nobody is there to be told."""
        self._refuse([(g, range(g.count)) for g in groups], error)
        for group in groups:
            group.last_words = ()
            self._forget_if_answered(group)

    def _worker_ready(self, event: events.WorkerReady, now: float) -> Iterable[Action]:
        worker = WorkerState(
            event.worker_id, event.ready.device, event.concurrent_batches, event.slot
        )
        worker.orphans = len(self._orphans.of_worker(worker.id))
        self.workers[worker.id] = worker
        self._coming_back.discard(worker.slot)
        self.awaited.discard(worker.id)
        for report in event.ready.models:
            if (report.name, report.version) in self.catalog.models:
                self.catalog.worker_ready(worker.id, report)
            else:
                # It was removed while this worker loaded it.
                yield Unload(report.name, report.version)

    def _batches_resumed(self, event: events.BatchesResumed, now: float) -> Iterable[Action]:
        for execute in event.resumed.batches:
            model = self.catalog.models.get((execute.model, execute.version))
            timeout_s = policy.NEVER if model is None else model.batch_execution_timeout_s
            self._orphans.add(event.worker_id, execute, now + timeout_s)
            self._batch_ids = count(max(next(self._batch_ids), execute.batch_id + 1))
        for batch_id, offset, nbytes in event.resumed.kept:
            self._orphans.keep(event.worker_id, batch_id, offset, nbytes)
            self._batch_ids = count(max(next(self._batch_ids), batch_id + 1))
        self.awaited.discard(event.worker_id)
        return []

    def _batch_finished(self, event: events.BatchFinished, now: float) -> Iterable[Action]:
        batch = self._came_back(event.batch_id, event.kept, now)
        if batch is None:
            yield from self._orphan_ended(event, now)
            return
        batch.holders.add(REPLIES)
        lane = batch.lane
        if event.output_nbytes or not event.replied:
            # Not of outputs that all went into regions.
            lane.learn_output_nbytes(event.output_nbytes, batch.layout.padded_rows)
        parts: list[tuple[Part, int]] = []
        row = 0
        for part in batch.parts:
            parts += self._answered(part, row)
            row += part.rows
        yield Deliver(batch, parts, event.replied)
        yield from self._left_worker(batch.parts)
        yield from self._retire_if_idle(batch.worker_id)

    def _answered(self, part: Part, row: int) -> list[tuple[Part, int]]:
        """Outputs are there for a part, which began at ``row``: where the wanted runs of it lie."""
        group = part.group
        wanted = part.divide(group.dropped)[0] if group.dropped else [part]
        for run in wanted:
            self._count_answers(run)
        return [(run, row + run.row_start - part.row_start) for run in wanted]

    def _batch_failed(self, event: events.BatchFailed, now: float) -> Iterable[Action]:
        batch = self._came_back(event.batch_id, event.kept, now)
        if batch is None:
            yield from self._orphan_ended(event, now)
            return
        self._free_if_unheld(batch)
        yield from self._came_to_nothing(batch.parts, now, event.error)
        yield from self._retire_if_idle(batch.worker_id)

    def _came_to_nothing(
        self, parts: list[Part], now: float, error: BatchyardError | None, why: str = ""
    ) -> Iterable[Action]:
        """A batch raised ``error``, or its worker died because of ``why``."""
        wanted = [run for part in parts for run in part.divide(part.group.dropped)[0]]
        if wanted:
            verdict = after_death(wanted, why) if error is None else after_error(wanted, error)
            if verdict.retries:
                self._retries.add(verdict.retries)
                self._joined_queue(wanted)
            if verdict.error is not None:
                yield from self._refuse(verdict.refusals, verdict.error)
        yield from self._left_worker(parts)
        if self._deadlines.next <= now or any(part.earliest_deadline <= now for part in wanted):
            yield from self._expire(now)

    def _orphan_ended(self, outcome: Outcome, now: float) -> Iterable[Action]:
        orphan = self._orphans.get(outcome.batch_id)
        if orphan is None or orphan.outcome is not None:
            return
        self._orphans.ended(orphan, outcome, now)
        worker = self.workers.get(orphan.worker_id)
        if worker is not None:
            worker.orphans -= 1
            yield from self._retire_if_idle(worker.id)
        self._scheduler.memory_came_back()
        yield from self._settle_orphan(orphan, now)

    def _settle_orphan(self, orphan: Orphan, now: float) -> Iterable[Action]:
        """A batch of the broker before has ended: what was claimed of it so far is answered."""
        claims, orphan.claims = orphan.claims, []
        if not claims:
            return
        parts = [part for part, _ in claims]
        if isinstance(orphan.outcome, BatchFailed):
            yield from self._came_to_nothing(parts, now, orphan.outcome.error)
            return
        placed = [found for part, row in claims for found in self._answered(part, row)]
        yield Deliver(orphan.as_batch(claims, now), placed)
        yield from self._left_worker(parts)

    def _came_back(self, batch_id: int, kept: bool, now: float) -> Batch | None:
        """The batch, no longer on its worker; None when the worker was lost before."""
        batch = self.batches.get(batch_id)
        if batch is None or WORKER not in batch.holders:
            return None
        worker = self.workers[batch.worker_id]
        del worker.batches[batch.id]
        worker.batches_done += 1
        if batch.running_since != policy.NEVER:
            self._watchdog.answered(worker, now)
        batch.lane.model.in_execution -= 1
        batch.is_running = False
        batch.holders.remove(WORKER)
        if kept:
            batch.holders.add(MODEL)
            batch.lane.model.reads_in_place = False
        return batch

    def _left_worker(self, parts: Iterable[Part]) -> Iterable[Action]:
        """Nobody writes any more to the reply space of the requests of a batch."""
        for part in parts:
            group = part.group
            group.running -= 1
            if group.replies is not None and not group.running:
                yield from group.last_words
                group.last_words = ()
                self._forget_if_answered(group)

    def _worker_lost(self, event: events.WorkerLost, now: float) -> Iterable[Action]:
        self._lose(event.worker_id)
        return []

    def _lose(self, worker_id: int) -> None:
        """A worker is no longer heard of. What it ran waits until it can write no more."""
        self.catalog.worker_lost(worker_id)
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        self._lost[worker_id] = worker
        self._coming_back.add(worker.slot)
        for batch in worker.batches.values():
            batch.lane.model.in_execution -= 1
            batch.holders.discard(WORKER)
            batch.holders.add(UNREAPED)
        for batch in self.batches.values():
            if batch.worker_id == worker.id and MODEL in batch.holders:
                batch.holders.add(UNREAPED)
                batch.holders.remove(MODEL)

    def _worker_reaped(self, event: events.WorkerReaped, now: float) -> Iterable[Action]:
        self._lose(event.worker_id)
        self.awaited.discard(event.worker_id)
        if event.comes_back:
            self._coming_back.add(event.slot)
        else:
            self._coming_back.discard(event.slot)
        worker = self._lost.pop(event.worker_id, None)
        for batch in worker.batches.values() if worker is not None else ():
            batch.is_running = False
            if batch.running_since == policy.NEVER:
                # It had not been taken up: it is as it was before.
                batch.lane.give_back(batch.parts)
                self._joined_queue(batch.parts)
                yield from self._left_worker(batch.parts)
                yield from self._expire(now, batch.lane)
            else:
                yield from self._came_to_nothing(batch.parts, now, None, event.why)
        for batch in list(self.batches.values()):
            if batch.worker_id == event.worker_id:
                self._let_go(batch.id, UNREAPED)
        yield from self._orphans_died(event, now)
        if not (self.workers or self._lost or self._coming_back):
            yield from self._nobody_left()

    def _orphans_died(self, event: events.WorkerReaped, now: float) -> Iterable[Action]:
        for orphan in self._orphans.of_worker(event.worker_id):
            self._orphans.forget(orphan)
            claimed = [part for part, _ in orphan.claims]
            if claimed:
                yield from self._came_to_nothing(claimed, now, None, event.why)
            yield Forget(orphan.id)
        self._orphans.release_all(event.worker_id)
        self._scheduler.memory_came_back()

    def _nobody_left(self) -> Iterable[Action]:
        """No worker is left, and none will come: nothing can be answered any more."""
        self.catalog.abandon()
        error = Unavailable("no worker is left")
        groups = list(self.groups.values())
        yield from self._refuse([(group, range(group.count)) for group in groups], error)

    def _worker_retiring(self, event: events.WorkerRetiring, now: float) -> Iterable[Action]:
        self.catalog.worker_lost(event.worker_id)
        worker = self.workers.get(event.worker_id)
        if worker is None:
            return [Retired(event.worker_id)]
        worker.is_retiring = True
        return self._retire_if_idle(worker.id)

    def _retire_if_idle(self, worker_id: int) -> Iterable[Action]:
        worker = self.workers.get(worker_id)
        if worker is not None and worker.is_retiring and not worker.in_flight:
            self._lose(worker_id)
            yield Retired(worker_id)

    def _models_changed(self, event: events.ModelsChanged, now: float) -> Iterable[Action]:
        self.catalog.update(event.models)
        self._retired = [model for model in self.catalog.models.values() if model.is_retired]
        return []

    def _unload_idle(self) -> list[Action]:
        """Retired versions that nothing waits for any more are gone."""
        idle = [model for model in self._retired if model.is_idle]
        for model in idle:
            self._retired.remove(model)
            self.catalog.forget(model)
        return [Unload(model.name, model.version) for model in idle]

    def _inputs_released(self, event: events.InputsReleased, now: float) -> Iterable[Action]:
        if self._orphans.release(event.batch_id):
            self._scheduler.memory_came_back()
            return []
        return self._let_go(event.batch_id, MODEL)

    def _drain_started(self, event: events.DrainStarted, now: float) -> Iterable[Action]:
        self.draining = True
        return []

    def _time_passed(self, event: events.TimePassed, now: float) -> Iterable[Action]:
        if self._deadlines.next <= now:
            yield from self._expire(now)
        if self._watchdog.at <= now:
            for worker, batch in self._watchdog.overdue(list(self.workers.values()), now):
                yield from self._kill(worker.id, batch.lane.model.batch_execution_timeout_s)
        if self._orphans:
            yield from self._look_after_orphans(now)
        self._scheduler.memory_came_back()
        if self.awaited:
            # Blocks may be in use that are not known yet.
            return
        if self._retries or any(worker.set_apart for worker in self.workers.values()):
            yield from self._run_again(now)
            if self._scheduler.is_short_of_memory:
                return
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

    def _run_again(self, now: float) -> Iterable[Action]:
        """Hands over what ran before and came to nothing, as far as workers have room."""
        for retry in self._retries:
            lane = retry.parts[0].group.lane
            worker = (
                self._scheduler.worker_for_suspect(lane)
                if retry.is_suspect
                else self._scheduler.worker_for_retry(lane)
            )
            if worker is None:
                continue
            layout = self._layout(lane, by_client(retry.parts))
            block = self.allocator.allocate(layout.nbytes)
            if block is None:
                self._scheduler.memory_is_short(now)
                return
            self._retries.remove(retry)
            yield Dispatch(self._dispatch(lane, worker, retry.parts, layout, block, now))
        if not self._retries.has_suspects:
            for worker in self.workers.values():
                worker.set_apart = worker.set_apart and worker.in_flight > 0

    def _look_after_orphans(self, now: float) -> Iterable[Action]:
        for orphan in self._orphans.expired(now):
            self._orphans.forget(orphan)
            yield Forget(orphan.id)
        for worker_id in self._orphans.overdue(now):
            if worker_id in self.workers:
                yield from self._kill(worker_id, None)

    def _kill(self, worker_id: int, timeout_s: float | None) -> Iterable[Action]:
        self._lose(worker_id)
        limit = "" if timeout_s is None else f" = {timeout_s:g} s"
        yield Kill(worker_id, f"a batch ran longer than batch_execution_timeout{limit}")

    def _expire(self, now: float, *lanes: Lane) -> Iterable[Action]:
        """Refuses what is late: what runs again, and in lanes where it may be the case."""
        error = DeadlineExceeded("the deadline passed while the request waited for a worker")
        expired = self._retries.expire(now)
        for lane in (*self._deadlines.due(now), *lanes):
            expired += lane.expire(now)
        self._left_queue(expired)
        yield from self._refuse([(part.group, _requests_of(part)) for part in expired], error)

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
            return parts, self._fitted(layout)

    def _layout(self, lane: Lane, parts: list[Part]) -> BatchLayout:
        """Of parts that fitted into the arena before."""
        return self._fitted(plan_layout(lane, parts, sum(part.rows for part in parts)))

    def _fitted(self, layout: BatchLayout) -> BatchLayout:
        if layout.nbytes <= self.allocator.nbytes:
            return layout
        # Outputs without room in the block travel in a memfd of their own.
        return BatchLayout(layout.rows, layout.padded_rows, layout.inputs, layout.output_offset, 0)

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
        self._watchdog.dispatched(batch, worker, now)
        self.batches[batch.id] = worker.batches[batch.id] = batch
        model = lane.model
        model.in_execution += 1
        model.batches += 1
        model.batch_rows[layout.rows] += 1
        for part in parts:
            part.group.running += 1
        self._left_queue(parts)
        return batch

    def _joined_queue(self, parts: Iterable[Part]) -> None:
        """Parts wait, in their lane or to run again."""
        for part in parts:
            group = part.group
            lane = group.lane
            lane.model.queued_rows += part.rows
            if not group.queued_rows:
                self.queue_nbytes += group.nbytes
            group.queued_rows += part.rows
            if lane.parts:
                self._waiting[lane] = None

    def _left_queue(self, parts: Iterable[Part]) -> None:
        """Parts no longer wait. A group's frames are held until its last part."""
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
        if lanes and self._retries:
            self._left_queue(self._retries.remove_dropped())
        return actions

    def _forget_if_answered(self, group: RequestGroup) -> None:
        if not group.unanswered and self.groups.get((group.client, group.message_id)) is group:
            self._forget(group)

    def _forget(self, group: RequestGroup) -> None:
        """Every request of a group is answered."""
        del self.groups[group.client, group.message_id]
        left = self._in_flight[group.client] - group.count
        if left:
            self._in_flight[group.client] = left
        else:
            del self._in_flight[group.client]
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
