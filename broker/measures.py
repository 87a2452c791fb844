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
    parts: Iterable[tuple[Part, int]] = deliver.parts
    if failed:
        for reply, error in failed:
            measures.codes[error.code] += sum(count for _, _, count in reply.segments)
        parts = _without(parts, [reply for reply, _ in failed])
    complete: set[tuple[RequestGroup, int]] = set()
    # As ``Histogram.add`` does, without two calls for each message.
    request, queue = measures.request.counts, measures.queue.counts
    dispatched_at = batch.dispatched_at
    answered = 0
    arrived_s = 0.0
    for part, _ in parts:
        group, count = part.group, part.count
        if group.split and part.first in group.split:
            # Of a large request the last piece counts.
            split, piece = group.split[part.first], (group, part.first)
            if split.rows_left or split.failed or piece in complete:
                continue
            complete.add(piece)
        arrived_at = group.arrived_at
        answered += count
        arrived_s += arrived_at * count
        request[bisect_left(BOUNDS_S, now - arrived_at)] += count
        queue[bisect_left(BOUNDS_S, dispatched_at - arrived_at)] += count
        if group.earliest_deadline < now:
            model.misses[LATE] += len(part.late_requests(now))
    # Rounding must not have them shrink: to Prometheus they would have begun anew.
    measures.request.sum_s += max(now * answered - arrived_s, 0.0)
    measures.queue.sum_s += max(dispatched_at * answered - arrived_s, 0.0)
    measures.codes[OK] += answered


def _without(
    parts: Iterable[tuple[Part, int]], failed: Iterable[Reply]
) -> Iterable[tuple[Part, int]]:
    """The parts without the requests that were answered with an error."""
    failures = {
        (reply.client, message_id, request)
        for reply in failed
        for message_id, first, count in reply.segments
        for request in range(first, first + count)
    }
    for part, row in parts:
        group = part.group
        requests = range(part.first, part.first + part.count)
        bad = {r for r in requests if (group.client, group.message_id, r) in failures}
        yield from ((run, row) for run in part.divide(bad)[0])


def count_turned_away(catalog: Catalog, predict: Predict, error: BatchyardError) -> None:
    """A message did not pass admission. It is counted for a signature that is served; what clients
    call what is not there must not make counters."""
    with suppress(BatchyardError):
        target = Target.decode(predict.target)
        model = catalog.named(target.model, target.version, target.label)
        if target.signature in model.measures:
            model.measures[target.signature].codes[error.code] += predict.count
