"""What fuzzing starts from: the golden frames, and for each target something that is right."""

from __future__ import annotations

import json
import struct
import tomllib
from itertools import pairwise
from typing import Any

from fuzz.documents import pack
from fuzz.served import REGION_NBYTES
from support.golden import read_golden

from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.tensors import encode_strings

TWO_FLOATS = struct.pack("<2f", 1.0, -2.0)
STRINGS = encode_strings([b"a", b""])


def _golden(*paths: str) -> list[bytes]:
    return [golden.data for path in paths for golden in read_golden(path).values()]


def headers() -> list[Any]:
    """Header frames."""
    names = (
        "valid/headers",
        *(f"invalid/{x}" for x in ("headers", "predict", "cancel", "requests")),
    )
    return [[data] for data in _golden(*(f"{name}.hex" for name in names))]


def targets() -> list[Any]:
    """Targets."""
    return [[data] for data in _golden("valid/targets.hex", "invalid/targets.hex")]


def tensors() -> list[Any]:
    """Frames, with a shape that they may have."""
    valid = [
        [name if name in ("bool", "bfloat16") else "uint8", [len(golden.data)], golden.data, 0, 1]
        for name, golden in read_golden("valid/frames.hex").items()
        if not name.startswith("string")
    ]
    strings = [[b"a", b"", b"bc"], [b"\0\0", b"\xff\xfe"], [b"long" * 99], []]
    return [
        *valid,
        *(["string", [len(items)], encode_strings(items), 0, 1] for items in strings),
        ["string", [2, 2], encode_strings([b"a", b"b", b"", b"c"]), 1, 2],
        *(["string", [2], data, 0, 1] for data in _golden("invalid/frames.hex")),
        ["float32", [2, 1], TWO_FLOATS, 1, 2],
        ["float32", [0, 3], b"", 0, 0],
        ["complex64", [], TWO_FLOATS, 0, 0],
    ]


def _packet(*buffers: bytes) -> bytes:
    table = struct.pack(f"<{len(buffers) + 1}Q", len(buffers), *map(len, buffers))
    return table + b"".join(buffers)


def local_packets() -> list[Any]:
    """Packets of the local socket, with and without descriptors."""
    whole = _packet(b"BY\x01\x01\x90", TWO_FLOATS, b"")
    aside = struct.pack("<4Q", 3, 5, 100, 72) + b"BY\x01\x01\x90"
    return [
        [whole, [], False],
        [whole, [0, 1], False],
        [_packet(b"BY\x01\x01\x90"), [2], True],
        [aside, [2], True],
        [struct.pack("<3Q", 2, 1, 0) + b"h", [0], True],
        [struct.pack("<3Q", 2, 1, 4096) + b"h", [4], True],
        [whole, [7], True],
    ]


def link_packets() -> list[Any]:
    """Packets of the link."""
    return [
        [pack([1, 2, [["y", "float32", [2], 64, 8]], False, False, False, 0.1]), []],
        [pack([0]), [0]],
        [b"\xc1", [5]],
        [b"\xc1", [1, 5]],
        [b"\xc1", [6]],
        [b"\xc1", [7]],
        [b"\xc1", []],
    ]


def signatures() -> list[Any]:
    """What brokers say of signatures."""
    x, y = TensorSpec("x", "float32", (None, 2)), TensorSpec("y", "string", None)
    specs = (
        SignatureSpec("serving_default", (x,), (y,), True),
        SignatureSpec("s", (), (), False, "tensorflow/serving/classify", open=True),
    )
    return [[spec.to_wire()] for spec in specs]


def endpoints() -> list[Any]:
    """Endpoints that are right."""
    given = (
        "tcp://127.0.0.1:8600",
        "tcp://[::1]:*",
        "tcp://localhost:0",
        "tcp://example.org:65535",
        "ipc:///run/batchyard/broker",
    )
    return [[endpoint, binding, False] for endpoint in given for binding in (True, False)]


Message = list[Any]


def target(signature: str, *inputs: list[Any], model: str = "m", priority: int = 0) -> list[Any]:
    """The fields of a target."""
    return [model, None, None, signature, priority, list(inputs)]


def predicts() -> list[Message]:
    """One message or more for each signature of ``served``: target, rows, timeouts, places,
    frames."""
    x: list[Any] = ["x", "float32", [None, 2]]
    both = [["x", "float32", [None, 3]], ["s", "string", [None, 1]]]
    q: list[Any] = ["q", "float16", [None, 2]]
    one: list[Any] = ["x", "float32", [1, 2]]
    flags: list[Any] = ["a", "bool", [None]]
    lines: list[Any] = ["x", "bfloat16", [None, 1]]
    numbers: list[Any] = ["x", "int8", [None]]
    whole = [["s", "string", [1, 2]], ["x", "float32", [1, 1]]]
    return [
        [target("serving_default", x), 1, None, None, [TWO_FLOATS]],
        [target("serving_default", x), [2, 1], [None, 10**9], None, [TWO_FLOATS * 3]],
        [target("serving_default", x), [6], 10**9, None, [TWO_FLOATS * 6]],
        [target("serving_default", ["x", "float32", [2, 2]]), None, None, None, [TWO_FLOATS * 2]],
        [target("serving_default", x), 2, None, [[[64, 512]], [[1024, 256], [2048, 64]]], []],
        [target("serving_default", x), 2, None, [[[64, 72]], None], []],
        [target("serving_default", x, priority=3), [2], None, [[[128]], None], []],
        [target("serving_default", x), 1, None, [[None], [[0, 4096]]], [TWO_FLOATS]],
        [target("scalars", ["x", "int64", [None]]), 3, None, None, [bytes(range(24))]],
        [
            target("pair", ["b", "string", [None]], ["a", "float32", [None, 2]]),
            2,
            None,
            [[None, [8, 0]], None],
            [STRINGS],
        ],
        [target("matrix", ["s", "string", [None, 2]]), [1], None, None, [STRINGS]],
        [target("bools", ["x", "bool", [None, 3]]), 1, None, None, [b"\1\0\1"]],
        [target("sequence", ["x", "bfloat16", [None, 4]]), 1, None, None, [TWO_FLOATS]],
        [target("line", ["x", "float64", [1]]), None, None, None, [TWO_FLOATS]],
        [target("any", ["x", "uint8", [None, 2, 0]]), 1, None, None, [b""]],
        [target("both", *both), 1, None, None, [bytes(12), encode_strings([b"s"])]],
        [
            target("both", *both, model="padded"),
            [1, 2],
            None,
            None,
            [bytes(range(36)), encode_strings([b"1", b"", b"three"])],
        ],
        [
            target("both", *whole, model="padded"),
            None,
            None,
            [[None, [4]], None],
            [STRINGS],
        ],
        [
            target("sequence", lines, model="padded"),
            3,
            None,
            None,
            [b"123456"],
        ],
        [
            target("sequence", ["x", "bfloat16", [None, 2]], model="padded"),
            [1, 2],
            None,
            [[[0, 64]], None],
            [],
        ],
        [target("fixed", ["x", "float32", [3, 2]]), None, None, None, [TWO_FLOATS * 3]],
        [target("fixed", ["x", "float32", [3, 2]]), None, None, [[[64]], None], []],
        [target("fixed_strings", ["s", "string", [2]]), None, None, None, [STRINGS]],
        [
            target("free", ["x", "complex64", []], ["y", "int8", [1, 4]]),
            None,
            None,
            None,
            [TWO_FLOATS, b"1234"],
        ],
        [target("nothing"), None, None, None, []],
        [target("open", ["q", "float16", [2, 2]]), None, None, None, [TWO_FLOATS]],
        [
            target("open", q, flags),
            1,
            None,
            None,
            [b"1234", b"\1"],
        ],
        [target("serving_default", x, model="alone"), None, None, None, [TWO_FLOATS]],
        [
            target("serving_default", one, model="alone"),
            None,
            None,
            None,
            [TWO_FLOATS],
        ],
        [
            target("serving_default", numbers, model="whole"),
            [5],
            None,
            None,
            [b"12345"],
        ],
        [target("serving_default", x, model="loading"), 1, None, None, [TWO_FLOATS]],
    ]


def edges() -> list[Message]:
    """Messages of rows that just lie in the region or just do not, and of more than a batch's."""
    x: list[Any] = ["x", "float32", [None, 2]]
    both = [["x", "float32", [None, 3]], ["s", "string", [None, 1]]]
    end = REGION_NBYTES
    placed: list[Message] = [
        [rows, [[offsets], replies]]
        for rows, offsets, replies in (
            (1, [end - 8], None),
            (1, [end - 7], None),
            (2, [0, end - 8], [[end, 0], [end - 64, 64]]),
            (2, [end - 7, 0], [[0, 0], [0, 0]]),
            (1, [0], [[end - 64, 65]]),
            (1, [0], [[8, 64]]),
            ([1, 2], [0, end - 16], None),
            ([1, 2], [0, end - 15], None),
            ([6], [end - 48], None),
        )
    ]
    return [
        *([target("serving_default", x), rows, None, places, []] for rows, places in placed),
        *(
            [
                target("both", *both, model="padded"),
                rows,
                None,
                None,
                [bytes(range(96)), encode_strings([b"%d" % n * n for n in range(8)])],
            ]
            for rows in ([8], [1, 6, 1], [5, 3])
        ),
    ]


def admissions() -> list[Any]:
    """Each message alone, twice, and with the next."""
    messages = [*predicts(), *edges()]
    pairs = pairwise(messages)
    return [[m] for m in messages] + [[m, m] for m in messages] + [list(pair) for pair in pairs]


def queries() -> list[Any]:
    """The queries that there are."""
    return [
        [[1, "models", {}]],
        [[2, "metadata", {"model": "m", "version": 1, "label": "stable"}]],
        [[3, "metadata", {"model": "whole", "version": None}]],
        [[4, "stats", {}]],
        [[5, "metrics", {}]],
    ]


def conversations() -> list[Any]:
    """Requests, with a region and without, then what clients say besides."""
    others: list[Message] = [
        [0, False, [1, []], []],
        [0, False, [5, [[0, 0, 0], [1, 0, 1]]], []],
        [0, True, [7, [90, "stats", {}]], []],
        [0, False, [7, [91, "metadata", {"model": "m"}]], []],
        [0, False, [9, []], []],
        *([1, False, data, []] for data in _golden("invalid/headers.hex")),
    ]
    asks = [
        [number % 2, True, [3, [number, pack(target), rows, timeouts, places]], frames]
        for number, (target, rows, timeouts, places, frames) in enumerate([*predicts(), *edges()])
    ]
    alone = [[ask] for ask in asks]
    together = [[*asks[i : i + 3], others[i % len(others)]] for i in range(len(asks))]
    return [*alone, *together, *([asks[0], other] for other in others)]


def sessions() -> list[Any]:
    """Answers to what the client asked, whole and in pieces, and errors."""
    row = struct.pack("<f", 1.0)
    y: list[Any] = ["y", "float32", [4]]
    answers: list[Message] = [
        [[4, [[[0, 0, 3]], 1, [y], False, 5]], [row * 4]],
        [[4, [[[0, 0, 1]], 1, [["y", "float32", [1]]], False, 0]], [row]],
        [[4, [[[1, 0, 2]], 1, [["y", "float32", [3]]]]], [row * 3]],
        [[4, [[[1, 1, 1]], 1, [["y", "float32", [2]]]]], [row * 2]],
        [[4, [[[2, 0, 1]], 1, [["y", "string", [2]]]]], [STRINGS]],
        [[4, [[[0, 0, 3], [3, 0, 1]], 1, [["y", "float32", [6]]]]], [row * 6]],
        [[4, [[[4, 0, 1]], 1, [["y", "float32", [1, 20_000]]]]], [row * 20_000]],
        [[4, [[[4, 0, 1]], 1, [["y", "float32", [1]]], True, 0]], []],
        [[6, [[[0, 1, 1]], 3, "no"]], []],
        [[6, [[[1, 0, 0]], 14, "no"]], []],
        [[6, [[], 12, "no"]], []],
        [[8, [5, 0, "", [{"name": "m"}]]], []],
        [[8, [5, 5, "no", None]], []],
        [[2, [7, 1 << 30, "batchyard-0f"]], []],
        [[10, []], []],
        *([data, []] for data in _golden("valid/headers.hex")),
    ]
    pairs = pairwise(answers)
    return [[answer] for answer in answers] + [list(pair) for pair in pairs]


def json_texts() -> list[Any]:
    """Inputs of ``batchyard predict``."""
    return [
        [text]
        for text in (
            '{"x": [[1, 2.5], [-3e2, null]], "s": ["a", {"b64": "AAE="}]}',
            '[1.0, 2.0, "\\u00e9", true]',
            '{"b64": "/w=="}',
            "[[[[[[[[]]]]]]]]",
            "1e999",
        )
    ]


def http_streams() -> list[Any]:
    """What clients send to the REST gateway, in pieces."""
    get, post = b"GET /v1/models/m HTTP/1.1\r\n", b"POST /v1/models/m:predict HTTP/1.1\r\n"
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    return [
        [[get + b"Host: a\r\n\r\n", get + b"\r\n"]],
        [[post + b"Content-Length: 4\r\n\r\n{", b'"a', b'"' + get + b"Connection: close\r\n\r\n"]],
        [[post + b"Transfer-Encoding: chunked\r\n\r\n2;x\r\n{}\r", b"\n0\r\nA: b\r\n\r\n" + get]],
        [[post + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", b"{}"]],
        [
            [
                get
                + upgrade
                + b"\r\n"
                + post
                + upgrade
                + b"Content-Length: 2\r\n\r\n{}"
                + get
                + b"\r\n"
            ]
        ],
        [[post + upgrade + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + get]],
        [[b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nHEAD / HTTP/1.0\r\n\r\n"]],
        [[b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n" + get]],
        [[post + b"Content-Length: 1001\r\n\r\n", bytes(1001)]],
        [[post + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"]],
        [[b"CONNECT a:1 HTTP/1.1\r\n\r\nabc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]],
    ]


def rest_predictions() -> list[Any]:
    """Bodies of ``:predict``, as what they say and as they are."""
    said: list[list[Any]] = [
        [{"instances": [[1, 2.5], [-3e2, 16777215]]}, ["float32"]],
        [{"instances": [[[0, 255]], [[7, 128]]], "signature_name": "s"}, ["uint8"]],
        [{"instances": ["a", {"b64": "AAE="}, "\U0001f600"]}, ["string"]],
        [{"instances": [{"x": [1], "y": "a"}, {"y": "b", "x": [2]}]}, ["int64", "string"]],
        [{"inputs": [[float("nan"), float("inf"), -1e-7]]}, ["float64"]],
        [{"inputs": {"x": [[True], [False]], "y": 1.5}}, ["bool", "bfloat16"]],
        [{"inputs": {"x": []}, "more": None}, ["float16"]],
    ]
    asis = [
        b'{"instances": [[-0, 1e2, NaN], [Infinity, 0.1, 18446744073709551616]]}',
        b'\xef\xbb\xbf{"inputs" : "\\u00e9\xff" }',
        b'{"inputs": 1, "inputs": [[2],[3]]}',
        b'{"instances": [1e999]}',
        b'{"instances":' + b"[" * 2000,
    ]
    bodies = [[json.dumps(body).encode(), kinds] for body, kinds in said]
    return [*said, *bodies, *([body, [kind]] for body in asis for kind in ("float32", "string"))]


def rest_examples() -> list[Any]:
    """Bodies of ``:classify`` and ``:regress``."""
    features = {"a": [1, True], "b": 0.5, "c": ["x", {"b64": "AAE="}], "": []}
    said = [
        {"examples": [features, {}]},
        {"signature_name": "s", "context": features, "examples": [{"a": "x"}]},
    ]
    return [*([body] for body in said), *([json.dumps(body).encode()] for body in said)]


_CONFIGURATION = """
[broker]
bind = ["tcp://127.0.0.1:*", "ipc:///tmp/b"]
ipc_mode = "0660"
region_mb = 4
[pool]
arena_mb = 16
drain_timeout_s = 1.5
[[pool.workers]]
device = "cpu"
count = 2
cpu_affinity = [0, 1]
[[models]]
name = "m"
path = "a.py:f"
runtime = "python"
version_labels = { stable = 1 }
[models.signature.inputs]
x = { dtype = "float32", shape = [-1, 2] }
[models.signature.outputs]
y = { dtype = "string", shape = [-1] }
[models.batching]
max_batch_size = 8
allowed_batch_sizes = [1, 8]
pad_variable_length_inputs = true
length_buckets = [4, 16]
"""


def configurations() -> list[Any]:
    """A file that says nearly all there is to say, and its tables."""
    tables = tomllib.loads(_CONFIGURATION)
    return [
        [_CONFIGURATION],
        [tables],
        [{"models": [{"name": "m", "path": "/m"}]}],
        [b'models = [{ name = "m", path = "/m" }]'],
    ]


def folders() -> list[Any]:
    """A SavedModel, versions, and what is neither."""
    return [
        ["", [], ["saved_model.pb"], []],
        ["", ["1", "00123", "x"], ["00123/saved_model.pb", "7"], []],
        ["1", ["1"], ["1/saved_model.pbtxt"], []],
        ["2", ["1"], [], ["2", "1"]],
        ["", ["9223372036854775808", "\u0661"], [], []],
        ["x" * 300, [], [], []],
        ["a.py:f", [], ["a.py"], []],
        ["b.py:f", [], [], ["b.py"]],
    ]
