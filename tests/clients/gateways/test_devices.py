"""What NVML tells of GPUs, and what of it is told when NVML does not."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from batchyard.clients.gateways.devices import Devices

CARD, PART, GONE = "GPU-1", "MIG-2", "GPU-3"
NAMED = [("gpu:0", CARD), ("gpu:1", PART), ("gpu:2", GONE)]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a card, and a part of another."""

    def handle(uuid: str) -> str:
        if uuid == GONE:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def utilization(handle: str) -> SimpleNamespace:
        if handle == PART:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=37)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: f"name of {handle}")
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda _: SimpleNamespace(used=10, total=30)
    )
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilization)


def test_cards_and_parts_of_them(nvml: None) -> None:
    memory = {"memory_used_bytes": 10, "memory_bytes": 30}
    assert Devices(NAMED).read() == [
        {"device": "gpu:0", "name": "name of GPU-1", "utilization": 0.37, **memory},
        {"device": "gpu:1", "name": "name of MIG-2", "utilization": None, **memory},
    ]


def test_a_card_that_falls_off_is_told_no_more(nvml: None, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(NAMED)

    def lost(_: str) -> SimpleNamespace:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lost)
    assert devices.read() == []


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert Devices(NAMED).read() == []
    assert Devices([]).read() == []
