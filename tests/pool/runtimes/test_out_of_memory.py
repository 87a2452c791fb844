"""Each framework's own way to say that there is no memory left is known without importing it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from batchyard.pool.runtimes.out_of_memory import give_back_cached_memory, is_out_of_memory


def error_of(module: str, name: str, message: str = "", base: type = RuntimeError) -> Exception:
    kind: type[Exception] = type(name, (base,), {"__module__": module})
    return kind(message)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        error_of("torch", "OutOfMemoryError"),
        error_of("torch.cuda", "OutOfMemoryError"),
        error_of("cupy.cuda.memory", "OutOfMemoryError", base=MemoryError),
        error_of("tensorflow.python.framework.errors_impl", "ResourceExhaustedError"),
        error_of("jaxlib._jax", "JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory"),
        error_of("jax.errors", "JaxRuntimeError", "RESOURCE_EXHAUSTED: Failed to allocate"),
        error_of("torch", "AcceleratorError", "CUDA error: out of memory\nCompile with"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA driver error: out of memory"),
        error_of(
            "cupy_backends.cuda.api.runtime",
            "CUDARuntimeError",
            "cudaErrorMemoryAllocation: out of memory",
        ),
        error_of(
            "cupy_backends.cuda.api.driver",
            "CUDADriverError",
            "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        ),
        error_of("cupy_backends.cuda.libs.cublas", "CUBLASError", "CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_it_is(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert is_out_of_memory(type("Subclass", (type(error),), {})(str(error)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no such luck"),
        ValueError("out of memory"),
        error_of("my_model", "OutOfMemoryError"),
        error_of(
            "cupy_backends.cuda.api.runtime",
            "CUDARuntimeError",
            "cudaErrorIllegalAddress: an illegal memory access was encountered",
        ),
        error_of("jaxlib._jax", "JaxRuntimeError", "INTERNAL: RESOURCE_EXHAUSTED"),
        error_of("torch", "AcceleratorError", "CUDA error: an illegal memory access"),
        error_of("tensorflow.python.framework.errors_impl", "InternalError"),
    ],
)
def test_it_is_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_frameworks_keep_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    pool = SimpleNamespace(free_all_blocks=lambda: done.append("cupy"))
    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: done.append("torch"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    give_back_cached_memory()
    assert done == ["torch", "cupy"]
    # Whatever a version of them makes of it.
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    monkeypatch.delitem(sys.modules, "cupy")
    give_back_cached_memory()
