"""TLS as TensorFlow Serving's ``ssl_config_file`` has it: PEM texts in a text protobuf.

Beside ``credentials``, so that a command line can refuse a file without gRPC.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensorflow_serving.file_messages import SSLConfig, parse


def read_ssl_config(path: Path | str) -> Any:
    """The ``SSLConfig`` in a file. Raises ConfigurationError when TLS cannot be had by it."""
    config = parse(path, SSLConfig)
    try:
        _check(config)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return config


def _check(config: Any) -> None:
    """Whether TLS can be had by it: gRPC would only say that it cannot listen.

    Raises ValueError.
    """
    for field in ("server_key", "server_cert"):
        if not getattr(config, field):
            raise ValueError(f"{field} is missing: the text of a PEM file")
    if config.client_verify and not config.custom_ca:
        raise ValueError(
            "client_verify needs custom_ca, the certificate that clients' are signed with"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if config.client_verify:
        try:
            context.load_verify_locations(cadata=config.custom_ca)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"custom_ca has no certificate in PEM: {error}") from None
    try:
        with _file_of(config.server_key) as key, _file_of(config.server_cert) as cert:
            # A key with a passphrase is no use: there is nobody to ask.
            context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("server_key is not that of server_cert") from None
        raise ValueError(
            "server_key is no private key in PEM without a passphrase, or server_cert no "
            f"certificate: {error}"
        ) from None


@contextlib.contextmanager
def _file_of(text: str) -> Iterator[str]:
    """The path of a file in memory: Python reads keys and certificates from files only."""
    fd = os.memfd_create("batchyard-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
