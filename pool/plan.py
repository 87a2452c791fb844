"""A configuration and a machine become a plan: which processes run, bound to what."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchyard.pool import devices
from batchyard.pool.config import Config, Model, WorkerGroup
from batchyard.pool.inventory import Inventory
from batchyard.pool.supervisor import ServerPlan, WorkerPlan
from batchyard.pool.versions import UNVERSIONED, find_version
from batchyard.wire.control import BrokerSettings, ModelSettings, ModelSource, WorkerSettings
from batchyard.wire.errors import ConfigurationError

_MIB = 1 << 20


def make_plan(
    config: Config, inventory: Inventory, environ: Mapping[str, str], cpus: Sequence[int]
) -> tuple[ServerPlan, list[str]]:
    """The plan, and notes on what was chosen that a person may want to know.

    Raises ConfigurationError for what cannot work here.
    """
    slots = devices.plan_workers(
        [_group(group) for group in config.pool.workers], inventory, environ, cpus
    )
    served = [_serve(model) for model in config.models]
    sources = [source for source, _ in served]
    workers = [
        WorkerPlan(
            WorkerSettings(
                worker_id=slot.id,
                device=slot.device,
                memory_limit_mb=slot.memory_limit_mb,
                memory_growth=slot.memory_growth,
                intra_op_parallelism=slot.intra_op_parallelism,
                inter_op_parallelism=slot.inter_op_parallelism,
                cpu_affinity=None if slot.cpu_affinity is None else list(slot.cpu_affinity),
                concurrent_batches=slot.concurrent_batches,
                models=sources,
            ),
            slot.environment,
        )
        for slot in slots
    ]
    broker = BrokerSettings(
        bind=config.broker.bind,
        ipc_mode=int(config.broker.ipc_mode, 8),
        max_message_nbytes=config.broker.max_message_mb * _MIB,
        queue_nbytes_max=config.broker.max_queue_mb * _MIB,
        region_nbytes=config.broker.region_mb * _MIB,
        regions_max=config.broker.max_regions,
        models=[settings for _, settings in served],
    )
    plan = ServerPlan(broker, workers, config.pool.arena_mb * _MIB, config.pool.drain_timeout_s)
    return plan, sorted({slot.note for slot in slots if slot.note})


def usable_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def _group(group: WorkerGroup) -> devices.WorkerGroup:
    affinity = group.cpu_affinity
    return devices.WorkerGroup(
        device=group.device,
        count=group.count,
        per_process_gpu_memory_fraction=group.per_process_gpu_memory_fraction,
        gpu_memory_growth=group.gpu_memory_growth,
        gpu_memory_limit_mb=group.gpu_memory_limit_mb,
        intra_op_parallelism=group.tensorflow_intra_op_parallelism,
        inter_op_parallelism=group.tensorflow_inter_op_parallelism,
        cpu_affinity=tuple(affinity) if isinstance(affinity, list) else affinity,
        concurrent_batches=group.concurrent_batches,
    )


def _serve(model: Model) -> tuple[ModelSource, ModelSettings]:
    if model.runtime == "python":
        version, path = UNVERSIONED, model.path
        file = Path(path.rpartition(":")[0])
        if file.suffix == ".py" and not file.is_file():
            raise ConfigurationError(f"model {model.name!r}: {file} is no file")
    else:
        version, folder = find_version(model.name, model.path)
        path = str(folder)
    for label, labelled in model.version_labels.items():
        if labelled != version:
            raise ConfigurationError(
                f"model {model.name!r}: label {label!r} names version {labelled}, but version "
                f"{version} is served"
            )
    source = ModelSource(
        name=model.name,
        version=version,
        runtime=model.runtime,
        path=path,
        batch_sizes=model.batching.warmup_batch_sizes,
        signature=None if model.signature is None else model.signature.model_dump(),
        read_in_place=model.read_in_place,
    )
    settings = ModelSettings(
        name=model.name,
        version=version,
        labels=sorted(model.version_labels),
        batching=model.batching.model_dump(),
    )
    return source, settings
