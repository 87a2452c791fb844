"""Plans for machines that are not here: memory, processors, who shares what."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planned_machines import (
    CPUS,
    FOUR,
    GROWTH,
    LIMIT,
    MIG,
    NONE,
    TWO,
    assert_refused,
    group,
    plan,
)

from batchyard.pool.devices import WorkerGroup, WorkerSlot, plan_workers
from batchyard.pool.inventory import Inventory, visible_devices
from batchyard.wire.errors import ConfigurationError


@pytest.mark.parametrize("groups", [(), (WorkerGroup(),)])
def test_no_group_is_one_auto_group_on_every_gpu(groups: tuple[WorkerGroup, ...]) -> None:
    slots = plan(*groups)
    for index, slot in enumerate(slots):
        uuid = f"GPU-{index}abc"
        note = f"auto: 2 GPU visible, using gpu:{index} (NVIDIA V100, {uuid}, 32768 MiB)"
        binding = {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        device = f"gpu:{index}"
        assert slot == WorkerSlot(index, device, binding, None, False, 0, 0, None, 1, False, note)
    assert len(slots) == 2


def test_auto_takes_the_cpu_and_says_why() -> None:
    (slot,) = plan(inventory=NONE)
    note = "auto: no GPU visible (NVML library not found: no NVIDIA driver), using cpu"
    only_cpu = {"CUDA_VISIBLE_DEVICES": "-1"}
    assert slot == WorkerSlot(0, "cpu", only_cpu, None, False, 8, 0, None, 1, True, note)


def test_auto_takes_the_cpu_when_the_environment_hides_the_gpus() -> None:
    (slot,) = plan(visible="-1")
    assert "CUDA_VISIBLE_DEVICES='-1' hides every GPU (this machine has 2)), using" in slot.note


@pytest.mark.parametrize("settings", [{"fraction": 0.4}, GROWTH, LIMIT])
def test_auto_on_the_cpu_ignores_gpu_settings_and_says_so(settings: dict[str, Any]) -> None:
    slots = plan(group(count=3, **settings), inventory=NONE)
    assert [slot.device for slot in slots] == ["cpu"] * 3
    assert "does not apply" in slots[0].note
    assert (slots[0].memory_limit_mb, slots[0].memory_growth) == (None, False)
    assert slots[0].environment == {"CUDA_VISIBLE_DEVICES": "-1"}


@pytest.mark.parametrize(
    ("settings", "limit_mb", "growth", "forced"),
    [
        ({}, None, False, None),
        ({"fraction": 0.0}, None, False, None),
        ({"fraction": 0.3}, math.floor(0.3 * 32768), False, "false"),
        ({"fraction": 1.0}, 32768, False, "false"),
        ({"gpu_memory_limit_mb": 8192}, 8192, False, "false"),
        ({"gpu_memory_limit_mb": 32768}, 32768, False, "false"),
        ({"gpu_memory_growth": True}, None, True, "true"),
        ({"fraction": 0.0, "gpu_memory_growth": True}, None, True, "true"),
        ({"fraction": 0.0, "gpu_memory_limit_mb": 1}, 1, False, "false"),
    ],
)
def test_memory_settings(
    settings: dict[str, Any], limit_mb: int | None, growth: bool, forced: str | None
) -> None:
    (slot,) = plan(group("gpu:0", **settings))
    assert (slot.memory_limit_mb, slot.memory_growth) == (limit_mb, growth)
    assert slot.environment.get("TF_FORCE_GPU_ALLOW_GROWTH") == forced


def test_a_fraction_of_a_mig_instance_is_of_its_own_memory() -> None:
    slots = plan(group(fraction=0.5, count=2), inventory=MIG)
    assert [slot.device for slot in slots] == ["gpu:0", "gpu:0", "gpu:1", "gpu:1"]
    assert [slot.memory_limit_mb for slot in slots] == [9984, 9984, 4928, 4928]


def test_a_sum_of_one_fits_each_card() -> None:
    assert len(plan(group("gpu:0", fraction=0.8), group("gpu:1", fraction=0.8))) == 2
    assert len(plan(group("gpu:0", count=10, fraction=0.1))) == 10
    assert len(plan(*[group("gpu:0", fraction=f) for f in (0.1, 0.2, 0.3, 0.4)])) == 4


@pytest.mark.parametrize(
    ("groups", "promised"),
    [
        ([group("gpu:0", 0.25, count=4)], "1"),
        ([group("gpu:0", 0.5), group("gpu:0", gpu_memory_limit_mb=16000)], "0.9883"),
        ([group("gpu:0", 1.0)], "1"),
        ([group("gpu:0", 0.24, count=4)], ""),
        ([group("gpu:0", gpu_memory_growth=True, count=4)], ""),
        ([group("gpu:0")], ""),
    ],
)
def test_shares_that_leave_no_room_for_contexts_are_noted(
    groups: list[WorkerGroup], promised: str
) -> None:
    hint = f"; {promised} of its memory is promised, and each process's CUDA context"
    for slot in plan(*groups):
        assert (hint in slot.note) == bool(promised)
        assert ("promised" in slot.note) == bool(promised)


def test_growth_may_share_with_limits_up_to_the_whole_card() -> None:
    slots = plan(
        group("gpu:0", gpu_memory_growth=True, count=2),
        group("gpu:0", fraction=0.5),
        group("GPU-0abc", gpu_memory_limit_mb=16384),
    )
    assert [slot.memory_limit_mb for slot in slots] == [None, None, 16384, 16384]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fraction": -0.1}, "per_process_gpu_memory_fraction = -0.1|0 to 1"),
        ({"fraction": 1.1}, "per_process_gpu_memory_fraction = 1.1|0 to 1"),
        ({"fraction": math.nan}, "nan|0 to 1"),
        ({"fraction": 1e-7}, "1e-07|less than 1 MiB"),
        ({"gpu_memory_limit_mb": 0}, "gpu_memory_limit_mb = 0|at least 1"),
        ({"gpu_memory_limit_mb": 32769}, "32769|at most 32768|GPU-0abc"),
        ({"fraction": 0.5} | GROWTH, "per_process_gpu_memory_fraction and gpu_memory_growth|keep"),
        ({"fraction": 0.5} | LIMIT, "per_process_gpu_memory_fraction and gpu_memory_limit_mb|keep"),
        (GROWTH | LIMIT, "gpu_memory_growth and gpu_memory_limit_mb|keep one"),
    ],
)
@pytest.mark.parametrize("device", ["gpu:0", "auto"])
def test_memory_settings_that_cannot_work_are_refused(
    device: str, settings: dict[str, Any], words: str
) -> None:
    assert_refused("pool.workers[0]: ", words, group(device, **settings))


@pytest.mark.parametrize("settings", [{"fraction": 0.5}, GROWTH, LIMIT])
def test_gpu_settings_on_the_cpu_are_refused(settings: dict[str, Any]) -> None:
    name = next(iter(settings)).replace("fraction", "per_process_gpu_memory_fraction")
    assert_refused(f"pool.workers[0]: {name} ", '"cpu"|remove it', group("cpu", **settings))


def test_an_overcommitted_card_names_every_contributor_and_what_fits() -> None:
    assert_refused(
        "pool.workers[1], pool.workers[3]: ",  # and not pool.workers[2], on another card
        "gpu:0 (NVIDIA V100, GPU-0abc, 32768 MiB)|"
        "pool.workers[1] 2 x 0.4 (13107 MiB) + pool.workers[3] 1 x 0.25 (8192 MiB) = 1.05 |"
        "per_process_gpu_memory_fraction = 0.3333|gpu_memory_limit_mb = 10922",
        group("cpu"),
        group("gpu:0", count=2, fraction=0.4),
        group("gpu:1", fraction=0.9),
        group("GPU-0abc", gpu_memory_limit_mb=8192),
    )


def test_the_advice_for_an_overcommitted_card_works() -> None:
    assert_refused("", "0.3333|10922", group("gpu:0", count=3, fraction=0.34))
    assert len(plan(group("gpu:0", count=3, fraction=0.3333))) == 3
    assert len(plan(group("gpu:0", count=3, gpu_memory_limit_mb=10922))) == 3


def test_auto_and_an_explicit_group_share_one_account() -> None:
    assert_refused("pool.workers[0], ", "= 1.2 ", group(fraction=0.6), group("gpu:1", fraction=0.6))


@pytest.mark.parametrize(
    ("groups", "start"),
    [
        ([group("gpu:0", count=2)], "pool.workers[0]: "),
        ([group(count=2)], "pool.workers[0]: "),
        ([group("gpu:0", count=2, fraction=0.0)], "pool.workers[0]: "),
        ([group("gpu:0", fraction=0.2), group()], "pool.workers[1]: "),
        ([group("gpu:0", gpu_memory_growth=True), group("gpu:0")], "pool.workers[1]: "),
    ],
)
def test_a_worker_without_limit_shares_its_card_with_nobody(
    groups: list[WorkerGroup], start: str
) -> None:
    ways = "per_process_gpu_memory_fraction|gpu_memory_limit_mb|gpu_memory_growth"
    assert_refused(start, f"2 workers|GPU-0abc|(pool.workers[0]|{ways}", *groups)


# Which CPUs and how many threads


@pytest.mark.parametrize(
    ("count", "threads", "affinities"),
    [
        (1, 8, [CPUS]),
        (2, 4, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (3, 2, [(0, 1), (2, 3, 4), (5, 6, 7)]),
        (8, 1, [(cpu,) for cpu in CPUS]),
        (10, 1, [(cpu % 8,) for cpu in range(10)]),
    ],
)
def test_cpu_workers_split_the_cpus(
    count: int, threads: int, affinities: list[tuple[int, ...]]
) -> None:
    slots = plan(group("cpu", count=count, cpu_affinity="auto"))
    assert [slot.cpu_affinity for slot in slots] == affinities
    assert {slot.intra_op_parallelism for slot in slots} == {threads}


def test_cpus_are_split_over_the_cpu_workers_of_all_groups() -> None:
    auto = group("cpu", cpu_affinity="auto")
    slots = plan(auto, group("gpu:0", cpu_affinity="auto"), group("cpu"), replace(auto, count=3))
    assert [slot.cpu_affinity for slot in slots] == [(0, 1), None, None, (2, 3), (4, 5), (6, 7)]
    assert [slot.intra_op_parallelism for slot in slots] == [1, 0, 1, 1, 1, 1]


def test_named_cpus_are_kept_as_given_and_left_out_of_the_shares() -> None:
    slots = plan(
        group("cpu", count=2, cpu_affinity="auto"),
        group("cpu", count=2, cpu_affinity=(1, 0)),
        group("gpu:0", cpu_affinity=(2, 3)),
    )
    assert [slot.cpu_affinity for slot in slots] == [(4, 5), (6, 7), (1, 0), (1, 0), (2, 3)]
    (slot,) = plan(group("cpu", cpu_affinity=(2, 5)))
    assert slot.intra_op_parallelism == 2  # no more threads than CPUs


def test_shares_are_of_all_cpus_when_every_cpu_is_named() -> None:
    slots = plan(group("cpu", cpu_affinity="auto"), group("cpu", cpu_affinity=CPUS))
    assert [slot.cpu_affinity for slot in slots] == [CPUS, CPUS]


def test_given_thread_counts_and_concurrency_are_passed_on() -> None:
    settings = {"intra_op_parallelism": 3, "inter_op_parallelism": 2, "concurrent_batches": 4}
    for slot in plan(group("cpu", **settings), group("gpu:0", **settings)):
        assert {name: getattr(slot, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"count": 0}, "count = 0|at least 1"),
        ({"count": -2}, "count = -2|at least 1"),
        ({"intra_op_parallelism": -1}, "intra_op_parallelism = -1|at least 0"),
        ({"inter_op_parallelism": -1}, "inter_op_parallelism = -1|at least 0"),
        ({"concurrent_batches": 0}, "concurrent_batches = 0|at least 1"),
        ({"cpu_affinity": (1, 9, 8)}, "CPU 8, 9|0, 1, 2, 3, 4, 5, 6, 7"),
        ({"cpu_affinity": ()}, 'empty|"none"'),
        ({"cpu_affinity": "all"}, '"all"|"auto"|"none"'),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "auto", "gpu:1"])
def test_numbers_that_cannot_work_are_refused(
    device: str, settings: dict[str, Any], words: str
) -> None:
    assert_refused("pool.workers[1]: ", words, group("cpu"), group(device, **settings))


def test_a_process_without_cpus_is_refused() -> None:
    assert_refused("pool: ", "no CPU", cpus=())


# Whatever the groups

DEVICES = ["auto", "cpu", "gpu:0", "gpu:1", "gpu:3", "GPU-1abc", "MIG-1", "MIG-2", "gpu", "x"]
FRACTIONS = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0]) | st.floats()
CPU_LISTS = st.lists(st.integers(0, 8), max_size=3).map(tuple)
GROUPS = st.builds(
    WorkerGroup,
    device=st.sampled_from(DEVICES),
    count=st.none() | st.integers(0, 4),
    per_process_gpu_memory_fraction=st.none() | FRACTIONS,
    gpu_memory_growth=st.sampled_from([False, False, True]),
    gpu_memory_limit_mb=st.none() | st.integers(0, 40000),
    intra_op_parallelism=st.integers(-1, 4),
    inter_op_parallelism=st.integers(-1, 4),
    cpu_affinity=st.sampled_from(["auto", "none"]) | CPU_LISTS,
    concurrent_batches=st.integers(0, 3),
)
SOUND_GROUPS = st.builds(  # each by itself could work, so that enough plans come about
    WorkerGroup,
    device=st.sampled_from(["auto", "auto", "gpu:0"]),
    count=st.none() | st.integers(1, 2),
    per_process_gpu_memory_fraction=st.floats(0.01, 0.4) | st.sampled_from([0.25, 1 / 3, 0.5]),
    cpu_affinity=st.sampled_from(["auto", "none"]),
) | st.builds(WorkerGroup, device=st.just("cpu"), count=st.integers(1, 9))
ENVIRONS = st.none() | st.sampled_from(["", "-1", "0", "1,0", "3,1", "GPU-1", "MIG-2", "1,9,0"])


@settings(deadline=None)  # a busy machine is no failure
@given(
    groups=st.lists(GROUPS, max_size=3) | st.lists(SOUND_GROUPS, max_size=4),
    inventory=st.sampled_from([NONE, TWO, FOUR, MIG]),
    visible=ENVIRONS,
    cpus=st.sets(st.integers(0, 8), min_size=1).map(sorted),
)
def test_a_plan_fits_its_machine_or_is_refused(
    groups: list[WorkerGroup], inventory: Inventory, visible: str | None, cpus: list[int]
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    try:
        slots = plan_workers(groups, inventory, environ, cpus)
    except ConfigurationError:
        return
    devices = {device.label: device for device in visible_devices(inventory, environ).devices}
    taken: defaultdict[str, int] = defaultdict(int)
    for slot in slots:
        assert slot.cpu_affinity is None or set(slot.cpu_affinity) <= set(cpus)
        if slot.device == "cpu":
            assert slot.environment["CUDA_VISIBLE_DEVICES"] == "-1"
            assert slot.memory_limit_mb is None
            assert slot.intra_op_parallelism >= 1
            continue
        assert slot.environment["CUDA_VISIBLE_DEVICES"] == devices[slot.device].uuid
        assert slot.memory_limit_mb is None or slot.memory_limit_mb >= 1
        taken[slot.device] += slot.memory_limit_mb or 0
    assert slots
    assert [slot.id for slot in slots] == list(range(len(slots)))
    for label, memory_mb in taken.items():
        assert memory_mb <= devices[label].memory_mb


@settings(deadline=None)
@given(count=st.integers(1, 20), cpus=st.sets(st.integers(0, 63), min_size=1).map(sorted))
def test_auto_shares_are_even_and_disjoint(count: int, cpus: list[int]) -> None:
    slots = plan(group("cpu", count=count, cpu_affinity="auto"), cpus=tuple(cpus))
    shares = [slot.cpu_affinity or () for slot in slots]
    handed_out = [cpu for share in shares for cpu in share]
    times = [handed_out.count(cpu) for cpu in cpus]
    assert max(times) - min(times) <= 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if count <= len(cpus):
        assert handed_out == cpus


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([group("cpu", count=2)], [True, True]),
        # Nobody knows what one more would take.
        ([group("gpu:0")], [False]),
        ([group("gpu:0", **GROWTH)], [False]),
        ([group("gpu:0", 0.5)], [True]),
        ([group("gpu:0", 0.4, count=2)], [False, False]),
        ([group("gpu:0", 0.6), group("gpu:0", 0.2)], [False, True]),
        ([group("gpu:0", 0.4), group("gpu:0", **GROWTH)], [False, False]),
        ([group("gpu:0", 0.6), group("gpu:1", 0.3)], [False, True]),
        ([group("gpu:0", gpu_memory_limit_mb=16384)], [True]),
    ],
)
def test_who_is_replaced_beside_itself(groups: list[WorkerGroup], expected: list[bool]) -> None:
    assert [slot.replaced_beside for slot in plan(*groups)] == expected
