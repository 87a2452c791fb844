"""``[rest]``, ``[grpc]``, ``[metrics]`` of the configuration: what a server has beside the SDK."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from batchyard.pool.config_section import Section
from batchyard.wire.endpoints import IPC_PATH_MAX

Port = Annotated[int, Field(ge=0, le=65_535)]
# Each is a process with an event loop.
Processes = Annotated[int, Field(ge=1, le=64)]
_HOST = (
    "The address that it listens at. Who reaches it may use all models, without a key: see "
    "docs/security.md."
)


class Rest(Section):
    """``[rest]``: TensorFlow Serving's REST interface."""

    port: Port | None = Field(
        None,
        description="Where http://HOST:PORT/v1/models/… is, 8501 by custom. 0: a free port. "
        "Default: off.",
    )
    host: str = Field("127.0.0.1", min_length=1, description=_HOST)
    processes: Processes = Field(
        1,
        description="Processes that share the port. One keeps about one core busy; more are for "
        "large JSON.",
    )
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        30.0, description="The deadline of each request, in seconds."
    )
    enable_cors_support: bool = Field(
        False, description="Web pages of all origins may use it (Access-Control-Allow-Origin: *)."
    )
    gzip_answers: bool = Field(
        False,
        description="Large answers are compressed for clients that take gzip. For slow networks: "
        "compressing takes longer than sending in a local one.",
    )
    max_body_mb: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256, description="The largest body of a request, unpacked, in MiB."
    )
    monitoring_path: str = Field(
        "/monitoring/prometheus/metrics",
        description="Where Prometheus reads metrics of TensorFlow Serving's names. Empty: nowhere.",
    )

    @field_validator("monitoring_path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if path and not path.startswith("/"):
            raise ValueError(f"must begin with /, or be empty, not {path!r}")
        return path


class Grpc(Section):
    """``[grpc]``: TensorFlow Serving's gRPC interface."""

    port: Port | None = Field(
        None,
        description="Where PredictionService and ModelService are, 8500 by custom. 0: a free "
        "port. Default: off.",
    )
    host: str = Field("127.0.0.1", min_length=1, description=_HOST)
    processes: Processes = Field(
        1, description="Processes that share the port; the kernel shares out connections."
    )
    socket_path: str | None = Field(
        None,
        description="A UNIX socket as well, or instead of a port: an absolute path, which clients "
        "call unix:PATH. For one process only.",
    )
    takes_socket_over: bool = Field(
        False,
        description="A server that has socket_path loses it to this one, as among TensorFlow "
        "Serving's: its clients by that path come here. Off: this one does not start.",
    )
    ssl_config_file: str | None = Field(
        None,
        min_length=1,
        description="TLS: a file as --ssl_config_file of TensorFlow Serving has it. It is for the "
        "port and the UNIX socket. Default: no TLS.",
    )
    max_message_mb: Annotated[int, Field(ge=1, le=2047)] = Field(
        2047, description="The largest message that is taken, in MiB."
    )
    enable_serialization_as_tensor_content: bool = Field(
        True,
        description="Numbers of Predict's answers are in tensor_content, which clients read fast. "
        "Off: in the field of their dtype, such as float_val, as TensorFlow Serving's default.",
    )
    enable_model_reload: bool = Field(
        True,
        description="HandleReloadConfigRequest is served: who reaches gRPC may have folders of "
        "this machine served as models, whose code is run. Off: such calls get PERMISSION_DENIED.",
    )
    channel_arguments: dict[str, int | str] = Field(
        default={},
        description="gRPC's own settings by their names, such as "
        '{ "grpc.max_connection_age_ms" = 60000 }.',
    )

    @field_validator("socket_path")
    @classmethod
    def _is_a_socket_path(cls, path: str | None) -> str | None:
        if path is None:
            return path
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"must be an absolute path, not {path!r}")
        if len(path.encode(errors="replace")) > IPC_PATH_MAX:
            raise ValueError(f"may have {IPC_PATH_MAX} bytes, a socket's most, not {path!r}")
        return path

    @model_validator(mode="after")
    def _can_be_shared(self) -> Grpc:
        if self.socket_path is not None and self.processes > 1:
            raise ValueError(
                "processes cannot share a UNIX socket: leave socket_path out, or set processes "
                f"to 1, not {self.processes}"
            )
        return self


class Metrics(Section):
    """``[metrics]``: where the server tells by HTTP how it fares."""

    port: Port | None = Field(
        None,
        description="Prometheus reads http://HOST:PORT/metrics, load balancers /healthz and "
        "/readyz, people /. 0: a free port. Default: off. See docs/metrics.md.",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="The address that it listens at. Who reaches it may read, without a key; "
        "nobody can change anything there.",
    )


class Gatewayed(Section):
    """What of a whole configuration is about gateways."""

    rest: Rest = Field(default=Rest(), description="See [rest].")
    grpc: Grpc = Field(default=Grpc(), description="See [grpc].")
    metrics: Metrics = Field(default=Metrics(), description="See [metrics].")

    @property
    def serves_by_gateway(self) -> bool:
        """Whether requests may come otherwise than from the SDK."""
        return any(
            place is not None for place in (self.rest.port, self.grpc.port, self.grpc.socket_path)
        )

    @model_validator(mode="after")
    def _ports_differ(self) -> Any:
        taken: list[tuple[str, str, int]] = []
        for name, section in (("rest", self.rest), ("grpc", self.grpc), ("metrics", self.metrics)):
            if not section.port:
                continue
            for other, host, port in taken:
                if port == section.port and (host == section.host or _is_any(host, section.host)):
                    raise ValueError(
                        f"{name}.port and {other}.port are both {port}: each needs one of its own"
                    )
            taken.append((name, section.host, section.port))
        return self


def _is_any(*hosts: str) -> bool:
    return any(host in ("0.0.0.0", "::") for host in hosts)
