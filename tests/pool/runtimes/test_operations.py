"""Packages of operations: which are imported, and when."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from batchyard.pool.runtimes import operations


def test_the_operation_that_is_missing() -> None:
    error = ValueError(
        "Op type not registered 'NormalizeUTF8' in binary running on host. Make sure"
    )
    assert operations.missing_operation(error) == "NormalizeUTF8"
    assert operations.missing_operation(ValueError("no such file")) is None


def test_those_that_are_installed_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"operations_of_one": "one", "operations_of_two": "two", "operations_of_three": "3"}
    (tmp_path / "operations_of_one.py").write_text("raise ImportError('undefined symbol')")
    (tmp_path / "operations_of_three.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(operations, "PACKAGES", names)
    with caplog.at_level(logging.WARNING):
        operations.import_packages()
    assert "operations_of_three" in sys.modules
    assert "undefined symbol" in caplog.text
    assert "two" not in caplog.text
    del sys.modules["operations_of_three"]
