"""Batches by the frameworks that are installed, on this machine's card where it has one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.simulated_card import simulated_card

_SUPPORT = Path(__file__).parents[2] / "support"


def run(framework: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, _SUPPORT / "card_script.py", framework],
        env={**os.environ, "PYTHONPATH": _path(), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _path() -> str:
    return os.pathsep.join(filter(None, [str(_SUPPORT.parent), os.environ.get("PYTHONPATH")]))


def test_simulated_card(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver")
    said = run("simulated", simulated_card(tmp_path).environment)
    assert "arena page-locked: yes" in said
    assert "50 batches are right; buffers: 6291456 bytes" in said


@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("framework", ["torch", "jax", "cupy"])
def test_card(framework: str) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    preallocated = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert "50 batches are right" in run(framework, preallocated)
