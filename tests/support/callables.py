"""Models for the python runtime, loaded by workers as ``callables.py:NAME``.

They run in a worker: this file imports nothing of the tests.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

_HELD_UP_S = 60.0
_batches = itertools.count(1)
_kept: dict[int, Array] = {}


def _folder() -> Path:
    # The name is defined in support.gates, which a worker cannot import.
    return Path(os.environ["BATCHYARD_TEST_GATES"])


def echo(inputs: Arrays) -> Arrays:
    """The inputs as they are: outputs that are views of the arena."""
    return inputs


def gated(inputs: Arrays) -> Arrays:
    """Waits before each gate named in the rows of ``gate``; 0 is none.

    Tells which batch each row was in: ``batch`` counts those of the process ``pid``, in order,
    and ``rows`` is how many rows the model saw.
    """
    gates = inputs["gate"]
    batch = next(_batches)
    for number in sorted({int(gate) for gate in gates.ravel() if gate}):
        _pass_gate(number)
    rows = len(gates)
    return {
        "gate": gates,
        "batch": np.full(rows, batch),
        "rows": np.full(rows, rows),
        "pid": np.full(rows, os.getpid()),
    }


def _pass_gate(number: int) -> None:
    reached = _folder() / f"reached-{number}"
    # Whole or not at all: the test may look at any time.
    unfinished = reached.with_suffix(f".{os.getpid()}")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(reached)
    deadline = time.monotonic() + _HELD_UP_S
    while not (_folder() / f"open-{number}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"gate {number} was not opened")
        time.sleep(0.001)


def recorded(inputs: Arrays) -> Arrays:
    """y = 2x; appends the rows that it saw to the file ``seen``, a line a batch."""
    with (_folder() / "seen").open("a") as file:
        file.write(f"{inputs['x'].tolist()}\n")
    return {"y": inputs["x"] * 2, "rows": np.full(len(inputs["x"]), len(inputs["x"]))}


def fails(inputs: Arrays) -> Arrays:
    """Raises for negative rows, and kills its process for rows of -9."""
    if (inputs["x"] == -9).any():
        os.kill(os.getpid(), signal.SIGKILL)
    if (inputs["x"] < 0).any():
        raise ValueError("x must not be negative")
    return {"y": inputs["x"]}


def place(inputs: Arrays) -> Arrays:
    """Where the inputs lie: address modulo 64, and whether that is inside of the arena."""
    rows = len(next(iter(inputs.values())))
    inside = [_offset_in("memfd:batchyard-arena", array) is not None for array in inputs.values()]
    return {
        "inside": np.full(rows, all(inside)),
        "misaligned": np.full(rows, max(array.ctypes.data % 64 for array in inputs.values())),
    }


def located(inputs: Arrays) -> Arrays:
    """``x`` as it is, its offset in a client's region (-1: it is not in one), and the rows."""
    x = inputs["x"]
    offset = _offset_in("memfd:batchyard-region", x)
    where = np.full(len(x), -1 if offset is None else offset)
    return {"x": x, "offset": where, "rows": np.full(len(x), len(x))}


def steady(inputs: Arrays) -> Arrays:
    """Whether ``x`` stays as it is while this waits before the gate in ``gate``."""
    x = inputs["x"]
    before = x.copy()
    _pass_gate(int(inputs["gate"][0]))
    return {"same": np.full(len(x), np.array_equal(x, before))}


def _offset_in(name: str, array: Array) -> int | None:
    """Where an array lies in the shared memory of that name, if it lies there whole."""
    start = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name in line:
            addresses, _, offset, *_ = line.split()
            first, end = (int(word, 16) for word in addresses.split("-"))
            if first <= start and start + array.nbytes <= end:
                return start - first + int(offset, 16)
    return None


def keep(inputs: Arrays) -> Arrays:
    """Keeps ``x`` itself under the number in ``slot``, and says whether what it keeps is whole.

    What is kept under n is to be full of n. A negative slot lets -slot go.
    """
    x, slot = inputs["x"], int(inputs["slot"][0])
    if slot < 0:
        del _kept[-slot]
    elif slot > 0:
        _kept[slot] = x
    whole = all((array == number).all() for number, array in _kept.items())
    return {"whole": np.full(len(x), whole), "kept": np.full(len(x), len(_kept))}


def keep_a_moment(inputs: Arrays) -> Arrays:
    """Lets the inputs go, on another thread, just after the worker has seen that it keeps them."""
    memory = inputs["x"]
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    # The worker looks by one weak reference, and sets up another to be told of the end.
    seen_by = weakref.getweakrefcount(memory)
    kept = [memory]
    del memory
    sys.setswitchinterval(1e-6)

    def let_go() -> None:
        deadline = time.monotonic() + 1.0
        while weakref.getweakrefcount(kept[0]) <= seen_by and time.monotonic() < deadline:
            pass
        kept.clear()
        sys.setswitchinterval(0.005)

    threading.Thread(target=let_go).start()
    return {"y": np.zeros(len(inputs["x"]))}


def grow(inputs: Arrays) -> Arrays:
    """Rows of as many numbers as the first of ``width`` says, each the row's ``value``."""
    width = int(inputs["width"][0])
    return {"y": np.repeat(inputs["value"][:, None], width, axis=1)}


class TensorFlowAlias:
    """Whether TensorFlow's session takes the arena's memory as it is.

    The SavedModel ``raises`` gives its input back by ``tf.identity``, which shares memory; so
    the output lies where the session has its copy of the input, if it made one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Any = None

    def __call__(self, inputs: Arrays) -> Arrays:
        x = inputs["x"]
        with self._lock:
            if self._model is None:
                self._model = self._load()
        # One element on: 4 bytes past what is aligned, which TensorFlow has to copy.
        answers = [self._is_shared(x), self._is_shared(x[1:])]
        return {
            "aligned_is_shared": np.full(len(x), answers[0]),
            "misaligned_is_shared": np.full(len(x), answers[1]),
        }

    def _is_shared(self, x: Array) -> bool:
        ((_, y),) = self._model.run("serving_default", {"x": x})
        assert (y == x).all()
        return bool(y.ctypes.data == x.ctypes.data)

    def _load(self) -> Any:
        from batchyard.pool.runtimes.savedmodel import load_savedmodel
        from batchyard.wire.control import ModelSource, WorkerSettings

        settings = WorkerSettings(0, 0, "cpu", None, False, 1, 0, None, 1, [])
        path = os.environ["BATCHYARD_TEST_RAISES"]
        source = ModelSource("raises", 1, "savedmodel", path, [1], None)
        return load_savedmodel(source, settings)


tensorflow_alias = TensorFlowAlias()


def classifier(inputs: Arrays) -> Arrays:
    """Each example is ``short`` and ``long``, by its bytes."""
    lengths = np.array([len(example) for example in inputs["inputs"]], np.float32)
    classes = np.empty((len(lengths), 2), object)
    classes[:] = [b"short", b"long"]
    return {"classes": classes, "scores": np.stack([100 - lengths, lengths], axis=1)}


def wrong_classifier(inputs: Arrays) -> Arrays:
    """One score for each example, which is not how classes come."""
    return {"scores": np.zeros(len(inputs["inputs"]), np.float32)}
