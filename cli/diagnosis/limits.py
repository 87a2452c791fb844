"""What the kernel gives a process: shared memory without a name, descriptors, address space."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

from batchyard.cli.diagnosis.cgroups import CgroupLimits
from batchyard.cli.diagnosis.finding import Finding, failure, mebibytes, ok, warning
from batchyard.wire.arena import Mapping, create_memfd

_UNLIMITED = resource.RLIM_INFINITY
# What the broker has open besides its clients: links, listeners, libraries.
_OWN_DESCRIPTORS = 64
# A client by ZeroMQ takes one; one on this machine also its local socket and its region's.
_DESCRIPTORS_PER_LOCAL_CLIENT = 3
# What TensorFlow starts in a process beside its two pools, about.
_THREADS_PER_WORKER = 32


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The hard limits, to which the broker raises its own; -1 is none."""

    open_files: int
    address_space: int
    processes: int


def check_shared_memory(refused: str) -> Finding:
    """``refused`` is what the kernel said when asked for a sealed memfd; empty: it gave one."""
    if refused:
        remedy = "Allow memfd_create and its seals: a container's seccomp profile may forbid them."
        return failure("shared memory", f"no sealed memfd: {refused}", remedy)
    return ok("shared memory", "memfd works; /dev/shm and locked memory are not used")


def check_process_handles(refused: str) -> Finding:
    """``refused`` is what the kernel said when asked for what children are watched by."""
    if refused:
        remedy = "Use Linux 5.3 or newer, and a container whose seccomp profile allows pidfd_open."
        return failure("kernel", refused, remedy)
    return ok("kernel", f"Linux {os.uname().release}; pidfd and SOCK_SEQPACKET work")


def check_limits(
    limits: ProcessLimits,
    cgroup: CgroupLimits,
    *,
    local_clients: int,
    workers: int,
    processors: int,
) -> list[Finding]:
    """Whether so many clients and workers fit."""
    findings = [_check_open_files(limits, local_clients)]
    if limits.address_space != _UNLIMITED:
        found = f"RLIMIT_AS is {mebibytes(limits.address_space)}"
        remedy = "Lift it (ulimit -v unlimited): TensorFlow and CUDA map far more than they use."
        findings.append(warning("address space", found, remedy))
    threads = workers * (_THREADS_PER_WORKER + 2 * processors)
    most = [n for n in (limits.processes, cgroup.pids) if n is not None and n != _UNLIMITED]
    if most and min(most) < threads:
        found = f"at most {min(most)} threads; {workers} workers make about {threads}"
        remedy = "Raise it (systemd: TasksMax=, docker: --pids-limit, shell: ulimit -u)."
        findings.append(warning("threads' limit", found, remedy))
    return findings


def _check_open_files(limits: ProcessLimits, local_clients: int) -> Finding:
    if limits.open_files == _UNLIMITED:
        return ok("open files", "no limit")
    room = limits.open_files - _OWN_DESCRIPTORS
    needed = local_clients * _DESCRIPTORS_PER_LOCAL_CLIENT
    found = f"at most {limits.open_files}, for about {max(0, room)} clients"
    remedy = "Raise the hard limit (systemd: LimitNOFILE=65536, docker: --ulimit nofile=65536)."
    if room <= 0:
        return failure("open files", found, remedy)
    if room < needed:
        found += f"; {local_clients} on this machine alone take {needed}"
        return warning("open files", found, remedy)
    return ok("open files", found)


def read_process_limits() -> ProcessLimits:
    """This process's hard limits."""
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC)
    files, space, processes = (resource.getrlimit(kind)[1] for kind in kinds)
    # The kernel does not hold root to it.
    return ProcessLimits(files, space, processes if os.geteuid() else _UNLIMITED)


def try_shared_memory() -> str:
    """Makes and maps a sealed memfd as the arena is; why that does not work, or nothing."""
    return _refusal(_map_shared_memory)


def try_process_handles() -> str:
    """Makes what the supervisor watches its children by; why that does not work, or nothing."""
    return _refusal(_watch_a_process)


def _map_shared_memory() -> None:
    fd = create_memfd(1 << 16, "batchyard-doctor")
    try:
        Mapping(fd).close()
    finally:
        os.close(fd)


def _watch_a_process() -> None:
    fd = os.pidfd_open(os.getpid())
    try:
        select.select([fd], [], [], 0)
    finally:
        os.close(fd)
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        end.close()


def _refusal(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return ""
