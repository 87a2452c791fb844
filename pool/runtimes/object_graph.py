"""Loads a SavedModel into a session by its object graph, where its restore operation falls short.

A SavedModel of TensorFlow 2 can be restored in two ways: by an operation of its graph, which
TensorFlow Serving and ``tf.compat.v1.saved_model.load`` run, and object by object, as
``tf.saved_model.load`` does. A Keras 3 model that was not written by its own ``export`` holds
each variable twice, and the operation fills the one that no signature reads: see
docs/decisions/0002.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from batchyard.wire.control import WorkerSettings


def first_unrestored(session: Any, fetches: Iterable[str]) -> str | None:
    """The first by name of the variables that ``fetches`` (tensor names) need and that are empty.

    Only handles in the graph itself are looked at: what functions read they are given from
    there, and what they make themselves is in no checkpoint.
    """
    handles = _handles(session.graph, fetches)
    with session.graph.as_default():
        checks = [tf.raw_ops.VarIsInitializedOp(resource=handle.outputs[0]) for handle in handles]
    filled = session.run(checks)
    empty = [h.get_attr("shared_name") for h, full in zip(handles, filled, strict=True) if not full]
    return min(empty).decode(errors="replace") if empty else None


def _handles(graph: Any, fetches: Iterable[str]) -> list[Any]:
    seen = set()
    pending = [graph.get_tensor_by_name(fetch).op for fetch in fetches]
    while pending:
        operation = pending.pop()
        if operation not in seen:
            seen.add(operation)
            pending.extend(tensor.op for tensor in operation.inputs)
            pending.extend(operation.control_inputs)
    return [operation for operation in seen if operation.type == "VarHandleOp"]


def load_by_objects(
    path: str, tag: str, signature_defs: Mapping[str, Any], config: Any
) -> tuple[Any, dict[str, Any]]:
    """A session with the model restored, and its signatures with the tensors' names there.

    Raises whatever ``tf.saved_model.load`` raises.
    """
    graph = tf.Graph()
    with graph.as_default():
        # Not eagerly, where each call would take many times as long: in a graph, the loader makes
        # initialisers that restore the objects.
        loaded = tf.saved_model.load(path, tags=[tag])
        bound = {
            key: _bind(loaded.signatures[key], signature_def)
            for key, signature_def in signature_defs.items()
        }
        session = tf.compat.v1.Session(graph=graph, config=config)
        session.run(tf.compat.v1.global_variables_initializer())
        session.run(tf.compat.v1.tables_initializer())
    return session, bound


def _bind(function: Any, signature_def: Any) -> Any:
    """Calls it in the default graph; the signature with the names of what went in and came out."""
    bound = type(signature_def)()
    bound.CopyFrom(signature_def)
    feeds = {
        name: tf.compat.v1.placeholder(info.dtype, tf.TensorShape(info.tensor_shape))
        for name, info in bound.inputs.items()
    }
    fetches = function(**feeds)
    for infos, tensors in ((bound.inputs, feeds), (bound.outputs, fetches)):
        for name, info in infos.items():
            info.name = tensors[name].name
    return bound


def bind_eager_runtime(settings: WorkerSettings) -> None:
    """Gives TensorFlow's eager runtime the worker's share of the device.

    Nothing runs there, but the loader starts it, to keep functions in it. Where a callable in
    this worker has started it or divided the device already, it is left as it is.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        tf.config.threading.set_intra_op_parallelism_threads(settings.intra_op_parallelism)
        tf.config.threading.set_inter_op_parallelism_threads(settings.inter_op_parallelism)
        if settings.device == "cpu":
            tf.config.set_visible_devices([], "GPU")
            return
        for device in tf.config.list_physical_devices("GPU"):
            if settings.memory_limit_mb is not None:
                limit = tf.config.LogicalDeviceConfiguration(memory_limit=settings.memory_limit_mb)
                tf.config.set_logical_device_configuration(device, [limit])
            elif settings.memory_growth:
                tf.config.experimental.set_memory_growth(device, True)
