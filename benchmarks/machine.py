"""What a measurement ran on: printed beside every figure."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("batchyard", "numpy", "pyzmq", "msgpack", "tensorflow-cpu", "tensorflow")


def describe() -> dict[str, str]:
    """The processor, its cores, and the versions of what matters."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "kernel": platform.release(),
        **versions,
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
