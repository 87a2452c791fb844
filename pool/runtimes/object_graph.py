"""Loads a SavedModel into a session by its object graph, where its restore operation falls short.

A SavedModel of TensorFlow 2 can be restored in two ways: by an operation of its graph, which
TensorFlow Serving and ``tf.compat.v1.saved_model.load`` run, and object by object, as
``tf.saved_model.load`` does. A Keras 3 model that was not written by its own ``export`` holds
each variable twice, and the operation fills the one that no signature reads: see
docs/decisions/0002.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from batchyard.pool.runtimes.compilation import compiled


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


class ObjectGraph:
    """A session with a model restored object by object, whose signatures are bound as asked."""

    def __init__(self, path: str, tag: str, config: Any) -> None:
        """Raises whatever ``tf.saved_model.load`` raises."""
        self._graph = tf.Graph()
        with self._graph.as_default():
            # Not eagerly, where each call would take many times as long: in a graph, the loader
            # makes initialisers that restore the objects.
            self._functions = tf.saved_model.load(path, tags=[tag]).signatures
            self.session = tf.compat.v1.Session(graph=self._graph, config=config)
            self.session.run(tf.compat.v1.global_variables_initializer())
            self.session.run(tf.compat.v1.tables_initializer())
            # What restores a model of TensorFlow 1, which has no objects.
            self.session.run(tf.compat.v1.get_collection("saved_model_initializers"))

    def bind(self, key: str, signature_def: Any, jit_compile: bool = False) -> Any:
        """Has the session call it; the signature with the names of what goes in and comes out.

        ``jit_compile``: XLA compiles it, once for each shape of its inputs that occurs.
        """
        function = self._functions[key]
        if jit_compile:
            function = compiled(function)
        bound = type(signature_def)()
        bound.CopyFrom(signature_def)
        with self._graph.as_default():
            feeds = {
                name: tf.compat.v1.placeholder(info.dtype, tf.TensorShape(info.tensor_shape))
                for name, info in bound.inputs.items()
            }
            fetches = function(**feeds)
        for infos, tensors in ((bound.inputs, feeds), (bound.outputs, fetches)):
            for name, info in infos.items():
                info.name = tensors[name].name
        return bound
