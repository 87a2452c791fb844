"""The broker's side towards clients: their messages in, by either front."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from batchyard.broker import events
from batchyard.broker.admission import admit
from batchyard.broker.delivery import Delivery
from batchyard.broker.front import REVOKED, Front
from batchyard.broker.local_front import LocalClient, LocalFront
from batchyard.broker.measures import count_refusal, count_turned_away
from batchyard.broker.poller import Poller
from batchyard.broker.queue import Region, RequestGroup
from batchyard.broker.state import BrokerState
from batchyard.wire import log, protocol
from batchyard.wire.errors import (
    BatchyardError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unauthenticated,
    Unknown,
    shortened,
)
from batchyard.wire.local import LocalClosed
from batchyard.wire.protocol import FEATURES, MessageType, Predict
from batchyard.wire.tags import tags_of
from batchyard.wire.tensors import Buffer

# Messages read from clients before workers get a turn.
_DRAIN_MAX = 256
_KEY_REVOKED = Unauthenticated("the server does not know this client's key any more")
_DRAINING = protocol.encode(MessageType.DRAINING, [])
# What a client cannot help.
_OUR_FAULT = (Internal.number, Unknown.number)


class ClientService:
    """Used by one thread. ``apply`` takes what happened, ``answer`` queries; ``on_region_gone`` is
    called with the id of a region whose client is gone."""

    def __init__(
        self,
        state: BrokerState,
        front: Front,
        local_front: LocalFront,
        delivery: Delivery,
        poller: Poller,
        apply: Callable[[events.Event], None],
        answer: Callable[[list[Any]], tuple[int, Any]],
        on_region_gone: Callable[[int], None],
        max_message_nbytes: int,
        epoch: int,
    ) -> None:
        # Whether messages are read yet.
        self.is_open = True
        self._state = state
        self._front = front
        self._local_front = local_front
        self._delivery = delivery
        self._poller = poller
        self._apply = apply
        self._answer = answer
        self._on_region_gone = on_region_gone
        self._max_message_nbytes = max_message_nbytes
        self._epoch = epoch

    def listen(self) -> None:
        """Has the poller call this when clients want something."""
        self._poller.handle(self._front.fileno(), lambda _: self._front.look_again())
        gate = self._front.gate
        if gate is not None:
            self._poller.handle(gate.fileno(), lambda _: gate.serve())
        for fd in self._local_front.listener_filenos():
            self._poller.handle(fd, partial(self._accept_local, fd))

    def tell_draining(self) -> None:
        """Those who are known without asking are told that the server drains."""
        for client in self._local_front.clients():
            self._delivery.send(client, _DRAINING, [])

    def serve_far(self) -> None:
        """Takes in what came by ZeroMQ, up to a cap."""
        receive = self._front.receive
        for _ in range(_DRAIN_MAX):
            message = receive()
            if message is None:
                return
            client, header, frames = message
            if header is REVOKED:
                self._send_error(client, [], _KEY_REVOKED)
                continue
            self._serve_message(client, None, header, frames)

    def _accept_local(self, fd: int, _: int) -> None:
        client = self._local_front.accept(fd, self._welcome())
        if client is not None:
            self._poller.handle(client.fileno(), partial(self._serve_local, client))

    def _serve_local(self, client: LocalClient, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                self._local_front.flush(client)
            if mask & ~select.EPOLLOUT and self.is_open:
                message = client.socket.receive()
                if message is not None:
                    self._serve_message(client.key, client.region, *message)
        except LocalClosed:
            self._lose_local(client)

    def drop_stuck(self) -> None:
        """Closes clients that let their answers pile up: better than answers that never come."""
        while self._delivery.stuck:
            client = self._local_front.find(self._delivery.stuck.pop())
            if client is not None:
                reason = "it could not be given an answer"
                log.limited("warning", "client_dropped", reason=reason)
                self._lose_local(client)

    def _lose_local(self, client: LocalClient) -> None:
        self._apply(events.ClientLeft(client.key))
        if client.region is not None:
            self._on_region_gone(client.region.id)
        self._poller.forget(client.fileno())
        self._local_front.drop(client)

    def _serve_message(
        self, client: bytes, region: Region | None, header: Buffer, frames: list[Buffer]
    ) -> None:
        try:
            type_, body = protocol.decode(header)
        except BatchyardError as error:
            log.limited("debug", "message_refused", code=error.code, reason=error.message)
            self._send_error(client, [], error)
            return
        try:
            self._serve_decoded(client, region, type_, body, frames)
        except BatchyardError as error:
            log.limited("debug", "message_refused", code=error.code, reason=error.message)
            # Of other messages the first field is no id to blame.
            names_id = type_ in (MessageType.PREDICT, MessageType.QUERY)
            message_id = protocol.message_id_of(body) if names_id else None
            if type_ is MessageType.QUERY and message_id is not None:
                reply = [message_id, error.number, shortened(error.message), None]
                self._delivery.send(client, protocol.encode(MessageType.ANSWER, reply), [])
            else:
                segments = [] if message_id is None else [(message_id, 0, 0)]
                self._send_error(client, segments, error)

    def _serve_decoded(
        self,
        client: bytes,
        region: Region | None,
        type_: MessageType,
        body: list[Any],
        frames: list[Buffer],
    ) -> None:
        if type_ is MessageType.PREDICT:
            self._serve_predict(client, region, protocol.decode_predict(body), frames)
        elif type_ is MessageType.HELLO:
            self._delivery.send(client, self._welcome(), [])
        elif type_ is MessageType.CANCEL:
            segments = protocol.decode_segments(body)
            self._apply(events.RequestsCancelled(client, segments))
        elif type_ is MessageType.QUERY:
            query_id, result = self._answer(body)
            self._delivery.send(
                client, protocol.encode(MessageType.ANSWER, [query_id, 0, "", result]), []
            )
        elif type_ is MessageType.GOODBYE:
            self._apply(events.ClientLeft(client))
        else:
            raise InvalidArgument(f"{type_.name} is for clients, not for the broker")

    def _serve_predict(
        self, client: bytes, region: Region | None, predict: Predict, frames: list[Buffer]
    ) -> None:
        if self._state.draining:
            self._delivery.send(client, _DRAINING, [])
        try:
            group = self._admit(client, region, predict, frames)
        except BatchyardError as error:
            count_turned_away(self._state.catalog, predict, error)
            raise
        self._apply(events.RequestsArrived(group, predict.resent))

    def _admit(
        self, client: bytes, region: Region | None, predict: Predict, frames: list[Buffer]
    ) -> RequestGroup:
        # ZeroMQ bounds each frame only.
        nbytes = sum(map(len, frames))
        if nbytes > self._max_message_nbytes:
            raise ResourceExhausted(
                f"the message has {nbytes} bytes of tensors, may have at most "
                f"{self._max_message_nbytes} (max_message_mb under [broker])"
            )
        return admit(self._state.catalog, client, region, predict, frames, time.monotonic())

    def _welcome(self) -> bytes:
        welcome = [self._epoch, self._max_message_nbytes, self._local_front.name, FEATURES]
        return protocol.encode(MessageType.WELCOME, welcome)

    def _send_error(
        self, client: bytes, segments: list[protocol.Segment], error: BatchyardError
    ) -> None:
        self._delivery.send(client, protocol.encode_error(segments, error), [])

    def refuse(self, refuse: events.Refuse) -> None:
        """Answers requests with an error."""
        count_refusal(refuse)
        if refuse.error.number in _OUR_FAULT or log.is_debug():
            _tell_of(refuse)
        message_id = refuse.group.message_id
        segments = [(message_id, first, count) for first, count in refuse.requests]
        self._send_error(refuse.group.client, segments, refuse.error)


def _tell_of(refuse: events.Refuse) -> None:
    group = refuse.group
    ids = [
        tag.request_id
        for first, count in refuse.requests
        for tag in tags_of(group.tags, first, count)
        if tag.request_id is not None
    ]
    log.limited(
        "warning" if refuse.error.number in _OUR_FAULT else "debug",
        "request_failed" if refuse.error.number in _OUR_FAULT else "request_refused",
        model=group.lane.model.name,
        version=group.lane.model.version,
        code=refuse.error.code,
        requests=sum(count for _, count in refuse.requests),
        **({"request_id": ",".join(ids)} if ids else {}),
        reason=refuse.error.message,
    )
