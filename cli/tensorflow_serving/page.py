"""Writes the table of flags into ``docs/tensorflow-serving.md`` from the flags' one definition.

    python -m batchyard.cli.tensorflow_serving.page docs/tensorflow-serving.md

``make docs`` runs it; a test checks that the page is current.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from batchyard.cli.tensorflow_serving.flags import FLAGS, OWN, Flag, Treatment

_BEGIN = "<!-- flags: written by `make docs` from cli/tensorflow_serving/flags.py; edit that -->\n"
_END = "<!-- end of flags -->\n"


def with_flags(page: str) -> str:
    """The page with the tables of now between its two marks. Raises ValueError without them."""
    before, mark, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (mark and end):
        raise ValueError(f"the page must have the lines {_BEGIN!r} and {_END!r}")
    own = "Batchyard's own, beside them:\n\n"
    return f"{before}{_BEGIN}\n{_table(FLAGS)}\n{own}{_table(OWN)}\n{_END}{after}"


def _table(flags: Sequence[Flag]) -> str:
    rows = [f"| `--{flag.name}` | {_default(flag)} | {_here(flag)} |\n" for flag in flags]
    return "| flag | default | here |\n|---|---|---|\n" + "".join(rows)


def _default(flag: Flag) -> str:
    shown = flag.shown_default
    return shown if flag.default_is or not shown else f"`{shown}`"


def _here(flag: Flag) -> str:
    words = {Treatment.NOTED: "*No effect:* ", Treatment.REFUSED: "*Refused:* "}
    return words.get(flag.treatment, "") + flag.here.replace("|", "\\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_flags(path.read_text()))
