"""Runs SavedModels as functions, on inputs that are on the card already.

A session cannot be fed device memory; a function takes tensors that share it, by DLPack. Its
outputs are brought to the host inside the function: there TensorFlow waits for them without the
interpreter's lock, and a later look at them waits for nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from batchyard.pool.runtimes.base import Array
from batchyard.pool.runtimes.compilation import Compiler
from batchyard.pool.runtimes.device_share import bind_eager_runtime
from batchyard.pool.runtimes.function_call import FunctionCall
from batchyard.pool.runtimes.functions_end import collect_functions
from batchyard.pool.runtimes.graph_state import writes_state
from batchyard.pool.runtimes.meta_graph import SERVE_TAG, read_meta_graph, with_operations
from batchyard.pool.runtimes.refusals import CALL_ERRORS, explain, why_not_loaded
from batchyard.pool.runtimes.served_signatures import (
    ServedSignature,
    fetches_of,
    publish,
    serve_signatures,
)
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.signatures import SignatureSpec

_BY_OBJECTS = (
    "it does not load object by object, which device_arrays needs (set device_arrays = false)"
)


class FunctionModel:
    """A SavedModel whose signatures are called as functions, by several threads if need be."""

    device_arrays = True
    # Inputs are copies of the clients' own, on the card.
    bears_changing_inputs = True

    def __init__(self, source: ModelSource, settings: WorkerSettings) -> None:
        """Loads it. Raises ModelLoadError."""
        self._name = source.name
        bind_eager_runtime(settings)
        try:
            meta_graph = read_meta_graph(source.path)
            loaded = with_operations(lambda: tf.saved_model.load(source.path, tags=[SERVE_TAG]))
        except Exception as error:
            # Each kind of object has code of its own that restores it.
            raise why_not_loaded(source.path, error, settings, _BY_OBJECTS) from error
        definitions = meta_graph.signature_def
        compiler = Compiler(source) if source.jit_compile else None

        def callable_of(spec: SignatureSpec, signature_def: Any) -> Callable[..., Any]:
            function = loaded.signatures[spec.name]

            def make(jit_compile: bool) -> Callable[..., Any]:
                return FunctionCall(function, spec, jit_compile)

            if compiler is None:
                return make(False)
            writes = writes_state(meta_graph.graph_def, fetches_of(signature_def))
            return compiler.choose(spec, make, may_run=not writes)

        self._signatures = serve_signatures(source.name, source.path, definitions, callable_of)
        if compiler is not None:
            compiler.check()
        self.signature_def = publish(source.name, definitions)
        self.stateful = any(
            writes_state(meta_graph.graph_def, fetches_of(definitions[key]))
            for key in self._signatures
        )
        # Functions find their variables by weak references.
        self._loaded = [loaded]
        end = weakref.finalize(self, _end, self._signatures, self._loaded)
        end.atexit = False

    @property
    def signatures(self) -> Sequence[SignatureSpec]:
        """Those of the SavedModel, but for its own initialisers."""
        return [signature.spec for signature in self._signatures.values()]

    @property
    def any_thread(self) -> bool:
        """See ``LoadedModel``. What writes state must see batches in their order."""
        return not self.stateful

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Sequence[tuple[str, Array]]:
        """See ``LoadedModel``. Inputs are DeviceArrays, or arrays, which are copied.

        When it returns or raises, nothing on the card reads the inputs any more.
        """
        found = self._signatures[signature]
        try:
            outputs = found.call(*[inputs[name] for name in found.input_names])
        except CALL_ERRORS as error:
            _wait_for_the_card()
            raise explain(self._name, signature, error) from None
        if self.stateful:
            # What is assigned need not be done when the outputs are there.
            _wait_for_the_card()
        return list(zip(found.output_names, outputs, strict=True))

    def let_go(self) -> None:
        """See ``LoadedModel``: nothing is held."""


def _end(signatures: dict[str, ServedSignature], loaded: list[Any]) -> None:
    """Frees variables, and functions with their constants."""
    signatures.clear()
    loaded.clear()
    collect_functions()


def _wait_for_the_card() -> None:
    try:
        tf.test.experimental.sync_devices()
    except tf.errors.OpError:
        # The card's context is broken: the call has said so, or the next will.
        return
