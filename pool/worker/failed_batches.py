"""A batch that raised: what the broker is answered, and what the log says."""

from __future__ import annotations

from batchyard.pool.runtimes.model_errors import explain
from batchyard.wire import log, work
from batchyard.wire.errors import BY_NUMBER


def answer_to(execute: work.Execute, error: BaseException) -> work.Failed:
    """Whatever a model raises is the answer to its batch: SystemExit too."""
    explained = explain(execute.model, error)
    return work.Failed(execute.batch_id, explained.number, explained.message, False)


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
