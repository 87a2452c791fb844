"""TLS by TensorFlow Serving's ssl_config_file: real handshakes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from support.certificates import Certificate, can_be_made, make_certificate

from batchyard.clients.gateways.grpc.credentials import server_credentials
from batchyard.wire.errors import ConfigurationError

pytestmark = pytest.mark.skipif(not can_be_made(), reason="needs openssl")

Pair = tuple[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Certificate:
    return make_certificate(folder, "authority")


@pytest.fixture(scope="module")
def server(folder: Path, authority: Certificate) -> Certificate:
    return make_certificate(folder, "server", "authority")


@pytest.fixture(scope="module")
def client(folder: Path, authority: Certificate) -> Certificate:
    return make_certificate(folder, "client", "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Certificate:
    return make_certificate(folder, "stranger")


def write(path: Path, client_verify: bool = False, **texts: str) -> Path:
    """The file, as an administrator writes it: the lines of PEM files in quotes."""
    lines = []
    for name, text in texts.items():
        quoted = "\n".join(f'  "{line}\\n"' for line in text.splitlines())
        lines.append(f"{name}:\n{quoted}\n")
    path.write_text("".join(lines) + f"client_verify: {str(client_verify).lower()}\n")
    return path


@contextmanager
def serving(path: Path) -> Iterator[int]:
    """A server that echoes; its port."""
    with ThreadPoolExecutor(1) as threads:
        made = grpc.server(threads)
        echo = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
        made.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {"Echo": echo})])
        port = made.add_secure_port("127.0.0.1:0", server_credentials(path))
        made.start()
        try:
            yield port
        finally:
            made.stop(None).wait()


def echoes(port: int, authority: str, certificate: Certificate | None = None) -> bool:
    """Whether a client that trusts ``authority`` is answered."""
    credentials = grpc.ssl_channel_credentials(
        authority.encode(),
        certificate and certificate.key.encode(),
        certificate and certificate.cert.encode(),
    )
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        try:
            return bool(channel.unary_unary("/s/Echo")(b"hello", 20) == b"hello")
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise


def test_clients_trust_the_servers_certificate(
    tmp_path: Path, authority: Certificate, server: Certificate, stranger: Certificate
) -> None:
    path = write(tmp_path / "ssl", server_key=server.key, server_cert=server.cert)

    with serving(path) as port:
        assert echoes(port, authority.cert)
        assert not echoes(port, stranger.cert)


def test_only_clients_with_certificates(
    tmp_path: Path,
    authority: Certificate,
    server: Certificate,
    client: Certificate,
    stranger: Certificate,
) -> None:
    path = write(
        tmp_path / "ssl",
        client_verify=True,
        server_key=server.key,
        server_cert=server.cert,
        custom_ca=authority.cert,
    )

    with serving(path) as port:
        assert echoes(port, authority.cert, client)
        assert not echoes(port, authority.cert)
        assert not echoes(port, authority.cert, stranger)


def test_without_client_verify_certificates_are_not_asked_for(
    tmp_path: Path, authority: Certificate, server: Certificate
) -> None:
    path = write(
        tmp_path / "ssl",
        server_key=server.key,
        server_cert=server.cert,
        custom_ca=authority.cert,
    )

    with serving(path) as port:
        assert echoes(port, authority.cert)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('server_key: "k"', "server_cert is missing"),
        ('server_cert: "c"', "server_key is missing"),
        ('server_key: "k" server_cert: "c" client_verify: true', "client_verify needs custom_ca"),
        ('server_key: "k" server_cert: "c"', "server_key is no private key in PEM"),
        ("serverkey: 1", "there is no serverkey in SSLConfig"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "ssl"
    path.write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        server_credentials(path)

    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_of_another_certificate(
    tmp_path: Path, server: Certificate, stranger: Certificate
) -> None:
    path = write(tmp_path / "ssl", server_key=stranger.key, server_cert=server.cert)

    with pytest.raises(ConfigurationError, match="server_key is not that of server_cert"):
        server_credentials(path)
