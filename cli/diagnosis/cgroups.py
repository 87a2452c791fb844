"""The limits that control groups, and so containers and systemd units, set on this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes a number near 2^63 for no limit.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """None is no limit. ``cpus`` may be a fraction, memory is in bytes."""

    memory: int | None = None
    memory_used: int | None = None
    cpus: float | None = None
    pids: int | None = None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest of each along the groups that this process is in."""
    memory: list[tuple[int, int | None]] = []
    cpus: list[float] = []
    pids: list[int] = []
    for folder in _folders(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None:
            used = _number(folder, "memory.current", "memory.usage_in_bytes")
            memory.append((limit, used))
    for folder in _folders(root, "cpu"):
        quota = _quota(folder)
        if quota is not None:
            cpus.append(quota)
    for folder in _folders(root, "pids"):
        limit = _number(folder, "pids.max")
        if limit is not None:
            pids.append(limit)
    limit, used = min(memory, key=lambda pair: pair[0], default=(None, None))
    return CgroupLimits(limit, used, min(cpus, default=None), min(pids, default=None))


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The group of this process for a controller, and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = mount
        elif controller in controllers.split(","):
            base = next((p for p in (mount / controller, mount / controllers) if p.is_dir()), mount)
        else:
            continue
        # In a container the path may be one of the host's, of which only the end is mounted.
        folder = base / path.strip("/")
        while folder != base:
            yield folder
            folder = folder.parent
        yield base


def _number(folder: Path, *names: str) -> int | None:
    for name in names:
        try:
            value = int((folder / name).read_text())
        except (OSError, ValueError):  # "max" is no number
            continue
        return value if value < _NO_LIMIT else None
    return None


def _quota(folder: Path) -> float | None:
    """The CPUs' worth of time that a group may use."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        one = _number(folder, "cpu.cfs_quota_us")
        other = _number(folder, "cpu.cfs_period_us")
        return one / other if one is not None and one > 0 and other else None
    return int(quota) / int(period) if quota != "max" else None
