"""The flags of ``tensorflow_model_server``: one table for the parser, ``--help`` and the docs.

As of its ``model_servers/main.cc``, with its defaults:
https://github.com/tensorflow/serving/blob/master/tensorflow_serving/model_servers/main.cc
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import click

from batchyard.wire.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])
Value = bool | int | float | str


class Treatment(Enum):
    """What becomes of a flag."""

    HONOURED = "honoured"
    # It changes nothing that a caller sees; the log says so.
    NOTED = "no effect"
    # Only its default is taken.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag by its name, with TensorFlow Serving's default; ``here`` is what it does here.

    Where it is refused, ``here`` says what to do instead. ``default_is`` is what the default
    comes to, where that depends on the machine.
    """

    name: str
    default: Value
    here: str
    treatment: Treatment = Treatment.HONOURED
    default_is: str = ""

    @property
    def shown_default(self) -> str:
        """The default for people; empty where it is nothing."""
        if self.default_is or isinstance(self.default, str):
            return self.default_is or str(self.default)
        return str(self.default).lower()


_NOTED, _REFUSED = Treatment.NOTED, Treatment.REFUSED
_EVENT_LOOP = "one event loop a process takes all requests; more processes by"
_RETRIED = "a version that does not load is tried again when its files change, and at SIGHUP."
_XLA = "functions that are marked for XLA are always compiled."
_FOUR = "4 per CPU"
_NO_TFLITE = "models run in TensorFlow, not in TensorFlow Lite"

FLAGS: tuple[Flag, ...] = (
    Flag("port", 8500, "The TCP port of gRPC, at --host. 0: none."),
    Flag(
        "grpc_socket_path",
        "",
        "A UNIX socket for gRPC as well, or with --port=0 instead. Another server's is taken over.",
    ),
    Flag("rest_api_port", 0, "The port of REST, at --host; 8501 by custom. 0: none."),
    Flag("rest_api_num_threads", 0, f"{_EVENT_LOOP} --rest_processes.", _NOTED, _FOUR),
    Flag(
        "rest_api_timeout_in_ms",
        30_000,
        "The deadline of each REST request, in milliseconds. 0: a day.",
    ),
    Flag("rest_api_enable_cors_support", False, "Web pages of all origins may use REST."),
    Flag(
        "enable_batching",
        False,
        "Requests are batched. Without it each runs alone, several at once (--concurrent_batches).",
    ),
    Flag(
        "allow_version_labels_for_unavailable_models",
        False,
        "Labels may name versions that are not there yet. Labels of versions that load at the "
        "start do not need it.",
    ),
    Flag(
        "batching_parameters_file",
        "",
        "A BatchingParameters message as text. What is not in it is TensorFlow Serving's default: "
        "max_batch_size 1000, batch_timeout_micros 0, max_enqueued_batches 10.",
    ),
    Flag(
        "enable_per_model_batching_parameters",
        False,
        "A version's own batching_params.pbtxt says how its requests are batched; versions "
        "without one are not batched.",
    ),
    Flag(
        "model_config_file",
        "",
        "A ModelServerConfig message as text: the models to serve. --model_name and "
        "--model_base_path are then not used. Read again at SIGHUP.",
    ),
    Flag(
        "model_config_file_poll_wait_seconds",
        0,
        "How often the files are read again. 0: at SIGHUP only.",
    ),
    Flag("model_name", "default", "What requests call the model at --model_base_path."),
    Flag(
        "model_base_path",
        "",
        "A folder of numeric version folders, or a SavedModel. Of this machine: mount gs://, "
        "s3:// and the like.",
    ),
    Flag("num_load_threads", 0, "models load in the workers, beside what is served.", _NOTED),
    Flag("num_unload_threads", 0, "models are unloaded by processes that end.", _NOTED),
    Flag(
        "max_num_load_retries",
        5,
        _RETRIED,
        _NOTED,
    ),
    Flag(
        "load_retry_interval_micros",
        60_000_000,
        _RETRIED,
        _NOTED,
    ),
    Flag(
        "file_system_poll_wait_seconds",
        1,
        "How often models' folders are looked at for new versions. 0: at the start and at SIGHUP.",
    ),
    Flag("flush_filesystem_caches", True, "the operating system sees to its caches.", _NOTED),
    Flag(
        "tensorflow_session_parallelism",
        0,
        "Threads inside operations, and threads that run operations side by side, in each worker.",
    ),
    Flag(
        "tensorflow_session_config_file",
        "",
        "A ConfigProto message as text: its thread counts, and of gpu_options allow_growth and "
        "per_process_gpu_memory_fraction. Others are refused.",
    ),
    Flag("tensorflow_intra_op_parallelism", 0, "Threads inside operations, in each worker."),
    Flag(
        "tensorflow_inter_op_parallelism",
        0,
        "Threads that run operations side by side, in each worker.",
    ),
    Flag("use_alts_credentials", False, "use --ssl_config_file.", _REFUSED),
    Flag(
        "ssl_config_file",
        "",
        "An SSLConfig message as text: TLS for gRPC, also with client certificates.",
    ),
    Flag(
        "platform_config_file",
        "",
        "use --batching_parameters_file and the flags for threads and GPU memory.",
        _REFUSED,
    ),
    Flag(
        "per_process_gpu_memory_fraction",
        0.0,
        "The share of the card's memory that each worker may use, a hard limit. 0: TensorFlow's "
        "choice.",
    ),
    Flag("saved_model_tags", "serve", "export the model with the tag serve alone.", _REFUSED),
    Flag(
        "grpc_channel_arguments",
        "",
        "Settings of gRPC by name, such as grpc.max_connection_age_ms=2000, with commas between.",
    ),
    Flag("grpc_max_threads", 0, f"{_EVENT_LOOP} --grpc_processes.", _NOTED, _FOUR),
    Flag(
        "enable_model_warmup",
        True,
        "Runs assets.extra/tf_serving_warmup_requests of a version before it is served. Models "
        "are warmed up with zeros besides.",
    ),
    Flag("num_request_iterations_for_warmup", 0, "How many times each of these runs. 0: once."),
    Flag("version", False, "Prints versions and ends."),
    Flag(
        "monitoring_config_file",
        "",
        "A MonitoringConfig message as text: where metrics of TensorFlow Serving's names are, at "
        "REST's port. Metrics of Batchyard's own names: --metrics_port.",
    ),
    Flag(
        "remove_unused_fields_from_bundle_metagraph",
        True,
        "it saves memory that is not kept here.",
        _NOTED,
    ),
    Flag("prefer_tflite_model", False, f"{_NO_TFLITE}: leave it out.", _REFUSED),
    Flag("num_tflite_pools", 0, f"{_NO_TFLITE}.", _NOTED, "1 per CPU"),
    Flag("num_tflite_interpreters_per_pool", 1, f"{_NO_TFLITE}.", _NOTED),
    Flag(
        "enable_signature_method_name_check",
        False,
        "leave it out: signatures are taken by what their inputs and outputs are.",
        _REFUSED,
    ),
    Flag(
        "xla_cpu_compilation_enabled",
        False,
        "functions marked for XLA are always compiled.",
        _NOTED,
    ),
    Flag(
        "xla_gpu_compilation_enabled",
        False,
        "functions marked for XLA are always compiled.",
        _NOTED,
    ),
    Flag(
        "enable_profiler",
        True,
        "there is no profiler service; traces and metrics say where time goes (docs/logs.md).",
        _NOTED,
    ),
    Flag(
        "thread_pool_factory_config_file",
        "",
        "use --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism.",
        _REFUSED,
    ),
    Flag("mixed_precision", "", "export the model in the precision that it is to have.", _REFUSED),
    Flag("skip_initialize_tpu", False, "there are no TPUs here.", _NOTED),
    Flag("enable_grpc_healthcheck_service", False, "gRPC's health service is always on.", _NOTED),
    Flag(
        "enable_serialization_as_tensor_content",
        False,
        "Predict answers numbers in tensor_content instead of the fields of their dtype, such as "
        "float_val.",
    ),
)
# What tensorflow_model_server does not have.
OWN: tuple[Flag, ...] = (
    Flag("host", "0.0.0.0", "The address that gRPC and REST listen at."),
    Flag("rest_processes", 1, "Processes that share REST's port."),
    Flag("grpc_processes", 1, "Processes that share gRPC's port."),
    Flag(
        "enable_model_reload",
        True,
        "Callers of gRPC may say what is served (HandleReloadConfigRequest). false: they get "
        "PERMISSION_DENIED.",
    ),
    Flag("workers", 1, "Processes that run models; with --device=auto for each GPU."),
    Flag("device", "auto", "cpu, gpu:N, a GPU or MIG UUID, or auto: every visible GPU, else cpu."),
    Flag(
        "concurrent_batches",
        0,
        "What a worker runs at once. 0: 4 requests, or with --enable_batching 2 batches.",
    ),
    Flag("bind", "", "An endpoint for Batchyard's own clients, such as tcp://127.0.0.1:8600."),
    Flag("metrics_port", -1, "The port of Batchyard's own metrics and page. -1: none."),
    Flag("drain_timeout_s", 30.0, "How long a stopping server may take to finish."),
    Flag("log_format", "text", "text or json."),
    Flag("log_level", "info", "debug, info, warning or error."),
    Flag(
        "print_config",
        False,
        "Prints the same as a configuration for `batchyard serve`, and ends.",
    ),
)


def options(function: F) -> F:
    """Adds an option for each flag. One that is not given is None."""
    for flag in reversed((*FLAGS, *OWN)):
        function = _option(flag)(function)
    return function


def values(given: Mapping[str, Value | None]) -> dict[str, Any]:
    """The value of each flag: given, or TensorFlow Serving's default.

    Raises ConfigurationError for those that are refused.
    """
    refused = [
        f"--{flag.name}: {flag.here}"
        for flag in FLAGS
        if flag.treatment is _REFUSED and given[flag.name] not in (None, flag.default)
    ]
    if refused:
        raise ConfigurationError("\n".join(refused))
    return {
        flag.name: flag.default if given[flag.name] is None else given[flag.name]
        for flag in (*FLAGS, *OWN)
    }


def without_effect(given: Mapping[str, Value | None]) -> list[tuple[str, str]]:
    """The flags that were given and have no effect, each with how it is here."""
    return [
        (flag.name, flag.here)
        for flag in FLAGS
        if flag.treatment is _NOTED and given[flag.name] is not None
    ]


def _option(flag: Flag) -> Callable[[F], F]:
    default = flag.default
    text = flag.here
    if flag.treatment is not Treatment.HONOURED:
        text = f"{flag.treatment.value.capitalize()}: {text}"
    if default not in (False, "") or flag.default_is:
        text += f"  [default: {flag.shown_default}]"
    if isinstance(default, bool):
        # --flag, --flag=true and --flag=false.
        return click.option(
            f"--{flag.name}",
            type=click.BOOL,
            is_flag=False,
            flag_value=True,
            default=None,
            metavar="[=true|false]",
            help=text,
        )
    return click.option(f"--{flag.name}", type=type(default), default=None, help=text)
