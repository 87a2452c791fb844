"""What the configuration says of the REST gateway (``[rest]``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RestOptions:
    """See ``docs/configuration.md`` for what each means. An empty ``monitoring_path``: there is no
    such page."""

    timeout_s: float
    enable_cors_support: bool
    gzip_answers: bool
    max_body_nbytes: int
    monitoring_path: str
    processes: int

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> RestOptions:
        """The options of a section as it was validated."""
        return cls(
            timeout_s=section["timeout_s"],
            enable_cors_support=section["enable_cors_support"],
            gzip_answers=section["gzip_answers"],
            max_body_nbytes=section["max_body_mb"] << 20,
            monitoring_path=section["monitoring_path"],
            processes=section["processes"],
        )
