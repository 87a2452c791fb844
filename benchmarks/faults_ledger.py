"""Which requests a model ran, written by its workers so that it outlives each of them.

Every run of a batch appends two records a row to one file, when it starts and when it ends. A
write of the kernel's is whole and stays, whoever is killed after it. Times are
``time.monotonic()``, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER_VARIABLE = "BATCHYARD_FAULTS_FOLDER"
BATCH_S_VARIABLE = "BATCHYARD_FAULTS_BATCH_S"
STARTED, ENDED, RAISED = 1, 2, 3
_FILE = "ledger"
_RECORD = np.dtype([("at", "f8"), ("pid", "i4"), ("what", "i4"), ("id", "i8")])

Ids = npt.NDArray[np.int64]


class Writer:
    """A worker's end."""

    def __init__(self, folder: str) -> None:
        self._fd = os.open(f"{folder}/{_FILE}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def write(self, what: int, ids: Ids) -> None:
        """Notes what happens to these requests now; id 0 is a warm-up's."""
        ids = ids[ids > 0]
        records = np.empty(len(ids), _RECORD)
        records["at"], records["pid"], records["what"] = time.monotonic(), os.getpid(), what
        records["id"] = ids
        os.write(self._fd, records.tobytes())


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one request; ``ended`` is None when its process ended first."""

    request: int
    pid: int
    started: float
    ended: float | None


class Ledger:
    """What the workers of one server have written so far."""

    def __init__(self, folder: Path) -> None:
        path = folder / _FILE
        self.records: npt.NDArray[Any] = np.fromfile(path, _RECORD) if path.exists() else _nothing()

    def starts(self) -> Counter[int]:
        """How often each request began to run."""
        records = self.records
        return Counter(records["id"][records["what"] == STARTED].tolist())

    def runs(self) -> list[Run]:
        """Every run of every request, in the order in which they began."""
        runs: list[Run] = []
        open_runs: dict[tuple[int, int], int] = {}
        for at, pid, what, request in self.records.tolist():
            if what == STARTED:
                open_runs[pid, request] = len(runs)
                runs.append(Run(request, pid, at, None))
            else:
                i = open_runs.pop((pid, request))
                runs[i] = Run(request, pid, runs[i].started, at)
        return runs

    def story(self, request: int) -> list[str]:
        """A line for each record of a request."""
        names = {STARTED: "starts", ENDED: "ends", RAISED: "raises"}
        return [
            f"{r['at']:.3f} {names[int(r['what'])]} in process {r['pid']}"
            for r in self.records[self.records["id"] == request]
        ]


def _nothing() -> npt.NDArray[Any]:
    return np.empty(0, _RECORD)
