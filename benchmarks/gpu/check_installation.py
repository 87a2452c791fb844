"""What ``benchmarks/gpu/check`` asks of a Python: whether it can run Batchyard from a checkout.

A script, with the standard library alone: Batchyard cannot be imported yet.

``check_installation.py CHECKOUT``            says what is missing; 0 if it can run
``check_installation.py CHECKOUT --quiet``    only exits
``check_installation.py CHECKOUT --needed``   prints what is missing of that, for pip
``check_installation.py CHECKOUT --wanted``   prints what else is missing
``check_installation.py CHECKOUT --sites``    prints where this Python's packages are
``check_installation.py CHECKOUT --link SITE ...``
    makes the checkout importable in this environment, and what is in these folders
"""

from __future__ import annotations

import configparser
import contextlib
import re
import shutil
import sys
import sysconfig
from importlib import metadata, util
from pathlib import Path

# Without these no server with GPU workers runs.
_NEEDED = ("numpy", "pyzmq", "msgpack", "pydantic", "click", "nvidia-ml-py")
# Without these, parts are left out: transfers of our own, bfloat16; `batchyard bench`, its loads.
_WANTED = ("cuda-bindings", "ml_dtypes", "rich", "hdrhistogram")
_WANTED_FOR_PLOTS = ("matplotlib",)
_PYTHON = (3, 11)


def requirements(checkout: Path) -> dict[str, str]:
    """Requirement by package, as setup.cfg has it for the client, a GPU server and benchmarks."""
    parser = configparser.ConfigParser()
    parser.read(checkout / "setup.cfg")
    lines = [parser["options"]["install_requires"]]
    extras = parser["options.extras_require"]
    lines += [extras.get(extra, "") for extra in ("server", "gpu", "bench")]
    words = [line.strip() for text in lines for line in text.splitlines() if line.strip()]
    return {re.split(r"[<>=!~;\[ ]", word)[0]: word for word in words}


def is_satisfied(requirement: str) -> bool:
    """Whether it is installed in a version that is new enough."""
    name, _, least = requirement.partition(">=")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return not least or _numbers(version) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    """``2.1.0rc1`` is (2, 1, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def is_linked(checkout: Path) -> bool:
    """Whether ``import batchyard`` gets this checkout."""
    with contextlib.suppress(ImportError, ValueError):
        found = util.find_spec("batchyard.wire")
        return bool(found and found.origin and _is_inside(Path(found.origin), checkout))
    return False


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def sites() -> list[str]:
    """The folders of packages that a virtual environment of this Python's would not see."""
    # Made from a virtual environment, one sees what is below that one only.
    return [path for path in dict.fromkeys(sys.path) if path.endswith("-packages")]


def link(checkout: Path, others: list[str]) -> None:
    """Links the checkout's packages into this environment, as a strict editable install does."""
    packages = Path(sysconfig.get_path("purelib"))
    sites_file = packages / "batchyard_sites.pth"
    text = "".join(f"{site}\n" for site in others)
    parser = configparser.ConfigParser()
    parser.read(checkout / "setup.cfg")
    folders = {}
    for line in parser["options"]["package_dir"].split("\n"):
        name, _, folder = (word.strip() for word in line.partition("="))
        # What lies deeper comes with its parent.
        if name.count(".") == 1:
            folders[name.partition(".")[2]] = checkout / folder
    target = packages / "batchyard"
    # What is so already stays: servers of another check may run from it, and start processes.
    if not sites_file.exists() or sites_file.read_text() != text:
        sites_file.write_text(text)
    if _links(target) == folders:
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name, path in folders.items():
        (target / name).symlink_to(path)


def _links(folder: Path) -> dict[str, Path]:
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.readlink() for path in paths if path.is_symlink()}


def _tell(what: str, missing: list[str]) -> None:
    if missing:
        quoted = " ".join(f"'{requirement}'" for requirement in missing)
        print(f"{what}: {quoted} (pip install them for {sys.executable})")


def main(checkout: Path, what: str = "", *rest: str) -> int:
    """The exit status."""
    if sys.version_info < _PYTHON:
        print(f"Python {sys.version.split()[0]} at {sys.executable}: Batchyard needs 3.11 or newer")
        return 1
    if what == "--link":
        link(checkout, list(rest))
        return 0
    if what == "--sites":
        print("\n".join(sites()))
        return 0
    known = requirements(checkout)
    needed = [known[name] for name in _NEEDED if not is_satisfied(known[name])]
    names = (*_WANTED, *_WANTED_FOR_PLOTS)
    wanted = [known[n] for n in names if n in known and not is_satisfied(known[n])]
    if what in ("--needed", "--wanted"):
        for requirement in needed if what == "--needed" else wanted:
            print(requirement)
        return 0
    if what != "--quiet":
        _tell("it cannot run without", needed)
        _tell("it leaves things out without", wanted)
    return 0 if not needed and is_linked(checkout) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
