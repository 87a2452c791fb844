"""The library entry."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from batchyard.benchmarks.simulation.arrivals import send_times
from batchyard.benchmarks.simulation.broker import kind_of, make_broker, worker_ready
from batchyard.benchmarks.simulation.device import Device
from batchyard.benchmarks.simulation.engine import Engine
from batchyard.benchmarks.simulation.recorder import Arriving, Recorder
from batchyard.benchmarks.simulation.result import SimulationResult
from batchyard.benchmarks.simulation.scenario import Overheads, SimulatedModel, Traffic, Workers


def simulate(
    models: Sequence[SimulatedModel],
    workers: Sequence[Workers],
    traffic: Sequence[Traffic],
    duration_s: float,
    *,
    seed: int = 0,
    overheads: Overheads | None = None,
    learns: bool = True,
) -> SimulationResult:
    """Runs the server's broker in virtual time, on simulated devices.

    ``traffic`` is sent for ``duration_s`` simulated seconds; then the run goes on until every
    request is answered. Without ``learns`` the broker knows no execution times: it predicts
    nothing, and drops only what has already expired. The same arguments give the same result.

    Raises NotFound for a mix's model that is not among ``models``, ConfigurationError for a trace
    that is none, and pydantic's ValidationError for batching that a server would not take.
    """
    overheads = overheads or Overheads()
    state = make_broker(models, learns)
    devices: dict[int, Device] = {}
    draw = random.Random(seed)
    by_name = {model.name: model for model in models}
    for group in workers:
        for _ in range(group.count):
            worker_id = len(devices)
            device_draw = random.Random(draw.getrandbits(64))
            devices[worker_id] = Device(by_name, group.concurrent_batches, group.speed, device_draw)
            ready = worker_ready(worker_id, group, models, devices[worker_id], learns)
            for action in state.handle(ready, 0.0):
                raise RuntimeError(f"a worker that begins asks for {action}")
    entries = [entry for stream in traffic for entry in stream.mix]
    kinds = [kind_of(state.catalog, entry) for entry in entries]
    names = [model.name for model in models]
    arriving = _arriving(traffic, duration_s, seed)
    recorder = Recorder(
        arriving,
        [kind.rows for kind in kinds],
        [kind.deadline_s for kind in kinds],
        [names.index(entry.model) for entry in entries],
        names,
    )
    engine = Engine(state, devices, kinds, arriving, recorder, overheads)
    engine.run()
    return SimulationResult(
        models=names,
        workers=len(devices),
        start_s=0.0,
        duration_s=duration_s,
        requests=recorder.requests(),
        batches=recorder.batches(),
        errors=dict(recorder.errors),
        turns=engine.turns,
    )


def _arriving(traffic: Sequence[Traffic], duration_s: float, seed: int) -> Arriving:
    """The requests of all streams, merged."""
    draw = np.random.default_rng(seed)
    planned, kinds = [np.empty(0)], [np.empty(0, np.int32)]
    first_kind = 0
    for i, stream in enumerate(traffic):
        times = send_times(stream.arrivals, duration_s, seed + i)
        weights = np.array([entry.weight for entry in stream.mix])
        chosen = draw.choice(len(weights), len(times), p=weights / weights.sum())
        planned.append(times)
        kinds.append((first_kind + chosen).astype(np.int32))
        first_kind += len(weights)
    merged = np.concatenate(planned)
    order = np.argsort(merged, kind="stable")
    return Arriving(merged[order], np.concatenate(kinds)[order])
