"""TensorFlow Serving's gRPC interface as a target, against a stand-in that speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from support.tensorflow_serving import StandIn, grpc_stand_in

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.targets.base import make_target
from batchyard.wire import errors
from batchyard.wire.signatures import TensorSpec

pytest.importorskip("grpc")
pytest.importorskip("google.protobuf")
from batchyard.benchmarks.load.targets import predict_messages as messages
from batchyard.benchmarks.load.targets.grpc import GrpcTarget, predict_request

X = {"x": np.array([[1.0, 2.5], [3.0, 4.0]], np.float32)}


def talk(stand_in: StandIn, say: Callable[[GrpcTarget], Awaitable[Any]]) -> Any:
    """What comes of a conversation over a target that is connected and closed."""

    async def whole() -> Any:
        target = make_target(f"grpc://127.0.0.1:{stand_in.port}")
        assert isinstance(target, GrpcTarget)
        await target.connect()
        try:
            return await say(target)
        finally:
            await target.close()

    return asyncio.run(whole())


def test_requests_are_sent_with_their_deadlines() -> None:
    async def say(target: GrpcTarget) -> None:
        send = target.prepare(MixEntry("double", version=3), X)
        await asyncio.gather(*(send(10.0) for _ in range(20)))
        await send(None)

    with grpc_stand_in() as stand_in:
        talk(stand_in, say)
        requests = stand_in.requests
    assert len(requests) == 21
    assert all(0 < remaining_s < 11 for _, remaining_s in requests[:20])
    # What gRPC says where there is no deadline is far off.
    assert requests[20][1] is None or requests[20][1] > 1e6
    request, _ = requests[0]
    assert request.model_spec.name == "double"
    assert request.model_spec.version.value == 3
    assert request.model_spec.signature_name == "serving_default"
    tensor = request.inputs["x"]
    assert tensor.dtype == 1
    assert [dim.size for dim in tensor.tensor_shape.dim] == [2, 2]
    assert tensor.tensor_content == X["x"].tobytes()


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("full", errors.Unavailable, "Too many requests"),
        ("nobody", errors.NotFound, "Servable not found"),
    ],
)
def test_errors_have_their_codes(model: str, error: type[errors.BatchyardError], says: str) -> None:
    async def say(target: GrpcTarget) -> None:
        with pytest.raises(error, match=says):
            await target.prepare(MixEntry(model), X)(10.0)

    with grpc_stand_in() as stand_in:
        talk(stand_in, say)


def test_deadline_passes() -> None:
    async def say(target: GrpcTarget) -> None:
        with pytest.raises(errors.DeadlineExceeded):
            await target.prepare(MixEntry("stuck"), X)(0.05)
        await target.prepare(MixEntry("double"), X)(10.0)

    with grpc_stand_in() as stand_in:
        talk(stand_in, say)


def test_metadata_tells_inputs() -> None:
    async def say(target: GrpcTarget) -> Any:
        with pytest.raises(errors.NotFound, match="no signature 'other'; it has 'serving_default'"):
            await target.inputs(MixEntry("double", signature="other"))
        with pytest.raises(errors.NotFound, match="Could not find"):
            await target.inputs(MixEntry("nobody"))
        return await target.inputs(MixEntry("names"))

    with grpc_stand_in() as stand_in:
        names = talk(stand_in, say)
    assert names == (
        TensorSpec("count", "int64", (None, 1)),
        TensorSpec("name", "string", (None,)),
    )


def test_strings_scalars_and_labels() -> None:
    content = predict_request(
        MixEntry("names", label="canary"),
        {"name": np.array([b"a", "é", b"\xff"], object), "k": np.array(3, np.int64)},
    )
    request = messages.PredictRequest.FromString(content)
    assert request.model_spec.version_label == "canary"
    assert not request.model_spec.HasField("version")
    assert list(request.inputs["name"].string_val) == [b"a", "é".encode(), b"\xff"]
    # A scalar has a shape, which has no dimensions.
    assert request.inputs["k"].HasField("tensor_shape")
    assert not request.inputs["k"].tensor_shape.dim


def test_golden_bytes() -> None:
    """As tensorflow-serving-api 2.21 reads and writes them."""
    content = predict_request(MixEntry("m"), {"x": np.array([1.0], np.float32)})
    assert content == bytes.fromhex(
        "0a14 0a016d 1a0f73657276696e675f64656661756c74"
        "1213 0a0178 120e 0801 1204 1202 0801 2204 0000803f"
    )


@pytest.mark.parametrize("address", ["grpc://", "grpc://host:port"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        make_target(address)
