"""TensorFlow Serving's gRPC interface: ``tensorflow.serving.PredictionService/Predict``.

Deadlines travel as gRPC's own. A request is encoded once; of its answers the first is parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.targets import predict_messages as messages
from batchyard.benchmarks.load.targets.address import read_address
from batchyard.benchmarks.load.targets.base import Array, Send, Target
from batchyard.benchmarks.load.targets.tensorflow_types import NUMBERS, shape, wire_name
from batchyard.wire import dtypes, errors
from batchyard.wire.signatures import TensorSpec

_PORT = 8500
_CONNECT_S = 10.0
_METADATA_S = 30.0
# As long as a tensor may be; gRPC's own bound is 4 MiB.
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class GrpcTarget(Target):
    """``grpc://HOST:PORT``, without encryption."""

    def __init__(self, address: str) -> None:
        where = read_address(address, "grpc", _PORT)
        self._at = where.at
        self._channel: grpc.aio.Channel | None = None
        self._predict: Any = None

    async def connect(self) -> None:
        """See Target."""
        # A channel belongs to the loop that it is made in.
        self._channel = grpc.aio.insecure_channel(self._at, options=_OPTIONS)
        # Bytes in and out: a request is encoded before its time.
        self._predict = self._channel.unary_unary(messages.PREDICT)
        try:
            await _within(self._channel.channel_ready(), _CONNECT_S)
        except TimeoutError:
            raise errors.Unavailable(f"grpc://{self._at} cannot be reached") from None

    async def inputs(self, entry: MixEntry) -> tuple[TensorSpec, ...]:
        """See Target."""
        assert self._channel is not None, "not connected"
        ask = self._channel.unary_unary(messages.GET_MODEL_METADATA)
        request = messages.GetModelMetadataRequest(
            model_spec=_model_spec(entry, with_signature=False),
            metadata_field=[messages.SIGNATURE_DEF],
        )
        content = await _answer(ask(request.SerializeToString(), timeout=_METADATA_S))
        try:
            answer = messages.GetModelMetadataResponse.FromString(content)
            packed = answer.metadata[messages.SIGNATURE_DEF].value
            signatures = messages.SignatureDefMap.FromString(packed).signature_def
        except DecodeError as error:
            raise errors.Unknown(f"what {self._at} answers is no metadata: {error}") from None
        if entry.signature not in signatures:
            known = ", ".join(map(repr, sorted(signatures))) or "none"
            raise errors.NotFound(
                f"model {entry.model!r} has no signature {entry.signature!r}; it has {known}"
            )
        return tuple(
            TensorSpec(
                name,
                wire_name(spec.dtype),
                shape([dim.size for dim in spec.tensor_shape.dim], spec.tensor_shape.unknown_rank),
            )
            for name, spec in sorted(signatures[entry.signature].inputs.items())
        )

    def prepare(self, entry: MixEntry, inputs: Mapping[str, Array]) -> Send:
        """See Target."""
        request = predict_request(entry, inputs)
        seen = False

        async def send(timeout_s: float | None) -> object:
            nonlocal seen
            content = await _answer(self._predict(request, timeout=timeout_s))
            if not seen:
                _check_outputs(content)
                seen = True
            return None

        return send

    async def close(self) -> None:
        """See Target."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


def predict_request(entry: MixEntry, inputs: Mapping[str, Array]) -> bytes:
    """A whole request."""
    request = messages.PredictRequest(model_spec=_model_spec(entry))
    for name, array in inputs.items():
        _fill(request.inputs[name], name, array)
    content: bytes = request.SerializeToString()
    return content


def _fill(tensor: Any, name: str, array: Array) -> None:
    wire = dtypes.from_numpy(array.dtype)
    if wire is None:
        raise errors.InvalidArgument(f"input {name!r}: no tensor holds {array.dtype}")
    tensor.dtype = NUMBERS[wire]
    # Without dimensions it is a scalar: that there is a shape has to be said all the same.
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if wire == dtypes.STRING:
        tensor.string_val.extend(
            item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()
        )
    else:
        tensor.tensor_content = np.ascontiguousarray(array).tobytes()


def _model_spec(entry: MixEntry, with_signature: bool = True) -> Any:
    spec = messages.ModelSpec(name=entry.model)
    if entry.version is not None:
        spec.version.value = entry.version
    elif entry.label is not None:
        spec.version_label = entry.label
    if with_signature:
        spec.signature_name = entry.signature
    return spec


async def _answer(call: Any) -> bytes:
    """The answer's bytes, or the error by gRPC's code, which is the number of ours."""
    try:
        content: bytes = await call
        return content
    except grpc.aio.AioRpcError as error:
        number = error.code().value[0]
        raise errors.from_wire(number, errors.shortened(error.details() or "")) from None


def _check_outputs(content: bytes) -> None:
    try:
        messages.PredictResponse.FromString(content)
    except DecodeError as error:
        raise errors.Unknown(f"the answer is no PredictResponse: {error}") from None


async def _within(awaitable: Any, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await awaitable
