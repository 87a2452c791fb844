"""Processors: how many there are, how fast they may run, and how the clock is read."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchyard.cli.diagnosis.cgroups import CgroupLimits
from batchyard.cli.diagnosis.finding import Finding, ok, warning

# Drivers under which "powersave" goes up to the highest frequency by itself.
_SCALES_BY_ITSELF = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
# Those that are read without a system call.
_FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


@dataclass(frozen=True, slots=True)
class Processors:
    """``usable`` is what this process may run on. Empty strings where the machine does not say."""

    usable: int
    governors: tuple[str, ...] = ()
    driver: str = ""
    huge_pages: str = ""
    huge_pages_defrag: str = ""


def check_processors(
    processors: Processors, limits: CgroupLimits, threads: Sequence[int]
) -> list[Finding]:
    """``threads`` are the TensorFlow threads of each worker on a CPU; 0: as TensorFlow chooses."""
    findings = [_check_quota(processors, limits), _check_threads(processors, threads)]
    findings += [_check_governor(processors), _check_huge_pages(processors)]
    return [finding for finding in findings if finding is not None]


def _check_quota(processors: Processors, limits: CgroupLimits) -> Finding:
    found = f"{processors.usable} usable"
    if limits.cpus is None or limits.cpus >= processors.usable:
        return ok("processors", found)
    found += f", but the control group may use {limits.cpus:g} of them at a time"
    whole = max(1, int(limits.cpus))
    remedy = (
        f"Bind the server to {whole} processors instead of a quota (systemd: AllowedCPUs=, docker: "
        "--cpuset-cpus), else all its threads stand still when the quota is spent."
    )
    return warning("processors", found, remedy)


def _check_threads(processors: Processors, threads: Sequence[int]) -> Finding | None:
    if not threads:
        return None
    total = sum(count or processors.usable for count in threads)
    found = f"{total} for {processors.usable} processors, workers on CPUs: {len(threads)}"
    if total > processors.usable:
        remedy = (
            "Have fewer workers, or lower tensorflow_intra_op_parallelism: threads that take turns "
            "make every batch slower."
        )
        return warning("threads", found, remedy)
    return ok("threads", found)


def _check_governor(processors: Processors) -> Finding | None:
    if not processors.governors:
        return None
    found = ", ".join(processors.governors)
    if "powersave" in processors.governors and processors.driver not in _SCALES_BY_ITSELF:
        remedy = "cpupower frequency-set -g performance (or schedutil)."
        return warning("cpu governor", f"{found}: the lowest frequency at all times", remedy)
    return ok("cpu governor", f"{found} ({processors.driver})")


def _check_huge_pages(processors: Processors) -> Finding | None:
    if processors.huge_pages != "always" or processors.huge_pages_defrag != "always":
        return None
    remedy = "echo defer+madvise > /sys/kernel/mm/transparent_hugepage/defrag."
    found = "defrag=always: an allocation may wait for the kernel to make a huge page"
    return warning("huge pages", found, remedy)


def check_clock(source: str, is_synchronised: bool | None) -> list[Finding]:
    """Deadlines need no synchronised clock, they travel as what is left; logs and metrics do."""
    findings = []
    if source and source not in _FAST_CLOCKS:
        remedy = "Boot with clocksource=tsc if the machine's is stable."
        found = f"{source} is slow to read, and the broker reads it for every message"
        findings.append(warning("clock", found, remedy))
    if is_synchronised is False:
        remedy = "Start systemd-timesyncd or chrony, so that log times of machines agree."
        findings.append(warning("clock", "not synchronised (deadlines do not need it)", remedy))
    return findings or [ok("clock", source or "as the kernel has it")]


def read_processors(root: Path = Path("/")) -> Processors:
    """From /sys, and what this process may run on."""
    cpus = root / "sys/devices/system/cpu"
    governors = {_read(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    huge = root / "sys/kernel/mm/transparent_hugepage"
    return Processors(
        usable=len(os.sched_getaffinity(0)),
        governors=tuple(sorted(governors)),
        driver=_read(cpus / "cpu0/cpufreq/scaling_driver"),
        huge_pages=_chosen(_read(huge / "enabled")),
        huge_pages_defrag=_chosen(_read(huge / "defrag")),
    )


def read_clock_source(root: Path = Path("/")) -> str:
    """Such as ``tsc``; empty where the kernel does not say."""
    return _read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")


def is_clock_synchronised() -> bool | None:
    """What ``adjtimex`` says; None when it may not be asked."""
    # struct timex has 208 bytes; ``modes`` at 0 is none: it only reads. ``status`` is at 40.
    timex = ctypes.create_string_buffer(208)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        return None
    status = int.from_bytes(timex.raw[40:44], "little")
    return state != _TIME_ERROR and not status & _STA_UNSYNC


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _chosen(text: str) -> str:
    """``always [madvise] never`` chooses madvise."""
    return text.partition("[")[2].partition("]")[0]
