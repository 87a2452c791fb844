"""The synchronous client: any number of threads, one connection, one I/O thread."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.clients.calls import NEVER, Answer, Call, Outputs, Promise
from batchyard.clients.connection import CONNECT_TIMEOUT_S
from batchyard.clients.deadlines import deadline_after
from batchyard.clients.futures import PredictFuture
from batchyard.clients.inputs import (
    Array,
    Inputs,
    Route,
    make_route,
    many_at_once,
    readable_metadata,
)
from batchyard.clients.io_thread import IoThread
from batchyard.clients.placement import place
from batchyard.clients.region import empty
from batchyard.clients.servers import ThreadedServers
from batchyard.clients.session import RECONNECT_TIMEOUT_S
from batchyard.clients.tracing import Label, find_tracing, make_label
from batchyard.wire.endpoints import default_endpoints
from batchyard.wire.errors import DeadlineExceeded
from batchyard.wire.keys import client_curve
from batchyard.wire.protocol import LARGE_FRAME_NBYTES
from batchyard.wire.signatures import DEFAULT_SIGNATURE

# ``predict_many`` sends at most so many requests as one message.
MANY_REQUESTS_PER_MESSAGE = 1024
_MANY_MESSAGES_IN_FLIGHT = 4


class Client:
    """Talks to a Batchyard server. Safe to share between threads; not across ``fork``.

    Results are arrays by output name. They are views of the received message: keeping one keeps
    the memory of what came with it.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        reconnect_timeout: float = RECONNECT_TIMEOUT_S,
        server_key: str | None = None,
        secret_key_file: str | os.PathLike[str] | None = None,
    ) -> None:
        """Connects; by default to the local server, at the first endpoint that answers.

        Several endpoints may lead to several servers with the same models: each call goes to the
        one with the least waiting. Those that do not answer now are used when they are there.

        A server that has keys (docs/security.md) is reached by TCP only with keys too:
        ``server_key`` is its public key, 40 characters of Z85 or the file that holds it;
        ``secret_key_file`` is the client's own file, as `batchyard keys new` makes it. What is not
        given is taken from BATCHYARD_SERVER_KEY and BATCHYARD_SECRET_KEY_FILE, if they are set.
        By ipc they are not used: there the socket's file says who may connect.

        Raises Unavailable when none answers within ``connect_timeout`` seconds, Unauthenticated
        when a server does not know the client's key, and ConfigurationError for what is no
        endpoint, and for keys that cannot be read.

        When the connection is lost the client connects again, and sends again what was not
        answered, or sends it to another server. Calls wait for one, within their deadlines, for
        ``reconnect_timeout`` seconds at most: then they fail with Unavailable, and so do others,
        until a server is back. 0: none waits.
        """
        if isinstance(endpoints, str):
            endpoints = [endpoints]
        options = (
            list(endpoints or default_endpoints()),
            connect_timeout,
            deadline_after(reconnect_timeout, 0.0),
        )
        curve = client_curve(server_key, secret_key_file)
        several = endpoints is not None and len(endpoints) > 1
        # None when there may be several servers.
        self._only = None if several else IoThread(*options, curve=curve)
        self._io = self._only or ThreadedServers(*options, curve=curve)
        self._routes: dict[tuple[Any, ...], Route] = {}
        self._tracing = find_tracing()
        # A client that nobody closed is closed when nobody has it any more.
        weakref.finalize(self, self._io.close)

    def predict(
        self,
        model: str,
        inputs: Inputs = None,
        *,
        timeout: float | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str = DEFAULT_SIGNATURE,
        priority: int = 0,
        request_id: str | None = None,
    ) -> Outputs:
        """Runs one request and waits for its outputs.

        ``inputs`` are arrays by input name, whose first dimension counts rows; a model with one
        input also takes the bare array. ``timeout`` is the deadline in seconds. ``request_id`` (up
        to 128 printable ASCII characters) names the request in the server's logs and in traces.
        Raises a ``BatchyardError``.
        """
        self._check_may_wait()
        deadline = NEVER if timeout is None else deadline_after(timeout, time.monotonic())
        named = self._named(model, signature, "predict", request_id)
        try:
            route = self._route(model, version, label, signature, priority, timeout)
            answer = Answer()
            io = self._only or self._io.pick()
            call = self._call(io, route, inputs, deadline, answer, named)
            outputs: Outputs = self._run(io, call, answer)
        except BaseException as error:
            if named is not None:
                named.end(error)
            raise
        if named is not None:
            named.end()
        return outputs

    def _named(
        self, model: str, signature: str, method: str, request_id: str | None
    ) -> Label | None:
        if request_id is None and self._tracing is None:
            return None
        return make_label(self._tracing, model, signature, method, request_id)

    def _run(self, io: IoThread, call: Call, answer: Answer) -> Any:
        """Sends a call and waits for its answer on this thread."""
        try:
            io.run(call)
            return answer.wait()
        except BaseException:
            # Ctrl-C, or what else a signal handler raises. An error that is the answer is too late
            # to be cancelled, and that does no harm.
            if not answer.done():
                self._io.cancel(call)
            raise

    def submit(
        self,
        model: str,
        inputs: Inputs = None,
        *,
        timeout: float | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str = DEFAULT_SIGNATURE,
        priority: int = 0,
        request_id: str | None = None,
    ) -> PredictFuture:
        """Sends one request; the future gets its outputs or a ``BatchyardError``.

        Raises InvalidArgument, NotFound and Unavailable itself for what it can tell at once.
        Arrays must not be changed until the future is done. Its callbacks run on the client's
        I/O thread: they must be quick, and must not wait for this client.
        """
        deadline = NEVER if timeout is None else deadline_after(timeout, time.monotonic())
        named = self._named(model, signature, "submit", request_id)
        try:
            route = self._route(model, version, label, signature, priority, timeout)
            future = PredictFuture(self)
            io = self._only or self._io.pick()
            future.call = self._call(io, route, inputs, deadline, future, named)
        except BaseException as error:
            if named is not None:
                named.end(error)
            raise
        if named is not None and named.span is not None:
            future.add_done_callback(named.end_with)
        io.add(future.call)
        return future

    def _call(
        self,
        io: IoThread,
        route: Route,
        inputs: Inputs,
        deadline: float,
        promise: Promise,
        named: Label | None,
    ) -> Call:
        arrays, target, rows = route.arrays(inputs)
        placement = place(io.region, route, arrays, rows)
        each = [rows] if rows else None
        if named is not None and named.span is not None:
            named.span.sent_to(io.endpoint)
        return Call(route, target, arrays, each, rows, deadline, promise, placement, named)

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """An array to be filled with an input, in memory that is shared with the server.

        Sent, it is read where it lies, without a copy; it must not be changed until its request
        is answered. Its memory is free again when the last array over it is gone. Without
        shared memory, or when there is no room left, it is an ordinary array. Of several servers
        it is the first's that shares memory: for another it is copied.
        """
        return empty(self._io.region, shape, dtype)

    def predict_many(
        self,
        model: str,
        inputs: Sequence[Inputs],
        *,
        timeout: float | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str = DEFAULT_SIGNATURE,
        priority: int = 0,
        request_id: str | None = None,
    ) -> list[Outputs]:
        """Runs many requests in one round trip: the outputs of each, in order.

        Each is a request of its own to the server; ``request_id`` names all of them. Raises the
        first error, when any fails.
        """
        self._check_may_wait()
        deadline = deadline_after(timeout, time.monotonic())
        if not inputs:
            return []
        named = self._named(model, signature, "predict_many", request_id)
        try:
            route = self._route(model, version, label, signature, priority, timeout)
            results = self._run_many(route, inputs, deadline, named)
        except BaseException as error:
            if named is not None:
                named.end(error)
            raise
        if named is not None:
            named.end()
        return results

    def _run_many(
        self, route: Route, inputs: Sequence[Inputs], deadline: float, named: Label | None
    ) -> list[Outputs]:
        if len(inputs) <= MANY_REQUESTS_PER_MESSAGE:
            alike = route.joined(inputs)
            if alike is not None:
                return self._run_alike(route, *alike, len(inputs), deadline, named)
        results: list[Outputs] = [{}] * len(inputs)
        waiting: deque[tuple[list[int], Answer]] = deque()

        def collect() -> None:
            places, promise = waiting.popleft()
            answer = promise.wait()
            for i, outputs in zip(places, answer if len(places) > 1 else [answer], strict=True):
                results[i] = outputs

        # A window, so that a long list does not fill the server's queue by itself.
        at_once = many_at_once(route, inputs)
        step = max(1, min(MANY_REQUESTS_PER_MESSAGE, at_once // _MANY_MESSAGES_IN_FLIGHT))
        under_way = 0
        for start in range(0, len(inputs), step):
            for places, answer in self._send_many(
                route, inputs[start : start + step], start, deadline, named
            ):
                waiting.append((places, answer))
                under_way += len(places)
            while under_way > at_once - step:
                under_way -= len(waiting[0][0])
                collect()
        while waiting:
            collect()
        return results

    def _run_alike(
        self,
        route: Route,
        array: Array,
        target: bytes,
        rows: int,
        count: int,
        deadline: float,
        named: Label | None,
    ) -> list[Outputs]:
        """Runs requests of ``rows`` rows each, which fit into one message and into the queue."""
        answer = Answer()
        each = [rows] * count
        io = self._only or self._io.pick()
        call = Call(route, target, [array], each, len(array), deadline, answer, None, named)
        if named is not None and named.span is not None:
            named.span.sent_to(io.endpoint)
        answers = self._run(io, call, answer)
        return [answers] if count == 1 else answers

    def _send_many(
        self,
        route: Route,
        inputs: Sequence[Inputs],
        start: int,
        deadline: float,
        named: Label | None,
    ) -> list[tuple[list[int], Answer]]:
        """Sends requests numbered from ``start``; which of them each answer stands for."""
        prepared = [route.arrays(item) for item in inputs]
        groups: list[tuple[bytes, list[int]]] = []
        # For each target the group that may still grow, and its bytes.
        growing: dict[bytes, tuple[list[int], int]] = {}
        for i, (arrays, target, rows) in enumerate(prepared):
            nbytes = sum(array.nbytes for array in arrays)
            places, before = growing.get(target, ([], 0))
            large = not rows or route.has_large_reply(rows)
            if not places or before + nbytes > LARGE_FRAME_NBYTES or large:
                # What is never batched travels alone, and so do large tensors, in and out.
                places, before = [], 0
                groups.append((target, places))
            places.append(i)
            growing[target] = places, before + (LARGE_FRAME_NBYTES if large else nbytes)
        return [
            (
                [start + i for i in places],
                self._send(route, target, [prepared[i] for i in places], deadline, named),
            )
            for target, places in groups
        ]

    def _send(
        self,
        route: Route,
        target: bytes,
        prepared: Sequence[Any],
        deadline: float,
        named: Label | None,
    ) -> Answer:
        answer = Answer()
        columns = [[arrays[i] for arrays, _, _ in prepared] for i in range(len(prepared[0][0]))]
        arrays = [c[0] if len(c) == 1 else np.concatenate(c) for c in columns]
        rows = [rows for _, _, rows in prepared]
        placement = None
        io = self._only or self._io.pick()
        if len(prepared) == 1:
            placement = place(io.region, route, arrays, rows[0])
        if named is not None and named.span is not None:
            named.span.sent_to(io.endpoint)
        io.add(
            Call(
                route,
                target,
                arrays,
                rows if rows[0] else None,
                sum(rows),
                deadline,
                answer,
                placement,
                named,
            )
        )
        return answer

    def models(self) -> list[dict[str, Any]]:
        """What is served: name, version, labels, state and signature names of each model."""
        answer: list[dict[str, Any]] = self._query("models", {})
        return answer

    def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None
    ) -> dict[str, Any]:
        """A model's signatures, with names, dtypes and shapes (None: open) of their tensors.

        Raises NotFound (InvalidArgument for a label that no version has), or Unavailable while the
        model loads.
        """
        return readable_metadata(self._metadata(model, version, label, None))

    def stats(self) -> dict[str, Any]:
        """How the server fares: broker, workers, models, arena. See docs/protocol.md.

        Of several servers it is the first that is there; so it is for ``models`` and ``metadata``.
        """
        answer: dict[str, Any] = self._query("stats", {})
        return answer

    def metrics(self) -> dict[str, Any]:
        """What ``stats`` says, and all that the server counts: answers by code, latencies, missed
        deadlines. See docs/protocol.md."""
        answer: dict[str, Any] = self._query("metrics", {})
        return answer

    def close(self) -> None:
        """Ends what still runs with CANCELLED and closes the connection. Idempotent."""
        self._io.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _route(
        self,
        model: str,
        version: int | None,
        label: str | None,
        signature: str,
        priority: int,
        timeout: float | None,
    ) -> Route:
        key = (model, version, label, signature, priority)
        route = self._routes.get(key)
        # The server may have been restarted with other models since.
        if route is None or route.connection != self._io.connections:
            connection = self._io.connections
            metadata = self._metadata(model, version, label, timeout)
            route = make_route(model, version, label, signature, priority, metadata, connection)
            self._routes[key] = route
        return route

    def _metadata(
        self, model: str, version: int | None, label: str | None, timeout: float | None
    ) -> dict[str, Any]:
        arguments = {"model": model, "version": version, "label": label}
        answer: dict[str, Any] = self._query("metadata", arguments, timeout)
        return answer

    def _query(self, what: str, arguments: dict[str, Any], timeout: float | None = None) -> Any:
        self._check_may_wait()
        answer = Answer()
        self._io.query(what, arguments, answer)
        try:
            return answer.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the server answered") from None

    def _check_may_wait(self) -> None:
        if threading.get_ident() in self._io.thread_ids:
            raise RuntimeError("a future's callback must not wait for its own client")

    def _give_up(self, call: Call) -> None:
        self._io.cancel(call)
