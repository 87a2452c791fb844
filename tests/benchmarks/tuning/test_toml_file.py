"""The user's file keeps all that was not tuned, comments too."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from batchyard.benchmarks.tuning import toml_file
from batchyard.benchmarks.tuning.bench import Placement, Setting
from batchyard.pool.config import validate
from batchyard.wire.errors import ConfigurationError

SETTING = Setting(Placement(2), 32, 1_000, 7, 2, (1, 2, 32))
PLAIN = Setting(Placement(2), 32, 0, 7, 2)
FILE = """# mine
[broker]
bind = ["tcp://127.0.0.1:8600"] # here

[[models]]
name = "first"
path = "/models/first"

[models.batching]
# what I know of it
max_batch_size = 3 # old
pad_variable_length_inputs = true   # needed

[[models]]
name = "second"   # also
path = "somewhere:function"
runtime = "python"
batching.max_batch_size = 8

[pool]
arena_mb = 3
"""
REASONS = {"max_batch_size": "because it does more. " * 20, "batch_timeout_micros": "short"}


def tuned(text: str, model: str, setting: Setting = SETTING) -> str:
    path_document = toml_file.tomlkit.parse(text)
    return toml_file.tuned(path_document, model, setting, REASONS)


@pytest.mark.parametrize("model", ["first", "second"])
def test_only_what_was_tuned_changes(model: str) -> None:
    wanted = tomllib.loads(FILE)
    (table,) = [m for m in wanted["models"] if m["name"] == model]
    table["batching"] |= {
        "max_batch_size": 32,
        "batch_timeout_micros": 1_000,
        "max_enqueued_batches": 7,
        "num_batch_threads": 2,
        "allowed_batch_sizes": [1, 2, 32],
    }
    text = tuned(FILE, model)
    assert tomllib.loads(text) == wanted
    validate(tomllib.loads(text), "test")
    for comment in ("# mine", "# here", "# what I know of it", "# needed", "# also"):
        assert comment in text
    lines = text.splitlines()
    assert lines[lines.index("batch_timeout_micros = 1000") - 1] == "# tuned: short"
    assert max(map(len, lines)) < 100


@pytest.mark.parametrize("model", ["first", "second"])
def test_another_run_replaces_what_the_first_wrote(model: str) -> None:
    once = tuned(FILE, model)
    assert tuned(once, model) == once
    assert "allowed_batch_sizes" not in tuned(once, model, PLAIN).split("[pool]")[0]


def test_batching_in_a_line() -> None:
    text = tuned('[[models]]\nname = "m"\npath = "p"\nbatching = { max_batch_size = 4 }\n', "m")
    assert tomllib.loads(text)["models"][0]["batching"]["max_batch_size"] == 32
    text = tuned('models = [{ name = "m", path = "p", batching = { max_batch_size = 4 } }]\n', "m")
    assert tomllib.loads(text)["models"][0]["batching"]["max_batch_size"] == 32


def test_a_file_of_one_model_with_workers() -> None:
    document = toml_file.of_model("m", "module:function", python=True)
    toml_file.set_workers(document, [{"device": "cpu", "count": 2}])
    tables = tomllib.loads(toml_file.tuned(document, "m", PLAIN, {}))
    assert tables["pool"] == {"workers": [{"device": "cpu", "count": 2}]}
    assert tables["models"][0]["runtime"] == "python"
    validate(tables, "test")


def test_workers_of_a_file_are_replaced() -> None:
    document = toml_file.tomlkit.parse("[pool]\narena_mb = 3 # MiB\n" + FILE.split("[pool]")[0])
    toml_file.set_workers(document, [{"device": "cpu", "count": 4}])
    text = toml_file.tuned(document, "first", PLAIN, {})
    pool = tomllib.loads(text)["pool"]
    assert pool == {"arena_mb": 3, "workers": [{"device": "cpu", "count": 4}]}
    assert "# MiB" in text


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        toml_file.read(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("a = = b")
    with pytest.raises(ConfigurationError, match="not TOML"):
        toml_file.read(bad)
