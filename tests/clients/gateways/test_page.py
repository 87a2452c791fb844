"""The status page in a real browser."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.chromium import Chromium, needs_chromium
from support.metrics_samples import busy_pair, model, sample
from support.page_server import PageServer
from support.server import Server, callable_path, model_table
from support.waiting import wait_until

from batchyard.clients.interval import between, changes

pytestmark = needs_chromium
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One for all tests of this file."""
    with Chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running
        assert running.complaints == []


@pytest.fixture
def played() -> Iterator[PageServer]:
    """The gateway, with a broker that is played."""
    with PageServer(busy_pair()[1]) as server:
        yield server


def test_real_numbers_of_a_real_server(browser: Chromium, tmp_path: Path) -> None:
    table = model_table("echo", callable_path("echo"))
    with (
        Server("--metrics-port", "0", config=table) as server,
        server.client() as client,
        browser.open(f"{server.metrics_url}/?interval_ms=200", width=390, height=844) as page,
    ):
        wait_until(lambda: page.text("#state") == "ready", "the page says ready")

        def seen() -> bool:
            client.predict_many("echo", [{"x": np.ones(1, np.float32)}] * 50)
            return page.text("#models [data-name='requests/s']") not in ("", "0")

        wait_until(seen, lambda: f"requests in {page.text('#models')!r}")
        assert page.text("#models th[scope=row] span") == "echo"
        assert str(server.stats()["workers"][0]["pid"]) in page.text("#workers")
        assert "ms" in page.text("#models [data-name='p50']")
        wait_until(
            lambda: page.evaluate("document.querySelectorAll('#plots path').length") > 5,
            "lines in the plots",
        )
        # Nothing is wider than a phone.
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.screenshot(tmp_path / "page.png")
        assert len((tmp_path / "page.png").read_bytes()) > 20_000


def test_the_arithmetic_is_that_of_python(browser: Chromium, played: PageServer) -> None:
    before, after = busy_pair()
    with browser.open(played.url) as page:
        wait_until(lambda: page.text("#state") == "ready", "the page is there")
        found = page.evaluate(
            f"""(async () => {{
                const {{ between, changes, mean, quantile }} = await import("/static/interval.js");
                const [before, after] = [{json.dumps(before)}, {json.dumps(after)}];
                const again = structuredClone(after);
                Object.assign(again.broker, {{ epoch: 9, uptime_s: 0.5 }});
                const told = (interval) => ({{
                    seconds: interval.seconds, cpu: interval.cpu, busy: interval.busy,
                    models: [...interval.models, interval.total].map((m) => ({{
                        requests: m.requests, good: m.good, errors: m.errors, misses: m.misses,
                        rows: m.meanRows, padding: m.padding, sizes: m.batchRows,
                        quantiles: [0.5, 0.95, 0.99].map((q) => quantile(m.request, q)),
                        execution: mean(m.execution), error: m.predictionError,
                    }})),
                }});
                return {{
                    once: told(between(before, after)), again: told(between(before, again)),
                    none: between(after, after), changes: changes(before, after),
                }};
            }})()"""
        )
    again = {**after, "broker": {**after["broker"], "epoch": 9, "uptime_s": 0.5}}
    for key, end in (("once", after), ("again", again)):
        interval = between(before, end)
        assert interval is not None
        models = [
            {
                "requests": m.requests,
                "good": m.good,
                "errors": [list(item) for item in m.errors.items()],
                "misses": dict(m.misses),
                "rows": m.mean_rows,
                "padding": m.padding,
                "sizes": {str(rows): count for rows, count in m.batch_rows.items()},
                "quantiles": [m.request.quantile(q) for q in (0.5, 0.95, 0.99)],
                "execution": m.execution.mean_s,
                "error": m.prediction_error,
            }
            for m in (*interval.models, interval.total)
        ]
        for one in found[key]["models"]:
            one["sizes"] = {rows: count for rows, count in one["sizes"].items() if count}
        assert found[key] == {
            "seconds": interval.seconds,
            "cpu": interval.cpu,
            "busy": interval.busy,
            "models": models,
        }
    assert found["none"] is None
    assert found["changes"] == changes(before, after)


def test_names_are_text(browser: Chromium) -> None:
    hostile = model(HOSTILE, error=HOSTILE, state="END")
    models = [hostile, model("<script>alert(1)</script>")]
    with PageServer(sample(10.0, models)) as server, browser.open(server.url) as page:
        wait_until(lambda: page.text("#state") == "not ready", "what it says of a failed model")
        for text in (page.text("#models"), page.text("#alert"), page.text("#model")):
            assert HOSTILE in text
        server.source.sample["models"][0]["state"] = "AVAILABLE"
        wait_until(lambda: HOSTILE in page.text("#events"), "the model in what happened")
        assert page.text("#devices small") == "Simulated <b>GPU</b>"
        assert page.evaluate("document.querySelectorAll('img, #models script, b b').length") == 0


def test_it_says_when_nobody_answers(browser: Chromium) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(PageServer(busy_pair()[1]))
        page = stack.enter_context(browser.open(server.url))
        wait_until(lambda: page.text("#state") == "ready", "the page says ready")
        server.source.is_silent = True
        wait_until(lambda: page.text("#state") == "no answer", "the page says that nobody answers")
        assert "the broker does not answer" in page.text("#alert")
        assert page.evaluate("document.title") == "no answer – Batchyard"
        server.source.is_silent = False
        server.source.sample["broker"] |= {"epoch": 8, "uptime_s": 0.1, "draining": True}
        wait_until(lambda: page.text("#state") == "draining", "the page says that it drains")
        assert page.text("#alert") == ""
        assert "the broker was started again" in page.text("#events")
        server.stop()
        wait_until(
            lambda: "the metrics gateway cannot be reached" in page.text("#alert"),
            "the page says that nobody is there",
        )


def test_keys_move_along_the_plots(browser: Chromium, played: PageServer) -> None:
    with browser.open(played.url, dark=True) as page:
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        wait_until(
            lambda: page.evaluate("document.querySelectorAll('#plots path').length"), "lines"
        )
        page.ask("Page.bringToFront")
        page.evaluate("document.querySelector('#plots svg').focus()")
        page.press("ArrowLeft")
        wait_until(lambda: page.text("#told").startswith("Requests: in time "), "it is read out")
        assert page.evaluate("document.querySelectorAll('#plots .cursor').length") > 1
        page.press("Escape")
        wait_until(
            lambda: page.evaluate("document.querySelectorAll('#plots .cursor').length") == 0,
            "no cursor",
        )
        assert page.text("#devices").count("gpu:") == 2
