"""Which worker runs where: worker groups and an inventory in, one slot per worker process out.

Everything here is pure. What the machine has, its environment and the CPUs that this process may
use are passed in, so every machine can be planned for in a test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from batchyard.pool.device_names import find_device
from batchyard.pool.inventory import Inventory, Visible, VisibleDevice, visible_devices
from batchyard.wire.errors import ConfigurationError

# Contexts of a few hundred MiB fit beside, on cards of 32 GB and more.
_ROOMY_SHARES = 0.98
_SHARE_SLACK = 1e-9  # ten times 0.1 must fit; far below one MiB of any card


@dataclass(frozen=True)
class WorkerGroup:
    """``count`` workers with the same settings on one device (``auto``: on every visible GPU).

    ``count`` None is 1. A fraction of None or 0 leaves the memory to TensorFlow, which takes
    nearly the whole card. ``gpu_memory_limit_mb`` is in MiB. Thread counts of 0 are chosen here
    for the CPU and by TensorFlow for a GPU.
    """

    device: str = "auto"
    count: int | None = None
    per_process_gpu_memory_fraction: float | None = None
    gpu_memory_growth: bool = False
    gpu_memory_limit_mb: int | None = None
    intra_op_parallelism: int = 0
    inter_op_parallelism: int = 0
    cpu_affinity: Literal["auto", "none"] | tuple[int, ...] = "none"
    concurrent_batches: int = 1

    @property
    def fraction(self) -> float | None:
        """The fraction when it limits anything: 0 is TensorFlow Serving's way to say unset."""
        return self.per_process_gpu_memory_fraction or None

    @property
    def gpu_settings(self) -> tuple[str, ...]:
        """The GPU memory settings in use, as they are written in the configuration."""
        settings = {
            "per_process_gpu_memory_fraction": self.fraction,
            "gpu_memory_growth": self.gpu_memory_growth or None,
            "gpu_memory_limit_mb": self.gpu_memory_limit_mb,
        }
        return tuple(name for name, value in settings.items() if value is not None)


@dataclass(frozen=True)
class WorkerSlot:
    """One worker process: where it runs and what it may use.

    ``environment`` is set in the process before it imports TensorFlow. ``memory_limit_mb`` is
    in MiB of GPU memory, None for no limit. ``replaced_beside`` says whether the device is known
    to have room for one more such process, so that the next can load while this one serves.
    ``note`` says for the log which device was taken.
    """

    id: int
    device: str
    environment: dict[str, str]
    memory_limit_mb: int | None
    memory_growth: bool
    intra_op_parallelism: int
    inter_op_parallelism: int
    cpu_affinity: tuple[int, ...] | None
    concurrent_batches: int
    replaced_beside: bool
    note: str


@dataclass(frozen=True)
class _Worker:
    """One worker that has its device but not yet its share of the CPUs."""

    group_index: int
    group: WorkerGroup
    device: VisibleDevice | None
    note: str

    @property
    def memory_limit_mb(self) -> int | None:
        """The most MiB of the device's memory that it may take, None for no limit."""
        if self.device is None:
            return None
        if self.group.fraction is None:
            return self.group.gpu_memory_limit_mb
        return math.floor(self.group.fraction * self.device.memory_mb)

    @property
    def share(self) -> float:
        """That limit as a share of the device's memory, 0 for no limit."""
        if self.device is None or self.memory_limit_mb is None:
            return 0.0
        return self.group.fraction or self.memory_limit_mb / self.device.memory_mb


def plan_workers(
    groups: Sequence[WorkerGroup],
    inventory: Inventory,
    environ: Mapping[str, str],
    cpus: Sequence[int],
) -> list[WorkerSlot]:
    """One slot per worker of all ``groups``, in their order, ids from 0; none is one ``auto``.

    ``environ`` is read for ``CUDA_VISIBLE_DEVICES``; ``cpus`` are the CPUs this process may use.
    Raises ConfigurationError, which names the group (``pool.workers[0]``), for settings that
    contradict each other, a device that is not there, and memory that does not fit its card;
    DeviceAbsent for a device that may still come.
    """
    if not cpus:
        raise ConfigurationError("pool: this process may use no CPU; widen its CPU affinity")
    groups = groups or (WorkerGroup(),)
    visible = visible_devices(inventory, environ)
    workers: list[_Worker] = []
    for index, group in enumerate(groups):
        try:
            _check_settings(group, cpus)
            workers += _place(index, group, visible)
        except ConfigurationError as error:
            raise type(error)(f"pool.workers[{index}]: {error}") from None
    for device in visible.devices:
        _check_shared(device, [worker for worker in workers if worker.device == device])
    affinities = _split_cpus(workers, cpus)
    cpu_workers = sum(worker.device is None for worker in workers)
    threads = max(1, len(cpus) // max(1, cpu_workers))
    return [
        _slot(id, _warned(worker, workers), affinity, threads, _has_room_beside(worker, workers))
        for id, (worker, affinity) in enumerate(zip(workers, affinities, strict=True))
    ]


def _check_settings(group: WorkerGroup, cpus: Sequence[int]) -> None:
    """What is wrong with a group by itself, whatever the machine."""
    for name, value, least in (
        ("count", 1 if group.count is None else group.count, 1),
        ("intra_op_parallelism", group.intra_op_parallelism, 0),
        ("inter_op_parallelism", group.inter_op_parallelism, 0),
        ("concurrent_batches", group.concurrent_batches, 1),
    ):
        if value < least:
            raise ConfigurationError(f"{name} = {value}: needs at least {least}")
    fraction, limit_mb = group.per_process_gpu_memory_fraction, group.gpu_memory_limit_mb
    if fraction is not None and not 0 <= fraction <= 1:  # so written, it refuses NaN as well
        raise ConfigurationError(
            f"per_process_gpu_memory_fraction = {fraction:g}: needs 0 to 1, where 0 leaves the "
            "memory to TensorFlow"
        )
    if limit_mb is not None and limit_mb < 1:
        raise ConfigurationError(f"gpu_memory_limit_mb = {limit_mb}: needs at least 1 (MiB)")
    settings = group.gpu_settings
    if len(settings) > 1:
        raise ConfigurationError(f"{' and '.join(settings)} exclude each other: keep one of them")
    if group.device == "cpu" and settings:
        raise ConfigurationError(
            f'{settings[0]} has no meaning on device "cpu": remove it, or choose a GPU'
        )
    _check_affinity(group, cpus)


def _check_affinity(group: WorkerGroup, cpus: Sequence[int]) -> None:
    affinity = group.cpu_affinity
    if isinstance(affinity, str):
        if affinity not in ("auto", "none"):
            raise ConfigurationError(
                f'cpu_affinity = "{affinity}": needs "auto", "none" or a list of CPU numbers'
            )
        return
    if not affinity:
        raise ConfigurationError('cpu_affinity is an empty list: name CPUs, or write "none"')
    absent = sorted(set(affinity).difference(cpus))
    if absent:
        raise ConfigurationError(
            f"cpu_affinity names CPU {_join(absent)}, which this process may not use; "
            f"it may use {_join(sorted(cpus))}"
        )


def _place(group_index: int, group: WorkerGroup, visible: Visible) -> list[_Worker]:
    """The group's workers, each on its device."""
    devices, why = _choose(group, visible)
    workers: list[_Worker] = []
    for device in devices or (None,):
        note = why if device is None else f"{why}{device}"
        worker = _Worker(group_index, group, device, note)
        _check_fit(worker)
        workers += [worker] * (1 if group.count is None else group.count)
    return workers


def _choose(group: WorkerGroup, visible: Visible) -> tuple[tuple[VisibleDevice, ...], str]:
    """The devices of a group, none for the CPU, and the beginning of the note that says why."""
    if group.device == "cpu":
        return (), "cpu"
    if group.device != "auto":
        return (find_device(group.device, visible),), ""
    if visible.devices:
        because = f" ({visible.note})" if visible.note else ""
        return visible.devices, f"auto: {len(visible.devices)} GPU visible{because}, using "
    note = f"auto: no GPU visible ({visible.note}), using cpu"
    if group.gpu_settings:
        note += f"; {group.gpu_settings[0]} does not apply"
    return (), note


def _check_fit(worker: _Worker) -> None:
    """Whether one worker's limit makes sense on its device."""
    device, limit_mb = worker.device, worker.memory_limit_mb
    if device is None or limit_mb is None:
        return
    if limit_mb > device.memory_mb:
        raise ConfigurationError(
            f"gpu_memory_limit_mb = {limit_mb} is more than {device} has: needs at most "
            f"{device.memory_mb}"
        )
    if limit_mb < 1:
        raise ConfigurationError(
            f"per_process_gpu_memory_fraction = {worker.share:g} is less than 1 MiB of {device}; "
            "needs more, or 0 to leave the memory to TensorFlow"
        )


def _check_shared(device: VisibleDevice, workers: Sequence[_Worker]) -> None:
    """Whether the workers of all groups on one device fit it together.

    A limit bounds TensorFlow's allocator only; each process's CUDA context comes on top, and how
    large that is depends on card and driver. So a sum of exactly 1 is let through.
    """
    _check_access(device, workers)
    uncapped = [worker for worker in workers if not worker.group.gpu_settings]
    if uncapped and len(workers) > 1:
        raise ConfigurationError(
            f"{_groups_of(uncapped)}: no limit of GPU memory, but {len(workers)} workers share "
            f"{device} ({_groups_of(workers)}), and TensorFlow takes nearly the whole card; give "
            "each group per_process_gpu_memory_fraction, gpu_memory_limit_mb or gpu_memory_growth"
        )
    capped = [worker for worker in workers if worker.memory_limit_mb is not None]
    total = math.fsum(worker.share for worker in capped)
    if total <= 1 + _SHARE_SLACK:
        return
    copies = Counter(worker.group_index for worker in capped)
    first = {worker.group_index: worker for worker in reversed(capped)}
    parts = [
        f"pool.workers[{index}] {count} x {first[index].share:.4g} "
        f"({first[index].memory_limit_mb} MiB)"
        for index, count in copies.items()
    ]
    raise ConfigurationError(
        f"{_groups_of(capped)}: more GPU memory than {device} has: {' + '.join(parts)} = "
        f"{total:.10g} of it; needs a sum of at most 1, such as "
        f"per_process_gpu_memory_fraction = {math.floor(1e4 / len(capped)) / 1e4:g} or "
        f"gpu_memory_limit_mb = {device.memory_mb // len(capped)} for each of {len(capped)} workers"
    )


def _check_access(device: VisibleDevice, workers: Sequence[_Worker]) -> None:
    """Whether CUDA lets as many processes use the device: else it would say so as they load."""
    most = device.processes_max
    if most is None or len(workers) <= most:
        return
    if not most:
        raise ConfigurationError(
            f"{_groups_of(workers)}: {device} is in compute mode PROHIBITED, in which CUDA lets no "
            f"process use it; nvidia-smi -i {device.card} -c DEFAULT allows it"
        )
    raise ConfigurationError(
        f"{_groups_of(workers)}: {len(workers)} workers on {device}, which is in compute mode "
        "EXCLUSIVE_PROCESS, in which CUDA lets one process use it; "
        f"nvidia-smi -i {device.card} -c DEFAULT allows more, as does NVIDIA's MPS "
        "(nvidia-cuda-mps-control -d, before the server)"
    )


def _has_room_beside(worker: _Worker, workers: Sequence[_Worker]) -> bool:
    """Whether one process more with the worker's limit surely fits its device."""
    if worker.device is None:
        return True
    beside = [other for other in workers if other.device == worker.device]
    most = worker.device.processes_max
    if most is not None and len(beside) >= most:
        return False
    shares = [other.share for other in beside]
    # Without a limit nobody knows.
    return all(shares) and math.fsum([*shares, worker.share]) <= 1 + _SHARE_SLACK


def _warned(worker: _Worker, workers: Sequence[_Worker]) -> _Worker:
    """The worker, with a word in its note where its device has no room for all shares."""
    if worker.device is None or not worker.share:
        return worker
    total = math.fsum(other.share for other in workers if other.device == worker.device)
    if total <= _ROOMY_SHARES:
        return worker
    hint = f"; {total:.4g} of its memory is promised, and each process's CUDA context comes on top"
    return replace(worker, note=worker.note + hint)


def _split_cpus(workers: Sequence[_Worker], cpus: Sequence[int]) -> list[tuple[int, ...] | None]:
    """The CPUs of each worker: as its group names them, an even share for "auto", else None.

    CPUs that a group names are left out of the shares as long as others remain. A share is a run
    of neighbours, which mostly share caches.
    """
    result = [_named_cpus(worker.group) for worker in workers]
    named = {cpu for own in result if own is not None for cpu in own}
    free = [cpu for cpu in cpus if cpu not in named] or list(cpus)
    sharers = [
        place
        for place, worker in enumerate(workers)
        if worker.device is None and worker.group.cpu_affinity == "auto"
    ]
    for turn, place in enumerate(sharers):
        if len(sharers) > len(free):
            result[place] = (free[turn % len(free)],)
            continue
        begin, end = (len(free) * bound // len(sharers) for bound in (turn, turn + 1))
        result[place] = tuple(free[begin:end])
    return result


def _named_cpus(group: WorkerGroup) -> tuple[int, ...] | None:
    return None if isinstance(group.cpu_affinity, str) else group.cpu_affinity


def _slot(
    id: int,
    worker: _Worker,
    affinity: tuple[int, ...] | None,
    cpu_threads: int,
    replaced_beside: bool,
) -> WorkerSlot:
    group, device = worker.group, worker.device
    intra = group.intra_op_parallelism
    if device is None:
        environment = {"CUDA_VISIBLE_DEVICES": "-1"}
        # More threads than the CPUs that the worker is bound to would only take turns.
        intra = intra or min(cpu_threads, len(affinity or ()) or cpu_threads)
    else:
        environment = {"CUDA_VISIBLE_DEVICES": device.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if group.gpu_settings:
            # TensorFlow lets this variable override what the program asks for.
            environment["TF_FORCE_GPU_ALLOW_GROWTH"] = str(group.gpu_memory_growth).lower()
    return WorkerSlot(
        id=id,
        device="cpu" if device is None else device.label,
        environment=environment,
        memory_limit_mb=worker.memory_limit_mb,
        memory_growth=device is not None and group.gpu_memory_growth,
        intra_op_parallelism=intra,
        inter_op_parallelism=group.inter_op_parallelism,
        cpu_affinity=affinity,
        concurrent_batches=group.concurrent_batches,
        replaced_beside=replaced_beside,
        note=worker.note,
    )


def _groups_of(workers: Iterable[_Worker]) -> str:
    indices = dict.fromkeys(worker.group_index for worker in workers)
    return _join(f"pool.workers[{index}]" for index in indices)


def _join(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
