"""A pool of GPU workers for a check: a real server, what it is asked, and what it logs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from batchyard.benchmarks.failures import BenchmarkFailed
from batchyard.benchmarks.served import Model, configuration
from batchyard.cli.local_server import server_bound_to
from batchyard.clients import Client

T = TypeVar("T")

# A framework compiles, or loads its kernels, with the first request.
_ANSWER_S = 180.0
_STEP_S = 0.05
_ARENA_MB = 256
_MODELS = Path(__file__).parent / "models"
# Of models/card.py, which needs no framework.
SIGHT, FAULT = "sight", "fault"


class Pool:
    """A server that runs; see ``running``."""

    def __init__(self, client: Client, log: Path) -> None:
        self._client = client
        self._log = log

    def allocate(self, mib: float) -> None:
        """Has some worker take that many MiB. Raises a BatchyardError."""
        answer = self._client.predict("allocate", _allocation(mib), timeout=_ANSWER_S)
        if answer["mib"].item() != mib:
            raise BenchmarkFailed(f"asked for {mib:g} MiB, a worker took {answer['mib'].item():g}")

    def allocate_everywhere(self, mib: float, is_done: Callable[[], bool], why: str) -> None:
        """Has every worker take that many MiB: as many requests at once as there are workers.

        Who gets which is the broker's choice, so that is done again until all have.
        """
        deadline = time.monotonic() + _ANSWER_S
        while not is_done():
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"not within {_ANSWER_S:g} s: {why}")
            requests = [
                self._client.submit("allocate", _allocation(mib), timeout=_ANSWER_S)
                for _ in self.pids
            ]
            for request in requests:
                request.result()

    def sights(self, workers: int) -> set[tuple[int, int, str]]:
        """What as many workers see: process id, number of CUDA devices, the first one's UUID.

        The UUID is in hexadecimal digits.
        """
        seen: dict[int, tuple[int, str]] = {}
        deadline = time.monotonic() + _ANSWER_S
        while len(seen) < workers:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{len(seen)} of {workers} workers said what they see")
            # At once: one after the other would all go to the same.
            for request in [
                self._client.submit(SIGHT, _no_input(), timeout=_ANSWER_S)
                for _ in range(2 * workers)
            ]:
                answer = request.result()
                uuid = answer["uuid"].item().decode()
                seen[answer["pid"].item()] = answer["devices"].item(), uuid
        return {(pid, *what) for pid, what in seen.items()}

    def break_context(self) -> None:
        """Has a worker break its context. Raises a BatchyardError, as it should."""
        self._client.predict(FAULT, {"x": np.ones((1, 1), np.float32)}, timeout=_ANSWER_S)

    def submit(self, mib: float) -> Any:
        """The same as ``allocate``, as a future."""
        return self._client.submit("allocate", _allocation(mib), timeout=_ANSWER_S)

    @property
    def pids(self) -> list[int]:
        """The workers' processes that are ready, in their order."""
        workers = self._client.stats()["workers"]
        return [w["pid"] for w in workers if w["state"] in ("READY", "BUSY")]

    def kill(self, pid: int) -> None:
        """Ends a worker as a crash would."""
        os.kill(pid, signal.SIGKILL)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the processes logged of one kind, so far."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found.append(event)
        return found


@contextlib.contextmanager
def running(
    allocation: Model, worker: Mapping[str, Any], *, workers: int = 1, may_break: bool = False
) -> Iterator[Pool]:
    """Serves a model that allocates, and those of ``models/card.py``.

    ``worker`` has keys of ``[[pool.workers]]``. Raises ServerDidNotStart.
    """
    models = [allocation]
    if has_binding():
        models += [_sight(), *([_fault()] if may_break else [])]
    with tempfile.TemporaryDirectory(prefix="batchyard-") as name:
        folder = Path(name)
        config = folder / "config.toml"
        log = folder / "log"
        text = configuration(models, workers, worker, {"arena_mb": _ARENA_MB})
        config.write_text('[log]\nformat = "json"\n' + text)
        bind = [f"ipc://{folder}/broker"]
        with server_bound_to(bind, [str(config)], log) as (endpoint,), Client(endpoint) as client:
            pool = Pool(client, log)
            wait(lambda: len(pool.pids) >= workers, f"{workers} workers are ready")
            yield pool


def python_allocation(path: str, *, device_arrays: bool = True) -> Model:
    """A function that takes ``mib`` and returns it, ``file.py:function``."""
    tensor = {"mib": ("float32", (-1, 1))}
    settings = {"device_arrays": True} if device_arrays else {}
    return Model("allocate", path, _UNBATCHED, tensor, tensor, settings)


def saved_allocation(folder: Path) -> Model:
    """A SavedModel that does the same."""
    return Model("allocate", str(folder), _UNBATCHED)


def wait(condition: Callable[[], T], what: str, timeout_s: float = 60.0) -> T:
    """The first true value that it gives. Raises BenchmarkFailed."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"not within {timeout_s:g} s: {what}")
        time.sleep(_STEP_S)
    return value


def has_binding() -> bool:
    """Whether NVIDIA's binding to CUDA's driver is here: without it there is no ``sights``."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


def models_folder() -> Path:
    """Where the files of python models are."""
    return _MODELS


_UNBATCHED: Mapping[str, Any] = {"enable_batching": False}
_SCALAR: tuple[str, Sequence[int]] = ("float32", (-1, 1))


def _sight() -> Model:
    outputs = {
        "devices": ("int32", (-1, 1)),
        "uuid": ("string", (-1, 1)),
        "pid": ("int32", (-1, 1)),
    }
    return Model(SIGHT, f"{_MODELS / 'card.py'}:sight", _UNBATCHED, {"x": _SCALAR}, outputs)


def _fault() -> Model:
    # Once is enough: it is not to be tried on the next worker.
    settings = {"retry": False}
    path = f"{_MODELS / 'card.py'}:fault"
    return Model(FAULT, path, _UNBATCHED, {"x": _SCALAR}, {"x": _SCALAR}, settings)


def _allocation(mib: float) -> dict[str, Any]:
    return {"mib": np.full((1, 1), mib, np.float32)}


def _no_input() -> dict[str, Any]:
    return {"x": np.zeros((1, 1), np.float32)}
