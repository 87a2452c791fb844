"""Which of a model's signatures XLA compiles, found out before any is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.pool.runtimes.refusals import why_not_compiled
from batchyard.pool.worker.warmup import made_up
from batchyard.wire import dtypes, log
from batchyard.wire.control import ModelSource
from batchyard.wire.signatures import SignatureSpec

Call = Callable[..., Any]


def compiled(signature: Any) -> Any:
    """A loaded signature as a function of the same tensors by name, which XLA compiles."""

    def call(**inputs: Any) -> Any:
        return signature(**inputs)

    return tf.function(call, jit_compile=True, autograph=False)


class Compiler:
    """Compiles signatures for the smallest batch size; warm-up does so for the others.

    One that XLA cannot compile runs as it would without, and the log says why.
    """

    def __init__(self, source: ModelSource) -> None:
        self._model = source.name
        self._path = source.path
        self._rows = source.batch_sizes[0] if source.batch_sizes else 1
        self._any_compiled = False
        self._reason = ""

    def choose(self, spec: SignatureSpec, make: Callable[[bool], Call], may_run: bool) -> Call:
        """What runs it: ``make`` gives a call, compiled or not.

        ``may_run`` says whether a made-up call does no harm. Without one it is compiled by the
        first batch, and fails if that cannot be.
        """
        reason = _why_not(spec)
        if reason is None:
            call = make(True)
            reason = self._try(call, spec) if may_run else None
            if reason is None:
                self._any_compiled = True
                return call
        log.warning("signature_not_compiled", model=self._model, signature=spec.name, reason=reason)
        self._reason = self._reason or f"signature {spec.name}: {reason}"
        return make(False)

    def check(self) -> None:
        """Raises ModelLoadError where nothing was compiled."""
        if not self._any_compiled:
            raise ModelLoadError(
                f"{self._path}: XLA compiles none of its signatures: set jit_compile = false; "
                f"{self._reason}"
            )

    def _try(self, call: Call, spec: SignatureSpec) -> str | None:
        try:
            call(*(made_up(tensor, self._rows, spec.batched) for tensor in spec.inputs))
        except tf.errors.OpError as error:
            # It may not take what is made up, and take what comes. Without memory it is as good as
            # without jit_compile: warm-up says so.
            return why_not_compiled(error)
        return None


def _why_not(spec: SignatureSpec) -> str | None:
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            if tensor.dtype == dtypes.STRING:
                return f"{kind} {tensor.name!r} is of strings, which XLA does not have"
    return None
