"""Which card a worker gets by the name that its group gives, and which names are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.planned_machines import (
    FOUR,
    MIG,
    NEAR,
    NONE,
    TWO,
    assert_refused,
    group,
    plan,
    uuids,
)

from batchyard.pool.devices import WorkerGroup
from batchyard.pool.inventory import Inventory
from batchyard.wire.errors import ConfigurationError, DeviceAbsent


@pytest.mark.parametrize(
    ("device", "inventory", "may_come"),
    [
        ("gpu:0", Inventory(note="NVIDIA driver not loaded"), True),
        ("GPU-b", Inventory(TWO.gpus[:1], "GPU 1 left out: GPU is lost"), True),
        ("gpu:9", TWO, False),
        ("gpu", Inventory(note="NVIDIA driver not loaded"), False),
    ],
)
def test_a_device_may_come_that_nvml_does_not_tell_of(
    device: str, inventory: Inventory, may_come: bool
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan(WorkerGroup(device=device), inventory=inventory)
    assert isinstance(caught.value, DeviceAbsent) == may_come
    assert str(caught.value).startswith("pool.workers[0]: device")


# Which device


def test_gpu_n_counts_in_the_order_of_cuda_visible_devices() -> None:
    slots = plan(group("gpu:0"), group("gpu:1"), inventory=FOUR, visible="3,GPU-1")
    assert uuids(slots) == ["GPU-3abc", "GPU-1abc"]
    assert [slot.device for slot in slots] == ["gpu:0", "gpu:1"]
    by_uuid = plan(group("GPU-3abc"), group("GPU-1abc"), inventory=FOUR, visible="3,GPU-1")
    assert by_uuid == slots


def test_mig_instances_are_devices() -> None:
    assert uuids(plan(inventory=MIG)) == ["MIG-1", "MIG-2"]
    assert uuids(plan(group("MIG-2"), inventory=MIG)) == ["MIG-2"]
    assert uuids(plan(group("gpu:0"), inventory=MIG, visible="MIG-2,MIG-1")) == ["MIG-2"]


@pytest.mark.parametrize(
    ("device", "inventory", "uuid"),
    [
        ("GPU-2", FOUR, "GPU-2abc"),  # enough of it, as for CUDA
        ("GPU-2abc", FOUR, "GPU-2abc"),
        ("GPU-aa2", NEAR, "GPU-aa22"),
        ("MIG-GPU-a100/5/0", MIG, "MIG-2"),  # as before driver 470
        ("MIG-1", MIG, "MIG-1"),
    ],
)
def test_a_device_may_be_named_as_for_cuda(device: str, inventory: Inventory, uuid: str) -> None:
    assert uuids(plan(group(device), inventory=inventory)) == [uuid]


def test_the_beginning_of_a_uuid_is_of_those_that_are_visible() -> None:
    assert uuids(plan(group("GPU-aa"), inventory=NEAR, visible="1")) == ["GPU-aa22"]


def in_mode(mode: int, *, has_mps: bool = False) -> Inventory:
    """Four cards, the first in that compute mode."""
    first = replace(FOUR.gpus[0], compute_mode=mode)
    return Inventory((first, *FOUR.gpus[1:]), has_mps=has_mps)


@pytest.mark.parametrize("mode", [1, 3])
def test_an_exclusive_card_is_for_one_worker(mode: int) -> None:
    shared = group("gpu:0", 0.4, count=2)
    words = "2 workers on gpu:0 (|EXCLUSIVE_PROCESS|nvidia-smi -i GPU-0abc -c DEFAULT|mps-control"
    assert_refused("pool.workers[0]: ", words, shared, inventory=in_mode(mode))
    assert len(plan(shared, inventory=in_mode(mode, has_mps=True))) == 2
    (slot,) = plan(group("gpu:0", 0.4), inventory=in_mode(mode))
    # Its next process could not begin before it has ended.
    assert not slot.replaced_beside
    assert plan(group("gpu:0", 0.4), inventory=in_mode(mode, has_mps=True))[0].replaced_beside
    assert len(plan(group("gpu:1", 0.4, count=2), inventory=in_mode(mode))) == 2


def test_a_prohibited_card_is_for_nobody() -> None:
    words = "gpu:0 (|PROHIBITED|nvidia-smi -i GPU-0abc -c DEFAULT"
    for has_mps in (False, True):
        machine = in_mode(2, has_mps=has_mps)
        assert_refused("pool.workers[0]: ", words, group("gpu:0"), inventory=machine)
        assert len(plan(group("gpu:1"), inventory=machine)) == 1


def test_ids_go_on_over_groups() -> None:
    slots = plan(group("gpu:1"), group("cpu", 0.0, count=2), group("gpu:0", gpu_memory_growth=True))
    assert [slot.id for slot in slots] == [0, 1, 2, 3]
    assert [slot.device for slot in slots] == ["gpu:1", "cpu", "cpu", "gpu:0"]


@pytest.mark.parametrize(
    ("device", "machine", "words"),
    [
        ("gpu", {}, '"auto"|gpu:N'),
        ("", {}, 'device ""|"cpu"'),
        ("gpu:", {}, "gpu:N"),
        ("gpu:-1", {}, "gpu:N"),
        ("gpu:x", {}, "gpu:N"),
        ("gpu:٣", {}, "gpu:N"),  # a digit to str.isdigit(), not here
        ("gpu:0\n", {}, "gpu:N"),
        ("gpu:" + "9" * 5000, {}, "gpu:N"),
        ("cuda:0", {}, "cuda:0|gpu:N"),
        ("GPU-", {}, "GPU-…"),
        ("gpu:2", {}, "gpu:2|gpu:0 (NVIDIA V100, GPU-0abc, 32768 MiB), gpu:1 (NVIDIA V100, GPU-1"),
        ("gpu:1", {"visible": "0"}, "gpu:0 (|CUDA_VISIBLE_DEVICES='0'"),
        ("GPU-1abc", {"visible": "0"}, "GPU-1abc|gpu:0 (|CUDA_VISIBLE_DEVICES='0'"),
        ("GPU-0b", {}, "GPU-0b|GPU-0abc"),
        ("GPU-", {"inventory": FOUR, "visible": "0,1"}, "GPU-…"),
        ("GPU-a", {"inventory": NEAR}, "could be any of gpu:0 (|GPU-aa11|GPU-aa22"),
        ("MIG-GPU-a100/9/0", {"inventory": MIG}, "MIG-GPU-a100/9/0|MIG-1|MIG-2"),
        ("MIG-GPU-a100", {"inventory": MIG}, "MIG-GPU-a100|MIG-1|MIG-2"),
        ("MIG-", {"inventory": MIG}, "MIG-…"),
        ("MIG-7", {"inventory": MIG}, "MIG-7|MIG-1|MIG-2"),
        ("GPU-a100", {"inventory": MIG}, "MIG enabled|MIG-1, 19968 MiB|MIG-2, 9856 MiB"),
        ("gpu:0", {"inventory": NONE}, "NVML library not found"),
        ("gpu:0", {"visible": ""}, "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        ("gpu:1", {"inventory": Inventory(TWO.gpus[1:], "GPU 0 is lost")}, "GPU-1abc|0 is lost"),
    ],
)
def test_a_device_that_cannot_be_is_refused(
    device: str, machine: dict[str, Any], words: str
) -> None:
    assert_refused("pool.workers[1]: ", words, group("cpu"), group(device), **machine)


# How much of its memory
