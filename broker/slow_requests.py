"""The log of answers that took long, and of where the time went. Pure: the loop tells the time."""

from __future__ import annotations

from batchyard.broker.events import Batch, Deliver, Refuse
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import Part, RequestGroup
from batchyard.wire import log
from batchyard.wire.log_limit import EventLimit
from batchyard.wire.tags import tags_of

_EVENT = "slow_request"


class SlowRequests:
    """Looks at each answer, a run of a message's requests at a time: they came and went together.

    A few lines at once and one a second are written, with the number of those left out: a server
    that is slow must not be slowed by its log.
    """

    def __init__(self, threshold_s: float) -> None:
        self._threshold_s = threshold_s
        self._limit = EventLimit()

    def delivered(self, deliver: Deliver, now: float) -> None:
        """A batch was answered."""
        slow_before = now - self._threshold_s
        for part, _ in deliver.parts:
            if part.group.arrived_at < slow_before and _is_answered(part):
                self._tell_of_part(part, deliver.batch, now)

    def refused(self, refuse: Refuse, now: float) -> None:
        """Requests were answered with an error."""
        group = refuse.group
        if now - group.arrived_at > self._threshold_s:
            left_out = self._limit.admit(_EVENT, now)
            if left_out is None:
                return
            first = refuse.requests[0][0]
            count = sum(count for _, count in refuse.requests)
            fields = _fields(group, first, count, refuse.error.code, now)
            log.warning(_EVENT, **fields, **_left_out(left_out))

    def _tell_of_part(self, part: Part, batch: Batch, now: float) -> None:
        times = batch.times
        if times is None:
            # Of a batch that a broker before this one made, or before anybody looked.
            return
        left_out = self._limit.admit(_EVENT, now)
        if left_out is None:
            return
        spent = times.spent(part.group.arrived_at)
        log.warning(
            _EVENT,
            **_fields(part.group, part.first, part.count, "OK", now),
            queue_ms=spent.queue_s * 1e3,
            gather_ms=spent.gather_s * 1e3,
            wait_ms=spent.wait_s * 1e3,
            execute_ms=spent.execute_s * 1e3,
            reply_ms=(now - times.finished_at) * 1e3,
            rows=part.rows,
            batch_rows=batch.rows,
            padded_rows=batch.layout.padded_rows,
            batch=batch.id,
            worker=batch.worker_id,
            **_left_out(left_out),
        )


def _is_answered(part: Part) -> bool:
    """Not so while other pieces of a large request are missing."""
    split = part.group.split.get(part.first)
    return split is None or split.is_complete


def _fields(
    group: RequestGroup, first: int, count: int, code: str, now: float
) -> dict[str, object]:
    lane = group.lane
    fields: dict[str, object] = {
        "model": lane.model.name,
        "version": lane.model.version,
        "signature": lane.signature.name,
        "code": code,
        "requests": count,
        "total_ms": (now - group.arrived_at) * 1e3,
    }
    tags = tags_of(group.tags, first, count)
    request_ids = [tag.request_id for tag in tags if tag.request_id is not None]
    traces = [tag.trace_id for tag in tags if tag.trace_id is not None]
    if request_ids:
        fields["request_id"] = ",".join(request_ids)
    if traces:
        fields["trace_id"] = ",".join(traces)
    deadlines = group.deadlines
    deadline = group.earliest_deadline if deadlines is None else deadlines[first]
    if deadline < NEVER:
        fields["deadline_left_ms"] = (deadline - now) * 1e3
    return fields


def _left_out(count: int) -> dict[str, object]:
    return {"left_out": count} if count else {}
