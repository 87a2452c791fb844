"""What requests hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchyard.benchmarks.load.mix import VARIANTS, draw, read_mix, variants
from batchyard.benchmarks.load.plan import MixEntry
from batchyard.wire.errors import ConfigurationError, InvalidArgument
from batchyard.wire.signatures import TensorSpec


def test_drawn_by_weight() -> None:
    mix = [MixEntry("a", 1), MixEntry("b", 3), MixEntry("c", 0.5)]
    kinds = draw(mix, 90_000, 5)
    counts = np.bincount(kinds)
    assert counts.tolist() == pytest.approx([20_000, 60_000, 10_000], rel=0.05)
    assert np.array_equal(kinds, draw(mix, 90_000, 5))


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype", "low", "high"),
    [
        ("float32", "float32", 0, 1),
        ("float64", "float64", 0, 1),
        ("uint8", "uint8", 0, 255),
        ("int64", "int64", 0, 9),
        ("bool", "bool", 0, 1),
        ("complex64", "complex64", 0, 1),
        ("bfloat16", "bfloat16", 0, 1),
    ],
)
def test_made_up_inputs_fit_the_signature(
    dtype: str, numpy_dtype: str, low: int, high: int
) -> None:
    specs = [TensorSpec("x", dtype, (None, None, 3, None))]
    found = list(variants(specs, MixEntry("m", rows=4, shape=(2,)), seed=1))
    assert len(found) == VARIANTS
    for inputs in found:
        x = inputs["x"]
        assert x.dtype.name == numpy_dtype
        # The rows, what is open from the entry's shape, and then 1.
        assert x.shape == (4, 2, 3, 1)
        assert np.all((x.astype("complex128").real >= low) & (x.astype("complex128").real <= high))
    assert not np.array_equal(found[0]["x"], found[1]["x"])
    again = next(variants(specs, MixEntry("m", rows=4, shape=(2,)), seed=1))
    assert np.array_equal(found[0]["x"], again["x"])


def test_made_up_strings_and_odd_shapes() -> None:
    specs = [
        TensorSpec("text", "string", (None,)),
        TensorSpec("fixed", "float32", (7,)),
        TensorSpec("scalar", "float32", ()),
        TensorSpec("unknown", "float32", None),
    ]
    inputs = next(variants(specs, MixEntry("m", rows=2, shape=(5,)), seed=0))
    assert [type(text) for text in inputs["text"]] == [bytes, bytes]
    shapes = [inputs[name].shape for name in ("fixed", "scalar", "unknown")]
    assert shapes == [(7,), (), (2, 5)]


def test_large_inputs_are_few() -> None:
    specs = [TensorSpec("x", "uint8", (None, 40 * 2**20))]
    assert len(list(variants(specs, MixEntry("m"), seed=0))) == 1


def test_given_inputs_take_the_signatures_dtypes() -> None:
    specs = [TensorSpec("x", "float32", (None, 2)), TensorSpec("s", "string", (None,))]
    entry = MixEntry("m", inputs={"x": [[1, 2]], "s": ["a"], "more": [1.5]})
    (inputs,) = variants(specs, entry, seed=0)
    assert inputs["x"].dtype == np.float32
    assert inputs["s"].tolist() == ["a"]
    # That it is one too many, the server says.
    assert inputs["more"].tolist() == [1.5]


def test_inputs_that_cannot_be_made() -> None:
    with pytest.raises(InvalidArgument, match="'m' declares no inputs"):
        list(variants([], MixEntry("m"), seed=0))
    entry = MixEntry("m", inputs={"x": [[1], [2, 3]]})
    with pytest.raises(InvalidArgument, match="'m' input 'x'"):
        list(variants([TensorSpec("x", "float32", (None, 1))], entry, seed=0))


def test_mix_file(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(
        '[[requests]]\nmodel = "a"\nweight = 3\ndeadline_ms = 60\nshape = [4, 5]\n'
        '[[requests]]\nmodel = "b"\nrows = 8\ninputs = { x = [[1.0]] }\n'
    )
    assert read_mix(path) == (
        MixEntry("a", weight=3, deadline_s=0.06, shape=(4, 5)),
        MixEntry("b", rows=8, inputs={"x": [[1.0]]}),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"needs \[\[requests\]\]"),
        ("requests = 3", r"needs \[\[requests\]\]"),
        ("[[requests]]\nrows = 2", "request 1: a key is missing"),
        ('[[requests]]\nmodel = "a"\nrow = 2', "unknown key 'row'"),
        ('[[requests]]\nmodel = "a"\nrows = 0', "rows 0 must be"),
        ('[[requests]]\nmodel = "a"\nrows = 1.5', "rows 1.5 must be"),
        ('[[requests]]\nmodel = "a"\nweight = "x"', "of a wrong type"),
        ('[[requests]]\nmodel = "a"\ndeadline_ms = -1', "deadline"),
        ("[[", "cannot be read"),
    ],
)
def test_what_is_no_mix(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        read_mix(path)


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"model": ""}, {"deadline_s": 0.0}])
def test_what_is_no_request(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        MixEntry(**{"model": "m", **change})
