"""What a model raises, as an error that travels."""

from __future__ import annotations

from batchyard.pool.runtimes.out_of_memory import is_out_of_memory
from batchyard.wire.errors import BatchyardError, Internal, ResourceExhausted


def explain(model: str, error: BaseException) -> BatchyardError:
    """The error itself where it is typed; RESOURCE_EXHAUSTED without memory; else INTERNAL."""
    if isinstance(error, BatchyardError):
        return error
    if is_out_of_memory(error):
        said = f": {error}" if str(error) else ""
        return ResourceExhausted(f"model {model!r}: the worker has no memory left{said}")
    return Internal(f"model {model!r}: {type(error).__name__}: {error}")
