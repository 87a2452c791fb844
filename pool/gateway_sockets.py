"""Where gateways listen.

The supervisor holds their ports: one that is taken is known before anything starts, and it stays
the same when a gateway is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from batchyard.pool.gateways import GatewayPlan
from batchyard.pool.ipc_paths import claimed_path
from batchyard.wire.access import Access
from batchyard.wire.control import BACKLOG
from batchyard.wire.errors import ConfigurationError


@contextlib.contextmanager
def held(plan: GatewayPlan) -> Iterator[socket.socket | None]:
    """The socket of a gateway's port, if it has one, and its UNIX socket's path for itself.

    The socket listens, for all of the gateway's processes; or only keeps the port for processes
    that bind it themselves. A path that is taken over is left to the gateway alone: gRPC removes a
    socket that is there before it binds, and its own at the end. Raises ConfigurationError when it
    cannot be had.
    """
    with contextlib.ExitStack() as held:
        if plan.socket_path is not None and not plan.takes_socket_over:
            # Who may use it is decided by the folder that it is in.
            access = Access(0o600, None)
            held.enter_context(claimed_path(plan.socket_path, access, plan.socket_path))
        yield None if plan.port is None else held.enter_context(_bound(plan, plan.port))


def addresses(plan: GatewayPlan, sock: socket.socket | None) -> str:
    """Where callers find it: ``http://127.0.0.1:8501``, ``127.0.0.1:8500,unix:/run/grpc``."""
    found = []
    if sock is not None:
        host, port = sock.getsockname()[:2]
        found.append(plan.scheme + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
    if plan.socket_path is not None:
        found.append(f"unix:{plan.socket_path}")
    return ",".join(found)


def _bound(plan: GatewayPlan, port: int) -> socket.socket:
    where = f"cannot listen at {plan.host} port {port} ([{plan.name}] host, port)"
    try:
        family, *_, address = socket.getaddrinfo(
            plan.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        host = str(address[0])
        if plan.binds_itself:
            return _kept(family, host, port, socket.SO_REUSEPORT)
        if plan.opens_itself:
            return _kept(family, host, port, socket.SO_REUSEADDR)
        return _listening(family, host, port)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "; is another server running there?" if is_taken else ""
        raise ConfigurationError(f"{where}: {reason}{hint}") from error


def _listening(family: int, host: str, port: int) -> socket.socket:
    # All addresses are those of IPv4, too.
    is_dual = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
    )


def _kept(family: int, host: str, port: int, reuse: int) -> socket.socket:
    """A socket that is bound and does not listen yet, or beside which the gateway's processes bind.

    ``reuse`` is the option of the socket that lets it be bound beside others of its kind.
    """
    if port:
        # Whoever listens there would not be noticed otherwise.
        _listening(family, host, port).close()
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, reuse, 1)
        if family == socket.AF_INET6 and reuse == socket.SO_REUSEADDR and host != "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
