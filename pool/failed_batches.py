"""A batch that raised: what the broker is answered, and what the log says."""

from __future__ import annotations

from batchyard.pool.runtimes.out_of_memory import is_out_of_memory
from batchyard.wire import log, work
from batchyard.wire.errors import BY_NUMBER, BatchyardError, Internal, ResourceExhausted


def answer_to(execute: work.Execute, error: BaseException) -> work.Failed:
    """Whatever a model raises is the answer to its batch: SystemExit too."""
    if isinstance(error, BatchyardError):
        return work.Failed(execute.batch_id, error.number, error.message, False)
    if is_out_of_memory(error):
        message = f"model {execute.model!r}: the worker has no memory left {error}".rstrip()
        return work.Failed(execute.batch_id, ResourceExhausted.number, message, False)
    message = f"model {execute.model!r}: {type(error).__name__}: {error}"
    return work.Failed(execute.batch_id, Internal.number, message, False)


def tell_of(execute: work.Execute, failed: work.Failed) -> None:
    """The broker sees to its requests, but here is what they met."""
    ids = execute.request_ids
    log.limited(
        "warning",
        "batch_failed",
        model=execute.model,
        version=execute.version,
        signature=execute.signature,
        batch=execute.batch_id,
        rows=execute.rows,
        code=BY_NUMBER[failed.number].code,
        **({"request_id": ",".join(ids)} if ids else {}),
        reason=failed.message,
    )
