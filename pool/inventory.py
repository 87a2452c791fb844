"""What GPUs this machine has, and which of them ``CUDA_VISIBLE_DEVICES`` leaves visible.

NVML is asked, not CUDA: it creates no context, so the supervisor takes no memory from any card.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from batchyard.pool.mps import read_mps

_MIB = 1024 * 1024
# A driver without persistence mode starts its cards first: seconds each.
_PATIENCE_S = 20.0
# How people name none.
_HIDING = ("", "-1", "NoDevFiles", "none", "void")


class ComputeMode(IntEnum):
    """Who may use a card, by NVML's numbers. CUDA says what it refuses when a worker loads."""

    DEFAULT = 0
    EXCLUSIVE_THREAD = 1
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


@dataclass(frozen=True)
class MigDevice:
    """One MIG instance of a card: its ``MIG-…`` UUID and its own memory in MiB.

    ``ids`` are those of its GPU instance and its compute instance, if they are known.
    """

    uuid: str
    memory_mb: int
    ids: tuple[int, int] | None = None


@dataclass(frozen=True)
class Gpu:
    """One card: its NVML index (PCI bus order), ``GPU-…`` UUID, name and total memory in MiB.

    ``mig`` holds its MIG instances. CUDA cannot use such a card as a whole, only its instances.
    """

    index: int
    uuid: str
    name: str
    memory_mb: int
    mig: tuple[MigDevice, ...] = ()
    compute_mode: int = ComputeMode.DEFAULT


@dataclass(frozen=True)
class Inventory:
    """The usable cards in PCI bus order; ``note`` says why there are none, or which were left out.

    A card that was left out keeps its index: the others are not renumbered. ``has_mps`` says
    whether workers will find NVIDIA's Multi-Process Service.
    """

    gpus: tuple[Gpu, ...] = ()
    note: str = ""
    has_mps: bool = False


@dataclass(frozen=True)
class VisibleDevice:
    """A GPU or MIG instance that CUDA may use.

    ``index`` is its place among them, from 0; ``card`` the UUID of the card that it is or is a
    part of; ``memory_mb`` its own memory in MiB. ``processes_max`` is how many processes may use
    it, None for any number. ``old_name`` is how drivers before 470 name a MIG instance: by its
    card, its GPU instance and its compute instance.
    """

    index: int
    uuid: str
    name: str
    memory_mb: int
    card: str
    processes_max: int | None = None
    old_name: str = ""

    @property
    def label(self) -> str:
        return f"gpu:{self.index}"

    def __str__(self) -> str:
        return f"{self.label} ({self.name}, {self.uuid}, {self.memory_mb} MiB)"


@dataclass(frozen=True)
class Visible:
    """What CUDA may use, in its order; ``note`` says why there is nothing, or why not more.

    ``wrong`` is what ``CUDA_VISIBLE_DEVICES`` says that can hardly be meant. ``may_come``: NVML did
    not tell of all that there may be.
    """

    devices: tuple[VisibleDevice, ...]
    note: str
    wrong: str = ""
    may_come: bool = False


def visible_devices(inventory: Inventory, environ: Mapping[str, str]) -> Visible:
    """The GPUs and MIG instances that CUDA may use, in the order of ``CUDA_VISIBLE_DEVICES``.

    Unset, that is all, in PCI order. As in CUDA, an index or a UUID (or a card's UUID's
    unambiguous beginning) names a device and the list ends at its first invalid entry; a device
    named twice voids the list. A MIG instance may also be named as before driver 470,
    ``MIG-GPU-…/1/0``. A card with MIG enabled stands for all its instances. Indices
    count in PCI order, also where CUDA_DEVICE_ORDER is not set to it: which card CUDA holds for
    the fastest, its own default, cannot be known here.

    Sources: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html
    and, for names given twice, ``_parse_visible_devices`` in PyTorch's ``torch/cuda/__init__.py``.
    """
    everything = [device for gpu in inventory.gpus for device in _expose(gpu)]
    value = environ.get("CUDA_VISIBLE_DEVICES")
    chosen, wrong = (everything, "") if value is None else _named(value, inventory)
    notes: list[str] = []
    if value is not None and everything:
        setting = f"CUDA_VISIBLE_DEVICES={value!r}"
        hidden = f"{setting} hides every GPU (this machine has {len(inventory.gpus)})"
        notes.append((f"by {setting}" if chosen else hidden) + (f": {wrong}" if wrong else ""))
    if inventory.note or not everything:
        notes.append(inventory.note or "this machine has none")
    most = {gpu.uuid: _processes_max(gpu, inventory.has_mps) for gpu in inventory.gpus}
    devices = (
        replace(device, index=index, processes_max=most[device.card])
        for index, device in enumerate(chosen)
    )
    return Visible(tuple(devices), "; ".join(notes), wrong, bool(inventory.note))


def _processes_max(gpu: Gpu, has_mps: bool) -> int | None:
    """How many processes may use a card. One that is exclusive, MPS alone uses, for all of them."""
    if gpu.compute_mode == ComputeMode.PROHIBITED:
        return 0
    return None if gpu.compute_mode == ComputeMode.DEFAULT or has_mps else 1


def _expose(gpu: Gpu) -> list[VisibleDevice]:
    """What CUDA can use of a card, not yet numbered."""
    if gpu.mig:
        name = f"{gpu.name} MIG"
        return [
            VisibleDevice(
                0, mig.uuid, name, mig.memory_mb, gpu.uuid, old_name=_old_name(gpu.uuid, mig.ids)
            )
            for mig in gpu.mig
        ]
    return [VisibleDevice(0, gpu.uuid, gpu.name, gpu.memory_mb, gpu.uuid)]


def _old_name(card: str, ids: tuple[int, int] | None) -> str:
    return f"MIG-{card}/{ids[0]}/{ids[1]}" if ids else ""


def _named(value: str, inventory: Inventory) -> tuple[list[VisibleDevice], str]:
    """The devices that it names, and what is wrong with it."""
    chosen: list[VisibleDevice] = []
    for entry in map(str.strip, value.split(",")):
        found = _resolve(entry, inventory)
        if not found:
            is_meant = entry in _HIDING or not inventory.gpus
            return chosen, "" if is_meant else f"{entry[:80]!r} names no GPU here and ends the list"
        if any(device in chosen for device in found):
            return [], f"{entry!r} names a GPU a second time, which voids the list"
        chosen += found
    return chosen, ""


def _resolve(entry: str, inventory: Inventory) -> list[VisibleDevice]:
    """What one entry of ``CUDA_VISIBLE_DEVICES`` names; nothing when it is invalid."""
    if entry.startswith("MIG-"):
        everything = [device for gpu in inventory.gpus for device in _expose(gpu)]
        return [device for device in everything if entry in (device.uuid, device.old_name)]
    if entry.startswith("GPU-"):
        cards = [gpu for gpu in inventory.gpus if gpu.uuid.startswith(entry)]
    elif re.fullmatch(r"[0-9]{1,9}", entry):
        cards = [gpu for gpu in inventory.gpus if gpu.index == int(entry)]
    else:
        return []
    return _expose(cards[0]) if len(cards) == 1 else []


_asking: list[threading.Thread] = []


def read_inventory(patience_s: float = _PATIENCE_S) -> Inventory:
    """The GPUs of this machine. Never raises: what went wrong stands in the ``note``.

    A driver that hangs, as when a card fell off the bus, is given up after ``patience_s``; as long
    as it hangs it is not asked again.
    """
    found: list[Inventory] = []
    if not any(thread.is_alive() for thread in _asking):
        thread = threading.Thread(target=lambda: found.append(_ask()), name="nvml", daemon=True)
        _asking[:] = [thread]
        # It may stay. Signals are for threads that take them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        thread.join(patience_s)
    hangs = f"NVML does not answer within {patience_s:g} s: the driver hangs, dmesg may say why"
    return found[0] if found else Inventory(note=hangs)


def _ask() -> Inventory:
    try:
        import pynvml  # only a server needs it, and only here
    except Exception as error:  # a broken installation can raise anything, and must not stop a CPU
        return Inventory(note=f"NVML bindings do not import ({error}): install nvidia-ml-py")
    return _read(pynvml)


def _read(nvml: Any) -> Inventory:
    try:
        nvml.nvmlInit()
    except Exception as error:
        return Inventory(note=_why_no_nvml(nvml, error))
    try:
        return _read_cards(nvml)
    except Exception as error:
        return Inventory(note=f"NVML does not list the GPUs: {error}")
    finally:
        with contextlib.suppress(Exception):  # the answer is known; nothing depends on this call
            nvml.nvmlShutdown()


def _read_cards(nvml: Any) -> Inventory:
    gpus: list[Gpu] = []
    notes: list[str] = []
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        try:
            gpu, note = _read_card(nvml, index)
        except Exception as error:  # one lost card must not hide the healthy ones
            notes.append(f"GPU {index} left out: {error}")
            continue
        if gpu is None:
            notes.append(note)
        else:
            gpus.append(gpu)
    if count == 0:
        notes.append("NVML reports no GPU")
    return Inventory(tuple(gpus), "; ".join(notes), read_mps(os.environ).is_there)


def _read_card(nvml: Any, index: int) -> tuple[Gpu | None, str]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    name = _text(nvml.nvmlDeviceGetName(handle))
    memory_mb = _memory_mb(nvml, handle)
    mode = _compute_mode(nvml, handle)
    if not _mig_enabled(nvml, handle):
        return Gpu(index, uuid, name, memory_mb, compute_mode=mode), ""
    mig = _read_mig(nvml, handle)
    if not mig:
        return None, f"GPU {index} left out: MIG is enabled on it ({uuid}), but it has no instance"
    return Gpu(index, uuid, name, memory_mb, mig, mode), ""


def _compute_mode(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetComputeMode(handle))
    except Exception:  # what a driver or its binding does not know, it does not enforce
        return ComputeMode.DEFAULT


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # "Not Supported" on most cards, "Function Not Found" on old drivers
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _read_mig(nvml: Any, handle: Any) -> tuple[MigDevice, ...]:
    devices: list[MigDevice] = []
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except nvml.NVMLError:  # the count is that of possible instances; this slot has none
            continue
        uuid = _text(nvml.nvmlDeviceGetUUID(mig))
        devices.append(MigDevice(uuid, _memory_mb(nvml, mig), _mig_ids(nvml, mig)))
    return tuple(devices)


def _mig_ids(nvml: Any, mig: Any) -> tuple[int, int] | None:
    try:
        gpu_instance = int(nvml.nvmlDeviceGetGpuInstanceId(mig))
        return gpu_instance, int(nvml.nvmlDeviceGetComputeInstanceId(mig))
    except Exception:  # they only matter to who names an instance by them
        return None


def _memory_mb(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB


def _text(value: str | bytes) -> str:
    """The bindings' older releases answer bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _why_no_nvml(nvml: Any, error: Exception) -> str:
    value = getattr(error, "value", None)
    if value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "NVML library not found: no NVIDIA driver"
    if value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "NVIDIA driver not loaded"
    return f"NVML does not start: {error}"
