"""Python and packages against requirements, as metadata has them."""

from __future__ import annotations

import pytest
from support.findings import levels, only

from batchyard.cli.diagnosis.software import (
    check_binding,
    check_packages,
    check_python,
    installed_version,
)

REQUIREMENTS = [
    "numpy>=2.1",
    'click>=8.1; extra == "server"',
    'nvidia-ml-py>=12; extra == "server"',
    'batchyard[server]; extra == "cpu"',
    'tensorflow-cpu==2.21.*; extra == "cpu"',
    'tensorflow[and-cuda]==2.21.*; extra == "gpu"',
    'pytest>=8; extra == "dev"',
]
WELL = {
    "numpy": "2.4.1",
    "click": "8.1",
    "nvidia-ml-py": "13.0",
    "tensorflow-cpu": "2.21.0",
}


@pytest.mark.parametrize(
    ("version", "needed", "level"),
    [
        ("3.11.2", ">=3.11", "ok"),
        ("3.10.9", ">=3.11", "failure"),
        ("3.15.0rc1", ">=3.11", "ok"),
        ("3.11.2", None, "ok"),
    ],
)
def test_python(version: str, needed: str | None, level: str) -> None:
    assert levels([check_python(version, needed)]) == {"python": level}


def test_all_that_is_needed() -> None:
    findings = check_packages(REQUIREMENTS, WELL.get)
    assert levels(findings) == {"packages": "ok", "tensorflow package": "ok"}
    assert findings[0].found == "numpy 2.4.1, click 8.1, nvidia-ml-py 13.0"


@pytest.mark.parametrize(
    ("change", "check", "level", "says"),
    [
        ({"numpy": "1.26"}, "packages", "failure", "numpy 1.26, needs >=2.1"),
        ({"click": None}, "packages", "failure", "click is missing, needs >=8.1"),
        ({"nvidia-ml-py": None}, "packages", "warning", "nvidia-ml-py is missing"),
        ({"tensorflow-cpu": None}, "tensorflow package", "warning", "not installed"),
        ({"tensorflow-cpu": "2.20.1"}, "tensorflow package", "warning", "tested with ==2.21.*"),
        ({"tensorflow": "2.21.0"}, "tensorflow package", "failure", "both installed"),
    ],
)
def test_what_is_wrong(change: dict[str, str | None], check: str, level: str, says: str) -> None:
    finding = only(check_packages(REQUIREMENTS, {**WELL, **change}.get))
    assert (finding.check, finding.level) == (check, level)
    assert says in finding.found


@pytest.mark.parametrize(
    ("version", "models", "level", "says"),
    [
        ("12.9.2", ["resnet"], "ok", "cuda-bindings 12.9.2"),
        ("12.8.0", ["resnet"], "failure", "12.8.0, needs >=12.9.2: models with device_arrays do"),
        (None, ["resnet", "bert"], "failure", "do not load (resnet, bert)"),
        (None, [], "warning", "the arena is not page-locked"),
    ],
)
def test_the_binding(version: str | None, models: list[str], level: str, says: str) -> None:
    finding = check_binding(version, models)
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")
    assert says in finding.found


def test_files_that_are_not_installed() -> None:
    expected = {"packages": "warning", "tensorflow package": "ok"}
    assert levels(check_packages(None, WELL.get)) == expected


def test_what_is_installed_here() -> None:
    assert installed_version("numpy")
    assert installed_version("no-such-package-anywhere") is None
