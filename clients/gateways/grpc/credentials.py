"""What gRPC needs for TLS."""

from __future__ import annotations

from pathlib import Path

import grpc

from batchyard.clients.gateways.grpc.ssl_config import read_ssl_config


def server_credentials(path: Path | str) -> grpc.ServerCredentials:
    """The credentials that an ``ssl_config_file`` describes. Raises ConfigurationError.

    Without ``client_verify`` clients are not asked for certificates, even with a ``custom_ca``.
    """
    config = read_ssl_config(path)
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() if config.client_verify else None,
        bool(config.client_verify),
    )
