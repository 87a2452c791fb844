"""Runs TensorFlow SavedModels, the way TensorFlow Serving does: in a graph session.

A session loads every SavedModel that TensorFlow Serving loads, those of TensorFlow 1 with
reference variables included (``tf.saved_model.load`` cannot); it checks shapes no more strictly
than TensorFlow Serving; and it is the cheapest way in: see docs/decisions/0002. Arrays that are
64-byte aligned are fed without a copy, which the arena's layout makes sure of.

A model that cannot fill its own variables there is loaded into a session object by object.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# TensorFlow logs a warning for every request that a model refuses; the client is told anyway.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework.ops import dismantle_graph

from batchyard.pool.runtimes.base import Array, ModelLoadError
from batchyard.pool.runtimes.graph_state import bears_changing_inputs, writes_state
from batchyard.pool.runtimes.object_graph import (
    bind_eager_runtime,
    first_unrestored,
    load_by_objects,
)
from batchyard.pool.runtimes.operations import PACKAGES, import_packages, missing_operation
from batchyard.wire import dtypes, log
from batchyard.wire.control import WorkerSettings
from batchyard.wire.errors import BatchyardError, InvalidArgument, from_wire
from batchyard.wire.signatures import SignatureSpec, TensorSpec, can_be_batched
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap

_SERVE_TAG = "serve"
# Loading into a session is deprecated for training; it is how TensorFlow Serving serves.
tf.get_logger().setLevel("ERROR")
# Entries of the signature map that are no signatures.
_INTERNAL_PREFIX = "__saved_model"
# A SavedModel is not what it should be when this one cannot run.
_DEFAULT_SIGNATURE = "serving_default"
# How TensorFlow says that a signature is not of its graph: a tensor that is not there, is fed
# twice, or is fed and fetched.
_GRAPH_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.NotFoundError)
# It travels with each answer on metadata; a signature of a hundred tensors takes about 10 KiB.
_SIGNATURE_DEF_NBYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Signature:
    spec: SignatureSpec
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    call: Any


class SavedModel:
    """A SavedModel in a session of its own."""

    # A session is not fed device memory from Python.
    device_arrays = False

    def __init__(self, name: str, path: str, settings: WorkerSettings) -> None:
        """Loads it. Raises ModelLoadError."""
        self._name = name
        self._path = path
        config = _session_config(settings)
        served, unrestored = self._load(config)
        if unrestored is not None:
            # The session's end frees the memory that the next one needs.
            self._end()
            del self._session, self._signatures, self._nothing
            bind_eager_runtime(settings)
            self._load_by_objects(served, config, unrestored)
            log.info("model_loaded_by_objects", model=name, unrestored=unrestored)

    def _load(self, config: Any) -> tuple[dict[str, Any], str | None]:
        """The signatures that it has now, and a variable that they need and do not have."""
        try:
            try:
                session, meta_graph = self._restore(config)
            except tf.errors.NotFoundError as error:
                if missing_operation(error) is None:
                    raise
                import_packages()
                session, meta_graph = self._restore(config)
        except (tf.errors.OpError, OSError, RuntimeError, ValueError, KeyError) as error:
            raise ModelLoadError(f"{self._path}: {_why_not_restored(error)}") from error
        self._take(session, meta_graph.signature_def)
        self.signature_def = self._published(meta_graph.signature_def)
        if not self._signatures:
            raise ModelLoadError(f"{self._path}: has no signature that can be served")
        served = {key: meta_graph.signature_def[key] for key in self._signatures}
        if not meta_graph.object_graph_def.nodes:
            # Of TensorFlow 1: it has no objects, and may fill a variable in the call itself.
            return served, None
        return served, first_unrestored(session, _fetches(*served.values()))

    def _restore(self, config: Any) -> tuple[Any, Any]:
        session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        with session.graph.as_default():
            return session, tf.compat.v1.saved_model.load(session, [_SERVE_TAG], self._path)

    def _load_by_objects(
        self, signature_defs: Mapping[str, Any], config: Any, unrestored: str
    ) -> None:
        try:
            self._take(*load_by_objects(self._path, _SERVE_TAG, signature_defs, config))
        except Exception as error:
            # Each kind of object has code of its own that restores it.
            raise ModelLoadError(
                f"{self._path}: its restore operation leaves variable {unrestored!r} empty, and "
                f"its objects do not load: {_first_line(error)}"
            ) from error

    def _take(self, session: Any, signature_defs: Mapping[str, Any]) -> None:
        """Runs these signatures in this session from now on."""
        self._session = session
        # When nobody has this object any more, the last run over: at once, not when the garbage
        # collector comes by, which does not look at what it was told to leave alone.
        self._end = weakref.finalize(self, _end, session)
        self._end.atexit = False
        self._signatures: dict[str, _Signature] = {}
        self.stateful = False
        self.bears_changing_inputs = True
        definition = session.graph.as_graph_def()
        for key, signature_def in sorted(signature_defs.items()):
            if key.startswith(_INTERNAL_PREFIX):
                continue
            try:
                signature = self._prepare(key, signature_def)
            except _UnsupportedTensor as error:
                log.warning("signature_skipped", model=self._name, signature=key, reason=error)
                continue
            except (tf.errors.OpError, ValueError, KeyError, TypeError) as error:
                if key == _DEFAULT_SIGNATURE or not isinstance(error, _GRAPH_ERRORS):
                    message = f"{self._path}: signature {key}: {_first_line(error)}"
                    raise ModelLoadError(message) from error
                # TensorFlow Serving finds out when it is asked for it, and serves the others.
                reason = _first_line(error)
                log.warning("signature_skipped", model=self._name, signature=key, reason=reason)
                continue
            self._signatures[key] = signature
            fetches = _fetches(signature_def)
            self.stateful = self.stateful or writes_state(definition, fetches)
            if not bears_changing_inputs(definition, fetches):
                self.bears_changing_inputs = False
        with session.graph.as_default():
            self._nothing = self._callable([], [tf.constant(0, name="batchyard_nothing").name])

    @property
    def signatures(self) -> Sequence[SignatureSpec]:
        """Those of the SavedModel, but for its own initialisers."""
        return [signature.spec for signature in self._signatures.values()]

    def _published(self, signature_defs: Mapping[str, Any]) -> bytes:
        """See ``ModelReport.signature_def``. What asks for it can do without where it is long."""
        published = SignatureDefMap()
        for key, signature_def in signature_defs.items():
            # The same message, of another pool of descriptors.
            published.signature_def[key].MergeFromString(signature_def.SerializeToString())
        nbytes = published.ByteSize()
        if nbytes > _SIGNATURE_DEF_NBYTES_MAX:
            log.warning("signature_def_left_out", model=self._name, nbytes=nbytes)
            return b""
        serialized: bytes = published.SerializeToString(deterministic=True)
        return serialized

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
        except tf.errors.OpError as error:
            raise self._explain(signature, error.error_code, error.message) from None
        except UnicodeDecodeError as error:
            # TensorFlow quotes the input in its message; when that is not UTF-8, its binding
            # raises this in place of the error itself.
            message = error.object.decode(errors="replace")
            raise self._explain(signature, InvalidArgument.number, message) from None
        return list(zip(found.output_names, outputs, strict=True))

    def let_go(self) -> None:
        """See ``LoadedModel``.

        A tensor that dies on one of TensorFlow's own threads cannot release its numpy array
        there: TensorFlow notes it, and releases it with the next call.
        """
        self._nothing()

    def _explain(self, signature: str, code: int, message: str) -> BatchyardError:
        # What follows the first node's mark is TensorFlow's own trace.
        text = (message or "").partition("\n\t [[")[0].strip()
        return from_wire(code, f"model {self._name!r} signature {signature!r}: {text}")

    def _prepare(self, key: str, signature_def: Any) -> _Signature:
        inputs = _specs(signature_def.inputs)
        outputs = _specs(signature_def.outputs)
        feeds = [signature_def.inputs[spec.name].name for spec in inputs]
        fetches = [signature_def.outputs[spec.name].name for spec in outputs]
        return _Signature(
            SignatureSpec(
                name=key,
                inputs=inputs,
                outputs=outputs,
                batched=can_be_batched(inputs, outputs),
                method_name=signature_def.method_name,
                checks_shapes=True,
            ),
            tuple(spec.name for spec in inputs),
            tuple(spec.name for spec in outputs),
            self._callable(feeds, fetches),
        )

    def _callable(self, feeds: list[str], fetches: list[str]) -> Any:
        make = getattr(self._session, "_make_callable_from_options", None)
        if make is None:
            # Slower, and checks fed shapes against the graph's, which TensorFlow Serving does
            # not: its own example feeds rank 1 to a placeholder of shape (?, 1).
            return self._session.make_callable(fetches, feeds)
        return make(config_pb2.CallableOptions(feed=feeds, fetch=fetches))


def _end(session: Any) -> None:
    """Frees a session, with its variables, and its graph, with its constants."""
    session.close()
    # Its objects refer to each other: it would stay.
    dismantle_graph(session.graph)


class _UnsupportedTensor(Exception):
    pass


def _fetches(*signature_defs: Any) -> list[str]:
    return [info.name for each in signature_defs for info in each.outputs.values()]


def _specs(infos: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(name, infos[name]) for name in sorted(infos))


def _spec(name: str, info: Any) -> TensorSpec:
    if info.WhichOneof("encoding") != "name":
        raise _UnsupportedTensor(f"{name} is no dense tensor")
    dtype = tf.as_dtype(info.dtype).base_dtype.name
    if not dtypes.is_known(dtype):
        raise _UnsupportedTensor(f"{name} has dtype {dtype}")
    if info.tensor_shape.unknown_rank:
        return TensorSpec(name, dtype, None)
    return TensorSpec(
        name, dtype, tuple(None if d.size < 0 else d.size for d in info.tensor_shape.dim)
    )


def _session_config(settings: WorkerSettings) -> Any:
    config = tf.compat.v1.ConfigProto(
        allow_soft_placement=True,
        intra_op_parallelism_threads=settings.intra_op_parallelism,
        inter_op_parallelism_threads=settings.inter_op_parallelism,
    )
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


def check_device(settings: WorkerSettings) -> None:
    """Whether TensorFlow sees the worker's device. Raises DeviceError."""
    if settings.device != "cpu" and not tf.config.list_physical_devices("GPU"):
        raise DeviceError(
            f"TensorFlow {tf.__version__} sees no GPU where {settings.device} should be; "
            "is it installed with GPU support (pip install 'batchyard[gpu]')?"
        )


class DeviceError(Exception):
    """The worker's device is not there."""


def _why_not_restored(error: Exception) -> str:
    operation = missing_operation(error)
    if operation is None:
        return _first_line(error)
    packages = ", ".join(PACKAGES.values())
    return (
        f"operation {operation!r} is not TensorFlow's own: install the package that has it beside "
        f"TensorFlow; of {packages} those that are installed were imported"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
