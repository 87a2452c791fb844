"""How soon the death, or the standstill, of a worker is known."""

from __future__ import annotations

import os
import select
import signal
import time

import numpy as np

from batchyard.benchmarks.callables import Act
from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.faults_ledger import STARTED
from batchyard.benchmarks.faults_run import Effort
from batchyard.benchmarks.faults_server import (
    OBEDIENT,
    ServerView,
    faulty_server,
    kill_and_see,
    obedient_model,
    wait_until,
)
from batchyard.benchmarks.results import Figure
from batchyard.clients import Client

TIMEOUT_S = 0.5
_WORKERS = 2
_TIMES = 10
_DEADLINE_S = 30.0

FIGURES = [
    Figure("killed_slowest", "a killed worker is known: slowest", "ms", None, 50, True),
    Figure("killed", "  each, from the kill to the broker's word", "ms"),
    Figure(
        "hung_slowest",
        "a hung worker is killed: slowest, beyond its timeout",
        "ms",
        None,
        100,
        True,
    ),
    Figure("hung", "  each whose model hangs, from its start", "ms"),
    Figure("stopped", "  each that was stopped (SIGSTOP), from the request", "ms"),
]


def measure(effort: Effort) -> dict[str, list[float]]:
    """Ten deaths of each kind, each after the pool is whole again.

    Known is a killed worker when the broker's stats, asked one time after the other, no longer
    have it as one that can take batches. A hung one is known, at the latest, when it is dead.
    """
    times = effort.times or _TIMES
    model = obedient_model({"max_batch_size": 1}, batch_execution_timeout=TIMEOUT_S)
    with (
        faulty_server([model], workers=_WORKERS) as server,
        Client(server.ipc) as client,
    ):
        killed = [_killed_ms(server, client) for _ in range(times)]
        hung = [_hung_ms(server, client, i) for i in range(times)]
        stopped = [_stopped_ms(server, client, i) for i in range(times)]
    return {
        "killed": killed,
        "killed_slowest": [max(killed)],
        "hung": hung,
        "stopped": stopped,
        "hung_slowest": [max(*hung, *stopped)],
    }


def _killed_ms(server: ServerView, client: Client) -> float:
    server.wait_until_all_live(client)
    victim = min(server.live_workers(client.stats()))
    killed_at, _ = kill_and_see(victim)
    wait_until(
        lambda: victim not in server.live_workers(client.stats()), "the death is known", step_s=0
    )
    return (time.monotonic() - killed_at) * 1e3


def _hung_ms(server: ServerView, client: Client, number: int) -> float:
    """Beyond the timeout. The request dies twice, and that is all of it: see docs/failures.md."""
    server.wait_until_all_live(client)
    request = 1000 + number
    future = client.submit(OBEDIENT, _inputs(request, Act.HANG))

    def started() -> list[tuple[float, int]]:
        records = server.ledger().records
        mine = records[(records["id"] == request) & (records["what"] == STARTED)]
        return [(float(r["at"]), int(r["pid"])) for r in mine]

    begun: list[tuple[float, int]] = wait_until(
        started, "a worker takes the request up", step_s=0.001
    )
    at, pid = begun[0]
    ended_at = _end_of(pid)
    if future.exception(_DEADLINE_S) is None:
        raise BenchmarkFailed("a request that hangs was answered")
    return (ended_at - at - TIMEOUT_S) * 1e3


def _stopped_ms(server: ServerView, client: Client, number: int) -> float:
    """Beyond the timeout, from the moment at which all workers were given something to run."""
    server.wait_until_all_live(client)
    victim = min(server.live_workers(client.stats()))
    os.kill(victim, signal.SIGSTOP)
    sent_at = time.monotonic()
    # More than the others take before they have answered: some go to the victim.
    futures = [
        client.submit(OBEDIENT, _inputs(2000 + 10 * number + i, Act.ANSWER))
        for i in range(2 * _WORKERS)
    ]
    ended_at = _end_of(victim)
    for future in futures:
        future.result(_DEADLINE_S)
    return (ended_at - sent_at - TIMEOUT_S) * 1e3


def _end_of(pid: int) -> float:
    """The moment at which a process ends."""
    watched = os.pidfd_open(pid)
    try:
        if not select.select([watched], [], [], _DEADLINE_S)[0]:
            raise BenchmarkFailed(f"a worker that hung was left alone for {_DEADLINE_S:g} s")
        return time.monotonic()
    finally:
        os.close(watched)


def _inputs(request: int, act: Act) -> dict[str, object]:
    return {
        "id": np.array([request]),
        "act": np.array([act], np.int32),
        "x": np.array([request], np.float32),
    }
