"""A server that runs here: whether it answers, and what it says of its workers and models."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning
from batchyard.clients import Client
from batchyard.wire.errors import BatchyardError, Unauthenticated

_CHECK = "server"
_CONNECT_TIMEOUT_S = 2.0
_LOG = "of a service: journalctl -u batchyard"


def check_server(stats: Mapping[str, Any] | None, refusal: BatchyardError | None) -> list[Finding]:
    """``stats`` are None without a server; ``refusal`` is why one that is there says nothing."""
    if isinstance(refusal, Unauthenticated):
        remedy = "Give --server-key and --secret-key-file, or bind an ipc endpoint, too."
        return [warning(_CHECK, f"one runs, and does not say how it is: {refusal}", remedy)]
    if refusal is not None:
        remedy = f"See its log ({_LOG}); batchyard status tries again."
        return [failure(_CHECK, f"does not answer: {refusal}", remedy)]
    if stats is None:
        return [ok(_CHECK, "none runs here")]
    problems = [*_workers(stats["workers"]), *_models(stats["models"]), *_arena(stats["arena"])]
    return problems or [_healthy(stats)]


def _healthy(stats: Mapping[str, Any]) -> Finding:
    broker, workers, models = stats["broker"], stats["workers"], stats["models"]
    up = f"has run for {broker['uptime_s']:.0f} s"
    if broker.get("draining"):
        return warning(_CHECK, f"{up} and is stopping", "Wait, or start it again.")
    return ok(_CHECK, f"{up}, workers: {len(workers)}, versions of models: {len(models)}")


def _workers(workers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    findings = []
    remedy = f"Its log says why ({_LOG}); see docs/failures.md."
    for worker in workers:
        check, restarts = f"worker {worker['id']}", worker["restarts"]
        if worker["state"] == "FAILED":
            found = f"FAILED on {worker['device']}, restarts: {restarts}"
            findings.append(failure(check, found, remedy))
        elif restarts:
            found = f"{worker['state']} on {worker['device']}, restarts: {restarts}"
            findings.append(warning(check, found, remedy))
    if not workers:
        remedy = "Wait until it has loaded its models; else see its log."
        findings.append(warning(_CHECK, "it has no worker", remedy))
    return findings


def _models(models: Sequence[Mapping[str, Any]]) -> list[Finding]:
    findings = []
    for model in models:
        check = f"model {model['name']} version {model['version']}"
        if model["error"]:
            remedy = "Correct its files or the configuration, then systemctl reload batchyard."
            findings.append(failure(check, f"{model['state']}: {model['error']}", remedy))
        elif model["state"] not in ("AVAILABLE", "UNLOADING", "END"):
            remedy = "Wait; batchyard status shows when it is there."
            findings.append(warning(check, model["state"], remedy))
    return findings


def _arena(arena: Mapping[str, Any]) -> list[Finding]:
    share = arena["used_bytes"] / arena["bytes"] if arena["bytes"] else 0
    if share < 0.9:
        return []
    remedy = "Raise arena_mb under [pool]; requests wait while it is full."
    return [warning("arena", f"{share:.0%} in use", remedy)]


def reachable(bound: Sequence[str]) -> list[str]:
    """Where a client on this machine finds a server that has bound these endpoints.

    ipc comes first, where no keys are needed.
    """
    found = [
        endpoint.replace("://*:", "://127.0.0.1:").replace("://0.0.0.0:", "://127.0.0.1:")
        for endpoint in bound
        if not endpoint.endswith((":*", ":0"))
    ]
    return sorted(found, key=lambda endpoint: not endpoint.startswith("ipc://"))


def ask_server(
    endpoints: Sequence[str],
) -> tuple[Mapping[str, Any] | None, BatchyardError | None]:
    """What the server at one of these endpoints says; or nothing, and why if somebody is there."""
    listening = [endpoint for endpoint in endpoints if _accepts(endpoint)]
    if not listening:
        return None, None
    try:
        with Client(listening, connect_timeout=_CONNECT_TIMEOUT_S) as client:
            return client.stats(), None
    except BatchyardError as error:
        return None, error


def _accepts(endpoint: str) -> bool:
    """Whether somebody takes connections there."""
    scheme, _, rest = endpoint.partition("://")
    host, _, number = rest.rpartition(":")
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECT_TIMEOUT_S)
                probe.connect(rest)
        else:
            address = host.strip("[]"), int(number)
            socket.create_connection(address, _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
