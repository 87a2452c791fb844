"""The client's side of the protocol, without a socket, a thread or a clock.

A driver (``client`` with a thread, ``async_client`` with an event loop) adds calls, sends what
``flush`` gives, hands in what it receives, and says what time it is. Times are
``time.monotonic()`` seconds.

Calls that are ready at the same moment for the same target travel as one message. No waiting is
added: whatever piled up while the last message was being sent goes with the next.

A session outlives the connection. When that is lost, what is unanswered is kept, and new calls
join it; when a server has said WELCOME again it is sent (see ``resending``). It fails when none
does in time, and so does what comes later, until one does.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from enum import Enum
from itertools import count
from typing import Any

from batchyard.clients.calls import (
    NEVER,
    Call,
    PassedOn,
    Promise,
    SentMessage,
    coalesce,
    fail,
    reject,
    resolve,
)
from batchyard.clients.deadlines import Deadlines
from batchyard.clients.encoding import encode_calls, region_places
from batchyard.clients.region import ClientRegion
from batchyard.clients.relay import Query, Relay
from batchyard.clients.resending import given_up, is_wanted
from batchyard.clients.unanswered import Unanswered
from batchyard.wire import protocol
from batchyard.wire.errors import (
    BatchyardError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
    from_wire,
)
from batchyard.wire.local import INLINE_NBYTES
from batchyard.wire.protocol import MessageType, Segment
from batchyard.wire.tensors import Buffer


class Via(Enum):
    """Which of a connection's two ways a message takes, if it has both."""

    ANY = "any"
    # It speaks of the region.
    LOCAL = "local"
    # It speaks of a message that took one of them.
    BOTH = "both"


Message = tuple[bytes, list[Buffer], Via]

# How long calls wait for a server after the connection to it was lost.
RECONNECT_TIMEOUT_S = 5.0
# A broker knows a message again by its id, also on another connection: no other client may happen
# to use the same. Encoded, all of these take the same 9 bytes.
_FIRST_MESSAGE_ID, _LAST_MESSAGE_ID = 1 << 40, 1 << 62

CONNECTION_LOST = Unavailable("the connection to the server was lost")
SHUTTING_DOWN = Unavailable("the server is shutting down")
CLOSED = Cancelled("the client was closed")


class Session:
    """The calls and messages of a connection, and of those that take its place when it is lost.

    Not safe to share between threads. It begins with a connection that is up.
    """

    def __init__(self, reconnect_timeout_s: float = RECONNECT_TIMEOUT_S) -> None:
        self.max_message_nbytes = NEVER
        # Whether the broker has said WELCOME since the connection was last lost.
        self.is_up = True
        # Whether it takes no more calls: it has said that it will end.
        self.is_draining = False
        # Where calls go that this server does not take, when there are several.
        self.relay: Relay | None = None
        # Whether any went there since last asked.
        self.gave_away = False
        # The connection's, if it has one.
        self.region: ClientRegion | None = None
        self._unanswered = Unanswered()
        self._sent = self._unanswered.messages
        self._queries: dict[int, Query] = {}
        self._outgoing: list[Message] = []
        self._message_ids = count(
            _FIRST_MESSAGE_ID + secrets.randbelow(_LAST_MESSAGE_ID - _FIRST_MESSAGE_ID)
        )
        self._deadlines = Deadlines()
        self._reconnect_timeout_s = reconnect_timeout_s
        self.epoch: Any = None
        # Whether it understands what callers name their requests.
        self._takes_tags = False
        # Nothing stands between a new call and the connection: it is up, what was sent by the last
        # one was sent again, and calls are taken.
        self._is_steady = True
        # What was sent is unknown to the server that is there.
        self._must_resend = False
        # Calls that came while the connection was lost.
        self._waiting: list[Call] = []
        # When the waiting for a server ends, and with what all calls are refused since.
        self._awaited_until = NEVER
        self._refusal: BatchyardError | None = None

    # What the driver sends

    def flush(self, calls: Sequence[Call], now: float) -> list[Message]:
        """The messages that carry ``calls``, and whatever else is to be sent."""
        if not self._is_steady:
            calls = self._admit(calls, now)
        by_target: dict[Any, list[Call]] = {}
        for call in calls:
            if call.cancelled:
                continue
            if call.deadline < NEVER:
                if call.deadline <= now:
                    fail(call, DeadlineExceeded("the deadline passed before sending"))
                    continue
                self._deadlines.add(call)
            key: Any = call.target
            if call.placement is not None:
                if call.placement.region is self.region:
                    key = key, call.placement.pattern
                else:
                    # Placed for a connection that was lost: its arrays can still be sent.
                    call.placement = None
            group = by_target.get(key)
            if group is None:
                by_target[key] = [call]
            else:
                group.append(call)
        messages = self._outgoing
        self._outgoing = []
        for group in by_target.values():
            for together in coalesce(group):
                messages += self._encode_each(together, now)
        return messages

    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None:
        """Asks the broker something; the next ``flush`` has the message."""
        query = Query(what, arguments, promise)
        if not self.is_up:
            if self.relay is not None and self.relay.take_query(self, query):
                return
            if self._refusal is not None:
                reject(promise, self._refusal)
                return
        query_id = next(self._message_ids)
        self._queries[query_id] = query
        if self.is_up and not self._must_resend:
            self._ask(query_id)

    def _ask(self, query_id: int) -> None:
        query = self._queries[query_id]
        header = protocol.encode(MessageType.QUERY, [query_id, query.what, query.arguments])
        if len(header) > protocol.HEADER_NBYTES_MAX:
            del self._queries[query_id]
            reject(query.promise, _too_long(header))
            return
        self._outgoing.append((header, [], Via.ANY))

    def cancel(self, call: Call) -> None:
        """Gives a call up; whoever waits for it was told."""
        call.cancelled = True
        if call.message_id in self._sent and self.is_up and not self._must_resend:
            self._give_up([(call.message_id, call.first, call.count)])

    def _give_up(self, segments: list[Segment]) -> None:
        self._outgoing.append((protocol.encode(MessageType.CANCEL, segments), [], Via.BOTH))

    def _admit(self, calls: Sequence[Call], now: float) -> Sequence[Call]:
        """Which of ``calls``, and of those that wait, are sent, when not all is as ever."""
        if self.is_up and self._must_resend:
            self._resend_all(now)
        if not self.takes_calls:
            calls = [call for call in calls if call.cancelled or not self._give_away(call)]
        if self._refusal is not None:
            for call in calls:
                fail(call, self._refusal)
            return []
        if not self.is_up:
            for call in calls:
                if call.deadline < NEVER:
                    self._deadlines.add(call)
            self._waiting += calls
            return []
        self._is_steady = True
        waiting, self._waiting = self._waiting, []
        return [*(call for call in waiting if not call.promise.done()), *calls]

    def _resend_all(self, now: float) -> None:
        """Sends again, to a server that is there since, what is unanswered."""
        self._must_resend = False
        for query_id in self._queries:
            self._ask(query_id)
        for message_id, sent in list(self._sent.items()):
            if not is_wanted(sent):
                self._unanswered.forget(message_id, sent)
                continue
            try:
                self._outgoing.append(self._encode_again(message_id, sent, now))
            except BatchyardError as error:
                for call in sent.calls:
                    fail(call, error)
                self._unanswered.forget(message_id, sent)
                continue
            self._unanswered.add_again(sent)
            segments = given_up(message_id, sent)
            if segments:
                # Right behind: the broker reads both before it runs any of it.
                self._give_up(segments)

    def _encode_again(self, message_id: int, sent: SentMessage, now: float) -> Message:
        """All of it in frames: the region that arrays may lie in is known to nobody any more."""
        header, frames = encode_calls(
            message_id, sent.calls, None, now, resent=True, with_tags=self._takes_tags
        )
        self._check_nbytes(header, frames)
        return header, frames, Via.ANY

    def _encode_each(self, calls: list[Call], now: float) -> list[Message]:
        """One message, or one a call when one of them cannot be sent: it fails alone."""
        try:
            return [self._encode(calls, now)]
        except BatchyardError as error:
            if len(calls) > 1:
                return [m for call in calls for m in self._encode_each([call], now)]
            fail(calls[0], error)
            return []

    def _encode(self, calls: list[Call], now: float) -> Message:
        message_id = next(self._message_ids)
        places = None if calls[0].placement is None else region_places(calls)
        header, frames = encode_calls(message_id, calls, places, now, with_tags=self._takes_tags)
        if places is not None and len(header) + sum(map(len, frames)) > INLINE_NBYTES:
            # What may not lie in the region is too large for the local socket.
            for call in calls:
                call.placement = None
            return self._encode(calls, now)
        self._check_nbytes(header, frames)
        place = 0
        for call in calls:
            call.message_id = message_id
            call.first = place
            place += call.count
        self._unanswered.add(message_id, calls)
        return header, frames, Via.ANY if places is None else Via.LOCAL

    def _check_nbytes(self, header: bytes, frames: list[Buffer]) -> None:
        if len(header) > protocol.HEADER_NBYTES_MAX:
            raise _too_long(header)
        nbytes = len(header) + sum(map(len, frames))
        if nbytes > self.max_message_nbytes:
            raise InvalidArgument(
                f"the request takes {nbytes} bytes, the server takes messages of at most "
                f"{self.max_message_nbytes} (max_message_mb under [broker])"
            )

    # What the driver receives

    def receive(self, header: Buffer, frames: list[Buffer]) -> None:
        """Takes a message of the broker in, and tells those who wait."""
        try:
            self._receive(header, frames)
        except Exception as error:
            # Another server, of another version, took the place of the one that said WELCOME, or
            # it is out of order: no answer can be relied on.
            reason = f"the server's answer cannot be read: {type(error).__name__}: {error}"
            self._reject_all(Internal(reason))

    def _receive(self, header: Buffer, frames: list[Buffer]) -> None:
        type_, body = protocol.decode(header)
        if type_ is MessageType.RESULT:
            self._unanswered.result(protocol.decode_result(body), frames)
        elif type_ is MessageType.ERROR:
            failure = protocol.decode_error(body)
            error = from_wire(failure.number, failure.message)
            if not failure.segments:
                self._reject_all(error)
            for segment in failure.segments:
                self._unanswered.failed(segment, error)
        elif type_ is MessageType.ANSWER:
            query_id, number, message, answer = body
            query = self._queries.pop(query_id, None)
            if query is not None:
                if number:
                    self._query_failed(query, from_wire(number, message))
                else:
                    resolve(query.promise, answer)
        elif type_ is MessageType.WELCOME:
            self.max_message_nbytes = body[1]
            self._takes_tags = len(body) > 3 and protocol.TAGS in body[3]
            self._welcomed(body[0])
        elif type_ is MessageType.DRAINING:
            self._drains()

    def _query_failed(self, query: Query, error: BatchyardError) -> None:
        # The models of this server may still load: another is asked, but only one.
        if isinstance(error, Unavailable) and not isinstance(query.promise, PassedOn):
            passed_on = query._replace(promise=PassedOn(query.promise))
            if self.relay is not None and self.relay.take_query(self, passed_on):
                return
        reject(query.promise, error)

    def _drains(self) -> None:
        self.is_draining = True
        self._refusal = SHUTTING_DOWN
        self._is_steady = False
        self._unanswered.take_refused = self._give_away
        if self.relay is not None:
            self.relay.changed(self)

    def _welcomed(self, epoch: Any) -> None:
        """A server is there; it may be another than before."""
        self.is_up = True
        self._awaited_until = NEVER
        if not (self.is_draining and epoch == self.epoch):
            self.is_draining = False
            self._refusal = None
            self._unanswered.take_refused = None if self.relay is None else self._pass_on
        self.epoch = epoch
        if self.relay is not None:
            self.relay.changed(self)

    # What others want to know

    @property
    def takes_calls(self) -> bool:
        """Whether a call would be sent at once."""
        return self.is_up and self._refusal is None

    @property
    def is_awaited(self) -> bool:
        """Whether a call would wait for the server, which is gone."""
        return not self.is_up and self._refusal is None

    @property
    def load(self) -> int:
        """The requests that were sent and have no answer, and the calls that are to be sent."""
        return self._unanswered.requests + len(self._waiting)

    @property
    def last_result(self) -> protocol.Result | None:
        """The last that the server said, when it was an answer to calls."""
        return self._unanswered.last_result

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be sent or received."""
        return not (self._sent or self._queries or self._outgoing or self._waiting)

    @property
    def has_output(self) -> bool:
        """Whether ``flush`` has something to be sent, without more calls."""
        return bool(self._outgoing) or (self.is_up and (self._must_resend or bool(self._waiting)))

    # Time, and the end

    def next_deadline(self) -> float:
        """When ``expire`` is due; infinity for never."""
        first = self._deadlines.first()
        return first if first < self._awaited_until else self._awaited_until

    def expire(self, now: float) -> None:
        """Ends calls whose deadline has passed, whatever the broker does."""
        self._deadlines.expire(now)
        if now >= self._awaited_until:
            self.refuse(
                Unavailable(
                    f"{CONNECTION_LOST.message} and no server answered within "
                    f"{self._reconnect_timeout_s:g} s"
                )
            )

    def lost(self, now: float) -> None:
        """The connection is gone: what is unanswered waits for another, as long as it may."""
        self._outgoing.clear()
        self._is_steady = False
        self._must_resend = True
        was_up, self.is_up = self.is_up, False
        for sent in self._sent.values():
            for call in sent.calls:
                call.placement = None
        if self.relay is not None:
            self.relay.changed(self)
        self.hand_over()
        if not self._reconnect_timeout_s:
            self.refuse(CONNECTION_LOST)
        elif was_up:
            self._awaited_until = now + self._reconnect_timeout_s

    def hand_over(self) -> None:
        """Gives what waits for a server that is gone to another, if one is there."""
        if self.is_up or self.relay is None:
            return
        waiting, self._waiting = self._waiting, []
        self._waiting += [
            call for call in waiting if not (call.promise.done() or self._give_away(call))
        ]
        self._unanswered.give_away(self, self.relay)
        queries, self._queries = self._queries, {}
        for query_id, query in queries.items():
            if not self.relay.take_query(self, query):
                self._queries[query_id] = query

    def _pass_on(self, call: Call) -> bool:
        """Another server may take what this one has no room for, or no model yet; but only once,
        or servers that are all full would pass it round."""
        if call.was_refused:
            return False
        call.was_refused = True
        return self._give_away(call)

    def _give_away(self, call: Call) -> bool:
        if self.relay is None or not self.relay.take(self, call):
            return False
        self.gave_away = True
        return True

    def refuse(self, error: BatchyardError) -> None:
        """Ends everything that waits, and what comes until a server is there that says WELCOME."""
        self.fail(error)
        self._awaited_until = NEVER
        self._refusal = error

    @property
    def refusal(self) -> BatchyardError | None:
        """What calls are refused with, or None."""
        return self._refusal

    def fail(self, error: BatchyardError) -> None:
        """Ends everything that waits for an answer."""
        self._outgoing.clear()
        self._deadlines.clear()
        self._reject_all(error)
        self._unanswered.clear()

    def _reject_all(self, error: BatchyardError) -> None:
        queries, self._queries = self._queries, {}
        waiting, self._waiting = self._waiting, []
        self._unanswered.reject_all(error)
        for call in waiting:
            fail(call, error)
        for query in queries.values():
            reject(query.promise, error)


def _too_long(header: bytes) -> InvalidArgument:
    """The server would not read on, nor know of which request it is."""
    return InvalidArgument(
        f"the names and shapes of the request take {len(header)} bytes, may take at most "
        f"{protocol.HEADER_NBYTES_MAX}"
    )
