"""Reads findings of the doctor in tests."""

from __future__ import annotations

from collections.abc import Iterable

from batchyard.cli.diagnosis.finding import Finding


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    """How each check came out; of several of the same name, the last. Whatever is not ok has a
    remedy that is a sentence."""
    result = {}
    for finding in findings:
        result[finding.check] = str(finding.level)
        assert bool(finding.remedy) == (finding.level != "ok"), finding
        assert not finding.remedy or finding.remedy.endswith((".", ")")), finding
    return result


def only(findings: Iterable[Finding]) -> Finding:
    """The one that is not ok."""
    (finding,) = (finding for finding in findings if finding.level != "ok")
    return finding
