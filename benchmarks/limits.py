"""What this machine can do at best: what the other benchmarks' figures are to be seen beside."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from batchyard.benchmarks import raw
from batchyard.benchmarks.bare import BareTensorFlow
from batchyard.benchmarks.echo import echo_server
from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.memcpy import BATCH, IMAGE_NBYTES, IMAGE_SHAPE, Memcpy
from batchyard.benchmarks.models import exported
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.benchmarks.seqpacket_echo import PACKET_NBYTES, seqpacket_echo
from batchyard.benchmarks.timing import p50_us

_FRAMES = raw.one_row_requests("half_plus_two", 1)[0]
_FIGURES = [
    Figure("echo_tcp", f"raw pyzmq echo, tcp, {raw.IN_FLIGHT} in flight", "requests/s"),
    Figure("echo_ipc", f"raw pyzmq echo, ipc, {raw.IN_FLIGHT} in flight", "requests/s"),
    Figure("echo_p50_tcp", "raw pyzmq echo, tcp, unloaded p50", "µs", lower_is_better=True),
    Figure("echo_p50_ipc", "raw pyzmq echo, ipc, unloaded p50", "µs", lower_is_better=True),
    Figure("seqpacket_p50", "SOCK_SEQPACKET pair, round trip p50", "µs", lower_is_better=True),
    Figure("memcpy", f"memcpy of {BATCH} images, one thread", "GB/s"),
    Figure("bare_p50", "bare TensorFlow call, half_plus_two, p50", "µs", lower_is_better=True),
    Figure("bare_mean", f"bare TensorFlow mean of images, by {BATCH}", "images/s"),
]


def run(seconds: float, repeat: int) -> Results:
    """Measures each for ``seconds``, ``repeat`` times, in turn."""
    with (
        BareTensorFlow() as bare,
        exported("half_plus_two", "mean") as folders,
        echo_server() as (tcp, ipc),
        seqpacket_echo() as pair,
    ):
        bare.load("half_plus_two", folders["half_plus_two"], [1])
        bare.load("mean", folders["mean"], [BATCH, *IMAGE_SHAPE])
        memcpy = Memcpy()
        measurements: dict[str, Callable[[], Mapping[str, float]]] = {}

        def add(key: str, measure: Callable[[], float]) -> None:
            measurements[key] = lambda: {key: measure()}

        add("echo_tcp", lambda: raw.echo_per_s(tcp, _FRAMES, seconds))
        add("echo_ipc", lambda: raw.echo_per_s(ipc, _FRAMES, seconds))
        add("echo_p50_tcp", lambda: raw.echo_p50_us(tcp, _FRAMES, seconds))
        add("echo_p50_ipc", lambda: raw.echo_p50_us(ipc, _FRAMES, seconds))
        add("seqpacket_p50", lambda: _seqpacket_p50(pair, seconds))
        add("memcpy", lambda: memcpy.gb_per_s(seconds))
        add("bare_p50", lambda: bare.p50_us("half_plus_two", seconds))
        add("bare_mean", lambda: bare.rows_per_s("mean", seconds))
        measured = run_rounds(measurements, repeat)
    settings = {
        "seconds": seconds,
        "repeat": repeat,
        "image_nbytes": IMAGE_NBYTES,
        "echo_frame_nbytes": [len(frame) for frame in _FRAMES],
        "packet_nbytes": PACKET_NBYTES,
        "tensorflow_threads": 1,
    }
    return Results("limits", describe(), settings, _FIGURES, measured)


def _seqpacket_p50(pair: socket.socket, seconds: float) -> float:
    packet = bytes(PACKET_NBYTES)

    def round_trip() -> None:
        pair.send(packet)
        pair.recv(PACKET_NBYTES)

    return p50_us(round_trip, seconds)
