"""The distributions: complete, installable, and of use outside the checkout.

The wheel is built from the source distribution, as whoever packages Batchyard does.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCE = (".*", "build", "dist", "*.egg-info", "__pycache__")
# What the client needs, and what of theirs lies beside them.
CLIENT_NEEDS = ("numpy", "numpy.libs", "zmq", "pyzmq.libs", "msgpack")
# What no program pays for that uses the client alone.
NOT_OF_THE_CLIENT = {
    *("tensorflow", "pydantic", "click", "rich", "pynvml", "ml_dtypes", "packaging", "aiohttp"),
    *("prometheus_client", "opentelemetry", "asyncio", "ssl", "importlib.metadata", "http"),
    *("email", "urllib.request", "xml", "unittest", "multiprocessing"),
}
_BUILD = (
    "import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
)


def declared() -> configparser.ConfigParser:
    """``setup.cfg``."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds an sdist or a wheel as pip would, with the setuptools that is here."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _BUILD.format(kind=kind), str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return target / ended.stdout.splitlines()[-1]


@dataclass(frozen=True)
class Built:
    """The distributions, and the folder that the wheel is installed in."""

    sdist: Path
    wheel: Path
    installed: Path

    @property
    def metadata(self) -> Message:
        (path,) = self.installed.glob("batchyard-*.dist-info/METADATA")
        return message_from_string(path.read_text())

    def run(self, *arguments: str, **environment: str) -> str:
        """What Python prints, in a folder that is not the checkout, with the wheel installed."""
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.installed.parent,
            env={**_clean(os.environ), "PYTHONPATH": str(self.installed), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("package")
    # Building leaves files in the source.
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    sdist = build("sdist", folder / "source", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    wheel = build("wheel", folder / "unpacked" / sdist.name.removesuffix(".tar.gz"), folder)
    installed = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    # Compiled, as an ordinary installation is.
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", str(installed), str(wheel)],
        check=True,
        timeout=100,
        env=_clean(os.environ),
    )
    return Built(sdist, wheel, installed)


def test_wheel_has_every_file_of_every_package(built: Built) -> None:
    folders = dict(
        line.split(" = ") for line in declared()["options"]["package_dir"].strip().splitlines()
    )
    tops = {folder for folder in folders.values() if "/" not in folder}
    expected = {
        f"batchyard/{path.relative_to(ROOT)}"
        for top in tops
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected
    with zipfile.ZipFile(built.wheel) as archive:
        there = {name for name in archive.namelist() if name.startswith("batchyard/")}
    # A package that setup.cfg does not list, or data of one.
    assert expected - there == set()
    assert there - expected == set()


def test_source_distribution_has_what_a_packager_needs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"} <= names
    assert {"docs/architecture.md", "tests/conftest.py", "examples/client.py"} <= names


def test_metadata_says_what_setup_cfg_says(built: Built) -> None:
    metadata = built.metadata
    assert metadata["Version"] == declared()["metadata"]["version"]
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(needed) == 3, needed


def test_version_has_one_source(built: Built) -> None:
    version = declared()["metadata"]["version"]
    assert built.run("-P", "-m", "batchyard.cli", "--version").split()[-1] == version
    code = "import batchyard.clients; print(batchyard.clients.__version__)"
    assert built.run("-P", "-c", code).strip() == version


def test_client_works_with_three_dependencies(built: Built, tmp_path: Path) -> None:
    """And loads nothing that it may do without: importing it takes 0.1 s, most of it numpy's."""
    packages = Path(sysconfig.get_path("platlib"))
    for name in CLIENT_NEEDS:
        if (packages / name).exists():
            (tmp_path / name).symlink_to(packages / name)
    path = os.pathsep.join([str(built.installed), str(tmp_path)])
    code = "import batchyard.clients as c, sys; c.Client; print(*sys.modules); c.AsyncClient"
    # -S: without the site-packages.
    loaded = set(built.run("-S", "-P", "-c", code, PYTHONPATH=path).split())
    assert "batchyard.clients.client" in loaded
    assert loaded & NOT_OF_THE_CLIENT == set()
    ours = {name.split(".")[1] for name in loaded if name.startswith("batchyard.")}
    assert ours == {"clients", "wire"}


def test_client_is_small(built: Built) -> None:
    files = [
        path
        for part in ("clients", "wire")
        for path in (built.installed / "batchyard" / part).rglob("*.py")
        # Gateways are servers.
        if "gateways" not in path.parts
    ]
    assert sum(path.stat().st_size for path in files) < 1_000_000
