"""Random calls over connections that are lost at random: each ends exactly once, as it should."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.sessions import NEVER, make_call, promise_of, welcome
from support.virtual_sessions import VirtualServer

from batchyard.clients.calls import Call
from batchyard.clients.session import Session
from batchyard.wire.errors import Cancelled, DeadlineExceeded, Internal, Unavailable

RECONNECT_TIMEOUT_S = 5.0
STEPS = st.lists(
    st.sampled_from(["call", "call", "answer", "answer", "cancel", "lose", "welcome", "wait"]),
    min_size=5,
    max_size=40,
)
ROWS = st.lists(st.integers(1, 3), min_size=1, max_size=4)
CALLS = st.lists(st.tuples(ROWS, st.none() | st.floats(0.1, 4)), min_size=1, max_size=4)


class World:
    """A session, its calls, the broker, and the time."""

    def __init__(self) -> None:
        self.session = Session(RECONNECT_TIMEOUT_S)
        self.server = VirtualServer(self.session)
        self.now = 0.0
        self.calls: list[Call] = []
        self.values: list[list[int]] = []
        self._values = iter(range(1, 1 << 30))
        self.is_up = True

    def call(self, calls: list[tuple[list[int], float | None]]) -> None:
        """Calls that are ready together: the rows of their requests, and their timeouts."""
        made = []
        for rows, timeout in calls:
            values = [next(self._values) for _ in range(sum(rows))]
            deadline = NEVER if timeout is None else self.now + timeout
            made.append(make_call(values, rows=rows, deadline=deadline))
            self.values.append(values)
        self.calls += made
        self._flush(made)

    def _flush(self, calls: list[Call], runs: bool = False) -> None:
        messages = self.session.flush(calls, self.now)
        assert self.is_up or not messages
        for message in messages:
            cancelled = self.server.take(message)
            if not runs:
                self.server.refuse(cancelled, Cancelled("given up"))

    def cancel(self, call: Call) -> None:
        """As a future does: it has ended before the session learns it."""
        if not call.promise.done():
            call.promise.set_exception(Cancelled("by its caller"))
        self.session.cancel(call)
        self._flush([])

    def lose(self) -> None:
        self.is_up = False
        self.server.open.clear()
        self.session.lost(self.now)

    def come_back(self, runs: bool) -> None:
        self.is_up = True
        welcome(self.session)
        self._flush([], runs)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.session.expire(self.now)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.data())
def test_each_call_ends_once_whatever_is_lost(steps: list[str], data: st.DataObject) -> None:
    world = World()
    for step in steps:
        if step == "call":
            world.call(data.draw(CALLS))
        elif step == "answer":
            requests = data.draw(st.permutations(sorted(world.server.open)))
            number = data.draw(st.integers(0, len(requests)))
            if data.draw(st.integers(0, 5)):
                world.server.answer(requests[:number])
            else:
                world.server.refuse(requests[:number], Internal("it raised"))
        elif step == "cancel" and world.calls:
            world.cancel(data.draw(st.sampled_from(world.calls)))
        elif step == "lose":
            world.lose()
        elif step == "welcome" and not world.is_up:
            world.come_back(data.draw(st.booleans()))
        elif step == "wait":
            world.wait(data.draw(st.floats(0.1, 3)))
    if world.is_up:
        world.server.answer(sorted(world.server.open))
    else:
        world.wait(RECONNECT_TIMEOUT_S)
    assert world.session.is_idle
    for call, values in zip(world.calls, world.values, strict=True):
        assert_ended(call, values)


def assert_ended(call: Call, values: list[int]) -> None:
    promise = promise_of(call)
    assert promise.done()
    if promise.error is not None:
        assert isinstance(promise.error, Cancelled | DeadlineExceeded | Internal | Unavailable)
        return
    results = [promise.result] if call.count == 1 else promise.result
    rows = iter(values)
    expected = [[10 * next(rows) for _ in range(n)] for n in call.rows or []]
    assert [outputs["y"].tolist() for outputs in results] == expected
