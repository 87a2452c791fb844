"""The broker under any sequence of events in which brokers and workers die, versions change and
clients send again, in virtual time.

What ``VirtualBroker`` checks after each event holds over all of it: above all that no row is on two
workers at once, also when one of them had it of a broker that is gone, and that a version is not
unloaded under its requests. In the end every message has its answers.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from support.broker_builders import ROW_NBYTES, make_model, make_report, make_target
from support.virtual_broker import VirtualBroker

from batchyard.broker import events
from batchyard.broker.catalog import ServedModel
from batchyard.broker.queue import RequestGroup
from batchyard.wire.errors import Internal, InvalidArgument, NotFound, Unavailable

ARENA_NBYTES = 64 * ROW_NBYTES
WORKERS_MAX = 3
# Each a version of ``m`` and whether it is current; the others are always there.
SETS = [[(1, True)], [(1, True), (2, False)], [(1, False), (2, True)], [(2, True)]]
NAMES = ["m", "once", "slow"]

clients = st.sampled_from([b"1", b"2", b"3"])
requests = st.lists(st.integers(1, 3) | st.integers(1, 11), min_size=1, max_size=4)
some = st.integers(0, 1 << 16)
errors = st.sampled_from([Internal, InvalidArgument, NotFound])


def models(versions: list[tuple[int, bool]]) -> list[ServedModel]:
    # No queue is ever full.
    most: dict[str, Any] = {"max_enqueued_batches": 100_000}
    slow: dict[str, Any] = {"num_batch_threads": 2, "batch_timeout_micros": 1000}
    return [
        *(make_model(version=version, is_current=current, **most) for version, current in versions),
        make_model("once", retry=False, max_batch_size=2, **most),
        make_model("slow", timeout_s=0.02, **slow, **most),
    ]


class RestartMachine(RuleBasedStateMachine):
    """All but the broker's state machine does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.versions = SETS[0]
        self.broker = VirtualBroker(*models(self.versions), arena_nbytes=ARENA_NBYTES)
        self.before = self.broker
        # Messages that died with their broker.
        self.unanswered: list[RequestGroup] = []
        # Slots that will have another worker.
        self.coming_back: set[int] = set()
        self.ids = count(1 << 50)
        self._start(0)

    @property
    def is_open(self) -> bool:
        """Whether clients are heard."""
        return not self.broker.state.awaited and bool(self.broker.workers)

    def _start(self, slot: int, room: int = 1) -> None:
        reports = [
            # What is served no more as well: requests of it may wait still.
            *(make_report(version=version) for version in (1, 2)),
            make_report(name="once"),
            make_report(name="slow"),
        ]
        self.coming_back.discard(slot)
        self.broker.start_worker(*reports, slot=slot, concurrent_batches=room)

    # Clients

    @precondition(lambda self: self.is_open)
    @rule(
        name=st.sampled_from(NAMES),
        client=clients,
        rows=requests,
        timeout=st.sampled_from([None, None, None, 0.02]),
        messages=st.integers(1, 4),
    )
    def ask(
        self, name: str, client: bytes, rows: list[int], timeout: float | None, messages: int
    ) -> None:
        for _ in range(messages):
            target, id_ = make_target(model=name), next(self.ids)
            self._try(*rows, target=target, client=client, timeout_s=timeout, message_id=id_)
        self.time_passes(0.001)

    def _try(self, *rows: int, **more: Any) -> None:
        try:
            self.broker.ask(*rows, **more)
        except Unavailable:
            # It was unloaded, or the last worker is gone.
            found = [m for m in self.broker.catalog.models.values() if m.is_current]
            assert any(m.is_abandoned or not m.signatures for m in found)

    @precondition(lambda self: self.is_open and self.unanswered)
    @rule(client=clients, most=st.sampled_from([1, 99]))
    def send_again(self, client: bytes, most: int) -> None:
        for _ in range(min(most, len(self.unanswered))):
            self._resend(self.unanswered.pop(), b"again " + client)

    @precondition(lambda self: self.is_open and self.broker.expected_outstanding())
    @rule(which=some)
    def connect_again(self, which: int) -> None:
        groups = self.broker.expected_outstanding()
        group = groups[which % len(groups)]
        self._resend(group, group.client + b"'")

    def _resend(self, group: RequestGroup, client: bytes) -> None:
        rows = group.rows or [1] * group.count
        target = make_target(model=group.lane.model.name)
        message_id = group.message_id
        self._try(*rows, target=target, client=client, message_id=message_id, resent=True)

    @rule(which=some, first=st.integers(0, 4), requests=st.integers(0, 4))
    def cancel(self, which: int, first: int, requests: int) -> None:
        if groups := self.broker.expected_outstanding():
            self.broker.cancel(groups[which % len(groups)], first, requests)

    @rule(client=clients)
    def leave(self, client: bytes) -> None:
        self.broker.leave(client)

    # Workers

    @precondition(lambda self: self.is_open and len(self.broker.workers) < WORKERS_MAX)
    @rule(room=st.integers(1, 2))
    def worker_ready(self, room: int) -> None:
        taken = {worker.slot for worker in self.broker.workers.values()}
        free = (self.coming_back or set(range(WORKERS_MAX))) - taken
        self._start(min(free or {WORKERS_MAX}), room)

    @precondition(lambda self: self.broker.running)
    @rule(which=some, kept=st.sampled_from([False, False, True]), fails=st.none() | errors)
    def batch_ends(self, which: int, kept: bool, fails: type[Internal] | None) -> None:
        batch = self._pick(self.broker.running, which)
        if fails is None:
            self.broker.finish(batch, kept=kept, delivered=False)
        else:
            self.broker.fail(batch, fails("it raised"), kept)

    @precondition(lambda self: self._unended())
    @rule(which=some, kept=st.booleans(), fails=st.none() | errors)
    def orphan_ends(self, which: int, kept: bool, fails: type[Internal] | None) -> None:
        batch_id = self._pick(self._unended(), which)
        if fails is None:
            self.broker.finish_orphan(batch_id, kept)
        else:
            self.broker.fail_orphan(batch_id, fails("it raised"), kept)

    def _unended(self) -> dict[int, int]:
        """Orphans that workers that live have not answered."""
        orphans = self.broker.orphans.items()
        return {
            id_: id_
            for id_, orphan in orphans
            if not orphan.outcome and orphan.worker_id in self.broker.workers
        }

    @precondition(lambda self: self.broker.held_by("replies") or self.broker.held_by("kept"))
    @rule(which=some)
    def block_comes_back(self, which: int) -> None:
        if replies := self.broker.held_by("replies"):
            self.broker.deliver(replies[which % len(replies)])
        else:
            kept = self.broker.held_by("kept")
            self.broker.release(kept[which % len(kept)])

    @precondition(lambda self: self.broker.workers)
    @rule(which=some, retires=st.sampled_from([False, False, True]))
    def worker_goes(self, which: int, retires: bool) -> None:
        worker = sorted(self.broker.workers)[which % len(self.broker.workers)]
        if retires and worker not in self.broker.retired:
            self.broker.retire(worker)
        else:
            self.broker.lose(worker)

    @precondition(lambda self: self.broker.running)
    @rule(which=some)
    def worker_dies_of_a_batch(self, which: int) -> None:
        worker = self._pick(self.broker.running, which).worker_id
        slot = self.broker.workers[worker].slot
        self.broker.lose(worker)
        self.broker.reap(worker, comes_back=True)
        self._start(slot)
        self.time_passes(0.0)

    @precondition(lambda self: self.broker.lost)
    @rule(which=some)
    def worker_reaped(self, which: int) -> None:
        worker = self._pick({id_: id_ for id_ in self.broker.lost}, which)
        self.coming_back.add(self.broker.lost[worker].slot)
        self.broker.reap(worker, comes_back=True)

    def _pick(self, found: dict[int, Any], which: int) -> Any:
        return found[sorted(found)[which % len(found)]]

    # The broker, and what it serves

    @precondition(lambda self: not self.broker.state.awaited and self.broker.running)
    @rule(tell=st.integers(1, WORKERS_MAX), again=st.booleans())
    def broker_dies(self, tell: int, again: bool) -> None:
        self.before = self.broker
        self.unanswered += self.broker.expected_outstanding()
        self.broker = self.before.restart()
        for worker in list(self.before.workers)[:tell]:
            self.broker.resume(self.before, worker)
        if again and self.is_open:
            self.send_again(b"1", 99)

    @precondition(lambda self: self.broker.state.awaited)
    @rule(which=some, dies=st.sampled_from([False, False, True]))
    def worker_tells(self, which: int, dies: bool) -> None:
        awaited = {id_: id_ for id_ in self.broker.state.awaited if id_ not in self.broker.lost}
        if not awaited:
            return
        worker = self._pick(awaited, which)
        if dies:
            self.broker.lost[worker] = self.before.workers[worker]
            self.broker.lose(worker)
        else:
            self.broker.resume(self.before, worker)

    @rule(versions=st.sampled_from(SETS))
    def models_change(self, versions: list[tuple[int, bool]]) -> None:
        self.versions = versions
        self.broker.handle(events.ModelsChanged(models(versions)))

    # Time

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.0, 0.002, 0.03, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.broker.tick(seconds)
        # Or the loop would spin: what can go has gone.
        assert self.broker.state.next_wakeup() > self.broker.now
        self._check_nothing_waits_in_vain()

    def _check_nothing_waits_in_vain(self) -> None:
        state = self.broker.state
        idle = [worker for worker in state.workers.values() if not worker.in_flight]
        if state.awaited or not idle or self.broker.largest_gap() < ARENA_NBYTES // 2:
            return
        for model in self.broker.catalog.models.values():
            threads = model.parameters.num_batch_threads
            if not model.queued_rows or model.in_execution >= (threads or 99):
                continue
            # A worker without anything, whatever it is set apart for.
            free = [worker for worker in idle if worker.id in model.workers]
            latest = self.broker.now + model.parameters.batch_timeout_micros / 1e6
            assert not free or state.next_wakeup() <= latest or self._suspects_may_wait(model)

    def _suspects_may_wait(self, model: ServedModel) -> bool:
        """A worker that is set apart finishes what it has first, or has a suspect; and the last
        one of a version is not risked while another is on its way."""
        if any(worker.set_apart for worker in self.broker.state.workers.values()):
            return True
        return bool(self.coming_back or self.broker.lost) and len(model.workers) == 1

    def teardown(self) -> None:
        """Whatever happened, every message is answered and all memory comes back."""
        for worker in list(self.broker.state.awaited):
            if worker in self.before.workers and worker not in self.broker.lost:
                self.broker.resume(self.before, worker)
        for _ in range(1000):
            self._go_on()
            if self.is_open and not self.unanswered and self.broker.state.is_idle:
                break
            self.time_passes(0.001)
        self._go_on()
        broker = self.broker
        assert broker.is_all_answered
        broker.tick(11.0)
        assert not broker.orphans
        assert broker.state.queue_nbytes == 0
        assert not broker.held
        assert broker.state.is_quiet
        assert not any(model.is_retired for model in broker.catalog.models.values())
        assert broker.state.allocator.allocate(ARENA_NBYTES) is not None

    def _go_on(self) -> None:
        broker = self.broker
        for worker in list(broker.lost):
            slot = broker.lost[worker].slot
            broker.reap(worker, comes_back=True)
            self._start(slot)
        for batch_id in list(self._unended()):
            broker.finish_orphan(batch_id)
        for batch in list(broker.running.values()):
            broker.finish(batch)
        for batch_id in broker.held_by("replies"):
            broker.deliver(batch_id)
        for batch_id in broker.held_by("kept"):
            broker.release(batch_id)
        for slot in list(self.coming_back):
            self._start(slot)
        if not all(model.workers for model in broker.catalog.models.values()):
            self._start(9)
        while self.is_open and self.unanswered:
            self._resend(self.unanswered.pop(), b"last")


TestRestarts = RestartMachine.TestCase
TestRestarts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
