"""What the rounds come to."""

from __future__ import annotations

import json

import pytest

from batchyard.benchmarks.results import Figure, Results, Summary, run_rounds


def summary_of(results: Results, title: str) -> Summary:
    return next(s for s in results.summaries() if s.figure.title == title)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    measured = {"a": [10.0, 2.0, 3.0], "b": [5.0, 4.0, 1.0]}
    (summary,) = Results("x", {}, {}, [Figure("a", "a", "", "b")], measured).summaries()
    assert summary.ratios == (2.0, 0.5, 3.0)
    # The ratio of the medians would be 0.75.
    assert summary.ratio == 2.0
    assert summary.median == 3.0


@pytest.mark.parametrize(
    ("title", "met"),
    [
        ("raw echo", None),
        ("fast & good", True),
        ("slow", False),
        ("CPU a request", True),
        ("p50", False),
    ],
)
def test_goal_is_for_the_ratio_or_for_the_value(
    results: Results, title: str, met: bool | None
) -> None:
    assert summary_of(results, title).met is met


def test_goal_that_is_just_reached_is_met() -> None:
    for lower_is_better in (False, True):
        figure = Figure("a", "a", "", goal=2.0, lower_is_better=lower_is_better)
        assert Results("x", {}, {}, [figure], {"a": [2.0]}).summaries()[0].met is True


def test_figure_without_its_reference_has_no_ratio_and_no_verdict() -> None:
    figure = Figure("a", "a", "", "b", 1.0)
    for measured in ({"a": [1.0]}, {"a": [1.0], "b": [0.0]}):
        summary = Results("x", {}, {}, [figure], measured).summaries()[0]
        assert summary.ratio is None
        assert summary.met is None


def test_what_was_not_measured_is_left_out(results: Results) -> None:
    assert "not there" not in [s.figure.title for s in results.summaries()]


def test_rounds_of_different_number_are_a_mistake() -> None:
    figures = [Figure("a", "a", "", "b")]
    with pytest.raises(ValueError, match="zip"):
        Results("x", {}, {}, figures, {"a": [1.0, 2.0], "b": [1.0]}).summaries()


def test_json_has_everything(results: Results) -> None:
    written = json.loads(json.dumps(results.to_json(), allow_nan=False))
    assert written["name"] == "made_up"
    assert written["machine"]["cores"] == "2"
    assert written["settings"] == {"seconds": 2.0, "in_flight": 256}
    assert written["measured"] == results.measured
    assert written["skipped"] == {"gone": "is not installed"}
    fast = written["figures"][1]
    assert fast == {
        "key": "fast",
        "title": "fast & good",
        "unit": "requests/s",
        "reference": "echo",
        "goal": 2.0,
        "lower_is_better": False,
        "median": 500.0,
        "low": 300.0,
        "high": 900.0,
        "ratio": 2.5,
        "ratios": [3.0, 2.5, 2.25],
        "met": True,
    }


def test_rounds_are_interleaved() -> None:
    order: list[str] = []

    def measure(name: str) -> dict[str, float]:
        order.append(name)
        return {name: float(len(order)), f"{name}_cpu": 0.5}

    measured = run_rounds({"a": lambda: measure("a"), "b": lambda: measure("b")}, repeat=2)
    assert order == ["a", "b", "a", "b"]
    assert measured == {
        "a": [1.0, 3.0],
        "a_cpu": [0.5, 0.5],
        "b": [2.0, 4.0],
        "b_cpu": [0.5, 0.5],
    }
