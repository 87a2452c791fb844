"""The broker under any sequence of events, in virtual time.

``VirtualBroker`` checks after each event that no request is answered twice, that no row is on two
workers at once, or goes out for a request that has its answer, that no batch has more rows than
allowed, that a suspect is alone on its worker, that no block is handed out while a worker, a
reply, a model or a lost worker's process may still touch it, that the last answer of a message
with reply space comes when no worker has its rows any more, and that what the broker counts is
what there is. Here is added that nothing waits without a reason, and that in the end every request
is answered, and counted once, and all memory is back.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from support.broker_builders import (
    ROW_NBYTES,
    make_model,
    make_report,
    make_signature,
    make_target,
)
from support.virtual_arena import make_region
from support.virtual_broker import VirtualBroker
from support.virtual_counts import assert_counted

from batchyard.broker import events
from batchyard.broker.lane import Lane
from batchyard.broker.policy import padded_rows, ripe_at
from batchyard.wire.errors import (
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from batchyard.wire.protocol import RegionPlaces
from batchyard.wire.tensors import encode_strings

ARENA_NBYTES = 24 * ROW_NBYTES
WORKERS_MAX = 3
STRINGS = make_signature((("x", "string", (None,)),), ())
MODELS: dict[str, dict[str, Any]] = {
    "padded": {"max_batch_size": 4, "batch_timeout_micros": 2000, "allowed_batch_sizes": (2, 4)},
    "threads": {"max_batch_size": 8, "batch_timeout_micros": 5000, "num_batch_threads": 1},
    "bounded": {"max_batch_size": 3, "max_enqueued_batches": 2, "timeout_s": 0.02},
    "single": {"enable_batching": False},
    "stateful": {"max_batch_size": 2},
    "strings": {"max_batch_size": 8, "batch_timeout_micros": 1000},
}
REPORTS = {
    name: make_report(
        *([STRINGS] if name == "strings" else []),
        name=name,
        stateful=name == "stateful",
        output_row_nbytes=8 if name == "threads" else 0,
    )
    for name in MODELS
}

REGIONS = {client: make_region(1 << 14, i) for i, client in enumerate([b"1", b"2", b"3"], 1)}

clients = st.sampled_from([b"1", b"2", b"3"])
timeouts = st.none() | st.sampled_from([0.0, 0.001, 0.003, 0.008, 0.02])
requests = st.lists(st.integers(1, 3) | st.integers(1, 12), min_size=1, max_size=4)
some = st.integers(0, 1 << 16)
errors = st.sampled_from([Internal, InvalidArgument, ResourceExhausted, NotFound])


class BrokerMachine(RuleBasedStateMachine):
    """Clients, workers and the supervisor do what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = VirtualBroker(
            *(make_model(name, **parameters) for name, parameters in MODELS.items()),
            arena_nbytes=ARENA_NBYTES,
            queue_nbytes_max=40 * ROW_NBYTES,
        )
        self.broker.start_worker(*REPORTS.values())
        self.coming_back: set[int] = set()
        # Models that nobody served when no worker was left, and since.
        self.abandoned: set[str] = set()

    # Clients

    @rule(
        model=st.sampled_from(sorted(set(MODELS) - {"single", "strings"})),
        client=clients,
        rows=requests,
        timeout=timeouts,
        each=st.none() | st.lists(timeouts, min_size=4, max_size=4),
        priority=st.sampled_from([0, 0, 0, 1]),
        replies=st.booleans(),
        in_region=st.booleans(),
    )
    def ask(
        self,
        model: str,
        client: bytes,
        rows: list[int],
        timeout: float | None,
        each: list[float | None] | None,
        priority: int,
        replies: bool,
        in_region: bool,
    ) -> None:
        target = make_target(model=model, priority=priority)
        timeout_s = timeout if each is None else each[: len(rows)]
        more: dict[str, Any] = {}
        if replies or in_region:
            # Side by side, so that batches of one message may be read in place.
            ends = [ROW_NBYTES * sum(rows[:i]) for i in range(len(rows))]
            spaces = [(8192 + end, 64) for end in ends]
            places = RegionPlaces([ends if in_region else None], spaces if replies else None)
            more = {"region": REGIONS[client], "places": places}
            if in_region:
                more["frames"] = []
        self._ask(model, *rows, target=target, client=client, timeout_s=timeout_s, **more)

    @rule(client=clients, rows=st.integers(1, 4), timeout=timeouts)
    def ask_single(self, client: bytes, rows: int, timeout: float | None) -> None:
        target = make_target(("x", "float32", (rows, 16)), model="single")
        self._ask("single", rows, target=target, whole=True, client=client, timeout_s=timeout)

    @rule(
        client=clients,
        rows=st.lists(st.sampled_from([1, 40, 300, 700, 1500]), min_size=1, max_size=12),
        each=st.booleans(),
        timeout=timeouts,
    )
    def ask_strings(
        self, client: bytes, rows: list[int], each: bool, timeout: float | None
    ) -> None:
        target = make_target(("x", "string", (None,)), model="strings")
        frames = [encode_strings([b"s" * n for n in rows])]
        sizes = [1] * len(rows) if each else [len(rows)]
        self._ask("strings", *sizes, target=target, frames=frames, client=client, timeout_s=timeout)

    def _ask(self, model: str, *rows: int, **more: Any) -> None:
        # All were loaded once: without a worker their requests wait for the next.
        try:
            self.broker.ask(*rows, **more)
        except Unavailable:
            assert model in self.abandoned
        else:
            assert model not in self.abandoned

    @rule(which=some, first=st.integers(0, 4), count=st.integers(0, 4))
    def cancel(self, which: int, first: int, count: int) -> None:
        if groups := list(self.broker.answers):
            self.broker.cancel(groups[-1 - which % min(len(groups), 6)], first, count)

    @rule(client=clients)
    def leave(self, client: bytes) -> None:
        self.broker.leave(client)

    # Workers

    @precondition(lambda self: len(self.broker.workers) < WORKERS_MAX)
    @rule(models=st.sets(st.sampled_from(sorted(MODELS)), min_size=2), room=st.integers(1, 2))
    def worker_ready(self, models: set[str], room: int) -> None:
        slot = self.coming_back.pop() if self.coming_back else None
        reports = [REPORTS[name] for name in models]
        self.broker.start_worker(*reports, concurrent_batches=room, slot=slot)
        self.abandoned -= models

    @precondition(lambda self: self.broker.running)
    @rule(
        which=some,
        kept=st.sampled_from([False, False, True]),
        row_nbytes=st.sampled_from([0, 0, 4, 64, 400]),
        replied=st.booleans(),
    )
    def batch_finished(self, which: int, kept: bool, row_nbytes: int, replied: bool) -> None:
        batch = self._pick(self.broker.running, which)
        nbytes = row_nbytes * batch.layout.padded_rows
        self.broker.finish(batch, output_nbytes=nbytes, kept=kept, delivered=False, replied=replied)

    @precondition(lambda self: self.broker.running)
    @rule(which=some, error=errors, kept=st.booleans())
    def batch_failed(self, which: int, error: type[Internal], kept: bool) -> None:
        self.broker.fail(self._pick(self.broker.running, which), error("it raised"), kept)

    @precondition(lambda self: self.broker.held_by("replies"))
    @rule(which=some)
    def delivered(self, which: int) -> None:
        waiting = self.broker.held_by("replies")
        self.broker.deliver(waiting[which % len(waiting)])

    @precondition(lambda self: self.broker.held_by("kept"))
    @rule(which=some)
    def released(self, which: int) -> None:
        waiting = self.broker.held_by("kept")
        self.broker.release(waiting[which % len(waiting)])

    @precondition(lambda self: self.broker.workers)
    @rule(which=some, retires=st.sampled_from([False, False, True]))
    def worker_goes(self, which: int, retires: bool) -> None:
        worker = sorted(self.broker.workers)[which % len(self.broker.workers)]
        if retires:
            self.broker.retire(worker)
        else:
            self.broker.lose(worker)

    @precondition(lambda self: self.broker.lost)
    @rule(which=some, comes_back=st.booleans())
    def worker_reaped(self, which: int, comes_back: bool) -> None:
        worker = sorted(self.broker.lost)[which % len(self.broker.lost)]
        if comes_back:
            self.coming_back.add(self.broker.lost[worker].slot)
        self.broker.reap(worker, comes_back)
        if not (self.broker.workers or self.broker.lost or self.coming_back):
            self.abandoned = set(MODELS)

    def _pick(self, batches: dict[int, Any], which: int) -> Any:
        return batches[sorted(batches)[which % len(batches)]]

    # Time

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.0005, 0.002, 0.01]))
    def time_passes(self, seconds: float) -> None:
        self.broker.tick(seconds)
        # Or the loop would spin: what can go has gone.
        assert self.broker.state.next_wakeup() > self.broker.now
        self._check_nothing_waits_in_vain()

    @rule()
    def the_loop_sleeps(self) -> None:
        wakeup = self.broker.state.next_wakeup()
        if wakeup < float("inf"):
            self.time_passes(max(0.0, wakeup - self.broker.now))

    def _check_nothing_waits_in_vain(self) -> None:
        broker = self.broker
        now = broker.now
        lanes = [lane for lane in broker.catalog.lanes.values() if lane.parts]
        for part in (part for lane in lanes for part in lane.parts):
            deadlines = part.group.deadlines or [part.group.earliest_deadline] * part.group.count
            assert min(deadlines[part.first : part.first + part.count]) > now
        stuck = [lane for lane in lanes if self._is_due(lane) and self._has_room(lane)]
        # Only memory may hold them up; and what is most urgent waits for it first, after what
        # runs again.
        runs_again = broker.waiting_rows - sum(lane.queued_rows for lane in lanes)
        if stuck and not runs_again:
            ripe = [lane for lane in lanes if ripe_at(lane) <= now]
            assert broker.largest_gap() < max(map(_nbytes_at_most, ripe))
        for lane in lanes:
            if lane not in stuck and self._has_room(lane):
                latest = lane.oldest_arrival + lane.batch_timeout_s
                assert broker.state.next_wakeup() <= latest

    def _is_due(self, lane: Lane) -> bool:
        now = self.broker.now
        is_full = sum(part.rows for part in lane.parts) >= lane.max_rows
        # The policy may think so earlier, because of a deadline, but never later.
        return is_full or lane.oldest_arrival + lane.batch_timeout_s <= now or ripe_at(lane) <= now

    def _has_room(self, lane: Lane) -> bool:
        model = lane.model
        threads = model.parameters.num_batch_threads
        batches = [*self.broker.running.values(), *self.broker.dying.values()]
        running = sum(batch.lane.model is model for batch in batches)
        if threads is not None and running >= threads:
            return False
        workers = model.workers[:1] if model.stateful else model.workers
        return any(
            self.broker.in_flight(worker) < self.broker.workers[worker].concurrent_batches
            and not self.broker.state.workers[worker].set_apart
            for worker in workers
        )

    def teardown(self) -> None:
        """Drains: whatever happened, every request is answered and all memory comes back."""
        broker = self.broker
        broker.handle(events.DrainStarted())
        for _ in range(1000):
            for worker in list(broker.lost):
                broker.reap(worker)
            for slot in self.coming_back:
                broker.start_worker(*REPORTS.values(), slot=slot)
            self.coming_back = set()
            for batch_id in broker.held_by("replies"):
                broker.deliver(batch_id)
            for batch_id in broker.held_by("kept"):
                broker.release(batch_id)
            for batch in list(broker.running.values()):
                broker.finish(batch)
            if broker.state.is_idle:
                break
            if not all(model.workers for model in broker.catalog.models.values()):
                broker.start_worker(*REPORTS.values())
            self.time_passes(0.005)
        for worker in list(broker.lost):
            broker.reap(worker)
        assert broker.is_all_answered
        assert_counted(broker)
        assert broker.state.queue_nbytes == 0
        assert broker.state.next_wakeup() == float("inf") or not broker.waiting_rows
        assert [model.queued_rows for model in broker.catalog.models.values()] == [0] * len(MODELS)
        assert not any(lane.parts or lane.queued_rows for lane in broker.catalog.lanes.values())
        assert not broker.held
        whole = broker.state.allocator.allocate(ARENA_NBYTES)
        assert whole is not None


def _nbytes_at_most(lane: Lane) -> int:
    """No batch that the lane could form now takes more."""
    groups = {id(part.group): part.group for part in lane.parts}.values()
    rows = min(sum(part.rows for part in lane.parts), lane.max_rows)
    padded = padded_rows(rows, lane.model.parameters.allowed_batch_sizes)
    if not lane.signature.batched:
        inputs = lane.parts[0].group.nbytes
    elif lane.model.name == "strings":
        inputs = sum(group.nbytes for group in groups) + 4 * len(lane.parts)
    else:
        inputs = padded * ROW_NBYTES
    return min(inputs + padded * lane.output_row_nbytes + 4 * ROW_NBYTES, ARENA_NBYTES)


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
