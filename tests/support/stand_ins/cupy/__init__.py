"""As much of CuPy as ``benchmarks/gpu/models/cupy_allocation.py`` needs, for the simulated card.

It takes memory by CUDA's driver, keeps what it has for the next call, and keeps within the limit of
its memory pool, as CuPy does. What a test wants to go wrong, the environment says:

``STAND_IN_FAULT=limit``    the limit is ignored.
``STAND_IN_FAULT=raises``   what does not fit is another error than CuPy's.
``STAND_IN_FAULT=dies``     what does not fit ends the process.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver

__version__ = "0.stand-in"
float32 = np.float32
_FAULT = os.environ.get("STAND_IN_FAULT")


class OutOfMemoryError(MemoryError):
    """The pool's limit, or the card, has no room."""


class _Pool:
    """Memory of the card, taken once and kept."""

    def __init__(self) -> None:
        self._limit = 0
        self._held = 0
        self._pointers: list[Any] = []

    def set_limit(self, size: int) -> None:
        self._limit = size

    def free_all_blocks(self) -> None:
        for pointer in self._pointers:
            _call(driver.cuMemFree, pointer)
        self._pointers.clear()
        self._held = 0

    def take(self, nbytes: int) -> None:
        """Has it hold at least that much."""
        more = nbytes - self._held
        if more <= 0:
            return
        if self._limit and self._held + more > self._limit and _FAULT != "limit":
            _refuse(f"Out of memory allocating {nbytes} bytes, limit {self._limit}")
        error, pointer = driver.cuMemAlloc(more)
        if error != driver.CUresult.CUDA_SUCCESS:
            _refuse(f"Out of memory allocating {nbytes} bytes: {error.name}")
        self._pointers.append(pointer)
        self._held += more


def _refuse(message: str) -> None:
    if _FAULT == "raises":
        raise RuntimeError(message)
    if _FAULT == "dies":
        os._exit(1)
    raise OutOfMemoryError(message)


class ndarray:  # noqa: N801 - CuPy's name
    """One row of floats: those that were set, and as many more as were taken of the card."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def item(self) -> float:
        return float(self._values.item())

    def set(self, values: Any) -> None:
        self._values[...] = values

    def reshape(self, *shape: int) -> ndarray:
        return ndarray(self._values.reshape(shape))

    def __getitem__(self, rows: slice) -> ndarray:
        return ndarray(self._values[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._values


def zeros(count: int, dtype: Any) -> ndarray:
    """Takes the memory; only the first of its values are kept anywhere."""
    _use_context()
    _POOL.take(count * np.dtype(dtype).itemsize)
    return ndarray(np.zeros(1, dtype))


def from_dlpack(array: Any) -> ndarray:
    """A copy on the host, of floats in one row."""
    _use_context()
    interface = array.__cuda_array_interface__
    values = np.empty(interface["shape"], np.dtype(interface["typestr"]))
    pointer = interface["data"][0]
    _call(driver.cuMemcpyDtoHAsync, values.ctypes.data, pointer, values.nbytes, 0)
    _call(driver.cuStreamSynchronize, 0)
    return ndarray(values)


def get_default_memory_pool() -> _Pool:
    return _POOL


def _use_context() -> None:
    _call(driver.cuInit, 0)
    context = _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, 0))
    _call(driver.cuCtxSetCurrent, context)


def _call(function: Any, *arguments: Any) -> Any:
    error, *results = function(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{function.__name__}: {error.name}")
    return results[0] if results else None


def _count() -> int:
    _call(driver.cuInit, 0)
    return int(_call(driver.cuDeviceGetCount))


_POOL = _Pool()
cuda = SimpleNamespace(
    runtime=SimpleNamespace(runtimeGetVersion=lambda: 13000, getDeviceCount=_count)
)
