"""What the configuration says of the REST gateway (``[rest]``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class RestOptions:
    """See ``docs/configuration.md`` for what each means. A ``timeout_s`` of None is no deadline."""

    timeout_s: float | None = 30.0
    enable_cors_support: bool = False
    gzip_answers: bool = False
    max_body_nbytes: int = 256 * _MB
    # Empty: there is no such page.
    monitoring_path: str = "/monitoring/prometheus/metrics"
    processes: int = 1

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> RestOptions:
        """The options of a section as it was validated; what it leaves out is as above."""
        default = cls()
        max_body_mb = section.get("max_body_mb")
        return cls(
            timeout_s=section.get("timeout_s", default.timeout_s) or None,
            enable_cors_support=section.get("enable_cors_support", default.enable_cors_support),
            gzip_answers=section.get("gzip_answers", default.gzip_answers),
            max_body_nbytes=default.max_body_nbytes if max_body_mb is None else max_body_mb * _MB,
            monitoring_path=section.get("monitoring_path", default.monitoring_path),
            processes=section.get("processes", default.processes),
        )
