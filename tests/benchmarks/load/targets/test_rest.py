"""TensorFlow Serving's REST interface as a target, against a stand-in that speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from support.tensorflow_serving import StandIn, rest_stand_in

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.targets.base import make_target
from batchyard.benchmarks.load.targets.rest import RestTarget, predict_body
from batchyard.wire import errors
from batchyard.wire.signatures import TensorSpec

X = {"x": np.array([[1.0, 2.5], [3.0, 4.0]], np.float32)}


def talk(stand_in: StandIn, say: Callable[[RestTarget], Awaitable[Any]]) -> Any:
    """What comes of a conversation over a target that is connected and closed."""

    async def whole() -> Any:
        target = make_target(f"http://127.0.0.1:{stand_in.port}")
        assert isinstance(target, RestTarget)
        await target.connect()
        try:
            return await say(target)
        finally:
            await target.close()

    return asyncio.run(whole())


def test_rows_are_sent_and_answered_over_one_connection() -> None:
    async def say(target: RestTarget) -> None:
        send = target.prepare(MixEntry("double"), X)
        for _ in range(5):
            await send(None)
            await send(10.0)

    with rest_stand_in() as stand_in:
        talk(stand_in, say)
        body = {"instances": [[1.0, 2.5], [3.0, 4.0]]}
        assert stand_in.requests == [("/v1/models/double:predict", body)] * 10
        assert stand_in.connections == 1


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (MixEntry("double", version=3), "/v1/models/double/versions/3:predict"),
        (MixEntry("double", label="canary"), "/v1/models/double/labels/canary:predict"),
        (MixEntry("double", signature="other"), "/v1/models/double:predict"),
    ],
)
def test_where_requests_go(entry: MixEntry, path: str) -> None:
    async def say(target: RestTarget) -> None:
        await target.prepare(entry, X)(None)

    with rest_stand_in() as stand_in:
        talk(stand_in, say)
        ((asked, body),) = stand_in.requests
    assert asked == path
    assert body.get("signature_name") == (None if entry.signature != "other" else "other")


def test_many_at_once() -> None:
    async def say(target: RestTarget) -> None:
        send = target.prepare(MixEntry("double"), X)
        await asyncio.gather(*(send(10.0) for _ in range(50)))
        await asyncio.gather(*(send(10.0) for _ in range(50)))

    with rest_stand_in() as stand_in:
        talk(stand_in, say)
        assert len(stand_in.requests) == 100
        assert stand_in.connections <= 51


@pytest.mark.parametrize("how", [{"chunked": True}, {"closes": True}])
def test_other_ways_to_answer(how: dict[str, bool]) -> None:
    async def say(target: RestTarget) -> None:
        send = target.prepare(MixEntry("double"), X)
        for _ in range(3):
            await send(10.0)

    with rest_stand_in(**how) as stand_in:
        talk(stand_in, say)
        assert stand_in.connections == (3 if "closes" in how else 1)


@pytest.mark.parametrize(
    ("model", "inputs", "error", "says"),
    [
        ("full", X, errors.Unavailable, "HTTP 503: Too many requests"),
        ("nobody", X, errors.NotFound, "HTTP 404: Servable not found"),
        ("double", {"x": np.zeros((1, 3))}, errors.InvalidArgument, "HTTP 400: Matrix size"),
    ],
)
def test_errors_have_their_codes(
    model: str, inputs: Any, error: type[errors.BatchyardError], says: str
) -> None:
    async def say(target: RestTarget) -> None:
        send = target.prepare(MixEntry(model), inputs)
        for _ in range(2):
            with pytest.raises(error, match=says):
                await send(10.0)

    with rest_stand_in() as stand_in:
        talk(stand_in, say)
        # An error is an answer: the connection is kept.
        assert stand_in.connections == 1


def test_deadlines_are_the_clients() -> None:
    async def say(target: RestTarget) -> None:
        with pytest.raises(errors.DeadlineExceeded, match="no answer within"):
            await target.prepare(MixEntry("stuck"), X)(0.05)
        # What came after it is not taken for its answer.
        await target.prepare(MixEntry("double"), X)(10.0)

    with rest_stand_in() as stand_in:
        talk(stand_in, say)
        assert stand_in.connections == 2


def test_metadata_tells_inputs() -> None:
    async def say(target: RestTarget) -> Any:
        return (
            await target.inputs(MixEntry("double")),
            await target.inputs(MixEntry("names", signature="other")),
        )

    with rest_stand_in() as stand_in:
        double, names = talk(stand_in, say)
    assert double == (TensorSpec("x", "float32", (None, 2)),)
    assert names == (
        TensorSpec("count", "int64", (None, 1)),
        TensorSpec("name", "string", (None,)),
    )


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (MixEntry("double", signature="none"), "no signature 'none'; it has 'other', 'serving_d"),
        (MixEntry("nobody"), "Could not find any versions"),
    ],
)
def test_what_is_not_there(entry: MixEntry, says: str) -> None:
    async def say(target: RestTarget) -> None:
        with pytest.raises(errors.NotFound, match=says):
            await target.inputs(entry)

    with rest_stand_in() as stand_in:
        talk(stand_in, say)


def test_nobody_listens() -> None:
    with rest_stand_in() as stand_in:
        pass

    async def connect() -> None:
        target = RestTarget(f"http://127.0.0.1:{stand_in.port}")
        with pytest.raises(errors.Unavailable, match="cannot be reached"):
            await target.connect()
        await target.close()

    asyncio.run(connect())


@pytest.mark.parametrize("address", ["http://", "http://host:port", "http://host:99999"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        make_target(address)


def test_bodies() -> None:
    strings = np.array([b"a", b"\xff"], object)
    numbers = np.array([[1], [2]], np.int64)
    assert predict_body("serving_default", {"s": strings}) == {"instances": ["a", {"b64": "/w=="}]}
    assert predict_body("other", {"s": strings, "n": numbers}) == {
        "signature_name": "other",
        "instances": [{"s": "a", "n": [1]}, {"s": {"b64": "/w=="}, "n": [2]}],
    }
    # No rows in common: by column.
    assert predict_body("serving_default", {"n": numbers, "k": np.array(3)}) == {
        "inputs": {"n": [[1], [2]], "k": 3}
    }
    with pytest.raises(errors.InvalidArgument, match="complex"):
        predict_body("serving_default", {"c": np.zeros(2, np.complex64)})
