"""The thread that owns a synchronous client's socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import zmq

from batchyard.clients.calls import Call, Promise
from batchyard.clients.connection import (
    JOIN_TIMEOUT_S,
    REFUSED_PAUSE_S,
    RESET_PAUSE_S,
    Connection,
)
from batchyard.clients.region import ClientRegion
from batchyard.clients.relay import Relay
from batchyard.clients.search import Search
from batchyard.clients.session import CLOSED, Message, Session
from batchyard.clients.watch import Watch
from batchyard.wire.endpoints import check
from batchyard.wire.keys import ClientCurve

# Messages read before new calls are sent.
_DRAIN_MAX = 64
# epoll takes no timeout of more than some weeks.
_SLEEP_MAX_S = 3600.0


class IoThread:
    """Sends calls, receives answers, ends what is late. Its methods may be called by any thread.

    Who holds ``_role`` may touch the session and the connection. That is this thread, but for the
    time that it sleeps. Then a caller may send by itself (``add``), and with nothing in flight one
    that waits for its answer anyway may receive it too (``run``): each spares changes of threads,
    which cost more than all the rest.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        connect_timeout: float,
        reconnect_timeout: float,
        relay: Relay | None = None,
        curve: ClientCurve | None = None,
    ) -> None:
        """Connects to the first that answers. Raises ConfigurationError, or Unavailable when
        nobody does in time.

        With a ``relay`` it is one of several: it returns at once, and connects to its one endpoint
        whenever there is a server.
        """
        for endpoint in endpoints:
            check(endpoint)
        # Counts connections: it changes when the server may have.
        self.connections = 0
        # Threads on which futures' callbacks run.
        self.thread_ids: set[int] = set()
        # The memory that is shared with the server, if any is.
        self.region: ClientRegion | None = None
        self._endpoints = list(endpoints)
        self._connect_timeout = connect_timeout
        self._curve = curve
        self._session = Session(reconnect_timeout)
        self._session.relay = relay
        self._calls: deque[Call] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._unsent: deque[Message] = deque()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Whether the thread will look at its deques before it sleeps: then none need wake it.
        self._awake = True
        self._closing = False
        # Whether the thread looks at its deques no more.
        self._ended = False
        # Reentrant: callbacks of futures that end may use the client.
        self._lock = threading.RLock()
        # Reentrant only because such a lock knows who has it.
        self._role = threading.RLock()
        # Whether a caller with the role is at the session or the connection right now.
        self._is_touching = False
        self._connection: Connection | None = None
        self._watch: Watch | None = None
        # Tells a caller who has the role that this thread wants it.
        self._handover = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._connected: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="batchyard-client", daemon=True)
        self._thread.start()
        self._connected.result()

    def pick(self) -> IoThread:
        """See ``Servers``: there is no choice."""
        return self

    @property
    def endpoint(self) -> str:
        """Where the server is."""
        return self._endpoints[0] if self._connection is None else self._connection.endpoint

    @property
    def session(self) -> Session:
        """For those who only want to know."""
        return self._session

    @property
    def load(self) -> int:
        """How many requests are under way."""
        return self._session.load + len(self._calls)

    @property
    def is_settled(self) -> bool:
        """Whether all is known of the server that there is."""
        return self._connection is not None and self._connection.is_settled

    @property
    def doubt(self) -> str:
        """What may be the reason that no server answers; or empty."""
        return "" if self._connection is None else self._connection.doubt

    def add(self, call: Call) -> None:
        """Sends a call, with whatever else is ready when the thread gets to it."""
        # A caller that copies a large input has given the thread time to send the one before:
        # nothing would travel together, and waking the thread costs more than sending.
        copied = call.placement is not None and call.placement.copied
        if not copied or not self._send_now(call):
            self._calls.append(call)
            self._wake()

    def _send_now(self, call: Call) -> bool:
        """Sends a call on this thread; False when another is at it.

        By the local socket, but for tensors that may not lie in the region and are too large for
        it. Sending those by ZeroMQ takes note of what arrived there, of which the descriptor that
        the thread sleeps on then never tells: so it is woken to look.
        """
        if threading.get_ident() in self.thread_ids:
            # A callback: the session is in use by whoever called it.
            return False
        try:
            if not self._role.acquire(blocking=False):
                return False
            sent = must_wake = False
            if self._watch is not None and self._is_free():
                self._is_touching = sent = True
                earliest = self._session.next_deadline()
                self._send([call])
                self._watch.update(False, bool(self._unsent))
                connection = self._connection
                if connection is not None:
                    must_wake = connection.has_ended or connection.must_look
                must_wake = must_wake or call.deadline < earliest
                self._is_touching = False
            self._role.release()
        except BaseException:
            self._give_up_role()
            raise
        if must_wake:
            self._wake()
        return sent

    def _is_free(self) -> bool:
        """Whether a caller with the role may send at once, by the short way."""
        connection = self._connection
        return (
            connection is not None
            and connection.is_near
            and not (self._unsent or self._calls or self._commands)
        )

    def _send(self, calls: Sequence[Call]) -> None:
        """Sends calls, as far as the socket takes them."""
        self._unsent.extend(self._session.flush(calls, time.monotonic()))
        connection = self._connection
        while connection is not None and self._unsent and connection.send(*self._unsent[0]):
            self._unsent.popleft()

    def add_from_elsewhere(self, call: Call) -> None:
        """Sends a call that the thread of another server has."""
        self._calls.append(call)
        self._wake()

    def hand_over(self) -> None:
        """Has what waits here go to another server, if this one is gone."""
        self._commands.append(self._session.hand_over)
        self._wake()

    def leave(self) -> None:
        """Ends when everything has gone to another server."""
        self._commands.append(self._leave)
        self._wake()

    def _leave(self) -> None:
        self._session.lost(time.monotonic())
        self._closing = True

    def run(self, call: Call) -> None:
        """Sends a call, and does what it can for its answer; the call's promise is to be waited
        for."""
        try:
            if not self._role.acquire(blocking=False):
                self.add(call)
                return
            alone = self._drive(call)
            self._role.release()
        except BaseException:
            # Ctrl-C comes between any two steps, also just after the role was taken.
            self._give_up_role()
            raise
        if not alone:
            # What is in flight, or what others added meanwhile, is the thread's.
            self._wake()

    def _give_up_role(self) -> None:
        """Undoes what a caller with the role was interrupted in, if this thread is one."""
        if self._role._is_owned() and threading.get_ident() not in self.thread_ids:  # type: ignore[attr-defined]
            if self._is_touching and self._connection is not None:
                # Half of a message may be taken in or given out: nothing can be relied on.
                self._connection.give_up()
            self._is_touching = False
            self._role.release()
        self._wake()

    def _drive(self, call: Call) -> bool:
        """Sends a call and waits for its answer; False when the thread has to see to the rest."""
        connection, session = self._connection, self._session
        if connection is None or not self._is_free() or not session.is_idle:
            self._calls.append(call)
            return False
        self._is_touching = True
        session.gave_away = False
        self._send([call])
        self._is_touching = False
        poll = select.poll()
        poll.register(connection.local_fileno(), select.POLLIN)
        poll.register(self._handover, select.POLLIN)
        while not (
            self._unsent or connection.has_ended or call.promise.done() or session.gave_away
        ):
            left = session.next_deadline() - time.monotonic()
            ready = poll.poll(None if left > _SLEEP_MAX_S else max(left, 0.0) * 1e3)
            if any(fd == self._handover for fd, _ in ready):
                break
            self._is_touching = True
            message_in = connection.receive()
            if message_in is not None:
                session.receive(*message_in)
            session.expire(time.monotonic())
            self._is_touching = False
        return session.is_idle and not (self._unsent or connection.must_look)

    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None:
        """Asks the broker something."""
        self._commands.append(lambda: self._session.query(what, arguments, promise))
        self._wake()

    def cancel(self, call: Call) -> None:
        """Gives a call up."""
        self._commands.append(lambda: self._session.cancel(call))
        self._wake()

    def close(self) -> None:
        """Ends everything that waits and the thread. Idempotent."""
        self._closing = True
        self._awake = False
        self._wake()
        if threading.get_ident() not in self.thread_ids:
            self._thread.join()

    def _wake(self) -> None:
        if self._ended:
            # Nobody else is there any more to answer what was just added.
            self._end_all()
        elif not self._awake:
            # Before the write: after it the thread may be asleep again already.
            try:
                self._awake = True
                with self._lock:
                    if not self._ended:
                        os.eventfd_write(self._wakeup, 1)
            except BaseException:
                # Ctrl-C: the next caller has to wake it.
                self._awake = False
                raise

    def _run(self) -> None:
        self.thread_ids.add(threading.get_ident())
        context = zmq.Context()
        try:
            if self._session.relay is None:
                connection = self._connect(context)
            else:
                connection = self._await(context)
        except BaseException as error:
            self._end()
            context.destroy(linger=0)
            self._connected.set_exception(error)
            return
        self.region = self._session.region = connection.region
        self._connection = connection
        self._role.acquire()
        self._connected.set_result(None)
        try:
            self._serve(connection)
        finally:
            self._end()
            connection.close()
            context.term()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            os.close(self._wakeup)
            os.close(self._handover)
        self._end_all()

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> Connection:
        """The first of the endpoints whose broker answers."""
        search = Search(context, self._endpoints, self._connect_timeout, self._curve)
        try:
            with select.epoll() as epoll:
                for fd in search.filenos():
                    epoll.register(fd, select.EPOLLIN)
                while (connection := search.step()) is None:
                    epoll.poll(search.wait_s())
        finally:
            search.close()
        self._session.receive(search.welcome, [])
        self.connections = 1
        connection.join(search.welcome)
        until = time.monotonic() + JOIN_TIMEOUT_S
        while not connection.is_settled and (left := until - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(connection.local_fileno(), select.POLLIN)
            poll.poll(left * 1e3)
            self._receive(connection, 1)
        return connection

    def _await(self, context: zmq.Context[zmq.Socket[bytes]]) -> Connection:
        """A connection to a server that may come."""
        connection = Connection(context, self._endpoints[0], self._curve)
        connection.join(None)
        self._session.lost(time.monotonic())
        return connection

    def _serve(self, connection: Connection) -> None:
        with select.epoll() as epoll:
            self._watch = watch = Watch(epoll, connection, self._wakeup)
            while not self._closing:
                self._sleep(watch, connection)
                changes = connection.changes()
                # What came before a loss counts: then all of it is taken in first.
                self._receive(connection, None if changes else _DRAIN_MAX)
                for up in changes:
                    if up:
                        self.connections += 1
                        # Its answer says that there is a server, and what it takes.
                        connection.hello()
                    else:
                        self._unsent.clear()
                        self._session.lost(time.monotonic())
                        if connection.refusal is not None:
                            self._session.refuse(connection.refusal)
                        watch.forget()
                        self._reset(connection)
                        break
                self.region = self._session.region = connection.region
                self._send(self._take())
                self._session.expire(time.monotonic())

    def _reset(self, connection: Connection) -> None:
        """Connects anew, as soon as there are descriptors for it, and after a while where it was
        refused."""
        at = time.monotonic() + (0.0 if connection.refusal is None else REFUSED_PAUSE_S)
        while not self._closing:
            if time.monotonic() >= at:
                with contextlib.suppress(OSError, zmq.ZMQError):
                    connection.reset()
                    return
            self._session.flush(self._take(), time.monotonic())
            self._session.expire(time.monotonic())
            time.sleep(RESET_PAUSE_S)

    def _receive(self, connection: Connection, limit: int | None) -> None:
        """Takes in what was received, up to a limit; all of it when there is none."""
        for _ in itertools.repeat(None) if limit is None else range(limit):
            message = connection.receive()
            if message is None:
                return
            self._session.receive(*message)

    def _sleep(self, watch: Watch, connection: Connection) -> None:
        watch.update(
            idle=connection.is_near and self._session.is_idle and not self._unsent,
            has_unsent=bool(self._unsent),
        )
        self._awake = False
        if connection.has_input() or self._calls or self._commands or self._closing:
            timeout = 0.0
        else:
            timeout = max(self._session.next_deadline() - time.monotonic(), 0.0)
        self._role.release()
        try:
            ready = watch.wait(min(timeout, _SLEEP_MAX_S))
        finally:
            self._take_role()
        if self._wakeup in ready:
            os.eventfd_read(self._wakeup)
        self._awake = True

    def _take_role(self) -> None:
        if not self._role.acquire(blocking=False):
            os.eventfd_write(self._handover, 1)
            self._role.acquire()
            os.eventfd_read(self._handover)

    def _take(self) -> list[Call]:
        """The calls that were added since last asked; does what else was asked for."""
        while self._commands:
            self._commands.popleft()()
        return [self._calls.popleft() for _ in range(len(self._calls))]

    def _end_all(self) -> None:
        with self._lock:
            self._session.flush(self._take(), time.monotonic())
            self._session.fail(CLOSED)
