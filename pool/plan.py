"""A configuration and a machine become a plan: which processes run, bound to what."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batchyard.pool import access, devices
from batchyard.pool.config import Config, WorkerGroup
from batchyard.pool.gateways import GatewayPlan, plan_gateways
from batchyard.pool.inventory import Inventory, visible_devices
from batchyard.pool.model_set import ModelSet, wanted_models
from batchyard.pool.versions import Found, find_all
from batchyard.wire.control import BrokerSettings, WorkerSettings
from batchyard.wire.errors import ConfigurationError

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A slot for a worker: what its processes are told, and their environment.

    ``replaced_beside``: there is room for its next process while this one serves.
    """

    settings: WorkerSettings
    environment: dict[str, str]
    replaced_beside: bool


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """All that a server consists of.

    What is to be served may change while it runs: ``broker`` and ``workers`` have it as it is at
    the start, which follows from ``config`` and the versions ``found``.
    """

    broker: BrokerSettings
    workers: list[WorkerPlan]
    arena_nbytes: int
    config: Config
    found: Found
    gateways: list[GatewayPlan] = field(default_factory=list)


def make_plan(
    config: Config, inventory: Inventory, environ: Mapping[str, str], cpus: Sequence[int]
) -> tuple[ServerPlan, list[str]]:
    """The plan, and notes on what was chosen that a person may want to know.

    Raises ConfigurationError for what cannot work here.
    """
    slots = devices.plan_workers(
        [_group(group) for group in config.pool.workers], inventory, environ, cpus
    )
    found = find_all(config.models)
    models = wanted_models(config, found, {}, ModelSet())
    if models.complaints:
        raise ConfigurationError("\n".join(models.complaints))
    served = {name for name, _ in models.served}
    if any(name not in served for name, _ in models.refused):
        raise ConfigurationError("\n".join(models.refusals))
    workers = [
        WorkerPlan(
            WorkerSettings(
                worker_id=slot.id,
                slot=slot.id,
                device=slot.device,
                memory_limit_mb=slot.memory_limit_mb,
                memory_growth=slot.memory_growth,
                intra_op_parallelism=slot.intra_op_parallelism,
                inter_op_parallelism=slot.inter_op_parallelism,
                cpu_affinity=None if slot.cpu_affinity is None else list(slot.cpu_affinity),
                concurrent_batches=slot.concurrent_batches,
                models=list(models.sources.values()),
            ),
            slot.environment,
            slot.replaced_beside,
        )
        for slot in slots
    ]
    broker = BrokerSettings(
        bind=config.broker.bind,
        ipc_mode=config.broker.ipc_permissions,
        max_message_nbytes=config.broker.max_message_mb * _MIB,
        queue_nbytes_max=config.broker.max_queue_mb * _MIB,
        region_nbytes=config.broker.region_mb * _MIB,
        regions_max=config.broker.max_regions,
        in_flight_max=config.broker.max_in_flight_per_client,
        models=[
            *(served.settings for served in models.served.values()),
            *models.refused.values(),
        ],
        ipc_gid=access.group_id(config.broker.ipc_group),
        curve_secret_key_file=access.place(config.broker.curve_secret_key_file, environ),
        curve_clients=access.place(config.broker.curve_clients, environ),
    )
    access.check_keys(broker, environ)
    gateways = plan_gateways(config, visible_devices(inventory, environ).devices)
    arena_nbytes = config.pool.arena_mb * _MIB
    plan = ServerPlan(broker, workers, arena_nbytes, config, found, gateways)
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
