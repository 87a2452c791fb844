"""What all methods do: bytes in and out, deadlines, cancellation, errors as gRPC's statuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError

from batchyard.wire import log
from batchyard.wire.errors import BatchyardError, Internal, InvalidArgument, Unavailable
from batchyard.wire.tags import is_request_id

# Under which a caller may name a request, for logs and traces.
REQUEST_ID_KEY = "x-request-id"
# A status travels in a header, of which clients take 8 KiB by default; percent-encoded.
_DETAILS_MAX = 4096
_STATUSES = {code.value[0]: code for code in grpc.StatusCode}
_SHUTTING_DOWN = "the server is shutting down"


class Call:
    """One call, as its method sees it."""

    __slots__ = ("_context", "request_id")

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self.request_id = _request_id(context)

    @property
    def timeout(self) -> float | None:
        """The seconds until its deadline; None when it has none."""
        left: float | None = self._context.time_remaining()
        return left


# What a method does: the request's message and the call to the response's bytes.
Method = Callable[[Any, Call], Awaitable[bytes]]


class Calls:
    """The calls under way, of all services; for one event loop."""

    def __init__(self) -> None:
        self._under_way = 0
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def handler(
        self, service: str, methods: Mapping[str, tuple[Any, Method]]
    ) -> grpc.GenericRpcHandler:
        """A service of methods, each with its request's message class."""
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(self._handler(message_class, method))
                for name, (message_class, method) in methods.items()
            },
        )

    async def drain(self) -> None:
        """Refuses what comes from now on; returns when the calls under way are answered."""
        self._is_draining = True
        await self._is_idle.wait()

    def _handler(self, message_class: Any, method: Method) -> Any:
        parse = message_class.FromString

        async def handle(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            self._begin()
            # When its answer is sent, not when it is known.
            context.add_done_callback(self._end)
            try:
                if self._is_draining:
                    raise Unavailable(_SHUTTING_DOWN)
                try:
                    request = parse(body)
                except DecodeError as error:
                    name = message_class.DESCRIPTOR.full_name
                    raise InvalidArgument(f"the request is no {name}: {error}") from None
                return await method(request, Call(context))
            except BatchyardError as error:
                await _abort(context, error)
            except Exception as error:
                # A fault of Batchyard: this call ends with it, the others go on.
                reason = f"{type(error).__name__}: {error}"
                trace = log.traceback_of(error)
                log.limited("error", "gateway_erred", reason=reason, traceback=trace)
                await _abort(context, Internal(f"the gateway failed: {reason}"))
            raise AssertionError("abort raises")

        return handle

    def _begin(self) -> None:
        self._under_way += 1
        self._is_idle.clear()

    def _end(self, _: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._is_idle.set()


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: BatchyardError) -> None:
    await context.abort(_STATUSES[error.number], details_of(error.message))


def details_of(message: str) -> str:
    """As much of a message as fits into a status."""
    if len(message) * 9 <= _DETAILS_MAX:
        return message
    # Of one that a caller made as long as a request may be, no more is looked at.
    cut = message[: _DETAILS_MAX + 1]
    if len(quote(cut)) <= _DETAILS_MAX:
        return message
    while len(quote(cut)) > _DETAILS_MAX - 9:
        cut = cut[: len(cut) * 3 // 4]
    return f"{cut}…"


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """What the caller names its call; names that cannot be one are left alone, as whatever else
    proxies put into metadata."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and is_request_id(value):
            context.set_trailing_metadata(((REQUEST_ID_KEY, value),))
            return value
    return None
