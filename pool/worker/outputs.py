"""Where a batch's outputs go: the clients' regions, the block, or a memfd of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchyard.pool.runtimes.base import Array
from batchyard.pool.worker.intake import Assignment
from batchyard.wire import arena, dtypes, work
from batchyard.wire.errors import Internal, InvalidArgument, ResourceExhausted
from batchyard.wire.protocol import reply_offsets
from batchyard.wire.tensors import encode_strings


@dataclass(slots=True)
class Output:
    """An output as it travels. ``data`` is an array, or a string tensor's bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any
    nbytes: int


class OutputMemory:
    """What a batch's outputs lie in, one behind the other: its block, or a memfd of their own."""

    def __init__(self, outputs: Sequence[Output], assignment: Assignment) -> None:
        """A memfd where they do not fit into the block. Raises ResourceExhausted."""
        execute = assignment.execute
        self._fds: list[int] = []
        self._mapping: arena.Mapping | None = None
        nbytes = sum(arena.align(output.nbytes) for output in outputs)
        if nbytes <= execute.output_nbytes:
            self.bytes, self.offset = assignment.arena.data, execute.output_offset
            return
        try:
            self._fds.append(arena.create_memfd(nbytes, "batchyard-outputs"))
            self._mapping = arena.Mapping(self._fds[0])
        except OSError as error:
            self.close()
            raise ResourceExhausted(
                f"the worker has no memory for outputs of {nbytes} bytes: {error.strerror}"
            ) from None
        self.bytes, self.offset = self._mapping.memory, 0

    def take_fds(self) -> list[int]:
        """The memfd, if there is one: the caller's from now on."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        """Unmaps the memfd, and closes it if nobody took it."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        for fd in self.take_fds():
            os.close(fd)


def place(
    outputs: Sequence[tuple[str, Array]], assignment: Assignment
) -> tuple[list[work.PlacedOutput], list[int], bool]:
    """Writes outputs where they are wanted.

    Returns where each lies, the memfd with them if they do not fit into the block, and whether
    the requests that wanted theirs in a region have them there.
    """
    execute = assignment.execute
    found = [describe(name, output, execute.model) for name, output in outputs]
    if not execute.replies or not can_reply(found, execute):
        return *_place_all(found, assignment), False
    if reply(found, assignment) == execute.rows:
        return nowhere_else(found), [], True
    return *_place_all(found, assignment), True


def describe(name: str, output: Any, model: str) -> Output:
    """An output of a model as it travels. Raises Internal for what cannot."""
    # TensorFlow gives scalars as numpy scalars.
    array = np.asarray(output)
    name.encode()  # A name that is no Unicode could not be sent.
    dtype = dtypes.from_numpy(array.dtype)
    if dtype is None:
        raise Internal(f"model {model!r}: output {name!r} has dtype {array.dtype}")
    if dtype != dtypes.STRING:
        return Output(name, dtype, array.shape, array, array.nbytes)
    try:
        data = encode_strings(array.ravel().tolist())
    except InvalidArgument as error:
        # Not the caller's fault, but the model's.
        raise Internal(f"model {model!r}: output {name!r}: {error.message}") from None
    return Output(name, dtype, array.shape, data, len(data))


def nowhere_else(outputs: Sequence[Output]) -> list[work.PlacedOutput]:
    """Every row is in its request's region: nobody is left to read them anywhere else."""
    return [(output.name, output.dtype, output.shape, None, 0) for output in outputs]


def can_reply(outputs: Sequence[Output], execute: work.Execute) -> bool:
    """Whether outputs can be given to single requests, and have a size that can be known."""
    return not any(output.dtype == dtypes.STRING for output in outputs) and (
        execute.alone or all(o.shape[:1] == (execute.padded_rows,) for o in outputs)
    )


def reply(outputs: Sequence[Output], assignment: Assignment) -> int:
    """Writes outputs into regions for those who have room for them; how many rows that were."""
    execute = assignment.execute
    replied = 0
    for region, offset, room, first, rows in execute.replies:
        cuts = [o.data if execute.alone else o.data[first : first + rows] for o in outputs]
        offsets = reply_offsets([cut.nbytes for cut in cuts])
        if offsets[-1] > room:
            continue
        memory = assignment.regions[region]
        for start, cut in zip(offsets, cuts, strict=False):
            if cut.nbytes:
                np.ndarray(cut.shape, cut.dtype, memory, offset + start)[...] = cut
        replied += rows
    return replied


def _place_all(
    outputs: Sequence[Output], assignment: Assignment
) -> tuple[list[work.PlacedOutput], list[int]]:
    """Writes outputs into their part of the block, or into a memfd when they do not fit."""
    memory = OutputMemory(outputs, assignment)
    try:
        return _write(outputs, memory.bytes, memory.offset), memory.take_fds()
    finally:
        memory.close()


def _write(outputs: Sequence[Output], memory: memoryview, offset: int) -> list[work.PlacedOutput]:
    placed: list[work.PlacedOutput] = []
    for output in outputs:
        if output.dtype == dtypes.STRING:
            memory[offset : offset + output.nbytes] = output.data
        elif output.nbytes:
            np.ndarray(output.shape, output.data.dtype, memory, offset)[...] = output.data
        placed.append((output.name, output.dtype, output.shape, offset, output.nbytes))
        offset += arena.align(output.nbytes)
    return placed
