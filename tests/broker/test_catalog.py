"""Targets find their lane, and wrong ones hear what would be right."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.broker_builders import (
    NO_INPUTS,
    OPEN,
    ROW_NBYTES,
    make_catalog,
    make_group,
    make_model,
    make_report,
    make_signature,
    make_target,
)

from batchyard.broker.catalog import Catalog, Route
from batchyard.broker.lane import Lane
from batchyard.wire.errors import (
    BatchyardError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from batchyard.wire.protocol import PRIORITY_MAX, PRIORITY_MIN
from batchyard.wire.signatures import Shape

TWO_INPUTS = make_signature(
    (("a", "float32", (None, 2)), ("b", "int64", (None,))), (("y", "float32", (None,)),)
)
FIXED = make_signature((("x", "float32", (4, 2)),), (("y", "float32", (4,)),))
LINE = make_signature((("x", "float32", (None, 1)),))
SEQUENCE = make_signature((("x", "float32", (None, None, 3)),))
ANY_RANK = make_signature((("x", "float32", None),))


def x(*shape: int | None, dtype: str = "float32") -> tuple[str, str, Shape]:
    return ("x", dtype, shape)


def lane_of(catalog: Catalog, *inputs: tuple[str, str, Shape], priority: int = 0) -> Lane:
    return catalog.route(make_target(*inputs, priority=priority)).lane


def refused(catalog: Catalog, target: bytes, code: type[BatchyardError], *words: str) -> None:
    with pytest.raises(code) as caught:
        catalog.route(target)
    assert type(caught.value) is code
    for word in words:
        assert word in caught.value.message


# Models come and go


def test_a_model_is_found_by_name_version_or_label() -> None:
    catalog = make_catalog()
    model = catalog.models["m", 1]
    assert model.state == "AVAILABLE"
    for version, label in ((None, None), (1, None), (None, "stable")):
        assert catalog.find("m", version, label) is model
        assert catalog.route(make_target(version=version, label=label)).lane.model is model


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (make_target(model="n"), ["'n'", "served are 'm'"]),
        (make_target(version=7), ["'m'", "no version 7", "version 1 is served"]),
        (make_target(signature="train"), ["no signature 'train'", "it has 'serving_default'"]),
    ],
    ids=["model", "version", "signature"],
)
def test_what_is_not_served_is_not_found(target: bytes, words: list[str]) -> None:
    refused(make_catalog(), target, NotFound, *words)


def test_a_label_that_no_version_has_is_a_wrong_request_as_in_tensorflow_serving() -> None:
    words = "labelled 'canary'", "labels are 'stable'"
    refused(make_catalog(), make_target(label="canary"), InvalidArgument, *words)


def test_an_empty_catalog_says_that_it_serves_none() -> None:
    refused(Catalog(1024), make_target(), NotFound, "served are none")


def test_a_model_is_unavailable_until_it_has_workers_and_when_none_will_come_back() -> None:
    catalog = make_catalog(workers=())
    refused(catalog, make_target(), Unavailable, "'m' version 1 is still loading")
    for worker in (3, 1):
        catalog.worker_ready(worker, make_report())
    route = catalog.route(make_target())
    assert catalog.models["m", 1].workers == [3, 1]
    catalog.worker_lost(1)
    assert catalog.route(make_target()) is route
    # While its workers are being replaced its requests wait.
    catalog.worker_lost(3)
    assert catalog.models["m", 1].state == "LOADING"
    assert catalog.route(make_target()) is route
    catalog.abandon()
    assert catalog.models["m", 1].state == "END"
    for version in (None, 1):
        target = make_target(version=version)
        refused(catalog, target, Unavailable, "'m' version 1 has no worker left")
    catalog.worker_ready(4, make_report())
    assert catalog.route(make_target()) is route
    assert catalog.models["m", 1].state == "AVAILABLE"


def test_a_worker_lost_that_serves_nothing_changes_nothing() -> None:
    catalog = make_catalog()
    catalog.add(make_model("loading"))
    catalog.worker_lost(9)
    assert [model.state for model in catalog.models.values()] == ["AVAILABLE", "LOADING"]


# What a target may say


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (b"\xc1", ["target", "not msgpack"]),
        (b"\x90", ["[model, version, label, signature, priority, inputs]"]),
        (make_target(version=1, label="stable"), ["a version or a label, not both"]),
        (make_target(priority=PRIORITY_MAX + 1), ["priority", "from -10 to 10", "not 11"]),
        (make_target(priority=PRIORITY_MIN - 1), ["priority", "from -10 to 10", "not -11"]),
        (make_target(version=-1), ["version must be an integer", "-1"]),
        (make_target(model="m" * 513), ["model must be a string of at most 512"]),
        (make_target(x(None, 16, dtype="float31")), ["'x'", "float31", "known are bool"]),
        (make_target(x(None, None)), ["'x'", "only the first may be nil"]),
        (make_target(x(*[1] * 33)), ["'x'", "at most 32 sizes"]),
        (make_target(x(-1, 16)), ["'x'", "sizes", "-1"]),
        (make_target(x(None, 16), ("z", "int8", (None,))), ["no input 'z'", "inputs are 'x'"]),
        (make_target(x(None, 16), x(None, 16)), ["got an input twice"]),
        (make_target(("z", "int8", (None,))), ["has no input 'z'"]),
        (make_target(x(None, 16, dtype="float64")), ["'x' has dtype float64, needs float32"]),
        (make_target(x(None, 15)), ["'x' has shape (?, 15), needs (?, 16)"]),
        (make_target(x(None)), ["'x' has shape (?,), needs (?, 16)"]),
        (make_target(x(None, 16, 1)), ["'x' has shape (?, 16, 1), needs (?, 16)"]),
        (make_target(x()), ["'x' has shape (), needs (?, 16)"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_target_is_an_invalid_argument(target: bytes, words: list[str]) -> None:
    catalog = make_catalog()
    refused(catalog, target, InvalidArgument, *words)
    assert not catalog.lanes


def test_every_complaint_about_inputs_names_the_model_and_the_signature() -> None:
    where = "model 'm' signature 'serving_default'"
    for wrong in (x(None, 15), x(None, 16, dtype="int8"), ("z", "int8", (None,))):
        refused(make_catalog(), make_target(wrong), InvalidArgument, where)


def test_a_missing_input_is_named() -> None:
    target = make_target(("b", "int64", (None,)))
    refused(make_catalog(TWO_INPUTS), target, InvalidArgument, "misses input 'a'", "'a', 'b'")


def test_priorities_at_the_bounds_are_taken() -> None:
    catalog = make_catalog()
    for priority in (PRIORITY_MIN, PRIORITY_MAX):
        assert lane_of(catalog, x(None, 16), priority=priority).priority == priority


def test_inputs_may_come_in_any_order() -> None:
    a, b = ("a", "float32", (None, 2)), ("b", "int64", (None,))
    catalog = make_catalog(TWO_INPUTS)
    straight, crossed = catalog.route(make_target(a, b)), catalog.route(make_target(b, a))
    assert (straight.order, crossed.order) == ((0, 1), (1, 0))
    assert straight.shapes == crossed.shapes == ((None, 2), (None,))
    assert straight.lane is crossed.lane


@pytest.mark.parametrize("shape", [(None, 1), (None,), (3, 1), (3,)])
def test_ones_at_the_end_of_a_declared_shape_may_be_left_out(shape: Shape) -> None:
    assert catalog_route(x(*shape)).shapes == (shape,)


def catalog_route(given: tuple[str, str, Shape]) -> Route:
    return make_catalog(LINE).route(make_target(given))


def test_only_ones_may_be_left_out() -> None:
    words = "has shape (?, 5), needs (?, ?, 3)"
    refused(make_catalog(SEQUENCE), make_target(x(None, 5)), InvalidArgument, words)


def test_a_model_that_checks_shapes_gets_those_that_it_does_not_declare() -> None:
    catalog = make_catalog(replace(LINE, checks_shapes=True))
    assert catalog.route(make_target(x(None, 7))).shapes == ((None, 7),)
    assert lane_of(catalog, x(None, 7)) is not lane_of(catalog, x(None, 1))
    refused(catalog, make_target(x()), InvalidArgument, "'x' has shape ()")


def test_rows_that_are_padded_to_others_have_the_declared_shape() -> None:
    catalog = make_catalog(replace(SEQUENCE, checks_shapes=True), pad_variable_length_inputs=True)
    words = "has shape (?, 5, 4), needs (?, ?, 3)"
    refused(catalog, make_target(x(None, 5, 4)), InvalidArgument, words)


# Lanes


def test_requests_that_may_share_a_batch_share_a_lane() -> None:
    catalog = make_catalog(SEQUENCE)
    lane = lane_of(catalog, x(None, 5, 3))
    assert lane.row_shapes == ((5, 3),)
    assert lane_of(catalog, x(2, 5, 3)) is lane
    assert catalog.route(make_target(x(None, 5, 3), version=1)).lane is lane
    assert catalog.route(make_target(x(None, 5, 3), label="stable")).lane is lane
    assert lane_of(catalog, x(None, 6, 3)) is not lane
    assert lane_of(catalog, x(None, 5, 3), priority=1) is not lane


def test_leaving_a_one_out_makes_other_rows() -> None:
    catalog = make_catalog(LINE)
    assert lane_of(catalog, x(None)) is not lane_of(catalog, x(None, 1))


def test_a_lane_knows_how_its_model_is_batched() -> None:
    catalog = make_catalog(max_batch_size=6, batch_timeout_micros=1500, max_enqueued_batches=2)
    lane = lane_of(catalog, x(None, 16))
    assert (lane.max_rows, lane.batch_timeout_s, lane.max_queued_rows) == (6, 0.0015, 12)


def test_with_padding_rows_of_any_length_share_a_lane() -> None:
    catalog = make_catalog(SEQUENCE, pad_variable_length_inputs=True)
    lane = lane_of(catalog, x(None, 5, 3))
    assert lane.row_shapes == ((None, 3),)
    assert lane_of(catalog, x(None, 6, 3)) is lane


def test_with_padding_inputs_of_unknown_rank_share_a_lane_by_rank() -> None:
    catalog = make_catalog(ANY_RANK, pad_variable_length_inputs=True)
    assert lane_of(catalog, x(None, 5)) is lane_of(catalog, x(None, 6))
    assert lane_of(catalog, x(None, 5)) is not lane_of(catalog, x(None, 5, 3))


def test_an_open_signature_takes_any_inputs_and_parts_them_by_shape() -> None:
    catalog = make_catalog(OPEN)
    lane = lane_of(catalog, x(None, 5), ("a", "string", (None,)))
    assert [spec.name for spec in lane.signature.inputs] == ["a", "x"]
    assert lane_of(catalog, ("a", "string", (None,)), x(None, 5)) is lane
    assert lane_of(catalog, ("a", "int8", (None,)), x(None, 5)) is not lane
    assert lane_of(catalog, x(None, 5)) is not lane
    assert lane_of(catalog, x(None, 6)) is not lane_of(catalog, x(None, 5))


def test_an_open_signature_needs_an_input_with_rows() -> None:
    catalog = make_catalog(OPEN)
    refused(catalog, NO_INPUTS, InvalidArgument, "got no input", "at least one")
    refused(catalog, make_target(x()), InvalidArgument, "'x' has shape ()")


def test_an_open_signature_that_is_not_batched_takes_scalars() -> None:
    assert lane_of(make_catalog(OPEN, enable_batching=False), x()).max_rows == 1


@pytest.mark.parametrize("switched_off", [False, True])
def test_what_is_never_batched_wants_whole_shapes(switched_off: bool) -> None:
    shape: tuple[int, ...] = (4, 5, 3) if switched_off else (4, 2)
    signature = SEQUENCE if switched_off else FIXED
    catalog = make_catalog(signature, enable_batching=not switched_off)
    lane = lane_of(catalog, x(*shape))
    assert (lane.max_rows, lane.row_shapes, lane.signature.batched) == (1, (), False)
    words = (
        ["never batched", "a message of its own", "whole shapes"] if switched_off else ["(4, 2)"]
    )
    refused(catalog, make_target(x(None, *shape[1:])), InvalidArgument, "'x'", *words)


# The arena bounds a batch


def test_a_batch_has_no_more_rows_than_fit_into_the_arena() -> None:
    # One row more for the alignment of the input.
    for rows in (1, 2, 3, 4):
        catalog = make_catalog(arena_nbytes=(rows + 1) * ROW_NBYTES, max_batch_size=4)
        assert lane_of(catalog, x(None, 16)).max_rows == rows
        catalog = make_catalog(
            arena_nbytes=(rows + 1) * ROW_NBYTES, max_batch_size=4, allowed_batch_sizes=(1, 2, 4)
        )
        assert lane_of(catalog, x(None, 16)).max_rows == {1: 1, 2: 2, 3: 2, 4: 4}[rows]


def test_a_row_larger_than_the_arena_is_refused() -> None:
    words = ["'m'", "takes 12000 bytes", "arena has 640", "arena_mb"]
    catalog = make_catalog(SEQUENCE, arena_nbytes=640)
    refused(catalog, make_target(x(None, 1000, 3)), ResourceExhausted, *words)
    catalog = make_catalog(SEQUENCE, arena_nbytes=640, allowed_batch_sizes=(2, 4))
    words[1] = "takes 24000 bytes"
    refused(catalog, make_target(x(None, 1000, 3)), ResourceExhausted, *words)
    catalog = make_catalog(SEQUENCE, arena_nbytes=640, enable_batching=False)
    refused(catalog, make_target(x(1000, 1, 3)), ResourceExhausted, "takes 12000 bytes")


def test_with_padding_one_long_request_does_not_make_all_batches_small() -> None:
    catalog = make_catalog(
        SEQUENCE, arena_nbytes=64 * 24 + 64, max_batch_size=4, pad_variable_length_inputs=True
    )
    lane_of(catalog, x(None, 100, 3))
    assert lane_of(catalog, x(None, 4, 3)).max_rows == 4


# Shapes come from clients: what is remembered of them is bounded


def flood(catalog: Catalog, start: int = 1, routes: int = 4096) -> None:
    for length in range(start, start + routes):
        lane_of(catalog, x(None, length, 3))


def test_idle_lanes_are_forgotten_and_those_with_rows_are_kept() -> None:
    catalog = make_catalog(SEQUENCE)
    busy = lane_of(catalog, x(None, 1, 3))
    busy.append(make_group(busy, 1))
    flood(catalog, routes=9000)
    assert len(catalog.lanes) <= 4097
    assert lane_of(catalog, x(None, 1, 3)) is busy


def test_the_lane_that_makes_others_be_forgotten_stays_known() -> None:
    catalog = make_catalog(SEQUENCE)
    flood(catalog)
    lane = lane_of(catalog, x(None, 5000, 3))
    assert catalog.route(make_target(x(None, 5000, 3), version=1)).lane is lane
