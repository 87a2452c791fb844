"""NVIDIA cards: the driver, the device files, what is visible, and how healthy they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchyard.cli.diagnosis.finding import Finding, failure, mebibytes, ok, warning
from batchyard.pool.inventory import ComputeMode, Inventory, Visible, visible_devices

_CONTAINER = "in a container it takes the NVIDIA container toolkit and --gpus all"


@dataclass(frozen=True, slots=True)
class Card:
    """One card's state, as NVML says; None where it does not.

    ``users`` are processes that compute on it. ``compute_mode`` is NVML's: 0 lets any number of
    them share the card. ``slowed_by`` is why the hardware has slowed down.
    """

    index: int
    name: str
    free: int
    total: int
    users: tuple[int, ...] = ()
    compute_mode: int | None = None
    uncorrected_errors: int | None = None
    retirement_pending: bool | None = None
    slowed_by: str = ""


@dataclass(frozen=True, slots=True)
class Driver:
    """Versions as NVML says: ``570.86.15``, and the CUDA that it is made for, (12, 8)."""

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFiles:
    """How many NVIDIA cards are on the PCI bus, and files of /dev that this user may not use."""

    on_bus: int
    there: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def check_cards(
    inventory: Inventory,
    driver: Driver,
    files: DeviceFiles,
    environ: Mapping[str, str],
    wants_gpu: bool,
) -> list[Finding]:
    """``wants_gpu``: the configuration has workers on GPUs, so that it fails without."""
    if not inventory.gpus:
        return [_check_absence(inventory, files, wants_gpu)]
    visible = visible_devices(inventory, environ)
    findings = [
        ok("gpu driver", f"{driver.version}, for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}"),
        _check_visible(inventory, visible, environ, wants_gpu),
        _check_files(files, wants_gpu),
    ]
    for card in driver.cards:
        findings += _check_health(card, inventory.has_mps)
    return [finding for finding in findings if finding is not None]


def _check_absence(inventory: Inventory, files: DeviceFiles, wants_gpu: bool) -> Finding:
    found = inventory.note or "NVML reports no GPU"
    if not files.on_bus:
        if wants_gpu:
            remedy = f'Run it where a card is, or with device = "cpu"; {_CONTAINER}.'
            return failure("gpu", found, remedy)
        return ok("gpu", f"none on the bus ({found}): workers run on the CPU")
    level = failure if wants_gpu else warning
    found = f"{files.on_bus} NVIDIA cards are on the bus, but: {found}"
    if "nvidia-ml-py" in inventory.note:
        return level("gpu", found, "pip install 'batchyard[gpu]'.")
    remedy = f"Install NVIDIA's driver and load it (nvidia-smi tells more); {_CONTAINER}."
    return level("gpu", found, remedy)


def _check_visible(
    inventory: Inventory, visible: Visible, environ: Mapping[str, str], wants_gpu: bool
) -> Finding:
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    names = ", ".join(str(device) for device in visible.devices)
    if not visible.devices:
        level = failure if wants_gpu else warning
        remedy = "Unset CUDA_VISIBLE_DEVICES, or name indices or UUIDs that nvidia-smi -L lists."
        return level("gpus visible", visible.note, remedy)
    if inventory.note:
        remedy = "See nvidia-smi; a card with MIG enabled needs instances (nvidia-smi mig -cgi)."
        return warning("gpus visible", f"{names}; {inventory.note}", remedy)
    hidden = f", by CUDA_VISIBLE_DEVICES={setting}" if setting is not None else ""
    found = f"{len(visible.devices)}, of {len(inventory.gpus)} cards{hidden}: {names}"
    if visible.wrong:
        remedy = "Name indices or UUIDs that nvidia-smi -L lists, with commas between them."
        return warning("gpus visible", f"{found}; {visible.wrong}", remedy)
    return ok("gpus visible", found)


def _check_files(files: DeviceFiles, wants_gpu: bool) -> Finding:
    check = "gpu device files"
    level = failure if wants_gpu else warning
    if files.refused:
        remedy = (
            "Let this user read and write them (the group that owns them, systemd: DeviceAllow=, a "
            "container: --gpus all)."
        )
        return level(check, f"{', '.join(files.refused)}: permission denied", remedy)
    missing = [name for name in ("/dev/nvidiactl", "/dev/nvidia-uvm") if name not in files.there]
    if missing:
        remedy = "nvidia-modprobe -u -c 0 makes them; a container gets them by --gpus all."
        return level(check, f"{' and '.join(missing)} missing: CUDA does not start", remedy)
    return ok(check, ", ".join(files.there))


def _check_health(card: Card, has_mps: bool) -> list[Finding]:
    check = f"gpu {card.index}"
    findings = []
    default = f"nvidia-smi -i {card.index} -c DEFAULT"
    if card.compute_mode == ComputeMode.PROHIBITED:
        found = "prohibited: CUDA lets no process use the card"
        findings.append(warning(check, found, f"{default}."))
    elif card.compute_mode not in (None, ComputeMode.DEFAULT) and not has_mps:
        remedy = f"{default}, or MPS (docs/gpu.md), or one worker on it and nobody else."
        findings.append(warning(check, "exclusive: only one process may use the card", remedy))
    if card.uncorrected_errors:
        remedy = "Drain it and reset it (nvidia-smi -r); replace the card if they come back."
        found = f"{card.uncorrected_errors} uncorrected ECC errors since the driver was loaded"
        findings.append(warning(check, found, remedy))
    if card.retirement_pending:
        remedy = f"Reset the card when it is idle: nvidia-smi -i {card.index} -r."
        findings.append(warning(check, "memory rows wait to be remapped", remedy))
    if card.slowed_by:
        remedy = "Look at its cooling and power (nvidia-smi -q -d TEMPERATURE,POWER)."
        findings.append(warning(check, f"the hardware has slowed down: {card.slowed_by}", remedy))
    memory = f"{mebibytes(card.free)} of {mebibytes(card.total)} free"
    users = f", used by process {', '.join(map(str, card.users))}" if card.users else ""
    return findings or [ok(check, f"{card.name}, healthy, {memory}{users}")]


def check_cuda(driver: Driver, tensorflow_cuda: str | None) -> list[Finding]:
    """Whether the driver runs what TensorFlow was built with: the same major version does.

    Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
    """
    if not driver.version or not tensorflow_cuda:
        return []
    needed = int(tensorflow_cuda.partition(".")[0])
    found = f"the driver is made for CUDA {driver.cuda[0]}, TensorFlow for {tensorflow_cuda}"
    if driver.cuda[0] < needed:
        return [failure("cuda", found, f"Install a driver for CUDA {needed} or newer.")]
    return [ok("cuda", found)]


def check_xids(xids: Sequence[str] | None) -> list[Finding]:
    """``xids`` are the errors that the driver wrote to the kernel's log; None: not readable."""
    if not xids:
        return []
    remedy = (
        "Look them up (docs.nvidia.com/deploy/xid-errors); 48, 63, 64, 74, 79, 94, 95 are hardware."
    )
    return [warning("gpu errors", f"{len(xids)} in the kernel's log, last: {xids[-1]}", remedy)]
