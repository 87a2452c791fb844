"""Who uses how much of a card's memory, as NVML tells it from outside.

NVML numbers processes as the driver's own system does. In a container they have other numbers, or
are listed without their memory (NVIDIA's open kernel module), or not listed at all. So a reading
says how it came about:

* by process: NVML has the workers' process ids, and what each uses;
* by difference: it has others, but as many came as workers were started;
* of the whole card: only the card's memory is known, and what it was before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MIB = 1 << 20
# Under MPS, processes are listed as its clients. The second is for drivers before 510.
_LISTS = (
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses",
)


class How(StrEnum):
    """How a reading tells the workers' memory from that of others."""

    PROCESS = "by process"
    DIFFERENCE = "by difference"
    CARD = "of the whole card"


EXPLANATIONS = {
    How.DIFFERENCE: "NVML has other process ids than this container: the processes that came count",
    How.CARD: "NVML tells of no process's memory: what the card has more in use than before counts",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes that each of some processes uses, in no order when ``how`` is not PROCESS.

    ``each`` is an even share of ``total`` when ``how`` is CARD: more is not known then.
    """

    each: tuple[int, ...]
    total: int
    how: How

    @property
    def most(self) -> int:
        """Of the process that uses most."""
        return max(self.each, default=0)

    @property
    def least(self) -> int:
        """Of the process that uses least."""
        return min(self.each, default=0)


class CardMemory:
    """A card, or a MIG instance, and what used it when this was made."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        """``nvml`` is the module ``pynvml``, after ``nvmlInit``."""
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self.total = int(nvml.nvmlDeviceGetMemoryInfo(self._handle).total)
        self.used_before = self.used
        self._before = self.processes()

    @property
    def used(self) -> int:
        """Bytes in use, by whomever."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def processes(self) -> dict[int, int]:
        """Bytes by NVML's process id, 0 where it does not tell; {} where it lists none."""
        found: dict[int, int] = {}
        for ask in _LISTS:
            # Drivers older than the binding lack some, which it tells by errors of several kinds.
            with contextlib.suppress(Exception):
                listed = getattr(self._nvml, ask)(self._handle)
                found.update((process.pid, process.usedGpuMemory or 0) for process in listed)
        return found

    def read(self, pids: Sequence[int]) -> Reading:
        """What these processes use, which all came after this was made."""
        processes = self.processes()
        if all(processes.get(pid) for pid in pids):
            return _reading([processes[pid] for pid in pids], How.PROCESS)
        came = [nbytes for pid, nbytes in processes.items() if pid not in self._before]
        if len(came) == len(pids) and all(came):
            return _reading(came, How.DIFFERENCE)
        total = max(0, self.used - self.used_before)
        return Reading((total // max(1, len(pids)),) * len(pids), total, How.CARD)

    def has(self, pid: int) -> bool:
        """Whether NVML lists that process on this card."""
        return pid in self.processes()

    def came(self) -> set[int]:
        """Processes, by NVML's ids, that it lists now and did not when this was made."""
        return self.processes().keys() - self._before.keys()


def _reading(each: list[int], how: How) -> Reading:
    return Reading(tuple(each), sum(each), how)
