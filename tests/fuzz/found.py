"""What fuzzing found, and what is fixed: documents by target. ``tests/wire/golden`` has those that
are frames."""

from __future__ import annotations

import struct
from typing import Any

from fuzz.documents import pack
from fuzz.seeds import target

_SIGNATURE: dict[str, Any] = {
    "name": "s",
    "inputs": [["x", "float32", [None]]],
    "outputs": [],
    "batched": True,
    "method_name": "",
    "open": False,
}

FOUND: dict[str, list[Any]] = {
    # Other exceptions than LinkClosed, and descriptors that stayed open: the broker died of it.
    "link": [
        [b"\xc1\xc1", [0, 1]],
        [b"\x93\x01", []],
        [pack(1) + b"\x00", [4]],
        [b"\xa1\xff", [0]],
        [b"\xc1", [0]],
        [b"\xc1", [6]],
        [b"\xc1", [3, 7]],
    ],
    # KeyError, TypeError and ValueError in the client that asked, or a signature of other things.
    "signature": [
        [1],
        [{}],
        *(
            [{key: value for key, value in _SIGNATURE.items() if key != left}]
            for left in _SIGNATURE
        ),
        [_SIGNATURE | {"inputs": 1}],
        [_SIGNATURE | {"inputs": [[]]}],
        [_SIGNATURE | {"inputs": [[1, "float32", []]]}],
        [_SIGNATURE | {"outputs": [["x", "float32", 1]]}],
        [_SIGNATURE | {"outputs": [["x", "float32", [-1]]]}],
        [_SIGNATURE | {"batched": None}],
    ],
    # A path of which a part was left out in silence; a number that Python does not read.
    "endpoint": [
        ["ipc:///run/a\0b", True, False],
        ["tcp://127.0.0.1:" + "9" * 5000, False, False],
        ["tcp://127.0.0.1:" + "0" * 5000 + "80", False, False],
    ],
    # Shapes without elements that numpy and TensorFlow make no arrays of: the worker raised.
    "admission": [
        [[target("any", ["x", "uint8", [None, 0, 1 << 40, 1 << 40]]), 1, None, None, [b""]]],
        [[target("any", ["x", "uint8", [None, 0, 1 << 37]]), 1 << 16, None, None, [b""]]],
        [[target("open", ["x", "complex128", [0, 1 << 40, 1 << 23]]), None, None, None, [b""]]],
    ],
    # Names without bound in what the broker says of them.
    "query": [
        [[1, "metadata", {"model": "\0" * 20_000}]],
        [[1, "metadata", {"model": "m", "label": "\0" * 20_000}]],
    ],
    # Tracebacks: RecursionError, and OSError.
    "json": [["[" * 100_000], ['{"x": ' * 100_000], ["[" * 900 + "]" * 900]],
    # A long name was another one where numbers are read from the text.
    "rest_predict": [
        [{"instances": [1, 2], "signature_name": "s" * 600}, ["float32"]],
        [{"instances": [1, 2], "signature_name": "s" * 6000}, []],
    ],
    "config": [["a = " + "[" * 100_000], ["a = " + "{a = " * 5_000]],
    "folder": [
        ["x" * 300, [], [], []],
        ["a/" * 2100, [], [], []],
        ["a\0.py:f", [], [], []],
    ],
    # Right, and once refused or left out by the harness's own model.
    "tensor": [["float32", [0], b"", 0, 0], ["string", [0, 2], struct.pack("<I", 4), 0, 0]],
}
