"""Which parts of a TensorFlow graph change state that outlives a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.graphs import GRAPHS
from support.in_tensorflow import writes_state

WRITERS = {
    "assigns_reference",
    "assigns_resource",
    "assigns_before",
    "scatters",
    "trains",
    "calls_a_writer",
    "branches_to_a_writer",
    "switches_to_a_writer",
    "inserts",
    "dequeues",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_writes_state(ask_tensorflow: Callable[..., Any], name: str) -> None:
    assert ask_tensorflow(writes_state, name) is (name in WRITERS)
