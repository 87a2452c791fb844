"""The check as a whole: real servers, NVIDIA's own bindings, a card that is simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.simulated_card import simulated_card

ALLOCATION = Path(__file__).parents[3] / "benchmarks/gpu/models/cupy_allocation.py"
STAND_INS = Path(__file__).parents[2] / "support" / "stand_ins"


def check(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it, and looks at nothing."""
    paths = [str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-P", "-m", "batchyard.benchmarks.gpu.check", *arguments],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_framework_on_a_card(tmp_path: Path) -> None:
    """Binding, page-lock, growth, a death, a broken context; caps are checked by hand: minutes."""
    cards = simulated_card(tmp_path, total_mb=2048, context_mb=50)
    out = tmp_path / "checks.json"
    framework = f"cupy={ALLOCATION}"
    arguments = ["--framework", framework, "--part", "cards", "--break-context", "--json", str(out)]
    ended = check({**cards.environment}, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    checks = json.loads(out.read_text())["checks"]
    assert [c["check"] for c in checks if c["outcome"] == "skipped"] == ["each on its own card"]
    assert {c["check"] for c in checks if c["outcome"] == "ok"} >= {
        "sees only its card",
        "arena page-locked",
        "growth",
        "killed: memory returns",
        "broken context",
    }
    assert "8 ok, 0 FAILED, 1 skipped" in ended.stdout
    assert cards.used() == {}


def test_without_a_gpu_it_says_so() -> None:
    ended = check({"CUDA_VISIBLE_DEVICES": "-1"})
    assert (ended.returncode, "no GPU: " in ended.stdout) == (3, True)


def test_without_a_framework_it_says_that_nothing_was_checked(tmp_path: Path) -> None:
    cards = simulated_card(tmp_path)
    ended = check({**cards.environment}, "--framework", "jax")
    assert ended.returncode == 1
    assert "0 ok, 0 FAILED, 1 skipped" in ended.stdout
    assert "nothing was checked: install one of tensorflow, pytorch, jax" in ended.stdout
