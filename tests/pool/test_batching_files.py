"""Versions that say themselves how their requests become batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.virtual_server import VirtualServer, config

from batchyard.pool.config_models import Batching, Model
from batchyard.pool.model_set import ModelSet, wanted_models
from batchyard.pool.versions import Versions, find_versions
from batchyard.wire.control import ModelSettings

BATCHING = {"max_batch_size": 8, "allowed_batch_sizes": [2, 8], "batch_timeout_micros": 5}


def write(folder: Path, number: int, text: str | None = None) -> None:
    version = folder / str(number)
    version.mkdir(exist_ok=True)
    (version / "saved_model.pb").touch()
    if text is not None:
        (version / "batching_params.pbtxt").write_text(text)


def table(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "path": str(folder),
        "batching_params_file": True,
        "batching": BATCHING,
        **fields,
    }


def find(folder: Path, **fields: Any) -> Versions:
    return find_versions(Model.model_validate(table(folder, **fields)))


def wanted(folder: Path, now: ModelSet | None = None, **fields: Any) -> ModelSet:
    found = {"m": find(folder, **fields)}
    return wanted_models(config([table(folder, **fields)]), found, {}, now or ModelSet())


def settings(models: ModelSet, number: int) -> ModelSettings:
    return models.served["m", number].settings


def test_a_file_holds_with_tensorflow_servings_defaults(tmp_path: Path) -> None:
    write(tmp_path, 1, "max_batch_size { value: 10 }")
    write(tmp_path, 2)
    models = wanted(tmp_path, version_policy="all")
    ten = Batching(max_batch_size=10, max_enqueued_batches=10, enable_large_batch_splitting=False)
    assert settings(models, 1).batching == ten.for_broker
    assert settings(models, 2).batching == Batching(**BATCHING).for_broker
    assert models.served["m", 1].source.batch_sizes == [1, 10]
    requests = models.served["m", 1].source.warmup_requests
    assert requests is not None
    assert requests.max_batch_size == 10


def test_what_such_files_cannot_say_is_the_models(tmp_path: Path) -> None:
    write(tmp_path, 1, "pad_variable_length_inputs: true")
    own = {"num_batch_threads": 3, "pad_variable_length_inputs": True, "length_buckets": [4]}
    batching = settings(wanted(tmp_path, batching=own), 1).batching
    assert {key: batching[key] for key in own} == own


def test_a_file_turns_batching_on(tmp_path: Path) -> None:
    write(tmp_path, 1, "")
    write(tmp_path, 2)
    models = wanted(tmp_path, version_policy="all", batching={"enable_batching": False})
    assert settings(models, 1).batching["enable_batching"]
    assert not settings(models, 2).batching["enable_batching"]


def test_nobody_asked_for_files(tmp_path: Path) -> None:
    write(tmp_path, 1, "nonsense")
    assert find(tmp_path, batching_params_file=False)[1].refusal == ""


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nonsense", r"params\.pbtxt:1:"),
        ("max_batch_size { value: 0 }", r"pbtxt: max_batch_size must be 1 or more"),
        ("allowed_batch_sizes: 4", r"pbtxt: Last entry in allowed_batch_sizes must match"),
    ],
)
def test_only_the_version_whose_file_is_wrong_is_refused(
    tmp_path: Path, text: str, what: str
) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, text)
    models = wanted(tmp_path)
    assert [number for _, number in models.served] == [1]
    ((key, refused),) = models.refused.items()
    assert key == ("m", 2)
    (refusal,) = models.refusals
    assert refusal == f"model 'm' version 2: {refused.error}"
    assert re.search(what, refusal)


def test_a_version_that_is_served_stays_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, 1, "max_batch_size { value: 10 }")
    before = wanted(tmp_path)
    write(tmp_path, 1, "nonsense")
    now = wanted(tmp_path, before)
    assert settings(now, 1).batching["max_batch_size"] == 10
    assert not now.refused
    assert now.refusals


def test_it_is_logged_once(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, "nonsense")
    found = {"m": dict(find(tmp_path))}
    server = VirtualServer(config=config([table(tmp_path)]), found=found)
    server.passes(5)
    assert server.logs == ["version_refused"]
