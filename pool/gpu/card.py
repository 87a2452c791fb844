"""The worker's card: batches are copied there and back while models run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from batchyard.pool.gpu.device_array import DeviceArray

Array = npt.NDArray[Any]
# (name, dtype's name on the wire, shape, nbytes) of an output.
OutputSpec = tuple[str, str, tuple[int, ...], int]
Room = Callable[[Sequence[OutputSpec]], Sequence[Array]]


class Card:
    """One card, as this process uses it. Batches may be begun by several threads."""

    # The card's own name, as "NVIDIA H100 80GB HBM3".
    name: str
    # Why the arena is not page-locked; None where it is.
    why_not_page_locked: str | None

    @classmethod
    def open(cls, arena: memoryview) -> Card:
        """The first card that CUDA_VISIBLE_DEVICES leaves. Page-locks the arena if it can.

        Raises NoCuda.
        """
        raise NotImplementedError

    @property
    def is_lost(self) -> bool:
        """Whether this process can use the card no more: its context is broken."""
        raise NotImplementedError

    @property
    def buffer_nbytes(self) -> int:
        """Bytes of the card's memory that batches' buffers take."""
        raise NotImplementedError

    def begin(self, inputs: Mapping[str, Array]) -> CardBatch:
        """Starts copying inputs to the card, and returns at once.

        Inputs that are no numbers are not copied. Raises ResourceExhausted where the card has no
        memory left, CudaError.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Gives the buffers and the page-lock back. No batch may be under way."""
        raise NotImplementedError


class CardBatch:
    """A batch whose inputs are on the card, or on their way. Ends by ``wait`` or ``abandon``."""

    # What the model is to get: inputs by name, strings as they came.
    arrays: dict[str, DeviceArray | Array]
    # After wait(): how long the card computed.
    seconds: float

    def bring(self, outputs: Sequence[tuple[str, object]], room: Room) -> None:
        """Starts copying outputs from the card into arrays that ``room`` gives; returns at once.

        ``room`` gets name, dtype, shape and bytes of each output that is on the card, and gives an
        array of so many bytes for each. Outputs that are not on the card pass through.
        """
        raise NotImplementedError

    def wait(self) -> list[tuple[str, Array]]:
        """The outputs, once nothing of the batch is under way any more. Raises CudaError.

        May be called on another thread.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Waits as ``wait`` does, for a batch that has no outputs."""
        raise NotImplementedError
