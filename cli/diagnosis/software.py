"""Python and the packages, against what the installed metadata of Batchyard asks for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning
from batchyard.pool.gpu.driver import BINDING

PACKAGE = "batchyard"
# Either of these: what a server runs SavedModels with.
_TENSORFLOWS = ("tensorflow-cpu", "tensorflow")


def check_python(version: str, needed: str | None) -> Finding:
    """``needed`` as in the metadata, such as ``>=3.11``."""
    name = f"{platform.python_implementation()} {version}"
    if needed and not Requirement(f"python{needed}").specifier.contains(version, prereleases=True):
        return failure("python", f"{name}, needs {needed}", "Install Batchyard for a newer Python.")
    return ok("python", name)


def check_packages(
    requirements: Sequence[str] | None, installed: Callable[[str], str | None]
) -> list[Finding]:
    """The client's and the server's packages, and TensorFlow, against the requirements.

    ``installed`` gives the version of a package, or None. ``requirements`` is None where
    Batchyard runs without being installed.
    """
    if requirements is None:
        remedy = "Install it (pip install 'batchyard[cpu]'), so that versions can be compared."
        finding = warning("packages", "Batchyard runs from files that are not installed", remedy)
        return [finding, *_check_tensorflow([], installed)]
    parsed = [Requirement(line) for line in requirements]
    wanted = [need for need in parsed if need.name != PACKAGE and _is_of_server(need)]
    findings = [_check_package(need, installed(need.name)) for need in wanted]
    wrong = [finding for finding in findings if finding.remedy]
    if not wrong:
        versions = ", ".join(f"{need.name} {installed(need.name)}" for need in wanted)
        wrong = [ok("packages", versions)]
    return wrong + _check_tensorflow(parsed, installed)


def _is_of_server(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": "server"})


def _check_package(need: Requirement, version: str | None) -> Finding:
    remedy = f"pip install '{need.name}{need.specifier}'"
    if version is None:
        found = f"{need.name} is missing, needs {need.specifier}"
        # Without it there are no GPUs; all else works.
        level = warning if need.name == "nvidia-ml-py" else failure
        return level("packages", found, f"{remedy}.")
    if not need.specifier.contains(Version(version), prereleases=True):
        return failure(
            "packages", f"{need.name} {version}, needs {need.specifier}", f"{remedy} --upgrade."
        )
    return ok("packages", f"{need.name} {version}")


def _check_tensorflow(
    requirements: Sequence[Requirement], installed: Callable[[str], str | None]
) -> list[Finding]:
    needs = {need.name: need for need in requirements if need.name in _TENSORFLOWS}
    there = {name: version for name in _TENSORFLOWS if (version := installed(name)) is not None}
    remedy = "pip install 'batchyard[cpu]' or 'batchyard[gpu]'"
    if not there:
        found = "not installed: python models can be served, SavedModels cannot"
        return [warning("tensorflow package", found, f"{remedy}.")]
    if len(there) > 1:
        found = "tensorflow-cpu and tensorflow are both installed, and overwrite each other's files"
        remedy = "Uninstall both, then install one: " + remedy
        return [failure("tensorflow package", found, f"{remedy}.")]
    ((name, version),) = there.items()
    need = needs.get(name)
    if need is not None and not need.specifier.contains(Version(version), prereleases=True):
        found = f"{name} {version}; Batchyard is tested with {need.specifier}"
        return [warning("tensorflow package", found, f"{remedy}.")]
    return [ok("tensorflow package", f"{name} {version}")]


def check_binding(version: str | None, models: Sequence[str]) -> Finding:
    """Of a machine with GPUs. ``models`` are those with ``device_arrays``, which need it."""
    need = Requirement(BINDING)
    if version and need.specifier.contains(Version(version), prereleases=True):
        return ok("cuda binding", f"{need.name} {version}")
    found = f"{need.name} {version}, needs {need.specifier}" if version else f"no {need.name}"
    remedy = f"pip install '{BINDING}'."
    if models:
        found += f": models with device_arrays do not load ({', '.join(models)})"
        return failure("cuda binding", found, remedy)
    found += ": the arena is not page-locked, and device_arrays cannot be had"
    return warning("cuda binding", found, remedy)


def python_needed() -> str | None:
    """The metadata's ``Requires-Python``; None where Batchyard is not installed."""
    try:
        found = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    return found["Requires-Python"] if "Requires-Python" in found else None  # noqa: SIM401


def requirements() -> Sequence[str] | None:
    """What the installed metadata requires; None where Batchyard is not installed."""
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
