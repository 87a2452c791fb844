"""The messages that were sent and are not answered whole, and whose each answer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from batchyard.clients.calls import (
    Call,
    Outputs,
    SentMessage,
    calls_of,
    collect,
    fail,
    hand_out,
    outputs_in_region,
    resolve,
)
from batchyard.clients.relay import Relay
from batchyard.wire.errors import BatchyardError, Internal, InvalidArgument, NotFound, Unavailable
from batchyard.wire.protocol import Result, Segment
from batchyard.wire.tensors import LARGE_NBYTES, Buffer, decode

if TYPE_CHECKING:
    from batchyard.clients.session import Session

MAY_HAVE_RUN = Unavailable(
    "the connection to the server was lost; the request may have run, and must not run twice"
)


class Unanswered:
    """Hands answers out to the calls that wait for them."""

    def __init__(self) -> None:
        # By message id.
        self.messages: dict[int, SentMessage] = {}
        # Requests without an answer.
        self.requests = 0
        self.last_result: Result | None = None
        # Takes a call that the server refuses, if another server may take it; False if not.
        self.take_refused: Callable[[Call], bool] | None = None

    def add(self, message_id: int, calls: list[Call]) -> None:
        """A message is sent."""
        self.messages[message_id] = sent = SentMessage(calls)
        self.requests += sent.count

    def add_again(self, sent: SentMessage) -> None:
        """A message is sent to a server that knows nothing of it: it answers all requests."""
        self.requests += sent.count - sent.unanswered
        sent.unanswered = sent.count

    def clear(self) -> None:
        """No answer is to come any more."""
        self.messages.clear()
        self.requests = 0

    def give_away(self, session: Session, relay: Relay) -> None:
        """Gives all calls to another server: this one is gone. They may have run here."""
        if not relay.has_other(session):
            return
        for message_id, sent in list(self.messages.items()):
            for i, call in enumerate(sent.calls):
                if call.cancelled or call.promise.done():
                    continue
                if not call.route.may_retry:
                    fail(call, MAY_HAVE_RUN)
                    continue
                sent.calls[i] = call.left_behind()
                if not relay.take(session, call):
                    # The other is gone too, at this very moment: it waits for this one.
                    sent.calls[i] = call
            if all(call.promise.done() for call in sent.calls):
                self.forget(message_id, sent)

    def result(self, result: Result, frames: list[Buffer]) -> None:
        """Takes in a RESULT message."""
        self.last_result = result
        if result.timings:
            self._note_timings(result)
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
                self.failed(segment, Internal(f"the outputs cannot be read: {error}"))
            return
        if frames and len(frames[0]) >= LARGE_NBYTES:
            self._learn_outputs(result, frames)
        if len(result.segments) == 1 and result.segments[0][2] == 1:
            self._hand_over_whole(result.segments[0], outputs, result.version)
            return
        row = 0
        for i, (message_id, first, requests) in enumerate(result.segments):
            sent = self.messages.get(message_id)
            if sent is None:
                # How many rows are those of a message that is not known here cannot be told.
                unknown = Internal("the answer came with that of an unknown message")
                for segment in result.segments[i + 1 :]:
                    self.failed(segment, unknown)
                return
            sent.check_version(result.version)
            row = hand_out(sent, first, requests, outputs, row)
            self._answered(message_id, sent, requests)

    def _note_timings(self, result: Result) -> None:
        """For the spans of calls that are traced, before they end."""
        for timing in result.timings:
            message_id, first, requests = result.segments[timing.segment]
            sent = self.messages.get(message_id)
            for call, _, _ in () if sent is None else calls_of(sent, first, requests):
                if call.label is not None and call.label.span is not None:
                    call.label.span.timed(timing, result.version)

    def _learn_outputs(self, result: Result, frames: list[Buffer]) -> None:
        """So that later requests bring enough room in the region for them."""
        sent = self.messages.get(result.segments[0][0])
        if sent is not None and sent.calls:
            call = sent.calls[0]
            rows = result.outputs[0][2][0] if call.rows and result.outputs[0][2] else 1
            call.route.learn_outputs(sum(map(len, frames)), rows)

    def _result_in_region(self, result: Result) -> None:
        """Outputs that a worker wrote where each call said."""
        alone = len(result.segments) == 1 and result.segments[0][2] == 1
        for message_id, first, requests in result.segments:
            sent = self.messages.get(message_id)
            if sent is None:
                continue
            sent.check_version(result.version)
            for call, _, _ in calls_of(sent, first, requests):
                try:
                    outputs = outputs_in_region(call, result.outputs, alone)
                except Exception as error:
                    # ml_dtypes may be missing here.
                    fail(call, Internal(f"the outputs cannot be read: {error}"))
                else:
                    resolve(call.promise, outputs)
            self._answered(message_id, sent, requests)

    def _hand_over_whole(self, segment: Segment, outputs: Outputs, version: int) -> None:
        """All of a message is for one request, whatever its shapes."""
        message_id, first, _ = segment
        sent = self.messages.get(message_id)
        if sent is None:
            return
        sent.check_version(version)
        for call, request, _ in calls_of(sent, first, 1):
            if call.count == 1:
                resolve(call.promise, outputs)
            else:
                collect(call, request, outputs)
        self._answered(message_id, sent, 1)

    def failed(self, segment: Segment, error: BatchyardError) -> None:
        """Takes in an ERROR message's part that is about one message."""
        message_id, first, requests = segment
        sent = self.messages.get(message_id)
        if sent is None:
            return
        requests = requests or sent.count
        if isinstance(error, InvalidArgument | NotFound):
            # What the model takes may have changed.
            sent.calls[0].route.forget()
        for call, start, number in calls_of(sent, first, requests):
            if call.lacks(start, number) and not self._is_taken(sent, call, error):
                fail(call, error)
        self._answered(message_id, sent, requests)

    def _is_taken(self, sent: SentMessage, call: Call, error: BatchyardError) -> bool:
        """Whether a call that was refused goes to another server. It did not run here, unless its
        model must not run it twice."""
        if (
            self.take_refused is None
            or not isinstance(error, Unavailable)
            or not call.route.may_retry
            or call.cancelled
            or call.promise.done()
        ):
            return False
        i = sent.calls.index(call)
        sent.calls[i] = call.left_behind()
        if self.take_refused(call):
            return True
        sent.calls[i] = call
        return False

    def _answered(self, message_id: int, sent: SentMessage, requests: int) -> None:
        sent.unanswered -= requests
        self.requests -= requests
        if sent.unanswered <= 0:
            self.forget(message_id, sent)

    def forget(self, message_id: int, sent: SentMessage) -> None:
        """Nothing more is to come for a message."""
        if self.messages.pop(message_id, None) is not None:
            self.requests -= sent.unanswered
        for call in sent.calls:
            call.arrays = []
            call.placement = None

    def reject_all(self, error: BatchyardError) -> None:
        """Ends all calls. The messages stay known: results may still share a message with them."""
        for sent in list(self.messages.values()):
            for call in sent.calls:
                fail(call, error)
