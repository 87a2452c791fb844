"""Where a broker listens: ZeroMQ endpoints, their defaults and their checks."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping

from batchyard.wire.errors import ConfigurationError

DEFAULT_TCP = "tcp://127.0.0.1:8600"
# Messages that may wait in a socket, on either end, for one peer.
HIGH_WATER_MARK = 10_000
# A peer whose machine vanished without a word is noticed after three of these.
HEARTBEAT_MS = 5_000
# sun_path holds 108 bytes with the closing zero.
IPC_PATH_MAX = 107


def default_ipc_path(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where this user's server has its socket; None when the user has no runtime directory.

    A systemd service has ``RUNTIME_DIRECTORY``, a login session ``XDG_RUNTIME_DIR`` if that is
    there, and root ``/run``.
    """
    service = environ.get("RUNTIME_DIRECTORY")
    if service:
        return f"{service.partition(':')[0]}/broker"
    session = environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isdir(session):
        # Also where it was inherited, by sudo or cron, from a session that is over.
        session = "/run" if os.geteuid() == 0 else ""
    return f"{session}/batchyard/broker" if session else None


def default_bind(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where a server listens when it is told nothing."""
    path = default_ipc_path(environ)
    return [DEFAULT_TCP, *([f"ipc://{path}"] if path else [])]


def default_endpoints(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where the SDK looks when it is told nothing: the ipc sockets that are there, then TCP."""
    # A system service's socket, for its clients on the same machine.
    paths = [default_ipc_path(environ), "/run/batchyard/broker"]
    found = dict.fromkeys(f"ipc://{path}" for path in paths if path and os.path.exists(path))
    return [*found, DEFAULT_TCP]


def check(endpoint: str, *, binding: bool = False, insecure: bool = False) -> str:
    """The endpoint itself, when it is one that can be bound or connected to.

    Raises ConfigurationError otherwise; also for binding a TCP address that other machines
    reach, unless ``insecure`` says that this is wanted, or that keys guard it.
    """
    scheme, separator, rest = endpoint.partition("://")
    try:
        nbytes = len(rest.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"endpoint {endpoint!r} must be text that is Unicode") from None
    if "\0" in endpoint:
        # What follows would silently be left out.
        raise ConfigurationError(f"endpoint {endpoint!r} may not have a zero in it")
    if not separator or scheme not in ("tcp", "ipc"):
        raise ConfigurationError(f"endpoint {endpoint!r} must be tcp://HOST:PORT or ipc:///PATH")
    if scheme == "ipc":
        if not rest.startswith("/"):
            raise ConfigurationError(f"endpoint {endpoint!r} needs an absolute path")
        if nbytes > IPC_PATH_MAX:
            raise ConfigurationError(
                f"endpoint {endpoint!r}: the path has {nbytes} bytes, a socket's may have "
                f"{IPC_PATH_MAX}"
            )
        return endpoint
    host, separator, port = rest.rpartition(":")
    if (
        not separator
        or not host
        or not ((port.isascii() and port.isdecimal()) or (binding and port == "*"))
    ):
        raise ConfigurationError(f"endpoint {endpoint!r} must be tcp://HOST:PORT")
    # Python makes no number of thousands of digits.
    if port != "*" and (len(port) > 5 or int(port) > 65535):
        raise ConfigurationError(f"endpoint {endpoint!r}: no such port")
    if binding and not insecure and not _is_loopback(host):
        raise ConfigurationError(
            f"endpoint {endpoint!r} can be reached from other machines by anyone; bind "
            "tcp://127.0.0.1:PORT, or set curve_secret_key_file (see docs/security.md), or "
            "insecure = true, under [broker]"
        )
    return endpoint


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
