"""The batching policy: pure functions of what is queued and of what is known of workers.

The rules are those of ``docs/batching.md``; names are TensorFlow Serving's where it has them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

NEVER = float("inf")
# Kept free before deadlines, at least, and of the time that a batch takes.
_SLACK_S = 0.001
_SLACK_SHARE = 0.02
# Of the time that a row had when it came: what it does not spend on waiting for others.
_RESERVE_SHARE = 0.1
# For so many batches after something was shed there is said to be a backlog.
_SHEDDING_BATCHES = 10
_SHEDDING_S = 0.1
# How long before it is free a worker gets a full batch, at least, and of the time that takes.
_AHEAD_S = 0.002
_AHEAD_SHARE = 0.25
# The same of one that can still grow, at most, and of the time that the worker is busy.
_GROWING_AHEAD_S = 0.001
_GROWING_AHEAD_SHARE = 0.05
# A worker may take so much longer than predicted, at least.
_OVERRUN_S = 0.002


@dataclass(frozen=True, slots=True)
class BatchingParameters:
    """How a model's requests are batched. ``pool.config`` documents each and has the defaults.

    ``allowed_batch_sizes`` is empty or increasing and ends with ``max_batch_size``;
    ``num_batch_threads`` is None for as many batches as the workers have room for;
    ``length_buckets`` is empty or increasing. ``queue_delay_target_micros`` is 0 for none.
    """

    max_batch_size: int
    batch_timeout_micros: int
    max_enqueued_batches: int
    num_batch_threads: int | None
    allowed_batch_sizes: tuple[int, ...]
    pad_variable_length_inputs: bool
    length_buckets: tuple[int, ...]
    enable_large_batch_splitting: bool
    enable_batching: bool
    queue_delay_target_micros: int = 0


class LaneFacts(Protocol):
    """What the policy needs to know of a lane that holds rows. Times are seconds."""

    @property
    def queued_rows(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def sizes(self) -> Sequence[int]: ...
    @property
    def first_rows(self) -> int: ...
    @property
    def oldest_arrival(self) -> float: ...
    @property
    def earliest_deadline(self) -> float: ...
    @property
    def earliest_due(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def batch_timeout_s(self) -> float: ...
    @property
    def shed_at(self) -> float: ...
    @property
    def handing_s(self) -> float: ...
    def longest(self, rows: int) -> float | None: ...
    def rows_due_after(self, when: float, enough: int) -> int: ...


class WorkerFacts(Protocol):
    """What the policy needs to know of a worker that runs as many batches as it may.

    ``free_at``: when the first of them is predicted to end; ``running_s``: how long that was
    predicted to take.
    """

    @property
    def free_at(self) -> float: ...
    @property
    def running_s(self) -> float: ...


W = TypeVar("W", bound=WorkerFacts)
W_co = TypeVar("W_co", bound=WorkerFacts, covariant=True)


class RoomFacts(Protocol[W_co]):
    """The workers that serve the lane's model: those below their ``concurrent_batches``; those
    that run so many and nobody knows for how long; those of which that is predicted. Best first."""

    @property
    def idle(self) -> Iterable[W_co]: ...
    @property
    def unknown(self) -> Iterable[W_co]: ...
    @property
    def busy(self) -> Iterable[W_co]: ...


def slack(seconds: float) -> float:
    """What is kept free before a deadline, beside a batch that takes so long: clocks tick, other
    processes run, and no two runs are the same."""
    return _SLACK_S + _SLACK_SHARE * seconds


def ripe_at(lane: LaneFacts) -> float:
    """When the lane's next batch has waited long enough, whatever may still arrive.

    The latest is when one row more would make the most urgent one late, as in Symphony (2023):
    its deadline less the time of the larger batch, and a reserve: what is gained by waiting is
    little beside a miss. Where no time is known, a row waits at most half of the time that it had
    when it arrived.
    """
    if lane.queued_rows >= lane.max_rows:
        return -NEVER
    oldest = lane.oldest_arrival
    by_timeout = oldest + lane.batch_timeout_s
    deadline = lane.earliest_deadline
    if deadline == NEVER:
        return by_timeout
    longest = lane.longest(lane.queued_rows + 1)
    if longest is None:
        return min(by_timeout, oldest + (deadline - oldest) / 2)
    reserve = max(slack(longest), (deadline - oldest) * _RESERVE_SHARE)
    return min(by_timeout, deadline - longest - reserve)


def is_shedding(lane: LaneFacts, now: float, seconds: float) -> bool:
    """Whether something was refused or dropped lately; a batch takes so many seconds."""
    return now - lane.shed_at < max(_SHEDDING_BATCHES * seconds, _SHEDDING_S)


def urgency(lane: LaneFacts, is_hog: bool) -> tuple[int, bool, float, float]:
    """Sorts ripe lanes: priority, then models that have less than their share, then the earliest
    latest start, then arrival."""
    longest = lane.longest(min(lane.queued_rows, lane.max_rows)) or 0.0
    return (-lane.priority, is_hog, lane.earliest_due - longest, lane.oldest_arrival)


def handover_at(lane: LaneFacts, worker: WorkerFacts, now: float) -> float:
    """From when on a busy worker may have the lane's next batch; NEVER when not before its answer.

    It takes one batch ahead, just before it is predicted to be free, so that it does not idle for
    a round trip. The time before is longer for a full batch, to make ready what it reads: at least
    what that took when a worker was idle, as on a GPU the transfer to the card. One that can still
    grow closes later.
    """
    free_at, running_s = worker.free_at, worker.running_s
    if now > free_at + max(_OVERRUN_S, running_s):
        # It takes much longer than it should: nobody is to wait behind that.
        return NEVER
    if lane.queued_rows >= lane.max_rows:
        longest = lane.longest(lane.max_rows) or 0.0
        return free_at - max(_AHEAD_S, longest * _AHEAD_SHARE, lane.handing_s)
    if now > free_at:
        # It was to be free by now: what can grow had better wait for the answer.
        return NEVER
    return free_at - min(_GROWING_AHEAD_S, running_s * _GROWING_AHEAD_SHARE)


class Choice(NamedTuple, Generic[W]):
    """The worker that gets a batch, if any, and when: not later than ``at``, or NEVER if that
    takes an answer first."""

    worker: W | None
    at: float


def choose_worker(
    lane: LaneFacts, room: RoomFacts[W], now: float, reserved: Container[W] = ()
) -> Choice[W]:
    """The worker that gets the lane's next batch, of those that no more urgent lane waits for."""
    for worker in room.idle:
        return Choice(worker, now)
    if lane.queued_rows >= lane.max_rows:
        for worker in room.unknown:
            return Choice(worker, now)
    for worker in room.busy:
        if worker not in reserved:
            at = handover_at(lane, worker, now)
            if at < NEVER:
                return Choice(worker, max(at, now))
    return Choice(None, NEVER)


class Size(NamedTuple):
    """How many rows the next batch has, and when it is predicted to end: what is due before is
    dropped. -NEVER when nothing is."""

    rows: int
    drop_before: float


def batch_size(lane: LaneFacts, start: float, seconds: Callable[[int], float | None]) -> Size:
    """The next batch of a lane that begins at ``start``; a batch of n rows takes ``seconds(n)``.

    Rows that cannot be in time are dropped rather than have the batch shrink for them, as in Nexus
    (SOSP 2019): a batch that shrinks for one row has the next one late as well. Without a backlog,
    where others do not wait for the device, it shrinks, if that serves all.
    """
    rows = min(lane.queued_rows, lane.max_rows)
    head = lane.earliest_deadline
    longest = seconds(rows) if head < NEVER else None
    if longest is None:
        return Size(rows, -NEVER)
    is_backlog = lane.queued_rows > rows or is_shedding(lane, start, longest)
    spare = slack(longest) if is_backlog else 0.0
    if head >= start + longest + spare:
        return Size(rows, -NEVER)
    if not is_backlog:
        smaller = _shrunk(lane, start, seconds, rows)
        if smaller:
            return Size(smaller, -NEVER)
    best: Size | None = None
    best_rate = 0.0
    # Requests stay whole.
    least_rows = min(lane.first_rows, rows)
    for size in (*(size for size in lane.sizes if least_rows <= size < rows), rows):
        takes = seconds(size) or 0.0
        end = start + takes + (slack(takes) if is_backlog else 0.0)
        served = min(size, lane.rows_due_after(end, size))
        # Of what is not even half full it is only sure what it serves now. And a short batch
        # costs something too.
        rate = (size if 2 * served >= size else served) / max(takes, _SLACK_S)
        if served and rate >= best_rate:
            best, best_rate = Size(served, end), rate
    # Nothing can be in time at any size: what is too late for the smallest goes.
    return best or Size(least_rows, start + (seconds(least_rows) or 0.0))


def _shrunk(
    lane: LaneFacts, start: float, seconds: Callable[[int], float | None], rows: int
) -> int:
    """The largest batch that the most urgent row can be in, if the others can be in the next; 0
    when there is none."""
    head = lane.earliest_deadline
    for size in reversed(lane.sizes):
        if lane.first_rows <= size < rows and head >= start + (seconds(size) or 0.0):
            end = start + (seconds(size) or 0.0) + (seconds(rows - size) or 0.0)
            return size if lane.rows_due_after(end, rows - size) >= rows - size else 0
    return 0


def rows_in_time(
    lane: LaneFacts,
    deadline: float,
    now: float,
    starts: Sequence[float],
    seconds: Callable[[int], float | None],
    enough: int,
) -> int:
    """How many rows can be served by a deadline by workers that are free at ``starts``, increasing,
    or now, if they serve nothing else; ``enough`` when nothing is known. It does not count beyond.
    """
    for size in reversed(lane.sizes):
        takes = seconds(size)
        if takes is None:
            return enough
        spare = slack(takes)
        if is_shedding(lane, now, takes):
            # Else every row would be served at the very edge of its deadline, and a hiccup would
            # make a whole batch late. It costs nothing: the queue is never empty.
            spare = max(spare, (deadline - now) * _RESERVE_SHARE)
        rows, last_start = 0, deadline - spare
        while rows < enough:
            # The workers that have time for one more.
            last_start -= takes
            able = bisect_right(starts, last_start)
            if not able or last_start < now:
                break
            rows += able * size
        if rows:
            return rows
    return 0


def padded_rows(rows: int, allowed_batch_sizes: Sequence[int]) -> int:
    """The smallest allowed batch size that holds ``rows``; ``rows`` when all are allowed."""
    if not allowed_batch_sizes:
        return rows
    return allowed_batch_sizes[bisect_left(allowed_batch_sizes, rows)]


def bucketed_length(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``length``; ``length`` itself beyond the last bucket."""
    i = bisect_left(buckets, length)
    return buckets[i] if i < len(buckets) else length
