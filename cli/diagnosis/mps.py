"""NVIDIA's Multi-Process Service, by which several processes compute on one card at once."""

from __future__ import annotations

from collections.abc import Mapping

from batchyard.cli.diagnosis.finding import Finding, ok, warning
from batchyard.pool.mps import PIPE_DIRECTORY, Mps

_CHECK = "mps"
_ROOT = 0
_LIMITS = ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")


def check_mps(mps: Mps, environ: Mapping[str, str], uid: int) -> list[Finding]:
    """Nothing where nobody seems to want it. ``uid`` is the user that workers run as."""
    if not mps.is_there:
        return [*_check_elsewhere(mps), *_check_settings(environ, mps)]
    daemon = mps.daemon
    if daemon is None and mps.daemons:
        found = f"the daemon that wrote {mps.directory} is gone; process {mps.daemons[0].pid} runs"
        remedy = f"Set {PIPE_DIRECTORY} to the folder of the one that runs."
        return [warning(_CHECK, found, remedy)]
    if daemon is not None and daemon.uid not in (uid, _ROOT):
        found = f"its control daemon runs as user {daemon.uid}, workers as {uid}"
        remedy = "Run the daemon as root or as the workers' user: others it does not serve."
        return [warning(_CHECK, found, remedy)]
    # In another container, or hidden by ProtectProc, it cannot be seen.
    who = f"process {daemon.pid}" if daemon else "in a process that cannot be seen from here"
    found = (
        f"its control daemon runs ({who}, {mps.directory}): workers on one card compute at once, "
        "and a fault of one ends the others on that card"
    )
    told = [f"{name}={environ[name]}" for name in _LIMITS if name in environ]
    return [ok(_CHECK, f"{found}{'; ' + ', '.join(told) if told else ''}")]


def _check_elsewhere(mps: Mps) -> list[Finding]:
    """A daemon runs, but not where workers look."""
    if not mps.daemons:
        return []
    daemon = mps.daemons[0]
    where = f" in {daemon.directory}" if daemon.directory else ""
    found = f"its control daemon (process {daemon.pid}) listens{where}, workers look in "
    remedy = (
        f"Set {PIPE_DIRECTORY} for both, for a service in a drop-in: its PrivateTmp= hides /tmp. "
        "Without it workers take turns on a card."
    )
    return [warning(_CHECK, found + mps.directory, remedy)]


def _check_settings(environ: Mapping[str, str], mps: Mps) -> list[Finding]:
    """Settings that only the daemon's clients heed."""
    told = [name for name in (PIPE_DIRECTORY, *_LIMITS) if name in environ]
    if not told or mps.daemons:
        return []
    found = f"{', '.join(told)} set, but no control daemon listens in {mps.directory}"
    remedy = "Start it before the server (nvidia-cuda-mps-control -d), or unset them."
    return [warning(_CHECK, found, remedy)]
