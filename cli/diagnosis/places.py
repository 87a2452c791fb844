"""Where a server listens: ipc paths that can be made, TCP ports that are free."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning
from batchyard.cli.diagnosis.listeners import Holder, holder_of
from batchyard.wire.endpoints import IPC_PATH_MAX
from batchyard.wire.local import LOCAL_SUFFIX


@dataclass(frozen=True, slots=True)
class IpcPlace:
    """``folder`` is the nearest one that is there; ``mode`` and ``owner`` are its."""

    path: str
    folder: str
    is_writable: bool
    mode: int
    owner: int


@dataclass(frozen=True, slots=True)
class Port:
    """What binding it came to: 0, or an errno; and who listens there, if that is known."""

    host: str
    number: int
    error: int = 0
    holder: Holder | None = None


def check_ipc(place: IpcPlace, user: int, server_runs: bool) -> Finding:
    """Whether the sockets can be made, and only by those who may.

    The folder of a server that runs is its user's.
    """
    check = "ipc path"
    nbytes = len(place.path.encode())
    if nbytes > IPC_PATH_MAX:
        remedy = f"Use a path of at most {IPC_PATH_MAX} bytes, as under /run."
        return failure(check, f"{place.path} has {nbytes} bytes", remedy)
    if not (place.is_writable or server_runs):
        remedy = "Give this user the folder (systemd: RuntimeDirectory=), or bind another path."
        return failure(check, f"{place.folder} cannot be written, for {place.path}", remedy)
    if place.mode & stat.S_IWOTH and not place.mode & stat.S_ISVTX:
        remedy = f"chmod o-w {place.folder}: anybody could put another socket there."
        return warning(check, f"everybody may write to {place.folder}", remedy)
    if place.owner not in (0, user) and not server_runs:
        remedy = f"chown it, or run the server as user {place.owner}."
        return warning(check, f"{place.folder} belongs to user {place.owner}", remedy)
    if nbytes + len(LOCAL_SUFFIX) > IPC_PATH_MAX:
        remedy = (
            f"Shorten it to {IPC_PATH_MAX - len(LOCAL_SUFFIX)} bytes: else clients on this machine "
            "share no memory with the server."
        )
        return warning(check, f"{place.path} leaves no room for {LOCAL_SUFFIX}", remedy)
    return ok(check, place.path)


def check_no_ipc(endpoints: Sequence[str], environ: Mapping[str, str]) -> list[Finding]:
    """Clients on the same machine need an ipc endpoint to share memory with the server."""
    if not endpoints or any(endpoint.startswith("ipc://") for endpoint in endpoints):
        # Where there are none, the SDK is not wanted.
        return []
    found = "no ipc endpoint: clients on this machine send tensors through TCP"
    if environ.get("XDG_RUNTIME_DIR"):
        remedy = "Add ipc:///PATH to bind under [broker]."
    else:
        remedy = "Add ipc:///PATH to bind under [broker], or set XDG_RUNTIME_DIR."
    return [warning("ipc path", found, remedy)]


def check_port(port: Port, what: str, is_ours: bool) -> Finding:
    """``what`` listens there by the configuration; ``is_ours``: a server of ours answers there."""
    check = f"port {port.number}"
    if not port.error:
        return ok(check, f"free on {port.host}, for {what}")
    if port.error == errno.EADDRINUSE:
        holder = port.holder
        who = f"process {holder.pid} ({holder.command})" if holder else "a process of another user"
        if is_ours:
            return ok(check, f"the server that runs has it: {who}")
        remedy = f"Stop that process, or configure another port for {what}."
        return failure(check, f"{who} has it", remedy)
    if port.error == errno.EACCES:
        remedy = "Use a port from 1024 on (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)."
        return failure(check, f"this user may not bind it on {port.host}", remedy)
    if port.error == errno.EADDRNOTAVAIL:
        remedy = "Bind an address of this machine (ip address lists them)."
        return failure(check, f"{port.host} is no address of this machine", remedy)
    return failure(check, f"cannot be bound: {os.strerror(port.error)}", "Bind another address.")


def look_at_ipc(path: str) -> IpcPlace:
    """The place of an ipc endpoint's path."""
    folder = Path(path).parent
    while not folder.exists():
        folder = folder.parent
    status = folder.stat()
    writable = os.access(folder, os.W_OK | os.X_OK)
    return IpcPlace(path, str(folder), writable, status.st_mode, status.st_uid)


def look_at_port(host: str, number: int) -> Port:
    """Binds it for a moment, as the broker does."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), number, type=socket.SOCK_STREAM
        )[0]
    except OSError:
        return Port(host, number, errno.EADDRNOTAVAIL)
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # Refused while somebody listens there.
            probe.bind(address)
        except OSError as error:
            return Port(host, number, error.errno or errno.EINVAL, holder_of(number))
    return Port(host, number)
