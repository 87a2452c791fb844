"""TLS as TensorFlow Serving's ``ssl_config_file`` has it: PEM texts in a text protobuf."""

from __future__ import annotations

from pathlib import Path

import grpc

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensorflow_serving.file_messages import SSLConfig, parse


def server_credentials(path: Path | str) -> grpc.ServerCredentials:
    """The credentials that a file describes. Raises ConfigurationError.

    Without ``client_verify`` clients are not asked for certificates, even with a ``custom_ca``.
    """
    config = parse(path, SSLConfig)
    for field in ("server_key", "server_cert"):
        if not getattr(config, field):
            raise ConfigurationError(f"{path}: {field} is missing: the text of a PEM file")
    if config.client_verify and not config.custom_ca:
        raise ConfigurationError(
            f"{path}: client_verify needs custom_ca, the certificate that clients' are signed with"
        )
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() if config.client_verify else None,
        bool(config.client_verify),
    )
