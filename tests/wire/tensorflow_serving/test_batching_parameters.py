"""What a ``BatchingParameters`` message means as a table of ``[models.batching]``."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from batchyard.pool.config_models import Batching
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tensorflow_serving.batching_parameters import batching_table
from batchyard.wire.tensorflow_serving.file_messages import BatchingParameters


def _table(text: str) -> dict[str, Any]:
    return batching_table(text_format.Parse(text, BatchingParameters()))


def _with_defaults(**others: Any) -> dict[str, Any]:
    implicit = {} if "max_batch_size" in others else {"warmup_max_batch_size": 64}
    return {
        **implicit,
        "enable_batching": True,
        "max_batch_size": 1000,
        "batch_timeout_micros": 0,
        "max_enqueued_batches": 10,
        "enable_large_batch_splitting": False,
        **others,
    }


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("", {}),
        ('thread_pool_name { value: "x" }', {}),
        (
            "max_batch_size { value: 128 } batch_timeout_micros { value: 500 }"
            "max_enqueued_batches { value: 1000000 } num_batch_threads { value: 8 }",
            {
                "max_batch_size": 128,
                "batch_timeout_micros": 500,
                "max_enqueued_batches": 1_000_000,
                "num_batch_threads": 8,
            },
        ),
        (
            "allowed_batch_sizes: [8, 1000] pad_variable_length_inputs: true",
            {"allowed_batch_sizes": [8, 1000], "pad_variable_length_inputs": True},
        ),
        ("max_execution_batch_size { value: 4 }", {}),
        ("enable_large_batch_splitting { value: false }", {}),
        ("enable_large_batch_splitting { value: true }", {"enable_large_batch_splitting": True}),
        (
            "enable_large_batch_splitting { value: true } max_batch_size { value: 64 }"
            "max_execution_batch_size { value: 16 } allowed_batch_sizes: [4, 16, 64]",
            {
                "enable_large_batch_splitting": True,
                "max_batch_size": 16,
                "allowed_batch_sizes": [4, 16],
            },
        ),
    ],
)
def test_a_message_as_a_table(text: str, table: dict[str, Any]) -> None:
    made = _table(text)

    assert made == _with_defaults(**table)
    Batching.model_validate(made)


_SPLIT = "enable_large_batch_splitting { value: true } max_execution_batch_size "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allowed_batch_sizes: 8", "must match max_batch_size; last entry was 8; expected 1000"),
        ("allowed_batch_sizes: [8, 2, 1000]", r"must be increasing, from 1 on, not \[8, 2, 1000"),
        ("allowed_batch_sizes: [0, 1000]", "must be increasing, from 1 on"),
        ("max_batch_size { value: 0 }", "max_batch_size must be 1 or more, not 0"),
        ("max_batch_size {}", "max_batch_size must be 1 or more, not 0"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be 1 or more"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be 0 or more"),
        (_SPLIT + "{ value: 0 }", "max_execution_batch_size must be 1 or more"),
        (_SPLIT + "{ value: 2000 }", "2000 must not be more than max_batch_size 1000"),
        (_SPLIT + "{ value: 2 } allowed_batch_sizes: 1000", r"must be one of .*: \[1000\]"),
    ],
)
def test_what_cannot_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        _table(text)


_NUMBERS = st.integers(-1, 5)


@given(
    numbers=st.dictionaries(
        st.sampled_from(
            ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"]
        ),
        _NUMBERS,
    ),
    sizes=st.lists(_NUMBERS, max_size=3),
    splits=st.booleans(),
    executed=st.none() | _NUMBERS,
)
def test_what_is_accepted_can_be_configured(
    numbers: dict[str, int], sizes: list[int], splits: bool, executed: int | None
) -> None:
    parameters = BatchingParameters(allowed_batch_sizes=sizes)
    for name, number in numbers.items():
        getattr(parameters, name).value = number
    parameters.enable_large_batch_splitting.value = splits
    if executed is not None:
        parameters.max_execution_batch_size.value = executed
    try:
        table = batching_table(parameters)
    except InvalidArgument:
        return
    Batching.model_validate(table)
