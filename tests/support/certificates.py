"""Certificates for tests of TLS, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def can_be_made() -> bool:
    """Whether there is an openssl."""
    return shutil.which("openssl") is not None


@dataclass(frozen=True)
class Certificate:
    """The texts of two PEM files."""

    key: str
    cert: str


def make_certificate(folder: Path, name: str, issuer: str | None = None) -> Certificate:
    """A certificate for ``name``, signed by that of ``issuer`` in the same folder, or by itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", _EXTENSIONS]
    command += ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    if issuer is not None:
        command += ["-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.key"]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)
    return Certificate((folder / f"{name}.key").read_text(), (folder / f"{name}.crt").read_text())
