"""What a broker decodes: requests for many kinds of models, queries, and whole conversations."""

from __future__ import annotations

from typing import Any

from fuzz.admitted import check_batches, check_group
from fuzz.conversation import Conversation
from fuzz.documents import NotADocument, fields, list_of, pack, refused
from fuzz.served import make_fuzzed_catalog, make_fuzzed_region

from batchyard.broker import queries
from batchyard.broker.admission import admit
from batchyard.wire import protocol
from batchyard.wire.errors import (
    BatchyardError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from batchyard.wire.protocol import MessageType


def check_admission(document: Any) -> None:
    """``[[target, rows, timeouts_us, places, frames], …]``: PREDICT messages of one client.

    A target may be given as its fields.
    """
    if type(document) is not list or not 1 <= len(document) <= 4:
        raise NotADocument
    catalog, region = make_fuzzed_catalog(), make_fuzzed_region()
    checked = []
    for number, message in enumerate(document):
        target, *rest, frames = fields(message, object, object, object, object, list)
        list_of(bytes, frames)
        body = [number, pack(target) if isinstance(target, list) else target, *rest]
        try:
            predict = protocol.decode_predict(body)
            group = admit(catalog, b"c", region, predict, list(frames), 100.0)
        except BatchyardError as error:
            refused(error, InvalidArgument, NotFound, Unavailable, ResourceExhausted)
            protocol.encode_error([(number, 0, 0)], error)
            continue
        checked.append(check_group(group, predict))
    check_batches(checked)


def check_query(document: Any) -> None:
    """``[body of a QUERY]``."""
    (body,) = fields(document, list)
    broker = Conversation().loop
    try:
        query_id, answer = queries.answer(broker, body)
    except BatchyardError as error:
        refused(error, InvalidArgument, NotFound, Unavailable)
        protocol.encode(MessageType.ANSWER, [0, error.number, error.message, None])
        return
    assert query_id == body[0]
    header = protocol.encode(MessageType.ANSWER, [query_id, 0, "", answer])
    assert protocol.decode(header)[0] is MessageType.ANSWER


def check_conversation(document: Any) -> None:
    """``[[client, has a region, header, frames], …]``, from the first to the last, and a worker
    that runs all of it. A header may be given as ``[type, body]``."""
    if type(document) is not list or not 1 <= len(document) <= 8:
        raise NotADocument
    conversation = Conversation()
    for message in document:
        number, is_near, header, frames = fields(message, int, bool, (bytes, list), list)
        list_of(bytes, frames)
        if isinstance(header, list):
            type_, body = fields(header, int, list)
            header = b"BY\x01" + bytes([type_ & 255]) + pack(body)
        conversation.hear(bytes([number & 3]), is_near, header, frames)
    conversation.end()
