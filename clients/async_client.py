"""The asynchronous client: one connection, driven by the event loop that it was made in."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batchyard.clients.calls import Call, Outputs
from batchyard.clients.connection import (
    CONNECT_TIMEOUT_S,
)
from batchyard.clients.deadlines import deadline_after
from batchyard.clients.inputs import (
    Array,
    Inputs,
    Route,
    make_route,
    many_at_once,
    readable_metadata,
)
from batchyard.clients.loop_io import LoopIo
from batchyard.clients.loop_servers import LoopServers
from batchyard.clients.placement import place
from batchyard.clients.region import empty
from batchyard.clients.session import (
    CLOSED,
    RECONNECT_TIMEOUT_S,
)
from batchyard.clients.tracing import Label, find_tracing, make_label
from batchyard.wire.endpoints import check, default_endpoints
from batchyard.wire.errors import DeadlineExceeded
from batchyard.wire.keys import client_curve
from batchyard.wire.signatures import DEFAULT_SIGNATURE


class Answer(NamedTuple):
    """What a request gave, and which version of the model gave it."""

    outputs: Outputs
    version: int


class _AnswerPromise(asyncio.Future[Any]):
    """Notes which version answers: the route knows it when the outputs are handed over."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self._route = route

    def set_result(self, outputs: Outputs, /) -> None:
        super().set_result(Answer(outputs, self._route.answered_version))


class AsyncClient:
    """Talks to a Batchyard server from an event loop; use it as an async context manager.

    What is called in one turn of the loop travels together.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        reconnect_timeout: float = RECONNECT_TIMEOUT_S,
        server_key: str | None = None,
        secret_key_file: str | os.PathLike[str] | None = None,
        check_shapes: bool = True,
    ) -> None:
        """Remembers where to connect; ``connect``, or entering the context, does it.

        See ``Client`` for several endpoints, for keys, and for how long calls wait when a
        connection is lost. Unless they ``check_shapes``, calls leave it to the model to refuse
        shapes that its signature does not declare.
        """
        if isinstance(endpoints, str):
            endpoints = [endpoints]
        checked = [check(endpoint) for endpoint in endpoints or default_endpoints()]
        options = checked, connect_timeout, deadline_after(reconnect_timeout, 0.0)
        curve = client_curve(server_key, secret_key_file)
        # None when there may be several servers.
        self._only = None if endpoints and len(checked) > 1 else LoopIo(*options, curve=curve)
        self._io = self._only or LoopServers(*options, curve=curve)
        self._check_shapes = check_shapes
        self._routes: dict[tuple[Any, ...], Route] = {}
        self._tracing = find_tracing()
        self._connecting = asyncio.Lock()
        self._is_connected = False
        self._closed = False

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """See ``Client.empty``."""
        return empty(self._io.region, shape, dtype)

    async def connect(self) -> None:
        """Connects. Raises Unavailable when no server answers in time.

        A client that was closed stays closed: Cancelled.
        """
        async with self._connecting:
            if self._closed:
                raise type(CLOSED)(CLOSED.message)
            if not self._is_connected:
                self._loop = asyncio.get_running_loop()
                await self._io.connect()
                self._is_connected = True

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
    ) -> Coroutine[Any, Any, Outputs]:
        """Runs one request; see ``Client.predict``. Cancelling the task cancels the request."""
        # No coroutine of its own: it would be one more for each request.
        return self._run(
            False, model, inputs, timeout, version, label, signature, priority, request_id
        )

    def answer(
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
    ) -> Coroutine[Any, Any, Answer]:
        """``predict``, and which version of the model answered."""
        return self._run(
            True, model, inputs, timeout, version, label, signature, priority, request_id
        )

    async def _run(
        self,
        with_version: bool,
        model: str,
        inputs: Inputs,
        timeout: float | None,
        version: int | None,
        label: str | None,
        signature: str,
        priority: int,
        request_id: str | None,
    ) -> Any:
        deadline = deadline_after(timeout, time.monotonic())
        named: Label | None = None
        if request_id is not None or self._tracing is not None:
            named = make_label(self._tracing, model, signature, "predict", request_id)
        call: Call | None = None
        try:
            # Looked up here, not in ``_route``: a coroutine less for each request.
            route = self._routes.get((model, version, label, signature, priority))
            if route is None or route.connection != self._io.connections:
                route = await self._find_route(model, version, label, signature, priority, timeout)
            arrays, target, rows = route.arrays(inputs)
            promise: asyncio.Future[Any] = (
                _AnswerPromise(route) if with_version else self._loop.create_future()
            )
            io = self._only or self._io.pick()
            placement = place(io.session.region, route, arrays, rows)
            each = [rows] if rows else None
            call = Call(route, target, arrays, each, rows, deadline, promise, placement, named)
            if named is not None and named.span is not None:
                named.span.sent_to(io.endpoint)
            io.add(call)
            result = await promise
        except BaseException as error:
            if call is not None and isinstance(error, asyncio.CancelledError):
                self._io.cancel(call)
            if named is not None:
                named.end(error)
            raise
        if named is not None:
            named.end()
        return result

    async def predict_many(
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

        ``request_id`` names all of them.
        """
        deadline = deadline_after(timeout, time.monotonic())
        if not inputs:
            return []
        route = await self._route(model, version, label, signature, priority, timeout)
        results: list[Outputs] = []
        # In slices, so that a long list does not fill the server's queue by itself.
        step = many_at_once(route, inputs)
        for start in range(0, len(inputs), step):
            calls = [
                self.predict(
                    model,
                    item,
                    timeout=None if deadline == math.inf else max(deadline - time.monotonic(), 0),
                    version=version,
                    label=label,
                    signature=signature,
                    priority=priority,
                    request_id=request_id,
                )
                for item in inputs[start : start + step]
            ]
            results += await asyncio.gather(*calls)
        return results

    async def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """See ``Client.models``, and ``metrics`` for ``timeout``."""
        answer: list[dict[str, Any]] = await self._query("models", {}, timeout)
        return answer

    async def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """See ``Client.metadata``, and ``metrics`` for ``timeout``."""
        arguments = {"model": model, "version": version, "label": label}
        return readable_metadata(await self._query("metadata", arguments, timeout))

    async def stats(self) -> dict[str, Any]:
        """See ``Client.stats``."""
        answer: dict[str, Any] = await self._query("stats", {}, None)
        return answer

    async def metrics(self, *, timeout: float | None = None) -> dict[str, Any]:
        """See ``Client.metrics``. Raises DeadlineExceeded when the server does not answer in
        ``timeout`` seconds."""
        answer: dict[str, Any] = await self._query("metrics", {}, timeout)
        return answer

    async def close(self) -> None:
        """Ends what still runs with CANCELLED and closes the connection. Idempotent."""
        async with self._connecting:
            self._closed = True
            self._io.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _route(
        self,
        model: str,
        version: int | None,
        label: str | None,
        signature: str,
        priority: int,
        timeout: float | None,
    ) -> Route:
        route = self._routes.get((model, version, label, signature, priority))
        if route is not None and route.connection == self._io.connections:
            return route
        return await self._find_route(model, version, label, signature, priority, timeout)

    async def _find_route(
        self,
        model: str,
        version: int | None,
        label: str | None,
        signature: str,
        priority: int,
        timeout: float | None,
    ) -> Route:
        connection = self._io.connections
        arguments = {"model": model, "version": version, "label": label}
        metadata = await self._query("metadata", arguments, timeout)
        route = make_route(
            model,
            version,
            label,
            signature,
            priority,
            metadata,
            connection,
            self._check_shapes,
        )
        self._routes[model, version, label, signature, priority] = route
        return route

    async def _query(self, what: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        await self.connect()
        promise: asyncio.Future[Any] = self._loop.create_future()
        self._io.query(what, arguments, promise)
        try:
            return await asyncio.wait_for(promise, timeout)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the server answered") from None
