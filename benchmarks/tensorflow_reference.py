"""Bare TensorFlow: what a loop without any server gets from a SavedModel, asked over a pipe.

``python -m batchyard.benchmarks.tensorflow_reference`` is a ``benchmarks.child``. TensorFlow has
one thread inside an operation and one for operations, as the workers it is held against.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from batchyard.benchmarks.child import answer
from batchyard.benchmarks.timing import calls_per_s, p50_us

_calls: dict[str, Callable[[], object]] = {}
_batch_sizes: dict[str, int] = {}


def load(name: str, path: str, shape: list[int]) -> None:
    """Loads a SavedModel with input ``x`` and output ``y``, to be called with such a batch."""
    model = tf.saved_model.load(path)
    signature = model.signatures["serving_default"]
    batch = np.random.default_rng(0).random(shape, np.float32)

    def call(model: Any = model) -> object:
        # As a default argument the model stays loaded as long as its signature is called.
        return signature(x=tf.constant(batch))["y"].numpy()

    call()
    _calls[name] = call
    _batch_sizes[name] = shape[0]


def p50(name: str, seconds: float) -> float:
    """The median duration of a call in microseconds."""
    return p50_us(_calls[name], seconds)


def rows_per_s(name: str, seconds: float) -> float:
    """Rows a second, one call after the other."""
    return calls_per_s(_calls[name], seconds) * _batch_sizes[name]


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    answer({"load": load, "p50": p50, "rows_per_s": rows_per_s})
