"""The flags of ``batchyard tfs`` become a configuration, as ``batchyard serve`` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from batchyard.cli.tensorflow_serving import files, flags
from batchyard.clients.gateways.grpc.ssl_config import read_ssl_config
from batchyard.pool.config import Config, validate
from batchyard.wire.errors import ConfigurationError, InvalidArgument
from batchyard.wire.tensorflow_serving.model_config import folder

# TensorFlow Serving runs requests side by side. Eight clients of four dense layers at 32 rows got
# 1.45 times as many answers with 4 at once as with 1, and no more with 8; batched, 2 and 1 were the
# same, and 2 keep a model from waiting for another's batch.
_CONCURRENT_REQUESTS = 4
_CONCURRENT_BATCHES = 2
# There, requests that are not batched wait for a thread, as many as there are.
_NOT_BATCHED = {"enable_batching": False, "max_enqueued_batches": 1_000_000}
_LONGEST_S = 86_400
# What errors call by the configuration's names, by those of the flags.
_PLACES = {
    "grpc.port": "--port",
    "grpc.socket_path": "--grpc_socket_path",
    "grpc.host": "--host",
    "grpc.processes": "--grpc_processes",
    "rest.port": "--rest_api_port",
    "rest.host": "--host",
    "rest.processes": "--rest_processes",
    "metrics.port": "--metrics_port",
    "pool.drain_timeout_s": "--drain_timeout_s",
    "pool.file_system_poll_wait_seconds": "--file_system_poll_wait_seconds",
    "pool.model_config_poll_wait_seconds": "--model_config_file_poll_wait_seconds",
    "broker": "--bind",
    "broker.bind": "--bind",
    "log.format": "--log_format",
    "log.level": "--log_level",
    "models[0].name": "--model_name",
}
_WORKERS = "pool.workers[0]."


def load_config(
    given: Mapping[str, Any], models: Sequence[Mapping[str, Any]] | None = None
) -> Config:
    """The configuration that flags mean, of which ``given`` has those that were given.

    ``models`` are served instead of those that the flags name, where a client said so. Reads the
    files. Raises ConfigurationError.
    """
    values = flags.values(given)
    _check(values)
    shared = _of_all_models(values)
    named = _models(values) if models is None else models
    tables = {
        "broker": {"bind": [name for name in values["bind"].split(",") if name]},
        "pool": _pool(values),
        "rest": _rest(values),
        "grpc": _grpc(values),
        "metrics": {} if values["metrics_port"] == -1 else {"port": values["metrics_port"]},
        "log": log_table(values),
        "models": [{**shared, **model} for model in named],
    }
    try:
        return validate(tables, "flags", may_serve_none=True)
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(map(_by_flags, str(error).splitlines()))) from None


def log_table(values: Mapping[str, Any]) -> dict[str, Any]:
    """``[log]``, of flags that were given or their defaults."""
    names = {"format": "log_format", "level": "log_level"}
    return {key: values[name] for key, name in names.items() if values[name] is not None}


def _check(values: Mapping[str, Any]) -> None:
    if not (values["port"] or values["grpc_socket_path"]):
        raise ConfigurationError("at least one of --port and --grpc_socket_path must be set")
    for one, other in combinations(("port", "rest_api_port", "metrics_port"), 2):
        if values[one] > 0 and values[one] == values[other]:
            raise ConfigurationError(
                f"--{one} and --{other} are both {values[one]}: each needs one of its own"
            )
    if not (values["model_base_path"] or values["model_config_file"]):
        raise ConfigurationError(
            "no model to serve: give --model_base_path, or --model_config_file"
        )
    for name in ("batching_parameters_file", "enable_per_model_batching_parameters"):
        if values[name] and not values["enable_batching"]:
            raise ConfigurationError(f"--{name} needs --enable_batching")
    parallelism = [f"tensorflow_{kind}_parallelism" for kind in ("intra_op", "inter_op")]
    if values["tensorflow_session_parallelism"] > 0 and any(values[p] > 0 for p in parallelism):
        raise ConfigurationError(
            "give --tensorflow_session_parallelism, or --tensorflow_intra_op_parallelism and "
            "--tensorflow_inter_op_parallelism, not both"
        )
    if values["monitoring_config_file"] and not values["rest_api_port"]:
        raise ConfigurationError(
            "--monitoring_config_file needs --rest_api_port, where the metrics are then"
        )
    for name in ("rest_api_timeout_in_ms", "num_request_iterations_for_warmup"):
        if values[name] < 0:
            raise ConfigurationError(f"--{name} must be 0 or more, not {values[name]}")


def _models(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    if values["model_config_file"]:
        return files.models(values["model_config_file"])
    try:
        path = folder(values["model_base_path"])
    except InvalidArgument as error:
        raise ConfigurationError(f"--model_{error.message}") from None
    return [{"name": values["model_name"], "path": path}]


def _of_all_models(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a table of ``[[models]]`` has whatever the model."""
    table: dict[str, Any] = {
        "run_warmup_requests": values["enable_model_warmup"],
        "warmup_iterations": values["num_request_iterations_for_warmup"] or 1,
        "batching": _NOT_BATCHED,
    }
    if values["allow_version_labels_for_unavailable_models"]:
        table["allow_version_labels_for_unavailable_models"] = True
    if values["enable_batching"]:
        batching = files.batching(values["batching_parameters_file"])
        if values["enable_per_model_batching_parameters"]:
            table["batching_params_file"] = True
            # Threads are all that versions do not say themselves.
            threads = {key: batching[key] for key in ("num_batch_threads",) if key in batching}
            batching = {**_NOT_BATCHED, **threads}
        table["batching"] = batching
    return table


def _pool(values: Mapping[str, Any]) -> dict[str, Any]:
    concurrency = _CONCURRENT_BATCHES if values["enable_batching"] else _CONCURRENT_REQUESTS
    group = {
        "device": values["device"],
        "count": values["workers"],
        "concurrent_batches": values["concurrent_batches"] or concurrency,
        **files.session(values["tensorflow_session_config_file"]),
    }
    threads = {
        kind: values[f"tensorflow_{kind}_parallelism"] or values["tensorflow_session_parallelism"]
        for kind in ("intra_op", "inter_op")
    }
    for kind, number in threads.items():
        if number:
            group[f"tensorflow_{kind}_parallelism"] = number
    if values["per_process_gpu_memory_fraction"]:
        group["per_process_gpu_memory_fraction"] = values["per_process_gpu_memory_fraction"]
    return {
        "workers": [group],
        "drain_timeout_s": values["drain_timeout_s"],
        "file_system_poll_wait_seconds": float(values["file_system_poll_wait_seconds"]),
        "model_config_poll_wait_seconds": float(values["model_config_file_poll_wait_seconds"]),
    }


def _rest(values: Mapping[str, Any]) -> dict[str, Any]:
    if not values["rest_api_port"]:
        return {}
    return {
        "port": values["rest_api_port"],
        "host": values["host"],
        "processes": values["rest_processes"],
        "timeout_s": min(values["rest_api_timeout_in_ms"] / 1000 or _LONGEST_S, _LONGEST_S),
        "enable_cors_support": values["rest_api_enable_cors_support"],
        "monitoring_path": files.monitoring_path(values["monitoring_config_file"]),
    }


def _grpc(values: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {
        "host": values["host"],
        "processes": values["grpc_processes"],
        "enable_serialization_as_tensor_content": values["enable_serialization_as_tensor_content"],
        "enable_model_reload": values["enable_model_reload"],
        "channel_arguments": _channel_arguments(values["grpc_channel_arguments"]),
    }
    if values["port"]:
        table["port"] = values["port"]
    if values["grpc_socket_path"]:
        table["socket_path"] = str(Path(values["grpc_socket_path"]).absolute())
        table["takes_socket_over"] = True
    if values["ssl_config_file"]:
        read_ssl_config(values["ssl_config_file"])
        table["ssl_config_file"] = str(Path(values["ssl_config_file"]).absolute())
    return table


def _channel_arguments(text: str) -> dict[str, int | str]:
    arguments: dict[str, int | str] = {}
    for argument in filter(None, text.split(",")):
        name, separator, value = argument.partition("=")
        if not (name and separator):
            raise ConfigurationError(
                f"--grpc_channel_arguments {argument!r}: must be NAME=VALUE, with commas between"
            )
        try:
            arguments[name] = int(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _by_flags(line: str) -> str:
    """An error, with flags where it names keys of the configuration."""
    source, _, rest = line.partition(": ")
    place, separator, message = rest.partition(": ")
    if source != "flags" or not separator:
        return line
    if place.startswith(_WORKERS):
        key = place.removeprefix(_WORKERS)
        return f"--{'workers' if key == 'count' else key}: {message}"
    return f"{_PLACES.get(place, place)}: {message}"
