"""The configuration that a file and a command line make together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from batchyard.cli import service_files
from batchyard.cli.serving import early_log_settings, load_config, serving_arguments
from batchyard.pool.config import Broker, Config, Pool, WorkerGroup
from batchyard.pool.config_models import Batching
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.log import LogSettings

FILE = """
[broker]
bind = ["tcp://127.0.0.1:7"]
max_queue_mb = 9
[pool]
arena_mb = 3
drain_timeout_s = 2.0
[[pool.workers]]
device = "cpu"
count = 2
[[models]]
name = "filed"
path = "a:b"
runtime = "python"
[models.batching]
max_batch_size = 5
"""
SAMPLE = service_files.shipped("batchyard.toml")


def load(*arguments: str, models: list[dict[str, Any]] | None = None) -> Config:
    """The configuration for a command line; raises what ``load_config`` raises."""
    loaded: list[Config] = []

    @click.command()
    @serving_arguments
    def command(**options: Any) -> None:
        loaded.append(load_config(options, models))

    result = CliRunner().invoke(command, arguments)
    if result.exception is not None:
        raise result.exception
    return loaded[0]


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*arguments)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.toml"
    path.write_text(FILE)
    return str(path)


def test_command_line_alone() -> None:
    config = load("--model", "m=/models/m", "--model", "f=my.module:function")
    assert [(m.name, m.path, m.runtime) for m in config.models] == [
        ("m", "/models/m", "savedmodel"),
        ("f", "my.module:function", "python"),
    ]
    assert config.pool == Pool()
    assert config.broker.max_queue_mb == Broker().max_queue_mb


def test_file_alone(file: str) -> None:
    config = load(file)
    assert config.broker.bind == ["tcp://127.0.0.1:7"]
    assert (config.pool.arena_mb, config.pool.workers[0].count) == (3, 2)
    assert [model.name for model in config.models] == ["filed"]


def test_command_line_adds_models_and_replaces_values(file: str) -> None:
    config = load(
        file,
        "--model=m=/m",
        "--arena-mb=7",
        "--max-message-mb=8",
        "--bind=tcp://127.0.0.1:1",
        "--bind=tcp://127.0.0.1:2",
    )
    assert [model.name for model in config.models] == ["filed", "m"]
    assert config.broker.bind == ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"]
    assert (config.broker.max_message_mb, config.broker.max_queue_mb) == (8, 9)
    assert (config.pool.arena_mb, config.pool.drain_timeout_s) == (7, 2.0)
    assert config.pool.workers == [WorkerGroup(device="cpu", count=2)]


def test_log_options(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'[log]\nformat = "json"\nlevel = "error"\n{FILE}')
    options = ["--log-level=debug", "--slow-request-ms=2.5"]
    assert load(str(path), *options).log.settings == LogSettings("json", "debug", 2.5)
    assert load(str(path)).log.settings == LogSettings("json", "error", 0.0)
    assert refusal(str(path), "--slow-request-ms=-1").startswith(f"{path}: log.slow_request_ms: ")


@pytest.mark.parametrize(
    ("table", "arguments", "form"),
    [
        ('[log]\nformat = "json"\nlevel = 3', {}, "text"),
        ('[log]\nformat = "json"', {}, "json"),
        ('[log]\nformat = "json"', {"log_format": "text"}, "text"),
        ("log = 3", {"log_format": "json"}, "json"),
        ("not TOML", {"log_format": "json"}, "json"),
        ("", {}, "text"),
    ],
)
def test_how_to_tell_what_is_wrong(
    tmp_path: Path, table: str, arguments: dict[str, Any], form: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(table)
    assert early_log_settings({"config": path, **arguments}).format == form


def test_worker_options_replace_the_files_groups(file: str) -> None:
    config = load(file, "--device=cpu", "--device=gpu:0", "--workers=3", "--concurrent-batches=2")
    assert config.pool.workers == [
        WorkerGroup(device="cpu", count=3, concurrent_batches=2),
        WorkerGroup(device="gpu:0", count=3, concurrent_batches=2),
    ]
    assert config.pool.arena_mb == 3


def test_worker_options_without_a_device_are_for_auto() -> None:
    config = load("--model=m=/m", "--workers=2", "--gpu-memory-growth")
    assert config.pool.workers == [WorkerGroup(device="auto", count=2, gpu_memory_growth=True)]


def test_batching_options_are_for_the_models_that_are_added(file: str) -> None:
    options = ["--max-batch-size=8", "--allowed-batch-sizes=2,8", "--no-enable-batching"]
    config = load(file, "--model=m=/m", "--model=n=/n", *options)
    expected = Batching(max_batch_size=8, allowed_batch_sizes=[2, 8], enable_batching=False)
    assert [model.batching for model in config.models] == [
        Batching(max_batch_size=5),
        expected,
        expected,
    ]


def test_batching_options_without_a_model_are_refused(file: str) -> None:
    assert refusal(file, "--max-batch-size=8").startswith(
        "--max-batch-size is for models given by --model"
    )


def test_nothing_to_serve_is_refused() -> None:
    assert refusal() == "no model to serve: give --model NAME=PATH, or a CONFIG.toml"


@pytest.mark.parametrize("text", ["", "models = []", "[pool]\narena_mb = 3", SAMPLE])
def test_file_without_models_says_what_to_write_into_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    said = refusal(str(path))
    assert said.startswith(f"{path}: no model to serve: write a [[models]] table with a name and ")
    assert "\n" not in said


def test_file_with_a_misspelt_table_says_so_beside_the_missing_models(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[[modles]]\nname = "m"\npath = "/m"\n')
    lines = refusal(str(path)).splitlines()
    assert [line.removeprefix(f"{path}: ").partition(":")[0] for line in lines] == [
        "no model to serve",
        "modles",
    ]


@pytest.mark.parametrize("argument", ["m", "=/m", "m=", ""])
def test_model_needs_a_name_and_a_path(argument: str) -> None:
    assert refusal("--model", argument) == f"--model {argument}: must be NAME=PATH"


def test_folder_with_a_colon_is_a_savedmodel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("--model=m=a:b").models[0].runtime == "savedmodel"
    assert load("--model=m=x=y:z").models[0].path == "x=y:z"


def test_refusals_say_where_they_come_from(file: str, tmp_path: Path) -> None:
    assert refusal("--model=m=/m", "--arena-mb=0").startswith("command line: pool.arena_mb: ")
    assert refusal(file, "--arena-mb=0").startswith(f"{file}: pool.arena_mb: ")
    assert refusal(file, "--model=filed=/m") == f"{file}: models: two models are named 'filed'"
    missing = tmp_path / "none.toml"
    assert refusal(str(missing)) == f"{missing}: No such file or directory"


@pytest.mark.parametrize(
    ("text", "option"),
    [("pool = 3", "--arena-mb=1"), ("broker = 3", "--insecure"), ("models = 3", "--workers=1")],
)
def test_file_with_values_for_tables_is_refused(tmp_path: Path, text: str, option: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    assert text.partition(" ")[0] in refusal(str(path), "--model=m=/m", option)


def test_gateways_have_options_by_their_tables_names(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(FILE + "[rest]\nport = 1\ntimeout_s = 2.0\n")
    config = load(
        str(path),
        *("--rest-port=8501", "--rest-enable-cors-support", "--grpc-socket-path=/run/grpc"),
        *("--grpc-max-message-mb=4", "--metrics-port=0"),
    )
    assert (config.rest.port, config.rest.timeout_s) == (8501, 2.0)
    assert config.rest.enable_cors_support
    assert (config.grpc.socket_path, config.grpc.max_message_mb) == ("/run/grpc", 4)
    assert config.metrics.port == 0


def test_other_models_are_served_with_the_rest_as_it_is(file: str) -> None:
    same, new = {"name": "filed", "path": "a:b"}, {"name": "new", "path": "/m"}
    config = load(file, "--model=more=c:d", models=[same, new])
    assert [model.name for model in config.models] == ["filed", "new"]
    known, other = config.models
    assert (known.runtime, known.batching.max_batch_size) == ("python", 5)
    assert other == load("--model=new=/m").models[0]
    assert config.pool.arena_mb == 3
    # Another model by a name that is known: how many run together is said by the name.
    (other,) = load(file, models=[{**same, "path": "/m", "version_policy": "all"}]).models
    assert (other.runtime, other.batching.max_batch_size) == ("savedmodel", 5)
    assert other.version_policy == "all"
    # What it said of versions before does not stay.
    (known,) = load(file, models=[same]).models
    assert known.version_policy == "latest"
    with pytest.raises(ConfigurationError, match="no model to serve"):
        load(file, models=[])
