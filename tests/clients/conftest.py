"""A server of the python runtime for the tests of the clients: it is ready in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import Server, model_table

from batchyard.clients import Client
from batchyard.clients.session import Session

CALLABLES = Path(__file__).parents[1] / "support" / "callables.py"
MODELS = """
import numpy as np

from batchyard.wire.errors import OutOfRange


def double(inputs):
    return {"y": inputs["x"] * 2}


def upper(inputs):
    return {"y": np.array([item.upper() for item in inputs["x"]], object)}


def total(inputs):
    return {"total": inputs["x"].sum()}


def typed_error(inputs):
    raise OutOfRange("x is beyond 100")
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration with callables of this file and of ``support.callables``.

    ``double`` and ``upper`` declare their tensors; the others take any.
    """
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    floats = {"inputs": {"x": ("float32", [-1, 2])}, "outputs": {"y": ("float32", [-1, 2])}}
    same = {"inputs": {"x": ("float32", [-1, 2])}, "outputs": {"x": ("float32", [-1, 2])}}
    strings = {"inputs": {"x": ("string", [-1])}, "outputs": {"y": ("string", [-1])}}
    tables = [
        model_table("double", f"{path}:double", signature=floats),
        model_table("upper", f"{path}:upper", signature=strings, labels={"stable": 1}),
        model_table("total", f"{path}:total"),
        model_table("typed_error", f"{path}:typed_error"),
        model_table("alone", f"{CALLABLES}:echo", signature=same, enable_batching=False),
        model_table("alone_open", f"{CALLABLES}:echo", enable_batching=False),
        *(
            model_table(name, f"{CALLABLES}:{name}")
            for name in ("echo", "gated", "recorded", "fails", "located")
        ),
    ]
    return "".join(tables)


@pytest.fixture(scope="session")
def server(models: str) -> Iterator[Server]:
    """One for all tests that neither stop nor kill it. It has one worker."""
    with Server(config=models) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    """One of ``server``'s, for all tests that do not close it."""
    with server.client() as client:
        yield client


@pytest.fixture
def session() -> Session:
    """The protocol without a socket; see ``support.sessions``."""
    return Session()
