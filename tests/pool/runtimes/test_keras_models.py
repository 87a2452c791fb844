"""Keras 3 models, whichever way they were saved.

Those that Keras did not write itself have variables that their restore operation leaves empty:
they are loaded by their objects, and then run as all others do.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.in_tensorflow import describe, run

from batchyard.wire.errors import InvalidArgument
from batchyard.wire.signatures import TensorSpec

Ask = Callable[..., Any]

BY_OBJECTS = {"keras_save", "keras_module", "keras_words", "keras_counter", "keras_mixed"}
UNFIT = {"bad", "empty", "no_signatures", "foreign_operation"}

# Loads all the models of a folder, and then one whose objects do not load.
LOAD = """
import json, sys
from pathlib import Path

from batchyard.pool.runtimes.base import ModelLoadError
from batchyard.pool.runtimes.device_share import bind_eager_runtime
from batchyard.pool.runtimes.savedmodel import load_savedmodel
from batchyard.wire import log
from batchyard.wire.control import ModelSource, WorkerSettings
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2


def settings(device="cpu", limit_mb=None, growth=False):
    return WorkerSettings(0, 0, device, limit_mb, growth, 3, 2, None, 1, [])


def load(name, path):
    load_savedmodel(ModelSource(name, 1, "savedmodel", str(path), [1], None), settings())


log.configure("test")
folder, broken, *unfit = sys.argv[1:]
for path in sorted(Path(folder).iterdir()):
    if path.name not in unfit:
        load(path.name, min(path.iterdir()))
get = tf.config.threading
threads = get.get_intra_op_parallelism_threads(), get.get_inter_op_parallelism_threads()

file = Path(broken, "saved_model.pb")
model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
del model.meta_graphs[0].object_graph_def.nodes[1:]
file.write_bytes(model.SerializeToString())
try:
    load("broken", broken)
except ModelLoadError as error:
    refusal = str(error)

# This machine need not have a GPU.
calls = []
config = tf.config
config.list_physical_devices = lambda kind: [kind]
config.set_visible_devices = lambda *given: calls.append(["visible", *given])
config.set_logical_device_configuration = lambda device, parts: calls.append(
    ["limit", device, *(part.memory_limit for part in parts)]
)
config.experimental.set_memory_growth = lambda *given: calls.append(["growth", *given])
for given in [("cpu",), ("gpu:0",), ("gpu:0", None, True), ("gpu:0", 512, True)]:
    bind_eager_runtime(settings(*given))

print(json.dumps({"threads": threads, "refusal": refusal, "gpu_calls": calls}))
"""


@dataclass(frozen=True)
class Loaded:
    """What ``LOAD`` told, and where the model lies that it could not load."""

    threads: list[int]
    refusal: str
    gpu_calls: list[list[Any]]
    broken: Path
    unrestored: dict[str, str]


@pytest.fixture(scope="module")
def loaded(savedmodels: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    broken = tmp_path_factory.mktemp("broken") / "1"
    shutil.copytree(savedmodels / "keras_save" / "1", broken)
    command = [sys.executable, "-P", "-c", LOAD, savedmodels, broken, *UNFIT]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    lines = re.findall(r"event=model_loaded_by_objects model=(\S+) unrestored=(\S+)", done.stderr)
    return Loaded(**json.loads(done.stdout), broken=broken, unrestored=dict(lines))


@pytest.mark.parametrize("kind", ["keras_export", "keras_save", "keras_module", "keras_words"])
def test_outputs_are_those_of_keras(ask_tensorflow: Ask, savedmodels: Path, kind: str) -> None:
    path = savedmodels / kind / "1"
    with np.load(path / "assets.extra" / "expected.npz") as expected:
        x, y = expected["x"], expected["y"]
    signatures, stateful = ask_tensorflow(describe, path)
    assert not stateful
    (default,) = (spec for spec in signatures if spec.name == "serving_default")
    assert default.batched
    (name,) = (spec.name for spec in default.inputs)
    if x.dtype.kind == "U":
        x = np.char.encode(x).astype(object)
    calls = [("serving_default", {name: rows}) for rows in (x, x[1:])]
    both, second = ask_tensorflow(run, path, *calls)
    assert list(both) == [spec.name for spec in default.outputs]
    np.testing.assert_allclose(*both.values(), y, rtol=1e-5)
    np.testing.assert_allclose(*second.values(), y[1:], rtol=1e-5)


def test_every_signature_has_its_own_inputs_and_outputs(
    ask_tensorflow: Ask, savedmodels: Path
) -> None:
    path = savedmodels / "keras_module" / "1"
    signatures, _ = ask_tensorflow(describe, path)
    difference, default = signatures
    assert (difference.name, default.name) == ("difference", "serving_default")
    assert difference.inputs == tuple(TensorSpec(n, "float32", (None, 4)) for n in "ab")
    assert difference.outputs == (TensorSpec("difference", "float32", (None, 3)),)
    inputs = {name: np.full((2, 4), i, np.float32) for name, i in (("a", 1), ("b", 3))}
    of_a, of_b, of_both = ask_tensorflow(
        run,
        path,
        ("serving_default", {"x": inputs["a"]}),
        ("serving_default", {"x": inputs["b"]}),
        ("difference", inputs),
    )
    assert (of_both["difference"] < -1).all()
    np.testing.assert_allclose(of_both["difference"], of_a["y"] - of_b["y"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["keras_export", "keras_save"])
def test_wrong_shape_is_an_invalid_argument(
    ask_tensorflow: Ask, savedmodels: Path, kind: str
) -> None:
    path = savedmodels / kind / "1"
    name = "x" if kind == "keras_export" else "inputs"
    call = ("serving_default", {name: np.zeros((2, 5), np.float32)})
    with pytest.raises(InvalidArgument, match="model 'm' signature 'serving_default': Matrix size"):
        ask_tensorflow(run, path, call)


def test_counter_is_stateful_and_counts(ask_tensorflow: Ask, savedmodels: Path) -> None:
    path = savedmodels / "keras_counter" / "1"
    assert ask_tensorflow(describe, path)[1]
    counts = ask_tensorflow(run, path, *[("serving_default", {})] * 3)
    assert [float(count["n"]) for count in counts] == [11.0, 12.0, 13.0]


def test_variable_that_each_call_fills_is_not_missed(
    ask_tensorflow: Ask, savedmodels: Path, loaded: Loaded
) -> None:
    call = ("serving_default", {"x": np.array([1.0, 2.0], np.float32)})
    (outputs,) = ask_tensorflow(run, savedmodels / "filled_in_call" / "1", call)
    assert outputs["y"].tolist() == [2.0, 4.0]
    assert "filled_in_call" not in loaded.unrestored


def test_log_names_the_models_that_are_loaded_by_objects(loaded: Loaded) -> None:
    assert loaded.unrestored.keys() == BY_OBJECTS
    # Of six, the first by name.
    assert re.fullmatch(r"\S+/batch_normalization\S*/beta", loaded.unrestored["keras_save"])
    assert loaded.unrestored["keras_counter"] == "count"


def test_objects_that_do_not_load_say_where(loaded: Loaded) -> None:
    beginning = f"{loaded.broken}: its restore operation leaves variable "
    assert loaded.refusal.startswith(beginning)
    assert "/beta' empty, and its objects do not load: " in loaded.refusal
    assert "\n" not in loaded.refusal


def test_loader_keeps_to_the_workers_share_of_the_device(loaded: Loaded) -> None:
    assert loaded.threads == [3, 2]
    assert loaded.gpu_calls == [
        ["visible", [], "GPU"],
        ["growth", "GPU", True],
        ["limit", "GPU", 512],
    ]
