"""What tests ask of TensorFlow, in a process of its own: theirs must stay without it.

    with tensorflow_process() as ask:
        ask(describe, path)

The functions here are what may be asked; each runs in that process, which is this file run as
a script.
"""

from __future__ import annotations

import gc
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from support.asked_process import answer_questions, asked_process
from support.graphs import GRAPHS

from batchyard.wire import dtypes
from batchyard.wire.control import ModelSource, WorkerSettings
from batchyard.wire.errors import BatchyardError
from batchyard.wire.signatures import SignatureSpec
from batchyard.wire.work import ModelReport

_SETTINGS = WorkerSettings(0, 0, "cpu", None, False, 1, 0, None, 1, [])


def tensorflow_process() -> AbstractContextManager[Callable[..., Any]]:
    """A function that has another one run in a process that may import TensorFlow."""
    return asked_process(__file__)


def describe(path: Path, **options: Any) -> tuple[list[SignatureSpec], bool]:
    """A SavedModel's signatures, and whether it is stateful."""
    model = _load(path, **options)
    return list(model.signatures), model.stateful


def published(path: Path) -> bytes:
    """A SavedModel's own word on its signatures."""
    signature_def: bytes = _load(path).signature_def
    return signature_def


def run(path: Path, *calls: tuple[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of each ``(signature, inputs)``, one after the other on one loaded model."""
    model = _load(path)
    return [dict(model.run(signature, inputs)) for signature, inputs in calls]


def run_compiled(path: Path, *calls: tuple[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As ``run``, of a model that XLA compiles."""
    model = _load(path, jit_compile=True)
    return [dict(model.run(signature, inputs)) for signature, inputs in calls]


def run_functions(
    path: Path, *calls: tuple[str, Mapping[str, Any]], **options: Any
) -> list[dict[str, Any]]:
    """As ``run``, of a model whose inputs are brought to the card, which is the CPU here."""
    model = _functions(path, **options)
    return [dict(model.run(name, _shared(inputs))) for name, inputs in calls]


def run_functions_at_once(path: Path, values: Sequence[Any]) -> list[Any]:
    """The output ``y`` for each input ``x``, as many at once."""
    model = _functions(path)

    def one(x: Any) -> Any:
        return [dict(model.run("serving_default", _shared({"x": x})))["y"] for _ in range(20)]

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(one, values))


def describe_functions(path: Path, **options: Any) -> tuple[list[SignatureSpec], bool, bytes]:
    """What a model whose signatures are functions says of itself."""
    model = _functions(path, **options)
    return list(model.signatures), model.stateful, model.signature_def


def keeps_inputs(path: Path, way: str) -> bool:
    """Whether a model holds inputs when it has run, its outputs are gone and it was asked not to.

    Once its answer was looked at.
    """
    x = SharedArray(np.ones((2, 4), np.float32))
    model = _functions(path) if way == "functions" else _load(path, jit_compile=way == "compiled")
    inputs = {"x": x if way == "functions" else x.array}
    outputs = dict(model.run("serving_default", inputs))
    assert outputs["y"].shape[:1] == (2,)
    memory = weakref.ref(x.array.base)
    del outputs, inputs, x
    model.let_go()
    return memory() is not None


def functions_left(path: Path, way: str) -> int:
    """How many of TensorFlow's functions a model leaves behind, loaded as in a worker."""
    from tensorflow.python.eager.polymorphic_function.atomic_function import AtomicFunction

    def count() -> int:
        return sum(isinstance(each, AtomicFunction) for each in gc.get_objects())

    gc.collect()
    before = count()
    model = _functions(path) if way == "functions" else _load(path, jit_compile=True)
    gc.collect()
    gc.freeze()
    del model
    # What is frozen is not among the objects.
    gc.unfreeze()
    return count() - before


def compilations(source: ModelSource, *calls: tuple[str, Mapping[str, Any]]) -> list[int]:
    """How often XLA compiled something: until a model was warmed up, then for each call."""
    from batchyard.pool.worker import loading

    before = _compiled_modules()
    model, _ = loading.load(source, _SETTINGS, lambda share, what: None)
    counts = [_compiled_modules()]
    for signature, inputs in calls:
        model.run(signature, inputs)
        counts.append(_compiled_modules())
    return [after - before for before, after in pairwise([before, *counts])]


def _compiled_modules() -> int:
    return sum(name.endswith("before_optimizations.txt") for name in os.listdir(_XLA_DUMP.name))


class SharedArray:
    """Stands for a DeviceArray, on the CPU: TensorFlow takes its memory by DLPack."""

    def __init__(self, values: Any, misaligned: bool = False) -> None:
        memory = np.zeros(values.nbytes + 128, np.uint8)
        self.pointer = -(-memory.ctypes.data // 64) * 64 + 4 * misaligned
        offset = self.pointer - memory.ctypes.data
        # As a worker has it: one that was pickled does not say what it is built of.
        dtype = dtypes.to_numpy(values.dtype.name)
        self.array = np.ndarray(values.shape, dtype, memory, offset)
        self.array[...] = values

    def __dlpack__(self) -> Any:
        from batchyard.pool.gpu import dlpack

        cpu = (1, 0)
        array = self.array
        return dlpack.export(self.pointer, array.shape, array.dtype, cpu, array)


def taken_by_dlpack(values: Any) -> Any:
    """What TensorFlow makes of the memory of a DeviceArray."""
    import tensorflow as tf

    return np.array(tf.experimental.dlpack.from_dlpack(SharedArray(values).__dlpack__()))


def refused_call(kind: str, message: str) -> BatchyardError:
    """What an error of TensorFlow's that a call raises becomes."""
    import tensorflow as tf

    from batchyard.pool.runtimes.refusals import explain

    return explain("m", "s", getattr(tf.errors, kind)(None, None, message))


def refused_load(message: str, device: str, limit_mb: int | None) -> str:
    """What a worker says that has no memory for a model."""
    import tensorflow as tf

    from batchyard.pool.runtimes.refusals import why_not_loaded

    settings = replace(_SETTINGS, device=device, memory_limit_mb=limit_mb)
    error = tf.errors.ResourceExhaustedError(None, None, message)
    return str(why_not_loaded("/models/m/1", error, settings))


def run_misaligned(path: Path) -> None:
    """Runs a model on memory for which TensorFlow would abort the process."""
    x = SharedArray(np.ones((2, 1), np.float32), misaligned=True)
    _functions(path).run("serving_default", {"x": x})


def _shared(inputs: Mapping[str, Any]) -> dict[str, Any]:
    # Strings come as they are.
    return {
        name: value if value.dtype.kind == "O" else SharedArray(value)
        for name, value in inputs.items()
    }


def load(source: ModelSource) -> tuple[ModelReport | None, str]:
    """What a worker reports of a model, or why it does not load."""
    from batchyard.pool.worker import loading

    try:
        _, report = loading.load(source, _SETTINGS, lambda share, what: None)
    except loading.CannotServe as error:
        return None, str(error)
    return report, ""


def read_warmup_records(path: Path) -> list[bytes]:
    """A TFRecord file, as a worker reads it."""
    from batchyard.pool.runtimes.warmup_records import read_records

    return list(read_records(str(path)))


def writes_state(name: str) -> bool:
    """What ``graph_state.writes_state`` says of a graph of this module."""
    import tensorflow as tf

    from batchyard.pool.runtimes import graph_state

    with tf.Graph().as_default() as graph:
        fetch = GRAPHS[name](tf)
    return graph_state.writes_state(graph.as_graph_def(), [fetch.name])


def bears_changing_inputs(name: str) -> bool:
    """What ``graph_state.bears_changing_inputs`` says of a graph of this module."""
    import tensorflow as tf

    from batchyard.pool.runtimes import graph_state

    with tf.Graph().as_default() as graph:
        fetch = GRAPHS[name](tf)
    return graph_state.bears_changing_inputs(graph.as_graph_def(), [fetch.name])


def savedmodel_bears_changing_inputs(path: Path) -> bool:
    """What a SavedModel says of itself."""
    bears: bool = _load(path).bears_changing_inputs
    return bears


def _load(path: Path, **options: Any) -> Any:
    from batchyard.pool.runtimes.savedmodel import load_savedmodel

    return load_savedmodel(_source(path, **options), _SETTINGS)


def _functions(path: Path, **options: Any) -> Any:
    # As load_savedmodel does where a worker has a card.
    import batchyard.pool.runtimes.savedmodel  # noqa: F401
    from batchyard.pool.runtimes.function_model import FunctionModel

    return FunctionModel(_source(path, device_arrays=True, **options), _SETTINGS)


def _source(path: Path, **options: Any) -> ModelSource:
    return ModelSource("m", 1, "savedmodel", str(path), [1, 2, 4], None, **options)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # What XLA writes of each module that it compiles, before it does.
    _XLA_DUMP = tempfile.TemporaryDirectory()
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={_XLA_DUMP.name}"
    answer_questions(globals())
