"""``docs/protocol.md`` says what the code does: its example and its tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from support.golden import FOLDER, read_golden

from batchyard.wire import dtypes, errors, protocol, tensors
from batchyard.wire.protocol import InputHeader, MessageType, Result, Target

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "protocol.md"


def test_document_shows_the_example() -> None:
    text = (FOLDER / "valid" / "example.hex").read_text()
    _, _, example = text.partition("\n\n")
    assert f"```\n{example}```\n" in DOCUMENT.read_text()


def test_example_is_what_is_sent() -> None:
    example = read_golden("valid/example.hex")
    target = Target(
        "half_plus_two", None, None, "serving_default", 0, (InputHeader("x", "float32", (None,)),)
    ).encode()
    x, y = np.array([1, 2], np.float32), np.array([2.5, 3], np.float32)
    assert {name: golden.data for name, golden in example.items()} == {
        "hello": protocol.encode(MessageType.HELLO, []),
        "welcome": protocol.encode(MessageType.WELCOME, [0x18EA8F20034C4000, 1 << 30, "batchyard"]),
        "predict_header": protocol.encode_predict(1, target, 2, 50_000),
        "predict_x": bytes(tensors.encode(x, "float32")),
        "result_header": protocol.encode_result(Result([(1, 0, 2)], 1, [("y", "float32", (2,))])),
        "result_y": bytes(tensors.encode(y, "float32")),
    }


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the document, without its head."""
    section = re.split(rf"^#+ {heading}$", DOCUMENT.read_text(), flags=re.MULTILINE)[1]
    rows = re.findall(r"(?:^\|.*\|\n)+", section, flags=re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def power_of_two(text: str) -> int:
    assert text.startswith("2^")
    return 1 << int(text[2:])


def test_document_has_every_type() -> None:
    assert {name: int(number) for number, name, *_ in table("Message types")} == {
        type_.name: type_.value for type_ in MessageType
    }


def test_document_has_every_code() -> None:
    documented = {
        int(number): (name, who, again) for number, name, who, again, *_ in table("Errors")
    }
    assert documented == {
        number: (cls.code, cls.fault, "yes" if cls.retryable else "no")
        for number, cls in errors.BY_NUMBER.items()
    }


def test_document_has_every_dtype() -> None:
    documented = {
        name: 0 if nbytes == "varies" else int(nbytes) for name, nbytes, *_ in table("dtypes")
    }
    assert documented == {name: dtypes.itemsize(name) for name in dtypes.NAMES}


def test_document_has_the_limits() -> None:
    limits = {what: value for what, value, *_ in table("Limits")}
    assert limits["priority"] == f"{protocol.PRIORITY_MIN} to {protocol.PRIORITY_MAX}"
    assert limits["characters in a name"] == str(protocol.NAME_MAX)
    assert limits["inputs of a target"] == f"{protocol.INPUTS_MAX:,}"
    assert limits["dimensions of a shape"] == str(protocol.RANK_MAX)
    assert power_of_two(limits["requests in a message"]) == protocol.REQUESTS_MAX
    assert power_of_two(limits["bytes of a header"]) == protocol.HEADER_NBYTES_MAX
    assert power_of_two(limits["rows in a message"]) == protocol.ROWS_MAX
    assert power_of_two(limits["a dimension"]) == protocol.DIM_MAX
