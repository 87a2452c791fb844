"""What every call goes through: its status reaches the caller, whatever the message."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from batchyard.clients.gateways.grpc import calls
from batchyard.clients.gateways.grpc.calls import Call, Calls, details_of
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.messages import ModelSpec


def answers(method: Any, requests: int = 1) -> list[tuple[str, str]]:
    """Codes and details, or the response's bytes, of a method that a server of its own serves."""

    async def ask(call: Any) -> tuple[str, str]:
        try:
            return "OK", (await call).decode()
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""

    async def main() -> list[tuple[str, str]]:
        calls = Calls()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([calls.handler("s", {"M": (ModelSpec, method)})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            asked = channel.unary_unary("/s/M")
            found = [await ask(asked(b"", timeout=20)) for _ in range(requests)]
            await calls.drain()
            found.append(await ask(asked(b"", timeout=20)))
        await server.stop(None)
        return found

    return asyncio.run(main())


def test_calls_are_answered_until_the_server_drains() -> None:
    async def method(request: Any, call: Call) -> bytes:
        assert call.request_id is None
        # gRPC rounds it up, by as much as a hundredth.
        assert 0 < (call.timeout or 0) < 21
        return b"fine"

    assert answers(method) == [("OK", "fine"), ("UNAVAILABLE", "the server is shutting down")]


@pytest.mark.parametrize(
    "message", ["x" * 4000, "\u00e9" * 4000, "\U0001f600" * 4000, "\n%" * 2000]
)
def test_long_messages_are_cut_to_what_clients_take(message: str) -> None:
    async def method(request: Any, call: Call) -> bytes:
        raise InvalidArgument(message)

    (code, details), _ = answers(method)

    assert code == "INVALID_ARGUMENT"
    assert message.startswith(details.removesuffix("…"))
    assert len(details) > 200


def test_short_messages_are_whole() -> None:
    assert details_of("caf\u00e9: 100 %") == "caf\u00e9: 100 %"


def test_a_fault_ends_one_call() -> None:
    async def method(request: Any, call: Call) -> bytes:
        raise ZeroDivisionError("a fault")

    first, second, _ = answers(method, 2)

    assert first == second == ("INTERNAL", "the gateway failed: ZeroDivisionError: a fault")


def test_of_a_message_without_end_little_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def noted(text: str) -> str:
        looked_at.append(len(text))
        return quote(text)

    monkeypatch.setattr(calls, "quote", noted)

    assert details_of("\u20ac" * 100_000).endswith("\u20ac…")
    assert max(looked_at) < 5000
