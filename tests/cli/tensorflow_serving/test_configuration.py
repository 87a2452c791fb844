"""Each flag of ``batchyard tfs`` as the configuration that it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.certificates import can_be_made, make_certificate

from batchyard.cli.tensorflow_serving import flags
from batchyard.cli.tensorflow_serving.configuration import load_config
from batchyard.pool.config import Config
from batchyard.wire.errors import ConfigurationError

_MODEL = "--model_base_path=/models/m"


def load(*arguments: str, models: list[dict[str, Any]] | None = None) -> Config:
    """The configuration for flags; raises what ``load_config`` raises."""
    loaded: list[Config] = []

    @click.command()
    @flags.options
    def command(**given: Any) -> None:
        loaded.append(load_config(given, models))

    result = CliRunner().invoke(command, arguments)
    if result.exception is not None:
        raise result.exception
    return loaded[0]


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*arguments)
    return str(caught.value)


def _file(tmp_path: Path, text: str) -> str:
    file = tmp_path / "some.config"
    file.write_text(text)
    return str(file)


def test_one_model_as_tensorflow_serving_starts_it() -> None:
    config = load(_MODEL)

    [model] = config.models
    assert (model.name, model.path, model.version_policy) == ("default", "/models/m", "latest")
    assert not model.batching.enable_batching
    assert model.batching.max_enqueued_batches == 1_000_000
    assert (config.grpc.port, config.grpc.host) == (8500, "0.0.0.0")
    assert config.rest.port is config.metrics.port is None
    assert config.broker.bind == []
    assert config.pool.file_system_poll_wait_seconds == 1
    [group] = config.pool.workers
    assert (group.device, group.count, group.concurrent_batches) == ("auto", 1, 4)


def test_ports_and_places() -> None:
    config = load(
        *(_MODEL, "--port=0", "--grpc_socket_path=run/grpc.sock", "--rest_api_port=8501"),
        *("--host=127.0.0.1", "--rest_processes=2", "--rest_api_enable_cors_support"),
        *("--rest_api_timeout_in_ms=1500", "--metrics_port=0"),
        *("--bind=tcp://127.0.0.1:8600,ipc:///run/batchyard/broker",),
    )

    assert config.grpc.port is None
    assert config.grpc.socket_path == str(Path("run/grpc.sock").absolute())
    rest = config.rest
    assert (rest.port, rest.host, rest.processes, rest.timeout_s) == (8501, "127.0.0.1", 2, 1.5)
    assert rest.enable_cors_support
    assert rest.monitoring_path == ""
    assert config.metrics.port == 0
    assert config.broker.bind == ["tcp://127.0.0.1:8600", "ipc:///run/batchyard/broker"]


def test_a_timeout_of_zero_is_none() -> None:
    timeout = load(_MODEL, "--rest_api_port=1", "--rest_api_timeout_in_ms=0").rest.timeout_s

    assert timeout == 86_400


def test_grpc_processes_and_channel_arguments() -> None:
    arguments = "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,a.b=c=d"

    grpc = load(_MODEL, arguments, "--grpc_processes=3").grpc

    assert grpc.channel_arguments == {"grpc.max_connection_age_ms": 2000, "a.b": "c=d"}
    assert grpc.processes == 3
    assert "must be NAME=VALUE" in refusal(_MODEL, "--grpc_channel_arguments=x")


def test_callers_may_be_kept_from_reloading() -> None:
    assert load(_MODEL).grpc.enable_model_reload
    assert not load(_MODEL, "--enable_model_reload=false").grpc.enable_model_reload


def test_monitoring(tmp_path: Path) -> None:
    def path_of(text: str) -> str:
        file = _file(tmp_path, text)
        return load(
            _MODEL, "--rest_api_port=1", f"--monitoring_config_file={file}"
        ).rest.monitoring_path

    assert path_of("prometheus_config { enable: true }") == "/monitoring/prometheus/metrics"
    assert path_of('prometheus_config { enable: true path: "/m" }') == "/m"
    assert path_of('prometheus_config { path: "/m" }') == ""
    with pytest.raises(ConfigurationError, match="must begin with /, not 'm'"):
        path_of('prometheus_config { enable: true path: "m" }')
    needs = refusal(_MODEL, f"--monitoring_config_file={tmp_path}/some.config")
    assert needs.startswith("--monitoring_config_file needs --rest_api_port")


@pytest.mark.skipif(not can_be_made(), reason="needs openssl")
def test_tls(tmp_path: Path) -> None:
    def ssl(text: str) -> str:
        return f"--ssl_config_file={_file(tmp_path, text)}"

    pair = make_certificate(tmp_path, "server")
    texts = f"server_key: {json.dumps(pair.key)} server_cert: {json.dumps(pair.cert)}"
    assert load(_MODEL, ssl(texts)).grpc.ssl_config_file == f"{tmp_path}/some.config"
    assert "server_cert is missing" in refusal(_MODEL, ssl('server_key: "key"'))
    assert "client_verify needs custom_ca" in refusal(_MODEL, ssl(f"{texts} client_verify: true"))
    assert "no private key" in refusal(_MODEL, ssl('server_key: "key" server_cert: "cert"'))


def test_batching() -> None:
    config = load(_MODEL, "--enable_batching")

    batching = config.models[0].batching
    assert batching.enable_batching
    assert (batching.max_batch_size, batching.max_enqueued_batches) == (1000, 10)
    assert not batching.enable_large_batch_splitting
    assert config.pool.workers[0].concurrent_batches == 2
    assert load(_MODEL, "--concurrent_batches=7").pool.workers[0].concurrent_batches == 7


def test_batching_parameters(tmp_path: Path) -> None:
    file = _file(tmp_path, "max_batch_size { value: 32 } num_batch_threads { value: 3 }")
    flag = f"--batching_parameters_file={file}"

    batching = load(_MODEL, "--enable_batching", flag).models[0].batching

    assert (batching.max_batch_size, batching.num_batch_threads) == (32, 3)
    assert refusal(_MODEL, flag) == "--batching_parameters_file needs --enable_batching"
    _file(tmp_path, "allowed_batch_sizes: 3")
    assert refusal(_MODEL, "--enable_batching", flag).startswith(f"{file}: Last entry in allowed")


def test_batching_parameters_of_each_version(tmp_path: Path) -> None:
    flag = "--enable_per_model_batching_parameters"
    file = _file(tmp_path, "max_batch_size { value: 32 } num_batch_threads { value: 3 }")
    shared = f"--batching_parameters_file={file}"

    model = load(_MODEL, "--enable_batching", flag, shared).models[0]

    assert model.batching_params_file
    assert not model.batching.enable_batching
    assert (model.batching.max_batch_size, model.batching.num_batch_threads) == (64, 3)
    assert "needs --enable_batching" in refusal(_MODEL, flag)


def test_models_of_a_file(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" '
        'version_labels { key: "canary" value: 9 } } '
        'config { name: "b" base_path: "/b" model_platform: "tensorflow" } }',
    )
    given = (f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=60")

    config = load(
        *given, "--enable_batching", "--allow_version_labels_for_unavailable_models", _MODEL
    )

    assert [(model.name, model.path) for model in config.models] == [("a", "/a"), ("b", "/b")]
    assert config.models[0].version_labels == {"canary": 9}
    assert all(model.allow_version_labels_for_unavailable_models for model in config.models)
    assert all(model.batching.max_batch_size == 1000 for model in config.models)
    assert config.pool.model_config_poll_wait_seconds == 60
    other = load(*given, models=[{"name": "c", "path": "/c"}])
    assert [(m.name, m.batching.enable_batching) for m in other.models] == [("c", False)]
    _file(tmp_path, "model_config_list {}")
    assert load(*given).models == []
    _file(tmp_path, 'model_config_list { config { name: "a" } }')
    assert refusal(*given).startswith(f"{file}: model 'a': has no model_platform")


def test_warm_up() -> None:
    def warmup(*arguments: str) -> tuple[bool, int]:
        [model] = load(_MODEL, *arguments).models
        return model.run_warmup_requests, model.warmup_iterations

    assert warmup() == (True, 1)
    assert warmup("--enable_model_warmup=false") == (False, 1)
    assert warmup("--num_request_iterations_for_warmup=3") == (True, 3)


def test_threads_and_memory(tmp_path: Path) -> None:
    def group(*arguments: str) -> tuple[int, int, float | None, bool]:
        group = load(_MODEL, *arguments).pool.workers[0]
        return (
            group.tensorflow_intra_op_parallelism,
            group.tensorflow_inter_op_parallelism,
            group.per_process_gpu_memory_fraction,
            group.gpu_memory_growth,
        )

    assert group() == (0, 0, None, False)
    assert group("--tensorflow_session_parallelism=3") == (3, 3, None, False)
    assert group("--tensorflow_intra_op_parallelism=2") == (2, 0, None, False)
    assert group("--per_process_gpu_memory_fraction=0.25") == (0, 0, 0.25, False)
    file = _file(tmp_path, "inter_op_parallelism_threads: 5 gpu_options { allow_growth: true }")
    session = f"--tensorflow_session_config_file={file}"
    assert group(session) == (0, 5, None, True)
    assert group(session, "--tensorflow_inter_op_parallelism=1") == (0, 1, None, True)
    _file(tmp_path, 'gpu_options { visible_device_list: "0" }')
    assert "gpu_options.visible_device_list cannot be set here" in refusal(_MODEL, session)
    both = ("--tensorflow_session_parallelism=3", "--tensorflow_inter_op_parallelism=3")
    assert "not both" in refusal(_MODEL, *both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no model to serve: give --model_base_path, or --model_config_file"),
        ((_MODEL, "--port=0"), "at least one of --port and --grpc_socket_path must be set"),
        ((_MODEL, "--rest_api_port=8500"), "--port and --rest_api_port are both 8500"),
        ((_MODEL, "--metrics_port=8500"), "--port and --metrics_port are both 8500"),
        ((_MODEL, "--bind=here"), "--bind: endpoint 'here' must be tcp://HOST:PORT or ipc:///PATH"),
        (("--model_base_path=gs://b/m",), "--model_base_path 'gs://b/m': models are read from"),
        ((_MODEL, "--port=70000"), "--port: Input should be less than or equal to 65535"),
        ((_MODEL, "--workers=0"), "--workers: Input should be greater than or equal to 1"),
        ((_MODEL, "--log_level=loud"), "--log_level: Input should be 'debug'"),
        ((_MODEL, "--file_system_poll_wait_seconds=-1"), "--file_system_poll_wait_seconds: "),
        ((_MODEL, "--num_request_iterations_for_warmup=-1"), "must be 0 or more, not -1"),
        ((_MODEL, "--model_name="), "--model_name: "),
    ],
)
def test_what_cannot_work_names_the_flag(arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(*arguments)
