"""An array on the card that any framework takes without a copy, by DLPack."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from batchyard.pool.gpu import dlpack
from batchyard.pool.gpu.buffers import Hold
from batchyard.pool.gpu.driver import DEFAULT_STREAM, Driver
from batchyard.pool.gpu.streams import Event

# CUDA_VISIBLE_DEVICES leaves a worker one card.
_DEVICE = (dlpack.CUDA, 0)


class DeviceArray:
    """An input of a batch, in the card's memory: dense, row-major; read it, do not write it.

    ``torch.from_dlpack``, ``jax.dlpack.from_dlpack`` and ``cupy.from_dlpack`` take it.
    """

    __slots__ = ("_arrived", "_driver", "_hold", "dtype", "nbytes", "pointer", "shape")

    def __init__(
        self,
        driver: Driver,
        hold: Hold,
        arrived: Event,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        """``arrived`` stands for the transfer of its bytes to ``pointer``, which lies in what
        ``hold`` holds."""
        self._driver = driver
        self._hold = hold
        self._arrived = arrived
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, {self.shape})"

    def __dlpack_device__(self) -> tuple[int, int]:
        """kDLCUDA and the card's number in this process."""
        return _DEVICE

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A ``"dltensor"`` capsule. What is enqueued on ``stream`` afterwards sees the bytes.

        1 is the legacy default stream, 2 the thread's own, else a CUstream's address: the card
        waits. None or -1: this thread waits. The memory is the array's until the capsule's taker
        lets go of it, and what is enqueued on ``stream`` by then, or by the end of the model's
        call, is done.
        """
        if copy:
            raise BufferError("a batch's input is given away in place: copy the array that you get")
        if dl_device is not None and (int(dl_device[0]), dl_device[1]) != _DEVICE:
            raise BufferError(f"a batch's input lies on device {_DEVICE}, not on {dl_device}")
        self._make_ready(stream)
        return dlpack.export(self.pointer, self.shape, self.dtype, _DEVICE, self._hold)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of Numba's interface. This thread waits until the bytes are there.

        PyTorch reads it and heeds no stream in it. What it takes away it uses on streams that are
        not known: work on others than the default one is to be done when the model returns.
        """
        if self.dtype.kind == "V":
            raise AttributeError(f"the CUDA array interface has no type for {self.dtype}")
        self._make_ready(None)
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.nbytes else 0, False),
            "strides": None,
            "stream": None,
        }

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            f"{self!r} lies on the card: take it by DLPack, as torch.from_dlpack, "
            "jax.dlpack.from_dlpack and cupy.from_dlpack do"
        )

    def _make_ready(self, stream: int | None) -> None:
        self._driver.make_current()
        if stream is None or stream == -1:
            # The array API's meaning of None, for what follows.
            self._hold.lease.streams.add(DEFAULT_STREAM)
            self._driver.synchronize_event(self._arrived.handle)
            return
        if stream < 1:
            # The array API: 0 could mean three streams.
            raise BufferError(
                f"stream = {stream}: needs 1 (the legacy default stream), 2 (the thread's own), a "
                "stream's address, or None"
            )
        self._hold.lease.streams.add(stream)
        self._driver.wait_for(self._driver.foreign_stream(stream), self._arrived.handle)
