"""Where the peers are installed: apart from Batchyard, because their requirements clash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER_VARIABLE = "BATCHYARD_PEERS"
_FOLDER = ".venv-peers"
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def python(name: str) -> str:
    """The Python that has a peer, if any has.

    It is that of ``.venv-peers/NAME`` in the working directory, where ``make bench-peers`` puts
    it (``BATCHYARD_PEERS`` names another folder), else the one that runs this.
    """
    own = Path(os.environ.get(FOLDER_VARIABLE, _FOLDER)).absolute() / name / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def version(name: str, distribution: str) -> str | None:
    """The version of a peer's package in its environment; None where it is not installed."""
    found = subprocess.run(
        [python(name), "-c", _VERSION, distribution], capture_output=True, text=True, check=False
    )
    return None if found.returncode else found.stdout.strip()
