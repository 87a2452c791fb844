"""The asynchronous client against a real server. Each test has an event loop of its own."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from support.descriptors import no_descriptors_leak
from support.played_broker import MODEL, PlayedBroker
from support.server import Server
from support.waiting import DEADLINE_S

from batchyard.clients import AsyncClient, errors
from batchyard.wire.errors import ConfigurationError, NotFound


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a test's coroutine. What the loop would only log fails the test."""
    complaints: list[dict[str, Any]] = []

    async def with_deadline() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await asyncio.wait_for(main(), DEADLINE_S)

    asyncio.run(with_deadline())
    assert not complaints


async def until(condition: Callable[[], object]) -> None:
    """Waits for a condition that needs the loop to go on; ``run`` has the deadline."""
    while not condition():
        await asyncio.sleep(0.005)


def test_predict_answers_each_caller(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            outputs = await asyncio.gather(
                *(client.predict("double", {"x": [[i, -i]]}) for i in range(500))
            )
            assert [o["y"].tolist() for o in outputs] == [[[2 * i, -2 * i]] for i in range(500)]
            assert (await client.predict("upper", ["a\0"]))["y"].tolist() == [b"A\0"]

    run(main)


def test_what_is_called_in_one_turn_travels_together(server: Server) -> None:
    seen = server.gates.folder / "seen"

    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            await client.predict("recorded", {"x": np.array([0])})
            before = len(seen.read_text().splitlines())
            await asyncio.gather(
                *(client.predict("recorded", {"x": np.array([i])}) for i in range(64))
            )
            assert seen.read_text().splitlines()[before:] == [str(list(range(64)))]

    run(main)


def test_large_tensors(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            given = [np.full((2, 20_000), i, np.float32) for i in range(20)]
            outputs = await asyncio.gather(*(client.predict("echo", {"x": x}) for x in given))
            assert all(np.array_equal(x, o["x"]) for x, o in zip(given, outputs, strict=True))

    run(main)


def test_predict_many_and_queries(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            inputs = [np.full((n, 2), n, np.float32) for n in (1, 3, 2)]
            outputs = await client.predict_many("double", inputs)
            assert [o["y"].tolist() for o in outputs] == [(x * 2).tolist() for x in inputs]
            assert await client.predict_many("double", []) == []
            assert "double" in {model["name"] for model in await client.models()}
            signatures = (await client.metadata("double"))["signatures"]
            assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "float32"
            assert (await client.stats())["broker"]["pid"] in server.processes()

    run(main)


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error"),
    [
        ("nobody", [1], {}, errors.NotFound),
        ("double", [[1, 2]], {"signature": "other"}, errors.NotFound),
        ("double", ["a"], {}, errors.InvalidArgument),
        ("double", [[1, 2]], {"timeout": -1}, errors.InvalidArgument),
        ("double", [[1, 2]], {"timeout": 0}, errors.DeadlineExceeded),
        ("fails", {"x": np.array([-1])}, {}, errors.Internal),
        ("typed_error", {"x": np.array([1])}, {}, errors.OutOfRange),
    ],
)
def test_errors_are_typed(
    server: Server, model: str, inputs: Any, options: Any, error: type[errors.BatchyardError]
) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            with pytest.raises(error):
                await client.predict(model, inputs, **options)
            assert (await client.predict("upper", ["a"]))["y"].tolist() == [b"A"]

    run(main)


async def hold_up(server: Server, client: AsyncClient, number: int) -> asyncio.Task[Any]:
    """A task that the server works on until the gate is opened."""
    task = asyncio.ensure_future(client.predict("gated", {"gate": np.array([number])}))
    await until(lambda: server.gates.is_reached(number))
    return task


def test_deadline_passes_while_the_server_works(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            await client.predict("double", [[1, 2]])
            held = await hold_up(server, client, 6001)
            with pytest.raises(errors.DeadlineExceeded):
                await client.predict("double", [[1, 2]], timeout=0.05)
            server.gates.open(6001)
            assert (await held)["rows"].tolist() == [1]

    run(main)


def test_cancelling_the_task_reaches_the_server(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            await client.predict("double", [[1, 2]])
            held = await hold_up(server, client, 6002)
            waiting = asyncio.ensure_future(client.predict("double", [[1, 2]]))
            await until(lambda: server.model_stats("double")["queue_rows"] == 1)
            waiting.cancel()
            await until(lambda: server.model_stats("double")["queue_rows"] == 0)
            assert waiting.cancelled()
            # One that was not sent yet is not sent at all.
            early = asyncio.ensure_future(client.predict("double", [[1, 2]]))
            await asyncio.sleep(0)
            early.cancel()
            server.gates.open(6002)
            await held
            with pytest.raises(asyncio.CancelledError):
                await early

    run(main)


def test_close_ends_what_waits(server: Server) -> None:
    async def main() -> None:
        client = AsyncClient(server.endpoint)
        await client.connect()
        await client.predict("double", [[1, 2]])
        held = await hold_up(server, client, 6003)
        unsent = asyncio.ensure_future(client.predict("double", [[1, 2]]))
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        server.gates.open(6003)
        for task in (held, unsent):
            with pytest.raises(errors.Cancelled, match="the client was closed"):
                await task
        with pytest.raises(errors.Cancelled):
            await client.predict("double", [[1, 2]])

    run(main)


def test_closed_client_stays_closed(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            pass
        try:
            with pytest.raises(errors.Cancelled):
                await client.stats()
        finally:
            await client.close()

    run(main)


@pytest.mark.parametrize("listens", [True, False])
def test_no_server_is_unavailable_after_the_connect_timeout(listens: bool) -> None:
    async def main() -> None:
        client = AsyncClient(endpoint, connect_timeout=0.2)
        before = time.monotonic()
        with pytest.raises(errors.Unavailable, match=r"is `batchyard serve` running\?"):
            await client.connect()
        assert 0.2 <= time.monotonic() - before < 5.0

    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        if not listens:
            listener.close()
        run(main)


def test_what_is_no_endpoint_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient("8600")


def test_first_endpoint_that_answers_is_taken(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(["tcp://127.0.0.1:9", server.endpoint]) as client:
            assert (await client.predict("double", [[1, 2]]))["y"].tolist() == [[2, 4]]

    run(main)


def test_client_survives_its_server(models: str) -> None:
    async def main() -> None:
        with Server(config=models) as first:
            async with AsyncClient(first.endpoint, reconnect_timeout=0) as client:
                await client.predict("double", [[1, 2]])
                held = await hold_up(first, client, 1)
                first.kill()
                with pytest.raises(errors.Unavailable, match="connection to the server was lost"):
                    await held
                with pytest.raises(errors.Unavailable):
                    await client.stats()
                first.wait_for_exit()
                with Server(config=models, bind=(first.endpoint,)) as second:
                    assert (await stats_when_back(client))["broker"]["pid"] in second.processes()
                    assert (await client.predict("double", [[1, 2]]))["y"].tolist() == [[2, 4]]

    run(main)


async def stats_when_back(client: AsyncClient) -> dict[str, Any]:
    while True:
        try:
            return await client.stats()
        except errors.Unavailable:
            await asyncio.sleep(0.005)


def test_closed_client_leaves_no_descriptor(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            # pyzmq keeps a context of its own once a frame was sent without a copy.
            await client.predict("echo", {"x": np.zeros((1, 100_000))})
        with no_descriptors_leak():
            async with AsyncClient([server.endpoint, "tcp://127.0.0.1:9"]) as client:
                await client.predict("double", [[1, 2]])
                # In the region, which is mapped by a descriptor, and in memory of its own.
                await client.predict("echo", {"x": np.zeros((1, 100_000))})
                await client.predict("echo", {"x": np.zeros((1, 200_000))})
            with pytest.raises(errors.Unavailable):
                await AsyncClient("tcp://127.0.0.1:9", connect_timeout=0.01).connect()
            gc.collect()

    run(main)


_FIRST_CALLS_TOGETHER = """
import asyncio, sys
from batchyard.clients import AsyncClient
async def main():
    client = AsyncClient(sys.argv[1])
    await asyncio.gather(*(client.predict("double", [[1, 2]]) for _ in range(3)))
    await client.close()
asyncio.run(main())
"""


def test_several_first_calls_share_one_connection(server: Server) -> None:
    # In a process of its own: close() blocks the loop for ever.
    script = [sys.executable, "-c", _FIRST_CALLS_TOGETHER, server.endpoint]
    try:
        ended = subprocess.run(script, timeout=3, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail("close() did not return")
    assert ended.returncode == 0


def test_answer_says_which_version_answered(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            large = np.ones((2, 40_000), np.float32)
            small, placed, one, by_label, *rest = await asyncio.gather(
                client.answer("double", {"x": [[1, 2]]}),
                client.answer("echo", {"x": large}),
                client.answer("alone", {"x": np.ones((1, 2), np.float32)}),
                client.answer("upper", ["a"], label="stable"),
                *(client.answer("double", {"x": [[i, i]]}) for i in range(50)),
            )
            assert small.outputs["y"].tolist() == [[2, 4]]
            assert np.array_equal(placed.outputs["x"], large)
            assert {answer.version for answer in (small, placed, one, by_label, *rest)} == {1}
            with pytest.raises(NotFound):
                await client.answer("double", {"x": [[1, 2]]}, version=2)

    run(main)


def test_each_answer_has_its_own_version() -> None:
    with PlayedBroker() as broker:

        def play() -> None:
            for version in (1, 2, 1):
                broker.next().answer(version=version)

        async def main() -> None:
            async with AsyncClient(broker.endpoint) as client:
                playing = asyncio.create_task(asyncio.to_thread(play))
                x = np.ones(1, np.float32)
                for version in (1, 2, 1):
                    assert (await client.answer(MODEL, x)).version == version
                await playing

        run(main)
