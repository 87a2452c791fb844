"""Every place where bytes or values from outside are decoded, as a named target.

A target checks one document: that what is accepted is as it claims, that what is refused is
refused with an error of the right kind that says why, and that nothing else is raised. Hypothesis
draws documents in ``test_*.py``; ``make fuzz`` has atheris make them, guided by coverage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fuzz import seeds
from fuzz.broker_targets import check_admission, check_conversation, check_query
from fuzz.client_targets import check_config, check_folder, check_json, check_session
from fuzz.documents import NotADocument, unpack
from fuzz.grpc_targets import (
    check_examples,
    check_tensor_proto,
    example_requests,
    tensor_protos,
)
from fuzz.http_targets import check_http
from fuzz.rest_targets import check_rest_examples, check_rest_predict
from fuzz.wire_targets import (
    check_endpoint,
    check_header,
    check_link,
    check_local,
    check_signature,
    check_target,
    check_tensor,
)


@dataclass(frozen=True)
class FuzzTarget:
    """``share``: how many of a hundred runs it gets. ``check`` raises when something is wrong,
    NotADocument for what is not of its form."""

    check: Callable[[Any], None]
    seeds: Callable[[], list[Any]]
    share: int


TARGETS = {
    "header": FuzzTarget(check_header, seeds.headers, 10),
    "target": FuzzTarget(check_target, seeds.targets, 9),
    "tensor": FuzzTarget(check_tensor, seeds.tensors, 9),
    "local": FuzzTarget(check_local, seeds.local_packets, 8),
    "link": FuzzTarget(check_link, seeds.link_packets, 6),
    "signature": FuzzTarget(check_signature, seeds.signatures, 6),
    "endpoint": FuzzTarget(check_endpoint, seeds.endpoints, 5),
    "admission": FuzzTarget(check_admission, seeds.admissions, 16),
    "query": FuzzTarget(check_query, seeds.queries, 4),
    "conversation": FuzzTarget(check_conversation, seeds.conversations, 9),
    "session": FuzzTarget(check_session, seeds.sessions, 9),
    "json": FuzzTarget(check_json, seeds.json_texts, 4),
    "http": FuzzTarget(check_http, seeds.http_streams, 8),
    "rest_predict": FuzzTarget(check_rest_predict, seeds.rest_predictions, 8),
    "rest_examples": FuzzTarget(check_rest_examples, seeds.rest_examples, 4),
    "tensor_proto": FuzzTarget(check_tensor_proto, tensor_protos, 6),
    "examples": FuzzTarget(check_examples, example_requests, 2),
    "config": FuzzTarget(check_config, seeds.configurations, 4),
    "folder": FuzzTarget(check_folder, seeds.folders, 1),
}


def run(name: str, data: bytes) -> None:
    """One input, as a fuzzer of bytes gives it: a document, or nothing to learn from."""
    with contextlib.suppress(NotADocument):
        TARGETS[name].check(unpack(data))
