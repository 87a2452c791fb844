"""Several servers as one: each call goes to one of them, and to another when that one is gone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from batchyard.clients.balancer import Balancer
from batchyard.clients.calls import Call, Promise
from batchyard.clients.io_thread import IoThread
from batchyard.clients.region import ClientRegion
from batchyard.clients.relay import Query
from batchyard.clients.search import PREFERENCE_S, nobody_answered
from batchyard.clients.session import Session
from batchyard.wire.errors import BatchyardError
from batchyard.wire.keys import ClientCurve

# Between two looks for servers that answer, when the client is made.
LOOK_S = 0.002


class Driver(Protocol):
    """What moves the messages of one server."""

    @property
    def region(self) -> ClientRegion | None: ...
    @property
    def session(self) -> Session: ...
    @property
    def load(self) -> int: ...
    @property
    def is_settled(self) -> bool: ...
    @property
    def doubt(self) -> str: ...
    def add_from_elsewhere(self, call: Call) -> None: ...
    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None: ...
    def cancel(self, call: Call) -> None: ...
    def hand_over(self) -> None: ...
    def leave(self) -> None: ...


D = TypeVar("D", bound=Driver)


class Servers(Generic[D]):
    """Chooses among drivers, each of which has a server of its own.

    Drivers may run in threads of their own, in which sessions ask this to take what they cannot
    serve: nothing here waits for anything.
    """

    def __init__(self) -> None:
        # Counts connections: it changes when what servers have may have.
        self.connections = 0
        self.drivers: list[D] = []
        # Of endpoints that led to servers that others lead to.
        self.left: list[D] = []
        self._counter = itertools.count(1)
        self._balancer = Balancer()
        # Sessions whose server is no other's, as far as is known.
        self._known: set[Session] = set()
        self._has_begun = False

    def pick(self) -> D:
        """Where the next call goes."""
        drivers = self.drivers
        servers = [(driver.session, driver.load) for driver in drivers]
        return drivers[self._balancer.choose(servers, time.monotonic())]

    @property
    def region(self) -> ClientRegion | None:
        """The memory that is shared with the first server that has some."""
        return next((d.region for d in self.drivers if d.region is not None), None)

    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None:
        """Asks the first server that takes calls; one that drains, when none does."""
        self._first().query(what, arguments, promise)

    def _first(self) -> D:
        drivers = self.drivers
        able = [d for d in drivers if d.session.takes_calls]
        able = able or [d for d in drivers if d.session.is_up]
        able = able or [d for d in drivers if d.session.is_awaited]
        return (able or drivers)[0]

    def cancel(self, call: Call) -> None:
        """Gives a call up, wherever it is."""
        for driver in self.drivers:
            driver.cancel(call)

    # Asked by sessions, in the threads of their drivers

    def has_other(self, session: Session) -> bool:
        """See ``Relay``."""
        return bool(self._others(session))

    def take(self, session: Session, call: Call) -> bool:
        """See ``Relay``."""
        others = self._others(session)
        if not others:
            return False
        servers = [(driver.session, driver.load) for driver in others]
        call.keeper = None
        others[self._balancer.choose(servers, time.monotonic())].add_from_elsewhere(call)
        return True

    def take_query(self, session: Session, query: Query) -> bool:
        """See ``Relay``."""
        others = self._others(session)
        if others:
            others[0].query(query.what, query.arguments, query.promise)
        return bool(others)

    def _others(self, session: Session) -> list[D]:
        """Those that take what a server does not; nothing waits for one that drained, but for
        others that may come back."""
        others = [driver for driver in self.drivers if driver.session is not session]
        able = [driver for driver in others if driver.session.takes_calls]
        if not able and session.is_draining:
            return [driver for driver in others if driver.session.is_awaited]
        return able

    def changed(self, session: Session) -> None:
        """See ``Relay``."""
        if session.is_up:
            self.connections = next(self._counter)
        if not self._has_begun:
            return
        self._leave_if_known(session)
        if session.takes_calls:
            for driver in self.drivers:
                if driver.session is not session and not driver.session.is_up:
                    driver.hand_over()

    def _leave_if_known(self, session: Session) -> None:
        """An endpoint is another way to a server that is there already: one is enough."""
        if not session.is_up or session in self._known:
            return
        for driver in self.drivers:
            other = driver.session
            if other in self._known and other.is_up and other.epoch == session.epoch:
                self._leave(session)
                return
        self._known.add(session)

    def _leave(self, session: Session) -> None:
        driver = next((d for d in self.drivers if d.session is session), None)
        if driver is not None:
            self.drivers = [d for d in self.drivers if d is not driver]
            self.left.append(driver)
            driver.leave()

    # The beginning

    @property
    def has_answered(self) -> bool:
        """Whether there is any server."""
        return any(driver.session.is_up for driver in self.drivers)

    @property
    def refusal(self) -> BatchyardError | None:
        """Why the first server does not let this client in, when none does."""
        refusals = [driver.session.refusal for driver in self.drivers]
        return refusals[0] if None not in refusals else None

    @property
    def doubts(self) -> list[str]:
        """What may be the reasons that none answers."""
        return [driver.doubt for driver in self.drivers]

    @property
    def have_all_answered(self) -> bool:
        """Whether nothing is left to wait for."""
        return all(driver.session.is_up and driver.is_settled for driver in self.drivers)

    def begin(self) -> None:
        """Those that have answered are all that are needed; the others may come later."""
        self._has_begun = True
        for driver in list(self.drivers):
            self._leave_if_known(driver.session)


class ThreadedServers(Servers[IoThread]):
    """Several servers for a synchronous client: a thread for each."""

    def __init__(
        self,
        endpoints: Sequence[str],
        connect_timeout: float,
        reconnect_timeout: float,
        curve: ClientCurve | None = None,
    ) -> None:
        """Raises ConfigurationError, or Unavailable when none answers in time."""
        super().__init__()
        try:
            for endpoint in endpoints:
                driver = IoThread([endpoint], connect_timeout, reconnect_timeout, self, curve)
                self.drivers.append(driver)
            until = time.monotonic() + connect_timeout
            while not self.has_answered:
                if (refusal := self.refusal) is not None:
                    raise refusal
                if time.monotonic() >= until:
                    raise nobody_answered(endpoints, connect_timeout, self.doubts)
                time.sleep(LOOK_S)
            until = min(until, time.monotonic() + PREFERENCE_S)
            while not self.have_all_answered and time.monotonic() < until:
                time.sleep(LOOK_S)
        except BaseException:
            self.close()
            raise
        self.begin()

    @property
    def thread_ids(self) -> set[int]:
        """Threads on which futures' callbacks run."""
        return set().union(*(driver.thread_ids for driver in self.drivers))

    def close(self) -> None:
        """Ends everything that waits, and the threads. Idempotent."""
        for driver in (*self.drivers, *self.left):
            driver.close()
