"""Which of a message's requests still want an answer, when it is sent again.

A message is sent again whole, because the broker knows its requests by their numbers in it. Those
that were answered, given up or are late by now are cancelled right behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchyard.clients.calls import Call, SentMessage
from batchyard.wire.protocol import Segment


def is_wanted(sent: SentMessage) -> bool:
    """Whether anybody waits for any of a message."""
    return not all(_has_ended(call) for call in sent.calls)


def given_up(message_id: int, sent: SentMessage) -> list[Segment]:
    """The requests of a message that want no answer, as few segments."""
    segments: list[Segment] = []
    for first, requests in _runs(sent):
        if segments and sum(segments[-1][1:]) == first:
            _, before, number = segments.pop()
            first, requests = before, number + requests
        segments.append((message_id, first, requests))
    return segments


def _runs(sent: SentMessage) -> Iterator[tuple[int, int]]:
    for call in sent.calls:
        if _has_ended(call):
            yield call.first, call.count
        else:
            for i, outputs in enumerate(call.outputs):
                if outputs is not None:
                    yield call.first + i, 1


def _has_ended(call: Call) -> bool:
    return call.cancelled or call.promise.done()
