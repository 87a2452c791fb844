"""What the tests share: a server, and the published stubs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.model_server import ModelServer, model_server
from support.serving_stubs import stubs_process


@pytest.fixture(scope="session")
def served(savedmodels: Path) -> Iterator[ModelServer]:
    """A server that no test leaves otherwise than it was, but for models that it adds."""
    with model_server(savedmodels) as served:
        yield served


@pytest.fixture(scope="session")
def ask() -> Iterator[Callable[..., Any]]:
    """Has functions of ``support.serving_stubs`` run in a process with the published stubs."""
    with stubs_process() as ask:
        yield ask
