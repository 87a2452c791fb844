"""The SavedModels that tests share: made once, by whichever process of the tests is the first.

Exporting them takes longer than most tests' files: those that run at once, and one after the other,
use the same, as long as neither what makes them nor TensorFlow is another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_SUPPORT = Path(__file__).parent
_EXPORT_S = 100


def exported(config: pytest.Config, script: str) -> Path:
    """The folder with every kind of SavedModel of a script of this folder; nobody changes it."""
    cache = config.cache.mkdir("savedmodels")  # type: ignore[union-attr]
    folder = cache / f"{script}-{_made_by()}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = cache / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [sys.executable, _SUPPORT / f"{script}.py", unfinished]
            subprocess.run(command, check=True, timeout=_EXPORT_S)
            unfinished.rename(folder)
    return folder


def _made_by() -> str:
    """Changes when what makes them does."""
    digest = hashlib.sha256()
    for path in sorted(_SUPPORT.glob("savedmodels*.py")):
        digest.update(path.read_bytes())
    spec = find_spec("tensorflow")
    if spec is not None and spec.origin is not None:
        digest.update(f"{spec.origin} {os.stat(spec.origin).st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
