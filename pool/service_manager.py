"""Tells who started this server how it fares: systemd, by the protocol of sd_notify(3).

A datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names. Of our own: Python
bindings of systemd need its headers and a compiler, or are not maintained.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping

# Characters. systemd reads 4096 bytes of a datagram, and drops one that has more.
_VALUE_MAX = 800
_SEND_TIMEOUT_S = 1.0


class ServiceManager:
    """Tells whoever started this process; nobody, when it does not listen."""

    def __init__(self, address: str = "", watchdog_s: float = float("inf")) -> None:
        """``address`` is a path, or a name that begins with ``@``; empty: nobody listens.

        ``watchdog_s``: it ends this process when it hears no WATCHDOG=1 for so long.
        """
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """As the environment says, from which it is removed: it is for this process only."""
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_usec = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        # Inherited by mistake, from a service that started whoever started this process.
        is_ours = watchdog_pid in ("", str(os.getpid()))
        watchdog_s = float("inf")
        if address and is_ours and watchdog_usec.isdecimal() and int(watchdog_usec) > 0:
            watchdog_s = int(watchdog_usec) / 1e6
        return cls(address if address[:1] in ("/", "@") else "", watchdog_s)

    def tell(self, variables: Mapping[str, object]) -> None:
        """Sends what is true now, in one datagram. What cannot be sent is not missed."""
        if not self._address:
            return
        lines = [f"{name}={_line(str(value))}" for name, value in variables.items()]
        datagram = "\n".join(lines).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # It waits for room when systemd is busy, and not for ever.
                sender.settimeout(_SEND_TIMEOUT_S)
                sender.sendto(datagram, self._address)
        except OSError:
            # Nothing here depends on it; who misses WATCHDOG=1 acts by itself.
            return


def _line(value: str) -> str:
    """One line of a length that fits, whatever an error's text is."""
    line = "; ".join(part for part in value.splitlines() if part)
    return line if len(line) <= _VALUE_MAX else f"{line[: _VALUE_MAX - 1]}…"
