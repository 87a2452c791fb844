"""Results as text."""

from __future__ import annotations

import pytest

from batchyard.benchmarks.results import Results
from batchyard.benchmarks.table import number, table


def test_table(results: Results) -> None:
    assert table(results).splitlines() == [
        "#  figure         median        range  unit        ratio  to    goal  met",
        "-------------------------------------------------------------------------",
        "1  raw echo          200    100 – 400  requests/s",
        "2  fast & good       500    300 – 900  requests/s   2.50  #1  ≥ 2.00  yes",
        "3  slow              200    100 – 400  requests/s   1.00  #1  ≥ 2.00  no",
        "4  CPU a request    1.50  1.00 – 9.00  µs                     ≤ 2.00  yes",
        "5  p50              3.00  3.00 – 9.00  µs           2.00  #4  ≤ 1.60  no",
        "6  fast & good       500    300 – 900  requests/s   2.50  #3",
        "skipped gone: is not installed",
        "settings: seconds 2.0, in_flight 256",
        "machine: cpu an abacus <of wood>, cores 2",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567.8, "1,234,568"),
        (100.0, "100"),
        (99.44, "99.4"),
        (9.996, "10.00"),
        (1.6, "1.60"),
        (0.1, "0.10"),
        (0.0814, "0.081"),
        (0.0, "0.00"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text
