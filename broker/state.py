"""The broker's state machine: one writer of every request, lane, batch, block and worker.

``handle(event, now) -> actions``. No socket, clock or thread is in here, so tests and
simulations drive it in virtual time. Times are seconds of any clock that never goes back.

Every request that arrived is answered exactly once: by a ``Deliver`` that completes it, or by a
``Refuse``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from batchyard.broker import events, policy
from batchyard.broker.catalog import Catalog, ServedModel
from batchyard.broker.comeback import Comeback
from batchyard.broker.events import (
    MODEL,
    REPLIES,
    UNREAPED,
    WORKER,
    Action,
    Batch,
    Deliver,
    Event,
    Kill,
    Refuse,
    Retired,
    Unload,
)
from batchyard.broker.experience import ran
from batchyard.broker.forming import Forming
from batchyard.broker.ledger import Ledger, still_wanted
from batchyard.broker.measures import REFUSED, count_unheard
from batchyard.broker.queue import RequestGroup
from batchyard.broker.resumption import Orphans, Outcome
from batchyard.broker.retries import Death, Refusal, Retry
from batchyard.broker.workers import WorkerState
from batchyard.wire.blocks import BlockAllocator
from batchyard.wire.errors import Cancelled, DeadlineExceeded, Unavailable


class BrokerState:
    """See the module."""

    def __init__(
        self,
        catalog: Catalog,
        arena_nbytes: int,
        queue_nbytes_max: int,
        in_flight_max: int = 1 << 62,
        awaited: Iterable[int] = (),
        learns: bool = True,
    ) -> None:
        """``queue_nbytes_max`` bounds the tensors that wait, of all lanes; ``in_flight_max`` the
        requests of one client that have no answer. ``awaited`` are the workers of a broker before
        this one: until each of them told what it still has, or is gone, nothing may be dispatched.
        With ``learns`` off it predicts nothing: it drops what has expired, and no more.
        """
        self._learns = learns
        self._now = -policy.NEVER
        self.catalog = catalog
        self.allocator = BlockAllocator(arena_nbytes)
        self.workers: dict[int, WorkerState] = {}
        self.awaited = set(awaited)
        self.batches: dict[int, Batch] = {}
        self.draining = False
        self.busy_s_by_slot: defaultdict[int, float] = defaultdict(float)
        self._ledger = Ledger(queue_nbytes_max, in_flight_max)
        self._orphans = Orphans(self.allocator)
        self._comeback = Comeback(self._ledger, self._orphans, self.batches)
        # Lost workers that are not reaped, and slots whose next worker is not ready.
        self._lost: dict[int, WorkerState] = {}
        self._coming_back: set[int] = set()
        self._forming = Forming(
            self._ledger, self.allocator, self.workers, self.batches, self._coming_back
        )
        # Workers that are to retire once they have told what they have of a broker before.
        self._retiring: set[int] = set()
        self._retired: list[ServedModel] = []
        self._handlers: dict[type[Any], Callable[[Any, float], Iterable[Action]]] = {
            events.RequestsArrived: self._requests_arrived,
            events.RequestsCancelled: self._requests_cancelled,
            events.ClientLeft: self._client_left,
            events.WorkerAttached: self._worker_attached,
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
        self._now = now
        self._forming.scheduler.something_changed()
        actions = list(self._handlers[type(event)](event, now))
        if self._retired:
            actions += self._unload_idle()
        return actions

    def next_wakeup(self) -> float:
        """When ``TimePassed`` is due at the latest, if nothing else happens; may be in the past."""
        if self.awaited:
            return self._ledger.deadlines.next
        if self._ledger.retries and self._ledger.retries.is_fresh:
            return -policy.NEVER
        return min(
            self._forming.scheduler.next_ripe(self._now),
            self._ledger.deadlines.next,
            self._forming.watchdog.at,
            self._ledger.retries.risk_at if self._ledger.retries else policy.NEVER,
            self._orphans.next_expiry if self._orphans else policy.NEVER,
        )

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits or runs, so that ``TimePassed`` would change nothing."""
        return (
            not (self._ledger.waiting or self._ledger.retries or self._orphans)
            and self._ledger.deadlines.next == policy.NEVER
            and self._forming.watchdog.at == policy.NEVER
        )

    def is_resumed(self, batch_id: int) -> bool:
        """Whether a batch of a broker before this one has that id, and may still be claimed."""
        return self._orphans.get(batch_id) is not None

    @property
    def is_idle(self) -> bool:
        """Whether every request that arrived, here or at a broker before, is answered."""
        return not (self._ledger.groups or self._orphans)

    @property
    def groups(self) -> Mapping[tuple[bytes, int], RequestGroup]:
        """Messages that are not answered whole, by client and message id."""
        return self._ledger.groups

    @property
    def clients(self) -> Collection[bytes]:
        """Those that have requests without an answer."""
        return self._ledger.clients

    @property
    def queue_nbytes(self) -> int:
        """Bytes of the tensors that wait."""
        return self._ledger.queue_nbytes

    def _requests_arrived(self, event: events.RequestsArrived, now: float) -> Iterable[Action]:
        group = event.group
        running_rows = self._orphans.rows_of(group) if event.resent else 0
        fitting = group.lane.fitting(group, running_rows)
        error = (
            Unavailable("the server is shutting down")
            if self.draining and not event.resent
            else self._ledger.objection(group, fitting)
        )
        if error is not None:
            group.unanswered = 0
            return [Refuse(group, [(0, group.count)], error)]
        if group.earliest_deadline < policy.NEVER and not event.resent:
            late = self._forming.scheduler.late_requests(group, now)
            if late:
                return self._refuse_late(group, late, fitting, now)
        before = self._ledger.sent_before(group) if event.resent else None
        self._ledger.accept(group)
        actions: list[Action] = []
        if event.resent:
            actions += self._comeback.resume(group, before, now)
        if fitting < group.count:
            full = self._ledger.queue_full(group, fitting)
            actions += self._ledger.refuse([(group, range(fitting, group.count))], full)
        return actions

    def _refuse_late(
        self, group: RequestGroup, late: Sequence[int], fitting: int, now: float
    ) -> Iterable[Action]:
        """Those of a message that the predicted backlog makes late; and those behind ``fitting``
        for which there is no room."""
        lane = group.lane
        lane.model.misses[REFUSED] += len(late)
        if lane.queued_rows:
            # Not when nobody could have been in time: that says nothing of the load.
            lane.model.shed_at = now
        left = _milliseconds(group.earliest_deadline - now)
        takes = _milliseconds(lane.longest(lane.max_rows) or 0.0)
        error = DeadlineExceeded(
            f"model {lane.model.name!r}: behind what runs and {lane.queued_rows} rows that wait "
            f"there is no answer within {left}: a batch of {lane.max_rows} takes {takes}"
        )
        if len(late) == group.count:
            group.unanswered = 0
            return [Refuse(group, [(0, group.count)], error)]
        self._ledger.accept(group)
        actions = self._ledger.refuse([(group, late)], error)
        if fitting < group.count:
            full = self._ledger.queue_full(group, fitting)
            actions += self._ledger.refuse([(group, range(fitting, group.count))], full)
        return actions

    def _requests_cancelled(self, event: events.RequestsCancelled, now: float) -> Iterable[Action]:
        refusals: list[Refusal] = []
        for message_id, first, requested in event.segments:
            group = self.groups.get((event.client, message_id))
            if group is not None:
                stop = min(first + requested, group.count) if requested else group.count
                refusals.append((group, range(first, stop)))
        return self._ledger.refuse(refusals, Cancelled("the client gave the request up"))

    def _client_left(self, event: events.ClientLeft, now: float) -> Iterable[Action]:
        groups = [g for (client, _), g in self.groups.items() if client == event.client]
        count_unheard(self._ledger.abandon(groups, Cancelled("the client left")))
        return []

    def _worker_attached(self, event: events.WorkerAttached, now: float) -> Iterable[Action]:
        self._expect(event.slot)
        return []

    def _worker_ready(self, event: events.WorkerReady, now: float) -> Iterable[Action]:
        worker = WorkerState(
            event.worker_id, event.ready.device, event.concurrent_batches, event.slot
        )
        worker.orphans = len(self._orphans.of_worker(worker.id))
        self.workers[worker.id] = worker
        self._coming_back.discard(worker.slot)
        self.awaited.discard(worker.id)
        if worker.id in self._retiring:
            self._retiring.discard(worker.id)
            worker.is_retiring = True
            yield from self._retire_if_idle(worker.id)
            return
        for report in event.ready.models:
            if (report.name, report.version) in self.catalog.models:
                self.catalog.worker_ready(worker.id, report, worker.kind)
            else:
                # It was removed while this worker loaded it.
                yield Unload(report.name, report.version)
        self._forming.scheduler.workers_changed()
        yield from self._refuse_unserved()

    def _batches_resumed(self, event: events.BatchesResumed, now: float) -> Iterable[Action]:
        overdue_at = now
        for execute in event.resumed.batches:
            model = self.catalog.models.get((execute.model, execute.version))
            # One after the other, at worst.
            overdue_at += policy.NEVER if model is None else model.batch_execution_timeout_s
            self._orphans.add(event.worker_id, execute, overdue_at)
            self._forming.avoid_id(execute.batch_id)
        for batch_id, offset, nbytes in event.resumed.kept:
            self._orphans.keep(event.worker_id, batch_id, offset, nbytes)
            self._forming.avoid_id(batch_id)
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
        if event.execution_s:
            worker = self.workers[batch.worker_id]
            self.busy_s_by_slot[worker.slot] += event.execution_s
            ran(batch, worker.kind, event.execution_s, now, self._learns)
        yield Deliver(batch, self._ledger.answered_all(batch.parts), event.replied)
        yield from self._ledger.left_worker(batch.parts)
        yield from self._retire_if_idle(batch.worker_id)

    def _batch_failed(self, event: events.BatchFailed, now: float) -> Iterable[Action]:
        batch = self._came_back(event.batch_id, event.kept, now)
        if batch is None:
            yield from self._orphan_ended(event, now)
            return
        self._free_if_unheld(batch)
        yield from self._ledger.came_to_nothing(batch.parts, now, event.error)
        yield from self._retire_if_idle(batch.worker_id)

    def _orphan_ended(self, outcome: Outcome, now: float) -> Iterable[Action]:
        orphan = self._orphans.get(outcome.batch_id)
        if orphan is None or orphan.outcome is not None:
            return
        actions = list(self._comeback.ended(orphan, outcome, now))
        worker = self.workers.get(orphan.worker_id)
        if worker is not None:
            worker.orphans -= 1
            self._forming.watchdog.answered(worker, now)
            self._forming.scheduler.worker_changed(worker)
            yield from self._retire_if_idle(worker.id)
        self._forming.scheduler.memory_came_back()
        yield from actions

    def _came_back(self, batch_id: int, kept: bool, now: float) -> Batch | None:
        """The batch, no longer on its worker; None when the worker was lost before."""
        batch = self.batches.get(batch_id)
        if batch is None or WORKER not in batch.holders:
            return None
        worker = self.workers[batch.worker_id]
        del worker.batches[batch.id]
        worker.batches_done += 1
        if batch.running_since != policy.NEVER:
            self._forming.watchdog.answered(worker, now)
        self._forming.scheduler.worker_changed(worker)
        batch.lane.model.in_execution -= 1
        batch.is_running = False
        batch.holders.remove(WORKER)
        if kept:
            batch.holders.add(MODEL)
            batch.lane.model.reads_in_place = False
        return batch

    def _worker_lost(self, event: events.WorkerLost, now: float) -> Iterable[Action]:
        self._lose(event.worker_id)
        return []

    def _lose(self, worker_id: int) -> None:
        """A worker is no longer heard of. What it ran waits until it can write no more."""
        self.catalog.worker_lost(worker_id)
        self._forming.scheduler.workers_changed()
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        self._lost[worker_id] = worker
        self._orphans.worker_lost(worker_id)
        self._expect(worker.slot)
        for batch in worker.batches.values():
            batch.holders.discard(WORKER)
            batch.holders.add(UNREAPED)
        for batch in self.batches.values():
            if batch.worker_id == worker.id and MODEL in batch.holders:
                batch.holders.add(UNREAPED)
                batch.holders.remove(MODEL)

    def _worker_reaped(self, event: events.WorkerReaped, now: float) -> Iterable[Action]:
        self._lose(event.worker_id)
        self.awaited.discard(event.worker_id)
        self._retiring.discard(event.worker_id)
        if event.slot is not None:
            if event.comes_back:
                self._expect(event.slot)
            else:
                self._coming_back.discard(event.slot)
        worker = self._lost.pop(event.worker_id, None)
        for batch in worker.batches.values() if worker is not None else ():
            batch.is_running = False
            batch.lane.model.in_execution -= 1
            if batch.running_since == policy.NEVER:
                yield from self._was_not_taken_up(batch, now)
            else:
                was_suspect = batch.retry is not None and batch.retry.is_suspect
                death = Death(event.why, was_suspect)
                yield from self._ledger.came_to_nothing(batch.parts, now, death)
        for batch in list(self.batches.values()):
            if batch.worker_id == event.worker_id:
                self._let_go(batch.id, UNREAPED)
        yield from self._comeback.died(event.worker_id, event.why, now)
        self._forming.scheduler.memory_came_back()
        is_unknown = event.slot is None and event.comes_back
        if not (self.workers or self._lost or self._coming_back or is_unknown):
            yield from self._nobody_left()
        yield from self._refuse_unserved()

    def _was_not_taken_up(self, batch: Batch, now: float) -> Iterable[Action]:
        """A worker died before a batch's turn: its rows are as they were before."""
        wanted = still_wanted(batch.parts)
        if wanted and batch.retry is not None:
            self._ledger.retries.add([Retry(wanted)])
        else:
            batch.lane.give_back(wanted)
        self._ledger.joined_queue(wanted)
        yield from self._ledger.left_worker(batch.parts)
        yield from self._ledger.expire(now, batch.lane)

    def _expect(self, slot: int) -> None:
        """A slot will have another worker, unless it has one already."""
        if all(worker.slot != slot for worker in self.workers.values()):
            self._coming_back.add(slot)

    def _refuse_unserved(self) -> Iterable[Action]:
        """Requests for a retired version when the last worker that had it is gone, for good."""
        for model in self._retired:
            if not (model.workers or self._lost or self._coming_back or model.is_idle):
                error = Unavailable(
                    f"model {model.name!r} version {model.version} is served no more"
                )
                groups = [g for g in self.groups.values() if g.lane.model is model]
                yield from self._ledger.refuse([(g, range(g.count)) for g in groups], error)

    def _nobody_left(self) -> Iterable[Action]:
        """No worker is left, and none will come: nothing can be answered any more."""
        self.catalog.abandon()
        error = Unavailable("no worker is left")
        everything = [(group, range(group.count)) for group in self.groups.values()]
        yield from self._ledger.refuse(everything, error)

    def _worker_retiring(self, event: events.WorkerRetiring, now: float) -> Iterable[Action]:
        self.catalog.worker_lost(event.worker_id)
        self._forming.scheduler.workers_changed()
        worker = self.workers.get(event.worker_id)
        if worker is None:
            if event.worker_id in self.awaited or self._orphans.of_worker(event.worker_id):
                self._retiring.add(event.worker_id)
                return []
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
        self._forming.scheduler.workers_changed()
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
            self._forming.scheduler.memory_came_back()
            return []
        return self._let_go(event.batch_id, MODEL)

    def _drain_started(self, event: events.DrainStarted, now: float) -> Iterable[Action]:
        self.draining = True
        return []

    def _time_passed(self, event: events.TimePassed, now: float) -> Iterable[Action]:
        if self._ledger.deadlines.next <= now:
            yield from self._ledger.expire(now)
        if self._forming.watchdog.at <= now:
            for worker, batch in self._forming.watchdog.overdue(list(self.workers.values()), now):
                yield from self._kill(worker.id, batch.lane.model.batch_execution_timeout_s)
        if self._orphans:
            yield from self._look_after_orphans(now)
        self._forming.scheduler.memory_came_back()
        if self.awaited:
            # Blocks may be in use that are not known yet.
            return
        yield from self._forming.next_batches(now)

    def _look_after_orphans(self, now: float) -> Iterable[Action]:
        yield from self._comeback.expire(now)
        for worker_id in self._orphans.overdue(now):
            if worker_id in self.workers:
                yield from self._kill(worker_id, None)

    def _kill(self, worker_id: int, timeout_s: float | None) -> Iterable[Action]:
        self._lose(worker_id)
        limit = "" if timeout_s is None else f" = {timeout_s:g} s"
        yield Kill(worker_id, f"a batch ran longer than batch_execution_timeout{limit}")

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
            self._forming.scheduler.memory_came_back()


def _milliseconds(seconds: float) -> str:
    """With three digits that count."""
    return f"{float(f'{1e3 * seconds:.3g}'):g} ms"
