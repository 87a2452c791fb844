"""The peers at the workloads: their servers started, checked, and measured over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from batchyard.benchmarks.peers.catalog import Peer
from batchyard.benchmarks.peers.contestant import Contestant, ContestantFailed
from batchyard.benchmarks.peers.formats import Array, Format
from batchyard.benchmarks.peers.http_load import Connection, HttpFailed, Request, requests_per_s
from batchyard.benchmarks.peers.peer_server import PeerServer
from batchyard.benchmarks.peers.workloads import Workload
from batchyard.benchmarks.timing import p50_us

# Of the time that is measured, what goes before it.
_WARM_UP_SHARE = 0.25
# The same row in batches of other sizes is rounded differently.
_TOLERANCE = 1e-3


def contestants(
    stack: contextlib.ExitStack,
    peer: Peer,
    workload: Workload,
    model: Path,
    outputs: Sequence[Array],
) -> list[Contestant]:
    """Starts a peer's server, which ends with the stack; the ways to talk to it.

    ``model`` is the folder of a SavedModel, ``outputs`` has what the model makes of each of the
    workload's rows. Raises ContestantFailed.
    """
    rows = workload.rows()
    server = PeerServer(peer, model, workload.batching)
    with contextlib.ExitStack() as started, _failures():
        started.enter_context(server)
        server.wait_until_answering(peer.format.requests(server.port, rows[:1])[0])
        found = []
        for key, (title, format_) in peer.formats(workload.is_large).items():
            contents = format_.requests(server.port, rows)
            requests = [
                Request(content, partial(check, format_, output))
                for content, output in zip(contents, outputs, strict=True)
            ]
            found.append(Contestant(key, title, partial(_measure, server, workload, requests)))
        server.rest()
        stack.enter_context(started.pop_all())
    return found


def check(format_: Format, right: Array, body: bytes) -> None:
    """Raises HttpFailed where an answer holds another output than the right one."""
    found = format_.output(body)
    if found.shape != right.shape or not np.allclose(found, right, rtol=_TOLERANCE):
        raise HttpFailed(f"answers {found[:3]} where {right[:3]} is right")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What can become of a server, as ContestantFailed."""
    try:
        yield
    except (HttpFailed, OSError) as error:
        raise ContestantFailed(str(error)) from None


def _measure(
    server: PeerServer, workload: Workload, requests: Sequence[Request], seconds: float
) -> float:
    with _failures(), server.going():
        if workload.is_latency:
            return latency_us(server.port, requests[0], seconds)
        return max(
            requests_per_s(server.port, requests[:count], seconds * _WARM_UP_SHARE, seconds)
            for count in workload.in_flight
        )


def latency_us(port: int, request: Request, seconds: float) -> float:
    """The median of how long a request takes, one after the other. Raises HttpFailed."""
    with Connection(port) as connection:
        request.check(connection.call(request.content))
        call = partial(connection.call, request.content)
        p50_us(call, seconds * _WARM_UP_SHARE)
        return p50_us(call, seconds)
