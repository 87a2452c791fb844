"""What commands that take minutes have in common: what they need, files, and how they end."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import click


def need_the_extra() -> None:
    """Raises UsageError when what measures is not installed: a server needs less."""
    if not all(find_spec(name) for name in ("hdrh", "tomlkit")):
        raise click.UsageError("needs more than a server does: pip install 'batchyard[bench]'")


def writable(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """A path that can be written when the run is over; with plots, if its name says HTML."""
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.absolute().parent}")
    if path is not None and option.name == "html_path" and find_spec("matplotlib") is None:
        raise click.BadParameter("needs matplotlib: pip install 'batchyard[bench]'")
    return path


def end(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM: what `kill` or `timeout` ends has servers to end too, as Ctrl-C has."""
    sys.exit(128 + number)


def end_on_sigterm() -> None:
    """Has SIGTERM end this process in order."""
    signal.signal(signal.SIGTERM, end)
