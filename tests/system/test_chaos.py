"""Random faults under mixed load against a real server: every call has its one right outcome.

Short in CI. ``make chaos SECONDS=600 SEED=7`` runs it for longer, with TensorFlow beside.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.server import Server

from batchyard.benchmarks.faults_chaos import (
    ARENA_MB,
    BATCH_TIMEOUT_S,
    chaos_models,
    run_chaos,
    settle,
)
from batchyard.benchmarks.faults_ledger import BATCH_S_VARIABLE, FOLDER_VARIABLE
from batchyard.benchmarks.faults_server import BROKER, ServerView, rss_mb
from batchyard.benchmarks.served import Model, configuration

WORKERS = 3
SHORT_S = 12.0
SECONDS = float(os.environ.get("CHAOS_SECONDS", SHORT_S))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
# Workers with TensorFlow need ten seconds to come back, on two cores under load.
CALM = 6.0
# Nobody needs so much: a bound that what is never given back runs into.
RSS_MAX_MB = 400.0


def models(request: pytest.FixtureRequest) -> list[Model]:
    """What is served; a SavedModel, whose workers start slowly, only where there is time."""
    found = chaos_models(batch_execution_timeout=BATCH_TIMEOUT_S)
    if SECONDS > SHORT_S:
        path = request.getfixturevalue("savedmodels") / "half_plus_two"
        found.append(Model("half_plus_two", str(path), {"max_batch_size": 8}))
    return found


@pytest.mark.timeout(SECONDS + 240)
def test_chaos(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    print(f"\nchaos: {SECONDS:g} s, seed {SEED}")
    config = configuration(models(request), WORKERS, {}, {"arena_mb": ARENA_MB})
    environment = {FOLDER_VARIABLE: str(tmp_path), BATCH_S_VARIABLE: "0.002"}
    with Server(config=config, ipc=True, environment=environment) as server:
        tcp, ipc = server.endpoints
        view = ServerView(tcp, ipc, server.pid, tmp_path, WORKERS, server.folder / "config.toml")
        rss: list[float] = []

        def sample() -> None:
            rss.append(max(rss_mb(pid) for pid in (view.supervisor, *view.children(BROKER))))

        again = f"again: make chaos SECONDS={SECONDS:g} SEED={SEED}; log: {tmp_path}/server.log"
        calm = CALM if SECONDS > SHORT_S else 1.0
        chaos = run_chaos(view, seconds=SECONDS, seed=SEED, calm=calm, each_second=sample)
        print(chaos.told())
        # All of it: its end is not where it began.
        (tmp_path / "server.log").write_text(server.log)
        assert not chaos.violations, f"{again}\n{chaos.told()}\n{server.log_tail}"
        assert chaos.counts["RIGHT"] > 0
        settle(view)
        assert max(rss) < RSS_MAX_MB, f"{again}\n{rss}"
        server.stop()
