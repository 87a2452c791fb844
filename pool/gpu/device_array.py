"""An array on the card that any framework takes without a copy, by DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np


class DeviceArray:
    """An input of a batch, in the card's memory: dense, row-major, read it and do not write it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    # Its address in the card's memory.
    pointer: int

    def __dlpack_device__(self) -> tuple[int, int]:
        """kDLCUDA and the card's number in this process."""
        raise NotImplementedError

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule. What is enqueued on ``stream`` afterwards sees the batch's bytes.

        1 is the legacy default stream, 2 the thread's own, else a CUstream's address: the card
        waits. None or -1: this thread waits.
        """
        raise NotImplementedError

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface: with the stream that the transfer is on."""
        raise NotImplementedError
