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
    """What a server takes, in bytes: the arena, all regions together, and how many workers."""

    arena: int
    regions: int
    workers: int

    @property
    def start(self) -> int:
        """What it takes with the arena in use, before any model is loaded and any client comes."""
        return self.arena + self.workers * _WORKER_NBYTES


def check_memory(memory: Memory, limits: CgroupLimits, needs: MemoryNeeds) -> list[Finding]:
    """Whether all of it fits, and what happens to it when it does not."""
    return [_check_room(memory, limits, needs), *_check_regions(memory, limits, needs)] + [
        finding
        for finding in (_check_swap(memory), _check_overcommit(memory, needs))
        if finding is not None
    ]


def _check_room(memory: Memory, limits: CgroupLimits, needs: MemoryNeeds) -> Finding:
    available, where = memory.available, "available"
    if limits.memory is not None:
        left = limits.memory - (limits.memory_used or 0)
        if left < available:
            available, where = left, f"left of the control group's {mebibytes(limits.memory)}"
    found = (
        f"{mebibytes(available)} {where}; arena {mebibytes(needs.arena)}, "
        f"{needs.workers} workers from {mebibytes(_WORKER_NBYTES)} each, and the models"
    )
    total = memory.total if limits.memory is None else min(memory.total, limits.memory)
    if needs.arena >= total:
        remedy = f"Set arena_mb under [pool] to less than {total >> 21}."
        return failure("memory", found, remedy)
    if needs.start > available:
        remedy = "Lower arena_mb or the number of workers, or give the server more memory."
        return warning("memory", found, remedy)
    return ok("memory", found)


def _check_regions(memory: Memory, limits: CgroupLimits, needs: MemoryNeeds) -> list[Finding]:
    total = memory.total if limits.memory is None else min(memory.total, limits.memory)
    if not needs.regions:
        return []
    found = f"clients on this machine may take {mebibytes(needs.regions)} together, as they use it"
    if needs.start + needs.regions > total:
        found += f", of {mebibytes(total)} that there are"
        remedy = (
            "If so many clients may come, lower region_mb or max_regions under [broker]: beyond "
            "the memory the kernel kills processes."
        )
        return [warning("regions", found, remedy)]
    return [ok("regions", found)]


def _check_swap(memory: Memory) -> Finding | None:
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


def _check_overcommit(memory: Memory, needs: MemoryNeeds) -> Finding | None:
    if memory.overcommit != _OVERCOMMIT_NEVER:
        return None
    found = f"vm.overcommit_memory is 2, {mebibytes(memory.commit_left)} can still be promised"
    if memory.commit_left < needs.start:
        remedy = "sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio."
        return failure("overcommit", found, remedy)
    remedy = "sysctl vm.overcommit_memory=0: TensorFlow and CUDA reserve far more than they use."
    return warning("overcommit", found, remedy)


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
