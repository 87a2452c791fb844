"""What a SavedModel says of its signatures, and what a worker makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.pool.runtimes.refusals import first_line
from batchyard.wire import dtypes, log
from batchyard.wire.signatures import SignatureSpec, TensorSpec, can_be_batched
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap

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
class ServedSignature:
    """One that can run: ``call`` takes inputs and gives outputs in the order of these names."""

    spec: SignatureSpec
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    call: Callable[..., Any]


def serve_signatures(
    model: str,
    path: str,
    signature_defs: Mapping[str, Any],
    callable_of: Callable[[SignatureSpec, Any], Callable[..., Any]],
) -> dict[str, ServedSignature]:
    """Those that can run, by key; the log names the others.

    ``callable_of`` makes what runs one. Raises ModelLoadError where that is the default one, or
    what it raises tells of more than this signature.
    """
    served = {}
    for key, signature_def in sorted(signature_defs.items()):
        if key.startswith(_INTERNAL_PREFIX):
            continue
        try:
            served[key] = _serve(key, signature_def, callable_of)
        except _UnsupportedTensor as error:
            log.warning("signature_skipped", model=model, signature=key, reason=error)
        except (tf.errors.OpError, ValueError, KeyError, TypeError) as error:
            if key == _DEFAULT_SIGNATURE or not isinstance(error, _GRAPH_ERRORS):
                message = f"{path}: signature {key}: {first_line(error)}"
                raise ModelLoadError(message) from error
            # TensorFlow Serving finds out when it is asked for it, and serves the others.
            reason = first_line(error)
            log.warning("signature_skipped", model=model, signature=key, reason=reason)
    if not served:
        raise ModelLoadError(f"{path}: has no signature that can be served")
    return served


def _serve(
    key: str, signature_def: Any, callable_of: Callable[[SignatureSpec, Any], Callable[..., Any]]
) -> ServedSignature:
    inputs = _specs(signature_def.inputs)
    outputs = _specs(signature_def.outputs)
    spec = SignatureSpec(
        name=key,
        inputs=inputs,
        outputs=outputs,
        batched=can_be_batched(inputs, outputs),
        method_name=signature_def.method_name,
        checks_shapes=True,
    )
    return ServedSignature(
        spec,
        tuple(spec.name for spec in inputs),
        tuple(spec.name for spec in outputs),
        callable_of(spec, signature_def),
    )


def publish(model: str, signature_defs: Mapping[str, Any]) -> bytes:
    """See ``ModelReport.signature_def``. What asks for it can do without where it is long."""
    published = SignatureDefMap()
    for key, signature_def in signature_defs.items():
        # The same message, of another pool of descriptors.
        published.signature_def[key].MergeFromString(signature_def.SerializeToString())
    nbytes = published.ByteSize()
    if nbytes > _SIGNATURE_DEF_NBYTES_MAX:
        log.warning("signature_def_left_out", model=model, nbytes=nbytes)
        return b""
    serialized: bytes = published.SerializeToString(deterministic=True)
    return serialized


def fetches_of(*signature_defs: Any) -> list[str]:
    """The names of the tensors that they give."""
    return [info.name for each in signature_defs for info in each.outputs.values()]


class _UnsupportedTensor(Exception):
    pass


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
