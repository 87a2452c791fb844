"""Batchyard and its peers at the same workloads, in turn, beside bare TensorFlow.

For one workload after the other all servers are started; then the rounds go through them. Peers
that are not measured at the moment are held still, so that they cost nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from batchyard.benchmarks.bare import BareTensorFlow
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.peers import gateways, ours, theirs
from batchyard.benchmarks.peers.catalog import MOSEC, PEERS, Peer
from batchyard.benchmarks.peers.contestant import Contestant, ContestantFailed
from batchyard.benchmarks.peers.environments import version
from batchyard.benchmarks.peers.formats import Array
from batchyard.benchmarks.peers.workloads import WORKLOADS, Workload
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.served import Model, one_thread, serve_with_gateways

NOT_INSTALLED = "not installed; make bench-peers installs it"
_BARE = "bare"


def run(
    seconds: float,
    repeat: int,
    peers: Sequence[Peer] = PEERS,
    workloads: Sequence[Workload] = WORKLOADS,
) -> Results:
    """Measures each server at each workload, ``repeat`` times, in turn.

    A measurement takes ``seconds`` for each number of requests under way, half of that for
    latencies, and a quarter more with peers, which warm up.
    """
    versions = {peer.title: version(peer.name, peer.distribution) for peer in peers}
    results = Results(
        name="peers",
        machine=describe() | {title: found for title, found in versions.items() if found},
        settings=_settings(seconds, repeat, workloads),
        figures=[],
        measured={},
        skipped={title: NOT_INSTALLED for title, found in versions.items() if not found},
    )
    installed = [peer for peer in peers if versions[peer.title]]
    models = dict.fromkeys(workload.model for workload in workloads)
    with BareTensorFlow() as bare, exported(*models) as folders:
        for workload in workloads:
            stage = _Stage(workload, seconds / 2 if workload.is_latency else seconds, repeat)
            stage.run(folders[workload.model], installed, bare, results)
    return results


def _settings(seconds: float, repeat: int, workloads: Sequence[Workload]) -> dict[str, str | float]:
    described = {workload.name: _described(workload) for workload in workloads}
    return {"seconds": seconds, "repeat": repeat, **described, **one_thread()}


def _described(workload: Workload) -> str:
    in_flight = " or ".join(map(str, workload.in_flight)) or 1
    rows = workload.batching["max_batch_size"]
    wait_us = workload.batching["batch_timeout_micros"]
    waiting = f"{rows} rows or {wait_us} µs" if wait_us else "no waiting"
    return f"{in_flight} in flight, {waiting}"


class _Stage:
    """One workload's rounds, and what they add to the results."""

    def __init__(self, workload: Workload, seconds: float, repeat: int) -> None:
        self._workload = workload
        self._seconds = seconds
        self._repeat = repeat
        self._skipped: dict[str, str] = {}

    def run(
        self, folder: Path, peers: Sequence[Peer], bare: BareTensorFlow, results: Results
    ) -> None:
        """Measures bare TensorFlow, Batchyard and the peers."""
        workload = self._workload
        bare.load(workload.name, folder, (workload.bare_batch, *workload.row_shape))
        measure = bare.p50_us if workload.is_latency else bare.rows_per_s
        title = f"bare TensorFlow, {workload.bare_batch} at once"
        reference = Contestant(_BARE, title, partial(measure, workload.name))
        model = Model(workload.model, str(folder), workload.batching)
        ports = gateways.free_ports()
        with (
            serve_with_gateways([model], ports, **one_thread()) as (_, ipc),
            contextlib.ExitStack() as stack,
        ):
            own = ours.contestants(ipc, workload)
            outputs = ours.outputs(ipc, workload)
            through = gateways.contestants(ports, workload, outputs)
            others = [
                contestant
                for peer in peers
                for contestant in self._started(stack, peer, folder / "1", outputs)
            ]
            results.measured |= self._rounds([reference, *own, *through, *others])
        results.figures += figures(workload, reference, own, others, through)
        results.skipped |= self._skipped

    def _started(
        self, stack: contextlib.ExitStack, peer: Peer, model: Path, outputs: Sequence[Array]
    ) -> list[Contestant]:
        try:
            return theirs.contestants(stack, peer, self._workload, model, outputs)
        except ContestantFailed as error:
            self._skipped[titled(self._workload, peer.title)] = str(error)
            return []

    def _rounds(self, contestants: Sequence[Contestant]) -> dict[str, list[float]]:
        measurements = {
            titled(self._workload, contestant.title): partial(self._attempt, contestant)
            for contestant in contestants
        }
        measured = run_rounds(measurements, self._repeat)
        # Whoever failed in a later round has no figure for each of them.
        return {key: values for key, values in measured.items() if len(values) == self._repeat}

    def _attempt(self, contestant: Contestant) -> Mapping[str, float]:
        title = titled(self._workload, contestant.title)
        if title in self._skipped:
            return {}
        try:
            found = {keyed(self._workload, contestant): contestant.measure(self._seconds)}
            cost = contestant.gateway_cpu_us and contestant.gateway_cpu_us()
            return found | ({_cost_key(self._workload, contestant): cost} if cost else {})
        except ContestantFailed as error:
            self._skipped[title] = str(error)
            return {}


def figures(
    workload: Workload,
    bare: Contestant,
    own: Sequence[Contestant],
    others: Sequence[Contestant],
    through: Sequence[Contestant] = (),
) -> Iterator[Figure]:
    """Everyone beside bare TensorFlow, then our first way beside every peer.

    All our ways are beside mosec, whose goal holds for each of them; but for those ``through`` a
    gateway, which have other clients. They are beside our first, with what each request costs it.
    """

    def figure(contestant: Contestant, reference: Contestant | None, goal: float | None) -> Figure:
        return Figure(
            key=keyed(workload, contestant),
            title=titled(workload, contestant.title),
            unit=workload.unit,
            reference=keyed(workload, reference) if reference else None,
            goal=goal,
            lower_is_better=workload.is_latency,
        )

    yield figure(bare, None, None)
    for contestant in (*own, *others):
        yield figure(contestant, bare, None)
    for contestant in through:
        yield figure(contestant, own[0], None)
        if not workload.is_latency:
            title = titled(workload, f"{contestant.title}: the gateway's CPU")
            key = _cost_key(workload, contestant)
            yield Figure(key, title, "µs/request", lower_is_better=True)
    for other in others:
        is_mosec = other.key == MOSEC
        for contestant in own if is_mosec else own[:1]:
            goal = workload.goal_to_mosec if is_mosec else workload.goal
            yield figure(contestant, other, goal)


def keyed(workload: Workload, contestant: Contestant) -> str:
    """Its key in the results."""
    return f"{workload.name}.{contestant.key}"


def _cost_key(workload: Workload, contestant: Contestant) -> str:
    return f"{keyed(workload, contestant)}_gateway_cpu"


def titled(workload: Workload, title: str) -> str:
    """A contestant's or a peer's title among those of all workloads."""
    return f"{workload.title}: {title}"
