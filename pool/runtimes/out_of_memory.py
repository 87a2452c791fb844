"""How frameworks say that a card has no memory left, told without importing them."""

from __future__ import annotations

import contextlib
import sys

from batchyard.wire.control import WorkerSettings

# By the module that they come from, as far as its first dot, and their name. Of PyTorch before 2.5
# the module is torch.cuda; CuPy's is a MemoryError besides.
_CLASSES = {
    ("torch", "OutOfMemoryError"),
    ("cupy", "OutOfMemoryError"),
    ("tensorflow", "ResourceExhaustedError"),
}
# Of these only the message says so. jaxlib has one class for all that XLA reports; PyTorch and CuPy
# raise these where memory is not taken through their own allocators.
_MESSAGES = (
    ("jax", "RESOURCE_EXHAUSTED"),
    ("jaxlib", "RESOURCE_EXHAUSTED"),
    ("torch", "CUDA error: out of memory"),
    ("builtins", "CUDA error: out of memory"),
    ("builtins", "CUDA driver error: out of memory"),
    ("builtins", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ("builtins", "RESOURCE_EXHAUSTED: Out of memory"),
    ("cupy_backends", "cudaErrorMemoryAllocation"),
    ("cupy_backends", "CUDA_ERROR_OUT_OF_MEMORY"),
    ("cupy_backends", "CUBLAS_STATUS_ALLOC_FAILED"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a framework, or Python itself, had no memory left."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    for each in type(error).__mro__:
        package = each.__module__.partition(".")[0]
        if (package, each.__name__) in _CLASSES:
            return True
        if any(package == where and said.startswith(words) for where, words in _MESSAGES):
            return True
    return False


def too_large(settings: WorkerSettings) -> str:
    """Why a model is not loaded for which there is no memory, and what would be right."""
    if settings.device == "cpu":
        return "the worker has no memory left for it"
    if settings.memory_limit_mb is None:
        return (
            f"{settings.device} has no memory left for it; this worker has no cap, others on the "
            "card take theirs"
        )
    return (
        f"it needs more than the {settings.memory_limit_mb} MiB of {settings.device} that this "
        "worker may take, less what its other models take: raise gpu_memory_limit_mb or "
        "per_process_gpu_memory_fraction"
    )


def give_back_cached_memory() -> None:
    """Has the frameworks of this process return what they keep of a card's memory unused.

    They keep it for their next call. But a batch's buffers, and other processes on the card, need
    some too, and here it ran out.
    """
    with contextlib.suppress(Exception):
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    with contextlib.suppress(Exception):
        cupy = sys.modules.get("cupy")
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()
