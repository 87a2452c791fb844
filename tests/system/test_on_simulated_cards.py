"""A server on cards that are simulated, one of them split by MIG, and what the tools say of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.server import Server, model_table
from support.simulated_card import MIB, SimulatedCards, simulated_card

SIGHT = f"{Path(__file__).parents[2] / 'benchmarks/gpu/models/card.py'}:sight"
SIGNATURE: dict[str, dict[str, tuple[str, list[int]]]] = {
    "inputs": {"x": ("float32", [-1, 1])},
    "outputs": {
        "devices": ("int32", [-1, 1]),
        "uuid": ("string", [-1, 1]),
        "pid": ("int32", [-1, 1]),
    },
}
CONFIG = """
[pool]
arena_mb = 16
[metrics]
port = 0
[[pool.workers]]
device = "auto"
gpu_memory_growth = true
"""
MPS_LIMIT = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
# Each command of the line as a person would run it, in one process to save time.
_TOOLS = """
import json, sys
from click.testing import CliRunner
from batchyard.cli import check, doctor, top
arguments = json.loads(sys.argv[1])
tools = {"check": check.command, "doctor": doctor.command, "top": top.command}
said = {name: CliRunner().invoke(tools[name], words) for name, words in arguments.items()}
print(json.dumps({name: [result.exit_code, result.output] for name, result in said.items()}))
"""


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> SimulatedCards:
    cards = simulated_card(tmp_path_factory.mktemp("cards"), cards=2, total_mb=2048, context_mb=50)
    cards.split(512, 256)
    return cards


@pytest.fixture(scope="module")
def server(cards: SimulatedCards) -> Iterator[Server]:
    model = model_table("sight", SIGHT, signature=SIGNATURE, enable_batching=False)
    environment = {**cards.environment, MPS_LIMIT: "0=1G"}
    with Server(config=CONFIG + model, environment=environment, ipc=True) as server:
        yield server


@pytest.fixture(scope="module")
def tools(cards: SimulatedCards, server: Server) -> dict[str, tuple[int, str]]:
    """Exit status and output of each."""
    arguments = {
        "check": ["--model", f"m={SIGHT}", "--device", "gpu:0", "--workers", "2"],
        "doctor": ["--no-tensorflow"],
        "top": ["--once", "--interval", "0.1"],
    }
    environment = {
        **os.environ,
        **cards.environment,
        "XDG_RUNTIME_DIR": str(server.runtime_folder),
        "SIMULATED_COMPUTE_MODE": "3",
        "CUDA_MPS_PIPE_DIRECTORY": str(server.folder),
        "COLUMNS": "200",
    }
    arguments["check"] += ["--per-process-gpu-memory-fraction", "0.4"]
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _TOOLS, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, tuple[int, str]] = json.loads(ended.stdout)
    return said


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().partition("=")[::2] for entry in entries if entry)


def test_each_worker_has_its_card(server: Server, cards: SimulatedCards) -> None:
    """Two cards, the second in two instances: three devices. What MPS reads is passed on."""
    workers = server.stats()["workers"]
    told = [environment_of(worker["pid"]) for worker in workers]
    places = [environment["CUDA_VISIBLE_DEVICES"] for environment in told]
    instances = [f"MIG-00000000-0000-4000-8000-{card:012d}" for card in (2, 3)]
    assert places == [cards.uuids[0], *instances]
    assert {environment[MPS_LIMIT] for environment in told} == {"0=1G"}
    # State 1 is the card that the instances are of: as a whole nobody uses it.
    used = [cards.used(card) for card in (0, 2, 3)]
    assert [list(use) for use in used] == [[worker["pid"]] for worker in workers]
    assert cards.used(1) == {}


def test_cuda_shows_a_worker_one_device(server: Server) -> None:
    with server.client() as client:
        seen: dict[str, Any] = client.predict("sight", {"x": np.zeros((1, 1), np.float32)})
    pids = [worker["pid"] for worker in server.stats()["workers"]]
    assert seen["devices"].item() == 1
    place = environment_of(seen["pid"].item())["CUDA_VISIBLE_DEVICES"]
    assert seen["uuid"].item().decode() == place.partition("-")[2].replace("-", "")
    assert seen["pid"].item() in pids


def test_metrics_have_the_cards(server: Server) -> None:
    with urllib.request.urlopen(f"{server.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    of_memory = [line for line in lines if line.startswith("batchyard_gpu_memory_bytes{")]
    used = [line for line in of_memory if 'state="used"' in line]
    assert [float(line.split()[-1]) for line in used] == [50 * MIB] * 3


def test_top_shows_the_cards(tools: dict[str, tuple[int, str]]) -> None:
    code, output = tools["top"]
    assert code == 0
    assert "Simulated H100" in output


def test_an_exclusive_card_is_refused_to_two(tools: dict[str, tuple[int, str]]) -> None:
    code, output = tools["check"]
    assert code == 2
    assert "EXCLUSIVE_PROCESS" in output


def test_the_doctor_sees_cards_and_who_uses_them(
    tools: dict[str, tuple[int, str]], server: Server
) -> None:
    code, output = tools["doctor"]
    assert code == 0, output
    assert "3, of 2 cards" in output
    assert "exclusive: only one process may use the card" in output
    assert "no control daemon listens" in output
