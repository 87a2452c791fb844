"""Tags on PREDICT and timings on RESULT. What is refused is in ``golden/invalid/predict.hex``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.wire.errors import InvalidArgument
from batchyard.wire.tags import (
    Tag,
    Timing,
    check_request_id,
    decode_tags,
    decode_timings,
    tags_of,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-b7ad6b7169203331-{flags}" for flags in ("01", "00"))
REQUEST_IDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128)


@st.composite
def tags(draw: st.DrawFn) -> tuple[Tag, ...]:
    made = []
    after = 0
    for gap, count in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=5)):
        first = after + gap
        request_id = draw(st.none() | REQUEST_IDS)
        made.append(Tag(first, count, request_id, draw(st.sampled_from((None, SAMPLED)))))
        after = first + count
    return tuple(made)


def over_the_wire(value: object) -> object:
    return msgpack.unpackb(msgpack.packb(value))


@given(tags(), st.integers(0, 3))
def test_tags_come_back(given_tags: tuple[Tag, ...], more: int) -> None:
    count = more + max((tag.first + tag.requests for tag in given_tags), default=0)
    assert decode_tags(over_the_wire(given_tags), count) == given_tags


def test_nil_is_no_tags() -> None:
    assert decode_tags(None, 1) == ()


@given(tags(), st.integers(0, 10), st.integers(1, 10))
def test_tags_of_some_requests(given_tags: tuple[Tag, ...], first: int, count: int) -> None:
    requests = set(range(first, first + count))
    assert tags_of(given_tags, first, count) == [
        tag for tag in given_tags if requests & set(range(tag.first, tag.first + tag.requests))
    ]


class CountedTags(tuple[Tag, ...]):
    """Counts how many of them are looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        self.looks += 1 if isinstance(key, int) else len(range(len(self))[key])
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Tag]:
        for i in range(len(self)):
            yield self[i]


def test_tags_of_one_request_are_found_without_a_look_at_all() -> None:
    """Else a message of many requests that run one by one would hold up the broker for minutes."""
    all_tags = CountedTags(Tag(i, 1, f"r{i}", None) for i in range(65_536))
    for request in (0, 1, 40_000, 65_535):
        assert tags_of(all_tags, request, 1) == [Tag(request, 1, f"r{request}", None)]
    assert all_tags.looks < 4 * 50


def test_who_is_traced() -> None:
    assert Tag(0, 1, None, SAMPLED).is_traced
    assert not Tag(0, 1, None, UNSAMPLED).is_traced
    assert not Tag(0, 1, "x", None).is_traced
    assert Tag(0, 1, None, UNSAMPLED).trace_id == TRACE
    assert Tag(0, 1, None, None).trace_id is None


def test_timings_may_get_more_elements() -> None:
    timing = Timing(0, 1, 2, 3, 4, 5, 6, 7)
    wire = over_the_wire([timing])
    assert decode_timings(wire) == (timing,)
    assert decode_timings([[0, 1, 2, 3, 4, 5, 6, 7, "more"]]) == (timing,)


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a\n", "a\x1b[0m", "ä", "a\u202e", "\ud800"])
def test_what_is_no_request_id(request_id: str) -> None:
    with pytest.raises(InvalidArgument, match="1 to 128 printable ASCII characters"):
        check_request_id(request_id)
