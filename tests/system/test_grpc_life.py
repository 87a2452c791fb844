"""The gRPC interface beside time: deadlines, cancellation, health, drains, a UNIX socket."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.grpc_client import TIMEOUT_S, GrpcClient, predict_request
from support.held_up import HeldUp
from support.server import BROKER, Server, callable_path, model_table
from support.waiting import wait_until

from batchyard.wire.tensorflow_serving import messages

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# One that no ``HeldUp`` has opened.
LAST_GATE = 1_000_000
MODEL = model_table("gated", callable_path("gated"), max_batch_size=1)


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpc") / "socket"


@pytest.fixture(scope="module")
def server(socket_path: Path) -> Iterator[Server]:
    with Server(config=f'[grpc]\nport = 0\nsocket_path = "{socket_path}"\n{MODEL}') as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[GrpcClient]:
    with GrpcClient(server.grpc) as made:
        yield made


@pytest.fixture
def held_up(server: Server) -> Iterator[HeldUp]:
    """The only worker is busy, and has its next batch: what comes waits in the queue."""
    with server.client() as sdk, HeldUp(server, sdk) as made:
        before = stats(server, "batches")
        following = sdk.submit("gated", {"gate": np.zeros(1, np.int64)})
        wait_until(lambda: stats(server, "batches") == before + 1, "the batch behind it")
        yield made
        made.open()
        following.result(TIMEOUT_S)


def gated(gate: int = 0) -> Any:
    return predict_request("gated", {"gate": np.full(1, gate)})


def stats(server: Server, key: str) -> int:
    return int(server.model_stats("gated")[key])


def wait_until_queued(server: Server, rows: int) -> None:
    wait_until(lambda: stats(server, "queue_rows") == rows, f"{rows} rows in the queue")


def health(client: GrpcClient, service: str = "") -> Any:
    stub = health_pb2_grpc.HealthStub(client.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), TIMEOUT_S).status


def test_a_deadline_goes_along(server: Server, client: GrpcClient, held_up: HeldUp) -> None:
    batches = stats(server, "batches")
    waiting = client.method("Predict").future(gated(), 0.3)

    assert waiting.exception(TIMEOUT_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED

    wait_until_queued(server, 0)
    held_up.open()
    server.wait_until_idle()
    assert stats(server, "batches") == batches


def test_a_deadline_that_has_passed(client: GrpcClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.method("Predict")(gated(), 0)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_is_cancelled_is_never_run(
    server: Server, client: GrpcClient, held_up: HeldUp
) -> None:
    batches = stats(server, "batches")
    waiting = client.method("Predict").future(gated(), TIMEOUT_S)
    wait_until_queued(server, 1)

    waiting.cancel()

    wait_until_queued(server, 0)
    held_up.open()
    server.wait_until_idle()
    assert stats(server, "batches") == batches


def test_a_caller_that_goes_away_takes_its_requests_along(server: Server, held_up: HeldUp) -> None:
    with GrpcClient(server.grpc) as leaving:
        waiting = leaving.method("Predict").future(gated(), TIMEOUT_S)
        wait_until_queued(server, 1)

    wait_until_queued(server, 0)
    assert waiting.code() is grpc.StatusCode.CANCELLED


def test_health(client: GrpcClient) -> None:
    assert health(client) == SERVING
    assert health(client, PREDICTION_SERVICE) == SERVING
    assert health(client, "tensorflow.serving.ModelService") == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health(client, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_unix_socket(server: Server, socket_path: Path) -> None:
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    with GrpcClient(f"unix:{socket_path}") as client:
        assert client.predict("gated", {"gate": np.zeros(1, np.int64)})["rows"].tolist() == [1]


def test_a_gateway_that_dies_is_replaced(server: Server, socket_path: Path) -> None:
    address = server.grpc
    (pid,) = server.processes("batchyard.clients.gateways.grpc")

    os.kill(pid, signal.SIGKILL)

    for where in (address, f"unix:{socket_path}"):
        with GrpcClient(where) as client:
            predict = client.method("Predict")
            assert predict(gated(), TIMEOUT_S, wait_for_ready=True).outputs


def test_the_broker_is_replaced_meanwhile(server: Server, client: GrpcClient) -> None:
    (pid,) = server.processes(BROKER)

    os.kill(pid, signal.SIGKILL)

    assert client.predict("gated", {"gate": np.zeros(1, np.int64)})["rows"].tolist() == [1]
    wait_until(lambda: health(client) == SERVING, "SERVING")


class Asking:
    """Callers that ask all along by connections of their own, several calls at once."""

    def __init__(self, address: str) -> None:
        self._clients = [GrpcClient(address) for _ in range(3)]
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(c,)) for c in self._clients]
        # What came of their calls.
        self.codes: set[grpc.StatusCode] = set()

    def __enter__(self) -> Asking:
        for client in self._clients:
            assert health(client) == SERVING
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.channel.close()

    def _ask(self, client: GrpcClient) -> None:
        status = client.method("GetModelStatus", "ModelService")
        request = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name="gated"))
        while not self._is_over.is_set():
            calls = [status.future(request, TIMEOUT_S) for _ in range(10)]
            self.codes.update(call.code() for call in calls)


def test_the_end_answers_what_was_asked_and_refuses_the_rest(
    server: Server, client: GrpcClient
) -> None:
    watched = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watched).status == SERVING
    running = client.method("Predict").future(gated(LAST_GATE), TIMEOUT_S)
    server.gates.wait_until_reached(LAST_GATE)

    with Asking(server.grpc) as asking:
        server.signal(signal.SIGTERM)
        check_the_end(server, client, watched, running)
    # They learn that another server should be asked, to the last: never CANCELLED.
    assert asking.codes - {grpc.StatusCode.OK} == {grpc.StatusCode.UNAVAILABLE}


def check_the_end(server: Server, client: GrpcClient, watched: Any, running: Any) -> None:
    assert next(watched).status == NOT_SERVING
    with pytest.raises(grpc.RpcError) as ended:
        next(watched)
    with pytest.raises(grpc.RpcError) as refused:
        client.method("Predict")(gated(), TIMEOUT_S)
    assert ended.value.code() is refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not running.done()
    server.gates.open(LAST_GATE)
    assert running.result().outputs
    assert server.wait_for_exit() == 0
