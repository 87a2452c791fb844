"""The broker killed under load, and SIGTERM with much in flight."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import numpy as np

from batchyard.benchmarks.callables import Act
from batchyard.benchmarks.faults_load import RIGHT, SILENT, WRONG
from batchyard.benchmarks.faults_run import Effort, loads
from batchyard.benchmarks.faults_server import (
    BROKER,
    OBEDIENT,
    ServerView,
    faulty_server,
    kill_and_see,
    obedient_model,
    wait_until,
)
from batchyard.benchmarks.results import Figure
from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError

WORKERS = 3
_BATCH = 8
_BATCH_S = 0.05
_LOAD = 0.5
_TIMES = 10
_EVERY_S = 3.0
_IN_FLIGHT = 4 * WORKERS * _BATCH
_DRAINED = 1000
# Late enough that a client has sent them all, soon enough that few are answered.
_DRAIN_BATCH_S = 0.2
_LATE, _LATE_EVERY_S = 50, 0.01
_ANSWER_TIMEOUT_S = 30.0

BROKER_FIGURES = [
    Figure("broker_answered", "broker killed 10 times: answers ÷ requests", "share", None, 1.0),
    Figure("broker_running", "  requests that ran through a death", "requests"),
    Figure("broker_ran_twice", "  of them run twice", "requests", None, 0, True),
    Figure("broker_again", "  others run again: their answer was lost", "requests"),
    Figure("broker_back", "  from the death to the next answer", "ms"),
    Figure("broker_p99", "  p99 from the planned moment", "ms"),
    Figure("broker_slowest", "  slowest answer", "ms"),
]
DRAIN_FIGURES = [
    Figure(
        "drain_settled",
        "SIGTERM: answered or refused, of 1,000 in flight",
        "requests",
        None,
        _DRAINED,
    ),
    Figure("drain_silent", "  silent", "requests", None, 0, True),
    Figure("drain_refused", "  refused, of those in flight", "requests"),
    Figure("drain_late_refused", f"  refused, of {_LATE} sent later", "requests"),
    Figure("drain_late_silent", "  silent, of those sent later", "requests", None, 0, True),
    Figure("drain_refusal", "  slowest refusal", "ms"),
]


def measure_broker(effort: Effort) -> dict[str, list[float]]:
    """Kills it every 3 s, ten times, while requests come at half of the peak."""
    times = effort.times or _TIMES
    model = obedient_model({"max_batch_size": _BATCH, "max_enqueued_batches": 1000})
    deaths = []
    with (
        faulty_server([model], workers=WORKERS, batch_s=_BATCH_S) as server,
        loads(server.ipc, server.folder, effort.seed) as load,
    ):
        rate = _LOAD * load.peak(_IN_FLIGHT, 2.0)
        load.start(rate, (times + 1) * _EVERY_S)
        next_at = time.monotonic()
        for _ in range(times):
            next_at += _EVERY_S
            time.sleep(max(next_at - time.monotonic(), 0))
            victim = server.broker()
            deaths.append(kill_and_see(victim))
            _wait_for_another(server, victim)
        run = load.finish()
        ledger = server.ledger()
    starts = ledger.starts()
    runs = [r for r in ledger.runs() if r.ended is not None]
    through = {
        r.request
        for killed, dead in deaths
        for r in runs
        if r.started < killed and (r.ended or 0) > dead
    }
    twice = {request for request in run.ids.tolist() if starts[request] > 1}
    right = run.done[run.outcomes == RIGHT]
    back = [float(right[right > dead].min() - dead) * 1e3 for _, dead in deaths]
    return {
        "broker_answered": [run.answered_share],
        "broker_running": [float(len(through))],
        "broker_ran_twice": [float(len(through & twice))],
        "broker_again": [float(len(twice - through))],
        "broker_back": back,
        "broker_p99": [run.latency_ms(99)],
        "broker_slowest": [run.latency_ms(100)],
    }


def _wait_for_another(server: ServerView, old: int) -> None:
    def came() -> bool:
        return any(pid != old for pid in server.children(BROKER))

    wait_until(came, "there is another broker")


def measure_drain(effort: Effort) -> dict[str, list[float]]:
    """SIGTERM while 1,000 requests are unanswered; 50 more come after it."""
    model = obedient_model({"max_batch_size": 64, "max_enqueued_batches": 100})
    with (
        faulty_server([model], workers=WORKERS, batch_s=_DRAIN_BATCH_S) as server,
        Client(server.ipc) as client,
    ):
        client.predict(OBEDIENT, _inputs(0))
        first = [client.submit(OBEDIENT, _inputs(i)) for i in range(1, _DRAINED + 1)]
        # What was answered already makes room for as many more.
        while (missing := _DRAINED - sum(not future.done() for future in first)) > 0:
            first = [future for future in first if not future.done()]
            next_id = int(time.monotonic() * 1e6)
            first += [client.submit(OBEDIENT, _inputs(next_id + i)) for i in range(missing)]
        os.kill(server.supervisor, signal.SIGTERM)
        refused_after: list[float] = []
        late = Counter(_late(client, i, refused_after) for i in range(_LATE))
        counts = Counter(_outcome(future) for future in first)
    settled = counts[RIGHT] + counts["UNAVAILABLE"]
    return {
        "drain_settled": [float(settled)],
        "drain_silent": [float(counts[SILENT])],
        "drain_refused": [float(counts["UNAVAILABLE"])],
        "drain_late_refused": [float(late["UNAVAILABLE"])],
        "drain_late_silent": [float(late[SILENT])],
        "drain_refusal": [max(refused_after, default=0.0)],
    }


def _late(client: Client, i: int, refused_after: list[float]) -> str:
    time.sleep(_LATE_EVERY_S)
    sent = time.monotonic()
    try:
        outcome = _outcome(client.submit(OBEDIENT, _inputs(10**9 + i)))
    except BatchyardError as error:
        outcome = error.code
    if outcome == "UNAVAILABLE":
        refused_after.append((time.monotonic() - sent) * 1e3)
    return outcome


def _outcome(future: Future[Any]) -> str:
    try:
        y = future.result(_ANSWER_TIMEOUT_S)["y"]
    except BatchyardError as error:
        return error.code
    except TimeoutError:
        return SILENT
    return RIGHT if len(y) == 1 else WRONG


def _inputs(request: int) -> dict[str, Any]:
    return {
        "id": np.array([request]),
        "act": np.array([Act.ANSWER], np.int32),
        "x": np.array([request % 1000], np.float32),
    }
