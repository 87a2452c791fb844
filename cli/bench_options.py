"""Options that benchmarks have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click


def seconds(default: float, what: str = "each measurement") -> Any:
    """``--seconds``: how long ``what`` is measured."""
    return click.option(
        "--seconds",
        type=click.FloatRange(0, 3600, min_open=True),
        default=default,
        show_default=True,
        help=f"Length of {what}.",
    )


def repeat(default: int) -> Any:
    """``--repeat``: how many rounds."""
    return click.option(
        "--repeat",
        type=click.IntRange(1, 1000),
        default=default,
        show_default=True,
        help="Rounds; medians are reported.",
    )


def only(parts: Iterable[str]) -> Any:
    """``--only``: of a benchmark's parts."""
    return click.option(
        "--only",
        type=click.Choice(list(parts)),
        multiple=True,
        help="Measure this part only. May be given again.",
    )
