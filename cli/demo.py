"""``batchyard demo``: what Batchyard does, shown in half a minute."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from batchyard.benchmarks.progress import ProgressBar
from batchyard.cli.local_server import ServerDidNotStart, local_server, sample_model
from batchyard.clients import Client
from batchyard.wire.control import EXIT_FAILURE, INTERRUPTED_EXIT

_MODEL = "half_plus_two"
# Single requests that each client process keeps under way.
_IN_FLIGHT = 16
_START_TIMEOUT_S = 60.0
# How often is looked how far they are.
_LOOK_S = 0.2


@click.command()
@click.option(
    "--clients", default=4, type=click.IntRange(1), show_default=True, help="Client processes."
)
@click.option(
    "--requests",
    default=2000,
    type=click.IntRange(1),
    show_default=True,
    help="Requests from each of them.",
)
@click.option(
    "--workers",
    default=2,
    type=click.IntRange(1),
    show_default=True,
    help="Worker processes, on the CPU.",
)
def command(clients: int, requests: int, workers: int) -> None:
    """Make a small model, serve it, send traffic, show the result."""
    console = Console(highlight=False)
    try:
        with contextlib.ExitStack() as stack:
            console.print(f"Exporting the SavedModel [bold]{_MODEL}[/] (y = x / 2 + 2) …")
            with ProgressBar("exporting", ticks=True):
                path = stack.enter_context(sample_model())
            console.print(f"Starting the broker and {workers} workers, each with TensorFlow …")
            arguments = ["--model", f"{_MODEL}={path}", "--workers", str(workers)]
            with ProgressBar("loading and warming up", ticks=True):
                endpoint = stack.enter_context(local_server([*arguments, "--device", "cpu"]))
            _show(console, endpoint, clients, requests)
    except ServerDidNotStart as error:
        console.print(str(error), style="red", markup=False)
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        sys.exit(INTERRUPTED_EXIT)
    console.print("Stopped; nothing is left running.")


def _show(console: Console, endpoint: str, clients: int, requests: int) -> None:
    with Client(endpoint) as client:
        x = np.array([1, 2, 5], np.float32)
        y = client.predict(_MODEL, {"x": x})["y"]
        console.print(f"\n{_MODEL}({x.tolist()}) = [bold]{y.tolist()}[/]\n")
        before = _counts(client)
        console.print(f"{clients} client processes send {requests} single requests each …")
        started = time.perf_counter()
        with _sending(client, before["requests"], clients * requests):
            latencies = _run_clients(endpoint, clients, requests)
        elapsed_s = time.perf_counter() - started
        after = _counts(client)
    sent = after["requests"] - before["requests"]
    batches = after["batches"] - before["batches"]
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]) * 1e3
    console.print(
        f"[bold]{sent}[/] requests became [bold]{batches}[/] batches, {sent / batches:.1f} rows "
        f"each, in {elapsed_s:.2f} s: {sent / elapsed_s:,.0f} requests/s\n"
        f"latency: p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms\n"
    )
    console.print(_histogram(before["batch_rows"], after["batch_rows"]))


def _counts(client: Client) -> dict[str, Any]:
    counts: dict[str, Any] = client.stats()["models"][0]
    return counts


@contextlib.contextmanager
def _sending(client: Client, before: int, total: int) -> Iterator[None]:
    """A bar of the requests that were answered, as the server counts them."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_S):
            bar.show("sending", _counts(client)["requests"] - before)

    with ProgressBar("starting clients", total, ticks=True) as bar:
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _run_clients(endpoint: str, clients: int, requests: int) -> list[float]:
    """Seconds that each request took, from several processes that begin together."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(clients)
    with context.Pool(clients, initializer=_remember, initargs=(start,)) as pool:
        results = pool.starmap(_run_client, [(endpoint, requests)] * clients, chunksize=1)
    return [latency for result in results for latency in result]


_start: Any = None


def _remember(start: Any) -> None:
    global _start
    _start = start


def _run_client(endpoint: str, requests: int) -> list[float]:
    latencies: list[float] = []
    with Client(endpoint) as client:
        client.metadata(_MODEL)
        _start.wait(_START_TIMEOUT_S)
        under_way: list[tuple[float, Any]] = []
        for i in range(requests):
            if len(under_way) == _IN_FLIGHT:
                _finish(under_way, latencies)
            row = np.array([i], np.float32)
            under_way.append((time.perf_counter(), client.submit(_MODEL, row)))
        while under_way:
            _finish(under_way, latencies)
    return latencies


def _finish(under_way: list[tuple[float, Any]], latencies: list[float]) -> None:
    sent_at, future = under_way.pop(0)
    future.result()
    latencies.append(time.perf_counter() - sent_at)


def _histogram(before: dict[str, int], after: dict[str, int]) -> Table:
    """Batches by size, in powers of two."""
    counts: dict[int, int] = {}
    for size, count in after.items():
        bucket = 1 << (int(size) - 1).bit_length()
        counts[bucket] = counts.get(bucket, 0) + count - before.get(size, 0)
    most = max(counts.values())
    table = Table(title="batch sizes", title_justify="left", box=None)
    for column in ("rows", "batches", ""):
        table.add_column(column, justify="right" if column else "left")
    low = 1
    for bucket in sorted(bucket for bucket, count in counts.items() if count):
        low = bucket // 2 + 1 if bucket > 1 else 1
        rows = str(bucket) if low == bucket else f"{low}–{bucket}"
        table.add_row(rows, str(counts[bucket]), "█" * max(1, round(40 * counts[bucket] / most)))
    return table
