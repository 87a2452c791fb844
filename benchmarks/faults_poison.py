"""One bad row among good ones: what it costs its neighbours, and the pool."""

from __future__ import annotations

import numpy as np

from batchyard.benchmarks.callables import Act, expected
from batchyard.benchmarks.faults_run import Effort
from batchyard.benchmarks.faults_server import (
    OBEDIENT,
    WORKER,
    ServerView,
    faulty_server,
    obedient_model,
)
from batchyard.benchmarks.results import Figure
from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError

_TIMES = 5
_WORKERS = 2
_ANSWER_TIMEOUT_S = 60.0
KILLING, RAISING = 32, 64

FIGURES = [
    Figure(
        "killing_innocents", f"1 row of {KILLING} kills: others answered", "rows", None, KILLING - 1
    ),
    Figure("killing_deaths", "  workers that died of it", "workers", None, 2, True),
    Figure("killing_culprit", "  the row itself got INTERNAL", "share", None, 1),
    Figure(
        "raising_innocents",
        f"1 row of {RAISING} raises: others answered",
        "rows",
        None,
        RAISING - 1,
    ),
    Figure("raising_deaths", "  workers that died of it", "workers", None, 0, True),
    Figure("raising_culprit", "  the row itself got INTERNAL", "share", None, 1),
]


def measure(effort: Effort) -> dict[str, list[float]]:
    """Five batches of each kind; a row is a request, and all fit one batch."""
    found: dict[str, list[float]] = {}
    model = obedient_model({"max_batch_size": RAISING, "batch_timeout_micros": 50_000})
    with (
        faulty_server([model], workers=_WORKERS) as server,
        Client(server.ipc) as client,
    ):
        first = 1
        for _ in range(effort.times or _TIMES):
            for kind, rows, act in (
                ("killing", KILLING, Act.DIE),
                ("raising", RAISING, Act.RAISE),
            ):
                server.wait_until_all_live(client)
                for name, value in _one_among(server, client, rows, act, first).items():
                    found.setdefault(f"{kind}_{name}", []).append(value)
                first += rows
    return found


def _one_among(
    server: ServerView, client: Client, rows: int, act: Act, first: int
) -> dict[str, float]:
    before = set(server.children(WORKER))
    ids = np.arange(first, first + rows)
    x = ids.astype(np.float32)
    acts = np.zeros(rows, np.int32)
    bad = rows // 3
    acts[bad] = act
    futures = [
        client.submit(OBEDIENT, {"id": ids[[i]], "act": acts[[i]], "x": x[[i]]})
        for i in range(rows)
    ]
    innocents, culprit = 0, 0.0
    for i, future in enumerate(futures):
        try:
            y = future.result(_ANSWER_TIMEOUT_S)["y"]
            innocents += i != bad and bool(y == expected(x[[i]], ids[[i]]))
        except BatchyardError as error:
            culprit += i == bad and error.code == "INTERNAL"
    server.wait_until_all_live(client)
    # Each process that died of it ran it: those that only replaced one are none of them.
    runs = [run for run in server.ledger().runs() if run.request == first + bad]
    died = {run.pid for run in runs if run.ended is None}
    died |= before - set(server.children(WORKER))
    return {"innocents": float(innocents), "deaths": float(len(died)), "culprit": culprit}
