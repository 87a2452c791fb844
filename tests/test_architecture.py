"""The page that says where things are names every module of the ground floors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize(
    "folder",
    [
        *("wire", "wire/tensorflow_serving", "broker", "pool", "clients", "clients/gateways"),
        *(
            "clients/gateways/rest",
            "clients/gateways/grpc",
            "pool/gpu",
            "pool/runtimes",
            "pool/worker",
        ),
    ],
)
def test_every_module_is_where_things_are(folder: str) -> None:
    section = PAGE[PAGE.index("## Where things are") : PAGE.index("`wire` imports nobody")]
    modules = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "__main__"}
    assert modules <= set(re.findall(r"\w+", section)), "docs/architecture.md is to name them"
