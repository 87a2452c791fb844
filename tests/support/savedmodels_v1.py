"""The kinds of ``savedmodels.py`` that are built as TensorFlow 1 built them.

That is a graph and a session, with variables that are tensors of a reference type.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1
PREDICT = "tensorflow/serving/predict"
REGRESS = "tensorflow/serving/regress"
CLASSIFY = "tensorflow/serving/classify"

# Where a kind asks for nothing else.
VERSION = "1"

# Writes version folders into a model's folder.
Exporter = Callable[[Path], None]


@contextmanager
def _session() -> Iterator[Any]:
    with tf.Graph().as_default(), v1.Session() as session:
        yield session


def _ref_variable(value: float, name: str) -> Any:
    # Not v1.disable_resource_variables(), which holds for the whole process.
    return v1.Variable(value, name=name, use_resource=False)


def _tensor_info(tensor: Any, *, unknown_rank: bool = False) -> Any:
    """What a signature says of ``tensor``; ``unknown_rank`` makes it say less than the graph."""
    info = v1.saved_model.build_tensor_info(tensor)
    if unknown_rank:
        info.tensor_shape.Clear()
        info.tensor_shape.unknown_rank = True
    return info


def _signature_def(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], method: str = PREDICT
) -> Any:
    return v1.saved_model.build_signature_def(inputs, outputs, method)


def _save(path: Path, session: Any, signatures: Mapping[str, Any], **extras: Any) -> None:
    session.run(v1.global_variables_initializer())
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(
        session, [v1.saved_model.tag_constants.SERVING], signatures, **extras
    )
    builder.save()


def half_plus_two(model_dir: Path) -> None:
    """y = x/2 + 2, with regress and classify signatures, an asset and a main op."""
    _save_half_plus_two(model_dir / "00000123", b=2.0)


def half_plus_two_2_versions(model_dir: Path) -> None:
    """Version 123 is ``half_plus_two``; version 124 adds 3, so that answers tell them apart."""
    _save_half_plus_two(model_dir / "00000123", b=2.0)
    _save_half_plus_two(model_dir / "00000124", b=3.0)


def half_plus_three(model_dir: Path) -> None:
    """y = x/2 + 3, with a signature that is named as its method."""
    _save_half_plus_two(model_dir / "00000123", b=3.0, aliases={REGRESS: "regress_x_to_y"})


def _save_half_plus_two(path: Path, b: float, aliases: Mapping[str, str] | None = None) -> None:
    with _session() as session:
        example = v1.placeholder(tf.string, (None,), "tf_example")
        parsed = tf.io.parse_example(
            example,
            {
                "x": tf.io.FixedLenFeature([1], tf.float32),
                "x2": tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0]),
            },
        )
        signatures = _half_plus_two_signatures(
            example, tf.identity(parsed["x"], "x"), tf.identity(parsed["x2"], "x2"), b
        )
        for alias, name in (aliases or {}).items():
            signatures[alias] = signatures[name]
        with tempfile.TemporaryDirectory() as source:
            _save(path, session, signatures, **_asset_and_main_op(Path(source)))


def _half_plus_two_signatures(example: Any, x: Any, x2: Any, b_value: float) -> dict[str, Any]:
    a = _ref_variable(0.5, "a")
    b = _ref_variable(b_value, "b")
    c = _ref_variable(3.0, "c")
    y = _tensor_info(tf.add(a * x, b, "y"))
    y2 = _tensor_info(tf.add(a * x, c, "y2"))
    y3 = _tensor_info(tf.add(a * x2, c, "y3"))
    # TensorFlow Serving's own model has no shape for its serialized examples.
    examples = _tensor_info(example, unknown_rank=True)
    return {
        "serving_default": _signature_def({"x": _tensor_info(x)}, {"y": y}),
        "regress_x_to_y": _signature_def({"inputs": examples}, {"outputs": y}, REGRESS),
        "regress_x_to_y2": _signature_def({"inputs": examples}, {"outputs": y2}, REGRESS),
        "regress_x2_to_y3": _signature_def({"inputs": _tensor_info(x2)}, {"outputs": y3}, REGRESS),
        "classify_x_to_y": _signature_def({"inputs": examples}, {"scores": y}, CLASSIFY),
    }


def _asset_and_main_op(source_dir: Path) -> dict[str, Any]:
    """An asset file, and a main op that puts its path into the variable ``filename``.

    The path in the graph is of a file that is soon gone: the loader feeds the new one.
    """
    source = source_dir / "foo.txt"
    source.write_text("asset-file-contents")
    asset = tf.constant(str(source), name="asset_path")
    v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
    # In no collection: the variable is set by the main op alone, not restored.
    filename = v1.Variable("", name="filename", trainable=False, collections=[], use_resource=False)
    return {
        "assets_collection": v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        "main_op": tf.group(v1.assign(filename, asset)),
    }


def counter(model_dir: Path) -> None:
    """A scalar that calls change. Its outputs have the reference type DT_FLOAT_REF."""
    with _session() as session:
        value = _ref_variable(0.0, "counter")
        delta = v1.placeholder(tf.float32, name="delta")
        outputs = {
            "get_counter": value,
            "incr_counter": v1.assign(value, value + 1.0),
            "incr_counter_by": v1.assign(value, value + delta),
            "reset_counter": v1.assign(value, 0.0),
        }
        inputs = {"incr_counter_by": {"delta": _tensor_info(delta)}}
        signatures = {
            name: _signature_def(inputs.get(name, {}), {"output": _tensor_info(output)})
            for name, output in outputs.items()
        }
        _save(model_dir / VERSION, session, signatures)


def matrix_half_plus_two(model_dir: Path) -> None:
    """y = x/2 + 2 for rows of 3 by 3."""
    with _session() as session:
        x = v1.placeholder(tf.float32, (None, 3, 3), "x")
        y = tf.add(_ref_variable(0.5, "a") * x, _ref_variable(2.0, "b"), "y")
        signature = _signature_def({"x": _tensor_info(x)}, {"y": _tensor_info(y)})
        _save(model_dir / VERSION, session, {"serving_default": signature})


def reduces(model_dir: Path) -> None:
    """One total for all rows, declared of unknown rank: it cannot be batched but looks so."""
    with _session() as session:
        x = v1.placeholder(tf.float32, (None,), "x")
        total = _tensor_info(tf.reduce_sum(x, name="total"), unknown_rank=True)
        signature = _signature_def({"x": _tensor_info(x)}, {"total": total})
        _save(model_dir / VERSION, session, {"serving_default": signature})


def reads_reference(model_dir: Path) -> None:
    """y = 3x by a variable that XLA does not have; and y = x + 5, which it compiles."""
    with _session() as session:
        x = v1.placeholder(tf.float32, (None, 4), "x")
        factor = _ref_variable(3.0, "factor")
        signatures = {
            name: _signature_def({"x": _tensor_info(x)}, {"y": _tensor_info(y)})
            for name, y in (("serving_default", factor * x), ("more", x + 5.0))
        }
        _save(model_dir / VERSION, session, signatures)


def partly_broken(model_dir: Path) -> None:
    """Of its signatures one can run: the others feed a tensor twice, fetch what they feed, and name
    one that is not there."""
    with _session() as session:
        x = _tensor_info(v1.placeholder(tf.float32, (None,), "x"))
        y = _tensor_info(tf.identity(v1.get_default_graph().get_tensor_by_name("x:0") * 2, "y"))
        elsewhere = _tensor_info(v1.get_default_graph().get_tensor_by_name("y:0"))
        elsewhere.name = "nowhere:0"
        signatures = {
            "serving_default": _signature_def({"x": x}, {"y": y}),
            "fed_twice": _signature_def({"x": x, "again": x}, {"y": y}),
            "passed_through": _signature_def({"x": x}, {"x": x, "y": y}),
            "nowhere": _signature_def({"x": x}, {"y": elsewhere}),
        }
        _save(model_dir / VERSION, session, signatures)


def foreign_operation(model_dir: Path) -> None:
    """Its operation is of a package, which is not installed here."""
    with _session() as session:
        x = v1.placeholder(tf.string, (None,), "x")
        y = _tensor_info(tf.strings.lower(x, name="y"))
        _save(
            model_dir / VERSION,
            session,
            {"serving_default": _signature_def({"x": _tensor_info(x)}, {"y": y})},
        )
    file = model_dir / VERSION / "saved_model.pb"
    # Of the same length, so that the message around it stays one.
    file.write_bytes(file.read_bytes().replace(b"StringLower", b"NormalizeU8"))


EXPORTERS: tuple[Exporter, ...] = (
    half_plus_two,
    half_plus_two_2_versions,
    half_plus_three,
    counter,
    matrix_half_plus_two,
    reduces,
    reads_reference,
    partly_broken,
    foreign_operation,
)
