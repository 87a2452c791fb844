"""What ``batchyard top`` shows, as lines of text that fit the terminal: no clock, no socket."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from batchyard.benchmarks.table import number
from batchyard.clients.gateways.health import obstacles
from batchyard.clients.interval import (
    Distribution,
    Interval,
    ModelInterval,
    WorkerInterval,
    between,
    changes,
)

_EVENTS = 3
_NOTHING = "–"
_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*%#"
_BAR, _ASCII_BAR = ("█", "░"), ("#", ".")
# A bar is as wide as what is beside it leaves.
_BAR_LEAST, _BAR_MOST, _BESIDE_BAR = 4, 20, 60
# A model's columns with their widths; where there is no room, the last of this order go first.
_COLUMNS = {
    "req/s": 8,
    "err/s": 8,
    "p99": 9,
    "queue": 7,
    "p50": 9,
    "missed/s": 9,
    "p95": 9,
}
_SHOWN = ("req/s", "err/s", "missed/s", "queue", "p50", "p95", "p99")
_NAME_LEAST = 14
# Of a worker's line: what has to be there without a bar, and what is left out, this order first.
_WORKER_LEAST = 41
_WORKER_MORE = {"RESTARTS": 9, "BATCHES/S": 9}


class TopView:
    """What is known of a server, and how it is shown.

    ``ascii_only``: the terminal has no other characters.
    """

    def __init__(self, where: str, ascii_only: bool = False) -> None:
        self._where = where
        self._ascii = ascii_only
        self._stats: Mapping[str, Any] | None = None
        self._interval: Interval | None = None
        self._events: deque[tuple[float, str]] = deque(maxlen=_EVENTS)
        self._silent_since: float | None = None
        self._reason = ""

    def heard(self, stats: Mapping[str, Any], now: float) -> None:
        """The server answered, at this time since 1970."""
        if self._silent_since is not None:
            self._events.append((now, f"answers again, after {_age(now - self._silent_since)}"))
        self._silent_since = None
        old, self._stats = self._stats, stats
        if old is None:
            # Of the first answer all is shown that was since the broker's start.
            old = {"broker": {"epoch": None}}
        else:
            self._events.extend((now, text) for text in changes(old, stats))
        self._interval = between(old, stats) or self._interval

    def missed(self, reason: str, now: float) -> None:
        """The server did not answer."""
        if self._silent_since is None:
            self._silent_since = now
            self._events.append((now, f"no answer: {reason}"))
        self._reason = reason

    def lines(self, width: int, height: int) -> list[Text]:
        """So many at most. Of models, those with the most requests are shown."""
        head = [*self._head()]
        events = [
            Text.assemble((_clock(at), "dim"), f" {_printable(text)}") for at, text in self._events
        ]
        interval = self._interval
        if interval is None:
            return [*head, *events][:height]
        bar = max(_BAR_LEAST, min(_BAR_MOST, width - _BESIDE_BAR))
        workers = [Text(""), *self._workers(interval, width, bar)]
        devices = [*self._devices(interval, bar)]
        room = height - len(head) - len(workers) - len(devices) - len(events) - 3
        models = self._models(interval, width, max(3, room))
        tail = [Text(""), *events] if events else []
        return [*head, Text(""), *models, *workers, *devices, *tail][:height]

    # The parts

    def _head(self) -> Iterator[Text]:
        # Where it is comes last: it may be too long for the terminal.
        yield Text.assemble(("batchyard top", "bold"), "  ", self._state(), f"  {self._where}")
        interval = self._interval
        if interval is None or self._stats is None:
            return
        seconds, total = interval.seconds, interval.total
        yield Text(
            f"broker {interval.pid}, up {_age(interval.uptime_s)}, {interval.cpu:.0%} of a core, "
            f"{interval.clients} client{'s' * (interval.clients != 1)}; arena "
            f"{interval.arena_used_bytes / max(1, interval.arena_bytes):.1%} of "
            f"{interval.arena_bytes / 2**20:,.0f} MiB"
        )
        yield Text("")
        yield Text.assemble(
            ("requests ", "dim"),
            (f"{_rate(total.requests, seconds)}/s", "bold"),
            ("  in time ", "dim"),
            f"{_rate(total.good, seconds)}/s",
            ("  errors ", "dim"),
            (f"{_rate(sum(total.errors.values()), seconds)}/s", "red" if total.errors else ""),
            ("  queue ", "dim"),
            f"{total.queue_rows:,} rows",
        )
        yield Text.assemble(
            ("latency p50 ", "dim"),
            _time(total.request, 0.5),
            ("  p95 ", "dim"),
            _time(total.request, 0.95),
            ("  p99 ", "dim"),
            _time(total.request, 0.99),
            ("  waited p50 ", "dim"),
            _time(total.queue, 0.5),
        )

    def _state(self) -> tuple[str, str]:
        if self._silent_since is not None:
            return f"NO ANSWER since {_clock(self._silent_since)}: {self._reason}", "bold red"
        if self._stats is None:
            return "asking …", "dim"
        if self._stats["broker"]["draining"]:
            return "draining", "bold yellow"
        reasons = obstacles(self._stats)
        if reasons:
            return _printable(f"NOT READY: {'; '.join(reasons)}"), "bold red"
        return "ready", "bold green"

    def _models(self, interval: Interval, width: int, height: int) -> list[Text]:
        columns = _columns_for(width)
        name_width = width - sum(_COLUMNS[name] for name in columns)
        heading = "".join(f"{name:>{_COLUMNS[name]}}" for name in columns)
        lines = [Text(f"{'MODEL':<{name_width}}{heading}", "dim")]
        shown: set[int] = set()
        blocks = [self._model(m, interval.seconds, columns, name_width) for m in interval.models]
        left = height - 2
        for i in sorted(range(len(blocks)), key=lambda i: -interval.models[i].requests):
            if len(blocks[i]) <= left:
                left -= len(blocks[i])
                shown.add(i)
        for i, block in enumerate(blocks):
            lines += block if i in shown else []
        if len(shown) < len(blocks):
            more = len(blocks) - len(shown)
            lines.append(Text(f"… and {more} more for which there is no room here", "dim"))
        return lines

    def _model(
        self, model: ModelInterval, seconds: float, columns: list[str], name_width: int
    ) -> list[Text]:
        texts = {
            "req/s": _rate(model.requests, seconds),
            "err/s": _rate(sum(model.errors.values()), seconds),
            "missed/s": _rate(sum(model.misses.values()), seconds),
            "queue": f"{model.queue_rows:,}",
            "p50": _time(model.request, 0.5),
            "p95": _time(model.request, 0.95),
            "p99": _time(model.request, 0.99),
        }
        styles = {
            "err/s": "red" * bool(model.errors),
            "missed/s": "red" * any(model.misses.values()),
        }
        name = _cut(f"{_printable(model.name)} {model.version}", name_width - 1)
        line = Text(f"{name:<{name_width}}", "bold")
        for column in columns:
            line.append(f"{texts[column]:>{_COLUMNS[column]}}", styles.get(column) or "not bold")
        lines = [line]
        if model.state != "AVAILABLE" or model.error:
            lines.append(Text(f"  {model.state} {_printable(model.error)}", "red"))
        if model.batches:
            lines.append(self._batches(model))
        for what, counts in (("errors", model.errors), ("deadline missed", model.misses)):
            each = [f"{name} {_rate(n, seconds)}/s" for name, n in counts.items() if n]
            if each:
                lines.append(Text(f"  {what}: {', '.join(each)}", "red"))
        return lines

    def _batches(self, model: ModelInterval) -> Text:
        low, high, spark = self._sparkline(model.batch_rows)
        line = Text.assemble(("  batches ", "dim"), f"{low}")
        if high > low:
            line.append(spark, "cyan").append(f"{high} rows, mean {number(model.mean_rows or 0.0)}")
        else:
            line.append(f" row{'s' * (low > 1)}")
        if model.padding:
            line.append(f", {model.padding:.0%} padding")
        line.append(f"; run {_duration(model.execution.mean_s)}")
        if model.prediction_error is not None:
            line.append(f", predicted within {model.prediction_error:.0%}")
        return line

    def _sparkline(self, batch_rows: Mapping[int, int]) -> tuple[int, int, str]:
        """The smallest and the largest size, and how many there were between, by powers of two."""
        counts: dict[int, int] = {}
        for rows, count in batch_rows.items():
            power = (rows - 1).bit_length()
            counts[power] = counts.get(power, 0) + count
        blocks = _ASCII_BLOCKS if self._ascii else _BLOCKS
        most = max(counts.values())
        powers = range(min(counts), max(counts) + 1)
        spark = "".join(
            blocks[math.ceil(counts[p] / most * len(blocks)) - 1] if p in counts else " "
            for p in powers
        )
        return min(batch_rows), max(batch_rows), spark

    def _workers(self, interval: Interval, width: int, bar: int) -> Iterator[Text]:
        columns = _worker_columns_for(width - bar)
        more = "".join(f"{name:>{_WORKER_MORE[name]}}" for name in columns)
        yield Text(
            f"{'WORKER':<7}{'DEVICE':<10}{'STATE':<9}{'BUSY':<{bar + 6}}{more}{'PID':>9}", "dim"
        )
        for worker in interval.workers:
            yield self._worker(worker, interval.seconds, columns, bar)

    def _worker(self, worker: WorkerInterval, seconds: float, columns: list[str], bar: int) -> Text:
        state = "red" if worker.state in ("FAILED", "STOPPING") else ""
        texts = {
            "BATCHES/S": (_rate(worker.batches, seconds), ""),
            "RESTARTS": (str(worker.restarts), "yellow" * bool(worker.restarts)),
        }
        return Text.assemble(
            f"{worker.id:<7}{_cut(worker.device, 9):<10}",
            (f"{worker.state:<9}", state),
            *self._share(worker.busy, bar),
            *((f"{texts[name][0]:>{_WORKER_MORE[name]}}", texts[name][1]) for name in columns),
            f"{worker.pid:>9}",
        )

    def _devices(self, interval: Interval, bar: int) -> Iterator[Text]:
        for device in interval.devices:
            used, memory = device["memory_used_bytes"], device["memory_bytes"]
            yield Text.assemble(
                f"{_cut(device['device'], 16):<17}",
                ("GPU      ", "dim"),
                *self._share(device["utilization"], bar),
                f"  {used / 2**30:.1f} of {memory / 2**30:.1f} GiB  {device['name']}",
            )

    def _share(self, share: float | None, bar: int) -> list[tuple[str, str]]:
        """A bar and a number."""
        full, empty = _ASCII_BAR if self._ascii else _BAR
        filled = round(bar * (share or 0.0))
        text = _NOTHING if share is None else f"{share:.0%}"
        return [(full * filled, "cyan"), (empty * (bar - filled), "dim"), (f"{text:>6}", "")]


def _columns_for(width: int) -> list[str]:
    left = width - _NAME_LEAST
    fitting = set()
    for name, needed in _COLUMNS.items():
        if needed > left:
            break
        left -= needed
        fitting.add(name)
    return [name for name in _SHOWN if name in fitting]


def _worker_columns_for(width: int) -> list[str]:
    fitting = dict(_WORKER_MORE)
    while fitting and _WORKER_LEAST + sum(fitting.values()) > width:
        del fitting[next(iter(fitting))]
    return [name for name in reversed(_WORKER_MORE) if name in fitting]


def _rate(count: int, seconds: float) -> str:
    return number(count / seconds) if count else "0"


def _time(distribution: Distribution, q: float) -> str:
    seconds = distribution.quantile(q)
    return f">{distribution.bounds_s[-1]:g} s" if seconds == math.inf else _duration(seconds)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(seconds * 1e3)} ms"


def _age(seconds: float) -> str:
    minutes, hours = seconds // 60, seconds // 3600
    if hours >= 24:
        return f"{hours // 24:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min {seconds % 60:.0f} s" if minutes else f"{seconds:.0f} s"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def _printable(text: str) -> str:
    """A name may hold what a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in text)
