"""What keys cost: the same messages by CURVE and by plain TCP, to two servers of the same kind.

By a bare ZeroMQ socket: on one machine the SDK would not go by TCP where it need not.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from zmq.auth import create_certificates

from batchyard.benchmarks import raw
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.served import Model, configuration
from batchyard.benchmarks.timing import p50_us
from batchyard.cli.local_server import server_on_tcp_and_ipc
from batchyard.clients import Client
from batchyard.wire import protocol
from batchyard.wire.keys import ClientCurve, read_key_pair
from batchyard.wire.protocol import InputHeader, MessageType, Target

_CALLABLE = "batchyard.benchmarks.callables:one_value"
_BATCHING = {"max_batch_size": 256, "batch_timeout_micros": 0}
_TOGETHER = 64
# Of messages with so many requests each.
_IN_FLIGHT = 16
_LARGE_NBYTES = 1 << 20
_LARGE_IN_FLIGHT = 4
_MODELS = [
    Model("small", _CALLABLE, _BATCHING, {"x": ("float32", (-1,))}, {"y": ("float32", (-1,))}),
    Model(
        "large",
        _CALLABLE,
        {**_BATCHING, "max_batch_size": 4},
        {"x": ("float32", (-1, -1))},
        {"y": ("float32", (-1,))},
    ),
]
_HELLO = protocol.encode(MessageType.HELLO, [])


@dataclass(frozen=True, slots=True)
class _Server:
    """``ipc`` is for questions about it."""

    tcp: str
    ipc: str
    curve: ClientCurve | None


def run(seconds: float, repeat: int) -> Results:
    """Measures each for ``seconds``, ``repeat`` times, in turn."""
    with _served(keys=False) as plain, _served(keys=True) as keyed:
        measurements: dict[str, Callable[[], Mapping[str, float]]] = {}
        for name, measure in (
            ("one a message", _one_by_one),
            (f"{_TOGETHER} a message", _together),
            ("1 MiB", _large),
            ("p50", _p50),
            ("connect", _connect),
        ):
            for kind, server in (("tcp", plain), ("curve", keyed)):
                measurements[f"{name}, {kind}"] = _ending(kind, measure, server, seconds)
        measured = run_rounds(measurements, repeat)
    settings = {"seconds": seconds, "repeat": repeat, "in_flight": raw.IN_FLIGHT, **_BATCHING}
    return Results("security", describe(), settings, [*_figures()], measured)


def _ending(
    kind: str,
    measure: Callable[[_Server, float], Mapping[str, float]],
    server: _Server,
    seconds: float,
) -> Callable[[], Mapping[str, float]]:
    """Keys end with the kind."""
    return lambda: {f"{key}_{kind}": value for key, value in measure(server, seconds).items()}


def _figures() -> Iterator[Figure]:
    for key, title, unit, lower_is_better in (
        ("one", f"one request a message, {raw.IN_FLIGHT} in flight", "requests/s", False),
        ("cpu_one", "the same, broker's CPU a request", "µs", True),
        (
            "together",
            f"{_TOGETHER} requests a message, {_IN_FLIGHT} in flight",
            "requests/s",
            False,
        ),
        ("cpu_together", "the same, broker's CPU a request", "µs", True),
        ("large", f"1 MiB a request, {_LARGE_IN_FLIGHT} in flight", "GB/s", False),
        ("cpu_large", "the same, broker's CPU a request", "µs", True),
        ("p50", "one request at a time, p50", "µs", True),
        ("connect", "connect until WELCOME, p50", "µs", True),
    ):
        for kind in ("tcp", "curve"):
            reference = f"{key}_tcp" if kind == "curve" else None
            yield Figure(
                f"{key}_{kind}",
                f"{title}, {kind}",
                unit,
                reference,
                lower_is_better=lower_is_better,
            )


@contextlib.contextmanager
def _served(*, keys: bool) -> Iterator[_Server]:
    with tempfile.TemporaryDirectory(prefix="batchyard-") as text:
        folder = Path(text)
        curve = _make_keys(folder) if keys else None
        table = (
            f'[broker]\ncurve_secret_key_file = "{folder}/server.key_secret"\n'
            f'curve_clients = "{folder}/clients"\n'
        )
        path = folder / "config.toml"
        path.write_text((table if keys else "") + configuration(_MODELS, 1, {}))
        with server_on_tcp_and_ipc([str(path)]) as (tcp, ipc):
            yield _Server(tcp, ipc, curve)


def _make_keys(folder: Path) -> ClientCurve:
    clients = folder / "clients"
    clients.mkdir()
    # Others cannot look into the folder; the server insists on the file's mode.
    for name in ("server", "client"):
        Path(create_certificates(folder, name)[1]).chmod(0o600)
    (folder / "client.key").rename(clients / "client.key")
    server = read_key_pair(folder / "server.key_secret")
    return ClientCurve(server.public, read_key_pair(folder / "client.key_secret"))


def _with_cpu(server: _Server, key: str, measure: Callable[[], float]) -> dict[str, float]:
    """What is measured, and the broker's CPU a request meanwhile, libzmq's threads and all."""
    with Client(server.ipc) as client:
        before = client.stats()
        value = measure()
        after = client.stats()
    requests = _requests(after) - _requests(before)
    cpu_s = after["broker"]["cpu_s"] - before["broker"]["cpu_s"]
    return {key: value, f"cpu_{key}": cpu_s / requests * 1e6}


def _requests(stats: dict[str, Any]) -> int:
    return sum(model["requests"] for model in stats["models"])


def _one_by_one(server: _Server, seconds: float) -> dict[str, float]:
    return _with_cpu(
        server, "one", lambda: raw.requests_per_s(server.tcp, "small", seconds, server.curve)
    )


def _together(server: _Server, seconds: float) -> dict[str, float]:
    target = _target("small", (None,))
    rows = np.ones(_TOGETHER, np.float32).tobytes()
    messages = [
        (protocol.encode_predict(i + 1, target, _TOGETHER, None), rows)
        for i in range(4 * _IN_FLIGHT)
    ]

    def measure() -> float:
        rate = raw.messages_per_s(server.tcp, messages, _IN_FLIGHT, seconds, server.curve)
        return rate * _TOGETHER

    return _with_cpu(server, "together", measure)


def _large(server: _Server, seconds: float) -> dict[str, float]:
    target = _target("large", (None, _LARGE_NBYTES // 4))
    tensor = np.ones(_LARGE_NBYTES // 4, np.float32).tobytes()
    messages = [
        (protocol.encode_predict(i + 1, target, 1, None), tensor)
        for i in range(4 * _LARGE_IN_FLIGHT)
    ]

    def measure() -> float:
        rate = raw.messages_per_s(server.tcp, messages, _LARGE_IN_FLIGHT, seconds, server.curve)
        return rate * _LARGE_NBYTES / 1e9

    return _with_cpu(server, "large", measure)


def _target(model: str, shape: tuple[int | None, ...]) -> bytes:
    inputs = (InputHeader("x", "float32", shape),)
    return Target(model, None, None, "serving_default", 0, inputs).encode()


def _p50(server: _Server, seconds: float) -> dict[str, float]:
    frames = raw.one_row_requests("small", 1)[0]
    with raw.dealer(server.tcp, server.curve) as socket:

        def round_trip() -> None:
            socket.send_multipart(frames)
            socket.recv_multipart()

        return {"p50": p50_us(round_trip, seconds / 2)}


def _connect(server: _Server, seconds: float) -> dict[str, float]:
    times: list[float] = []
    until = time.perf_counter() + seconds / 2
    with zmq.Context() as context:
        while not times or time.perf_counter() < until:
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                if server.curve is not None:
                    server.curve.apply(socket)
                started = time.perf_counter()
                socket.connect(server.tcp)
                socket.send(_HELLO)
                socket.recv()
                times.append(time.perf_counter() - started)
    return {"connect": float(np.median(times)) * 1e6}
