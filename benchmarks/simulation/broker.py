"""The server's own broker core, with the models and workers of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.simulation.device import Device
from batchyard.benchmarks.simulation.scenario import SimulatedModel, Workers
from batchyard.broker import events
from batchyard.broker.catalog import Catalog
from batchyard.broker.lane import Lane
from batchyard.broker.policy import NEVER
from batchyard.broker.queue import RequestGroup
from batchyard.broker.settings import served_models
from batchyard.broker.state import BrokerState
from batchyard.pool.config_models import Batching
from batchyard.wire.control import ModelSettings
from batchyard.wire.protocol import InputHeader, Target
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.work import ModelReport, Ready, SignatureReport, WarmupRuns

# Nothing lies in it: no row is ever copied.
_ARENA_NBYTES = 1 << 40
_VERSION = 1
_TIMED_RUNS = 3
_CLIENT = b"simulated"
_SIGNATURE = SignatureSpec(
    "serving_default",
    (TensorSpec("x", "float32", (None,)),),
    (TensorSpec("y", "float32", (None,)),),
    batched=True,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One entry of a mix: the lane that its requests wait in."""

    lane: Lane
    rows: int
    deadline_s: float


def make_broker(models: Sequence[SimulatedModel], learns: bool) -> BrokerState:
    """A broker that knows the models; no worker is there yet."""
    catalog = Catalog(_ARENA_NBYTES)
    settings = [
        ModelSettings(
            model.name,
            _VERSION,
            [],
            Batching(**model.batching).for_broker,
            share=model.share,
        )
        for model in models
    ]
    for served in served_models(settings):
        catalog.add(served)
    return BrokerState(catalog, _ARENA_NBYTES, queue_nbytes_max=1 << 62, learns=learns)


def worker_ready(
    worker_id: int, group: Workers, models: Sequence[SimulatedModel], device: Device, learns: bool
) -> events.WorkerReady:
    """A worker of the group has loaded its models and warmed them up."""
    reports = tuple(
        _report(model, _warmup_runs(model, device) if learns else ())
        for model in models
        if not group.models or model.name in group.models
    )
    ready = Ready(group.device, reports)
    return events.WorkerReady(worker_id, group.concurrent_batches, ready, slot=worker_id)


def _warmup_runs(model: SimulatedModel, device: Device) -> WarmupRuns:
    """As ``pool.warmup`` times them."""
    sizes = Batching(**model.batching).warmup_batch_sizes
    return tuple(
        (rows, device.seconds(model.name, rows, 0.0)) for rows in sizes for _ in range(_TIMED_RUNS)
    )


def _report(model: SimulatedModel, runs: WarmupRuns) -> ModelReport:
    return ModelReport(
        name=model.name,
        version=_VERSION,
        stateful=False,
        bears_changing_inputs=True,
        signatures=(SignatureReport(_SIGNATURE, 4, runs),),
        load_s=0.0,
        warmup_s=0.0,
    )


def kind_of(catalog: Catalog, entry: MixEntry) -> Kind:
    """Raises NotFound for a model that is not simulated, InvalidArgument for what is no target."""
    inputs = (InputHeader("x", "float32", (None,)),)
    target = Target(
        entry.model, entry.version, entry.label, entry.signature, entry.priority, inputs
    )
    lane = catalog.route(target.encode()).lane
    return Kind(lane, entry.rows, NEVER if entry.deadline_s is None else entry.deadline_s)


def message(message_id: int, kind: Kind, count: int, now: float) -> RequestGroup:
    """One message of so many requests of a kind, as admission makes it; without bytes."""
    total_rows = count * kind.rows
    return RequestGroup(
        client=_CLIENT,
        message_id=message_id,
        lane=kind.lane,
        count=count,
        total_rows=total_rows,
        rows=None if kind.rows == 1 else [kind.rows] * count,
        sources=[b""],
        shapes=[(total_rows,)],
        nbytes=0,
        arrived_at=now,
        earliest_deadline=now + kind.deadline_s,
    )
