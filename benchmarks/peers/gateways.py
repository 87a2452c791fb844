"""Batchyard at the workloads through REST and gRPC, as clients of TensorFlow Serving come.

What a gateway's process itself costs is measured beside: its CPU time for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from batchyard.benchmarks.peers import process_tree
from batchyard.benchmarks.peers.contestant import Contestant, ContestantFailed
from batchyard.benchmarks.peers.formats import Array, Json
from batchyard.benchmarks.peers.http_load import HttpFailed, Request, requests_per_s
from batchyard.benchmarks.peers.theirs import check, latency_us
from batchyard.benchmarks.peers.workloads import Workload
from batchyard.benchmarks.timing import awaits_p50_us, awaits_per_s

REST, GRPC = "rest", "grpc"
_HOST = "127.0.0.1"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WARM_UP_SHARE = 0.25


def free_ports() -> dict[str, int]:
    """A port for each gateway, by its section of the configuration."""
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in (REST, GRPC)}
        for found in sockets.values():
            found.bind((_HOST, 0))
        return {name: found.getsockname()[1] for name, found in sockets.items()}


def contestants(
    ports: Mapping[str, int], workload: Workload, outputs: Sequence[Array]
) -> list[Contestant]:
    """Both ways in. ``outputs`` has what the model makes of each of the workload's rows."""
    cpu = {name: Cpu() for name in ports}
    return [
        Contestant(
            REST,
            "REST, JSON",
            partial(_rest, ports[REST], workload, outputs, cpu[REST]),
            cpu[REST].us_per_request,
        ),
        Contestant(
            GRPC,
            "gRPC, grpc.aio client",
            partial(_grpc, ports[GRPC], workload, cpu[GRPC]),
            cpu[GRPC].us_per_request,
        ),
    ]


@dataclass(slots=True)
class Cpu:
    """What the last measurement cost a gateway."""

    seconds: float = 0.0
    requests: float = 0.0

    def us_per_request(self) -> float | None:
        """None where too little was done to say."""
        return self.seconds / self.requests * 1e6 if self.requests and self.seconds else None

    @contextlib.contextmanager
    def measured(self, gateway: str) -> Iterator[None]:
        """Measures what its processes do meanwhile; ``requests`` is for the caller to set."""
        self.seconds = self.requests = 0.0
        pids = _gateway_pids(gateway)
        before = sum(map(_cpu_s, pids))
        yield
        self.seconds = sum(map(_cpu_s, pids)) - before


def _rest(
    port: int, workload: Workload, outputs: Sequence[Array], cpu: Cpu, seconds: float
) -> float:
    format_ = Json(f"/v1/models/{workload.model}:predict")
    contents = format_.requests(port, workload.rows())
    requests = [
        Request(content, partial(check, format_, output), is_text=True)
        for content, output in zip(contents, outputs, strict=True)
    ]
    try:
        if workload.is_latency:
            return latency_us(port, requests[0], seconds)
        rates = []
        for count in workload.in_flight:
            requests_per_s(port, requests[:count], 0, seconds * _WARM_UP_SHARE)
            with cpu.measured(REST):
                rates.append(requests_per_s(port, requests[:count], 0, seconds))
            cpu.requests = rates[-1] * seconds
        return max(rates)
    except (HttpFailed, OSError) as error:
        raise ContestantFailed(str(error)) from None


def _grpc(port: int, workload: Workload, cpu: Cpu, seconds: float) -> float:
    # It takes a while to import, and only this needs it.
    import grpc.aio

    try:
        return asyncio.run(_called(port, workload, cpu, seconds))
    except grpc.aio.AioRpcError as error:
        raise ContestantFailed(f"{error.code().name}: {error.details()}") from None


async def _called(port: int, workload: Workload, cpu: Cpu, seconds: float) -> float:
    import grpc.aio

    from batchyard.benchmarks.load.targets import predict_messages as messages

    following = cycle(_grpc_requests(workload))
    async with grpc.aio.insecure_channel(f"{_HOST}:{port}") as channel:
        predict: Callable[[bytes], Any] = channel.unary_unary(messages.PREDICT)

        async def call() -> Any:
            return await predict(next(following))

        await call()
        if workload.is_latency:
            return await awaits_p50_us(call, seconds)
        rates = []
        for count in workload.in_flight:
            with cpu.measured(GRPC):
                rates.append(await awaits_per_s(call, count, seconds))
            cpu.requests = rates[-1] * seconds
        return max(rates)


def _grpc_requests(workload: Workload) -> list[bytes]:
    from batchyard.benchmarks.load.targets.predict_messages import ModelSpec, PredictRequest
    from batchyard.benchmarks.load.targets.tensorflow_types import NUMBERS

    found = []
    for row in workload.rows():
        request = PredictRequest(model_spec=ModelSpec(name=workload.model))
        tensor = request.inputs["x"]
        tensor.dtype = NUMBERS["float32"]
        for size in row.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = row.tobytes()
        found.append(request.SerializeToString())
    return found


def _gateway_pids(gateway: str) -> list[int]:
    """The processes of a gateway of the server that this process started."""
    module = f"batchyard.clients.gateways.{gateway}".encode()
    found = []
    for process in process_tree.descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if module in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                found.append(process.pid)
    return found


def _cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has had, as itself and in the kernel."""
    # The name in parentheses may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
