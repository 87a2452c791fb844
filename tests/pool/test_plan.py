"""A configuration and a machine become settings for the broker and for each worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.policy import BatchingParameters
from batchyard.pool.config import validate
from batchyard.pool.inventory import Gpu, Inventory
from batchyard.pool.plan import ServerPlan, make_plan, usable_cpus
from batchyard.wire.control import ModelSource
from batchyard.wire.errors import ConfigurationError

NO_GPU = Inventory((), "no driver")
TWO_GPUS = Inventory(tuple(Gpu(i, f"GPU-{i}", "Tesla", 16_000) for i in range(2)), "")


def python_model(name: str = "m", **fields: Any) -> dict[str, Any]:
    return {"name": name, "path": "a:b", "runtime": "python", **fields}


def plan(
    *models: dict[str, Any], inventory: Inventory = NO_GPU, **sections: Any
) -> tuple[ServerPlan, list[str]]:
    tables = {"models": list(models or [python_model()]), **sections}
    return make_plan(validate(tables, "test"), inventory, {}, [0, 1, 2, 3])


def test_sizes_are_bytes_and_modes_are_octal() -> None:
    made, _ = plan(
        broker={"bind": ["tcp://127.0.0.1:1"], "max_message_mb": 3, "ipc_mode": "0660"},
        pool={"arena_mb": 2, "drain_timeout_s": 1.5},
    )
    assert made.arena_nbytes == 2 << 20
    assert made.config.pool.drain_timeout_s == 1.5
    assert made.broker.bind == ["tcp://127.0.0.1:1"]
    assert made.broker.max_message_nbytes == 3 << 20
    assert made.broker.queue_nbytes_max == 4096 << 20
    assert made.broker.ipc_mode == 0o660
    assert made.broker.in_flight_max == 100_000


def test_each_worker_has_every_model() -> None:
    made, _ = plan(
        python_model("a"), python_model("b"), pool={"workers": [{"device": "cpu", "count": 3}]}
    )
    assert [worker.settings.worker_id for worker in made.workers] == [0, 1, 2]
    for worker in made.workers:
        assert [source.name for source in worker.settings.models] == ["a", "b"]
        assert worker.settings.device == "cpu"


def test_options_of_a_group_reach_its_workers() -> None:
    group = {
        "device": "cpu",
        "tensorflow_intra_op_parallelism": 3,
        "tensorflow_inter_op_parallelism": 2,
        "concurrent_batches": 4,
        "cpu_affinity": [1, 2],
    }
    made, _ = plan(pool={"workers": [group, {"device": "cpu"}]})
    first, second = (worker.settings for worker in made.workers)
    assert (first.intra_op_parallelism, first.inter_op_parallelism) == (3, 2)
    assert (first.concurrent_batches, first.cpu_affinity) == (4, [1, 2])
    assert (second.concurrent_batches, second.cpu_affinity) == (1, None)


def test_gpu_workers_are_bound_by_their_environment() -> None:
    group = {"device": "gpu:1", "count": 2, "gpu_memory_limit_mb": 1000}
    made, notes = plan(inventory=TWO_GPUS, pool={"workers": [group]})
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in made.workers] == ["GPU-1"] * 2
    assert [worker.settings.memory_limit_mb for worker in made.workers] == [1000, 1000]
    assert notes == ["gpu:1 (Tesla, GPU-1, 16000 MiB)"]


def test_notes_are_told_once() -> None:
    _, notes = plan(pool={"workers": [{"device": "auto", "count": 2}]})
    assert len(notes) == 1
    assert "using cpu" in notes[0]


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="gpu:2"):
        plan(inventory=TWO_GPUS, pool={"workers": [{"device": "gpu:2"}]})


def test_python_model_is_version_1() -> None:
    signature = {
        "inputs": {"x": {"dtype": "float32", "shape": [-1]}},
        "outputs": {"y": {"dtype": "string", "shape": [-1, 2]}},
    }
    made, _ = plan(python_model(signature=signature, batching={"max_batch_size": 8}))
    assert made.workers[0].settings.models == [
        ModelSource("m", 1, "python", "a:b", [1, 8], signature)
    ]


def test_savedmodel_has_the_version_that_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "00000123"
    folder.mkdir()
    (folder / "saved_model.pb").touch()
    labels = {"stable": 123, "canary": 123}
    made, _ = plan({"name": "m", "path": str(tmp_path), "version_labels": labels})
    (source,) = made.workers[0].settings.models
    assert (source.version, source.runtime, source.path) == (123, "savedmodel", str(folder))
    (model,) = made.broker.models
    assert (model.version, model.labels) == (123, ["canary", "stable"])


def test_labels_may_name_versions_that_are_to_come_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    model = {"name": "m", "path": str(tmp_path), "version_labels": {"stable": 1, "canary": 2}}
    with pytest.raises(ConfigurationError, match="label 'canary' names version 2, but version 1"):
        plan(model)

    made, _ = plan({**model, "allow_version_labels_for_unavailable_models": True})

    assert [served.labels for served in made.broker.models] == [["stable"]]


def test_each_version_has_its_labels_and_the_highest_is_current(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    made, _ = plan(
        {
            "name": "m",
            "path": str(tmp_path),
            "version_policy": {"latest": 2},
            "version_labels": {"stable": 2, "canary": 3},
            "retry": False,
            "batch_execution_timeout": 1.5,
        }
    )
    assert [
        (model.version, model.labels, model.is_current, model.retry) for model in made.broker.models
    ] == [(2, ["stable"], False, False), (3, ["canary"], True, False)]
    assert {model.batch_execution_timeout_s for model in made.broker.models} == {1.5}
    assert [source.version for source in made.workers[0].settings.models] == [2, 3]


def test_models_have_the_timeout_of_the_pool_if_they_have_none() -> None:
    made, _ = plan(
        python_model("a"),
        python_model("b", batch_execution_timeout=float("inf")),
        pool={"batch_execution_timeout": 7.0},
    )
    timeouts = {model.name: model.batch_execution_timeout_s for model in made.broker.models}
    assert timeouts == {"a": 7.0, "b": float("inf")}


def test_versions_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    with pytest.raises(ConfigurationError, match="names none of the versions that are there: 1"):
        plan({"name": "m", "path": str(tmp_path), "version_policy": {"specific": [2]}})


def test_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="model 'm': "):
        plan({"name": "m", "path": str(tmp_path)})


def test_label_for_a_version_that_is_not_served_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan(python_model(version_labels={"old": 7}))
    assert str(caught.value) == ("model 'm': label 'old' names version 7, but version 1 is served")


def test_batching_is_what_the_broker_takes() -> None:
    """Both ends have the same fields; neither folder may import the other."""
    made, _ = plan(python_model(batching={"max_batch_size": 4, "allowed_batch_sizes": [2, 4]}))
    parameters = BatchingParameters(**made.broker.models[0].batching)
    assert parameters.max_batch_size == 4
    assert parameters.num_batch_threads is None


def test_settings_survive_the_wire() -> None:
    made, _ = plan(python_model(version_labels={"stable": 1}))
    assert type(made.broker).from_wire(made.broker.to_wire()) == made.broker
    settings = made.workers[0].settings
    assert type(settings).from_wire(settings.to_wire()) == settings


def test_usable_cpus_are_those_of_this_process() -> None:
    assert set(usable_cpus()) == os.sched_getaffinity(0)
    assert usable_cpus() == sorted(usable_cpus())
