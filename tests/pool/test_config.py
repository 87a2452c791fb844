"""Configuration files: what they may say, and what is said of those that may not be."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from batchyard.pool.config import Config, WorkerGroup, read_toml, validate
from batchyard.pool.config_models import Batching
from batchyard.wire.errors import ConfigurationError

MODEL = '[[models]]\nname = "m"\npath = "/m"\n'
PYTHON_MODEL = '[[models]]\nname = "m"\npath = "a:b"\nruntime = "python"\n'


def load(text: str) -> Config:
    return validate(tomllib.loads(text), "a.toml")


def refusal(text: str) -> list[str]:
    """The lines that say what is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    return str(caught.value).splitlines()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    config = load(MODEL)
    assert config.broker.bind == ["tcp://127.0.0.1:8600", "ipc:///tmp/batchyard/broker"]
    assert config.broker.ipc_mode == "0600"
    assert not config.broker.insecure
    assert config.pool.arena_mb == 512
    assert config.pool.workers == [WorkerGroup()]
    assert (config.pool.workers[0].device, config.pool.workers[0].count) == ("auto", None)
    (model,) = config.models
    assert (model.name, model.path, model.runtime) == ("m", "/m", "savedmodel")
    assert (model.version_labels, model.signature) == ({}, None)
    assert model.batching == Batching()
    assert model.batching.model_dump() == {
        "enable_batching": True,
        "max_batch_size": 64,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 100,
        "num_batch_threads": None,
        "allowed_batch_sizes": [],
        "pad_variable_length_inputs": False,
        "length_buckets": [],
        "queue_delay_target_micros": 0,
        "enable_large_batch_splitting": True,
        "warmup_max_batch_size": None,
    }


def test_example_of_the_design() -> None:
    config = load(
        """
[broker]
bind = ["tcp://127.0.0.1:8600"]
[pool]
arena_mb = 512
[[pool.workers]]
device = "gpu:0"                          # index in CUDA_VISIBLE_DEVICES' order
count = 2
per_process_gpu_memory_fraction = 0.45    # or gpu_memory_growth = true
[[models]]
name = "resnet"
path = "/models/resnet"                   # a SavedModel, or a folder of numeric versions
[models.batching]
max_batch_size = 64
batch_timeout_micros = 2000
max_enqueued_batches = 100
allowed_batch_sizes = [1, 2, 4, 8, 16, 32, 64]
"""
    )
    assert config.broker.bind == ["tcp://127.0.0.1:8600"]
    (group,) = config.pool.workers
    assert (group.device, group.count) == ("gpu:0", 2)
    assert group.per_process_gpu_memory_fraction == 0.45
    batching = config.models[0].batching
    assert batching.batch_timeout_micros == 2000
    assert batching.warmup_batch_sizes == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("policy", ['"latest"', '"all"', "{ latest = 2 }", "{ specific = [1, 3] }"])
def test_version_policies(policy: str) -> None:
    (model,) = load(f"{MODEL}version_policy = {policy}\n").models
    assert model.version_policy == tomllib.loads(f"p = {policy}")["p"]


def test_timeouts_and_retries() -> None:
    config = load(MODEL + "retry = false\nbatch_execution_timeout = inf\n")
    assert config.pool.batch_execution_timeout == 120.0
    assert config.pool.file_system_poll_wait_seconds == 1.0
    assert config.broker.max_in_flight_per_client == 100_000
    (model,) = config.models
    assert (model.retry, model.batch_execution_timeout) == (False, float("inf"))
    (model,) = load(MODEL).models
    assert (model.version_policy, model.retry, model.batch_execution_timeout) == (
        "latest",
        None,
        None,
    )


def test_python_model_with_a_signature() -> None:
    config = load(
        PYTHON_MODEL
        + """
version_labels = { stable = 1 }
[models.signature.inputs]
x = { dtype = "bfloat16", shape = [-1, 3] }
[models.signature.outputs]
y = { dtype = "string", shape = [-1] }
"""
    )
    signature = config.models[0].signature
    assert signature is not None
    assert (signature.inputs["x"].dtype, signature.inputs["x"].shape) == ("bfloat16", [-1, 3])
    assert config.models[0].version_labels == {"stable": 1}


@pytest.mark.parametrize(
    ("batching", "sizes"),
    [
        ("", [1, 64]),
        ("max_batch_size = 1", [1]),
        ("max_batch_size = 1000\nwarmup_max_batch_size = 64", [1, 64]),
        ("warmup_max_batch_size = 100", [1, 64]),
        ("max_batch_size = 8\nallowed_batch_sizes = [2, 8]", [2, 8]),
        ("max_batch_size = 8\nenable_batching = false", [1]),
    ],
)
def test_warmup_sizes(batching: str, sizes: list[int]) -> None:
    config = load(f"{MODEL}[models.batching]\n{batching}")
    assert config.models[0].batching.warmup_batch_sizes == sizes


BATCHING = MODEL + "[models.batching]\n"
WORKERS = MODEL + "[[pool.workers]]\n"
BROKER = MODEL + "[broker]\n"
SIGNATURE = (
    PYTHON_MODEL + "[models.signature]\ninputs = { x = %s }\n"
    'outputs = { y = { dtype = "int8", shape = [-1] } }\n'
)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", "no model to serve", "write a [[models]] table"),
        ("models = []", "no model to serve", "write a [[models]] table"),
        ("models = 3", "models", "valid list"),
        ("pool = 3\n" + MODEL, "pool", "valid dictionary"),
        (MODEL + MODEL, "models", "two models are named 'm'"),
        ('[[models]]\nname = "m"\n', "models[0].path", "is missing"),
        ('[[models]]\nname = ""\npath = "/m"\n', "models[0].name", "at least 1 character"),
        (MODEL + '[[models]]\nname = 3\npath = "/m"\n', "models[1].name", "valid string"),
        (MODEL + 'runtime = "onnx"\n', "models[0].runtime", "'savedmodel' or 'python'"),
        (MODEL + 'runtime = "python"\n', "models[0]", "must be module:callable or file.py"),
        (MODEL + "version_labels = { a = -1 }\n", "models[0].version_labels.a", "equal to 0"),
        *(
            (MODEL + f"version_policy = {policy}\n", "models[0].version_policy", 'must be "latest')
            for policy in (
                '"newest"',
                "3",
                "{}",
                "{ latest = 0 }",
                "{ latest = true }",
                "{ specific = [] }",
                "{ specific = [-1] }",
                "{ latest = 1, specific = [1] }",
            )
        ),
        (
            MODEL + "batch_execution_timeout = 0",
            "models[0].batch_execution_timeout",
            "greater than 0",
        ),
        (
            MODEL + "[pool]\nbatch_execution_timeout = nan",
            "pool.batch_execution_timeout",
            "greater than 0",
        ),
        (
            MODEL + "[pool]\nfile_system_poll_wait_seconds = -1",
            "pool.file_system_poll_wait_seconds",
            "equal to 0",
        ),
        (
            BROKER + "max_in_flight_per_client = 0",
            "broker.max_in_flight_per_client",
            "equal to 1",
        ),
        (MODEL + "nmae = 1\n", "models[0].nmae", "there is no such key; see docs/configuration.md"),
        ("batching = {}\n" + MODEL, "batching", "there is no such key"),
        (BATCHING + "max_batch_size = 0", "models[0].batching.max_batch_size", "equal to 1"),
        (
            BATCHING + "batch_timeout_micros = -1",
            "models[0].batching.batch_timeout_micros",
            "equal to 0",
        ),
        (
            BATCHING + "max_enqueued_batches = 0",
            "models[0].batching.max_enqueued_batches",
            "equal to 1",
        ),
        (BATCHING + "num_batch_threads = 0", "models[0].batching.num_batch_threads", "equal to 1"),
        (
            BATCHING + "allowed_batch_sizes = [2, 1, 64]",
            "models[0].batching.allowed_batch_sizes",
            "must be increasing, not [2, 1, 64]",
        ),
        (
            BATCHING + "allowed_batch_sizes = [64, 64]",
            "models[0].batching.allowed_batch_sizes",
            "must be increasing",
        ),
        (
            BATCHING + "allowed_batch_sizes = [0, 64]",
            "models[0].batching.allowed_batch_sizes[0]",
            "equal to 1",
        ),
        (
            BATCHING + "allowed_batch_sizes = [1, 32]",
            "models[0].batching",
            "the last of allowed_batch_sizes must equal max_batch_size = 64, not 32",
        ),
        (
            BATCHING + "length_buckets = [8]",
            "models[0].batching",
            "length_buckets needs pad_variable_length_inputs = true",
        ),
        (
            BATCHING + "pad_variable_length_inputs = true\nlength_buckets = [8, 4]",
            "models[0].batching.length_buckets",
            "must be increasing",
        ),
        (
            SIGNATURE.replace(PYTHON_MODEL, MODEL) % '{ dtype = "int8", shape = [-1] }',
            "models[0]",
            'For a Python function add runtime = "python"',
        ),
        (
            SIGNATURE % '{ dtype = "int4", shape = [-1] }',
            "models[0].signature.inputs.x.dtype",
            "must be one of bool, int8",
        ),
        (
            SIGNATURE % '{ dtype = "int8", shape = [-2] }',
            "models[0].signature.inputs.x.shape[0]",
            "equal to -1",
        ),
        (SIGNATURE % '{ dtype = "int8" }', "models[0].signature.inputs.x.shape", "is missing"),
        (WORKERS + "count = 0", "pool.workers[0].count", "equal to 1"),
        (WORKERS + "concurrent_batches = 0", "pool.workers[0].concurrent_batches", "equal to 1"),
        (
            WORKERS + "per_process_gpu_memory_fraction = 1.1",
            "pool.workers[0].per_process_gpu_memory_fraction",
            "equal to 1",
        ),
        (WORKERS + "gpu_memory_limit_mb = 0", "pool.workers[0].gpu_memory_limit_mb", "equal to 1"),
        (MODEL + "[pool]\nworkers = []", "pool.workers", "at least 1 item"),
        (MODEL + "[pool]\narena_mb = 0", "pool.arena_mb", "equal to 1"),
        (MODEL + "[pool]\ndrain_timeout_s = 0", "pool.drain_timeout_s", "greater than 0"),
        (BROKER + "bind = []", "broker.bind", "unless [rest] or [grpc]"),
        (BROKER + 'bind = ["http://x"]', "broker", "must be tcp://HOST:PORT or ipc:///PATH"),
        (BROKER + 'bind = ["tcp://0.0.0.0:1"]', "broker", "or insecure = true, under [broker]"),
        (BROKER + 'ipc_mode = "0888"', "broker.ipc_mode", "match pattern"),
        (BROKER + "max_message_mb = 0", "broker.max_message_mb", "equal to 1"),
        (BROKER + "max_message_mb = 100_000", "broker.max_message_mb", "equal to 65536"),
        (BROKER + "max_queue_mb = 0", "broker.max_queue_mb", "equal to 1"),
    ],
)
def test_refusals_name_the_place_and_the_reason(text: str, place: str, reason: str) -> None:
    (line,) = refusal(text)
    assert line.startswith(f"a.toml: {place}: ")
    assert reason in line


def test_cpu_affinity_is_a_word_or_a_list() -> None:
    for value in ('"auto"', '"none"', "[0, 2]"):
        load(f"{WORKERS}cpu_affinity = {value}")
    for value in ('"all"', "[-1]", "3"):
        lines = refusal(f"{WORKERS}cpu_affinity = {value}")
        assert all(line.startswith("a.toml: pool.workers[0].cpu_affinity") for line in lines)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    lines = refusal(BATCHING + "max_batch_size = 0\nfoo = 1\n[pool]\narena_mb = -1\n")
    assert [line.split(": ")[1] for line in lines] == [
        "pool.arena_mb",
        "models[0].batching.max_batch_size",
        "models[0].batching.foo",
    ]


@pytest.mark.parametrize("reachable", ["tcp://0.0.0.0:8600", "tcp://*:8600", "tcp://10.0.0.1:8600"])
def test_insecure_allows_addresses_that_others_reach(reachable: str) -> None:
    refusal(f'{BROKER}bind = ["{reachable}"]')
    config = load(f'{BROKER}insecure = true\nbind = ["{reachable}"]')
    assert config.broker.bind == [reachable]


@pytest.mark.parametrize("value", ["inf", "1e9"])
def test_drain_timeout_is_one_that_can_be_waited_for(value: str) -> None:
    refusal(f"{MODEL}[pool]\ndrain_timeout_s = {value}")


def test_whole_numbers_will_do_for_fractions() -> None:
    assert load(f"{MODEL}[pool]\ndrain_timeout_s = 2").pool.drain_timeout_s == 2.0


def test_truth_values_are_no_numbers() -> None:
    refusal(BATCHING + "max_batch_size = true")


def test_read_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(MODEL)
    assert read_toml(path) == {"models": [{"name": "m", "path": "/m"}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[broker\n", "not TOML: "), (b"a = 1\na = 2\n", "not TOML: "), (b"\xff", "not TOML: ")],
)
def test_file_that_is_no_toml(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_toml(tmp_path)
