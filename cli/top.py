"""``batchyard top``: how a running server fares, live in the terminal."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from batchyard.cli.connecting import connected, endpoint_option
from batchyard.cli.keyboard import keys
from batchyard.cli.outputs import end_on_sigterm
from batchyard.cli.top_devices import LocalDevices
from batchyard.cli.top_view import TopView
from batchyard.clients import Client
from batchyard.wire.control import EXIT_CONFIGURATION
from batchyard.wire.errors import BatchyardError, InvalidArgument

# How often the terminal's size and the keyboard are looked at.
_LOOK_S = 0.2
# Without an answer for so long, and for two intervals, the server is said to be silent.
_SILENT_S = 2.0


@click.command()
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds from one look to the next, which figures are of.",
)
@click.option("--once", is_flag=True, help="Print the figures of one interval, and end.")
@endpoint_option
def command(interval_s: float, once: bool, endpoints: tuple[str, ...]) -> None:
    """Show live how a running server fares: rates, latencies, queue, batches, workers, devices.

    q or Ctrl-C ends it. When the server goes away it says so, and goes on when it is back.
    """
    # Names are a model's own; a terminal that lacks their characters shows others.
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console(highlight=False)
    if not once and (not console.is_terminal or console.is_dumb_terminal):
        print("batchyard: no terminal to draw on: --once prints one interval", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    view = TopView(", ".join(endpoints) or "this machine's server", console.options.ascii_only)
    # No question waits for a server that is gone: that is what is to be shown.
    with connected(endpoints, reconnect_timeout=0.0) as client:
        try:
            if once:
                _show_once(client, view, interval_s, console)
            else:
                end_on_sigterm()
                _show(client, view, interval_s, console)
        except KeyboardInterrupt:
            pass


def _show_once(client: Client, view: TopView, interval_s: float, console: Console) -> None:
    devices = LocalDevices()
    view.heard(client.metrics(), time.time())
    time.sleep(interval_s)
    view.heard(devices.beside(client.metrics()), time.time())
    for line in view.lines(console.width, sys.maxsize):
        console.print(line, soft_wrap=not console.is_terminal, no_wrap=True, overflow="ellipsis")


@dataclass(frozen=True, slots=True)
class _Look:
    """What came of a question: an answer, or why there was none."""

    stats: Mapping[str, Any] | None
    reason: str
    at: float


def _show(client: Client, view: TopView, interval_s: float, console: Console) -> None:
    size = None
    with (
        keys() as pressed,
        _looking(client, interval_s) as looks,
        Live(console=console, **_LIVE) as live,
    ):
        last_heard = time.time()
        while "q" not in pressed().lower():
            try:
                look = looks.get(timeout=_LOOK_S)
            except queue.Empty:
                if time.time() - last_heard > _SILENT_S + 2 * interval_s:
                    view.missed("it does not answer", last_heard)
                elif console.size == size:
                    continue
            else:
                last_heard = time.time()
                if look.stats is None:
                    view.missed(look.reason, look.at)
                else:
                    view.heard(look.stats, look.at)
            size = console.size
            lines = view.lines(size.width, size.height)
            live.update(Group(*(_fitting(line, size.width) for line in lines)), refresh=True)


_LIVE: dict[str, Any] = {"screen": True, "auto_refresh": False}


def _fitting(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


@contextlib.contextmanager
def _looking(client: Client, interval_s: float) -> Iterator[queue.Queue[_Look]]:
    """Asks on a thread of its own, so that a server that hangs leaves Ctrl-C and the view alone."""
    looks: queue.Queue[_Look] = queue.Queue()
    over = threading.Event()
    devices = LocalDevices()

    def ask() -> None:
        next_at = time.monotonic()
        while not over.is_set():
            try:
                stats = devices.beside(client.metrics())
                looks.put(_Look(stats, "", time.time()))
            except InvalidArgument as error:
                looks.put(_Look(None, f"it is too old for top: {error.message}", time.time()))
            except BatchyardError as error:
                looks.put(_Look(None, error.message, time.time()))
            # What was late is not made up for.
            next_at = max(next_at + interval_s, time.monotonic())
            over.wait(next_at - time.monotonic())

    # Not the one that Ctrl-C or a signal interrupts.
    with _signals_blocked():
        threading.Thread(target=ask, name="batchyard-top", daemon=True).start()
    try:
        yield looks
    finally:
        over.set()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
