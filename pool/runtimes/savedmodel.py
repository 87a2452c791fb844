"""Loads a SavedModel, and chooses how its signatures are called.

In a session, as TensorFlow Serving does, unless the worker is to bring inputs to a card: a session
cannot be fed device memory. See docs/decisions/0002 and 0017.
"""

from __future__ import annotations

import os

# TensorFlow logs a warning for every request that a model refuses; the client is told anyway.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from batchyard.pool.runtimes.base import LoadedModel
from batchyard.pool.runtimes.device_share import check_device
from batchyard.pool.runtimes.function_model import FunctionModel
from batchyard.pool.runtimes.session_model import SessionModel
from batchyard.wire.control import ModelSource, WorkerSettings

# Loading into a session is deprecated for training; it is how TensorFlow Serving serves.
tf.get_logger().setLevel("ERROR")


def load_savedmodel(source: ModelSource, settings: WorkerSettings) -> LoadedModel:
    """Raises DeviceError or ModelLoadError."""
    check_device(settings)
    if source.device_arrays and settings.device != "cpu":
        return FunctionModel(source, settings)
    return SessionModel(source, settings)
