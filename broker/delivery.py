"""Answers on their way: what each client was sent, and which blocks are read until it has left.

A client that does not read must not hold memory without bound, nor slow the others: large answers
by ZeroMQ are counted until they have left, small ones are bounded by the socket's high water mark,
and the local front counts its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from batchyard.broker.events import Deliver
from batchyard.broker.front import Front
from batchyard.broker.local_front import LocalFront
from batchyard.broker.measures import count_answers
from batchyard.broker.replies import Output, Reply, failures, replies
from batchyard.wire import log
from batchyard.wire.blocks import BlockAllocator
from batchyard.wire.errors import BatchyardError, Internal, ResourceExhausted
from batchyard.wire.protocol import LARGE_FRAME_NBYTES, encode_error
from batchyard.wire.tensors import Buffer

# Above this share of the arena answers are copied out of it, and above the other those of one
# client are: clients who do not read cannot hold more of it.
_ZERO_COPY_ARENA_SHARE = 0.5
_ZERO_COPY_CLIENT_SHARE = 0.125
# Bytes of large answers that one client may leave unread; it gets errors instead of more.
_UNREAD_NBYTES_MAX = 256 << 20
# What has left is looked after this often, and less often while nothing leaves.
_FIRST_POLL_S = 0.001
_LAST_POLL_S = 0.05


@dataclass(slots=True)
class _Sent:
    """A large answer that ZeroMQ has not sent whole. ``batch_id`` is of the block that it reads."""

    trackers: list[zmq.MessageTracker]
    batch_id: int | None
    nbytes: int


class Delivery:
    """Used by one thread."""

    def __init__(self, front: Front, local_front: LocalFront, allocator: BlockAllocator) -> None:
        self.dropped = 0
        # Outputs of batches that are to be answered.
        self.outputs: dict[int, list[Output]] = {}
        # Local clients that have to go: they do not read.
        self.stuck: list[bytes] = []
        self._front = front
        self._local_front = local_front
        self._allocator = allocator
        # By client, in the order in which they leave.
        self._unread: dict[bytes, deque[_Sent]] = {}
        # Messages that still read the block of a batch.
        self._readers: dict[int, int] = {}
        self._poll_s = _FIRST_POLL_S

    def deliver(self, deliver: Deliver) -> bool:
        """Answers a batch's parts; False when its block is read for longer (see ``settle``)."""
        batch_id = deliver.batch.id
        try:
            messages = list(replies(deliver, self.outputs[batch_id]))
        except Exception as error:
            # Whatever a model made of its outputs must not end the broker.
            messages = list(failures(deliver, as_typed(error)))
        failed = []
        for reply in messages:
            told = reply.error
            if self._local_front.knows(reply.client):
                self.send(reply.client, reply.header, reply.frames)
            else:
                told = self._send_far(reply, batch_id) or told
            if told is not None:
                failed.append((reply, told))
        count_answers(deliver, failed, time.monotonic())
        return batch_id not in self._readers

    def _send_far(self, reply: Reply, batch_id: int) -> BatchyardError | None:
        """Answers a client by ZeroMQ; the error that it gets instead, if it leaves answers
        unread."""
        nbytes = sum(len(frame) for frame in reply.frames if len(frame) >= LARGE_FRAME_NBYTES)
        if not nbytes:
            self.send(reply.client, reply.header, reply.frames)
            return None
        unread = self._unread.get(reply.client)
        waiting = 0 if unread is None else sum(sent.nbytes for sent in unread)
        if waiting > _UNREAD_NBYTES_MAX:
            error = ResourceExhausted(
                f"the client has left {waiting} bytes of answers unread: it gets no more"
            )
            self.send(reply.client, encode_error(reply.segments, error), [])
            return error
        allocator = self._allocator
        reads_block = (
            allocator.used_nbytes < allocator.nbytes * _ZERO_COPY_ARENA_SHARE
            and waiting + nbytes < allocator.nbytes * _ZERO_COPY_CLIENT_SHARE
        )
        frames = reply.frames
        if not reads_block:
            frames = [bytes(f) if len(f) >= LARGE_FRAME_NBYTES else f for f in frames]
        trackers = self.send(reply.client, reply.header, frames)
        if not trackers:
            return None
        if reads_block:
            self._readers[batch_id] = self._readers.get(batch_id, 0) + 1
        sent = _Sent(trackers, batch_id if reads_block else None, nbytes)
        self._unread.setdefault(reply.client, deque()).append(sent)
        self._poll_s = _FIRST_POLL_S
        return None

    def send(self, client: bytes, header: bytes, frames: list[Buffer]) -> list[zmq.MessageTracker]:
        """Sends a message, if its client is there and reads; the trackers of large frames."""
        if self._local_front.knows(client):
            if not self._local_front.send(client, header, frames):
                self.stuck.append(client)
            return []
        try:
            return self._front.send(client, header, frames)
        except zmq.Again:
            # It did not read its last 10,000 messages, and must not make the others wait.
            self.dropped += 1
            reason = "client does not read"
            log.limited("warning", "reply_dropped", reason=reason, dropped=self.dropped)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
        return []

    @property
    def poll_s(self) -> float | None:
        """How soon to ``settle``; None when nothing is on its way."""
        return self._poll_s if self._unread else None

    def settle(self) -> Iterator[int]:
        """Batches whose blocks no answer reads any more."""
        settled = False
        for client, unread in list(self._unread.items()):
            while unread and all(tracker.done for tracker in unread[0].trackers):
                settled = True
                batch_id = unread.popleft().batch_id
                if batch_id is None:
                    continue
                self._readers[batch_id] -= 1
                if not self._readers[batch_id]:
                    del self._readers[batch_id]
                    yield batch_id
            if not unread:
                del self._unread[client]
        self._poll_s = _FIRST_POLL_S if settled else min(2 * self._poll_s, _LAST_POLL_S)


def as_typed(error: Exception) -> BatchyardError:
    """What clients are told."""
    if isinstance(error, BatchyardError):
        return error
    if isinstance(error, MemoryError):
        return ResourceExhausted("the broker has no memory left for this")
    reason = f"{type(error).__name__}: {error}"
    log.limited("error", "answer_not_made", reason=reason)
    return Internal(f"the outputs cannot be given back: {type(error).__name__}: {error}")
