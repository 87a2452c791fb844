"""What is counted of a signature's requests and batches, for those who watch the server. Pure.

A request is counted once, by the code of its final answer, where that leaves the broker: by the
part of a batch or by the refusal that it is in, never request by request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from batchyard.wire.errors import BatchyardError
from batchyard.wire.protocol import Predict, Target

if TYPE_CHECKING:
    from batchyard.broker.catalog import Catalog
    from batchyard.broker.events import Deliver, Refuse
    from batchyard.broker.queue import Part, RequestGroup
    from batchyard.broker.replies import Reply

# Upper bounds of the histograms' buckets, in seconds: from what a lookup takes to what a large
# language model does, each about twice the one before.
BOUNDS_S = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),
    *(0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0),
)
OK = "OK"
# Why a request missed its deadline: refused when it came, dropped while there was still time but
# not enough to run, expired while it waited, answered too late.
REFUSED, DROPPED, EXPIRED, LATE = "refused", "dropped", "expired", "late"


class Histogram:
    """How often something took how long. ``counts`` has one more than there are bounds, for what
    is beyond the last."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """It took so long, so many times."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += times
        self.sum_s += seconds * times

    def to_wire(self) -> dict[str, object]:
        """As clients get it."""
        return {"counts": self.counts, "sum": self.sum_s}


class Measures:
    """One signature's. Latencies are those of requests that were answered with outputs."""

    __slots__ = ("codes", "execution", "queue", "request")

    def __init__(self) -> None:
        # From the start there is one that can be seen to increase.
        self.codes = Counter({OK: 0})
        # From a request's arrival to its answer, and to the batch that answered it.
        self.request = Histogram()
        self.queue = Histogram()
        # Of batches.
        self.execution = Histogram()

    def to_wire(self) -> dict[str, object]:
        """As clients get it."""
        return {
            "codes": dict(self.codes),
            "request_seconds": self.request.to_wire(),
            "queue_seconds": self.queue.to_wire(),
            "execution_seconds": self.execution.to_wire(),
        }


def count_refusal(refuse: Refuse) -> None:
    """Requests were answered with an error."""
    requests = sum(count for _, count in refuse.requests)
    refuse.group.lane.measures.codes[refuse.error.code] += requests


def count_unheard(refusals: Iterable[Refuse]) -> None:
    """Requests would have been answered with an error, but nobody was there to be told."""
    for refuse in refusals:
        count_refusal(refuse)


def count_answers(
    deliver: Deliver, failed: Sequence[tuple[Reply, BatchyardError]], now: float
) -> None:
    """A batch was answered just now; those ``failed`` replies gave errors instead."""
    batch = deliver.batch
    measures, model = batch.lane.measures, batch.lane.model
    parts: Iterable[Part] = (part for part, _ in deliver.parts)
    if failed:
        for reply, error in failed:
            measures.codes[error.code] += sum(count for _, _, count in reply.segments)
        parts = _without(parts, [reply for reply, _ in failed])
    complete: set[tuple[RequestGroup, int]] = set()
    request, queue = measures.request, measures.queue
    answered = 0
    for part in parts:
        group, count = part.group, part.count
        split = group.split.get(part.first) if group.split else None
        if split is not None:
            # Of a large request the last piece counts.
            piece = group, part.first
            if split.rows_left or split.failed or piece in complete:
                continue
            complete.add(piece)
        answered += count
        # As ``add`` does, without two calls for each message.
        took_s = now - group.arrived_at
        request.counts[bisect_left(BOUNDS_S, took_s)] += count
        request.sum_s += took_s * count
        waited_s = batch.dispatched_at - group.arrived_at
        queue.counts[bisect_left(BOUNDS_S, waited_s)] += count
        queue.sum_s += waited_s * count
        if group.earliest_deadline < now:
            model.misses[LATE] += len(part.late_requests(now))
    measures.codes[OK] += answered


def _without(parts: Iterable[Part], failed: Iterable[Reply]) -> Iterable[Part]:
    """The parts without the requests that were answered with an error."""
    failures = {
        (reply.client, message_id, request)
        for reply in failed
        for message_id, first, count in reply.segments
        for request in range(first, first + count)
    }
    for part in parts:
        group = part.group
        requests = range(part.first, part.first + part.count)
        bad = {r for r in requests if (group.client, group.message_id, r) in failures}
        yield from part.divide(bad)[0]


def count_turned_away(catalog: Catalog, predict: Predict, error: BatchyardError) -> None:
    """A message did not pass admission. It is counted for a signature that is served; what clients
    call what is not there must not make counters."""
    with suppress(BatchyardError):
        target = Target.decode(predict.target)
        model = catalog.named(target.model, target.version, target.label)
        if target.signature in model.measures:
            model.measures[target.signature].codes[error.code] += predict.count
