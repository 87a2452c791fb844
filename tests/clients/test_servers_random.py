"""Random calls to servers that come, drain and vanish at random: each ends exactly once."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.sessions import NEVER, drain, make_call, promise_of, welcome
from support.virtual_sessions import Request, VirtualServer

from batchyard.clients.calls import Call, Promise
from batchyard.clients.region import ClientRegion
from batchyard.clients.servers import Servers
from batchyard.clients.session import Session
from batchyard.wire.errors import Cancelled, DeadlineExceeded, Unavailable

RECONNECT_TIMEOUT_S = 5.0
SHUTTING_DOWN = Unavailable("the server is shutting down")
SERVERS = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["call", "call", "call", "answer", "answer", "lose", "come", "drain", "cancel", "wait"]
        ),
        st.integers(0, SERVERS - 1),
    ),
    min_size=5,
    max_size=50,
)
ROWS = st.lists(st.integers(1, 3), min_size=1, max_size=3)
CALLS = st.lists(
    st.tuples(ROWS, st.none() | st.floats(0.1, 4), st.booleans()), min_size=1, max_size=4
)


class Driver:
    """Moves messages when it is told to; it has no sockets."""

    region: ClientRegion | None = None
    is_settled = True

    def __init__(self, relay: Any) -> None:
        self.session = Session(RECONNECT_TIMEOUT_S)
        self.session.relay = relay
        self.server = VirtualServer(self.session)
        self.drains = False
        self._calls: list[Call] = []

    @property
    def load(self) -> int:
        return self.session.load + len(self._calls)

    def add_from_elsewhere(self, call: Call) -> None:
        self._calls.append(call)

    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None:
        self.session.query(what, arguments, promise)

    def cancel(self, call: Call) -> None:
        self.session.cancel(call)

    def hand_over(self) -> None:
        self.session.hand_over()

    def leave(self) -> None: ...

    def flush(self, now: float) -> bool:
        """Sends what there is; whether there was any."""
        calls, self._calls = self._calls, []
        messages = self.session.flush(calls, now)
        for message in messages:
            before = set(self.server.open)
            self.server.refuse(self.server.take(message), Cancelled("given up"))
            if self.drains:
                new = [key for key in self.server.open if key not in before]
                drain(self.session)
                self.server.refuse(new, SHUTTING_DOWN)
        return bool(calls or messages)


class World:
    """Servers, calls, and the time."""

    def __init__(self) -> None:
        self.servers = Servers[Driver]()
        self.servers.drivers = [Driver(self.servers) for _ in range(SERVERS)]
        self.now = 0.0
        self.calls: list[Call] = []
        self.values: list[list[int]] = []
        self._epoch = 0
        for driver in self.servers.drivers:
            self.come(driver)
        self.servers.begin()
        self._values = iter(range(1, 1 << 30))

    def come(self, driver: Driver) -> None:
        self._epoch += 1
        driver.drains = False
        welcome(driver.session, self._epoch)
        self.settle()

    def call(self, rows: list[int], timeout: float | None, may_retry: bool) -> None:
        values = [next(self._values) for _ in range(sum(rows))]
        deadline = NEVER if timeout is None else self.now + timeout
        call = make_call(values, rows=rows, deadline=deadline)
        call.route.may_retry = may_retry
        self.calls.append(call)
        self.values.append(values)
        self.servers.pick().add_from_elsewhere(call)

    def cancel(self, call: Call) -> None:
        if not call.promise.done():
            call.promise.set_exception(Cancelled("by its caller"))
        self.servers.cancel(call)

    def lose(self, driver: Driver) -> None:
        driver.server.open.clear()
        driver.session.lost(self.now)
        self.settle()

    def settle(self) -> None:
        """What is to be sent is sent, wherever it goes."""
        for _ in range(10):
            if not sum(driver.flush(self.now) for driver in self.servers.drivers):
                # What went to another server is not asked of the one that it left.
                servers = [driver.server for driver in self.servers.drivers]
                rows = [row for server in servers for row in server.open.values()]
                asked = [value for values in rows for value in values]
                assert len(set(asked)) == len(asked)
                return
        raise AssertionError("calls go from server to server without end")

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for driver in self.servers.drivers:
            driver.session.expire(self.now)
        self.settle()


@settings(max_examples=200, deadline=None)
@given(STEPS, st.data())
def test_each_call_ends_once_whichever_server_ends(
    steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    world = World()
    for step, which in steps:
        driver = world.servers.drivers[which]
        if step == "call":
            for call in data.draw(CALLS):
                world.call(*call)
            if data.draw(st.booleans()):
                world.settle()
        elif step == "answer":
            requests: list[Request] = data.draw(st.permutations(sorted(driver.server.open)))
            driver.server.answer(requests[: data.draw(st.integers(0, len(requests)))])
        elif step == "lose":
            world.lose(driver)
        elif step == "come" and not driver.session.is_up:
            world.come(driver)
        elif step == "drain":
            driver.drains = True
        elif step == "cancel" and world.calls:
            world.cancel(data.draw(st.sampled_from(world.calls)))
        elif step == "wait":
            world.wait(data.draw(st.floats(0.1, 3)))
    world.settle()
    for driver in world.servers.drivers:
        driver.server.answer(sorted(driver.server.open))
    world.wait(RECONNECT_TIMEOUT_S)
    for driver in world.servers.drivers:
        driver.server.answer(sorted(driver.server.open))
        assert driver.session.is_idle
        assert driver.load == 0
    for call, values in zip(world.calls, world.values, strict=True):
        assert_ended(call, values)


def assert_ended(call: Call, values: list[int]) -> None:
    promise = promise_of(call)
    assert promise.done()
    if promise.error is not None:
        assert isinstance(promise.error, Cancelled | DeadlineExceeded | Unavailable)
        return
    results = [promise.result] if call.count == 1 else promise.result
    rows = iter(values)
    expected = [[10 * next(rows) for _ in range(n)] for n in call.rows or []]
    assert [outputs["y"].tolist() for outputs in results] == expected


def test_no_call_fails_while_a_server_is_there() -> None:
    world = World()
    one, two, three = world.servers.drivers
    for i in range(12):
        world.call([1], None, True)
        world.settle()
        if i == 3:
            world.lose(one)
        if i == 6:
            two.drains = True
        if i == 9:
            two.server.answer(sorted(two.server.open))
    for driver in (two, three):
        driver.server.answer(sorted(driver.server.open))
    assert [promise_of(call).error for call in world.calls] == [None] * 12
