"""New versions of a SavedModel found, loaded and switched to under load."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.faults_load import RIGHT
from batchyard.benchmarks.faults_run import Effort, LoadRun, loads
from batchyard.benchmarks.faults_server import faulty_server, wait_until
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.results import Figure
from batchyard.benchmarks.served import Model
from batchyard.clients import Client

NAME = "half_plus_two"
_TIMES = 20
_RATE = 200.0
_BEFORE_S = 4.0
_POLL_S = 0.1
_SWITCH_TIMEOUT_S = 90.0
_SPIN = "import time; until = time.monotonic() + {}\nwhile time.monotonic() < until: pass"

FIGURES = [
    Figure(
        "versions_failed",
        "new version under load, 20 times: failed requests",
        "requests",
        None,
        0,
        True,
    ),
    Figure("versions_p99", "  p99 while it comes", "ms", "versions_p99_before", 1.2, True),
    Figure(
        "versions_p99_spinning",
        "  p99 while only a process spins as long",
        "ms",
        "versions_p99_before",
    ),
    Figure("versions_p99_before", "  p99 before", "ms"),
    Figure("versions_p50", "  p50 while it comes", "ms", "versions_p50_before"),
    Figure("versions_p50_before", "  p50 before", "ms"),
    Figure("versions_switch", "  from its folder to its first answers", "s"),
]


def measure(effort: Effort) -> dict[str, list[float]]:
    """Twenty times: a calm stretch, a new version, and a process that only spins as long."""
    found: dict[str, list[float]] = {}
    with exported(NAME) as paths:
        path = paths[NAME]
        model = Model(NAME, str(path), {"max_batch_size": 8})
        pool = {"file_system_poll_wait_seconds": 1.0}
        with (
            faulty_server([model], workers=2, pool=pool) as server,
            loads(server.ipc, server.folder, effort.seed) as load,
            Client(server.ipc) as client,
        ):
            load.model = NAME
            load.start(_RATE, _BEFORE_S)
            load.finish()
            for version in range(2, 2 + (effort.times or _TIMES)):
                load.start(_RATE)
                time.sleep(_BEFORE_S)
                placed = time.monotonic()
                _add_version(path, version)
                _wait_for_version(client, version)
                switched = time.monotonic()
                # The old version's last work is part of it.
                time.sleep(_POLL_S)
                took_s = time.monotonic() - placed
                time.sleep(_BEFORE_S / 2)
                spun = time.monotonic()
                _spin(took_s)
                run = load.stop()
                values = _values(run, placed, placed + took_s, spun, spun + took_s)
                values["switch"] = switched - placed
                for name, value in values.items():
                    found.setdefault(f"versions_{name}", []).append(value)
    found["versions_failed"] = [sum(found["versions_failed"])]
    return found


def _values(
    run: LoadRun, placed: float, switched: float, spun: float, ended: float
) -> dict[str, float]:
    before = run.latencies_ms(until=placed)
    during = run.latencies_ms(placed, switched)
    spinning = run.latencies_ms(spun, ended)
    return {
        "failed": float(np.sum(run.outcomes != RIGHT)),
        "p99": float(np.percentile(during, 99)),
        "p99_spinning": float(np.percentile(spinning, 99)),
        "p99_before": float(np.percentile(before, 99)),
        "p50": float(np.percentile(during, 50)),
        "p50_before": float(np.percentile(before, 50)),
    }


def _add_version(path: Path, version: int) -> None:
    """Whole at once, as docs/configuration.md asks for: beside it first, then renamed."""
    unfinished = path.parent / f"{path.name}-{version}"
    shutil.copytree(path / "1", unfinished)
    unfinished.rename(path / str(version))


def _wait_for_version(client: Client, version: int) -> None:
    """Until requests that name none get this one."""

    def current() -> bool:
        return bool(client.metadata(NAME)["version"] == version)

    what = f"version {version} is served"
    wait_until(current, what, timeout_s=_SWITCH_TIMEOUT_S, step_s=_POLL_S)


def _spin(seconds: float) -> None:
    ended = subprocess.run([sys.executable, "-c", _SPIN.format(seconds)], check=False)
    if ended.returncode:
        raise BenchmarkFailed(f"the control process ended with {ended.returncode}")
