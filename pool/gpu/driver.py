"""CUDA's driver API, as far as transfers need it, by NVIDIA's binding ``cuda-bindings``.

The driver's library alone (``libcuda.so.1``): PyTorch, JAX, CuPy and TensorFlow each bring a CUDA
runtime of their own, which need not be ours. They use the card's primary context
(``cudaSetDevice`` does, and XLA), and so is it here: their streams, events and memory are ours too.

What is said here of CUDA's behaviour is from its driver API reference,
https://docs.nvidia.com/cuda/cuda-driver-api/. The binding lets other threads run during every call
since 12.9.1 (its release notes).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# The first that lets other threads run while it waits.
BINDING = "cuda-bindings>=12.9.2"
_UNKNOWN = "CUDA_ERROR_UNKNOWN"
# Of a code, the reference says that "any further CUDA work will return the same error. To continue
# using CUDA, the process must be terminated and relaunched", or that the context is gone.
_STICKY = frozenset(
    {
        "CUDA_ERROR_DEINITIALIZED",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "CUDA_ERROR_CONTAINED",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_LAUNCH_FAILED",
        "CUDA_ERROR_TENSOR_MEMORY_LEAK",
        "CUDA_ERROR_MPS_CLIENT_TERMINATED",
        "CUDA_ERROR_EXTERNAL_DEVICE",
        # Of this it says nothing; nor can be known what it is.
        _UNKNOWN,
    }
)
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
# The legacy default stream. What is enqueued on it waits for all streams that were not created
# NON_BLOCKING, and they wait for it.
DEFAULT_STREAM = 1


class NoCuda(Exception):
    """There is no card to be used from here; says why."""


class CudaError(Exception):
    """A call of the driver failed.

    ``name`` is CUDA's own, as ``"CUDA_ERROR_OUT_OF_MEMORY"``. ``is_sticky`` says that the context
    is broken for good: every later call of this process fails too.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.is_sticky = name in _STICKY


class Driver:
    """One card, and its primary context. Streams and events are handles of the binding's.

    A thread calls ``make_current`` before anything else.
    """

    def __init__(self, binding: Any, handle_of: Any) -> None:
        """Use ``open``."""
        self._cuda = binding
        self._handle_of = handle_of
        self._device = self._call("cuDeviceGet", 0)
        # In a buffer that is filled up with NULs, and behind them.
        self.name = self._call("cuDeviceGetName", 256, self._device).partition(b"\0")[0].decode()
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    @classmethod
    def open(cls) -> Driver:
        """The first card of those that CUDA_VISIBLE_DEVICES leaves, current on this thread.

        Raises NoCuda, which says why there is none.
        """
        try:
            binding: Any = importlib.import_module("cuda.bindings.driver")
            handle_of = importlib.import_module("cuda.bindings.utils").get_cuda_native_handle
        except (ImportError, AttributeError) as error:
            raise NoCuda(f"it takes the binding: pip install '{BINDING}' ({error})") from None
        try:
            (code,) = binding.cuInit(0)
        except Exception as error:
            # Each of its versions has errors of its own for a library that is not there.
            raise NoCuda(
                f"no CUDA driver (libcuda.so.1) here that cuda-bindings can use: {error}"
            ) from None
        try:
            if code != 0:
                raise _error(binding, "cuInit", code)
            driver = cls(binding, handle_of)
            driver.make_current()
        except CudaError as error:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            among = "" if visible is None else f", with CUDA_VISIBLE_DEVICES={visible}"
            raise NoCuda(f"no card can be used{among}: {error}") from None
        return driver

    def close(self) -> None:
        """Gives the context back; it ends when nobody in the process has it any more."""
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def make_current(self) -> None:
        """Has this thread use the card. Cheap."""
        self._call("cuCtxSetCurrent", self._context)

    def bear_captures(self) -> None:
        """Lets this thread wait while another one captures a graph; it captures none itself.

        Where a capture was begun in the global mode, as PyTorch does unless it is told otherwise,
        CUDA refuses all threads what could disturb it, and ends it when one asks for that.
        """
        relaxed = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call("cuThreadExchangeStreamCaptureMode", relaxed)

    def page_lock(self, address: int, nbytes: int) -> None:
        """Keeps memory where it is, so that the card reads and writes it by itself.

        All of it is taken from the system then, whether it was used before or not.
        """
        portable = self._cuda.CU_MEMHOSTREGISTER_PORTABLE
        self._call("cuMemHostRegister", address, nbytes, portable)

    def page_unlock(self, address: int) -> None:
        """Undoes ``page_lock``."""
        self._call("cuMemHostUnregister", address)

    def allocate(self, nbytes: int) -> int:
        """The address of memory on the card, aligned to 256 bytes at least."""
        return int(self._call("cuMemAlloc", nbytes))

    def free(self, pointer: int) -> None:
        """Frees memory on the card, after waiting for all that the card does."""
        self._call("cuMemFree", pointer)

    def memory(self) -> tuple[int, int]:
        """Bytes of the card's memory that are free, and all that it has."""
        free, total = self._call("cuMemGetInfo")
        return free, total

    def stream(self) -> Any:
        """A stream that waits for no other by itself."""
        return self._call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:
        """Ends a stream when what is enqueued on it is done."""
        self._call("cuStreamDestroy", stream)

    def address(self, stream: Any) -> int:
        """A stream as other libraries in the process call it."""
        return int(self._handle_of(stream))

    def foreign_stream(self, address: int) -> Any:
        """A stream of another library, or 1 (DEFAULT_STREAM), or 2, the thread's own."""
        return self._cuda.CUstream(address)

    def event(self, timed: bool) -> Any:
        """An event. Threads that wait for it sleep."""
        flags = self._cuda.CUevent_flags
        untimed = 0 if timed else int(flags.CU_EVENT_DISABLE_TIMING)
        return self._call("cuEventCreate", int(flags.CU_EVENT_BLOCKING_SYNC) | untimed)

    def destroy_event(self, event: Any) -> None:
        """Frees an event."""
        self._call("cuEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        """Has the event stand for all that is enqueued on the stream so far."""
        self._call("cuEventRecord", event, stream)

    def wait_for(self, stream: Any, event: Any) -> None:
        """Has what is enqueued on the stream later wait for what the event stands for.

        The card waits, no thread. Later records of the event do not change that.
        """
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: Any) -> None:
        """Waits for what the event stands for."""
        self._call("cuEventSynchronize", event)

    def is_over(self, event: Any) -> bool:
        """Whether all that the event stands for is done."""
        (code,) = self._cuda.cuEventQuery(event)
        if code == self._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if code != 0:
            raise _error(self._cuda, "cuEventQuery", code)
        return True

    def seconds_between(self, begin: Any, end: Any) -> float:
        """From one timed event to another, both past."""
        return float(self._call("cuEventElapsedTime", begin, end)) / 1e3

    def synchronize_stream(self, stream: Any) -> None:
        """Waits for all that is enqueued on the stream."""
        self._call("cuStreamSynchronize", stream)

    def synchronize(self) -> None:
        """Waits for all that is enqueued in this process."""
        self._call("cuCtxSynchronize")

    def copy_in(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """To the card; returns at once if the source is page-locked."""
        self._call("cuMemcpyHtoDAsync", target, source, nbytes, stream)

    def copy_out(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """From the card; returns at once if the target is page-locked."""
        self._call("cuMemcpyDtoHAsync", target, source, nbytes, stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            code, *results = getattr(self._cuda, function)(*arguments)
        except (KeyError, ValueError) as error:
            # The driver is newer than the binding, which has no name for the code.
            message = f"{function}: cuda-bindings does not know the error: {error}"
            raise CudaError(_UNKNOWN, message) from None
        if code != 0:
            raise _error(self._cuda, function, code)
        return results[0] if len(results) == 1 else results


def _error(binding: Any, function: str, code: Any) -> CudaError:
    name = getattr(code, "name", str(code))
    _, text = binding.cuGetErrorString(code)
    return CudaError(name, f"{function}: {name}: {text.decode() if text else 'unknown'}")
