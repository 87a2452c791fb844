"""Workers killed under load: is everything answered, once, and as much as the others can do?"""

from __future__ import annotations

import random
import time

from batchyard.benchmarks.faults_load import RIGHT
from batchyard.benchmarks.faults_run import Effort, Liveness, loads
from batchyard.benchmarks.faults_server import (
    ServerView,
    faulty_server,
    kill_and_see,
    obedient_model,
)
from batchyard.benchmarks.faults_witness import Witness
from batchyard.benchmarks.results import Figure
from batchyard.clients import Client

WORKERS = 3
BATCH = 8
BATCH_S = 0.02
LOAD = 0.7
EVERY_S = 2.0
_PEAK_S = 2.0
_POLL_S = 0.02
# Two batches for each worker, and as many that wait.
_IN_FLIGHT = 4 * WORKERS * BATCH
MODEL = obedient_model({"max_batch_size": BATCH, "max_enqueued_batches": 1000})

FIGURES = [
    Figure("kills_answered", "a worker killed every 2 s: answers ÷ requests", "share", goal=1.0),
    Figure("kills_duplicates", "  answered twice", "requests", goal=0, lower_is_better=True),
    Figure("kills_goodput", "  goodput", "requests/s", "kills_possible", 0.98),
    Figure("kills_possible", "  min(offered, live capacity)", "requests/s"),
    Figure("kills_live", f"  live workers of {WORKERS}, mean", "workers"),
    Figure("kills_died", "  kills", "workers"),
    Figure("kills_ran_twice", "  run again after a death", "requests"),
    Figure("kills_p99", "  p99 from the planned moment", "ms", "kills_calm_p99"),
    Figure("kills_calm_p99", "  p99 of the same load without kills", "ms"),
    Figure("kills_p50", "  p50 from the planned moment", "ms", "kills_calm_p50"),
    Figure("kills_calm_p50", "  p50 of the same load without kills", "ms"),
    Figure("kills_slowest", "  slowest answer", "ms"),
    Figure("kills_send_lag", "  p99 of how late requests were sent", "ms"),
]


def measure(effort: Effort) -> dict[str, list[float]]:
    """One run of 60 s, after a calm one of a quarter."""
    seconds = effort.seconds or 60.0
    with (
        faulty_server([MODEL], workers=WORKERS, batch_s=BATCH_S) as server,
        loads(server.ipc, server.folder, effort.seed) as load,
        Client(server.ipc) as client,
    ):
        peak = load.peak(_IN_FLIGHT, min(_PEAK_S, seconds))
        rate = LOAD * peak
        load.start(rate, seconds / 4)
        calm = load.finish()
        with Witness(server.tcp) as witness:
            load.start(rate, seconds)
            liveness, kills = _kill(server, client, seconds, random.Random(effort.seed))
            run = load.finish()
        starts = server.ledger().starts()
    start = float(run.planned[0])
    end = start + seconds
    offered = len(run.planned) / seconds
    requests = len(run.planned) + witness.sent
    values = {
        "answered": (run.counts[RIGHT] + witness.right) / requests,
        "duplicates": witness.duplicates,
        "goodput": run.goodput(end) / seconds,
        "possible": liveness.possible(start, end, offered, peak / WORKERS) / seconds,
        "live": liveness.mean_live(start, end),
        "died": kills,
        "ran_twice": sum(starts[request] > 1 for request in run.ids.tolist()),
        "p99": run.latency_ms(99),
        "calm_p99": calm.latency_ms(99),
        "p50": run.latency_ms(50),
        "calm_p50": calm.latency_ms(50),
        "slowest": run.latency_ms(100),
        "send_lag": run.send_lag_ms,
    }
    return {f"kills_{name}": [float(value)] for name, value in values.items()}


def _kill(
    server: ServerView, client: Client, seconds: float, choice: random.Random
) -> tuple[Liveness, int]:
    """Kills a live worker every two seconds; when each was live, and how many died."""
    liveness, kills = Liveness.nothing(), 0
    started = time.monotonic()
    next_kill = started + EVERY_S / 2
    while (now := time.monotonic()) < started + seconds:
        live = server.live_workers(client.stats())
        liveness.seen(live, time.monotonic())
        if now >= next_kill and live:
            next_kill += EVERY_S
            kills += 1
            victim = choice.choice(sorted(live))
            liveness.killed(victim, kill_and_see(victim)[0])
        time.sleep(_POLL_S)
    return liveness, kills
