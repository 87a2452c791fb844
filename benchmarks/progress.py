"""How far something has come that takes minutes: a bar on a terminal, nothing anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


class ProgressBar:
    """Drawn below what is written meanwhile to standard error; gone when its context ends.

    It goes to standard error: standard output is for results.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        *,
        ticks: bool = False,
        console: Console | None = None,
    ) -> None:
        """``total``: what there is to do, in any unit; None where that is not known.

        ``ticks``: it is drawn all the time, by a thread, which a measurement here would suffer
        from; otherwise when there is something to ``show``.
        """
        console = console or Console(stderr=True)
        self._ticks = ticks
        self._progress = Progress(
            *([SpinnerColumn()] if ticks else []),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            *([TaskProgressColumn()] if total is not None else []),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            auto_refresh=ticks,
            # What is for standard output stays there, though it may be a file.
            redirect_stdout=False,
            disable=not console.is_terminal or console.is_dumb_terminal,
        )
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, what: str, done: float) -> None:
        """So much is done, and this is what goes on."""
        self._progress.update(self._task, description=what, completed=done, refresh=not self._ticks)

    def note(self, line: str) -> None:
        """A line that stays; on what is no terminal, too."""
        self._progress.console.print(Text(line), soft_wrap=True)
