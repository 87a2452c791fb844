"""What the tests share: exported SavedModels, and servers that many tests talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.exported import exported
from support.server import Server, callable_path, model_table

from batchyard.clients import Client

SUPPORT = Path(__file__).parent / "support"
# Batches of exactly two rows: the second may come as late as it likes.
PAIRS: dict[str, Any] = {"max_batch_size": 2, "batch_timeout_micros": 10_000_000}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Adds the logs of the servers that a failed test talked to."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Server):
                report.sections.append((f"log of {name}", value.log_tail))
    return report


_LOADS_FOREVER = """
from pathlib import Path
import time
Path("loading").touch()
time.sleep(60)
"""


@pytest.fixture
def slow_model(tmp_path: Path) -> str:
    """The path of a python model that is not loaded before the test is over.

    While it loads, there is a file ``loading`` in the server's working folder.
    """
    path = tmp_path / "slow.py"
    path.write_text(_LOADS_FOREVER)
    return f"{path}:function"


@pytest.fixture(scope="session")
def savedmodels(request: pytest.FixtureRequest) -> Path:
    """The folder with every kind of SavedModel of ``support/savedmodels.py``; nobody changes it."""
    return exported(request.config, "savedmodels")


@pytest.fixture(scope="session")
def tensorflow_server(savedmodels: Path) -> Iterator[Server]:
    """Two workers that serve all of the SavedModels that can be served, some of them twice."""
    kinds = {path.name: path for path in sorted(savedmodels.iterdir())}
    for unfit in ("bad", "empty", "no_signatures", "foreign_operation", "variable_length"):
        del kinds[unfit]
    for elsewhere in ("half_plus_three", "examples_tf2", "product", "two_constants"):
        del kinds[elsewhere]
    two_versions = kinds.pop("half_plus_two_2_versions")
    lengths = savedmodels / "variable_length"
    tables = [model_table(name, path) for name, path in kinds.items()] + [
        model_table("latest", two_versions, labels={"stable": 124}),
        model_table("older", two_versions / "00000123"),
        model_table("variable_length", lengths),
        model_table("padded", lengths, pad_variable_length_inputs=True, **PAIRS),
        model_table(
            "bucketed", lengths, pad_variable_length_inputs=True, length_buckets=[4, 8], **PAIRS
        ),
        model_table(
            "compiled",
            savedmodels / "keras_mixed",
            jit_compile=True,
            allowed_batch_sizes=[1, 2],
            max_batch_size=2,
        ),
        model_table("tensorflow_alias", callable_path("tensorflow_alias")),
    ]
    config = '[grpc]\nport = 0\n[[pool.workers]]\ndevice = "cpu"\ncount = 2\n' + "".join(tables)
    environment = {"BATCHYARD_TEST_RAISES": str(savedmodels / "raises" / "1")}
    with Server(config=config, environment=environment) as server:
        yield server


@pytest.fixture(scope="session")
def tensorflow(tensorflow_server: Server) -> Iterator[Client]:
    """A client of ``tensorflow_server``."""
    with tensorflow_server.client() as client:
        yield client
