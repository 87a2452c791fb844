"""Load on a service, from within its container, until SIGTERM; then what came of it, as JSON.

    python service_load.py MODEL RECONNECT_TIMEOUT ENDPOINT…

Says ``started`` once requests are answered. Outcomes are counted by the error's code, with the last
message of each.
"""

from __future__ import annotations

import collections
import json
import signal
import sys
import threading

import numpy as np

from batchyard.clients import Client, errors

CALLERS = 4


def main(model: str, reconnect_timeout_s: float, endpoints: list[str]) -> None:
    over = threading.Event()
    started = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    outcomes: collections.Counter[str] = collections.Counter()
    messages: dict[str, str] = {}
    lock = threading.Lock()

    def call(client: Client, number: int) -> None:
        x = np.full((1, 4), number, np.float32)
        while not over.wait(0.002):
            try:
                out = client.predict(model, {"x": x}, timeout=20)
                outcome, message = ("OK", "") if (out["y"] == 2 * x).all() else ("WRONG", str(out))
                started.set()
            except errors.BatchyardError as error:
                outcome, message = error.code, error.message
            with lock:
                outcomes[outcome] += 1
                messages[outcome] = message

    with Client(endpoints, reconnect_timeout=reconnect_timeout_s) as client:
        callers = [threading.Thread(target=call, args=(client, n)) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        started.wait()
        print("started", flush=True)
        for caller in callers:
            caller.join()
    print(json.dumps({"outcomes": outcomes, "messages": messages}), flush=True)


main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
