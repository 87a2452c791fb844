"""The broker's state machine in virtual time, with everything it does checked against books that
are kept here, apart from its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count, pairwise

from support.broker_builders import (
    ROW_SHAPE,
    make_predict,
    make_ready,
    make_report,
    make_target,
)

from batchyard.broker import events
from batchyard.broker.admission import admit
from batchyard.broker.catalog import Catalog, ServedModel
from batchyard.broker.events import Action, Batch, Deliver, Dispatch, Refuse
from batchyard.broker.queue import Part, Region, RequestGroup
from batchyard.broker.state import BrokerState
from batchyard.wire.errors import BatchyardError, Internal
from batchyard.wire.protocol import RegionPlaces
from batchyard.wire.signatures import SignatureSpec
from batchyard.wire.tensors import Buffer
from batchyard.wire.work import ModelReport

LEFT = "LEFT"


class VirtualBroker:
    """A broker without sockets, clock or workers; the test is all of these.

    ``answers`` has, for each request of each group that arrived, the code of its answer, ``OK``,
    ``LEFT`` when its client left, or None while there is none.
    """

    def __init__(
        self, *models: ServedModel, arena_nbytes: int = 1 << 20, queue_nbytes_max: int = 1 << 30
    ) -> None:
        self.now = 100.0
        self.catalog = Catalog(arena_nbytes)
        for model in models:
            self.catalog.add(model)
        self.state = BrokerState(self.catalog, arena_nbytes, queue_nbytes_max)
        self.answers: dict[RequestGroup, list[str | None]] = {}
        self.messages: list[str] = []
        self.running: dict[int, Batch] = {}
        # Batches that a worker ran when it was lost: it may write until it is reaped.
        self.dying: dict[int, Batch] = {}
        # Why each batch's block must not be used again, and who serves what.
        self.held: dict[int, tuple[Batch, set[str]]] = {}
        self.serving: dict[int, tuple[int, set[str]]] = {}
        self._worker_ids = count()
        self._undispatched: dict[RequestGroup, list[int]] = {}
        self._undelivered: dict[RequestGroup, list[int]] = {}

    # What happens

    def start_worker(
        self, *reports: ModelReport, concurrent_batches: int = 1, worker_id: int | None = None
    ) -> int:
        """A worker comes up; with no report, one that serves the default signature of ``m``."""
        worker = next(self._worker_ids) if worker_id is None else worker_id
        reports = reports or (make_report(),)
        self.serving[worker] = (concurrent_batches, {report.name for report in reports})
        self.handle(events.WorkerReady(worker, concurrent_batches, make_ready(*reports)))
        return worker

    def start_workers(self, *signatures: SignatureSpec, workers: int = 1) -> None:
        """Workers that serve these signatures of ``m``."""
        for _ in range(workers):
            self.start_worker(make_report(*signatures))

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
        self.answers[group] = [None] * group.count
        each = group.rows or [1] * group.count
        self._undispatched[group], self._undelivered[group] = list(each), list(each)
        self.handle(events.RequestsArrived(group))
        return group

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
    ) -> Deliver:
        """The worker answers a batch, and unless ``delivered`` is false the replies leave."""
        self._leaves_worker(batch, kept)
        self.held[batch.id][1].add("replies")
        finished = events.BatchFinished(batch.id, output_nbytes, kept, replied)
        deliver, *last_words = self.handle(finished)
        assert isinstance(deliver, Deliver)
        assert deliver.replied == replied
        assert all(isinstance(action, Refuse) for action in last_words)
        if delivered:
            self.deliver(batch)
        return deliver

    def fail(self, batch: Batch, error: BatchyardError | None = None, kept: bool = False) -> None:
        """The batch raises in the worker."""
        self._leaves_worker(batch, kept)
        self._unhold(batch.id)
        self.handle(events.BatchFailed(batch.id, error or Internal("it raised"), kept))

    def deliver(self, batch: Batch) -> None:
        """The last reply that reads the batch's outputs has left."""
        self._unhold(batch.id, "replies")
        self.handle(events.BatchDelivered(batch.id))

    def release(self, batch: Batch) -> None:
        """The model lets go of inputs that it kept."""
        self._unhold(batch.id, "kept")
        self.handle(events.InputsReleased(batch.id))

    def lose(self, worker: int) -> None:
        """The worker's link closes."""
        self.serving.pop(worker, None)
        for batch, holders in self.held.values():
            if batch.worker_id == worker and holders & {"worker", "kept"}:
                holders -= {"worker", "kept"}
                holders.add("unreaped")
                if self.running.pop(batch.id, None) is not None:
                    self.dying[batch.id] = batch
        self.handle(events.WorkerLost(worker))

    def reap(self, worker: int) -> None:
        """The lost worker's process is gone."""
        for batch, _ in list(self.held.values()):
            if batch.worker_id == worker:
                self.dying.pop(batch.id, None)
                self._unhold(batch.id, "unreaped")
        self.handle(events.WorkerReaped(worker))

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

    def handle(self, event: events.Event) -> list[Action]:
        """Tells the state machine, and checks what it does and what it thinks afterwards."""
        actions = self.state.handle(event, self.now)
        for action in actions:
            if isinstance(action, Dispatch):
                self._check_dispatch(action.batch)
            elif isinstance(action, Deliver):
                self._check_deliver(action)
            else:
                self._check_refuse(action)
        self.check_books()
        return actions

    def forget_answered(self) -> None:
        """Drops these books' own references to groups that are answered."""
        for group in [group for group, answers in self.answers.items() if None not in answers]:
            del self.answers[group], self._undispatched[group], self._undelivered[group]

    # What is known

    @property
    def waiting_rows(self) -> int:
        """Rows that are on no worker and not answered."""
        return sum(sum(rows) for rows in map(self._waiting, self.answers))

    @property
    def is_all_answered(self) -> bool:
        """Whether every request has its answer."""
        return all(None not in answers for answers in self.answers.values())

    def is_running(self, group: RequestGroup) -> bool:
        """Whether a worker has rows of the group."""
        batches = [*self.running.values(), *self.dying.values()]
        return any(part.group is group for batch in batches for part in batch.parts)

    def in_flight(self, worker: int) -> int:
        """Batches that the worker has and did not answer."""
        return sum(batch.worker_id == worker for batch in self.running.values())

    def largest_gap(self) -> int:
        """The most bytes side by side that no batch holds."""
        blocks = sorted((b.block.offset, b.block.nbytes) for b, _ in self.held.values())
        edges = [(0, 0), *blocks, (self.state.allocator.nbytes, 0)]
        return max(after - before - nbytes for (before, nbytes), (after, _) in pairwise(edges))

    def expected_outstanding(self) -> list[RequestGroup]:
        """Groups with a request that waits or runs."""
        return [group for group, answers in self.answers.items() if None in answers]

    def _waiting(self, group: RequestGroup) -> list[int]:
        held = self._held_back(group)
        answers = zip(self._undispatched[group], self.answers[group], strict=True)
        return [
            rows
            for request, (rows, answer) in enumerate(answers)
            if answer is None and request not in held
        ]

    def _held_back(self, group: RequestGroup) -> set[int]:
        """Requests whose refusal waits for the return of the group's last batch."""
        assert not group.last_words or self.is_running(group)
        runs = [run for refusal in group.last_words for run in refusal.requests]
        return {request for first, count in runs for request in range(first, first + count)}

    # Books

    def check_books(self) -> None:
        """What the state machine counts is what there is."""
        state = self.state
        waiting = {group: sum(self._waiting(group)) for group in self.answers}
        assert state.queue_nbytes == sum(group.nbytes for group, rows in waiting.items() if rows)
        rows_of: Counter[str] = Counter()
        for group, rows in waiting.items():
            rows_of[group.lane.model.name] += rows
        running = Counter(batch.lane.model.name for batch in self.running.values())
        for model in self.catalog.models.values():
            assert model.queued_rows == rows_of[model.name]
            assert model.in_execution == running[model.name]
        blocks = [batch.block for batch, _ in self.held.values()]
        assert state.allocator.used_nbytes == sum(block.nbytes for block in blocks)
        assert state.is_idle == (not self.expected_outstanding())

    def _check_dispatch(self, batch: Batch) -> None:
        lane, parameters = batch.lane, batch.lane.model.parameters
        assert batch.rows == sum(part.rows for part in batch.parts)
        assert 0 < batch.rows <= (parameters.max_batch_size if lane.signature.batched else 1)
        if parameters.allowed_batch_sizes and lane.signature.batched:
            assert batch.layout.padded_rows in parameters.allowed_batch_sizes
        self._check_worker(batch)
        start, stop = batch.block.offset, batch.block.offset + batch.block.nbytes
        assert batch.layout.nbytes <= batch.block.nbytes
        assert start >= 0
        assert stop <= self.state.allocator.nbytes
        for other, _ in self.held.values():
            assert stop <= other.block.offset or other.block.offset + other.block.nbytes <= start
        assert batch.id not in self.held
        self.running[batch.id] = batch
        self.held[batch.id] = (batch, {"worker"})
        for part in batch.parts:
            self._check_part(part, lane.model.name)

    def _check_worker(self, batch: Batch) -> None:
        model = batch.lane.model
        concurrent_batches, names = self.serving[batch.worker_id]
        assert model.name in names
        others = sum(b.lane.model is model for b in self.running.values())
        assert others < (model.parameters.num_batch_threads or 1 << 30)
        # One batch ahead, at most.
        assert self.in_flight(batch.worker_id) <= concurrent_batches

    def _check_part(self, part: Part, model: str) -> None:
        """Whole requests, or the next rows of one that no batch could hold."""
        group = part.group
        assert group.lane.model.name == model
        assert part.rows > 0
        row = part.row_start
        for request in range(part.first, part.first + part.count):
            assert self.answers[group][request] is None
            deadline = group.deadlines[request] if group.deadlines else group.earliest_deadline
            assert deadline > self.now
            left = self._undispatched[group][request]
            assert row == group.row_start(request + 1) - left
            rows = min(left, part.row_start + part.rows - row)
            # Only what no batch could hold is divided.
            assert rows == left or self._is_large(group, request)
            self._undispatched[group][request] -= rows
            row += rows
        assert row == part.row_start + part.rows

    def _is_large(self, group: RequestGroup, request: int) -> bool:
        return group.row_start(request + 1) - group.row_start(request) > group.lane.max_rows

    def _check_deliver(self, deliver: Deliver) -> None:
        starts = {}
        row = 0
        for part in deliver.batch.parts:
            for i in range(part.rows):
                starts[part.group, part.row_start + i] = row + i
            row += part.rows
        for part, row in deliver.parts:
            group = part.group
            # These rows of the group are those rows of the batch.
            for i in range(part.rows):
                assert starts.pop((group, part.row_start + i)) == row + i
            left = part.rows
            for request in range(part.first, part.first + part.count):
                rows = min(left, self._undelivered[group][request])
                self._undelivered[group][request] -= rows
                left -= rows
                if not self._undelivered[group][request]:
                    self._answer(group, request, "OK")
            assert not left

    def _check_refuse(self, refuse: Refuse) -> None:
        self.messages.append(refuse.error.message)
        for first, requests in refuse.requests:
            assert requests > 0
            for request in range(first, first + requests):
                self._answer(refuse.group, request, refuse.error.code)

    def _answer(self, group: RequestGroup, request: int, code: str) -> None:
        answers = self.answers[group]
        assert answers[request] is None, f"a second answer, {code}, after {answers[request]}"
        answers[request] = code
        if group.replies is not None and None not in answers:
            assert not self.is_running(group), "a worker may write to the client's memory still"

    def _leaves_worker(self, batch: Batch, kept: bool) -> None:
        del self.running[batch.id]
        holders = self.held[batch.id][1]
        holders.remove("worker")
        if kept:
            holders.add("kept")

    def _unhold(self, batch_id: int, holder: str = "") -> None:
        holders = self.held[batch_id][1]
        holders.discard(holder)
        if not holders:
            del self.held[batch_id]
