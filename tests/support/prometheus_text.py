"""Prometheus' text format, read back: the numbers of ``/metrics``, by name and labels."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Scraped:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        self.families = {f.name: f for f in text_string_to_metric_families(text)}
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in self.families.values()
            for sample in family.samples
        ]

    @property
    def names(self) -> set[str]:
        """Of all samples."""
        return {name for name, _, _ in self._samples}

    def values(self, name: str, **labels: str) -> list[float]:
        """The samples of that name whose labels have these values."""
        return [
            value
            for given, others, value in self._samples
            if given == name and labels.items() <= others.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        """The only one."""
        (value,) = self.values(name, **labels)
        return value
