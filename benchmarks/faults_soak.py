"""Mixed load and faults for long: does anything grow, and is anything left?"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from batchyard.benchmarks.faults_chaos import (
    ARENA_MB,
    BATCH_TIMEOUT_S,
    Chaos,
    chaos_models,
    run_chaos,
    settle,
)
from batchyard.benchmarks.faults_run import Effort
from batchyard.benchmarks.faults_server import (
    BROKER,
    WORKER,
    ServerView,
    descriptors,
    faulty_server,
    is_alive,
    own_mb,
    rss_mb,
    shared_memory,
)
from batchyard.benchmarks.results import Figure

_SECONDS = 600.0
_WORKERS = 3
_BATCH_S = 0.002
_QUIET_S = 3.0
# The first part may kill the broker too. Then the broker that came is watched.
_FIRST = 0.1
_WATCHED_FAULTS = (
    "kill_worker",
    "die_at_call",
    "pause_worker",
    "stop_worker",
    "kill_client",
    "stop_client",
    "garbage",
    "reload",
)
# Of the samples: those after the warm-up that stand for the start, and those for the end.
_EARLY, _END = slice(1, 3), slice(9, 10)
_TENTHS = 10

FIGURES = [
    Figure(
        "soak_unexplained",
        "mixed load and faults: calls without their one right outcome",
        "calls",
        None,
        0,
        True,
    ),
    Figure("soak_calls", "  calls", "calls"),
    Figure("soak_faults", "  faults", "faults"),
    Figure("soak_broker_growth", "  growth of the broker's RSS", "%", None, 5, True),
    Figure("soak_supervisor_growth", "  growth of the supervisor's RSS", "%", None, 5, True),
    Figure("soak_broker_rss", "  the broker's RSS, by second", "MiB"),
    Figure("soak_broker_own", "    of it what is no file and not shared", "MiB"),
    Figure("soak_supervisor_rss", "  the supervisor's RSS, by second", "MiB"),
    Figure("soak_broker_slope", "  the broker's RSS, slope", "MiB/h"),
    Figure("soak_supervisor_slope", "  the supervisor's RSS, slope", "MiB/h"),
    Figure(
        "soak_descriptors",
        "  descriptors of broker and supervisor left open",
        "files",
        None,
        0,
        True,
    ),
    Figure("soak_processes", "  processes left after the stop", "processes", None, 0, True),
    Figure("soak_files", "  sockets left after the stop", "files", None, 0, True),
    Figure("soak_shm", "  left in /dev/shm", "files", None, 0, True),
]


class Watch:
    """Samples of memory, and every process that was seen."""

    def __init__(self, server: ServerView) -> None:
        self._server = server
        self.broker: list[float] = []
        self.broker_own: list[float] = []
        self.supervisor: list[float] = []
        self.seen: set[int] = {server.supervisor}

    def look(self) -> None:
        """One sample."""
        server = self._server
        brokers = server.children(BROKER)
        self.seen.update(brokers, server.children(WORKER))
        self.broker += [rss_mb(pid) for pid in brokers]
        self.broker_own += [own_mb(pid) for pid in brokers]
        self.supervisor.append(rss_mb(server.supervisor))

    def forget(self) -> None:
        """Starts the samples anew."""
        self.broker.clear()
        self.broker_own.clear()
        self.supervisor.clear()


def measure(effort: Effort) -> dict[str, list[float]]:
    """Ten minutes. What is not explained is told on standard error, with its story."""
    seconds = effort.seconds or _SECONDS
    shm_before = shared_memory()
    models = chaos_models(batch_execution_timeout=BATCH_TIMEOUT_S)
    pool = {"arena_mb": ARENA_MB}
    with faulty_server(models, workers=_WORKERS, batch_s=_BATCH_S, pool=pool) as server:
        watch = Watch(server)
        first = run_chaos(
            server, seconds=seconds * _FIRST, seed=effort.seed, each_second=watch.look
        )
        settle(server)
        files_before = _open_files(server)
        watch.forget()
        chaos = run_chaos(
            server,
            seconds=seconds * (1 - _FIRST),
            seed=effort.seed,
            faults=_WATCHED_FAULTS,
            run=1,
            each_second=watch.look,
        )
        settle(server)
        more = _open_files(server) - files_before
        server.end()
        left = {
            "descriptors": more.total(),
            "processes": sum(is_alive(pid) for pid in watch.seen),
            "files": len(list(Path(server.ipc.removeprefix("ipc://")).parent.glob("*"))),
            "shm": len(shared_memory() - shm_before),
        }
    if more:
        print(f"descriptors that were not open before: {dict(more)}", file=sys.stderr)
    for run in (first, chaos):
        if run.violations:
            print(run.told(), file=sys.stderr)
    values = {
        "unexplained": len(first.violations) + len(chaos.violations),
        "calls": _calls(first) + _calls(chaos),
        "faults": len(first.timeline) // 2 + len(chaos.timeline) // 2,
        "broker_growth": _growth_percent(watch.broker),
        "supervisor_growth": _growth_percent(watch.supervisor),
        "broker_slope": _slope_an_hour(watch.broker),
        "supervisor_slope": _slope_an_hour(watch.supervisor),
        **left,
    }
    return {
        **{f"soak_{name}": [float(value)] for name, value in values.items()},
        "soak_broker_rss": watch.broker,
        "soak_broker_own": watch.broker_own,
        "soak_supervisor_rss": watch.supervisor,
    }


def _calls(chaos: Chaos) -> int:
    return sum(chaos.counts.values())


def _open_files(server: ServerView) -> Counter[str]:
    """Of broker and supervisor, when whoever has left is gone for the broker too."""
    fewest = descriptors(server.broker()) + descriptors(server.supervisor)
    until = time.monotonic() + _QUIET_S
    while time.monotonic() < until:
        now = descriptors(server.broker()) + descriptors(server.supervisor)
        fewest = min(fewest, now, key=Counter.total)
        time.sleep(0.1)
    return fewest


def _growth_percent(samples: list[float]) -> float:
    tenths = np.array_split(np.array(samples), _TENTHS)
    early = np.median(np.concatenate(tenths[_EARLY]))
    end = np.median(np.concatenate(tenths[_END]))
    return float(end / early - 1) * 100


def _slope_an_hour(samples: list[float]) -> float:
    """Least squares; samples are a second apart, the first tenth is left out."""
    rest = samples[len(samples) // _TENTHS :]
    return float(np.polyfit(np.arange(len(rest)), rest, 1)[0]) * 3600
