"""Binds TensorFlow to the worker's share of a device: its threads, its card, its memory."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from batchyard.pool.runtimes.base import DeviceError
from batchyard.wire.control import WorkerSettings


def check_device(settings: WorkerSettings) -> None:
    """Whether TensorFlow sees the worker's device. Raises DeviceError."""
    if settings.device != "cpu" and not tf.config.list_physical_devices("GPU"):
        raise DeviceError(
            f"TensorFlow {tf.__version__} sees no GPU where {settings.device} should be; "
            "is it installed with GPU support (pip install 'batchyard[gpu]')?"
        )


def session_config(settings: WorkerSettings, jit_compile: bool = False) -> Any:
    """The ``ConfigProto`` of a session; ``jit_compile``: XLA compiles functions there."""
    config = tf.compat.v1.ConfigProto(
        allow_soft_placement=True,
        intra_op_parallelism_threads=settings.intra_op_parallelism,
        inter_op_parallelism_threads=settings.inter_op_parallelism,
    )
    if jit_compile:
        # It would turn conditions and loops in functions into operations that XLA does not have.
        config.graph_options.rewrite_options.function_optimization = RewriterConfig.OFF
    if settings.device == "cpu":
        config.device_count["GPU"] = 0
        if not settings.inter_op_parallelism:
            # Run operations on the calling thread: no hand-over to a pool and back.
            config.inter_op_parallelism_threads = -1
        return config
    config.gpu_options.allow_growth = settings.memory_growth
    if settings.memory_limit_mb is not None:
        device = config.gpu_options.experimental.virtual_devices.add()
        device.memory_limit_mb.append(settings.memory_limit_mb)
    return config


def bind_eager_runtime(settings: WorkerSettings) -> None:
    """Gives TensorFlow's eager runtime the worker's share of the device.

    Functions run there; a session's loader starts it too, to keep functions in it. Where a callable
    in this worker has started it or divided the device already, it is left as it is.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        tf.config.threading.set_intra_op_parallelism_threads(settings.intra_op_parallelism)
        # A card runs what it is given one after the other: more threads that give it something
        # only hand it over to each other.
        tf.config.threading.set_inter_op_parallelism_threads(settings.inter_op_parallelism or 1)
        if settings.device == "cpu":
            tf.config.set_visible_devices([], "GPU")
            return
        for device in tf.config.list_physical_devices("GPU"):
            if settings.memory_limit_mb is not None:
                limit = tf.config.LogicalDeviceConfiguration(memory_limit=settings.memory_limit_mb)
                tf.config.set_logical_device_configuration(device, [limit])
            elif settings.memory_growth:
                tf.config.experimental.set_memory_growth(device, True)
