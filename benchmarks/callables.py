"""Models of the python runtime that benchmarks serve."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from batchyard.benchmarks import faults_ledger

BATCH_S = 0.02
# Longer than anybody waits for it.
_FOREVER_S = 86_400.0


def one_value(inputs: dict[str, Any]) -> dict[str, Any]:
    """Reads one number of each row: what is measured is how its bytes got here."""
    x = inputs["x"]
    # The first number; a copy, as an answer that is a view of its input would keep the batch.
    return {"y": x.reshape(len(x), -1)[:, 0].copy()}


def simulated_gpu(inputs: dict[str, Any]) -> dict[str, Any]:
    """A device of known speed: a batch takes 20 ms, however many rows it has."""
    time.sleep(BATCH_S)
    return {"y": np.add(inputs["x"], 1)}


def linear_gpu(inputs: dict[str, Any]) -> dict[str, Any]:
    """A device whose batches take longer the more rows they have: 4 ms, and 2 ms a row."""
    time.sleep(BATCH_S / 5 + len(inputs["x"]) * BATCH_S / 10)
    return {"y": np.add(inputs["x"], 1)}


def costly_gpu(inputs: dict[str, Any]) -> dict[str, Any]:
    """A device to which each batch costs much, and each row little: 10 ms, and 1 ms a row."""
    time.sleep(BATCH_S / 2 + len(inputs["x"]) * BATCH_S / 20)
    return {"y": np.add(inputs["x"], 1)}


def obedient(inputs: dict[str, Any]) -> dict[str, Any]:
    """y = 2x + id mod 1000, after a while, unless a row's ``act`` or a file says otherwise.

    Every run is written to the ledger. See ``Act``, and ``order`` for the files. Without ``act``
    all rows are good.
    """
    ids = inputs["id"]
    acts = set(inputs["act"].tolist()) if "act" in inputs else set()
    ledger = _ledger()
    ledger.write(faults_ledger.STARTED, ids)
    _obey("before")
    if Act.DIE in acts:
        os.kill(os.getpid(), signal.SIGKILL)
    if Act.HANG in acts:
        time.sleep(_FOREVER_S)
    if Act.RAISE in acts:
        ledger.write(faults_ledger.RAISED, ids)
        raise ValueError("a row says: raise")
    _obey("during")
    time.sleep(float(os.environ.get(faults_ledger.BATCH_S_VARIABLE, "0")))
    y = expected(inputs["x"], ids)
    ledger.write(faults_ledger.ENDED, ids)
    _obey("after")
    return {"y": y}


class Act(IntEnum):
    """What a row has ``obedient`` do to the batch that it is in."""

    ANSWER = 0
    RAISE = 1
    DIE = 2
    HANG = 3


def expected(x: Any, ids: Any) -> Any:
    """The answer of ``obedient``; it depends on every row, so that one swapped is seen."""
    added = (ids % 1000).astype(np.float32)
    return 2 * x + added.reshape(-1, *[1] * (x.ndim - 1))


def order(folder: Path, when: str) -> None:
    """Has the process whose model runs next die ``before``, ``during`` or ``after`` it."""
    (folder / f"die-{when}").touch()


def _obey(when: str) -> None:
    folder = os.environ.get(faults_ledger.FOLDER_VARIABLE)
    # Whoever removes the file is the one that was meant.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{folder}/die-{when}")
        os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def _ledger() -> faults_ledger.Writer:
    return faults_ledger.Writer(os.environ[faults_ledger.FOLDER_VARIABLE])
