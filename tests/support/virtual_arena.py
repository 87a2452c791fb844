"""A virtual broker with memory that its batches are written to, and clients that read replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from support.broker_builders import make_model, make_target
from support.virtual_broker import VirtualBroker

from batchyard.broker.events import Batch
from batchyard.broker.gather import Gathered, gather
from batchyard.broker.queue import Region, RequestGroup
from batchyard.broker.replies import Output, Reply
from batchyard.wire import protocol
from batchyard.wire.arena import ALIGNMENT
from batchyard.wire.protocol import MessageType, RegionPlaces
from batchyard.wire.signatures import Shape, SignatureSpec
from batchyard.wire.tensors import decode_strings, encode_strings
from batchyard.wire.work import ARENA

Array = npt.NDArray[Any]
_UNTOUCHED = 0xAA


class VirtualArena(VirtualBroker):
    """A broker of one model, and memory that its batches are written to."""

    def __init__(
        self,
        signature: SignatureSpec,
        workers: int = 1,
        arena_nbytes: int = 1 << 20,
        **parameters: Any,
    ) -> None:
        super().__init__(make_model(**parameters), arena_nbytes=arena_nbytes)
        self.start_workers(signature, workers=workers)
        self.memory = bytearray([_UNTOUCHED]) * arena_nbytes

    def send(
        self,
        *arrays: Array,
        rows: Sequence[int] | None = None,
        client: bytes = b"c",
        timeout_s: float | None = None,
        region: Region | None = None,
        offsets: Sequence[Sequence[int] | None] = (),
        replies: Sequence[tuple[int, int]] | None = None,
    ) -> RequestGroup:
        """One message with these inputs, by their order in the signature.

        With a ``region``, ``offsets`` has for each input where in it the rows of each request are
        put, None for an input that travels as a frame; ``replies`` has the reply space of each.
        """
        signature = self.catalog.models["m", 1].signature("serving_default")
        assert signature is not None
        headers: list[tuple[str, str, Shape]] = [
            (spec.name, spec.dtype, (None, *array.shape[1:]) if signature.batched else array.shape)
            for spec, array in zip(signature.inputs, arrays, strict=True)
        ]
        each = [1] * len(arrays[0]) if rows is None else rows
        places = None
        in_frames = list(arrays)
        if region is not None:
            inputs = [None if starts is None else list(starts) for starts in offsets]
            places = RegionPlaces(inputs, None if replies is None else list(replies))
            sizes = list(each) if signature.batched else None
            for starts, array in zip(inputs, arrays, strict=True):
                if starts is not None:
                    put_rows(region, starts, array, sizes)
            in_frames = [a for a, s in zip(arrays, inputs, strict=True) if s is None]
        return self.ask(
            *each,
            target=make_target(*headers),
            frames=[frame_of(array) for array in in_frames],
            client=client,
            timeout_s=timeout_s,
            whole=not signature.batched,
            region=region,
            places=places,
        )

    def lay_out(self, batch: Batch) -> Gathered:
        """Has the broker write its part of a batch."""
        return gather(memoryview(self.memory), batch)

    def gather(self, batch: Batch) -> list[Array]:
        """The inputs of a batch as the worker's model sees them; nothing else is written."""
        before = bytes(self.memory)
        gathered = self.lay_out(batch)
        self._check_written(before, gathered)
        regions = {
            part.group.region.id: part.group.region.memory
            for part in batch.parts
            if part.group.region is not None
        }
        for which, source, target, nbytes in gathered.copies:
            assert self._is_in_input(gathered, target, nbytes)
            self.memory[target : target + nbytes] = _cut(regions[which], source, nbytes)
        self._check_written(before, gathered)
        arrays: list[Array] = []
        end = batch.block.offset
        specs = batch.lane.signature.inputs
        for spec, (name, dtype, shape, which, offset, nbytes) in zip(
            specs, gathered.inputs, strict=True
        ):
            assert (name, dtype) == (spec.name, spec.dtype)
            assert offset % ALIGNMENT == 0
            if which == ARENA:
                assert offset >= end
                end = offset + nbytes
            data = _cut(self.memory if which == ARENA else regions[which], offset, nbytes)
            if dtype == "string":
                arrays.append(decode_strings(data, int(np.prod(shape))).reshape(shape))
            else:
                arrays.append(np.frombuffer(data, _numpy_of(dtype)).reshape(shape))
        assert end <= batch.block.offset + batch.layout.output_offset
        return arrays

    def _is_in_input(self, gathered: Gathered, offset: int, nbytes: int) -> bool:
        return any(
            which == ARENA and start <= offset and offset + nbytes <= start + size
            for _, _, _, which, start, size in gathered.inputs
        )

    def _check_written(self, before: bytes, gathered: Gathered) -> None:
        """Only the inputs that lie in the arena have changed."""
        written = np.zeros(len(before), bool)
        for _, _, _, which, offset, nbytes in gathered.inputs:
            if which == ARENA:
                written[offset : offset + nbytes] = True
        changed = np.frombuffer(before, np.uint8) != np.frombuffer(self.memory, np.uint8)
        assert not (changed & ~written).any()

    def gathered(self) -> list[Array]:
        """The inputs of the one batch that goes out now."""
        return self.gather(self.tick_one())


def make_region(nbytes: int = 1 << 14, number: int = 1) -> Region:
    """A client's memory, which nobody has written to."""
    return Region(number, memoryview(bytearray([_UNTOUCHED]) * nbytes))


def put_rows(
    region: Region, starts: Sequence[int], array: Array, rows: Sequence[int] | None
) -> None:
    """Puts the rows of each request where a message says that they are; all of it without rows."""
    data = array.tobytes()
    row_nbytes = len(data) // len(array) if rows else 0
    place = 0
    for start, nbytes in zip(
        starts, [n * row_nbytes for n in rows] if rows else [len(data)], strict=True
    ):
        region.memory[start : start + nbytes] = data[place : place + nbytes]
        place += nbytes


def _cut(memory: bytearray | memoryview, offset: int, nbytes: int) -> bytes:
    assert 0 <= offset <= offset + nbytes <= len(memory)
    return bytes(memory[offset : offset + nbytes])


def floats(*rows: int) -> Array:
    """Rows ``(n, -n)``."""
    return np.array([[row, -row] for row in rows], np.float32)


def words(*rows: Sequence[bytes]) -> Array:
    """Rows of strings."""
    return np.array(rows, object)


def frame_of(array: Array) -> bytes:
    """The bytes of a tensor; objects are strings."""
    return encode_strings(array.ravel().tolist()) if array.dtype == object else array.tobytes()


def output(name: str, array: Array) -> Output:
    """An output that a worker wrote."""
    dtype = "string" if array.dtype == object else array.dtype.name
    return Output(name, dtype, array.shape, memoryview(frame_of(array)))


Answer = tuple[list[protocol.Segment], dict[str, Any]]


def answer(reply: Reply) -> Answer:
    """Segments and outputs of a RESULT."""
    type_, body = protocol.decode(reply.header)
    assert type_ is MessageType.RESULT
    result = protocol.decode_result(body)
    assert result.version == 1
    outputs: dict[str, Any] = {}
    for (name, dtype, shape), frame in zip(result.outputs, reply.frames, strict=True):
        if dtype == "string":
            array = decode_strings(frame, int(np.prod(shape))).reshape(shape)
        else:
            array = np.frombuffer(frame, _numpy_of(dtype)).reshape(shape)
        outputs[name] = array.tolist()
    return result.segments, outputs


def failure(reply: Reply) -> protocol.Failure:
    """What an ERROR says."""
    type_, body = protocol.decode(reply.header)
    assert type_ is MessageType.ERROR
    assert reply.frames == []
    return protocol.decode_error(body)


def _numpy_of(dtype: str) -> npt.DTypeLike:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
