"""What NVML reports, and what CUDA_VISIBLE_DEVICES leaves of it.

No card is here, so a module of a few lines stands for NVML where cards are needed.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.pool.inventory import (
    Gpu,
    Inventory,
    MigDevice,
    read_inventory,
    visible_devices,
)

MIB = 1024 * 1024


class FakeNvmlError(Exception):
    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


@dataclass
class Card:
    """A card, or an instance of one, as NVML would answer for it."""

    uuid: str | bytes
    name: str | bytes = "NVIDIA Tesla V100"
    memory_mb: int = 32768
    mig_enabled: bool = False
    instances: list[Card | None] = field(default_factory=list)
    broken: str = ""


class FakeNvml(ModuleType):
    """The part of pynvml that the inventory uses."""

    NVMLError = FakeNvmlError
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, cards: list[Card], init_error: Exception | None = None) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.init_error = init_error
        self.shutdowns = 0
        self.shutdown_error: Exception | None = None

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as are those below
        if self.init_error is not None:
            raise self.init_error

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shutdowns += 1
        if self.shutdown_error is not None:
            raise self.shutdown_error

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        card = self.cards[index]
        if card.broken:
            raise FakeNvmlError(15, card.broken)
        return card

    def nvmlDeviceGetUUID(self, card: Card) -> str | bytes:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str | bytes:  # noqa: N802
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        return SimpleNamespace(total=card.memory_mb * MIB + MIB // 2)

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:  # noqa: N802
        if "V100" in str(card.name):
            raise FakeNvmlError(3, "Not Supported")
        return [int(card.mig_enabled), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return len(card.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, slot: int) -> Card:  # noqa: N802
        instance = card.instances[slot]
        if instance is None:
            raise FakeNvmlError(6, "Not Found")
        return instance


def install(monkeypatch: pytest.MonkeyPatch, *cards: Card, **options: Any) -> FakeNvml:
    nvml = FakeNvml(list(cards), **options)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_this_machine_is_read_without_raising() -> None:
    inventory = read_inventory()
    assert inventory.gpus or inventory.note


def test_bindings_that_are_not_installed_leave_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    inventory = read_inventory()
    assert inventory.gpus == ()
    assert "nvidia-ml-py" in inventory.note


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FakeNvmlError(12, "Shared Library Not Found"), "NVML library not found: no NVIDIA driver"),
        (FakeNvmlError(9, "Driver Not Loaded"), "driver not loaded"),
        (FakeNvmlError(18, "RM version mismatch"), "RM version mismatch"),
        (OSError("libnvidia-ml.so: bad ELF header"), "bad ELF header"),
    ],
)
def test_nvml_that_does_not_start_leaves_a_note(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    nvml = install(monkeypatch, init_error=error)
    inventory = read_inventory()
    assert inventory.gpus == ()
    assert words in inventory.note
    assert nvml.shutdowns == 0  # what did not start is not ended


def test_cards_come_in_nvml_order_with_text_and_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(
        monkeypatch,
        Card(b"GPU-bbbb", b"NVIDIA Tesla V100", 16384),
        Card("GPU-aaaa", "NVIDIA L4", 23034),
    )
    assert read_inventory() == Inventory(
        (Gpu(0, "GPU-bbbb", "NVIDIA Tesla V100", 16384), Gpu(1, "GPU-aaaa", "NVIDIA L4", 23034))
    )
    assert nvml.shutdowns == 1


def test_mig_instances_are_listed_and_empty_slots_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = [Card(b"MIG-1", memory_mb=4864), None, Card("MIG-2", memory_mb=9856)]
    card = Card("GPU-a", "NVIDIA A100", 40960, mig_enabled=True, instances=instances)
    install(monkeypatch, card)
    mig = (MigDevice("MIG-1", 4864), MigDevice("MIG-2", 9856))
    assert read_inventory() == Inventory((Gpu(0, "GPU-a", "NVIDIA A100", 40960, mig),))


def test_a_card_with_mig_but_no_instance_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card("GPU-a", "NVIDIA A100", 40960, mig_enabled=True, instances=[None, None])
    install(monkeypatch, card)
    inventory = read_inventory()
    assert inventory.gpus == ()
    assert "MIG is enabled" in inventory.note
    assert "GPU-a" in inventory.note


def test_a_broken_card_does_not_hide_or_renumber_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = install(monkeypatch, Card("GPU-a", broken="GPU is lost"), Card("GPU-b"))
    inventory = read_inventory()
    assert [(gpu.index, gpu.uuid) for gpu in inventory.gpus] == [(1, "GPU-b")]
    assert "GPU 0" in inventory.note
    assert "GPU is lost" in inventory.note
    assert nvml.shutdowns == 1


def test_no_card_at_all_leaves_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert read_inventory() == Inventory(note="NVML reports no GPU")


def test_a_failing_count_is_noted_and_nvml_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch)

    def refuse() -> int:
        raise FakeNvmlError(4, "Insufficient Permissions")

    nvml.nvmlDeviceGetCount = refuse  # type: ignore[method-assign]
    inventory = read_inventory()
    assert inventory.gpus == ()
    assert "Insufficient Permissions" in inventory.note
    assert nvml.shutdowns == 1


def test_a_driver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, Card("GPU-a"))
    answers, asked = threading.Event(), []

    def hang() -> int:
        asked.append(threading.current_thread())
        answers.wait(10)
        return 1

    nvml.nvmlDeviceGetCount = hang  # type: ignore[method-assign]
    assert "NVML does not answer within 0.01 s" in read_inventory(0.01).note
    assert "NVML does not answer" in read_inventory(0.01).note
    assert len(asked) == 1
    answers.set()
    asked[0].join()
    assert [gpu.uuid for gpu in read_inventory().gpus] == ["GPU-a"]


def test_a_failing_shutdown_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, Card("GPU-a"))
    nvml.shutdown_error = FakeNvmlError(999, "Unknown Error")
    assert [gpu.uuid for gpu in read_inventory().gpus] == ["GPU-a"]


A100 = Gpu(
    index=2,
    uuid="GPU-ccdd",
    name="NVIDIA A100",
    memory_mb=40960,
    mig=(MigDevice("MIG-1", 19968, (1, 0)), MigDevice("MIG-2", 19968, (2, 1))),
)
MIXED = Inventory(
    (
        Gpu(0, "GPU-aa11", "NVIDIA V100", 32768),
        Gpu(1, "GPU-aa22", "NVIDIA V100", 32768),
        A100,
        Gpu(3, "GPU-eeff", "NVIDIA L4", 23034),
    )
)


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "MIG-1", "MIG-2", "GPU-eeff"]),
        ("3,0", ["GPU-eeff", "GPU-aa11"]),
        (" 3 , 0 ", ["GPU-eeff", "GPU-aa11"]),
        ("2", ["MIG-1", "MIG-2"]),
        ("GPU-ccdd,1", ["MIG-1", "MIG-2", "GPU-aa22"]),
        ("MIG-2,3", ["MIG-2", "GPU-eeff"]),
        ("GPU-aa2", ["GPU-aa22"]),
        ("GPU-e,GPU-aa11", ["GPU-eeff", "GPU-aa11"]),
        ("GPU-aa", []),  # ambiguous
        ("GPU-zz", []),
        ("MIG-", []),  # CUDA abbreviates cards only
        ("MIG-9,0", []),
        ("MIG-GPU-ccdd/2/1,3", ["MIG-2", "GPU-eeff"]),  # as before driver 470
        ("MIG-GPU-ccdd/2/0", []),
        ("MIG-GPU-ccdd", []),
        ("MIG-1,MIG-GPU-ccdd/1/0", []),  # twice the same
        ("mig-1", []),
        ("gpu-eeff", []),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
        ("0,-1,1", ["GPU-aa11"]),
        ("1,9,0", ["GPU-aa22"]),
        ("1,,0", ["GPU-aa22"]),
        ("0,NoDevFiles", ["GPU-aa11"]),
        ("0,1,0", []),
        ("0,GPU-aa11", []),
        ("2,MIG-1", []),
        ("9" * 5000, []),
        ("²", []),  # a digit to str.isdigit(), not to int()
    ],
)
def test_cuda_visible_devices_chooses_and_orders(value: str | None, uuids: list[str]) -> None:
    visible = visible_devices(MIXED, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [device.uuid for device in visible.devices] == uuids
    assert [device.index for device in visible.devices] == list(range(len(uuids)))
    assert (visible.note == "") == (value is None)
    assert ("hides every GPU" in visible.note) == (value is not None and not uuids)


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (None, ""),
        ("", ""),
        ("-1", ""),
        ("0,-1,1", ""),
        ("0,1", ""),
        ("0,9,1", "'9' names no GPU here and ends the list"),
        ("0;1", "'0;1' names no GPU here and ends the list"),
        ("gpu:0", "'gpu:0' names no GPU here and ends the list"),
        ("0,GPU-aa11", "'GPU-aa11' names a GPU a second time, which voids the list"),
    ],
)
def test_what_can_hardly_be_meant_is_said(value: str | None, wrong: str) -> None:
    visible = visible_devices(MIXED, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert visible.wrong == wrong
    assert wrong in visible.note


NAMES = ["0", "3", "9", "-1", "GPU-", "GPU-aa", "GPU-aa11", "MIG-1", "MIG-GPU-ccdd/1/0", "/", " "]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(NAMES) | st.text(max_size=8), max_size=5).map(",".join))
def test_whatever_the_variable_says_no_device_comes_twice(value: str) -> None:
    devices = visible_devices(MIXED, {"CUDA_VISIBLE_DEVICES": value}).devices
    assert len({device.uuid for device in devices}) == len(devices)
    # What CUDA would read of it begins the same, whatever follows.
    more = visible_devices(MIXED, {"CUDA_VISIBLE_DEVICES": f"{value},none,2"}).devices
    assert more == devices


def test_a_mig_instance_has_its_own_memory_and_its_card() -> None:
    device = visible_devices(MIXED, {"CUDA_VISIBLE_DEVICES": "MIG-2"}).devices[0]
    assert (device.memory_mb, device.card, device.label) == (19968, "GPU-ccdd", "gpu:0")
    assert str(device) == "gpu:0 (NVIDIA A100 MIG, MIG-2, 19968 MiB)"


def test_indices_are_nvml_s_also_when_a_card_was_left_out() -> None:
    inventory = Inventory((Gpu(1, "GPU-b", "NVIDIA L4", 23034),), "GPU 0 left out: GPU is lost")
    hidden = visible_devices(inventory, {"CUDA_VISIBLE_DEVICES": "0"})
    assert hidden.devices == ()
    assert "GPU is lost" in hidden.note
    shown = visible_devices(inventory, {"CUDA_VISIBLE_DEVICES": "1"})
    assert [device.label for device in shown.devices] == ["gpu:0"]


@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": "0"}])
def test_a_machine_without_gpus_says_why(environ: dict[str, str]) -> None:
    assert visible_devices(Inventory(note="no driver"), environ).note == "no driver"
    assert visible_devices(Inventory(), environ).note == "this machine has none"
