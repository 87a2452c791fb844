"""TensorFlow Serving's batching parameters as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchyard.wire.errors import ConfigurationError
from batchyard.wire.tensorflow_serving.batching_file import DEFAULTS, read_batching_file


def read(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "batching_params.pbtxt"
    path.write_text(text)
    return read_batching_file(path)


def test_every_key(tmp_path: Path) -> None:
    text = """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 0 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "shared" }
        allowed_batch_sizes: 32
        allowed_batch_sizes: [64, 128]
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: false }
    """
    assert read(tmp_path, text) == {
        "enable_batching": True,
        "max_batch_size": 128,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 1000000,
        "num_batch_threads": 8,
        "allowed_batch_sizes": [32, 64, 128],
        "pad_variable_length_inputs": True,
        "enable_large_batch_splitting": False,
    }


def test_what_is_not_there_is_left_to_others(tmp_path: Path) -> None:
    assert read(tmp_path, "") == {"enable_batching": True}
    # But not sizes that go with another maximum.
    assert read(tmp_path, "max_batch_size {}") == {
        "enable_batching": True,
        "max_batch_size": 0,
        "allowed_batch_sizes": [],
    }


def test_with_splitting_the_maximum_is_of_what_runs_together(tmp_path: Path) -> None:
    splitting = "enable_large_batch_splitting { value: true }"
    table = read(tmp_path, splitting + " max_execution_batch_size { value: 16 }")
    assert table["max_batch_size"] == 16
    assert table["allowed_batch_sizes"] == []
    # Without splitting TensorFlow Serving does not look at it.
    assert "max_batch_size" not in read(tmp_path, "max_execution_batch_size { value: 16 }")
    most = DEFAULTS["max_batch_size"]
    with pytest.raises(ConfigurationError, match=rf"params\.pbtxt: .* at most .* = {most}, not 1"):
        read(tmp_path, splitting + f" max_execution_batch_size {{ value: 1{most} }}")


def test_what_is_wrong_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"batching_params\.pbtxt:2:"):
        read(tmp_path, "max_batch_size { value: 1 }\nmax_batch: 3")
