"""What Predict's answers cost by gRPC: numbers in ``tensor_content`` or in ``float_val``, written
by hand or by protobuf, and read by a client.

Needs batchyard[server]. Run: python docs/decisions/measure_grpc_answers.py
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import numpy as np

from batchyard.wire.tensorflow_serving.messages import PredictResponse
from batchyard.wire.tensorflow_serving.predict_response import Array, encode_response
from batchyard.wire.tensorflow_serving.tensor_proto import from_array, to_array

SIZES = (1, 1000, 150_528)


def microseconds(work: Callable[[], object], size: int) -> float:
    """The fastest of five."""
    number = max(20_000 // size, 20)
    return min(timeit.repeat(work, number=number, repeat=5)) / number * 1e6


def by_protobuf(array: Array) -> bytes:
    response = PredictResponse()
    response.model_spec.name = "m"
    response.model_spec.version.value = 1
    response.outputs["y"].CopyFrom(from_array(array))
    encoded: bytes = response.SerializeToString()
    return encoded


def by_hand(array: Array, as_content: bool) -> bytes:
    return encode_response("m", 1, "", {"y": array}, as_content=as_content)


def read(body: bytes) -> Array:
    return to_array(PredictResponse.FromString(body).outputs["y"])


def read_numbers(body: bytes) -> list[float]:
    """As clients in Python often do."""
    return list(PredictResponse.FromString(body).outputs["y"].float_val)


def main() -> None:
    for size in SIZES:
        array = np.random.default_rng(0).random(size, np.float32)
        content, typed = by_hand(array, True), by_hand(array, False)
        costs = {
            "content, protobuf": lambda array=array: by_protobuf(array),
            "content, by hand": lambda array=array: by_hand(array, True),
            "float_val, by hand": lambda array=array: by_hand(array, False),
            "read content": lambda body=content: read(body),
            "read float_val to an array": lambda body=typed: read(body),
            "read float_val to a list": lambda body=typed: read_numbers(body),
        }
        for name, work in costs.items():
            print(f"{size:7} floats  {name:27} {microseconds(work, size):9.1f} us", flush=True)


if __name__ == "__main__":
    main()
