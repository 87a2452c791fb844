"""Memory: what there is, against what the arena, the regions and TensorFlow take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batchyard.cli.diagnosis.cgroups import CgroupLimits
from batchyard.cli.diagnosis.finding import Finding, failure, mebibytes, ok, warning

# A worker with TensorFlow loaded and no model: 530 MB, as measured with 2.21 on a CPU.
_WORKER_NBYTES = 530 * 10**6
_OVERCOMMIT_NEVER = 2


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes, as in /proc/meminfo. ``commit_left`` counts where overcommit is off."""

    total: int
    available: int
    swap: int
    swap_used: int
    overcommit: int
    commit_left: int


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a server takes, in bytes, and how many workers it has.

    ``clients`` is what they can make it take at the worst: all regions, and a full queue.
    """

    arena: int
    clients: int
    workers: int

    @property
    def start(self) -> int:
        """What it takes with the arena in use, before any model is loaded and any client comes."""
        return self.arena + self.workers * _WORKER_NBYTES


def check_memory(memory: Memory, limits: CgroupLimits, needs: MemoryNeeds) -> list[Finding]:
    """Whether all of it fits, and what happens to it when it does not."""
    return [
        _check_room(memory, limits, needs),
        _check_clients(memory, limits, needs),
        _check_swap(memory),
        *_check_overcommit(memory, needs),
    ]


def _check_room(memory: Memory, limits: CgroupLimits, needs: MemoryNeeds) -> Finding:
    available, where = memory.available, "available"
    if limits.memory is not None:
        left = limits.memory - (limits.memory_used or 0)
        if left < available:
            available, where = left, f"left of the control group's {mebibytes(limits.memory)}"
    found = (
        f"{mebibytes(available)} {where}; arena {mebibytes(needs.arena)}, "
        f"{mebibytes(_WORKER_NBYTES)} for each worker ({needs.workers}), and the models"
    )
    total = memory.total if limits.memory is None else min(memory.total, limits.memory)
    if needs.arena >= total:
        remedy = f"Set arena_mb under [pool] to less than {total >> 21}."
        return failure("memory", found, remedy)
    if needs.start > available:
        remedy = "Lower arena_mb or the number of workers, or give the server more memory."
        return warning("memory", found, remedy)
    return ok("memory", found)


def _check_clients(memory: Memory, limits: CgroupLimits, needs: MemoryNeeds) -> Finding:
    check = "clients' memory"
    total = memory.total if limits.memory is None else min(memory.total, limits.memory)
    found = f"regions and queued tensors may take {mebibytes(needs.clients)}, as they are used"
    if needs.start <= total < needs.start + needs.clients:
        found += f", of {mebibytes(total)} that there are"
        remedy = (
            "Lower region_mb, max_regions or max_queue_mb under [broker] if clients may come to "
            "that: beyond its memory the kernel kills processes."
        )
        return warning(check, found, remedy)
    return ok(check, found)


def _check_swap(memory: Memory) -> Finding:
    if not memory.swap:
        return ok("swap", "none")
    found = f"{mebibytes(memory.swap_used)} of {mebibytes(memory.swap)} in use"
    if memory.swap_used > memory.swap // 10:
        remedy = (
            "Find out who needs the memory; a server whose pages come from disk misses deadlines "
            "(systemd: MemorySwapMax=0)."
        )
        return warning("swap", found, remedy)
    return ok("swap", found)


def _check_overcommit(memory: Memory, needs: MemoryNeeds) -> list[Finding]:
    if memory.overcommit != _OVERCOMMIT_NEVER:
        return []
    found = f"vm.overcommit_memory is 2, {mebibytes(memory.commit_left)} can still be promised"
    if memory.commit_left < needs.start:
        remedy = "sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio."
        return [failure("overcommit", found, remedy)]
    remedy = "sysctl vm.overcommit_memory=0: TensorFlow and CUDA reserve far more than they use."
    return [warning("overcommit", found, remedy)]


def read_memory(root: Path = Path("/")) -> Memory:
    """From /proc/meminfo and /proc/sys/vm."""
    values = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) << 10
    overcommit = int((root / "proc/sys/vm/overcommit_memory").read_text())
    return Memory(
        total=values["MemTotal"],
        available=values["MemAvailable"],
        swap=values["SwapTotal"],
        swap_used=values["SwapTotal"] - values["SwapFree"],
        overcommit=overcommit,
        commit_left=max(0, values["CommitLimit"] - values["Committed_AS"]),
    )
