"""The files of the status page, read once: nothing else can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
}
_TEXT = ("text/", "application/json")


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent."""

    body: bytes
    content_type: str


def read_page() -> dict[str, PageFile]:
    """By name, the files of ``page/`` that a browser may have."""
    folder = resources.files("batchyard.clients.gateways") / "page"
    if not folder.is_dir():
        return {}
    files = {}
    for file in folder.iterdir():
        content_type = _TYPES.get(f".{file.name.rpartition('.')[2]}")
        if content_type is not None and file.is_file() and not file.name.startswith("."):
            charset = "; charset=utf-8" if content_type.startswith(_TEXT) else ""
            files[file.name] = PageFile(file.read_bytes(), content_type + charset)
    return files
