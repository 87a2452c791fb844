"""An environment that a service in a container can run: Batchyard as it is installed from a wheel.

The tests' own may lie where no service can read it: in a home, or as links into a checkout.
"""

from __future__ import annotations

import configparser
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_HIDDEN = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")
_PYTHON, PACKAGES = "/opt/python", "/opt/packages"


def python_home() -> str:
    """Where the environment's Python is in the container."""
    is_hidden = any(Path(sys.base_prefix).is_relative_to(folder) for folder in _HIDDEN)
    return _PYTHON if is_hidden else sys.base_prefix


def binds() -> dict[str, Path]:
    """What an environment needs of the tests' own, by its place in the container."""
    needed = {PACKAGES: Path(sysconfig.get_path("purelib"))}
    if python_home() == _PYTHON:
        needed[_PYTHON] = Path(sys.base_prefix)
    return needed


def links() -> list[tuple[str, str]]:
    """Symbolic links, and where they lead, that the container needs besides."""
    # A Python that was moved looks for its library where it was built, and then where all do, where
    # the system's may be.
    library = sysconfig.get_config_var("INSTSONAME") or ""
    if python_home() != _PYTHON or not Path(sys.base_prefix, "lib", library).is_file():
        return []
    folders = ["/usr/lib", f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or ''}"]
    return [(f"{folder}/{library}", f"{_PYTHON}/lib/{library}") for folder in folders]


def make(folder: Path, place: str, version: str) -> Path:
    """Makes an environment that will be at ``place`` in the container; its folder here."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["package_dir"].strip().splitlines()
    packages = dict(map(str.strip, line.split("=")) for line in lines)
    short = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / short / "site-packages"
    for package, source in packages.items():
        if package.count(".") == 1:
            shutil.copytree(ROOT / source, site.joinpath(*package.split(".")))
    (site / "packages.pth").write_text(f"{PACKAGES}\n")
    metadata = site / f"batchyard-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: batchyard\nVersion: {version}\n")
    scripts = folder / "bin"
    scripts.mkdir()
    (scripts / "python").symlink_to(f"{python_home()}/bin/{short}")
    (folder / "pyvenv.cfg").write_text(f"home = {python_home()}/bin\n")
    command = scripts / "batchyard"
    command.write_text(f"#!{place}/bin/python\nfrom batchyard.cli.main import main\n\nmain()\n")
    command.chmod(0o755)
    # pytest's folders are for one user only.
    folder.chmod(0o755)
    return folder
