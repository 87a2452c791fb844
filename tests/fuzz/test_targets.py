"""The properties of ``harness`` under documents that Hypothesis draws: nearly right, or anything.

``make fuzz`` looks much longer, guided by what the code does.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from fuzz.documents import NotADocument, pack, unpack
from fuzz.found import FOUND
from fuzz.harness import TARGETS, run
from fuzz.mutate import mutate
from hypothesis import given, settings
from hypothesis import strategies as st

# Values that are what they are, and what is nearly so.
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(-2, 70),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.binary(max_size=40),
)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)
# Each has one field, whose every value is a document.
OF_ONE_FIELD = ["header", "target", "signature", "query", "json", "config", "rest_examples"]
# A file system is slow.
EXAMPLES = {"folder": 40, "conversation": 200}


def flip(data: bytes) -> bytes:
    """Another byte in the middle."""
    place = len(data) // 2
    return data[:place] + bytes([len(data) * 37 & 255]) + data[place + 1 :]


names = pytest.mark.parametrize("name", list(TARGETS))


@names
def test_what_fuzzing_starts_from(name: str) -> None:
    for document in TARGETS[name].seeds():
        TARGETS[name].check(unpack(pack(document)))


@pytest.mark.parametrize("name", list(FOUND))
def test_what_fuzzing_found(name: str) -> None:
    for document in FOUND[name]:
        TARGETS[name].check(unpack(pack(document)))


@names
def test_what_is_nearly_right(name: str) -> None:
    starts = [pack(document) for document in [*TARGETS[name].seeds(), *FOUND.get(name, [])]]
    starts = [data for data in starts if len(data) < 1 << 14]

    @settings(max_examples=EXAMPLES.get(name, 300), deadline=None)
    @given(st.sampled_from(starts), st.lists(st.integers(0, 1 << 32), min_size=1, max_size=4))
    def changed(data: bytes, seeds: list[int]) -> None:
        for seed in seeds:
            data = mutate(data, 1 << 14, seed, flip)
        run(name, data)

    changed()


@names
def test_any_bytes(name: str) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.binary(max_size=40))
    def any_bytes(data: bytes) -> None:
        run(name, data)

    any_bytes()


@pytest.mark.parametrize("name", OF_ONE_FIELD)
def test_any_value(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(ANYTHING)
    def any_value(value: Any) -> None:
        with contextlib.suppress(NotADocument):
            TARGETS[name].check([value])

    any_value()


@settings(max_examples=100, deadline=None)
@given(ANYTHING, st.integers(0, 1 << 32), st.integers(10, 2000))
def test_a_mutation_is_a_document_of_bounded_length(value: Any, seed: int, most: int) -> None:
    data = pack(value)
    changed = mutate(data, most, seed, lambda raw: raw + b"x")
    assert len(changed) <= max(most, len(data))
    assert changed == mutate(data, most, seed, lambda raw: raw + b"x")
