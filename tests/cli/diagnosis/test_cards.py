"""Cards, drivers and device files of machines that are not here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.findings import levels, only

from batchyard.cli.diagnosis.cards import (
    Card,
    DeviceFiles,
    Driver,
    check_cards,
    check_cuda,
    check_xids,
)
from batchyard.cli.diagnosis.nvml import read_device_files, read_driver, read_xids
from batchyard.pool.inventory import Gpu, Inventory

TWO = Inventory((Gpu(0, "GPU-a", "A100", 40960), Gpu(1, "GPU-b", "A100", 40960)))
FILES = DeviceFiles(2, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"))
DRIVER = Driver("570.86", (12, 8), (Card(0, "A100", 1 << 34, 40 << 30, (7,), 0, 0, False),))


def test_two_cards_that_are_well() -> None:
    found = levels(check_cards(TWO, DRIVER, FILES, {}, wants_gpu=True))
    assert found == {
        "gpu driver": "ok",
        "gpus visible": "ok",
        "gpu device files": "ok",
        "gpu 0": "ok",
    }


@pytest.mark.parametrize(
    ("files", "note", "wants_gpu", "level", "says"),
    [
        (
            DeviceFiles(0),
            "NVML library not found: no NVIDIA driver",
            False,
            "ok",
            "none on the bus",
        ),
        (DeviceFiles(0), "NVML library not found", True, "failure", "NVML library not found"),
        (DeviceFiles(2), "NVIDIA driver not loaded", False, "warning", "2 NVIDIA cards are on"),
        (DeviceFiles(1), "NVIDIA driver not loaded", True, "failure", "driver not loaded"),
        (DeviceFiles(1), "bindings …: install nvidia-ml-py", True, "failure", "nvidia-ml-py"),
    ],
)
def test_no_card(files: DeviceFiles, note: str, wants_gpu: bool, level: str, says: str) -> None:
    (finding,) = check_cards(Inventory(note=note), Driver(), files, {}, wants_gpu)
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")
    assert says in finding.found


@pytest.mark.parametrize(
    ("setting", "level", "says"),
    [
        ("1", "ok", "1, of 2 cards, by CUDA_VISIBLE_DEVICES=1"),
        ("", "warning", "hides every GPU"),
        ("7", "warning", "hides every GPU"),
        ("1,7", "warning", "'7' names no GPU here and ends the list"),
    ],
)
def test_what_is_hidden(setting: str, level: str, says: str) -> None:
    findings = check_cards(TWO, DRIVER, FILES, {"CUDA_VISIBLE_DEVICES": setting}, False)
    (visible,) = (finding for finding in findings if finding.check == "gpus visible")
    assert visible.level == level
    assert says in visible.found


def test_files_that_are_refused_or_missing() -> None:
    refused = DeviceFiles(2, FILES.there, ("/dev/nvidiactl",))
    finding = only(check_cards(TWO, DRIVER, refused, {}, wants_gpu=True))
    assert (finding.level, finding.found) == ("failure", "/dev/nvidiactl: permission denied")
    missing = DeviceFiles(2, ("/dev/nvidia0", "/dev/nvidiactl"))
    assert "/dev/nvidia-uvm missing" in only(check_cards(TWO, DRIVER, missing, {}, False)).found


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"compute_mode": 3}, "exclusive"),
        ({"compute_mode": 2}, "prohibited"),
        ({"uncorrected_errors": 2}, "2 uncorrected ECC errors"),
        ({"retirement_pending": True}, "remapped"),
        ({"slowed_by": "too hot"}, "too hot"),
    ],
)
def test_a_card_that_is_not_well(state: dict[str, Any], says: str) -> None:
    driver = Driver("570.86", (12, 8), (Card(0, "A100", 1, 2, **state),))
    assert says in only(check_cards(TWO, driver, FILES, {}, wants_gpu=False)).found


def test_mps_is_who_uses_an_exclusive_card() -> None:
    driver = Driver("570.86", (12, 8), (Card(0, "A100", 1, 2, compute_mode=3),))
    with_mps = replace(TWO, has_mps=True)
    assert levels(check_cards(with_mps, driver, FILES, {}, wants_gpu=False))["gpu 0"] == "ok"


@pytest.mark.parametrize(
    ("cuda", "needed", "expected"),
    [
        ((12, 2), "12.5.1", {"cuda": "ok"}),
        ((11, 4), "12.5.1", {"cuda": "failure"}),
        ((12, 2), None, {}),
    ],
)
def test_cuda(cuda: tuple[int, int], needed: str | None, expected: dict[str, str]) -> None:
    assert levels(check_cuda(Driver("1", cuda), needed)) == expected


def test_errors_in_the_kernels_log(tmp_path: Path) -> None:
    assert check_xids(None) == check_xids([]) == []
    log = tmp_path / "kmsg"
    log.write_text("4,1,2,-;NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.\n")
    xids = read_xids(log)
    assert xids == ["Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."]
    assert "fallen off" in only(check_xids(xids)).found
    assert read_xids(tmp_path / "none") is None


def test_files_of_a_machine(tmp_path: Path) -> None:
    for address, vendor, kind in (("0", "0x10de", "0x030200"), ("1", "0x8086", "0x030000")):
        device = tmp_path / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    (tmp_path / "dev/nvidia-caps").mkdir(parents=True)
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (tmp_path / "dev" / name).touch()
    found = read_device_files(tmp_path)
    assert found == DeviceFiles(1, ("/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"))


class FakeNvml:
    """A card that answers some questions; to the others there is no answer."""

    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": b"535.1",
            "nvmlSystemGetCudaDriverVersion_v2": 12020,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": object(),
            "nvmlDeviceGetName": b"T4",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(free=5, total=9),
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=12)],
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x40,
            "nvmlDeviceGetComputeMode": 0,
            "nvmlDeviceGetTotalEccErrors": 3,
        }
        if name not in answers:
            raise AttributeError(name)
        return lambda *_: answers[name]


def test_nvml_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert read_driver() == Driver(
        "535.1", (12, 2), (Card(0, "T4", 5, 9, (12,), 0, 3, None, "too hot"),)
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_driver() == Driver()
