"""What is simulated: models, the workers that serve them, and who asks for them when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.benchmarks.load.plan import MixEntry
from batchyard.benchmarks.simulation.arrivals import Arrivals
from batchyard.benchmarks.simulation.service_times import Disturbance, ServiceTime


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model, how long its batches take, and how it is batched.

    ``batching`` has keys of ``[models.batching]`` in a server's configuration; what is not given
    is as shipped. ``share`` is the model's there.
    """

    name: str
    times: ServiceTime
    disturbances: Sequence[Disturbance] = ()
    batching: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers of one kind: ``count`` devices that run ``concurrent_batches`` at once each.

    ``models`` are the names of those that it serves; empty: all. A batch takes its model's time
    ÷ ``speed``.
    """

    count: int = 1
    concurrent_batches: int = 1
    models: Sequence[str] = ()
    speed: float = 1.0
    device: str = "gpu:0"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that arrive together: each is one of ``mix``, by weight.

    Of an entry the model, weight, rows, deadline, version, label and priority are used.
    """

    arrivals: Arrivals
    mix: Sequence[MixEntry]


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a request's way costs, in seconds. As measured on one machine with few clients.

    A message takes ``request_s`` from the client to the broker and ``reply_s`` back; a batch takes
    ``handover_s`` to its worker, where it may wait behind another, and ``answer_s`` back.
    ``turn_s`` is the least time from one turn of the broker to the next: what arrives meanwhile is
    handled together.
    """

    request_s: float = 50e-6
    handover_s: float = 50e-6
    answer_s: float = 50e-6
    reply_s: float = 50e-6
    turn_s: float = 50e-6
