"""Runs a virtual broker's batches until all is answered, with requests that raise or kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from support.virtual_books import Request
from support.virtual_broker import VirtualBroker

from batchyard.broker.events import Batch
from batchyard.wire.errors import BatchyardError

_TURNS_MAX = 2000


def requests_of(batch: Batch) -> list[Request]:
    """Whose rows a batch has."""
    return [(part.group, part.first + i) for part in batch.parts for i in range(part.count)]


def run_all(
    b: VirtualBroker,
    raises: Mapping[Request, BatchyardError] | None = None,
    kills: Callable[[Batch], bool] = lambda _: False,
) -> list[Batch]:
    """Workers take their batches in order, until nothing waits; all batches that were run.

    A batch with one of the requests that raise comes to the first one's error. A worker dies of a
    batch that kills, with what it has ahead, and is replaced.
    """
    ran: list[Batch] = []
    for _ in range(_TURNS_MAX):
        b.tick(0.001)
        if not b.running:
            return ran
        batch = b.running[min(b.running)]
        ran.append(batch)
        error = (
            next((raises[r] for r in requests_of(batch) if r in raises), None) if raises else None
        )
        if kills(batch):
            b.die(batch.worker_id)
        elif error is not None:
            b.fail(batch, error)
        else:
            b.finish(batch)
    raise AssertionError("it never ends")
