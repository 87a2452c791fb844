"""What JSON costs: bodies of REST beside json and orjson of the same text and numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import orjson

from batchyard.benchmarks.machine import describe
from batchyard.benchmarks.results import Figure, Results, run_rounds
from batchyard.clients.gateways.rest.predict_json import decode_predict, encode_predict
from batchyard.clients.inputs import Array
from batchyard.wire.signatures import TensorSpec

_SHAPES = {
    "one": (1,),
    "1000": (1, 1000),
    "image": (1, 224, 224, 3),
    "32_images": (32, 224, 224, 3),
}
_TITLES = {
    "one": "one float",
    "1000": "1,000 floats",
    "image": "224 × 224 × 3 floats",
    "32_images": "32 × 224 × 224 × 3 floats",
}
_SPECS = {"x": TensorSpec("x", "float32", None)}
_REFERENCES = ("orjson", "json")


def run(seconds: float, repeat: int) -> Results:
    """Measures each for ``seconds``, ``repeat`` times, in turn."""
    calls = {key: call for name in _SHAPES for key, call in _calls(name).items()}
    measurements = {
        key: partial(_measure, key, call, size, seconds) for key, (call, size) in calls.items()
    }
    measured = run_rounds(measurements, repeat)
    settings = {"seconds": seconds, "repeat": repeat, "dtype": "float32"}
    return Results("json", describe(), settings, _figures(), measured)


def _figures() -> list[Figure]:
    return [
        Figure(
            f"{does}_{name}",
            f"{does} {title}, beside {reference}",
            "ns/element",
            f"{does}_{name}_{reference}",
            lower_is_better=True,
        )
        for does in ("decode", "encode")
        for name, title in _TITLES.items()
        for reference in _REFERENCES
    ]


def _calls(name: str) -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured by its key, each with how many elements it takes or gives."""
    array = np.random.default_rng(0).random(_SHAPES[name], np.float32)
    body = orjson.dumps({"instances": array}, option=orjson.OPT_SERIALIZE_NUMPY)
    calls: dict[str, Callable[[], object]] = {
        f"decode_{name}": lambda: decode_predict(body, lambda _: _SPECS),
        f"decode_{name}_orjson": lambda: _as_array(orjson.loads(body)),
        f"decode_{name}_json": lambda: _as_array(json.loads(body)),
        f"encode_{name}": lambda: encode_predict({"y": array}, is_row=True),
        f"encode_{name}_orjson": lambda: orjson.dumps(
            {"predictions": array}, option=orjson.OPT_SERIALIZE_NUMPY
        ),
        f"encode_{name}_json": lambda: json.dumps({"predictions": array.tolist()}),
    }
    return {key: (call, array.size) for key, call in calls.items()}


def _as_array(document: Any) -> Array:
    return np.array(document["instances"], np.float32)


def _measure(key: str, call: Callable[[], object], size: int, seconds: float) -> dict[str, float]:
    began = time.perf_counter()
    count = 0
    while True:
        call()
        count += 1
        elapsed_s = time.perf_counter() - began
        if elapsed_s >= seconds:
            return {key: elapsed_s * 1e9 / count / size}
