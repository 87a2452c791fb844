"""A framework whose arrays lie on the card, and models of it: ``toy_framework.py:NAME``.

Its kernels are host functions on a stream of its own (``cuLaunchHostFunc``), so they run on the
simulated card, where device memory is the process's. They run in a worker: this file imports
nothing of the tests.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchyard.pool.gpu import dlpack

Array = npt.NDArray[Any]
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_TENSOR, _USED = b"dltensor", b"used_dltensor"
_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Where DLManagedTensor has its deleter: behind DLTensor and the maker's own pointer.
_DELETER_AT = 56
# How long a kernel takes: the card computes while the processor does something else.
_KERNEL_S = float(os.environ.get("TOY_KERNEL_S", "0"))


class OutOfMemoryError(RuntimeError):
    """As PyTorch's: known by its names."""

    __module__ = "torch"


class Framework:
    """A stream, kernels, and a cache of memory, in the order of the stream."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._enter()
        self.stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self.stream), 1)
        self._free: dict[int, list[int]] = {}
        # Kernels on the way, and those that ran: not freed while they return.
        self._kernels: dict[int, Any] = {}
        self._ran: list[int] = []
        self._numbers = itertools.count()

    def _enter(self) -> None:
        self._call("cuInit", 0)
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code == 2:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate some")
        if code:
            raise RuntimeError(f"CUDA error: {name} gave {code}")

    def launch(self, kernel: Callable[[], None]) -> None:
        """Runs it on the card when all before it is done."""
        # The last may not have returned.
        for ran in self._ran[:-1]:
            self._ran.remove(ran)
            del self._kernels[ran]
        number = next(self._numbers)

        def run(_: int | None) -> None:
            time.sleep(_KERNEL_S)
            kernel()
            self._ran.append(number)

        self._kernels[number] = _KERNEL(run)
        self._call("cuLaunchHostFunc", self.stream, self._kernels[number], None)

    def capture(self, is_begin: bool) -> None:
        """A graph, as ``torch.cuda.graph`` does by default: others may do little meanwhile."""
        self._cuda.simulated_capture(is_begin)

    def break_context(self) -> None:
        """What an illegal access does."""
        self._cuda.simulated_break(700)

    def allocate(self, nbytes: int) -> int:
        """Memory on the card: of what was freed, which kernels before may still use."""
        if self._free.get(nbytes):
            return self._free[nbytes].pop()
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        return pointer.value

    def free(self, pointer: int, nbytes: int) -> None:
        """Later kernels may have it."""
        self._free.setdefault(nbytes, []).append(pointer)


class Tensor:
    """Dense, on the card; of memory of its own, or of somebody's capsule."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, capsule: Any = None) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = max(int(np.prod(shape)) * self.dtype.itemsize, 1)
        self._capsule = capsule
        if capsule is None:
            self.pointer = toy().allocate(self.nbytes)
            return
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        self._managed = get(capsule, _TENSOR)
        rename = ctypes.pythonapi.PyCapsule_SetName
        rename.argtypes = (ctypes.py_object, ctypes.c_char_p)
        rename(capsule, _USED)
        self.pointer = ctypes.c_uint64.from_address(self._managed).value

    def __del__(self) -> None:
        if self._capsule is None:
            toy().free(self.pointer, self.nbytes)
        else:
            deleter = ctypes.c_void_p.from_address(self._managed + _DELETER_AT).value
            _DELETER(deleter)(self._managed)

    def memory(self) -> Array:
        """As numpy sees it: for kernels."""
        view = (ctypes.c_char * self.nbytes).from_address(self.pointer)
        return np.ndarray(self.shape, self.dtype, view)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> object:
        if stream not in (None, -1):
            event = ctypes.c_void_p()
            call = toy()._call
            call("cuEventCreate", ctypes.byref(event), 2)
            call("cuEventRecord", event, toy().stream)
            call("cuStreamWaitEvent", ctypes.c_void_p(stream), event, 0)
            call("cuEventDestroy", event)
        return dlpack.export(self.pointer, self.shape, self.dtype, (2, 0), self)


_toys: list[Framework] = []


def toy() -> Framework:
    """The framework, begun when it is used first."""
    if not _toys:
        _toys.append(Framework())
    return _toys[0]


def from_dlpack(array: Any) -> Tensor:
    """A tensor in the same memory, which this framework's kernels see filled."""
    assert array.__dlpack_device__() == (2, 0)
    capsule = array.__dlpack__(stream=toy().stream.value)
    return Tensor(array.shape, array.dtype, capsule)


def apply(function: Callable[[Array], Array], x: Tensor, y: Tensor) -> Tensor:
    """Has the card compute y. Addresses are all that a kernel has: the order of the stream has to
    keep others from the memory until it is done."""
    source, target = x.memory(), y.memory()

    def kernel() -> None:
        target[...] = function(source)

    toy().launch(kernel)
    return y


def _twice_and_one(x: Array) -> Array:
    return 2 * x + 1


# Models


def double(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """y = 2x + 1, on the card or, given numpy arrays, in host memory."""
    x = inputs["x"]
    if isinstance(x, np.ndarray):
        return {"y": _twice_and_one(x)}
    tensor = from_dlpack(x)
    return {"y": apply(_twice_and_one, tensor, Tensor(x.shape, x.dtype))}


_same: dict[tuple[int, ...], Tensor] = {}


def same_memory(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, in the same array on the card each time, as a captured graph does."""
    x = inputs["x"]
    y = _same.setdefault(x.shape, Tensor(x.shape, x.dtype))
    return {"y": apply(_twice_and_one, from_dlpack(x), y)}


_counts = np.zeros(1, np.int64)
_loaded_on = threading.get_ident()


def mixed(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Outputs on the card, in host memory that is used again each time, and strings."""
    x = inputs["x"]
    rows = x.shape[0]
    _counts[0] = rows
    words = np.array([b"row %d" % i for i in range(rows)], object)
    return {
        "words": words,
        "y": double(inputs)["y"],
        "rows": np.broadcast_to(_counts, (rows,)),
        "x": x,
        "on_own_thread": np.full(rows, threading.get_ident() == _loaded_on),
        "empty": np.zeros((rows, 0), np.float32),
    }


def obeys(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """As ``double``; but does first what its rows ``say``."""
    said = {word.decode() for word in inputs["say"].ravel()} - {""}
    for word in sorted(said):
        if word == "raise":
            # With work on the way that still reads the inputs.
            double(inputs)
            toy().launch(Path(os.environ["TOY_DONE"]).touch)
            raise ValueError("no such luck")
        if word == "exhaust":
            double(inputs)
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if word == "allocate":
            Tensor((1 << 40,), np.int8)
        if word == "break":
            toy().launch(toy().break_context)
        if word == "capture":
            toy().capture(True)
            # Longer than it takes until somebody waits for this batch.
            toy().launch(lambda: time.sleep(0.05))
            toy().launch(lambda: toy().capture(False))
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "shape":
            return {"y": Tensor((1, 1), np.float32)}
        if word == "dtype":
            return {"y": Tensor(inputs["x"].shape, np.float64)}
    return double(inputs)
