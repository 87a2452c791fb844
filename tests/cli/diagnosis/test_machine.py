"""Memory, control groups, processors and limits of machines that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.findings import levels, only

from batchyard.cli.diagnosis import limits, memory, processors
from batchyard.cli.diagnosis.cgroups import CgroupLimits, read_limits
from batchyard.cli.diagnosis.limits import ProcessLimits
from batchyard.cli.diagnosis.memory import Memory, MemoryNeeds
from batchyard.cli.diagnosis.processors import Processors

GIB = 1 << 30
NONE = CgroupLimits()
ROOMY = Memory(32 * GIB, 30 * GIB, 0, 0, 0, 0)
USUAL = MemoryNeeds(GIB // 2, 16 * GIB, 2)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_is_read(tmp_path: Path) -> None:
    text = "".join(
        f"{name}: {value} kB\n"
        for name, value in {
            "MemTotal": 4096,
            "MemAvailable": 2048,
            "SwapTotal": 100,
            "SwapFree": 40,
            "CommitLimit": 900,
            "Committed_AS": 1000,
        }.items()
    )
    write(tmp_path, {"proc/meminfo": text, "proc/sys/vm/overcommit_memory": "2\n"})
    found = memory.read_memory(tmp_path)
    assert found == Memory(4096 << 10, 2048 << 10, 100 << 10, 60 << 10, 2, 0)


def test_memory_that_suffices() -> None:
    found = levels(memory.check_memory(ROOMY, NONE, USUAL))
    assert found == {"memory": "ok", "clients' memory": "ok", "swap": "ok"}


@pytest.mark.parametrize(
    ("machine", "cgroup", "needs", "check", "level"),
    [
        (ROOMY, NONE, MemoryNeeds(40 * GIB, 0, 1), "memory", "failure"),
        (ROOMY, NONE, MemoryNeeds(29 * GIB, 0, 4), "memory", "warning"),
        (ROOMY, CgroupLimits(GIB, GIB // 2), MemoryNeeds(GIB // 2, 0, 1), "memory", "warning"),
        (ROOMY, CgroupLimits(8 * GIB, 0), USUAL, "clients' memory", "warning"),
        (Memory(32 * GIB, 30 * GIB, GIB, GIB // 2, 0, 0), NONE, USUAL, "swap", "warning"),
        (Memory(32 * GIB, 30 * GIB, 0, 0, 2, GIB), NONE, USUAL, "overcommit", "failure"),
        (Memory(32 * GIB, 30 * GIB, 0, 0, 2, 9 * GIB), NONE, USUAL, "overcommit", "warning"),
    ],
)
def test_memory_that_does_not(
    machine: Memory, cgroup: CgroupLimits, needs: MemoryNeeds, check: str, level: str
) -> None:
    finding = only(memory.check_memory(machine, cgroup, needs))
    assert (finding.check, finding.level) == (check, level)


def test_a_group_of_version_2(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/a/memory.current": "5\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/pids.max": "100\n",
        },
    )
    assert read_limits(tmp_path) == CgroupLimits(GIB, 5, 1.5, 100)


def test_groups_of_version_1_in_a_container(tmp_path: Path) -> None:
    """There a group's path is the host's, and what is mounted is the group itself."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "7\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(tmp_path) == CgroupLimits(GIB, 7, 0.5)


def test_groups_without_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == NONE
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n2:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        },
    )
    assert read_limits(tmp_path) == NONE


@pytest.mark.parametrize(
    ("machine", "cgroup", "threads", "expected"),
    [
        (Processors(8), NONE, [4, 4], {"processors": "ok", "threads": "ok"}),
        (Processors(8), NONE, [], {"processors": "ok"}),
        (Processors(8), NONE, [8, 8], {"processors": "ok", "threads": "warning"}),
        (Processors(8), NONE, [0, 1], {"processors": "ok", "threads": "warning"}),
        (Processors(8), CgroupLimits(cpus=2.5), [], {"processors": "warning"}),
        (
            Processors(8, ("powersave",), "acpi-cpufreq"),
            NONE,
            [],
            {"processors": "ok", "cpu governor": "warning"},
        ),
        (
            Processors(8, ("powersave",), "intel_pstate", "always", "always"),
            NONE,
            [],
            {"processors": "ok", "cpu governor": "ok", "huge pages": "warning"},
        ),
    ],
)
def test_processors(
    machine: Processors, cgroup: CgroupLimits, threads: list[int], expected: dict[str, str]
) -> None:
    assert levels(processors.check_processors(machine, cgroup, threads)) == expected


def test_processors_are_read(tmp_path: Path) -> None:
    cpu, huge = "sys/devices/system/cpu/cpu0/cpufreq/", "sys/kernel/mm/transparent_hugepage/"
    write(
        tmp_path,
        {
            cpu + "scaling_governor": "schedutil\n",
            cpu + "scaling_driver": "acpi-cpufreq\n",
            huge + "enabled": "always [madvise] never\n",
            huge + "defrag": "[always] defer never\n",
        },
    )
    found = processors.read_processors(tmp_path)
    assert found == Processors(found.usable, ("schedutil",), "acpi-cpufreq", "madvise", "always")


@pytest.mark.parametrize(
    ("source", "is_synchronised", "level"),
    [("tsc", True, "ok"), ("hpet", True, "warning"), ("", None, "ok"), ("tsc", False, "warning")],
)
def test_clock(source: str, is_synchronised: bool | None, level: str) -> None:
    assert levels(processors.check_clock(source, is_synchronised)) == {"clock": level}


def test_the_kernel_is_asked_for_the_clock() -> None:
    assert processors.is_clock_synchronised() in (True, False, None)


@pytest.mark.parametrize(
    ("given", "cgroup", "expected"),
    [
        (ProcessLimits(65536, -1, -1), NONE, {"open files": "ok"}),
        (ProcessLimits(-1, -1, -1), NONE, {"open files": "ok"}),
        (ProcessLimits(200, -1, -1), NONE, {"open files": "warning"}),
        (ProcessLimits(64, -1, -1), NONE, {"open files": "failure"}),
        (ProcessLimits(-1, GIB, -1), NONE, {"open files": "ok", "address space": "warning"}),
        (ProcessLimits(-1, -1, 50), NONE, {"open files": "ok", "threads' limit": "warning"}),
        (
            ProcessLimits(-1, -1, -1),
            CgroupLimits(pids=50),
            {"open files": "ok", "threads' limit": "warning"},
        ),
    ],
)
def test_limits(given: ProcessLimits, cgroup: CgroupLimits, expected: dict[str, str]) -> None:
    found = limits.check_limits(given, cgroup, local_clients=64, workers=2, processors=8)
    assert levels(found) == expected


def test_what_the_kernel_gives_here() -> None:
    assert (limits.try_shared_memory(), limits.try_process_handles()) == ("", "")
    assert limits.read_process_limits().open_files > 0


def test_what_a_kernel_refuses() -> None:
    assert only([limits.check_shared_memory("Operation not permitted")]).level == "failure"
    assert only([limits.check_process_handles("Function not implemented")]).level == "failure"
