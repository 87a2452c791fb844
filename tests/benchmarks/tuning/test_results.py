"""A tuning as JSON, as words and as a page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from batchyard.benchmarks.tuning import results
from batchyard.benchmarks.tuning.bench import Deadline, Placement, Throughput
from batchyard.benchmarks.tuning.procedure import Tuning, tune
from batchyard.benchmarks.tuning.synthetic import SyntheticBench, linear


@pytest.fixture(scope="module", params=["deadline", "throughput"])
def tuning(request: pytest.FixtureRequest) -> Tuning:
    seconds = linear(0.01, 0.002)
    bench = SyntheticBench(
        lambda rows, placement: seconds(rows), cores=2, placements=(Placement(2), Placement(1))
    )
    goal = Deadline(0.15) if request.param == "deadline" else Throughput()
    return tune(bench, goal, 60.0, lambda line: None)


def test_json_holds_every_measurement(tuning: Tuning) -> None:
    values = json.loads(json.dumps(results.to_json(tuning, "m")))
    assert values["setting"]["max_batch_size"] == tuning.setting.max_batch_size
    assert len(values["experiments"]) == len(tuning.experiments)
    assert {choice["key"] for choice in values["choices"]} >= {"max_batch_size"}
    assert values["execution_times"]["2 workers"][0]["rows"] == 1
    assert values["machine"]["cores"]


def test_words_say_what_was_before(tuning: Tuning) -> None:
    assert "times as much" in results.verified(tuning)
    same = replace(tuning, verification=replace(tuning.verification, before_rate=0.0, holds=False))
    assert "holds no rate" in results.verified(same)
    assert "not held in the end" in results.verified(same)


def test_reasons_are_given_only_for_what_changes(tuning: Tuning) -> None:
    assert "max_batch_size" in results.reasons(tuning)
    assert not results.reasons(replace(tuning, setting=tuning.before))


def test_page(tuning: Tuning) -> None:
    pytest.importorskip("matplotlib")
    from batchyard.benchmarks.tuning.page import page

    text = page(tuning, "a <model>")
    assert "batchyard tune a &lt;model&gt;" in text
    assert text.count("<svg") >= 3
    for choice in tuning.choices:
        assert choice.key in text
    assert "http" not in text.replace("http://www.w3.org", "")
