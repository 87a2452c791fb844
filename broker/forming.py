"""Batches are made: of what waits in lanes, and of what runs again, as far as workers and the arena
have room."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from itertools import count

from batchyard.broker import policy
from batchyard.broker.events import WORKER, Action, Batch, Dispatch
from batchyard.broker.lane import Lane
from batchyard.broker.layout import BatchLayout, plan_layout
from batchyard.broker.ledger import Ledger, requests_of
from batchyard.broker.measures import DROPPED
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, by_client
from batchyard.broker.retries import Retry
from batchyard.broker.scheduler import Scheduler
from batchyard.broker.watchdog import Watchdog
from batchyard.broker.workers import WorkerState
from batchyard.wire.blocks import BlockAllocator
from batchyard.wire.errors import DeadlineExceeded, ResourceExhausted, Unavailable


class Forming:
    """Hands out blocks and batch ids. ``batches`` and ``workers`` belong to the state machine."""

    def __init__(
        self,
        ledger: Ledger,
        allocator: BlockAllocator,
        workers: dict[int, WorkerState],
        batches: dict[int, Batch],
        coming_back: Collection[int],
    ) -> None:
        self.scheduler = Scheduler(ledger.waiting, workers, coming_back)
        self.watchdog = Watchdog()
        self._ledger = ledger
        self._allocator = allocator
        self._workers = workers
        self._batches = batches
        self._batch_ids = count(1)

    def avoid_id(self, batch_id: int) -> None:
        """A batch of a broker before this one has that id."""
        self._batch_ids = count(max(next(self._batch_ids), batch_id + 1))

    def next_batches(self, now: float) -> Iterable[Action]:
        """Every batch that can go out now. What comes to fit into no arena is refused."""
        ledger = self._ledger
        if ledger.retries or self.scheduler.has_set_apart:
            yield from self._run_again(now)
            if self.scheduler.is_short_of_memory:
                return
        while ledger.waiting:
            chosen = self.scheduler.choose(now)
            if chosen is None:
                return
            lane, worker = chosen
            lane.bring_forward(now)
            start = self.scheduler.start_at(worker, now)
            size = policy.batch_size(lane, start, partial(lane.least, kind=worker.kind, now=now))
            dropped = list(self._drop(lane, size.drop_before, now))
            if dropped:
                # What is left may be worth waiting for.
                yield from dropped
                continue
            parts, layout = self._take(lane, size.rows, now)
            if layout is None:
                yield from self._refuse_too_large(lane, parts)
                continue
            batch = self._hand_over(lane, worker, parts, layout, now)
            if batch is None:
                # Smaller batches must not go first, or this one might never find room.
                lane.give_back(parts)
                return
            yield Dispatch(batch)

    def _run_again(self, now: float) -> Iterable[Action]:
        """What ran before and came to nothing."""
        retries = self._ledger.retries
        retries.is_fresh = False
        retries.risk_at = NEVER
        for retry in retries:
            lane = retry.parts[0].group.lane
            worker = self._worker_for(retry, lane, now)
            if worker is None:
                continue
            layout = self._fitted(plan_layout(lane, by_client(retry.parts), _rows(retry.parts)))
            batch = self._hand_over(lane, worker, retry.parts, layout, now)
            if batch is None:
                return
            batch.retry = retry
            retries.remove(retry)
            yield Dispatch(batch)
        if not retries.has_suspects:
            self.scheduler.release_apart()

    def _worker_for(self, retry: Retry, lane: Lane, now: float) -> WorkerState | None:
        if retry.is_suspect:
            may_risk = self._ledger.retries.may_risk(retry, now)
            return self.scheduler.worker_for_suspect(lane, may_risk)
        return self.scheduler.worker_for_retry(lane)

    def _drop(self, lane: Lane, due_before: float, now: float) -> Iterable[Action]:
        """Refuses what would be late, and what waits for too long in a queue that stands."""
        late = lane.drop_due_before(due_before) if due_before > -NEVER else []
        shed = lane.shed(now)
        if not (late or shed):
            return
        model = lane.model
        model.shed_at = now
        self._ledger.left_queue([*late, *shed])
        where = f"model {model.name!r}"
        if late:
            error = DeadlineExceeded(f"{where}: no batch can be done before the deadline any more")
            yield from self._ledger.refuse_late(late, error, DROPPED)
        if shed:
            model.shed += sum(part.count for part in shed)
            full = Unavailable(
                f"{where}: the queue stands, and this waited longer than queue_delay_target_micros "
                f"= {lane.parameters.queue_delay_target_micros}"
            )
            yield from self._ledger.refuse([(p.group, requests_of(p)) for p in shed], full)

    def _take(self, lane: Lane, max_rows: int, now: float) -> tuple[list[Part], BatchLayout | None]:
        """Takes the lane's next batch; no layout when its first request fits into no arena."""
        # Requests stay whole, if a batch can hold them.
        max_rows = max(max_rows, lane.first_rows)
        while True:
            parts = lane.take(max_rows, now)
            rows = _rows(parts)
            layout = plan_layout(lane, by_client(parts), rows)
            if layout.output_offset > self._allocator.nbytes:
                lane.give_back(parts)
                least = parts[0].least_rows
                if rows <= least:
                    return lane.parts[:1], None
                max_rows = max(rows // 2, least)
                continue
            return parts, self._fitted(layout)

    def _fitted(self, layout: BatchLayout) -> BatchLayout:
        if layout.nbytes <= self._allocator.nbytes:
            return layout
        # Outputs without room in the block travel in a memfd of their own.
        return BatchLayout(layout.rows, layout.padded_rows, layout.inputs, layout.output_offset, 0)

    def _refuse_too_large(self, lane: Lane, parts: list[Part]) -> Iterable[Action]:
        part = parts[0]
        error = ResourceExhausted(
            f"model {lane.model.name!r}: the request does not fit into the arena of "
            f"{self._allocator.nbytes} bytes; send fewer rows, or raise arena_mb under [pool]"
        )
        return self._ledger.refuse([(part.group, [part.first])], error)

    def _hand_over(
        self, lane: Lane, worker: WorkerState, parts: list[Part], layout: BatchLayout, now: float
    ) -> Batch | None:
        """A batch for the worker; None when the arena has no room for it."""
        block = self._allocator.allocate(layout.nbytes)
        if block is None:
            self.scheduler.memory_is_short(now)
            return None
        batch = Batch(
            next(self._batch_ids),
            lane,
            by_client(parts),
            layout.rows,
            layout,
            block,
            worker.id,
            now,
        )
        batch.holders.add(WORKER)
        batch.expected_s = lane.expected(layout.rows, worker.kind)
        batch.is_steady = lane.is_steady(layout.rows, worker.kind)
        batch.was_idle = not worker.in_flight
        self.watchdog.dispatched(batch, worker, now)
        self._batches[batch.id] = worker.batches[batch.id] = batch
        model = lane.model
        model.in_execution += 1
        model.batches += 1
        model.batch_rows[layout.rows] += 1
        model.padding_rows += layout.padded_rows - layout.rows
        for part in parts:
            part.group.running += 1
        self._ledger.left_queue(parts)
        self.scheduler.worker_changed(worker)
        if batch.expected_s is not None:
            self.scheduler.shares.note(model, batch.expected_s, now)
        return batch


def _rows(parts: list[Part]) -> int:
    return sum(part.rows for part in parts)
