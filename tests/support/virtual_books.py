"""Books of what a broker did, kept apart from its own: each of its actions is checked against them.

They follow every row: it waits, it is on one worker, or its outputs are there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from batchyard.broker import events
from batchyard.broker.catalog import Catalog
from batchyard.broker.events import Action, Batch, Deliver, Dispatch, Refuse
from batchyard.broker.measures import count_answers, count_refusal
from batchyard.broker.queue import Part, RequestGroup
from batchyard.broker.state import BrokerState
from batchyard.wire.blocks import Block
from batchyard.wire.work import Execute

LEFT = "LEFT"
WAITS, RUNS, DONE = "waits", "runs", "done"
# A request of a message.
Request = tuple[RequestGroup, int]
Version = tuple[str, int]


@dataclass(eq=False)
class Held:
    """A block that must not be used again, and why."""

    block: Block
    worker_id: int
    holders: set[str]


@dataclass(eq=False)
class VirtualWorker:
    """A worker that lives: what it serves, and the ids of its batches in the order they came."""

    concurrent_batches: int
    versions: set[Version]
    slot: int
    batches: list[int] = field(default_factory=list)

    def has_taken_up(self, batch_id: int) -> bool:
        """Whether it runs a batch already."""
        return batch_id in self.batches[: self.concurrent_batches]


@dataclass(eq=False)
class VirtualOrphan:
    """A batch of a broker that is gone. ``outcome`` is empty, ``finished`` or ``failed``."""

    execute: Execute
    worker_id: int
    outcome: str = ""
    claimed: set[int] = field(default_factory=set)
    # Claimed rows that are not answered.
    rows: list[tuple[RequestGroup, int]] = field(default_factory=list)

    def suits(self, group: RequestGroup) -> bool:
        """Whether it is of the version that a message is for, and no larger than its batches."""
        execute, model = self.execute, group.lane.model
        is_same = (execute.model, execute.version) == (model.name, model.version)
        return is_same and execute.rows <= group.lane.max_rows


class VirtualBooks:
    """See the module. ``answers`` has, for each request of each group that arrived, the code of its
    answer, ``OK``, ``LEFT`` when its client left, or None while there is none."""

    def __init__(self, state: BrokerState, catalog: Catalog) -> None:
        self.state = state
        self.catalog = catalog
        self.now = 100.0
        self.answers: dict[RequestGroup, list[str | None]] = {}
        self.messages: list[str] = []
        self.running: dict[int, Batch] = {}
        # Batches that a worker ran when it was lost: it may write until it is reaped.
        self.dying: dict[int, Batch] = {}
        self.taken_up: set[int] = set()
        self.held: dict[int, Held] = {}
        self.workers: dict[int, VirtualWorker] = {}
        self.lost: dict[int, VirtualWorker] = {}
        self.orphans: dict[int, VirtualOrphan] = {}
        # What the broker wanted done.
        self.killed: list[tuple[int, str]] = []
        self.retired: list[int] = []
        self.unloaded: list[Version] = []
        self.forgotten: list[int] = []
        # Rows that may have killed a worker, and batches of them, which must be alone.
        self.suspects: set[tuple[RequestGroup, int]] = set()
        self.isolated: set[int] = set()
        self.rows: dict[RequestGroup, list[str]] = {}
        # Requests that were cut because their outputs took too much memory.
        self.cut: set[Request] = set()

    # What is known

    @property
    def serving(self) -> dict[int, tuple[int, set[str]]]:
        """What each worker that lives runs at once, and the names of its models."""
        return {
            id_: (worker.concurrent_batches, {name for name, _ in worker.versions})
            for id_, worker in self.workers.items()
        }

    @property
    def waiting_rows(self) -> int:
        """Rows that are on no worker and not answered."""
        return sum(map(self._waiting, self.answers))

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
        return len(self.workers[worker].batches)

    def held_by(self, holder: str) -> list[int]:
        """Ids of batches whose blocks must not be used again because of ``holder``."""
        return sorted(batch_id for batch_id, held in self.held.items() if holder in held.holders)

    def largest_gap(self) -> int:
        """The most bytes side by side that no batch holds."""
        blocks = sorted(held.block for held in self.held.values())
        edges = [(0, 0), *blocks, (self.state.allocator.nbytes, 0)]
        return max(after - before - nbytes for (before, nbytes), (after, _) in pairwise(edges))

    def expected_outstanding(self) -> list[RequestGroup]:
        """Groups with a request that waits or runs."""
        return [group for group, answers in self.answers.items() if None in answers]

    def rows_of(self, group: RequestGroup, request: int) -> range:
        """The group's rows that are a request's."""
        return range(group.row_start(request), group.row_start(request + 1))

    def request_of(self, group: RequestGroup, row: int) -> int:
        """Whose a row is."""
        return next(i for i in range(group.count) if row < group.row_start(i + 1))

    def _waiting(self, group: RequestGroup) -> int:
        """Rows of a group that are on no worker, and that someone wants."""
        rows = self.rows[group]
        if WAITS not in rows:
            return 0
        answers, held_back = self.answers[group], self._held_back(group)
        wanted = [i for i in range(group.count) if answers[i] is None and i not in held_back]
        return sum(rows[row] == WAITS for i in wanted for row in self.rows_of(group, i))

    def _held_back(self, group: RequestGroup) -> set[int]:
        """Requests whose refusal waits for the return of the group's last batch."""
        assert not group.last_words or self.is_running(group)
        runs = [run for refusal in group.last_words for run in refusal.requests]
        return {request for first, count in runs for request in range(first, first + count)}

    # What is noted

    def note_group(self, group: RequestGroup) -> None:
        """A message arrives."""
        self.answers[group] = [None] * group.count
        self.rows[group] = [WAITS] * group.row_start(group.count)

    def mark(self, parts: list[Part], state: str) -> None:
        """Rows wait, run, or are done."""
        for part in parts:
            rows = self.rows.get(part.group)
            if rows is not None:
                rows[part.row_start : part.row_start + part.rows] = [state] * part.rows

    def note_loss(self, worker_id: int) -> None:
        """A worker is heard of no more."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        self.lost[worker_id] = worker
        for batch_id in worker.batches:
            if worker.has_taken_up(batch_id):
                self.taken_up.add(batch_id)
            if batch_id in self.running:
                self.dying[batch_id] = self.running.pop(batch_id)
        for held in self.held.values():
            if held.worker_id == worker_id and held.holders & {"worker", "kept"}:
                held.holders -= {"worker", "kept"}
                held.holders.add("unreaped")

    def note_end(self, worker_id: int) -> list[Request]:
        """A lost worker's process is gone; the requests that it may have died of."""
        self.lost.pop(worker_id, None)
        suspects: set[tuple[RequestGroup, int]] = set()
        for batch_id in [id_ for id_, b in self.dying.items() if b.worker_id == worker_id]:
            batch = self.dying.pop(batch_id)
            self.mark(batch.parts, WAITS)
            if batch_id in self.taken_up:
                suspects |= self.rows_in(batch)
        for orphan in [o for o in self.orphans.values() if o.worker_id == worker_id]:
            if not orphan.outcome:
                suspects |= self._release_claims(orphan)
                del self.orphans[orphan.execute.batch_id]
        self.suspects |= suspects
        requests = {(group, self.request_of(group, row)) for group, row in suspects}
        wanted = [(g, i) for g, i in requests if g in self.answers and self.answers[g][i] is None]
        for batch_id in [id_ for id_, held in self.held.items() if held.worker_id == worker_id]:
            self.unhold(batch_id, "unreaped")
            if batch_id in self.held and not self.held[batch_id].holders & {"replies"}:
                self.unhold(batch_id, *self.held[batch_id].holders)
        return wanted

    def _release_claims(self, orphan: VirtualOrphan) -> set[tuple[RequestGroup, int]]:
        """The claimed rows of an orphan that came to nothing wait again."""
        rows, orphan.rows = orphan.rows, []
        for group, row in rows:
            self.rows[group][row] = WAITS
        return set(rows)

    def rows_in(self, batch: Batch) -> set[tuple[RequestGroup, int]]:
        """The rows of a batch, each by its group's."""
        return {(p.group, p.row_start + i) for p in batch.parts for i in range(p.rows)}

    def note_claims(self, group: RequestGroup) -> None:
        """A message that is sent again: its rows that an orphan has need not run."""
        for orphan in self.orphans.values():
            for message_id, _, _, row_start, rows in orphan.execute.origins:
                if message_id != group.message_id or message_id in orphan.claimed:
                    continue
                if not orphan.suits(group) or orphan.execute.replies:
                    continue
                if WAITS not in self.rows[group][row_start : row_start + rows]:
                    # Another worker has them too.
                    continue
                if orphan.outcome != "failed":
                    self.rows[group][row_start : row_start + rows] = [RUNS] * rows
                    orphan.rows += [(group, row_start + i) for i in range(rows)]
            orphan.claimed.add(group.message_id)

    def unhold(self, batch_id: int, *holders: str) -> None:
        """A block is held for fewer reasons."""
        held = self.held[batch_id]
        held.holders.difference_update(holders)
        if not held.holders:
            del self.held[batch_id]

    # What the broker does

    def check(self, action: Action) -> None:
        """Checks and notes an action."""
        if isinstance(action, Dispatch):
            self._check_dispatch(action.batch)
        elif isinstance(action, Deliver):
            self._check_deliver(action)
            count_answers(action, (), self.now)
        elif isinstance(action, Refuse):
            self._check_refuse(action)
            count_refusal(action)
        elif isinstance(action, events.Kill):
            assert action.worker_id in self.workers
            self.note_loss(action.worker_id)
            self.killed.append((action.worker_id, action.why))
        elif isinstance(action, events.Retired):
            worker = self.workers.get(action.worker_id)
            assert worker is None or not worker.batches, "it has a batch"
            assert action.worker_id not in self.retired
            self.note_loss(action.worker_id)
            self.retired.append(action.worker_id)
        elif isinstance(action, events.Unload):
            self._check_unload(action.name, action.version)
        else:
            orphan = self.orphans.pop(action.batch_id, None)
            assert orphan is None or (orphan.outcome and not orphan.rows)
            self.forgotten.append(action.batch_id)

    def check_books(self) -> None:
        """What the state machine counts is what there is."""
        state = self.state
        waiting = {group: self._waiting(group) for group in self.answers}
        assert state.queue_nbytes == sum(group.nbytes for group, rows in waiting.items() if rows)
        rows_of: Counter[object] = Counter()
        for group, rows in waiting.items():
            rows_of[group.lane.model] += rows
        batches = [*self.running.values(), *self.dying.values()]
        running = Counter(batch.lane.model for batch in batches)
        for model in self.catalog.models.values():
            assert model.queued_rows == rows_of[model]
            assert model.in_execution == running[model]
        assert state.allocator.used_nbytes == sum(held.block.nbytes for held in self.held.values())
        assert state.is_idle == (not self.expected_outstanding() and not self.orphans)

    def _check_dispatch(self, batch: Batch) -> None:
        lane = batch.lane
        assert not self.state.awaited, "blocks may be in use that are not known"
        assert batch.rows == sum(part.rows for part in batch.parts)
        assert 0 < batch.rows <= (lane.parameters.max_batch_size if lane.signature.batched else 1)
        if lane.parameters.allowed_batch_sizes and lane.signature.batched:
            assert batch.layout.padded_rows in lane.parameters.allowed_batch_sizes
        self._check_worker(batch)
        start, stop = batch.block.offset, batch.block.offset + batch.block.nbytes
        assert batch.layout.nbytes <= batch.block.nbytes
        assert 0 <= start < stop <= self.state.allocator.nbytes
        for other in self.held.values():
            assert stop <= other.block.offset or other.block.offset + other.block.nbytes <= start
        assert batch.id not in self.held
        self.running[batch.id] = batch
        self.workers[batch.worker_id].batches.append(batch.id)
        self.held[batch.id] = Held(batch.block, batch.worker_id, {"worker"})
        for part in batch.parts:
            self._check_part(part, batch)

    def _check_worker(self, batch: Batch) -> None:
        model = batch.lane.model
        worker = self.workers[batch.worker_id]
        assert (model.name, model.version) in worker.versions
        batches = [*self.running.values(), *self.dying.values()]
        others = sum(b.lane.model is model for b in batches)
        assert others < (model.parameters.num_batch_threads or 1 << 30)
        # One batch ahead, at most.
        assert len(worker.batches) <= worker.concurrent_batches
        if self.rows_in(batch) & self.suspects:
            assert sum(part.count for part in batch.parts) == 1
            assert not worker.batches
            self.isolated.add(batch.id)
        assert self.isolated.isdisjoint(worker.batches)

    def _check_part(self, part: Part, batch: Batch) -> None:
        """Whole requests that wait, or rows of one that no batch could hold."""
        group = part.group
        assert group.lane.model is batch.lane.model
        assert part.rows > 0
        start, stop = part.row_start, part.row_start + part.rows
        assert self.rows[group][start:stop] == [WAITS] * part.rows
        self.mark([part], RUNS)
        row = start
        for request in range(part.first, part.first + part.count):
            assert self.answers[group][request] is None
            deadline = group.deadlines[request] if group.deadlines else group.earliest_deadline
            assert deadline > self.now
            whole = self.rows_of(group, request)
            if part.count > 1 or not self._is_large(group, request):
                assert row == whole.start
                row = whole.stop
            else:
                assert whole.start <= row < row + part.rows <= whole.stop
                row += part.rows
        assert row == stop

    def _is_large(self, group: RequestGroup, request: int) -> bool:
        rows = len(self.rows_of(group, request))
        return rows > group.lane.max_rows or (group, request) in self.cut

    def _check_deliver(self, deliver: Deliver) -> None:
        starts = {}
        row = 0
        for part in deliver.batch.parts:
            for i in range(part.rows):
                starts[part.group, part.row_start + i] = row + i
            row += part.rows
        orphan = self.orphans.get(deliver.batch.id)
        if orphan is not None:
            starts = self._places(orphan)
            orphan.rows = []
        for part, row in deliver.parts:
            # These rows of the group are those rows of the batch.
            for i in range(part.rows):
                assert starts.pop((part.group, part.row_start + i)) == row + i
            rows = self.rows[part.group]
            assert DONE not in rows[part.row_start : part.row_start + part.rows]
            self.mark([part], DONE)
            for request in range(part.first, part.first + part.count):
                if all(rows[row] == DONE for row in self.rows_of(part.group, request)):
                    self._answer(part.group, request, "OK")

    def _places(self, orphan: VirtualOrphan) -> dict[tuple[RequestGroup, int], int]:
        places = {}
        place = 0
        for message_id, _, _, row_start, rows in orphan.execute.origins:
            for row in range(row_start, row_start + rows):
                for group, claimed in orphan.rows:
                    if group.message_id == message_id and claimed == row:
                        places[group, row] = place
                place += 1
        return places

    def _check_refuse(self, refuse: Refuse) -> None:
        self.messages.append(refuse.error.message)
        for first, requests in refuse.requests:
            assert requests > 0
            for request in range(first, first + requests):
                self._answer(refuse.group, request, refuse.error.code)

    def _check_unload(self, name: str, version: int) -> None:
        batches = [*self.running.values(), *self.dying.values()]
        groups = [group for group in self.answers if self._waiting(group)]
        groups += [group for orphan in self.orphans.values() for group, _ in orphan.rows]
        lanes = [batch.lane for batch in batches] + [group.lane for group in groups]
        assert (name, version) not in [(lane.model.name, lane.model.version) for lane in lanes]
        for worker in self.workers.values():
            worker.versions.discard((name, version))
        self.unloaded.append((name, version))

    def _answer(self, group: RequestGroup, request: int, code: str) -> None:
        answers = self.answers[group]
        assert answers[request] is None, f"a second answer, {code}, after {answers[request]}"
        answers[request] = code
        if group.replies is not None and None not in answers:
            assert not self.is_running(group), "a worker may write to the client's memory still"
