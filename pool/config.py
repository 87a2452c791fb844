"""The configuration: one definition, with every default, bound and description.

It feeds validation, the command line and ``docs/configuration.md``. Names are TensorFlow
Serving's for every knob that it has.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from batchyard.pool.config_gateways import Gatewayed
from batchyard.pool.config_models import Model
from batchyard.pool.config_section import NotNegative, Positive, Section, Timeout
from batchyard.wire import endpoints
from batchyard.wire.errors import ConfigurationError
from batchyard.wire.log import LogSettings

_NO_MODEL = (
    "no model to serve: write a [[models]] table with a name and a path into it; see "
    "docs/configuration.md"
)


class WorkerGroup(Section):
    """``[[pool.workers]]``: workers of one kind."""

    device: str = Field(
        "auto",
        description="cpu, gpu:N (N counts in CUDA_VISIBLE_DEVICES' order), a GPU's UUID or enough "
        "of its beginning, a MIG UUID, or auto: every visible GPU, else the CPU.",
    )
    count: Positive | None = Field(
        None, description="Workers; with auto, for each GPU. Default: 1."
    )
    per_process_gpu_memory_fraction: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="The share of the card's total memory that each worker may use, a hard limit. "
        "0: TensorFlow's own choice, nearly all of it.",
    )
    gpu_memory_growth: bool = Field(
        False, description="Take GPU memory as it is needed, without a limit."
    )
    gpu_memory_limit_mb: Positive | None = Field(
        None, description="The same limit in MiB instead of a fraction."
    )
    tensorflow_intra_op_parallelism: NotNegative = Field(
        0,
        description="Threads inside an operation. 0: for CPU workers the cores divided by the "
        "workers, for GPU workers TensorFlow's choice.",
    )
    tensorflow_inter_op_parallelism: NotNegative = Field(
        0,
        description="Threads that run operations side by side. 0: CPU workers run all of them on "
        "one thread, GPU workers as TensorFlow chooses.",
    )
    cpu_affinity: Literal["auto", "none"] | list[NotNegative] = Field(
        "none",
        description="CPUs that each worker is bound to; auto shares them out among CPU workers.",
    )
    concurrent_batches: Positive = Field(1, description="Batches that a worker runs at once.")


class Pool(Section):
    """``[pool]``: the processes that run models."""

    arena_mb: Positive = Field(
        512, description="Shared memory that batches live in, in MiB. Taken as it is used."
    )
    drain_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        30.0, description="How long a stopping server may take to finish what it accepted."
    )
    batch_execution_timeout: Timeout = Field(
        120.0,
        description="Seconds that a batch may run; then its process is taken for hung, killed and "
        "replaced. inf: for ever.",
    )
    load_timeout: Timeout = Field(
        1800.0,
        description="Seconds that a process may take to load and warm up its models; then it is "
        "killed, and a new version that it was to load is given up. inf: for ever.",
    )
    file_system_poll_wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        1.0,
        description="How often models' folders are looked at for new versions. One counts when two "
        "looks in a row saw the same files. 0: only at the start and at SIGHUP.",
    )
    model_config_poll_wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = Field(
        0,
        description="How often the configuration itself is read again; what differs counts as at "
        "SIGHUP. 0: only at SIGHUP.",
    )
    workers: list[WorkerGroup] = Field(
        default=[WorkerGroup()], min_length=1, description="See [[pool.workers]]."
    )


class Broker(Section):
    """``[broker]``: where clients connect."""

    bind: list[str] = Field(
        default_factory=endpoints.default_bind,
        description="ZeroMQ endpoints, tcp:// or ipc://. Port * takes a free one. May be empty "
        "beside [rest] or [grpc]: then only they are served. Default: "
        "tcp://127.0.0.1:8600, and ipc://$XDG_RUNTIME_DIR/batchyard/broker where that is set (for "
        "root /run/batchyard/broker).",
    )
    insecure: bool = Field(
        False, description="Allows TCP addresses that other machines reach, without keys."
    )
    curve_secret_key_file: str | None = Field(
        None,
        min_length=1,
        description="The server's keys: a file that `batchyard keys new` made. Then clients that "
        "come by TCP need keys, and all they send is encrypted; ipc never is. "
        "${CREDENTIALS_DIRECTORY} in it is systemd's folder of credentials. See docs/security.md.",
    )
    curve_clients: str | None = Field(
        None,
        min_length=1,
        description="The folder of the public keys (*.key) of clients that may connect by TCP; "
        "`batchyard keys allow` and `revoke` change it. Read again at SIGHUP.",
    )
    ipc_group: str | None = Field(
        None,
        min_length=1,
        description="The group of ipc sockets, by name or number: its members may connect.",
    )
    ipc_mode: str = Field(
        "0600",
        pattern="^0?[0-7]{3}$",
        description="Permissions of ipc sockets, octal. With ipc_group: 0660, if not given.",
    )
    max_message_mb: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1024, description="The largest message that a client may send, in MiB."
    )
    max_queue_mb: Positive = Field(
        4096, description="Tensors that may wait, in MiB; beyond, RESOURCE_EXHAUSTED."
    )
    region_mb: Annotated[int, Field(ge=0, le=1_048_576)] = Field(
        256,
        description="Shared memory of each client on this machine, for its large tensors, in MiB. "
        "Taken as it is used. 0: such tensors go through sockets.",
    )
    max_regions: NotNegative = Field(
        64, description="Clients that have such memory at once; others use sockets."
    )
    max_in_flight_per_client: Positive = Field(
        100_000,
        description="Requests of one client that may be unanswered; beyond, RESOURCE_EXHAUSTED.",
    )

    @model_validator(mode="after")
    def _endpoints_can_be_bound(self) -> Broker:
        for endpoint in self.bind:
            try:
                endpoints.check(endpoint, binding=True, insecure=self.insecure or self.has_keys)
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _keys_and_groups_fit(self) -> Broker:
        if (self.curve_clients is None) == self.has_keys:
            raise ValueError(
                "curve_secret_key_file (who the server is) and curve_clients (who may connect) "
                "need each other"
            )
        if self.ipc_group is not None and not self.ipc_permissions & 0o020:
            raise ValueError(
                f"ipc_group needs an ipc_mode that lets the group write, such as 0660, not "
                f"{self.ipc_mode}"
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Whether clients that come by TCP need keys."""
        return self.curve_secret_key_file is not None

    @property
    def ipc_permissions(self) -> int:
        """The mode of ipc sockets."""
        if self.ipc_group is not None and "ipc_mode" not in self.model_fields_set:
            return 0o660
        return int(self.ipc_mode, 8)


class Log(Section):
    """``[log]``: what is written to standard error. All of it may change at SIGHUP."""

    format: Literal["text", "json"] = Field(
        "text",
        description="text: key=value; json: an object a line. See docs/logs.md.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Events below it are not written."
    )
    slow_request_ms: Annotated[float, Field(ge=0, le=86_400_000)] = Field(
        0,
        description="Answers that took the server longer are logged, with where the time went. "
        "0: none.",
    )

    @property
    def settings(self) -> LogSettings:
        """The same for the processes of a server."""
        return LogSettings(self.format, self.level, self.slow_request_ms)


class Config(Gatewayed):
    """A whole configuration file."""

    broker: Broker = Field(default_factory=Broker, description="See [broker].")
    pool: Pool = Field(default=Pool(), description="See [pool].")
    log: Log = Field(default=Log(), description="See [log].")
    models: list[Model] = Field(description="See [[models]].")

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: list[Model]) -> list[Model]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are named {name!r}")
        return models

    @model_validator(mode="after")
    def _can_be_reached(self) -> Config:
        if not self.broker.bind and not self.serves_by_gateway:
            raise ValueError("broker.bind: needs an endpoint, unless [rest] or [grpc] has a port")
        return self


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigurationError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigurationError(f"{path}: not TOML: it is nested too deeply") from None


def served_instead(tables: Any, models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables of ``models``, which say no more than what is served, for a configuration with
    these ``tables`` of models: how one of that name is run stays as it is.
    """
    known = {
        table["name"]: table
        for table in (tables if isinstance(tables, list) else [])
        if isinstance(table, dict) and isinstance(table.get("name"), str)
    }
    result = []
    for model in models:
        old = known.get(model["name"], {})
        dropped = ["version_policy", "version_labels"]
        if old.get("path") != model["path"]:
            # Another model by the same name.
            dropped += ["runtime", "signature", "read_in_place", "device_arrays", "jit_compile"]
        kept = {key: value for key, value in old.items() if key not in dropped}
        result.append({**kept, **model})
    return result


def validate(tables: dict[str, Any], source: str, *, may_serve_none: bool = False) -> Config:
    """The configuration in ``tables``, which came from ``source``.

    Raises ConfigurationError with a line for everything that is wrong; without models, unless it
    ``may_serve_none``.
    """
    try:
        config = Config.model_validate(tables)
        if not (config.models or may_serve_none):
            raise ConfigurationError(f"{source}: {_NO_MODEL}")
        return config
    except ValidationError as error:
        lines = [f"{source}: {explain(detail)}" for detail in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None


def explain(detail: Any) -> str:
    """What is wrong at a place, of one of pydantic's errors."""
    place = ""
    for step in detail["loc"]:
        if isinstance(step, str) and "[" in step:
            # Which of several types was tried: no place in the file.
            continue
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    if place == "models" and detail["type"] == "missing":
        return _NO_MODEL
    if detail["type"] == "extra_forbidden":
        return f"{place}: there is no such key; see docs/configuration.md"
    if detail["type"] == "missing":
        return f"{place}: is missing"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
