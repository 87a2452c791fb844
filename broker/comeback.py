"""What comes back after a connection or a broker was lost: messages that are sent again meet what
of them still runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from batchyard.broker.events import Action, Batch, BatchFailed, Deliver, Forget
from batchyard.broker.ledger import Ledger, requests_of
from batchyard.broker.queue import Part, RequestGroup
from batchyard.broker.resumption import Orphan, Orphans, Outcome, part_of
from batchyard.broker.retries import Death
from batchyard.wire.errors import Cancelled, Unavailable


class Comeback:
    """``orphans`` are the batches of a broker before this one, ``batches`` those of this one."""

    def __init__(self, ledger: Ledger, orphans: Orphans, batches: Mapping[int, Batch]) -> None:
        self.orphans = orphans
        self._ledger = ledger
        self._batches = batches

    def resume(
        self, group: RequestGroup, before: RequestGroup | None, now: float
    ) -> Iterable[Action]:
        """What of a message that was sent again is running need not run again."""
        claims = self.orphans.claim(group)
        taken = [part for _, part in claims]
        group.lane.model.claimed_parts += len(claims)
        if before is not None:
            taken += self._take_over(group, before)
        for part in taken:
            group.lane.take_out(part)
            group.running += 1
        self._ledger.left_queue(taken)
        if not group.lane.model.may_retry:
            # Of one in pieces all have to be there.
            waiting = {part.first for part in group.lane.parts if part.group is group}
            running = {request for part in taken for request in requests_of(part)} - waiting
            others = [request for request in range(group.count) if request not in running]
            error = Unavailable(
                f"model {group.lane.model.name!r}: the connection was lost while this may have "
                "run; it is not tried again"
            )
            yield from self._ledger.refuse([(group, others)], error)
        for orphan in {orphan.id: orphan for orphan, _ in claims}.values():
            if orphan.outcome is not None:
                yield from self._settle(orphan, now)

    def _take_over(self, group: RequestGroup, before: RequestGroup) -> list[Part]:
        """The running parts of a message are those of the same one that was sent again."""
        taken = self.orphans.take_over(group, before)
        for batch in self._batches.values():
            for i, part in enumerate(batch.parts):
                if part.group is not before or not batch.is_running or before.replies is not None:
                    continue
                mine = part_of(group, part.first, part.count, part.row_start, part.rows)
                if mine is not None and group.lane is batch.lane:
                    batch.parts[i] = mine
                    before.running -= 1
                    taken.append(mine)
        self._ledger.abandon([before], Cancelled("it was sent again"))
        return taken

    def ended(self, orphan: Orphan, outcome: Outcome, now: float) -> Iterable[Action]:
        """Its worker answered."""
        self.orphans.ended(orphan, outcome, now)
        yield from self._settle(orphan, now)

    def _settle(self, orphan: Orphan, now: float) -> Iterable[Action]:
        """A batch of the broker before has ended: what was claimed of it so far is answered."""
        claims, orphan.claims = orphan.claims, []
        if claims:
            yield from self._settle_claims(orphan, claims, now)
        if not orphan.unclaimed_rows:
            self.orphans.forget(orphan)
            yield Forget(orphan.id)

    def _settle_claims(
        self, orphan: Orphan, claims: list[tuple[Part, int]], now: float
    ) -> Iterable[Action]:
        parts = [part for part, _ in claims]
        parts[0].group.lane.model.claimed_parts -= len(parts)
        if isinstance(orphan.outcome, BatchFailed):
            yield from self._ledger.came_to_nothing(parts, now, orphan.outcome.error)
            return
        placed = [found for part, row in claims for found in self._ledger.answered(part, row)]
        yield Deliver(orphan.as_batch(claims, now), placed)
        yield from self._ledger.left_worker(parts)

    def died(self, worker_id: int, why: str, now: float) -> Iterable[Action]:
        """What a worker that is gone had: who claimed it is a suspect."""
        for orphan in self.orphans.of_worker(worker_id):
            self.orphans.forget(orphan)
            claimed = [part for part, _ in orphan.claims]
            if claimed:
                claimed[0].group.lane.model.claimed_parts -= len(claimed)
                death = Death(why, was_suspect=False)
                yield from self._ledger.came_to_nothing(claimed, now, death)
            yield Forget(orphan.id)
        self.orphans.release_all(worker_id)

    def expire(self, now: float) -> Iterable[Action]:
        """Outputs that nobody came for in time are forgotten."""
        for orphan in self.orphans.expired(now):
            self.orphans.forget(orphan)
            yield Forget(orphan.id)
