"""Asks NVML, /dev and the kernel's log about NVIDIA cards. What a machine does not say is None."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from batchyard.cli.diagnosis.cards import Card, DeviceFiles, Driver

T = TypeVar("T")

_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_KMSG_NBYTES = 8192
_NEEDED_FILES = ("nvidiactl", "nvidia-uvm")


def read_driver() -> Driver:
    """The driver and the state of its cards; nothing without NVML."""
    try:
        import pynvml
    except Exception:  # a broken installation can raise anything
        return Driver()
    try:
        pynvml.nvmlInit()
    except Exception:
        return Driver()
    try:
        return _read_driver(pynvml)
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _read_driver(nvml: Any) -> Driver:
    cuda = _ask(nvml.nvmlSystemGetCudaDriverVersion_v2) or 0
    count = _ask(nvml.nvmlDeviceGetCount) or 0
    cards = [_ask(functools.partial(_read_card, nvml, index)) for index in range(count)]
    return Driver(
        version=_text(_ask(nvml.nvmlSystemGetDriverVersion) or ""),
        # 12080 is 12.8.
        cuda=(cuda // 1000, cuda % 1000 // 10),
        cards=tuple(card for card in cards if card is not None),
    )


def _read_card(nvml: Any, index: int) -> Card:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    # Named nvmlClocksThrottleReason… before driver 535.
    reasons = _ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    slowdowns = {
        "too hot": getattr(nvml, "nvmlClocksThrottleReasonHwThermalSlowdown", 0x40),
        "too little power": getattr(nvml, "nvmlClocksThrottleReasonHwPowerBrakeSlowdown", 0x80),
    }
    return Card(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        free=int(memory.free),
        total=int(memory.total),
        users=tuple(
            process.pid
            for process in _ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        ),
        compute_mode=_ask(lambda: int(nvml.nvmlDeviceGetComputeMode(handle))),
        uncorrected_errors=_ask(
            lambda: int(
                nvml.nvmlDeviceGetTotalEccErrors(
                    handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            )
        ),
        retirement_pending=_ask(lambda: bool(nvml.nvmlDeviceGetRemappedRows(handle)[2])),
        slowed_by=", ".join(why for why, bit in slowdowns.items() if reasons & bit),
    )


def _ask(question: Callable[[], T]) -> T | None:
    """NVML's answer; None where the card, the driver or the binding has none."""
    try:
        return question()
    except Exception:
        return None


def _text(value: str | bytes) -> str:
    """The bindings' older releases answer bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_device_files(root: Path = Path("/")) -> DeviceFiles:
    """NVIDIA's display controllers on the PCI bus, and the files by which CUDA reaches them."""
    names = sorted(
        path.name
        for path in (root / "dev").glob("nvidia*")
        if path.name in _NEEDED_FILES or path.name.removeprefix("nvidia").isdecimal()
    )
    refused = [name for name in names if not os.access(root / "dev" / name, os.R_OK | os.W_OK)]
    return DeviceFiles(
        on_bus=sum(_is_card(device) for device in (root / "sys/bus/pci/devices").glob("*")),
        there=tuple(f"/dev/{name}" for name in names),
        refused=tuple(f"/dev/{name}" for name in refused),
    )


def _is_card(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor.strip() == _NVIDIA and kind.startswith(_DISPLAY_CLASS)


def read_xids(path: Path = Path("/dev/kmsg")) -> list[str] | None:
    """Errors that NVIDIA's driver wrote to the kernel's log; None when it may not be read."""
    xids = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # One record a read, until there is no more.
        while record := _next_record(fd):
            text = record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]
            if "NVRM: Xid" in text:
                xids.append(text.partition("NVRM: ")[2])
    except OSError:
        return None
    finally:
        os.close(fd)
    return xids


def _next_record(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _KMSG_NBYTES)
        except BlockingIOError:
            return b""
        except BrokenPipeError:
            # It was overwritten meanwhile; the next read has what is there now.
            continue
