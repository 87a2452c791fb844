"""Batchyard's own interface, by the SDK.

AsyncClient: measured beside ``Client.submit`` on two cores, it has the same send lag at 1,200
requests/s, a third of it at 40,000/s, and takes no more of the processor.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.load.targets.base import Array, Send, Target
from batchyard.clients import AsyncClient
from batchyard.wire.errors import NotFound
from batchyard.wire.signatures import TensorSpec
from batchyard.wire.tensors import LARGE_NBYTES


class BatchyardTarget(Target):
    """``tcp://``, ``ipc://``, or where the SDK looks by itself."""

    def __init__(self, address: str | None) -> None:
        self._client = AsyncClient(address)

    async def connect(self) -> None:
        await self._client.connect()

    async def inputs(self, entry: MixEntry) -> tuple[TensorSpec, ...]:
        metadata = await self._client.metadata(
            entry.model, version=entry.version, label=entry.label
        )
        signatures = metadata["signatures"]
        if entry.signature not in signatures:
            known = ", ".join(map(repr, sorted(signatures))) or "none"
            raise NotFound(
                f"model {entry.model!r} has no signature {entry.signature!r}; it has {known}"
            )
        return tuple(
            TensorSpec(name, spec["dtype"], None if spec["shape"] is None else tuple(spec["shape"]))
            for name, spec in signatures[entry.signature]["inputs"].items()
        )

    def prepare(self, entry: MixEntry, inputs: Mapping[str, Array]) -> Send:
        predict = functools.partial(
            self._client.predict,
            entry.model,
            {name: self._in_place(array) for name, array in inputs.items()},
            version=entry.version,
            label=entry.label,
            signature=entry.signature,
            priority=entry.priority,
        )
        return lambda timeout_s: predict(timeout=timeout_s)

    def _in_place(self, array: Array) -> Array:
        """A large tensor where client and server share memory, if they do.

        Otherwise each request would be copied there anew when it is due, and the next one that is
        due would wait for that: 0.1 ms for an image.
        """
        if array.nbytes < LARGE_NBYTES or array.dtype.kind in "OSUb":
            return array
        shared = self._client.empty(array.shape, array.dtype)
        shared[...] = array
        return shared

    async def close(self) -> None:
        await self._client.close()
