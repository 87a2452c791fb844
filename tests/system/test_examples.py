"""The examples run as they say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from support.server import Server

ROOT = Path(__file__).parents[2]


def test_simulated_gpu_and_its_client() -> None:
    server = Server("examples/simulated_gpu.toml")
    # As from the checkout, with what the examples name.
    (server.working_folder / "examples").symlink_to(ROOT / "examples")
    with server:
        ended = subprocess.run(
            [sys.executable, ROOT / "examples" / "client.py", server.endpoint],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    found = re.fullmatch(r"(\{.*\}), (\d+) batches\n", ended.stdout)
    assert found, ended.stdout + ended.stderr
    outcomes = ast.literal_eval(found[1])
    assert sum(outcomes.values()) == 1000
    # Half a second's work in a second's time; a machine that is busy otherwise may be slower.
    assert set(outcomes) <= {"in time", "DEADLINE_EXCEEDED"}
    assert outcomes["in time"] / 32 <= int(found[2]) < 200
