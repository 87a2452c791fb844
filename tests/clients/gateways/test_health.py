"""When a server is ready, and what it says when it is not."""

from __future__ import annotations

from support.metrics_sample import make_metrics, make_model, make_worker

from batchyard.clients.gateways.health import obstacles


def test_a_server_whose_models_and_workers_are_there_is_ready() -> None:
    assert not obstacles(make_metrics())
    assert not obstacles(make_metrics(workers=[make_worker(state="BUSY")]))


def test_one_worker_is_enough() -> None:
    workers = [make_worker(0, state="STARTING"), make_worker(1)]
    assert not obstacles(make_metrics(workers=workers))
    assert obstacles(make_metrics(workers=workers[:1])) == ["no worker is READY"]


def test_a_version_that_comes_goes_or_fails_beside_another_does_not_count() -> None:
    for state in ("LOADING", "UNLOADING", "END"):
        models = [make_model(), make_model(version=4, state=state, error="no")]
        assert not obstacles(make_metrics(models=models))


def test_each_model_that_is_missing_is_named_with_the_reason() -> None:
    models = [
        make_model(),
        make_model("a", state="END", error="it does not load"),
        make_model("b", version=1, state="UNLOADING"),
        make_model("b", version=2, state="LOADING"),
    ]
    assert obstacles(make_metrics(models=models)) == [
        "model 'a' is not AVAILABLE: version 3 is END (it does not load)",
        "model 'b' is not AVAILABLE: version 1 is UNLOADING, version 2 is LOADING",
    ]


def test_a_server_that_drains_or_says_nothing_is_not_ready() -> None:
    draining = make_metrics()
    draining["broker"]["draining"] = True
    assert obstacles(draining) == ["the server is shutting down"]
    assert obstacles(None) == ["the broker does not answer"]
