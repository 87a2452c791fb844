"""What TensorFlow Serving's files say, as tables of the configuration.

All raise ConfigurationError that names the file.
"""

from __future__ import annotations

from typing import Any

from batchyard.wire.errors import ConfigurationError, InvalidArgument
from batchyard.wire.tensorflow_serving import batching_parameters, file_messages, messages
from batchyard.wire.tensorflow_serving.model_config import model_tables

# Where TensorFlow Serving has its metrics, when nothing else is said.
_METRICS_PATH = "/monitoring/prometheus/metrics"
# Of a ConfigProto: what has a meaning here; soft placement is what TensorFlow does anyway.
_SESSION_FIELDS = {
    "intra_op_parallelism_threads",
    "inter_op_parallelism_threads",
    "gpu_options",
    "allow_soft_placement",
}
_GPU_FIELDS = {"per_process_gpu_memory_fraction", "allow_growth"}


def models(path: str) -> list[dict[str, Any]]:
    """The tables of ``[[models]]`` of a --model_config_file: none of an empty list."""
    config = file_messages.parse(path, messages.ModelServerConfig)
    try:
        return model_tables(config, may_be_empty=True)
    except InvalidArgument as error:
        raise ConfigurationError(f"{path}: {error.message}") from None


def batching(path: str) -> dict[str, Any]:
    """The table of ``[models.batching]`` of a --batching_parameters_file; "": the defaults."""
    if not path:
        return batching_parameters.batching_table(file_messages.BatchingParameters())
    parameters = file_messages.parse(path, file_messages.BatchingParameters)
    try:
        return batching_parameters.batching_table(parameters)
    except InvalidArgument as error:
        raise ConfigurationError(f"{path}: {error.message}") from None


def monitoring_path(path: str) -> str:
    """Where a --monitoring_config_file has metrics at REST's port; "" is nowhere."""
    if not path:
        return ""
    prometheus = file_messages.parse(path, file_messages.MonitoringConfig).prometheus_config
    if not prometheus.enable:
        return ""
    if prometheus.path and not prometheus.path.startswith("/"):
        raise ConfigurationError(
            f"{path}: prometheus_config.path must begin with /, not {prometheus.path!r}"
        )
    return prometheus.path or _METRICS_PATH


def session(path: str) -> dict[str, Any]:
    """What a --tensorflow_session_config_file says of ``[[pool.workers]]``."""
    if not path:
        return {}
    config = file_messages.parse(path, file_messages.SessionConfig)
    _only(path, config, _SESSION_FIELDS, "")
    _only(path, config.gpu_options, _GPU_FIELDS, "gpu_options.")
    group = {
        "tensorflow_intra_op_parallelism": config.intra_op_parallelism_threads,
        "tensorflow_inter_op_parallelism": config.inter_op_parallelism_threads,
        "per_process_gpu_memory_fraction": config.gpu_options.per_process_gpu_memory_fraction,
        "gpu_memory_growth": config.gpu_options.allow_growth,
    }
    return {name: value for name, value in group.items() if value}


def _only(path: str, message: Any, known: set[str], place: str) -> None:
    others = [field.name for field, _ in message.ListFields() if field.name not in known]
    if others:
        raise ConfigurationError(
            f"{path}: {place}{others[0]} cannot be set here; "
            f"{', '.join(place + name for name in sorted(known))} can"
        )
