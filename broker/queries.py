"""What clients may ask of the broker: models, metadata, stats, metrics."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchyard.broker.catalog import ServedModel
from batchyard.broker.measures import BOUNDS_S, DROPPED, EXPIRED, LATE, REFUSED
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.protocol import NAME_MAX, show

if TYPE_CHECKING:
    from batchyard.broker.loop import BrokerLoop
    from batchyard.broker.worker_link import WorkerLink


def answer(broker: BrokerLoop, body: list[Any]) -> tuple[int, Any]:
    """The id and the answer of a QUERY body ``[query_id, what, arguments]``.

    Raises InvalidArgument for what is no query, NotFound and Unavailable as a request would.
    """
    if (
        len(body) != 3
        or type(body[0]) is not int
        or body[0] < 0
        or not isinstance(body[1], str)
        or not isinstance(body[2], dict)
    ):
        raise InvalidArgument("QUERY header: needs [query_id, what, {arguments}]")
    query_id, what, arguments = body
    if what == "models":
        return query_id, [_model(model) for model in _models(broker)]
    if what == "metadata":
        return query_id, _metadata(broker, arguments)
    if what == "stats":
        return query_id, _stats(broker)
    if what == "metrics":
        return query_id, _metrics(broker)
    raise InvalidArgument(
        f"query {show(what)} is unknown; known are models, metadata, stats, metrics"
    )


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "labels": list(model.labels),
        "state": model.state,
        "is_current": model.is_current,
        "error": model.error,
        "signatures": sorted(model.signatures),
    }


def _metadata(broker: BrokerLoop, arguments: dict[str, Any]) -> dict[str, Any]:
    name, version, label = (arguments.get(key) for key in ("model", "version", "label"))
    if not isinstance(name, str) or len(name) > NAME_MAX:
        raise InvalidArgument(
            f"query metadata: needs the argument model, a string of at most {NAME_MAX} "
            f"characters, not {show(name)}"
        )
    if version is not None and type(version) is not int:
        raise InvalidArgument(f"query metadata: version must be an integer, not {show(version)}")
    if label is not None and (not isinstance(label, str) or len(label) > NAME_MAX):
        raise InvalidArgument(
            f"query metadata: label must be a string of at most {NAME_MAX} characters, not "
            f"{show(label)}"
        )
    model = broker.state.catalog.find(name, version, label)
    metadata = {
        **_model(model),
        "max_batch_size": model.parameters.max_batch_size,
        "max_enqueued_batches": model.parameters.max_enqueued_batches,
        "retry": model.may_retry,
        "signatures": {
            name: spec.to_wire()
            for name in model.signatures
            if (spec := model.signature(name)) is not None
        },
    }
    if model.signature_def:
        metadata["signature_def"] = model.signature_def
    return metadata


def _stats(broker: BrokerLoop) -> dict[str, Any]:
    state = broker.state
    return {
        "broker": {
            "pid": os.getpid(),
            "epoch": broker.epoch,
            "uptime_s": time.monotonic() - broker.started_at,
            "cpu_s": time.process_time(),
            "draining": state.draining,
            "replies_dropped": broker.delivery.dropped,
        },
        "workers": [_worker(broker, link) for link in _by_slot(broker)],
        "models": [
            {
                **_model(model),
                "queue_rows": model.queued_rows,
                "requests": model.requests,
                "batches": model.batches,
                "batch_rows": {str(n): model.batch_rows[n] for n in sorted(model.batch_rows)},
                "busy_s": model.busy_s,
                "late_s": model.late_s,
                "refused": model.misses[REFUSED],
                "dropped": model.misses[DROPPED],
                "shed": model.shed,
                "prediction": asdict(model.errors.accuracy),
            }
            for model in _models(broker)
        ],
        "arena": {"bytes": state.allocator.nbytes, "used_bytes": state.allocator.used_nbytes},
    }


def _metrics(broker: BrokerLoop) -> dict[str, Any]:
    """What ``stats`` says and, for those who watch the server for long, all that is counted."""
    metrics = _stats(broker)
    state = broker.state
    # ZeroMQ does not tell who is connected: of those that use it, the ones that wait for answers.
    far = [client for client in state.clients if not broker.local_front.knows(client)]
    metrics["broker"]["clients"] = len(broker.local_front.clients()) + len(far)
    gate = broker.front.gate
    metrics["broker"]["strangers_refused"] = 0 if gate is None else gate.refused
    metrics["regions"] = broker.local_front.regions()
    for worker in metrics["workers"]:
        worker["busy_s"] = state.busy_s_by_slot[worker["id"]]
    for shown, model in zip(metrics["models"], _models(broker), strict=True):
        shown["rows"] = sum(rows * batches for rows, batches in model.batch_rows.items())
        shown["padding_rows"] = model.padding_rows
        shown["deadline_misses"] = {
            why: model.misses[why] for why in (REFUSED, DROPPED, EXPIRED, LATE)
        }
        shown["measures"] = [
            {"signature": name, **measures.to_wire()}
            for name, measures in sorted(model.measures.items())
        ]
    metrics["bounds"] = {"seconds": list(BOUNDS_S)}
    return metrics


def _models(broker: BrokerLoop) -> list[ServedModel]:
    return sorted(broker.state.catalog.models.values(), key=lambda m: (m.name, m.version))


def _by_slot(broker: BrokerLoop) -> list[WorkerLink]:
    """The process of each slot: while one replaces another, the one that serves."""
    slots: dict[int, WorkerLink] = {}
    for _, link in sorted(broker.workers.items()):
        shown = slots.get(link.slot)
        if shown is None or shown.is_closed or link.state == "READY":
            slots[link.slot] = link
    return [slots[slot] for slot in sorted(slots)]


def _worker(broker: BrokerLoop, link: WorkerLink) -> dict[str, Any]:
    known = broker.state.workers.get(link.id)
    state = "BUSY" if known is not None and known.in_flight else link.state
    return {
        "id": link.slot,
        "pid": link.pid,
        "device": link.device,
        "state": state,
        "restarts": link.restarts,
        "batches": known.batches_done if known is not None else 0,
    }
