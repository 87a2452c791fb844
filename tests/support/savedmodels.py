"""Exports small SavedModels of every kind that the server must serve.

    python tests/support/savedmodels.py OUTDIR [NAME ...]

writes ``OUTDIR/NAME/VERSION/...`` for the kinds named, or for all of them. It is meant for a
process of its own, one per test session: importing TensorFlow takes seconds, and the tests'
own process must stay without it.

Many kinds have the names and numbers of the test data that TensorFlow Serving ships, so that
its documented requests and answers can be replayed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# The one notice that the level above does not silence: it is logged before absl is set up.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# The device belongs to the servers under test; a session here would take all of its memory.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import savedmodels_v1
import tensorflow as tf
from savedmodels_v1 import VERSION, Exporter

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8_e5m2",
    "float8_e4m3fn",
    "string",
)

_STRINGS = ((None,), tf.string)
EXPORTERS = {function.__name__: function for function in savedmodels_v1.EXPORTERS}


def exporter(function: Exporter) -> Exporter:
    """Register ``function``, which writes version folders into a model's folder, by its name."""
    EXPORTERS[function.__name__] = function
    return function


def export(outdir: Path, names: list[str]) -> None:
    """Write the models ``names`` as folders of ``outdir``; KeyError for a name that is none."""
    for name in names:
        EXPORTERS[name](outdir / name)


def _signature(function: Callable[..., Mapping[str, Any]], **inputs: Any) -> Any:
    """``function`` traced for ``inputs``, each a pair of shape and dtype, by argument name."""
    specs = {name: tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in inputs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def _save(model_dir: Path, signatures: Mapping[str, Any], variable: Any = None) -> None:
    module = tf.Module()
    module.variable = variable
    tf.saved_model.save(module, str(model_dir / VERSION), signatures=signatures)


def _save_default(
    model_dir: Path, function: Callable[..., Mapping[str, Any]], **inputs: Any
) -> None:
    _save(model_dir, {"serving_default": _signature(function, **inputs)})


@exporter
def half_plus_two_tf2(model_dir: Path) -> None:
    """y = x/2 + 2 for rows of one number."""
    _save_default(model_dir, lambda x: {"y": 0.5 * x + 2.0}, x=((None, 1), tf.float32))


@exporter
def examples_tf2(model_dir: Path) -> None:
    """y = x/2 + 2 of tf.Examples: to classify and to regress, as far as TensorFlow 2 can say so."""

    def y(inputs: Any) -> Any:
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        return 0.5 * parsed["x"] + 2.0

    signatures = {
        "classify_x_to_y": _signature(lambda inputs: {"scores": y(inputs)}, inputs=_STRINGS),
        "regress_x_to_y": _signature(lambda inputs: {"outputs": y(inputs)}, inputs=_STRINGS),
    }
    _save(model_dir, signatures)


@exporter
def product(model_dir: Path) -> None:
    """y = 6 x for an input of unknown rank, by two variables."""
    module = tf.Module()
    module.v1, module.v2 = tf.Variable(3.0), tf.Variable(2.0)
    signature = _signature(lambda x: {"y": module.v1 * module.v2 * x}, x=(None, tf.float32))
    tf.saved_model.save(module, str(model_dir / VERSION), signatures=signature)


@exporter
def two_constants(model_dir: Path) -> None:
    """One signature answers 1, the other 2, whatever comes."""
    signatures = {
        name: _signature(lambda x, value=value: {"y": tf.constant(value)}, x=(None, tf.float32))
        for name, value in (("serving_default", 1.0), ("custom_signature_key", 2.0))
    }
    _save(model_dir, signatures)


@exporter
def decides(model_dir: Path) -> None:
    """Has a condition, a loop and a check; and a signature that XLA does not have, of x's values.

    y = 2x + 3 where they sum to more than 0, else y = x + 2.
    """
    module = tf.Module()
    module.factor = tf.Variable(2.0)

    def run(x: Any) -> dict[str, Any]:
        tf.debugging.assert_less(x, 1e9)
        y = tf.cond(tf.reduce_sum(x) > 0, lambda: module.factor * x, lambda: x - 1.0)
        _, y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1.0, y + i), [0.0, y])
        return {"y": y}

    def shown(x: Any) -> dict[str, Any]:
        return {"y": tf.strings.length(tf.strings.as_string(x))}

    signatures = {
        "serving_default": _signature(run, x=((None, 4), tf.float32)),
        "shown": _signature(shown, x=((None,), tf.float32)),
    }
    tf.saved_model.save(module, str(model_dir / VERSION), signatures=signatures)


@exporter
def counter_resource(model_dir: Path) -> None:
    """``counter`` with a resource variable."""
    value = tf.Variable(0.0, name="counter")
    signatures = {
        "get_counter": _signature(lambda: {"output": value.read_value()}),
        "incr_counter": _signature(lambda: {"output": value.assign_add(1.0)}),
        "incr_counter_by": _signature(
            lambda delta: {"output": value.assign(value + delta)}, delta=(None, tf.float32)
        ),
        "reset_counter": _signature(lambda: {"output": value.assign(0.0)}),
    }
    _save(model_dir, signatures, value)


@exporter
def fixed_first_dim(model_dir: Path) -> None:
    """Takes two rows, never more or fewer, so no two requests can share a call."""
    _save_default(model_dir, lambda x: {"y": x * 2.0, "n": tf.shape(x)[0]}, x=((2, 3), tf.float32))


@exporter
def unknown_rank(model_dir: Path) -> None:
    """y = x + 1 for tensors of any rank."""
    _save_default(model_dir, lambda x: {"y": x + 1.0}, x=(None, tf.float32))


@exporter
def multi_io(model_dir: Path) -> None:
    """Three inputs and outputs of different dtypes and ranks, and a second signature."""

    def total(a: Any, b: Any) -> Any:
        return tf.cast(a, tf.float32) + tf.reduce_sum(b, axis=1)

    def default(a: Any, b: Any, name: Any) -> dict[str, Any]:
        return {
            "total": total(a, b),
            "greeting": tf.strings.join(["hello ", name]),
            "pair": tf.reshape(b, (-1, 2, 2)),
        }

    def second(a: Any, b: Any, name: Any) -> dict[str, Any]:
        # ``name`` is asked for and not used, as real signatures do.
        return {"amount": total(a, b)}

    inputs = {
        "a": ((None,), tf.int32),
        "b": ((None, 4), tf.float32),
        "name": ((None,), tf.string),
    }
    _save(
        model_dir,
        {"serving_default": _signature(default, **inputs), "second": _signature(second, **inputs)},
    )


@exporter
def dtypes(model_dir: Path) -> None:
    """One signature per dtype, named by it, that swaps the two columns of x into y."""

    def swap(x: Any) -> dict[str, Any]:
        # Not tf.reverse: its op does not admit the float8 types.
        return {"y": tf.concat([x[:, 1:], x[:, :1]], axis=1)}

    _save(model_dir, {name: _signature(swap, x=((None, 2), name)) for name in DTYPES})


@exporter
def raises(model_dir: Path) -> None:
    """Fails by its data: INVALID_ARGUMENT from 100 on, and NOT_FOUND always in ``missing``."""

    def checked(x: Any) -> dict[str, Any]:
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0, "x is too large")]):
            return {"y": tf.identity(x)}

    def missing(x: Any) -> dict[str, Any]:
        return {"y": tf.fill(tf.shape(x), tf.io.read_file("/nonexistent/batchyard"))}

    x = ((None,), tf.float32)
    _save(
        model_dir,
        {"serving_default": _signature(checked, x=x), "missing": _signature(missing, x=x)},
    )


@exporter
def variable_length(model_dir: Path) -> None:
    """Rows whose length varies from request to request; padding with 0 keeps the sums."""
    _save_default(
        model_dir,
        lambda tokens: {"sum": tf.reduce_sum(tokens, axis=1), "doubled": tokens * 2},
        tokens=((None, None), tf.int32),
    )


@exporter
def image_mean(model_dir: Path) -> None:
    """The mean of each channel of images of 8 by 8."""
    _save_default(
        model_dir,
        lambda x: {"mean": tf.reduce_mean(x, axis=(1, 2))},
        x=((None, 8, 8, 3), tf.float32),
    )


@exporter
def sorted_rows(model_dir: Path) -> None:
    """The numbers of each row in order: what must not change while they are sorted."""
    _save_default(model_dir, lambda x: {"y": tf.sort(x, axis=1)}, x=((None, 1000), tf.float32))


@exporter
def scalar_input(model_dir: Path) -> None:
    """y = x * scale; a scalar has no rows, so no two requests can share a call."""
    _save_default(
        model_dir,
        lambda x, scale: {"y": x * scale},
        x=((None,), tf.float32),
        scale=((), tf.float32),
    )


@exporter
def embedding(model_dir: Path) -> None:
    """Row i of a table is [4i, 4i+1, 4i+2, 4i+3]; i outside 0..9 raises on a CPU."""
    table = tf.Variable(tf.reshape(tf.range(40.0), (10, 4)), name="table")
    function = _signature(lambda x: {"y": tf.gather(table, x)}, x=((None,), tf.int32))
    _save(model_dir, {"serving_default": function}, table)


@exporter
def no_signatures(model_dir: Path) -> None:
    """Loads, and has nothing to serve."""
    _save(model_dir, {}, tf.Variable(1.0))


@exporter
def filled_in_call(model_dir: Path) -> None:
    """y = 2x by a variable that is in no checkpoint: each call fills it before it reads it."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None,), "x")
        doubled = v1.Variable(
            0.0, collections=[], use_resource=True, shape=tf.TensorShape(None), validate_shape=False
        )
        with tf.control_dependencies([doubled.assign(x * 2.0)]):
            y = doubled.read_value()
        v1.saved_model.simple_save(session, str(model_dir / VERSION), {"x": x}, {"y": y})


# --- Keras 3, whose variables lie in objects of its own.

_KERAS_X = np.arange(8, dtype=np.float32).reshape(2, 4)


def _keras_model() -> Any:
    """Three of four numbers; none of its weights is what it would be without a checkpoint."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [layers.Input((4,), name="x"), layers.Dense(3), layers.BatchNormalization()]
    )
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 2.0, w.shape) for w in model.get_weights()])
    return model


def _note_expected(model_dir: Path, model: Any, x: Any) -> None:
    """Writes ``x`` and what Keras makes of it beside the SavedModel."""
    folder = model_dir / VERSION / "assets.extra"
    folder.mkdir()
    np.savez(folder / "expected.npz", x=x, y=model(tf.constant(x), training=False))


@exporter
def keras_export(model_dir: Path) -> None:
    """A Keras model as Keras writes it."""
    model = _keras_model()
    model.export(model_dir / VERSION, verbose=False)
    _note_expected(model_dir, model, _KERAS_X)


@exporter
def keras_save(model_dir: Path) -> None:
    """The same, as TensorFlow writes it: what its restore operation fills, nobody reads."""
    model = _keras_model()
    tf.saved_model.save(model, str(model_dir / VERSION))
    _note_expected(model_dir, model, _KERAS_X)


@exporter
def keras_module(model_dir: Path) -> None:
    """The same in a module, with a second signature, of two inputs."""
    model = _keras_model()

    def difference(a: Any, b: Any) -> dict[str, Any]:
        return {"difference": model(a, training=False) - model(b, training=False)}

    x = ((None, 4), tf.float32)
    signatures = {
        "serving_default": _signature(lambda x: {"y": model(x, training=False)}, x=x),
        "difference": _signature(difference, a=x, b=x),
    }
    _save(model_dir, signatures, model)
    _note_expected(model_dir, model, _KERAS_X)


@exporter
def keras_words(model_dir: Path) -> None:
    """Reads a table, too, which is filled in a way of its own."""
    layers = tf.keras.layers
    words = layers.StringLookup(vocabulary=["one", "two", "three"])
    model = tf.keras.Sequential([layers.Input((2,), dtype="string"), words, layers.Embedding(4, 3)])
    x = np.array([["one", "three"], ["what", "two"]])
    tf.saved_model.save(model, str(model_dir / VERSION))
    _note_expected(model_dir, model, x)


@exporter
def keras_counter(model_dir: Path) -> None:
    """Counts its calls from 10, in a variable of Keras."""
    count = tf.keras.Variable(10.0, trainable=False, name="count")
    _save(
        model_dir, {"serving_default": _signature(lambda: {"n": count.assign(count + 1.0)})}, count
    )


@exporter
def keras_mixed(model_dir: Path) -> None:
    """Layers that compute in half precision: float16, with a head of float32, and bfloat16."""
    layers = tf.keras.layers

    def model(dtype: str, *more: Any) -> Any:
        dense = layers.Dense(3, dtype=f"mixed_{dtype}", activation="relu")
        made = tf.keras.Sequential([layers.Input((4,), name="x"), dense, *more])
        random = np.random.default_rng(0)
        made.set_weights([random.uniform(0.5, 2.0, w.shape) for w in made.get_weights()])
        return made

    module = tf.Module()
    module.models = [
        model("float16", layers.Dense(2, dtype="float32")),
        model("float16"),
        model("bfloat16"),
    ]
    x = ((None, 4), tf.float32)
    signatures = {
        name: _signature(lambda x, made=made: {"y": made(x, training=False)}, x=x)
        for name, made in zip(("serving_default", "half", "brain"), module.models, strict=True)
    }
    tf.saved_model.save(module, str(model_dir / VERSION), signatures=signatures)


# --- Folders that are no SavedModels.


@exporter
def bad(model_dir: Path) -> None:
    """A version whose saved_model.pb cannot be parsed."""
    path = model_dir / VERSION
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"this is no protocol buffer")


@exporter
def empty(model_dir: Path) -> None:
    """A version without a saved_model.pb."""
    (model_dir / VERSION).mkdir(parents=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export SavedModels for the tests.")
    parser.add_argument("outdir", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPORTERS))
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - EXPORTERS.keys())
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)}")
    tf.get_logger().setLevel("ERROR")
    export(arguments.outdir, arguments.names or list(EXPORTERS))


if __name__ == "__main__":
    main()
