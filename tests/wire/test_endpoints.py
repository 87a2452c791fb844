"""Where a broker may listen and a client may look."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from batchyard.wire import endpoints
from batchyard.wire.errors import ConfigurationError

LOOPBACK = [
    "tcp://127.0.0.1:8600",
    "tcp://127.8.9.1:8600",
    "tcp://localhost:8600",
    "tcp://[::1]:8600",
]
REACHABLE = [
    "tcp://0.0.0.0:8600",
    "tcp://*:8600",
    "tcp://[::]:8600",
    "tcp://192.168.1.5:8600",
    "tcp://eth0:8600",
    "tcp://example.org:8600",
    # Resolved by whoever binds it, or not by Python: when in doubt, it is refused.
    "tcp://localhost.example.org:8600",
    "tcp://127.1:8600",
    "tcp://[::ffff:10.0.0.1]:8600",
]


@pytest.mark.parametrize("endpoint", LOOPBACK)
def test_loopback_can_be_bound(endpoint: str) -> None:
    assert endpoints.check(endpoint, binding=True) == endpoint
    assert endpoints.check(endpoint) == endpoint


@pytest.mark.parametrize("endpoint", REACHABLE)
def test_what_others_reach_is_bound_only_when_told_so(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="insecure = true") as caught:
        endpoints.check(endpoint, binding=True)
    assert repr(endpoint) in str(caught.value)
    assert endpoints.check(endpoint, binding=True, insecure=True) == endpoint


@pytest.mark.parametrize("endpoint", REACHABLE)
def test_clients_may_connect_anywhere(endpoint: str) -> None:
    assert endpoints.check(endpoint) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("", "must be tcp://HOST:PORT or ipc:///PATH"),
        ("127.0.0.1:8600", "must be tcp://HOST:PORT or ipc:///PATH"),
        ("http://127.0.0.1:8600", "must be tcp://HOST:PORT or ipc:///PATH"),
        ("inproc://broker", "must be tcp://HOST:PORT or ipc:///PATH"),
        ("TCP://127.0.0.1:8600", "must be tcp://HOST:PORT or ipc:///PATH"),
        ("tcp:127.0.0.1:8600", "must be tcp://HOST:PORT or ipc:///PATH"),
        ("tcp://", "must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1", "must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:", "must be tcp://HOST:PORT"),
        ("tcp://:8600", "must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:http", "must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:-1", "must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:86.0", "must be tcp://HOST:PORT"),
        ("tcp://127.0.0.1:65536", "no such port"),
        ("ipc://", "needs an absolute path"),
        ("ipc://broker", "needs an absolute path"),
        ("ipc://@abstract", "needs an absolute path"),
    ],
)
def test_what_is_no_endpoint(endpoint: str, words: str) -> None:
    for binding in (False, True):
        with pytest.raises(ConfigurationError, match=words) as caught:
            endpoints.check(endpoint, binding=binding, insecure=True)
        assert repr(endpoint) in str(caught.value)


def test_any_port_is_for_binding_only() -> None:
    assert endpoints.check("tcp://127.0.0.1:*", binding=True) == "tcp://127.0.0.1:*"
    with pytest.raises(ConfigurationError):
        endpoints.check("tcp://127.0.0.1:*")


@pytest.mark.parametrize("letter", ["a", "ß"])
def test_longest_ipc_path(letter: str) -> None:
    longest = 107
    count = (longest - 1) // len(letter.encode())
    fits = "/" + letter * count + "a" * (longest - 1 - count * len(letter.encode()))
    assert endpoints.check(f"ipc://{fits}", binding=True) == f"ipc://{fits}"
    with pytest.raises(ConfigurationError, match="108 bytes, a socket's may have 107"):
        endpoints.check(f"ipc://{fits}a", binding=True)


def test_longest_ipc_path_is_the_kernels(tmp_path: Path) -> None:
    """The bound stands for ``sun_path``: one byte more cannot be bound."""
    folder = str(tmp_path) + "/"
    if len(folder) > 100:
        pytest.skip("the temporary folder's own path is too long")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(folder + "s" * (107 - len(folder)))
    with socket.socket(socket.AF_UNIX) as unix, pytest.raises(OSError, match="too long"):
        # Python adds no closing zero, so it lets 108 bytes through; zmq needs that zero.
        unix.bind(folder + "s" * (109 - len(folder)))


@pytest.fixture
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.fixture
def _as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)


@pytest.fixture
def _session(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a login session of user 7, and no other."""
    monkeypatch.setattr("os.path.isdir", lambda path: path == "/run/user/7")


@pytest.mark.usefixtures("_session")
@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/batchyard/broker"),
        ({"RUNTIME_DIRECTORY": "/run/mine"}, "/run/mine/broker"),
        ({"RUNTIME_DIRECTORY": "/run/mine:/run/too"}, "/run/mine/broker"),
        ({"RUNTIME_DIRECTORY": "/run/mine", "XDG_RUNTIME_DIR": "/run/user/7"}, "/run/mine/broker"),
    ],
)
def test_default_ipc_path(environ: dict[str, str], path: str) -> None:
    assert endpoints.default_ipc_path(environ) == path
    assert endpoints.default_bind(environ) == ["tcp://127.0.0.1:8600", f"ipc://{path}"]


NO_SESSION: list[dict[str, str]] = [
    {},
    {"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": ""},
    # Inherited from one that is over.
    {"XDG_RUNTIME_DIR": "/run/user/8"},
]


@pytest.mark.parametrize("environ", NO_SESSION)
@pytest.mark.usefixtures("_as_root", "_session")
def test_default_ipc_path_of_root(environ: dict[str, str]) -> None:
    assert endpoints.default_ipc_path(environ) == "/run/batchyard/broker"


@pytest.mark.parametrize("environ", NO_SESSION)
@pytest.mark.usefixtures("_as_user", "_session")
def test_user_without_a_runtime_folder_has_no_ipc_path(environ: dict[str, str]) -> None:
    assert endpoints.default_ipc_path(environ) is None
    assert endpoints.default_bind(environ) == ["tcp://127.0.0.1:8600"]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], []),
        (["/run/user/7/batchyard/broker"], ["ipc:///run/user/7/batchyard/broker"]),
        (["/run/batchyard/broker"], ["ipc:///run/batchyard/broker"]),
        (
            ["/run/batchyard/broker", "/run/user/7/batchyard/broker"],
            ["ipc:///run/user/7/batchyard/broker", "ipc:///run/batchyard/broker"],
        ),
    ],
)
@pytest.mark.usefixtures("_session")
def test_clients_look_for_sockets_first(
    monkeypatch: pytest.MonkeyPatch, there: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: path in there)
    found = endpoints.default_endpoints({"XDG_RUNTIME_DIR": "/run/user/7"})
    assert found == [*expected, "tcp://127.0.0.1:8600"]


@pytest.mark.usefixtures("_as_root")
def test_a_socket_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: True)
    assert endpoints.default_endpoints({}) == [
        "ipc:///run/batchyard/broker",
        "tcp://127.0.0.1:8600",
    ]


def test_defaults_can_be_bound() -> None:
    for endpoint in endpoints.default_bind({"XDG_RUNTIME_DIR": "/run/user/7"}):
        assert endpoints.check(endpoint, binding=True) == endpoint
