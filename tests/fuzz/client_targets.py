"""What clients and the command line decode: a server's answers, JSON, TOML, folders of models."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.documents import NotADocument, fields, list_of, pack, refused
from support.sessions import Promise, make_call, promise_of

from batchyard.cli.json_tensors import from_json, to_json
from batchyard.cli.predict import _parse
from batchyard.clients.calls import Call
from batchyard.clients.session import Session
from batchyard.pool import config, config_models, versions
from batchyard.wire import protocol
from batchyard.wire.control import EXIT_CONFIGURATION
from batchyard.wire.errors import BatchyardError, Cancelled, ConfigurationError
from batchyard.wire.protocol import MessageType
from batchyard.wire.tensors import LARGE_NBYTES


def _calls() -> list[list[Call]]:
    """What goes together in each message: several calls, a call of several requests, one that is
    never batched, strings, a large one."""
    return [
        [make_call([1.0]), make_call([2.0, 3.0]), make_call([4.0])],
        [make_call([1.0, 2.0, 3.0], target=b"many", rows=[1, 2])],
        [make_call([1.0, 2.0], target=b"whole", rows=None)],
        [make_call([b"a", b"bc"], target=b"strings", dtype="string")],
        [make_call([1.0], target=b"large", width=LARGE_NBYTES // 4)],
    ]


def check_session(document: Any) -> None:
    """``[[header, frames], …]`` of a server, good or not, to a client that waits for answers.

    A header may be given as ``[type, body]``; message ids below 8 stand for those in use.
    """
    if type(document) is not list or not 1 <= len(document) <= 8:
        raise NotADocument
    session = Session()
    calls = _calls()
    messages = [message for together in calls for message in session.flush(together, 0.0)]
    query = Promise()
    session.query("models", {}, query)
    messages += session.flush([], 0.0)
    ids = [protocol.message_id_of(protocol.decode(header)[1]) or 0 for header, _, _ in messages]
    for message in document:
        header, frames = fields(message, (bytes, list), list)
        list_of(bytes, frames)
        if isinstance(header, list):
            type_, body = fields(header, int, list)
            header[0] = type_ & 255
            header = b"BY\x01" + bytes([type_ & 255]) + pack(_with_ids(type_ & 255, body, ids))
        session.receive(header, list(frames))
    session.fail(Cancelled("the end"))
    if not _counts_wrong(document, ids):
        for call in (call for together in calls for call in together):
            _check_ended(call)
    assert query.done()
    assert query.error is None or isinstance(query.error, BatchyardError)
    assert session.is_idle


def _counts_wrong(document: list[Any], ids: list[int]) -> bool:
    """Whether the server answers a request twice, or one that there is not.

    No client can tell then what is answered; only that it does not break is asked of it.
    """
    counts = dict(zip(ids, (3, 2, 1, 1, 1, 0), strict=True))
    told: set[tuple[int, int]] = set()
    for header, _ in document:
        if isinstance(header, bytes):
            # The golden frames speak of other messages.
            return True
        type_, body = header
        if type_ not in (MessageType.RESULT, MessageType.ERROR) or not body:
            continue
        segments = body[0] if type(body[0]) is list else []
        for segment in segments:
            if type(segment) is not list or [type(n) for n in segment] != [int] * 3:
                return True
            message_id, first, count = segment
            count = count or counts.get(message_id, 0)
            if not 0 <= first <= first + count <= counts.get(message_id, 0):
                return True
            requests = {(message_id, request) for request in range(first, first + count)}
            if requests & told:
                return True
            told |= requests
    return False


def _with_ids(type_: int, body: list[Any], ids: list[int]) -> list[Any]:
    if type_ == MessageType.ANSWER and body and type(body[0]) is int and 0 <= body[0] < len(ids):
        body[0] = ids[body[0]]
    if type_ in (MessageType.RESULT, MessageType.ERROR) and body and type(body[0]) is list:
        for segment in body[0]:
            if type(segment) is list and segment and type(segment[0]) is int:
                segment[0] = ids[segment[0]] if 0 <= segment[0] < len(ids) else segment[0]
    return body


def _check_ended(call: Call) -> None:
    promise = promise_of(call)
    assert promise.done()
    if promise.error is not None:
        assert isinstance(promise.error, BatchyardError)
        return
    answers = promise.result if call.count > 1 else [promise.result]
    assert len(answers) == call.count
    for outputs in answers:
        assert isinstance(outputs, dict)


def check_json(document: Any) -> None:
    """``[text]``: what ``batchyard predict`` is given."""
    (text,) = fields(document, str)
    if text.startswith(("@", "-")):
        # Files.
        raise NotADocument
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            value = _parse(text)
    except SystemExit as error:
        code = error.code
    else:
        _check_json_value(value)
        return
    assert code == EXIT_CONFIGURATION
    assert said.getvalue().startswith("batchyard: the inputs are no JSON: ")
    assert len(said.getvalue()) < 1000


def _check_json_value(value: Any) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, bytes):
            back = from_json(to_json(np.array(item, object)))
            assert back == item or back.encode() == item


@cache
def _file() -> int:
    """A file without a name: nothing is left of it, however this process ends."""
    return os.memfd_create("fuzz", os.MFD_CLOEXEC)


def check_config(document: Any) -> None:
    """``[TOML text or bytes, or a table]``: a configuration file."""
    (given,) = fields(document, (str, bytes, dict))
    try:
        tables = given if isinstance(given, dict) else _tables(given)
        if not all(type(key) is str for key in tables):
            raise NotADocument
        made = config.validate(tables, "the file")
    except ConfigurationError as error:
        refused(error, ConfigurationError)
        return
    assert made.models
    assert len({model.name for model in made.models}) == len(made.models)
    for model in made.models:
        sizes = model.batching.allowed_batch_sizes
        assert sizes == sorted(set(sizes))
        assert not sizes or sizes[-1] == model.batching.max_batch_size
    assert config.validate(made.model_dump(exclude_unset=True), "again") == made


def _tables(text: str | bytes) -> dict[str, Any]:
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    os.ftruncate(_file(), 0)
    os.pwrite(_file(), data, 0)
    return config.read_toml(Path(f"/proc/self/fd/{_file()}"))


def check_folder(document: Any) -> None:
    """``[path inside, [names of folders], [names of files], links]``: where a model should be."""
    inside, folders, files, links = fields(document, str, list, list, list)
    with tempfile.TemporaryDirectory(prefix="batchyard-fuzz-") as name:
        root = Path(name)
        for names, make in ((folders, Path.mkdir), (files, Path.touch)):
            for path in list_of(str, names, 6):
                # Outside nothing is touched.
                if "\0" in path or ".." in path or path.startswith("/"):
                    raise NotADocument
                with contextlib.suppress(OSError, UnicodeEncodeError):
                    make(root / path)
        for path in list_of(str, links, 2):
            with contextlib.suppress(OSError, ValueError):
                (root / Path(path).name).symlink_to(root / Path(path).name)
        runtime: Any = "python" if ":" in inside else "savedmodel"
        model = config_models.Model(name="m", path=f"{name}/{inside}", runtime=runtime)
        try:
            found = versions.find_versions(model)
        except ConfigurationError as error:
            refused(error, ConfigurationError, naming="model 'm': ")
            return
        assert found
        for number, version in found.items():
            assert 0 <= number < 1 << 63
            path = Path(version.path)
            assert runtime == "python" or any(
                (path / file).is_file() for file in ("saved_model.pb", "saved_model.pbtxt")
            )
