"""Runs TensorFlow SavedModels, the way TensorFlow Serving does: in a graph session.

A session loads every SavedModel that TensorFlow Serving loads, those of TensorFlow 1 with
reference variables included (``tf.saved_model.load`` cannot); it checks shapes no more strictly
than TensorFlow Serving; and it is the cheapest way in: see docs/decisions/0002. Arrays that are
64-byte aligned are fed without a copy, which the arena's layout makes sure of.

A model that cannot fill its own variables there is loaded into a session object by object. So is
one that XLA is to compile: it compiles functions, and objects have them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework.ops import dismantle_graph

from batchyard.pool.runtimes.base import Array, ModelLoadError
from batchyard.pool.runtimes.compilation import Compiler
from batchyard.pool.runtimes.device_share import bind_eager_runtime, session_config
from batchyard.pool.runtimes.functions_end import collect_functions
from batchyard.pool.runtimes.graph_state import bears_changing_inputs, writes_state
from batchyard.pool.runtimes.meta_graph import SERVE_TAG, read_meta_graph, with_operations
from batchyard.pool.runtimes.object_graph import ObjectGraph, first_unrestored
from batchyard.pool.runtimes.refusals import (
    CALL_ERRORS,
    explain,
    first_line,
    has_no_memory,
    why_not_loaded,
)
from batchyard.pool.runtimes.served_signatures import fetches_of, publish, serve_signatures
from batchyard.wire import log
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.signatures import SignatureSpec

_COMPILED = "it does not load object by object, which jit_compile needs (set jit_compile = false)"


class SessionModel:
    """A SavedModel in a session of its own."""

    device_arrays = False

    def __init__(self, source: ModelSource, settings: WorkerSettings) -> None:
        """Loads it. Raises ModelLoadError."""
        self._name = source.name
        self._path = source.path
        self._settings = settings
        if source.jit_compile:
            self._load_compiled(source)
            return
        meta_graph, unrestored = self._load()
        if unrestored is not None:
            # The session's end frees the memory that the next one needs.
            self._end()
            del self._session, self._nothing
            self._load_by_objects(meta_graph, unrestored)
            log.info("model_loaded_by_objects", model=self._name, unrestored=unrestored)

    def _load(self) -> tuple[Any, str | None]:
        """The ``MetaGraphDef``, and a variable that its signatures need and do not have."""
        try:
            session, meta_graph = with_operations(self._restore)
        except (tf.errors.OpError, OSError, RuntimeError, ValueError, KeyError) as error:
            raise why_not_loaded(self._path, error, self._settings) from error
        self._take(session)
        self._serve(meta_graph, lambda spec, signature_def: self._callable(spec, signature_def))
        if not meta_graph.object_graph_def.nodes:
            # Of TensorFlow 1: it has no objects, and may fill a variable in the call itself.
            return meta_graph, None
        served = [meta_graph.signature_def[key] for key in self._signatures]
        return meta_graph, first_unrestored(session, fetches_of(*served))

    def _restore(self) -> tuple[Any, Any]:
        session = tf.compat.v1.Session(graph=tf.Graph(), config=session_config(self._settings))
        with session.graph.as_default():
            return session, tf.compat.v1.saved_model.load(session, [SERVE_TAG], self._path)

    def _load_by_objects(self, meta_graph: Any, unrestored: str) -> None:
        bind_eager_runtime(self._settings)
        try:
            graph = ObjectGraph(self._path, SERVE_TAG, session_config(self._settings))
            bound = {
                key: graph.bind(key, meta_graph.signature_def[key]) for key in self._signatures
            }
        except Exception as error:
            if has_no_memory(error):
                raise why_not_loaded(self._path, error, self._settings) from error
            # Each kind of object has code of its own that restores it.
            raise ModelLoadError(
                f"{self._path}: its restore operation leaves variable {unrestored!r} empty, and "
                f"its objects do not load: {first_line(error)}"
            ) from error
        self._take(graph.session, has_functions=True)
        self._serve(meta_graph, lambda spec, _: self._callable(spec, bound[spec.name]))

    def _load_compiled(self, source: ModelSource) -> None:
        bind_eager_runtime(self._settings)
        config = session_config(self._settings, jit_compile=True)
        try:
            meta_graph = read_meta_graph(self._path)
            graph = with_operations(lambda: ObjectGraph(self._path, SERVE_TAG, config))
        except Exception as error:
            raise why_not_loaded(self._path, error, self._settings, _COMPILED) from error
        self._take(graph.session, has_functions=True)
        compiler = Compiler(source)

        def callable_of(spec: SignatureSpec, signature_def: Any) -> Callable[..., Any]:
            def make(jit_compile: bool) -> Callable[..., Any]:
                return self._callable(spec, graph.bind(spec.name, signature_def, jit_compile))

            writes = writes_state(meta_graph.graph_def, fetches_of(signature_def))
            return compiler.choose(spec, make, may_run=not writes)

        self._serve(meta_graph, callable_of)
        compiler.check()

    def _take(self, session: Any, has_functions: bool = False) -> None:
        """Runs in this session from now on."""
        self._session = session
        # When nobody has this object any more, the last run over: at once, not when the garbage
        # collector comes by, which does not look at what it was told to leave alone.
        self._end = weakref.finalize(self, _end, session, has_functions)
        self._end.atexit = False
        with session.graph.as_default():
            nothing = tf.constant(0, name="batchyard_nothing").name
        self._nothing = _session_callable(session, [], [nothing])

    def _serve(
        self, meta_graph: Any, callable_of: Callable[[SignatureSpec, Any], Callable[..., Any]]
    ) -> None:
        definitions = meta_graph.signature_def
        self._signatures = serve_signatures(self._name, self._path, definitions, callable_of)
        self.signature_def = publish(self._name, definitions)
        served = [fetches_of(definitions[key]) for key in self._signatures]
        self.stateful = any(writes_state(meta_graph.graph_def, fetches) for fetches in served)
        self.bears_changing_inputs = all(
            bears_changing_inputs(meta_graph.graph_def, fetches) for fetches in served
        )

    def _callable(self, spec: SignatureSpec, signature_def: Any) -> Callable[..., Any]:
        feeds = [signature_def.inputs[tensor.name].name for tensor in spec.inputs]
        fetches = [signature_def.outputs[tensor.name].name for tensor in spec.outputs]
        return _session_callable(self._session, feeds, fetches)

    @property
    def signatures(self) -> Sequence[SignatureSpec]:
        """Those of the SavedModel, but for its own initialisers."""
        return [signature.spec for signature in self._signatures.values()]

    @property
    def any_thread(self) -> bool:
        """See ``LoadedModel``. What writes state must see batches in their order."""
        return not self.stateful

    def run(self, signature: str, inputs: Mapping[str, Array]) -> Sequence[tuple[str, Array]]:
        """See ``LoadedModel``."""
        found = self._signatures[signature]
        feeds = [inputs[name] for name in found.input_names]
        try:
            outputs = found.call(*feeds)
        except CALL_ERRORS as error:
            raise explain(self._name, signature, error) from None
        return list(zip(found.output_names, outputs, strict=True))

    def let_go(self) -> None:
        """See ``LoadedModel``.

        A tensor that dies on one of TensorFlow's own threads cannot release its numpy array
        there: TensorFlow notes it, and releases it with the next call.
        """
        self._nothing()


def _session_callable(session: Any, feeds: list[str], fetches: list[str]) -> Callable[..., Any]:
    make = getattr(session, "_make_callable_from_options", None)
    call: Callable[..., Any]
    if make is None:
        # Slower, and checks fed shapes against the graph's, which TensorFlow Serving does
        # not: its own example feeds rank 1 to a placeholder of shape (?, 1).
        call = session.make_callable(fetches, feeds)
    else:
        call = make(config_pb2.CallableOptions(feed=feeds, fetch=fetches))
    return call


def _end(session: Any, has_functions: bool) -> None:
    """Frees a session, with its variables, and its graph, with its constants."""
    session.close()
    # Its objects refer to each other: it would stay.
    dismantle_graph(session.graph)
    if has_functions:
        collect_functions()
