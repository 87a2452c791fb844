"""The simulated CUDA driver inside the process of the tests, and a framework that computes on it.

    driver = simulated_driver()
    with driver.held(Kind.COPY_OUT): ...
    assert driver.log() == [...]

A framework's kernels are Python functions on numpy views of the "card's" memory, run by its stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.simulated_card import SimulatedCards, build, simulated_card

from batchyard.pool.gpu import dlpack
from batchyard.pool.gpu.driver import DEFAULT_STREAM

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_CUDA = (dlpack.CUDA, 0)


class Kind(IntEnum):
    """What a stream does: see simulated_card/streams.h."""

    COPY_IN = 1
    COPY_OUT = 2
    COPY_WITHIN = 3
    RECORD = 4
    WAIT = 5
    KERNEL = 6
    FILL = 7


class Entry(NamedTuple):
    """A line of the driver's log."""

    kind: Kind
    is_end: bool
    stream: int
    source: int
    target: int
    nbytes: int


class _Entry(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("is_end", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("stream", "source", "target", "nbytes")),
    )


class SimulatedDriver:
    """One card; the process has no other. Use ``simulated_driver``."""

    def __init__(self, folder: Path) -> None:
        self.cards: SimulatedCards = simulated_card(folder)
        # By its name it is found from now on, as if it were installed.
        self._library = ctypes.CDLL(str(build() / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        self._library.simulated_log.restype = ctypes.POINTER(_Entry)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SIMULATED_CARD", self.cards.environment["SIMULATED_CARD"])
            patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            assert self._library.cuInit(0) == 0

    @contextlib.contextmanager
    def held(self, kind: Kind) -> Iterator[None]:
        """Operations of that kind wait."""
        self._library.simulated_hold(kind, 1)
        try:
            yield
        finally:
            self._library.simulated_hold(kind, 0)

    def break_context(self, code: int) -> None:
        """As an illegal access (700) does. 0 mends it, as CUDA cannot."""
        self._library.simulated_break(code)

    def log(self, *kinds: Kind) -> list[Entry]:
        """What was begun and ended so far, in that order: all, or of those kinds."""
        count = ctypes.c_uint32()
        entries = self._library.simulated_log(ctypes.byref(count))
        found = [entries[i] for i in range(count.value)]
        return [
            Entry(Kind(e.kind), bool(e.is_end), e.stream, e.source, e.target, e.nbytes)
            for e in found
            if not kinds or e.kind in kinds
        ]

    def clear_log(self) -> None:
        """Forgets what was done so far."""
        self._library.simulated_log_clear()

    def live(self) -> tuple[int, ...]:
        """Streams, events, allocations and page-locks that were not given back."""
        counts = (ctypes.c_int * 4)()
        self._library.simulated_live(counts)
        return tuple(counts)

    @property
    def used(self) -> int:
        """Bytes of the card that this process uses."""
        return self.cards.used().get(os.getpid(), 0)


@functools.cache
def simulated_driver() -> SimulatedDriver:
    """The driver, loaded for good. Skips the test without a compiler or NVIDIA's binding."""
    pytest.importorskip("cuda.bindings.driver")
    if "/libcuda.so" in Path("/proc/self/maps").read_text():
        pytest.skip("this process has loaded a real CUDA driver")
    with tempfile.TemporaryDirectory() as folder:
        return SimulatedDriver(Path(folder))


class Tensor:
    """A framework's tensor in the card's memory, dense unless it says otherwise."""

    def __init__(
        self, framework: Framework, pointer: int, array: np.ndarray[Any, Any], kept: object
    ) -> None:
        self.framework = framework
        self.pointer = pointer
        # The card's memory, as kernels see it.
        self.array = array
        self.kept = kept

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA

    def __dlpack__(self, *, stream: int | None = None) -> object:
        if stream is not None:
            self.framework.order(stream)
        return dlpack.export(self.pointer, self.array.shape, self.array.dtype, _CUDA, self)


class Framework:
    """Computes on a stream of its own, in memory of its own."""

    def __init__(self, *, default_stream: bool = False) -> None:
        """``default_stream``: as CUDA's legacy one, on which other streams wait."""
        self._cuda: Any = pytest.importorskip("cuda.bindings.driver")
        utils: Any = pytest.importorskip("cuda.bindings.utils")
        self._check(self._cuda.cuInit(0))
        self._context = self._check(self._cuda.cuDevicePrimaryCtxRetain(0))
        self.make_current()
        self._own = None if default_stream else self._check(self._cuda.cuStreamCreate(1))
        self._stream = self._own or self._cuda.CUstream(DEFAULT_STREAM)
        self.stream: int = utils.get_cuda_native_handle(self._stream)
        self._event = self._check(self._cuda.cuEventCreate(2))
        self._memory: list[Any] = []
        self._functions: list[Any] = []

    def make_current(self) -> None:
        """Has this thread use the card."""
        self._check(self._cuda.cuCtxSetCurrent(self._context))

    def close(self) -> None:
        """Waits, and gives all back."""
        self._check(self._cuda.cuStreamSynchronize(self._stream))
        for pointer in self._memory:
            self._check(self._cuda.cuMemFree(pointer))
        self._check(self._cuda.cuEventDestroy(self._event))
        if self._own is not None:
            self._check(self._cuda.cuStreamDestroy(self._own))
        self._check(self._cuda.cuDevicePrimaryCtxRelease(0))

    def from_dlpack(self, source: Any) -> Tensor:
        """A tensor in the source's memory, which is not copied."""
        foreign, _ = dlpack.take(source, self.stream)
        array = _view(foreign.pointer, foreign.shape, dlpack.dtypes.to_numpy(foreign.dtype))
        return Tensor(self, foreign.pointer, array, foreign)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """A tensor in new memory."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._check(self._cuda.cuMemAlloc(max(nbytes, 1)))
        self._memory.append(memory)
        return Tensor(self, int(memory), _view(int(memory), shape, np.dtype(dtype)), None)

    def launch(self, kernel: Callable[[], None]) -> None:
        """Enqueues a function that computes on tensors' ``array``."""
        # What the kernel holds of tensors it lets go of when it has run.
        once = [kernel]
        function = _HOST_FUNCTION(lambda _: once.pop()())
        self._functions.append(function)
        address = ctypes.cast(function, ctypes.c_void_p).value
        self._check(self._cuda.cuLaunchHostFunc(self._stream, self._cuda.CUhostFn(address), 0))

    def order(self, stream: int) -> None:
        """Has another library's stream wait for what is enqueued here."""
        self._check(self._cuda.cuEventRecord(self._event, self._stream))
        other = self._cuda.CUstream(stream)
        self._check(self._cuda.cuStreamWaitEvent(other, self._event, 0))

    def _check(self, result: tuple[Any, ...]) -> Any:
        assert result[0] == 0, result[0]
        return result[1] if len(result) > 1 else None


def _view(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.ndarray(shape, dtype, (ctypes.c_char * nbytes).from_address(pointer))
