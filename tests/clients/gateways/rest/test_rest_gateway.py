"""What a gateway does with time, with callers that leave, with web pages, and with bounds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.chromium import Chromium, needs_chromium
from support.rest_gateway import RestCaller, rest_gateway, section
from support.server import Server, callable_path, model_table
from support.waiting import wait_until

from batchyard.clients.gateways.inference import ModelSpec, Prediction, ServedModel
from batchyard.clients.gateways.rest.body_memory import BodyMemory
from batchyard.clients.gateways.rest.gateway import RestGateway
from batchyard.clients.gateways.rest.http_messages import HttpRequest
from batchyard.clients.gateways.rest.options import RestOptions
from batchyard.wire.errors import InvalidArgument
from batchyard.wire.signatures import SignatureSpec, TensorSpec
from batchyard.wire.tensorflow_serving.messages import SignatureDefMap

OPTIONS = RestOptions.from_section(section())
GATED = "/v1/models/gated:predict"
ECHO = "/v1/models/echo:predict"
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    """A server of its own: what stands at a gate keeps its worker busy."""
    numbers = {name: ("int64", [-1]) for name in ("gate", "batch", "rows", "pid")}
    gated = {"inputs": {"gate": ("int64", [-1])}, "outputs": numbers}
    floats = {"x": ("float32", [-1])}
    config = (
        model_table("gated", callable_path("gated"), signature=gated, max_batch_size=1)
        + model_table(
            "echo", callable_path("echo"), signature={"inputs": floats, "outputs": floats}
        )
        + model_table("any", callable_path("echo"))
    )
    with Server(config=config) as running:
        yield running


@pytest.fixture(scope="module")
def rest(serving: Server) -> Iterator[RestCaller]:
    with rest_gateway(serving) as caller:
        yield caller


def gate(number: int) -> bytes:
    return json.dumps({"instances": [number]}).encode()


def test_a_request_has_so_much_time(serving: Server) -> None:
    with rest_gateway(serving, timeout_s=0.2) as hasty:
        answer = hasty.post(GATED, gate(1))
        assert (answer.status, "deadline" in answer.json["error"]) == (504, True)
    serving.gates.open(1)


def test_who_hangs_up_takes_the_request_along(serving: Server, rest: RestCaller) -> None:
    def waiting() -> int:
        models = serving.client().stats()["models"]
        return sum(model["queue_rows"] for model in models if model["name"] == "gated")

    with rest.raw() as first, contextlib.ExitStack() as others:
        first.post(GATED, gate(2))
        serving.gates.wait_until_reached(2)
        for _ in range(5):
            others.enter_context(rest.raw()).post(GATED, gate(0))
        # Its worker may have been given one or two.
        wait_until(lambda: waiting() >= 3, "the others to wait")
        others.close()
        wait_until(lambda: waiting() == 0, "the others to be cancelled")
        serving.gates.open(2)
        assert first.read()[0] == 200
    assert rest.post(GATED, gate(0)).status == 200


def test_a_signature_that_takes_anything_has_no_json(rest: RestCaller) -> None:
    answer = rest.post("/v1/models/any:predict", {"instances": [1.0]})
    assert (answer.status, "declare them" in answer.json["error"]) == (400, True)


def test_a_bug_is_no_reason_to_hang_up() -> None:
    class Broken:
        async def model(self, *_: Any, **__: Any) -> None:
            raise ValueError("nobody thought of this")

    async def ask() -> int:
        gateway = RestGateway(Broken(), Broken(), OPTIONS, BodyMemory(9))  # type: ignore[arg-type]
        return (await gateway.answer(HttpRequest("POST", b"/v1/models/m:predict"))).status

    assert asyncio.run(ask()) == 500


class Replaced:
    """An inference whose model becomes another while a request is read."""

    def __init__(self, *models: ServedModel) -> None:
        self.models = [*models]
        self.dtypes: list[str] = []

    async def model(self, *_: Any, **__: Any) -> ServedModel:
        return self.models.pop(0) if len(self.models) > 1 else self.models[0]

    async def predict(self, spec: ModelSpec, inputs: Any, **_: Any) -> Prediction:
        self.dtypes.append(inputs["x"].dtype.name)
        if self.dtypes[-1] != "float32":
            raise InvalidArgument("wrong")
        return Prediction(spec, inputs)


def served(version: int, dtype: str) -> ServedModel:
    signature = SignatureSpec("serving_default", (TensorSpec("x", dtype, None),), (), True)
    return ServedModel(version, SignatureDefMap(), {"serving_default": signature})


@pytest.mark.parametrize(
    ("after", "status", "dtypes"),
    [
        (served(2, "float32"), 200, ["int32", "float32"]),
        # Another folder, by a reload.
        (served(1, "float32"), 200, ["int32", "float32"]),
        (served(2, "int32"), 400, ["int32"]),
    ],
)
def test_rows_are_read_again_for_another_model(
    after: ServedModel, status: int, dtypes: list[str]
) -> None:
    inference = Replaced(served(1, "int32"), after)

    async def ask() -> int:
        gateway = RestGateway(inference, None, OPTIONS, BodyMemory(9))  # type: ignore[arg-type]
        body = b'{"instances": [1]}'
        return (await gateway.answer(HttpRequest("POST", b"/v1/models/m:predict", {}, body))).status

    assert (asyncio.run(ask()), inference.dtypes) == (status, dtypes)


def test_a_long_name_is_not_said_back_in_full(rest: RestCaller) -> None:
    document = {"signature_name": "a" * 100_000, "instances": [1.0]}
    answer = rest.post("/v1/models/echo:predict", document)
    assert answer.status == 400
    assert len(answer.text) < 5000


def test_what_comes_of_gzip_needs_memory_too() -> None:
    packed = gzip.compress(b'{"instances": [1.0]}')
    unpacked = {b"content-encoding": b"gzip"}
    request = HttpRequest("POST", b"/v1/models/m:predict", unpacked, packed)

    async def ask() -> int:
        memory = BodyMemory(100)
        assert memory.hold(399)
        gateway = RestGateway(None, None, OPTIONS, memory)  # type: ignore[arg-type]
        status = (await gateway.answer(request)).status
        assert memory.nbytes == 399
        return status

    assert asyncio.run(ask()) == 503


def test_who_hangs_up_leaves_no_body_behind() -> None:
    over = threading.Event()
    large = bytes(1 << 20)

    async def hang_up(gateway: RestGateway) -> weakref.ref[partial[bool]]:
        work = partial(over.wait)
        task = asyncio.create_task(gateway._read(large, work))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return weakref.ref(work)

    async def ask() -> None:
        gateway = RestGateway(None, None, OPTIONS, BodyMemory(9))  # type: ignore[arg-type]
        busy = [asyncio.create_task(gateway._read(large, over.wait)) for _ in range(4)]
        await asyncio.sleep(0)
        try:
            gone = [await hang_up(gateway) for _ in range(3)]
            gc.collect()
            assert [work() for work in gone] == [None] * 3
        finally:
            over.set()
        await asyncio.gather(*busy)
        assert await gateway._read(large, lambda: 5) == 5

    asyncio.run(ask())


def test_bodies_have_bounds_before_and_behind_gzip(serving: Server) -> None:
    bomb = gzip.compress(b'{"instances": [' + bytes(4 << 20))
    with rest_gateway(serving, max_body_mb=1) as small:
        for body, headers in ((bytes(2 << 20), {}), (bomb, {"Content-Encoding": "gzip"})):
            answer = small.post(ECHO, body, **headers)
            assert (answer.status, "max_body_mb" in answer.json["error"]) == (413, True)
        odd = small.post(ECHO, b"x", **{"Content-Encoding": "br"})
        assert (odd.status, "gzip and identity are" in odd.json["error"]) == (400, True)


def test_answers_are_compressed_where_that_is_wanted(serving: Server, rest: RestCaller) -> None:
    document = {"instances": [float(i) for i in range(1000)]}
    accepted = {"Accept-Encoding": "gzip"}
    with rest_gateway(serving, gzip_answers=True) as packing:
        packed = packing.post(ECHO, document, **accepted)
        assert packed.headers["Content-Encoding"] == "gzip"
        assert (
            gzip.decompress(packed.text.encode("latin-1"))
            == rest.post(ECHO, document).text.encode()
        )
        assert packing.post(ECHO, document).headers["Content-Encoding"] is None
        assert packing.post(ECHO, {"instances": [1.0]}, **accepted).json == {"predictions": [1.0]}
    assert rest.post(ECHO, document, **accepted).headers["Content-Encoding"] is None


def test_where_the_metrics_are(serving: Server) -> None:
    with rest_gateway(serving, monitoring_path="/m", processes=2) as moved:
        assert moved.post(ECHO, {"instances": [1.0]}).status == 200
        page = moved.get("/m").text
        assert 'API="predict",entrypoint="REST",process="' in page
        assert moved.get("/monitoring/prometheus/metrics").status == 404
    with rest_gateway(serving, monitoring_path="") as without:
        assert without.get("/monitoring/prometheus/metrics").status == 404
        assert without.get("").status in (400, 404)


def test_names_of_the_world_are_refused_at_a_loopback_address(
    serving: Server, rest: RestCaller
) -> None:
    site = {"Host": f"evil.example:{rest.port}"}
    assert rest.get("/v1/models/echo", **site).status == 421
    assert rest.get("/v1/models/echo", Host="models.example").status == 200
    for options in ({"host": "0.0.0.0"}, {"enable_cors_support": True}):
        with rest_gateway(serving, **options) as anybodys:  # type: ignore[arg-type]
            site = {"Host": f"evil.example:{anybodys.port}"}
            assert anybodys.get("/v1/models/echo", **site).status == 200


def test_web_pages_may_ask_where_they_are_allowed_to(serving: Server, rest: RestCaller) -> None:
    with rest_gateway(serving, enable_cors_support=True) as shared:
        answers = [
            shared.ask("OPTIONS", ECHO),
            shared.post(ECHO, {"instances": [1.0]}),
            shared.get("/v1/models/nobody"),
            shared.ask("PATCH", ECHO),
        ]
    assert [answer.status for answer in answers] == [200, 200, 404, 400]
    for answer in answers:
        assert CORS.items() <= dict(answer.headers).items()
    assert not CORS.keys() & dict(rest.post(ECHO, {"instances": [1.0]}).headers).keys()


@needs_chromium
def test_a_browser_lets_pages_ask(serving: Server, rest: RestCaller, tmp_path: Path) -> None:
    script = """fetch("http://127.0.0.1:%d/v1/models/echo:predict", {
        method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({instances: [1.5]})
    }).then(answer => answer.json(), error => error.name)"""
    with (
        rest_gateway(serving, enable_cors_support=True) as shared,
        Chromium(tmp_path) as browser,
        # A page of another origin: what it is does not matter.
        browser.open(f"http://localhost:{shared.port}/v1/models/echo") as page,
    ):
        wait_until(lambda: page.text("body"), "the page")
        assert page.evaluate(script % shared.port) == {"predictions": [1.5]}
        assert page.evaluate(script % rest.port) == "TypeError"
