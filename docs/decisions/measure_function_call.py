"""What it costs to call a signature: sessions and functions, compiled by XLA or not.

Run it with the project's Python: .venv/bin/python docs/decisions/measure_function_call.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from batchyard.pool.runtimes.device_share import bind_eager_runtime
from batchyard.pool.runtimes.function_call import FunctionCall
from batchyard.pool.runtimes.session_model import SessionModel
from batchyard.wire.arena import Mapping, create_memfd
from batchyard.wire.control import ModelSource, WorkerSettings

_WIDTHS = (64, 128, 128, 10)
_ROWS = (1, 64)
_ROUNDS = 9
_ROUND_S = 0.05
# One thread, as a worker that shares its CPUs has: no hand-over to a pool. Then with a pool.
_SETTINGS = WorkerSettings(0, 0, "cpu", None, False, 1, 0, None, 1, [])
_POOLED = replace(_SETTINGS, inter_op_parallelism=1)


class Perceptron(tf.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        shapes = pairwise(_WIDTHS)
        self.weights = [tf.Variable(random.normal(0, 0.1, s).astype(np.float32)) for s in shapes]

    @tf.function(autograph=False)
    def __call__(self, x: Any) -> dict[str, Any]:
        """float32 of shape (?, 64) in, (?, 10) out."""
        for weights in self.weights[:-1]:
            x = tf.nn.relu(tf.matmul(x, weights))
        return {"y": tf.matmul(x, self.weights[-1])}


class Shared:
    """Memory that a function takes without a copy, as it takes a card's."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.pointer = array.ctypes.data

    def __dlpack__(self) -> Any:
        return self._array.__dlpack__()


def main() -> None:
    """Prints medians of interleaved rounds, and how many times the first they take."""
    memory = np.frombuffer(Mapping(create_memfd(1 << 20, "measure")).memory, np.float32)
    memory[:] = 1
    with tempfile.TemporaryDirectory() as folder:
        bind_eager_runtime(_SETTINGS)
        model = Perceptron()
        spec = tf.TensorSpec([None, _WIDTHS[0]], tf.float32, name="x")
        tf.saved_model.save(model, folder, signatures=model.__call__.get_concrete_function(spec))
        calls = _calls(folder)
        print(f"{'microseconds a call':44}" + "".join(f"{rows:>8} rows" for rows in _ROWS))
        medians = [
            _medians(calls, memory[: rows * _WIDTHS[0]].reshape(rows, _WIDTHS[0])) for rows in _ROWS
        ]
        for name in calls:
            figures = (f"{m[name]:6.0f} {m[name] / next(iter(m.values())):5.1f}x" for m in medians)
            print(f"{name:44}" + " ".join(figures))


def _calls(folder: str) -> dict[str, Callable[[Any], Any]]:
    source = ModelSource("m", 1, "savedmodel", folder, list(_ROWS), None)
    compiled = replace(source, jit_compile=True)
    plain, pooled = SessionModel(source, _SETTINGS), SessionModel(source, _POOLED)
    session = SessionModel(compiled, _SETTINGS)
    pooled_compiled = SessionModel(compiled, _POOLED)
    loaded = tf.saved_model.load(folder)
    signature = loaded.signatures["serving_default"]
    (spec,) = plain.signatures
    flat, flat_compiled = (FunctionCall(signature, spec, jit) for jit in (False, True))

    def run(model: SessionModel) -> Callable[[Any], Any]:
        return lambda x: model.run("serving_default", {"x": x})

    def public(x: Any) -> Any:
        return np.asarray(signature(x=_tensor(x))["y"])

    def concrete(call: FunctionCall) -> Callable[[Any], Any]:
        return lambda x: np.asarray(call.function(_tensor(x))[0])

    # Kept: functions find their variables by weak references.
    public.loaded = loaded  # type: ignore[attr-defined]
    return {
        "session, calling thread": run(plain),
        "session, a pool thread": run(pooled),
        "session, calling thread, compiled": run(session),
        "session, a pool thread, compiled": run(pooled_compiled),
        "signature": public,
        "function of tensors": concrete(flat),
        "function of tensors, by its name": lambda x: flat(Shared(x)),
        "function of tensors, compiled": concrete(flat_compiled),
        "function of tensors, by its name, compiled": lambda x: flat_compiled(Shared(x)),
    }


def _tensor(x: Any) -> Any:
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())


def _medians(calls: dict[str, Callable[[Any], Any]], x: Any) -> dict[str, float]:
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            times = []
            until = time.perf_counter() + _ROUND_S
            while time.perf_counter() < until:
                started = time.perf_counter()
                call(x)
                times.append(time.perf_counter() - started)
            medians[name].append(statistics.median(times) * 1e6)
    return {name: statistics.median(values) for name, values in medians.items()}


if __name__ == "__main__":
    main()
