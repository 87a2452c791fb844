"""REST and gRPC as processes of a real server: its start, their deaths, other models, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from support.server import Server, callable_path, model_table, refused
from support.waiting import DEADLINE_S, wait_until

from batchyard.wire.tensorflow_serving import messages

REST = "batchyard.clients.gateways.rest"
NUMBERS = {name: ("int64", [-1]) for name in ("gate", "batch", "rows", "pid")}
ECHO = model_table(
    "echo",
    callable_path("echo"),
    signature={"inputs": {"x": ("float32", [-1])}, "outputs": {"x": ("float32", [-1])}},
)
GATED = model_table(
    "gated",
    callable_path("gated"),
    signature={"inputs": {"gate": NUMBERS["gate"]}, "outputs": NUMBERS},
)
# Nobody but these two serves: no endpoint of the SDK's.
GATEWAYS = "[rest]\nport = 0\nprocesses = 2\n[grpc]\nport = 0\n[broker]\nbind = []\n"


class GatewayServer(Server):
    """A server that is reached by its gateways only."""

    def __init__(self, workers: int = 1) -> None:
        pool = f'[[pool.workers]]\ndevice = "cpu"\ncount = {workers}\n'
        super().__init__(config=ECHO + GATED + GATEWAYS + pool, bind=())

    def ask(self, path: str, body: str | None = None) -> tuple[int, str]:
        """Status and body of an answer by REST, on a connection of its own."""
        data = None if body is None else body.encode()
        try:
            with urllib.request.urlopen(f"http://{self.rest}{path}", data, DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def reload(self, **paths: str) -> Any:
        """The status of HandleReloadConfigRequest for models by their names."""
        request = messages.ReloadConfigRequest()
        for name, path in paths.items():
            model = request.config.model_config_list.config.add()
            model.name, model.base_path, model.model_platform = name, path, "tensorflow"
        with grpc.insecure_channel(self.grpc) as channel:
            call = channel.unary_unary(
                "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
                request_serializer=messages.ReloadConfigRequest.SerializeToString,
                response_deserializer=messages.ReloadConfigResponse.FromString,
            )
            return call(request, timeout=DEADLINE_S).status


@pytest.fixture(scope="module")
def server() -> Iterator[GatewayServer]:
    with GatewayServer() as made:
        yield made


def test_a_server_that_is_ready_answers_by_both(server: GatewayServer) -> None:
    assert server.endpoints == [""]
    assert server.ask("/v1/models/echo:predict", '{"instances": [1.5]}')[0] == 200
    with grpc.insecure_channel(server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=DEADLINE_S) == b"\x08\x01", "SERVING"


def test_one_process_that_dies_leaves_the_port_open(server: GatewayServer) -> None:
    before = set(server.processes(REST))
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    for _ in range(20):
        assert server.ask("/v1/models/echo")[0] == 200
    wait_until(lambda: len(server.processes(REST)) == 2, lambda: server.log_tail)
    assert len(before & set(server.processes(REST))) == 1


def test_one_in_anothers_place_waits_for_no_model(server: GatewayServer, slow_model: str) -> None:
    config = server.folder / "config.toml"
    before = config.read_text()
    config.write_text(before + model_table("slow", slow_model))
    server.signal(signal.SIGHUP)
    wait_until((server.working_folder / "loading").exists, lambda: server.log_tail)
    old = set(server.processes(REST))
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(server.processes(REST)) - old) == 2, lambda: server.log_tail)
    assert server.ask("/v1/models/echo")[0] == 200
    config.write_text(before)
    server.signal(signal.SIGHUP)


def test_other_models_are_served_when_grpc_says_so(server: GatewayServer) -> None:
    echo = callable_path("echo")
    assert server.reload(echo=echo).error_code == 0
    assert server.ask("/v1/models/gated")[0] == 404
    assert server.ask("/v1/models/echo:predict", '{"instances": [1.5]}')[0] == 200
    # What cannot be served changes nothing, and says why.
    for path, reason in (("/no/such/folder", "is no folder"), ("gs://b", "mount gs://")):
        with pytest.raises(grpc.RpcError) as refusal:
            server.reload(echo=echo, bad=path)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in refusal.value.details()
    assert server.ask("/v1/models/echo")[0] == 200
    # The configuration itself holds again when it is read.
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.ask("/v1/models/gated")[0] == 200, lambda: server.log_tail)
    assert "cause=gateway" in server.log


def test_what_keeps_a_gateway_from_starting_ends_the_start(tmp_path: Path) -> None:
    # At once: this model does not load before all is over.
    endless = tmp_path / "endless.py"
    endless.write_text("import time\n\ntime.sleep(1000)\n")
    arguments = ("--model", f"m={endless}:model", "--grpc-port=0")
    with refused(*arguments, "--grpc-ssl-config-file=/no/such/file") as (code, log):
        assert code == 2
        assert "/no/such/file" in log.splitlines()[-1]


# The end


class Load:
    """Clients that ask one request after the other, each by a connection that it keeps, until they
    are sent away. Whatever else happens to one is an error."""

    def __init__(self, server: GatewayServer) -> None:
        self.server = server
        self.answers = 0
        self.refusals: list[str] = []

    async def by_rest(self) -> None:
        url = f"http://{self.server.rest}/v1/models/echo:predict"
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.post(url, json={"instances": [1.0, 2.0]}) as answer:
                        body = await answer.text()
                except aiohttp.ClientConnectorError:
                    self.refusals.append("no connection")
                    return
                if answer.status == 503:
                    self.refusals.append("503")
                    return
                assert answer.status == 200, body
                self.answers += 1

    async def by_grpc(self) -> None:
        request = messages.PredictRequest()
        request.model_spec.name = "echo"
        request.inputs["x"].dtype = 1
        request.inputs["x"].tensor_shape.dim.add().size = 1
        request.inputs["x"].float_val.append(1.0)
        async with grpc.aio.insecure_channel(self.server.grpc) as channel:
            predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            while True:
                try:
                    await predict(request.SerializeToString(), timeout=DEADLINE_S)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    self.refusals.append("UNAVAILABLE")
                    return
                self.answers += 1

    async def held(self) -> str:
        """A request that is under way for as long as its gate is closed."""
        url = f"http://{self.server.rest}/v1/models/gated:predict"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"inputs": [1]}) as answer,
        ):
            return f"{answer.status} {await answer.text()}"


def test_who_had_asked_when_it_stops_is_answered() -> None:
    async def main(server: GatewayServer) -> None:
        load = Load(server)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            held = group.create_task(load.held())
            while not server.gates.is_reached(1):
                await asyncio.sleep(0.01)
            for _ in range(4):
                group.create_task(load.by_rest())
                group.create_task(load.by_grpc())
            while load.answers < 80:
                await asyncio.sleep(0.01)
            server.signal(signal.SIGTERM)
            while len(load.refusals) < 8:
                await asyncio.sleep(0.01)
            assert not held.done()
            server.gates.open(1)
            assert (await held).startswith("200")

    # One runs what is held up.
    with GatewayServer(workers=2) as server:
        asyncio.run(main(server))
        assert server.wait_for_exit() == 0
        for event in ("gateway_died", "broker_died", "gateway_erred"):
            assert event not in server.log
