"""The broker's state machine in virtual time, with everything it does checked against books."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

from support.broker_builders import (
    ROW_SHAPE,
    make_predict,
    make_ready,
    make_report,
    make_target,
)
from support.virtual_books import (
    LEFT,
    RUNS,
    WAITS,
    Held,
    VirtualBooks,
    VirtualOrphan,
    VirtualWorker,
)

from batchyard.broker import events
from batchyard.broker.admission import admit
from batchyard.broker.catalog import Catalog, ServedModel
from batchyard.broker.events import Action, Batch, Deliver, Dispatch, Refuse
from batchyard.broker.queue import Region, RequestGroup
from batchyard.broker.replies import reply_places
from batchyard.broker.state import BrokerState
from batchyard.wire.blocks import Block
from batchyard.wire.errors import BatchyardError, Internal
from batchyard.wire.protocol import RegionPlaces
from batchyard.wire.signatures import SignatureSpec
from batchyard.wire.tensors import Buffer
from batchyard.wire.work import Execute, ModelReport, Resumed

__all__ = ["LEFT", "VirtualBroker", "as_execute"]


class VirtualBroker(VirtualBooks):
    """A broker without sockets, clock or workers; the test is all of these."""

    def __init__(
        self,
        *models: ServedModel,
        arena_nbytes: int = 1 << 20,
        queue_nbytes_max: int = 1 << 30,
        in_flight_max: int = 1 << 62,
        awaited: Iterable[int] = (),
    ) -> None:
        catalog = Catalog(arena_nbytes)
        for model in models:
            catalog.add(model)
        state = BrokerState(catalog, arena_nbytes, queue_nbytes_max, in_flight_max, awaited)
        super().__init__(state, catalog)
        self._worker_ids = count()

    # Workers

    def start_worker(
        self,
        *reports: ModelReport,
        concurrent_batches: int = 1,
        worker_id: int | None = None,
        slot: int | None = None,
    ) -> int:
        """A worker comes up, in a slot of its own if none is given; with no report, one that
        serves the default signature of ``m``."""
        worker = next(self._worker_ids) if worker_id is None else worker_id
        reports = reports or (make_report(),)
        place = worker if slot is None else slot
        versions = {(report.name, report.version) for report in reports}
        unanswered = [o for o in self.orphans.values() if o.worker_id == worker and not o.outcome]
        batches = [orphan.execute.batch_id for orphan in unanswered]
        self.workers[worker] = VirtualWorker(concurrent_batches, versions, place, batches)
        self.handle(events.WorkerReady(worker, concurrent_batches, make_ready(*reports), place))
        return worker

    def start_workers(self, *signatures: SignatureSpec, workers: int = 1) -> None:
        """Workers that serve these signatures of ``m``."""
        for _ in range(workers):
            self.start_worker(make_report(*signatures))

    def lose(self, worker: int) -> None:
        """The worker's link closes."""
        self.note_loss(worker)
        self.handle(events.WorkerLost(worker))

    def reap(self, worker: int, comes_back: bool = False, why: str = "it died") -> None:
        """The lost worker's process is gone."""
        slot = self.lost[worker].slot if worker in self.lost else -1
        suspects = self.note_end(worker)
        self.handle(events.WorkerReaped(worker, why, comes_back, slot))
        for group, request in suspects:
            if not group.lane.model.may_retry and group.replies is None:
                assert self.answers[group][request] is not None

    def die(self, worker: int) -> int:
        """The worker dies, and is replaced by one like it; its id."""
        was = self.workers[worker]
        self.lose(worker)
        self.reap(worker, comes_back=True)
        reports = [make_report(name=name, version=version) for name, version in was.versions]
        return self.start_worker(*reports, concurrent_batches=was.concurrent_batches, slot=was.slot)

    def retire(self, worker: int) -> None:
        """The worker is to get no more batches."""
        self.handle(events.WorkerRetiring(worker))

    # Clients

    def ask(
        self,
        *rows: int,
        target: bytes | None = None,
        frames: Sequence[Buffer] | None = None,
        client: bytes = b"c",
        timeout_s: float | Sequence[float | None] | None = None,
        message_id: int | None = None,
        whole: bool = False,
        region: Region | None = None,
        places: RegionPlaces | None = None,
        resent: bool = False,
    ) -> RequestGroup:
        """One message with requests of so many rows each; zeros unless ``frames`` are given.

        ``whole``: the target gives whole shapes, so there is one request. ``places`` says what
        lies in the client's ``region``; ``frames`` are the other inputs then.
        """
        timeouts_us = (
            None
            if timeout_s is None
            else round(timeout_s * 1e6)
            if isinstance(timeout_s, float | int)
            else [None if t is None else round(t * 1e6) for t in timeout_s]
        )
        predict = make_predict(
            make_target() if target is None else target,
            None if whole else list(rows),
            timeouts_us,
            message_id,
            places,
        )
        if frames is None:
            frames = [bytes(sum(rows) * 4 * ROW_SHAPE[0])]
        group = admit(self.catalog, client, region, predict, list(frames), self.now)
        self.note_group(group)
        if resent:
            self._note_resent(group)
        self.handle(events.RequestsArrived(group, resent))
        return group

    def _note_resent(self, group: RequestGroup) -> None:
        """What another connection's message of this id has running is this one's."""
        if group.message_id < 1 << 40:
            return
        self.note_claims(group)
        for before, answers in self.answers.items():
            known = (before.client, before.message_id) in self.state.groups
            if before.message_id != group.message_id or before is group or not known:
                continue
            for batch in [*self.running.values(), *self.dying.values()]:
                if before.replies is None:
                    self._take_over(batch, before, group)
            for orphan in self.orphans.values():
                if orphan.suits(group):
                    self._take_claims_over(orphan, before, group)
            answers[:] = [answer or LEFT for answer in answers]

    def _take_over(self, batch: Batch, before: RequestGroup, group: RequestGroup) -> None:
        for part in batch.parts:
            if part.group is before and batch.lane is group.lane:
                rows = self.rows[group]
                rows[part.row_start : part.row_start + part.rows] = [RUNS] * part.rows

    def _take_claims_over(
        self, orphan: VirtualOrphan, before: RequestGroup, group: RequestGroup
    ) -> None:
        for i, (claiming, row) in enumerate(orphan.rows):
            if claiming is before:
                orphan.rows[i] = group, row
                self.rows[group][row] = RUNS

    def resend(self, group: RequestGroup, client: bytes = b"again") -> RequestGroup:
        """A client connects again, and sends a message that was not answered again."""
        rows = group.rows or [1] * group.count
        target = make_target(model=group.lane.model.name, priority=group.lane.priority)
        return self.ask(
            *rows, client=client, target=target, message_id=group.message_id, resent=True
        )

    def cancel(self, group: RequestGroup, first: int = 0, requests: int = 0) -> None:
        """The client gives requests of a message up; 0: all of them."""
        segments = [(group.message_id, first, requests)]
        self.handle(events.RequestsCancelled(group.client, segments))

    def leave(self, client: bytes) -> None:
        """The client closes its connection."""
        for group, answers in self.answers.items():
            if group.client == client:
                answers[:] = [answer or LEFT for answer in answers]
        self.handle(events.ClientLeft(client))

    # Batches

    def tick(self, seconds: float = 0.0) -> list[Batch]:
        """Time passes; the batches that go out then."""
        self.now += seconds
        actions = self.handle(events.TimePassed())
        return [action.batch for action in actions if isinstance(action, Dispatch)]

    def tick_one(self, seconds: float = 0.0) -> Batch:
        """Time passes, and exactly one batch goes out."""
        (batch,) = self.tick(seconds)
        return batch

    def finish(
        self,
        batch: Batch,
        *,
        output_nbytes: int = 0,
        kept: bool = False,
        delivered: bool = True,
        replied: bool = False,
        execution_s: float | None = None,
    ) -> Deliver:
        """The worker answers a batch, and unless ``delivered`` is false the replies leave.

        It ran for as long as it was there, if nothing else is said.
        """
        self._leaves_worker(batch.id, batch.worker_id, kept)
        self.held[batch.id].holders.add("replies")
        self._clear(batch)
        if execution_s is None:
            execution_s = max(self.now - batch.running_since, 0.0)
        finished = events.BatchFinished(batch.id, output_nbytes, kept, replied, execution_s)
        deliver, *others = self.handle(finished)
        assert isinstance(deliver, Deliver)
        assert deliver.replied == replied
        assert all(isinstance(a, Refuse | events.Retired | events.Unload) for a in others)
        if delivered:
            self.deliver(batch)
        return deliver

    def fail(
        self, batch: Batch, error: BatchyardError | None = None, kept: bool = False
    ) -> list[Action]:
        """The batch raises in the worker."""
        error = error or Internal("it raised")
        self._leaves_worker(batch.id, batch.worker_id, kept)
        self.unhold(batch.id)
        self._clear(batch)
        self.mark(batch.parts, WAITS)
        if error.code == "RESOURCE_EXHAUSTED":
            self.cut |= {(part.group, part.first) for part in batch.parts}
        return self.handle(events.BatchFailed(batch.id, error, kept))

    def deliver(self, batch: Batch | int) -> None:
        """The last reply that reads the batch's outputs has left."""
        batch_id = batch if isinstance(batch, int) else batch.id
        self.unhold(batch_id, "replies")
        self.handle(events.BatchDelivered(batch_id))

    def release(self, batch: Batch | int) -> None:
        """The model lets go of inputs that it kept."""
        batch_id = batch if isinstance(batch, int) else batch.id
        self.unhold(batch_id, "kept")
        self.handle(events.InputsReleased(batch_id))

    def _leaves_worker(self, batch_id: int, worker_id: int, kept: bool) -> None:
        self.running.pop(batch_id, None)
        self.workers[worker_id].batches.remove(batch_id)
        holders = self.held[batch_id].holders
        holders.remove("worker")
        if kept:
            holders.add("kept")

    def _clear(self, batch: Batch) -> None:
        """Its worker lives: its requests are suspected of nothing."""
        self.suspects -= self.rows_in(batch)

    # A broker that is started anew

    def restart(self) -> VirtualBroker:
        """The broker dies, and another begins: its workers have not told it anything."""
        unreaped = {*self.workers, *self.lost}
        made = VirtualBroker(
            *(unserved(model) for model in self.catalog.models.values() if not model.is_retired),
            arena_nbytes=self.state.allocator.nbytes,
            awaited=unreaped,
        )
        made.now = self.now + 1.0
        made._worker_ids = count(max(unreaped, default=-1) + 1)
        made.lost = dict(self.lost)
        return made

    def resume_all(self, before: VirtualBroker) -> None:
        """The workers of a broker that died tell this one what they have."""
        for worker in list(before.workers):
            self.resume(before, worker)

    def resume(self, before: VirtualBroker, worker: int) -> None:
        """A worker tells what it has of a broker that died, and that it is ready."""
        was = before.workers[worker]
        executes = [
            before.orphans[batch_id].execute
            if batch_id in before.orphans
            else as_execute(before.running[batch_id])
            for batch_id in was.batches
        ]
        kept = [
            (batch_id, *held.block)
            for batch_id, held in before.held.items()
            if held.worker_id == worker and "kept" in held.holders
        ]
        self.tell_resumed(worker, executes, kept)
        reports = [make_report(name=name, version=version) for name, version in was.versions]
        self.start_worker(
            *reports,
            concurrent_batches=was.concurrent_batches,
            worker_id=worker,
            slot=was.slot,
        )

    def tell_resumed(
        self,
        worker: int,
        executes: list[Execute],
        kept: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """A worker's first word to a broker that was started anew."""
        for execute in executes:
            self.orphans[execute.batch_id] = VirtualOrphan(execute, worker)
            self.held[execute.batch_id] = Held(Block(*execute.block), worker, {"worker"})
        for batch_id, offset, nbytes in kept:
            self.held[batch_id] = Held(Block(offset, nbytes), worker, {"kept"})
        self.handle(events.BatchesResumed(worker, Resumed(executes, list(kept))))

    def finish_orphan(self, batch_id: int, kept: bool = False) -> list[Action]:
        """A worker answers a batch of the broker before."""
        orphan = self.orphans[batch_id]
        orphan.outcome = "finished"
        self._leaves_worker(batch_id, orphan.worker_id, kept)
        self.unhold(batch_id)
        return self.handle(events.BatchFinished(batch_id, 64, kept, False))

    def fail_orphan(
        self, batch_id: int, error: BatchyardError | None = None, kept: bool = False
    ) -> list[Action]:
        """A batch of the broker before raises."""
        orphan = self.orphans[batch_id]
        orphan.outcome = "failed"
        self._leaves_worker(batch_id, orphan.worker_id, kept)
        self.unhold(batch_id)
        self._release_claims(orphan)
        return self.handle(events.BatchFailed(batch_id, error or Internal("it raised"), kept))

    # All

    def handle(self, event: events.Event) -> list[Action]:
        """Tells the state machine, and checks what it does and what it thinks afterwards."""
        actions = self.state.handle(event, self.now)
        for action in actions:
            self.check(action)
        self.check_books()
        return actions

    def forget_answered(self) -> None:
        """Drops these books' own references to groups that are answered."""
        for group in [group for group, answers in self.answers.items() if None not in answers]:
            del self.answers[group], self.rows[group]


def unserved(model: ServedModel) -> ServedModel:
    """The same version, as a broker knows it that was just started."""
    return ServedModel(
        model.name,
        model.version,
        model.labels,
        model.parameters,
        model.is_current,
        model.retry,
        model.batch_execution_timeout_s,
        model.error,
    )


def as_execute(batch: Batch) -> Execute:
    """What a worker was told of a batch."""
    return Execute(
        batch_id=batch.id,
        model=batch.lane.model.name,
        version=batch.lane.model.version,
        signature=batch.lane.signature.name,
        rows=batch.rows,
        padded_rows=batch.layout.padded_rows,
        alone=batch.alone,
        inputs=[],
        copies=[],
        output_offset=0,
        output_nbytes=0,
        replies=reply_places(batch),
        block=batch.block,
        origins=[
            (part.group.message_id, part.first, part.count, part.row_start, part.rows)
            for part in batch.parts
        ],
    )
