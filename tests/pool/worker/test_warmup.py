"""What a worker learns of a model before it is ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from batchyard.pool.worker.warmup import warm_up
from batchyard.wire.errors import Internal, InvalidArgument
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.work import SignatureReport

Array = npt.NDArray[Any]
X = TensorSpec("x", "float32", (None, 3))


def signature(
    *inputs: TensorSpec, batched: bool = True, is_open: bool = False, name: str = "s"
) -> SignatureSpec:
    return SignatureSpec(name, inputs, (), batched, open=is_open)


class Model:
    """Remembers the inputs that it was run with."""

    def __init__(
        self,
        function: Callable[[Mapping[str, Array]], Mapping[str, Any]],
        *signatures: SignatureSpec,
        stateful: bool = False,
    ) -> None:
        self.signatures: Sequence[SignatureSpec] = signatures
        self.stateful = stateful
        self.seen: list[Mapping[str, Array]] = []
        self._function = function

    def let_go(self) -> None:
        """It holds on to nothing that anybody waits for."""

    def run(self, signature: str, inputs: Mapping[str, Array]) -> Sequence[tuple[str, Array]]:
        self.seen.append(inputs)
        return list(self._function(inputs).items())


def rows_of(nbytes: int) -> Callable[[Mapping[str, Array]], Mapping[str, Any]]:
    """Outputs of ``nbytes`` a row."""
    return lambda inputs: {"y": np.zeros((len(next(iter(inputs.values()))), nbytes), np.int8)}


def test_each_signature_runs_at_every_size() -> None:
    a, b = signature(X, name="a"), signature(X, name="b")
    model = Model(rows_of(10), a, b)
    reports = warm_up("m", model, [1, 4, 8])
    assert [(r.spec, r.output_row_nbytes) for r in reports] == [(a, 10), (b, 10)]
    shapes = [inputs["x"].shape for inputs in model.seen]
    assert [shape for shape, _ in groupby(shapes)] == [(1, 3), (4, 3), (8, 3)] * 2
    for report in reports:
        # The first run of a size is not timed.
        assert [rows for rows, _ in report.warmup_runs] == [1, 1, 1, 4, 4, 4, 8, 8, 8]
        assert all(seconds > 0 for _, seconds in report.warmup_runs)


@pytest.mark.parametrize(
    ("spec", "shape", "dtype", "value"),
    [
        (TensorSpec("x", "float32", (None, 3)), (2, 3), np.float32, 0),
        (TensorSpec("x", "int8", (None, None, 5)), (2, 1, 5), np.int8, 0),
        (TensorSpec("x", "bool", None), (2,), np.bool_, False),
        (TensorSpec("x", "bfloat16", (None,)), (2,), ml_dtypes.bfloat16, 0),
        (TensorSpec("x", "string", (None,)), (2,), object, b""),
    ],
)
def test_made_up_inputs(spec: TensorSpec, shape: Any, dtype: Any, value: Any) -> None:
    model = Model(rows_of(1), signature(spec))
    warm_up("m", model, [2])
    ((_, x),) = model.seen[0].items()
    assert (x.shape, x.dtype) == (shape, np.dtype(dtype))
    assert set(x.ravel().tolist()) == {value}


def test_signature_that_is_not_batched_runs_once_as_declared() -> None:
    spec = signature(
        TensorSpec("x", "float32", (2, None)), TensorSpec("scale", "float32", ()), batched=False
    )
    model = Model(lambda _: {"y": np.zeros(5)}, spec)
    (report,) = warm_up("m", model, [1, 8])
    assert (report.spec, report.output_row_nbytes) == (spec, 40)
    assert {i["x"].shape for i in model.seen} == {(2, 1)}
    assert model.seen[0]["scale"].shape == ()


def test_largest_row_of_all_sizes_is_reported() -> None:
    def shrinking(inputs: Mapping[str, Array]) -> Mapping[str, Any]:
        rows = len(inputs["x"])
        return {"y": np.zeros((rows, 8 if rows == 1 else 2), np.int8), "z": np.zeros(rows)}

    (report,) = warm_up("m", Model(shrinking, signature(X)), [1, 4])
    assert report.output_row_nbytes == 16


def test_strings_count_with_their_offsets() -> None:
    model = Model(lambda inputs: {"y": np.array([b"abc"] * len(inputs["x"]), object)}, signature(X))
    (report,) = warm_up("m", model, [1])
    assert report.output_row_nbytes == 4 + 4 + 3


@pytest.mark.parametrize("output", [np.float32(1), np.zeros(7), np.zeros((1, 4))])
def test_outputs_that_are_not_by_rows_end_batching(
    output: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "batchyard"):
        (report,) = warm_up("m", Model(lambda _: {"y": output}, signature(X)), [1, 4])
    assert not report.spec.batched
    assert "event=not_batched" in caplog.text


def test_stateful_and_open_models_are_left_alone() -> None:
    stateful = Model(rows_of(1), signature(X), stateful=True)
    assert warm_up("m", stateful, [1]) == [SignatureReport(signature(X), None)]
    is_open = signature(is_open=True)
    opened = Model(rows_of(1), is_open)
    assert warm_up("m", opened, [1]) == [SignatureReport(is_open, None)]
    assert stateful.seen == opened.seen == []


@pytest.mark.parametrize(
    ("error", "level", "event"),
    [
        (InvalidArgument("zeros?"), "INFO", "warmup_skipped"),
        (Internal("no luck"), "WARNING", "warmup_failed"),
    ],
)
def test_model_that_refuses_made_up_inputs_is_served_all_the_same(
    error: Exception, level: str, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(inputs: Mapping[str, Array]) -> Mapping[str, Any]:
        raise error

    with caplog.at_level(logging.INFO, "batchyard"):
        (report,) = warm_up("m", Model(refuse, signature(X)), [1])
    assert report == SignatureReport(signature(X), None)
    assert caplog.records[-1].levelname == level
    assert f"event={event} model=m signature=s" in caplog.text


def test_other_signatures_are_warmed_up_when_one_is_not() -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Any]:
        if "picky" in inputs:
            raise InvalidArgument("no")
        return rows_of(3)(inputs)

    a = signature(TensorSpec("picky", "int8", (None,)), name="a")
    b = signature(X, name="b")
    assert [r.output_row_nbytes for r in warm_up("m", Model(picky, a, b), [2])] == [None, 3]
