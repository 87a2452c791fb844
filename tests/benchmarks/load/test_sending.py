"""Requests that leave when they are planned to, and outcomes of those that could not."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Iterator

import pytest

from batchyard.benchmarks.load.pacing import precise_loop, punctual, without_collections
from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.recorder import Recorder
from batchyard.benchmarks.load.records import Records, SharedRecords
from batchyard.benchmarks.load.sending import ClosedLoop, OpenLoop, Sender
from batchyard.benchmarks.load.targets.base import Send
from batchyard.wire.errors import Unavailable

COUNT = 40
STALL_S = 0.2


@pytest.fixture
def shared() -> Iterator[SharedRecords]:
    with SharedRecords(COUNT) as records:
        yield records


def planned(shared: SharedRecords, gap_s: float) -> Records:
    records = Records(shared.path, COUNT)
    for i in range(COUNT):
        records.planned[i] = i * gap_s
    return records


def sent_openly(
    shared: SharedRecords, send: Send, deadline_s: float | None = None, grace_s: float = 5.0
) -> tuple[Recorder, Sender]:
    """What comes of 40 requests, one a millisecond."""
    records = planned(shared, 0.001)

    async def run() -> tuple[float, Sender]:
        sender = Sender([[send]], [deadline_s], records)
        start_at = time.monotonic() + 0.01
        give_up_at = start_at + COUNT * 0.001 + grace_s
        with punctual(1):
            await OpenLoop(sender, COUNT, start_at, give_up_at).run()
        await sender.finish(give_up_at)
        return start_at, sender

    with without_collections(), asyncio.Runner(loop_factory=precise_loop) as runner:
        start_at, sender = runner.run(run())
    outcomes = shared.outcomes(start_at, COUNT)
    return Recorder(outcomes, [MixEntry("m", deadline_s=deadline_s)]), sender


def test_none_leaves_too_early(shared: SharedRecords) -> None:
    async def send(left: float | None) -> None:
        assert left is None

    recorder, sender = sent_openly(shared, send)
    assert (recorder.counts().planned, recorder.counts().in_time) == (COUNT, COUNT)
    assert recorder.lag.min() >= 0
    assert recorder.latency.min() >= 0
    assert sender.messages == {}


def test_a_stall_of_the_generator_is_everybodys_latency(shared: SharedRecords) -> None:
    """Coordinated omission: without it 1 of 40 would be slow, and the rest never planned."""
    stalls = iter([STALL_S])

    async def send(left: float | None) -> None:
        time.sleep(next(stalls, 0))

    recorder, _ = sent_openly(shared, send)
    assert recorder.counts().in_time == COUNT
    # The first took the generator's time; the others wait for the rest of it.
    assert recorder.latency[1:].min() >= STALL_S - COUNT * 0.001
    assert recorder.lag[1:].min() >= STALL_S - COUNT * 0.001 - 0.001


def test_the_deadline_counts_from_the_planned_time(shared: SharedRecords) -> None:
    lefts: list[float] = []

    async def send(left: float | None) -> None:
        assert left is not None
        lefts.append(left)
        time.sleep(STALL_S if len(lefts) == 1 else 0)

    recorder, _ = sent_openly(shared, send, deadline_s=0.1)
    counts = recorder.counts()
    # The first is answered, late. For all others it was too late when the stall was over: none is
    # sent without time left, and none is forgotten.
    assert len(lefts) == counts.sent == counts.late == 1
    assert lefts[0] <= 0.1
    assert counts.unanswered == COUNT - 1
    assert counts.planned == COUNT
    assert recorder.send_lag(9.0).max() >= STALL_S - COUNT * 0.001


def test_errors_are_gone_without_a_garbage_collection(shared: SharedRecords) -> None:
    errors: list[weakref.ref[Unavailable]] = []
    left_over: list[bool] = []

    async def send(left: float | None) -> None:
        left_over.append(any(error() is not None for error in errors))
        # As a client does: the frame has the future, that has the error, and that has the frame.
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        error = Unavailable("no")
        errors.append(weakref.ref(error))
        answer.set_exception(error)
        del error
        await answer

    recorder, _ = sent_openly(shared, send)
    assert recorder.counts().errors == {"UNAVAILABLE": COUNT}
    # Some may be under way at the same time; most are not.
    assert left_over.count(False) > 1


def test_every_error_has_its_code(shared: SharedRecords) -> None:
    errors = iter([Unavailable("first"), Unavailable("second"), OSError("broken")])

    async def send(left: float | None) -> None:
        for error in errors:
            raise error

    recorder, sender = sent_openly(shared, send)
    assert recorder.counts().errors == {"UNAVAILABLE": 2, "UNKNOWN": 1}
    assert sender.messages == {"UNAVAILABLE": "first", "UNKNOWN": "OSError: broken"}


def test_what_is_not_answered_is_given_up(shared: SharedRecords) -> None:
    cancelled = []

    async def send(left: float | None) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(left)
            raise

    recorder, _ = sent_openly(shared, send, grace_s=0.05)
    assert recorder.counts().unanswered == COUNT
    assert recorder.counts().sent == COUNT
    assert len(cancelled) == COUNT


def closed(shared: SharedRecords, send: Send, seconds: float) -> Recorder:
    """What comes of two callers."""
    start_at = time.monotonic()

    async def run() -> None:
        sender = Sender([[send]], [None], Records(shared.path, shared.capacity))
        end_at = start_at + seconds
        await ClosedLoop(sender, [0], start_at, end_at).run(2, end_at + 5)

    asyncio.run(run())
    return Recorder(shared.outcomes(start_at), [MixEntry("m")])


def test_callers_wait_for_their_answers(shared: SharedRecords) -> None:
    running = 0

    async def send(left: float | None) -> None:
        nonlocal running
        running += 1
        assert running <= 2
        await asyncio.sleep(0.02)
        running -= 1

    recorder = closed(shared, send, 0.1)
    counts = recorder.counts()
    assert 2 <= counts.planned <= 12
    assert counts.in_time == counts.planned
    # What was sent before the end is answered after it, and counts.
    assert recorder.planned.max() < 0.1


def test_a_closed_loop_has_room_for_so_many(shared: SharedRecords) -> None:
    async def send(left: float | None) -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="more than 40 requests"):
        closed(shared, send, 10.0)
