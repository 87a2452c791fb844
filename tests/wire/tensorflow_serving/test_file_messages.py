"""TensorFlow Serving's files are read as they stand; what is wrong is named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensorflow_serving import file_messages, messages

_BATCHING = """\
# as tuned for the night shift
max_batch_size { value: 128 }
batch_timeout_micros: { value: 0 };
max_enqueued_batches <value: 1000000>
num_batch_threads { value: 8 }
thread_pool_name { value: "night" "_shift" }
allowed_batch_sizes: 1
allowed_batch_sizes: [ 16, 128 ]
pad_variable_length_inputs: true
enable_large_batch_splitting { value: True }
max_execution_batch_size { value: 64 }
"""


def _parsed(tmp_path: Path, text: str | bytes, message_class: Any) -> Any:
    file = tmp_path / "a.config"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file_messages.parse(file, message_class)


def test_batching_parameters(tmp_path: Path) -> None:
    read = _parsed(tmp_path, _BATCHING, file_messages.BatchingParameters)

    assert read.max_batch_size.value == 128
    assert read.HasField("batch_timeout_micros")
    assert read.batch_timeout_micros.value == 0
    assert read.max_enqueued_batches.value == 1_000_000
    assert read.num_batch_threads.value == 8
    assert read.thread_pool_name.value == "night_shift"
    assert list(read.allowed_batch_sizes) == [1, 16, 128]
    assert read.pad_variable_length_inputs
    assert read.enable_large_batch_splitting.value
    assert read.max_execution_batch_size.value == 64


def test_monitoring_and_ssl(tmp_path: Path) -> None:
    monitoring = _parsed(
        tmp_path,
        'prometheus_config: {\n  enable: true,\n  path: "/metrics"\n}\n',
        file_messages.MonitoringConfig,
    )
    ssl = _parsed(
        tmp_path,
        "server_key:  \"-----BEGIN\\nkey\"\nserver_cert: 'cert'\n\nclient_verify: false",
        file_messages.SSLConfig,
    )

    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/metrics"
    assert (ssl.server_key, ssl.server_cert) == ("-----BEGIN\nkey", "cert")


def test_session_config_is_tensorflows(tmp_path: Path) -> None:
    read = _parsed(
        tmp_path,
        "gpu_options { allow_growth: true }\nintra_op_parallelism_threads: 4",
        file_messages.SessionConfig,
    )

    assert read.gpu_options.allow_growth
    assert read.intra_op_parallelism_threads == 4


def test_an_empty_file_is_a_message_with_nothing_set(tmp_path: Path) -> None:
    assert not _parsed(tmp_path, "# nothing\n", messages.ModelServerConfig).WhichOneof("config")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_size { value: 1 }\n  batch_size: 3",
            r"a\.config:2:3: .*: there is no batch_size in BatchingParameters; it has max_batch_",
        ),
        (
            "max_batch_size { size: 1 }",
            r"a\.config:1:18: .*: there is no size in Int64Value; it has value$",
        ),
        (
            "max_batch_size: 3",
            r"a\.config:1:17: Error parsing text-format tensorflow\.serving\.BatchingParameters: ",
        ),
        (
            "max_batch_size {",
            r"a\.config:1:16: Error parsing text-format .*BatchingParameters: Expected",
        ),
        ("allowed_batch_sizes: x", r"Couldn't parse integer: x"),
        (b"\xff", r"a\.config: not UTF-8 at byte 0: needs a BatchingParameters as text protobuf"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _parsed(tmp_path, text, file_messages.BatchingParameters)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: No such file or directory"):
        file_messages.parse(tmp_path / "nowhere", file_messages.SSLConfig)


def test_a_file_nested_too_deeply(tmp_path: Path) -> None:
    deep = "custom_model_config { [type.googleapis.com/tensorflow.serving.ModelServerConfig] {"
    with pytest.raises(ConfigurationError, match=r"a\.config: .* it is nested too deeply"):
        _parsed(tmp_path, deep * 3000, messages.ModelServerConfig)
