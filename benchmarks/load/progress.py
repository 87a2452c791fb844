"""How a load test fares, in the terminal, while it goes on."""

from __future__ import annotations

from typing import Any, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from batchyard.benchmarks.load.result import Progress
from batchyard.benchmarks.table import number

_NOTHING = "–"


class LiveView:
    """A line of figures that is drawn anew; shows nothing where nobody looks.

    It goes to stderr: stdout is for results.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._shown = self._console.is_terminal and not quiet
        self._title = ""
        self._live = Live(console=self._console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._shown:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._shown:
            self._live.__exit__(*error)

    def title(self, text: str) -> None:
        """What is going on, in a line above the figures."""
        self._title = text

    def note(self, text: str) -> None:
        """A line that stays, as that of a trial that is over."""
        if self._shown:
            self._console.print(Text(text))

    def __call__(self, progress: Progress) -> None:
        """For ``run_load``."""
        if self._shown:
            self._live.update(rendered(progress, self._title), refresh=True)


def rendered(progress: Progress, title: str = "") -> RenderableType:
    """The figures under their names, in as many lines as the terminal's width asks for."""
    figures = Columns(
        [
            Text.assemble((name, "dim"), "\n", text, justify="right", no_wrap=True)
            for name, text in texts(progress).items()
        ],
        padding=(0, 2),
    )
    return Group(Text(title), figures) if title else figures


def texts(progress: Progress) -> dict[str, str]:
    """Name and text of each figure; rates are those since the start."""
    if progress.t <= 0:
        return {"warm-up": f"{-progress.t:.0f} s left"}
    seconds = min(progress.t, progress.duration_s)
    known = max(1, progress.planned - progress.unanswered)
    recent = progress.recent
    return {
        "elapsed": f"{seconds:.0f}/{progress.duration_s:.0f} s",
        "offered/s": number(progress.planned / seconds),
        "in time/s": number(progress.in_time / seconds),
        "in time": f"{progress.in_time / known:.2%}",
        "in flight": f"{progress.unanswered:,}",
        "p50": _ms(None if recent is None else recent.p50_s),
        "p99": _ms(None if recent is None else recent.p99_s),
        "late": f"{progress.late:,}",
        "errors": f"{sum(progress.errors.values()):,}",
        "send lag": _ms(progress.send_lag_p99_s),
        "queue": _NOTHING
        if recent is None or recent.queue_rows is None
        else f"{recent.queue_rows:,.0f}",
    }


def _ms(seconds: float | None) -> str:
    return _NOTHING if seconds is None else f"{number(seconds * 1e3)} ms"
