"""Batches that workers had when the broker before this one died.

Each lies in a block that must not be handed out, and has rows of requests that clients send again.
Such a request is not run again: it claims its rows, and gets their outputs when they are there.
What nobody claims in time is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchyard.broker.events import Batch, BatchFailed, BatchFinished
from batchyard.broker.lane import Lane
from batchyard.broker.layout import BatchLayout
from batchyard.broker.ledger import UNIQUE_ID_MIN
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, RequestGroup
from batchyard.wire.blocks import Block, BlockAllocator
from batchyard.wire.work import Execute

# How long outputs wait for their clients to come back.
_PATIENCE_S = 10.0

Outcome = BatchFinished | BatchFailed


@dataclass(slots=True, eq=False)
class Orphan:
    """A batch of a broker that is gone. ``claims`` pairs parts with their first row in it."""

    execute: Execute
    worker_id: int
    overdue_at: float
    claims: list[tuple[Part, int]] = field(default_factory=list)
    outcome: Outcome | None = None
    expires_at: float = NEVER
    # Rows that a client may come for.
    unclaimed_rows: int = 0

    @property
    def id(self) -> int:
        """The batch's."""
        return self.execute.batch_id

    def suits(self, lane: Lane) -> bool:
        """Whether its rows may be a lane's: of the same version, and not more than may run again
        together, as parameters are now."""
        execute, model = self.execute, lane.model
        ran = execute.model, execute.version, execute.signature
        wanted = model.name, model.version, lane.signature.name
        return ran == wanted and execute.rows <= lane.max_rows

    def as_batch(self, claims: list[tuple[Part, int]], now: float) -> Batch:
        """What claimed rows were run as, by a lane that is known now. It has no block any more."""
        execute = self.execute
        batch = Batch(
            id=self.id,
            lane=claims[0][0].group.lane,
            parts=[part for part, _ in claims],
            rows=execute.rows,
            layout=BatchLayout(execute.rows, execute.padded_rows, (), 0, 0),
            block=Block(0, 0),
            worker_id=self.worker_id,
            dispatched_at=now,
            is_running=False,
        )
        batch.alone = execute.alone
        return batch


@dataclass(frozen=True, slots=True)
class _Rows:
    """Whose rows of an orphan these are: rows ``row_start`` and on of the message's, which are
    those of requests ``first`` and on; in the batch they begin at ``row``."""

    orphan: Orphan
    first: int
    count: int
    row_start: int
    rows: int
    row: int


class Orphans:
    """Those that are known, by their ids and by the messages that their rows came in."""

    def __init__(self, allocator: BlockAllocator) -> None:
        self._allocator = allocator
        self._all: dict[int, Orphan] = {}
        self._by_message: dict[int, list[_Rows]] = {}
        # Blocks of them that a worker, or a model that kept its inputs, may still touch.
        self._blocks: dict[int, tuple[int, Block]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def get(self, batch_id: int) -> Orphan | None:
        """The orphan of that id."""
        return self._all.get(batch_id)

    def add(self, worker_id: int, execute: Execute, overdue_at: float) -> None:
        """A worker has it still. Raises ValueError when its block is taken."""
        self.keep(worker_id, execute.batch_id, *execute.block)
        orphan = self._all[execute.batch_id] = Orphan(execute, worker_id, overdue_at)
        row = 0
        for message_id, first, count, row_start, rows in execute.origins:
            # Outputs that went into a region of the old broker's cannot be sent by this one.
            if not execute.replies and message_id >= UNIQUE_ID_MIN:
                place = _Rows(orphan, first, count, row_start, rows, row)
                self._by_message.setdefault(message_id, []).append(place)
                orphan.unclaimed_rows += rows
            row += rows

    def keep(self, worker_id: int, batch_id: int, offset: int, nbytes: int) -> None:
        """A block is in use by a worker. Raises ValueError when it is taken."""
        block = Block(offset, nbytes)
        self._allocator.reserve(block)
        self._blocks[batch_id] = worker_id, block

    def release(self, batch_id: int) -> bool:
        """Nobody touches the block of a batch any more; whether there was one."""
        _, block = self._blocks.pop(batch_id, (0, None))
        if block is not None:
            self._allocator.free(block)
        return block is not None

    def release_all(self, worker_id: int) -> None:
        """A worker is gone."""
        for batch_id in [b for b, (owner, _) in self._blocks.items() if owner == worker_id]:
            self.release(batch_id)

    def claim(self, group: RequestGroup) -> list[tuple[Orphan, Part]]:
        """The rows of a message that need not run, with the orphans that have them. Others of it,
        as those that another version has, are nobody's from now on."""
        claimed: list[tuple[Orphan, Part]] = []
        for place in self._by_message.pop(group.message_id, ()):
            place.orphan.unclaimed_rows -= place.rows
            if place.orphan.id not in self._all or not place.orphan.suits(group.lane):
                continue
            part = part_of(group, place.first, place.count, place.row_start, place.rows)
            if part is not None and not any(_overlap(part, other) for _, other in claimed):
                place.orphan.claims.append((part, place.row))
                claimed.append((place.orphan, part))
        return claimed

    def take_over(self, group: RequestGroup, before: RequestGroup) -> list[Part]:
        """What a message had claimed is another's, which is the same one; but what another version
        runs is nobody's."""
        taken = []
        for orphan in self._all.values():
            if not orphan.suits(group.lane):
                continue
            for i, (part, row) in enumerate(orphan.claims):
                if part.group is before:
                    mine = part_of(group, part.first, part.count, part.row_start, part.rows)
                    if mine is not None:
                        orphan.claims[i] = mine, row
                        before.running -= 1
                        taken.append(mine)
        return taken

    def rows_of(self, group: RequestGroup) -> int:
        """How many rows of a message can be claimed."""
        places = self._by_message.get(group.message_id, ())
        return sum(place.rows for place in places if place.orphan.suits(group.lane))

    def of_worker(self, worker_id: int) -> list[Orphan]:
        """What a worker has not answered."""
        return [o for o in self._all.values() if o.worker_id == worker_id and o.outcome is None]

    def worker_lost(self, worker_id: int) -> None:
        """What a worker has is no longer waited for."""
        for orphan in self.of_worker(worker_id):
            orphan.overdue_at = NEVER

    def ended(self, orphan: Orphan, outcome: Outcome, now: float) -> None:
        """Its worker answered."""
        orphan.outcome = outcome
        orphan.expires_at = now + _PATIENCE_S
        if not outcome.kept:
            self.release(orphan.id)

    def forget(self, orphan: Orphan) -> None:
        """Nobody can claim it any more."""
        self._all.pop(orphan.id, None)

    @property
    def next_expiry(self) -> float:
        """When something is to be forgotten, or is overdue."""
        return min((min(o.expires_at, _overdue(o)) for o in self._all.values()), default=NEVER)

    def expired(self, now: float) -> list[Orphan]:
        """Those that nobody claimed in time."""
        return [orphan for orphan in self._all.values() if orphan.expires_at <= now]

    def overdue(self, now: float) -> set[int]:
        """Workers that hang."""
        return {o.worker_id for o in self._all.values() if _overdue(o) <= now}


def _overlap(a: Part, b: Part) -> bool:
    return a.row_start < b.row_start + b.rows and b.row_start < a.row_start + a.rows


def _overdue(orphan: Orphan) -> float:
    return orphan.overdue_at if orphan.outcome is None else NEVER


def part_of(group: RequestGroup, first: int, count: int, row_start: int, rows: int) -> Part | None:
    """Requests, or rows of one, of a message that was sent again; None when it has no such."""
    if count < 1 or first + count > group.count:
        return None
    start, stop = group.row_start(first), group.row_start(first + count)
    if row_start < start or row_start + rows > stop:
        return None
    is_whole = (row_start, rows) == (start, stop - start)
    if not is_whole and (count != 1 or first not in group.split):
        return None
    return Part(group, first, count, row_start, rows)
