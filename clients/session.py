"""The client's side of the protocol, without a socket, a thread or a clock.

A driver (``client`` with a thread, ``async_client`` with an event loop) adds calls, sends what
``flush`` gives, hands in what it receives, and says what time it is. Times are
``time.monotonic()`` seconds.

Calls that are ready at the same moment for the same target travel as one message. No waiting is
added: whatever piled up while the last message was being sent goes with the next.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from enum import Enum
from itertools import count
from typing import Any

from batchyard.clients.calls import (
    NEVER,
    Call,
    Outputs,
    Promise,
    SentMessage,
    calls_of,
    coalesce,
    collect,
    hand_out,
    join_columns,
    outputs_in_region,
    region_places,
    reject,
    resolve,
    timeouts_us,
)
from batchyard.clients.region import ClientRegion
from batchyard.wire import dtypes, protocol
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
from batchyard.wire.tensors import LARGE_NBYTES, Buffer, decode, encode


class Via(Enum):
    """Which of a connection's two ways a message takes, if it has both."""

    ANY = "any"
    # It speaks of the region.
    LOCAL = "local"
    # It speaks of a message that took one of them.
    BOTH = "both"


Message = tuple[bytes, list[Buffer], Via]

# Deadlines that are kept before those of answered calls are dropped.
_DEADLINES_MIN = 64

CONNECTION_LOST = Unavailable("the connection to the server was lost")
CLOSED = Cancelled("the client was closed")


class Session:
    """One connection's calls and messages. Not safe to share between threads."""

    def __init__(self) -> None:
        self.max_message_nbytes = NEVER
        # The connection's, if it has one.
        self.region: ClientRegion | None = None
        self._sent: dict[int, SentMessage] = {}
        self._queries: dict[int, Promise] = {}
        self._outgoing: list[Message] = []
        self._message_ids = count(1)
        self._deadlines: list[tuple[float, int, Call]] = []
        self._deadlines_max = _DEADLINES_MIN
        self._tie = count()

    # What the driver sends

    def flush(self, calls: Sequence[Call], now: float) -> list[Message]:
        """The messages that carry ``calls``, and whatever else is to be sent."""
        by_target: dict[Any, list[Call]] = {}
        for call in calls:
            if call.cancelled:
                continue
            if call.deadline < NEVER:
                if call.deadline <= now:
                    reject(call.promise, DeadlineExceeded("the deadline passed before sending"))
                    continue
                self._remember_deadline(call)
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

    def _remember_deadline(self, call: Call) -> None:
        heapq.heappush(self._deadlines, (call.deadline, next(self._tie), call))
        if len(self._deadlines) >= self._deadlines_max:
            # What is answered must not wait for its deadline with all that it holds.
            self._deadlines = [entry for entry in self._deadlines if not entry[2].promise.done()]
            heapq.heapify(self._deadlines)
            self._deadlines_max = max(2 * len(self._deadlines), _DEADLINES_MIN)

    def query(self, what: str, arguments: dict[str, Any], promise: Promise) -> None:
        """Asks the broker something; the next ``flush`` has the message."""
        query_id = next(self._message_ids)
        self._queries[query_id] = promise
        header = protocol.encode(MessageType.QUERY, [query_id, what, arguments])
        self._outgoing.append((header, [], Via.ANY))

    def cancel(self, call: Call) -> None:
        """Gives a call up; whoever waits for it was told."""
        call.cancelled = True
        if call.message_id in self._sent:
            segment = (call.message_id, call.first, call.count)
            header = protocol.encode(MessageType.CANCEL, [segment])
            self._outgoing.append((header, [], Via.BOTH))

    def _encode_each(self, calls: list[Call], now: float) -> list[Message]:
        """One message, or one a call when one of them cannot be sent: it fails alone."""
        try:
            return [self._encode(calls, now)]
        except BatchyardError as error:
            if len(calls) > 1:
                return [m for call in calls for m in self._encode_each([call], now)]
            reject(calls[0].promise, error)
            return []

    def _encode(self, calls: list[Call], now: float) -> Message:
        message_id = next(self._message_ids)
        first = calls[0]
        rows: int | list[int] | None
        if first.rows is None:
            rows = None
        else:
            rows = [n for call in calls for n in call.rows or ()]
            if len(rows) == sum(call.total_rows for call in calls):
                rows = len(rows)
        places = None if first.placement is None else region_places(calls)
        frames: list[Buffer] = []
        for i, dtype in enumerate(first.input_dtypes):
            if places is not None and places.inputs[i] is not None:
                continue
            if len(calls) == 1:
                frames.append(encode(first.arrays[i], dtype))
            elif dtype == dtypes.STRING:
                frames.append(join_columns([call.arrays[i] for call in calls]))
            else:
                frames.append(b"".join([encode(call.arrays[i], dtype) for call in calls]))
        timeouts = timeouts_us(calls, now)
        header = protocol.encode_predict(message_id, first.target, rows, timeouts, places)
        nbytes = len(header) + sum(map(len, frames))
        if places is not None and nbytes > INLINE_NBYTES:
            # What may not lie in the region is too large for the local socket.
            for call in calls:
                call.placement = None
            return self._encode(calls, now)
        if nbytes > self.max_message_nbytes:
            raise InvalidArgument(
                f"the request takes {nbytes} bytes, the server takes messages of at most "
                f"{self.max_message_nbytes} (max_message_mb under [broker])"
            )
        place = 0
        for call in calls:
            call.message_id = message_id
            call.first = place
            place += call.count
        self._sent[message_id] = SentMessage(calls)
        return header, frames, Via.ANY if places is None else Via.LOCAL

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
            self._result(protocol.decode_result(body), frames)
        elif type_ is MessageType.ERROR:
            failure = protocol.decode_error(body)
            error = from_wire(failure.number, failure.message)
            if not failure.segments:
                # What was sent stays known: results may still share a message with it.
                self._reject_all(error)
            for segment in failure.segments:
                self._failed(segment, error)
        elif type_ is MessageType.ANSWER:
            query_id, number, message, answer = body
            promise = self._queries.pop(query_id, None)
            if promise is not None:
                if number:
                    reject(promise, from_wire(number, message))
                else:
                    resolve(promise, answer)
        elif type_ is MessageType.WELCOME:
            self.max_message_nbytes = body[1]

    def _result(self, result: protocol.Result, frames: list[Buffer]) -> None:
        if result.in_region:
            self._result_in_region(result)
            return
        try:
            outputs = {
                name: decode(frame, dtype, shape)
                for (name, dtype, shape), frame in zip(result.outputs, frames, strict=True)
            }
        except Exception as error:
            # ml_dtypes may be missing here.
            for segment in result.segments:
                self._failed(segment, Internal(f"the outputs cannot be read: {error}"))
            return
        if frames and len(frames[0]) >= LARGE_NBYTES:
            self._learn_outputs(result, frames)
        if len(result.segments) == 1 and result.segments[0][2] == 1:
            self._hand_over_whole(result.segments[0], outputs)
            return
        row = 0
        for i, (message_id, first, requests) in enumerate(result.segments):
            sent = self._sent.get(message_id)
            if sent is None:
                # How many rows are those of a message that is not known here cannot be told.
                unknown = Internal("the answer came with that of an unknown message")
                for segment in result.segments[i + 1 :]:
                    self._failed(segment, unknown)
                return
            row = hand_out(sent, first, requests, outputs, row)
            self._answered(message_id, sent, requests)

    def _learn_outputs(self, result: protocol.Result, frames: list[Buffer]) -> None:
        """So that later requests bring enough room in the region for them."""
        sent = self._sent.get(result.segments[0][0])
        if sent is not None and sent.calls:
            call = sent.calls[0]
            rows = result.outputs[0][2][0] if call.rows and result.outputs[0][2] else 1
            call.route.learn_outputs(sum(map(len, frames)), rows)

    def _result_in_region(self, result: protocol.Result) -> None:
        """Outputs that a worker wrote where each call said."""
        alone = len(result.segments) == 1 and result.segments[0][2] == 1
        for message_id, first, requests in result.segments:
            sent = self._sent.get(message_id)
            if sent is None:
                continue
            for call, _, _ in calls_of(sent, first, requests):
                try:
                    outputs = outputs_in_region(call, result.outputs, alone)
                except Exception as error:
                    # ml_dtypes may be missing here.
                    reject(call.promise, Internal(f"the outputs cannot be read: {error}"))
                else:
                    resolve(call.promise, outputs)
            self._answered(message_id, sent, requests)

    def _hand_over_whole(self, segment: Segment, outputs: Outputs) -> None:
        """All of a message is for one request, whatever its shapes."""
        message_id, first, _ = segment
        sent = self._sent.get(message_id)
        if sent is None:
            return
        for call, request, _ in calls_of(sent, first, 1):
            if call.count == 1:
                resolve(call.promise, outputs)
            else:
                collect(call, request, outputs)
        self._answered(message_id, sent, 1)

    def _failed(self, segment: Segment, error: BatchyardError) -> None:
        message_id, first, requests = segment
        sent = self._sent.get(message_id)
        if sent is None:
            return
        requests = requests or sent.count
        for call, _, _ in calls_of(sent, first, requests):
            reject(call.promise, error)
        self._answered(message_id, sent, requests)

    def _answered(self, message_id: int, sent: SentMessage, requests: int) -> None:
        sent.unanswered -= requests
        if sent.unanswered <= 0:
            self._sent.pop(message_id, None)
            for call in sent.calls:
                call.arrays = []
                call.placement = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be sent or received."""
        return not self._sent and not self._queries and not self._outgoing

    # Time, and the end

    def next_deadline(self) -> float:
        """When ``expire`` is due; infinity for never."""
        while self._deadlines and self._deadlines[0][2].promise.done():
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else NEVER

    def expire(self, now: float) -> None:
        """Ends calls whose deadline has passed, whatever the broker does."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, call = heapq.heappop(self._deadlines)
            reject(call.promise, DeadlineExceeded("the deadline passed before an answer came"))

    def fail(self, error: BatchyardError) -> None:
        """Ends everything that waits for an answer."""
        self._outgoing.clear()
        self._deadlines.clear()
        self._reject_all(error)
        self._sent.clear()

    def _reject_all(self, error: BatchyardError) -> None:
        queries, self._queries = self._queries, {}
        for message in list(self._sent.values()):
            for call in message.calls:
                reject(call.promise, error)
        for promise in queries.values():
            reject(promise, error)


def deadline_after(timeout: float | None, now: float) -> float:
    """The time that lies ``timeout`` seconds after ``now``; InvalidArgument when it is no time."""
    if timeout is None:
        return NEVER
    if not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArgument(f"timeout must be a number of seconds from 0, not {timeout!r}")
    return now + timeout
