"""Programs that Debian has, and that a test needs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def program(name: str, package: str) -> str:
    """Its path; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian: apt install {package})")
    return found


def promtool(*arguments: str, stdin: str | None = None, folder: Path | None = None) -> str:
    """What ``promtool`` says; asserts that it finds nothing wrong."""
    ran = subprocess.run(
        [program("promtool", "prometheus"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    return said
