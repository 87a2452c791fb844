"""Plans for machines that are not here: none, two cards, four cards, an A100 in MIG instances."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.pool.devices import WorkerGroup, WorkerSlot, plan_workers
from batchyard.pool.inventory import Gpu, Inventory, MigDevice, visible_devices
from batchyard.wire.errors import ConfigurationError, DeviceAbsent

NONE = Inventory(note="NVML library not found: no NVIDIA driver")
FOUR = Inventory(tuple(Gpu(i, f"GPU-{i}abc", "NVIDIA V100", 32768) for i in range(4)))
TWO = Inventory(FOUR.gpus[:2])
NEAR = Inventory(
    tuple(Gpu(i, uuid, "L4", 23034) for i, uuid in enumerate(("GPU-aa11", "GPU-aa22")))
)
INSTANCES = (MigDevice("MIG-1", 19968, (1, 0)), MigDevice("MIG-2", 9856, (5, 0)))
MIG = Inventory((Gpu(0, "GPU-a100", "NVIDIA A100", 40960, INSTANCES),))
CPUS = tuple(range(8))
GROWTH = {"gpu_memory_growth": True}
LIMIT = {"gpu_memory_limit_mb": 1024}


def group(device: str = "auto", fraction: float | None = None, **settings: Any) -> WorkerGroup:
    return WorkerGroup(device=device, per_process_gpu_memory_fraction=fraction, **settings)


def plan(
    *groups: WorkerGroup,
    inventory: Inventory = TWO,
    visible: str | None = None,
    cpus: tuple[int, ...] = CPUS,
) -> list[WorkerSlot]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return plan_workers(groups, inventory, environ, cpus)


def assert_refused(start: str, words: str, *groups: WorkerGroup, **machine: Any) -> None:
    """The message begins with ``start`` and holds each of the ``words``, parted by ``|``."""
    with pytest.raises(ConfigurationError) as caught:
        plan(*groups, **machine)
    text = str(caught.value)
    assert text.startswith(start)
    assert [word for word in words.split("|") if word not in text] == []


def uuids(slots: list[WorkerSlot]) -> list[str]:
    return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots]


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
