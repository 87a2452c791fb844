"""The page for those who come from TensorFlow Serving has the flags that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.cli.tensorflow_serving.flags import FLAGS, OWN
from batchyard.cli.tensorflow_serving.page import with_flags

PAGE = Path(__file__).parents[3] / "docs" / "tensorflow-serving.md"


def test_page_is_current() -> None:
    page = PAGE.read_text()

    assert page == with_flags(page), "run `make docs`"
    assert all(f"| `--{flag.name}` |" in page for flag in (*FLAGS, *OWN))


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the lines"):
        with_flags("no flags here\n")
