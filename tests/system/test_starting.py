"""Servers that cannot start say why, by a line and an exit code, and leave nothing behind."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from support.grpc_client import GrpcClient, predict_request
from support.server import Server, callable_path, refused
from support.waiting import DEADLINE_S

from batchyard.clients import Client
from batchyard.clients.errors import Unavailable
from batchyard.wire import control

ECHO = ("--model", f"echo={callable_path('echo')}")


def test_a_second_server_on_an_ipc_path_is_refused(slow_model: str) -> None:
    with Server(*ECHO, bind=(), ipc=True) as first, first.client() as client:
        bind = f"ipc://{first.ipc_path}"
        # Before its models are loaded.
        with refused("--model", f"m={slow_model}", bind=(bind,)) as (code, log):
            assert code == control.EXIT_CONFIGURATION
            assert f"batchyard: cannot bind {bind}: another server is running there" in log
        assert client.predict("echo", {"x": [1]})["x"].tolist() == [1]
        with first.client() as late:
            assert late.stats()["broker"]["pid"] in first.processes()
        # Its socket is still its own to remove.
        first.stop()


def test_a_port_in_use_is_refused(slow_model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with refused("--model", f"m={slow_model}", bind=(bind,)) as (code, log):
            assert code == control.EXIT_CONFIGURATION
            assert f"batchyard: cannot bind {bind}: Address already in use" in log
            assert "device_chosen" not in log


def test_the_broker_tells_why_it_ended_and_not_its_workers(tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("no socket")
    for _ in range(3):
        bind = (f"ipc://{tmp_path}/broker",)
        with refused(*ECHO, "--workers", "4", bind=bind) as (code, log):
            assert "a file that is no socket is there" in log
            assert code == control.EXIT_CONFIGURATION


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "m=/nonexistent"], "model 'm': /nonexistent is no folder"),
        (["--model", "m=/usr"], "holds neither saved_model.pb nor numeric version folders"),
        ([*ECHO, "--device", "gpu"], 'device "gpu" does not say which'),
        ([*ECHO, "--bind", "tcp://0.0.0.0:*"], "can be reached from other machines"),
        ([*ECHO, "--allowed-batch-sizes", "2,1"], "must be increasing"),
    ],
)
def test_what_cannot_work_is_refused(arguments: list[str], complaint: str) -> None:
    with refused(*arguments, environment={"CUDA_VISIBLE_DEVICES": ""}) as (code, log):
        assert code == control.EXIT_CONFIGURATION
        assert complaint in log
        assert "Traceback" not in log


def test_an_empty_version_folder_is_refused(savedmodels: Path) -> None:
    with refused("--model", f"m={savedmodels / 'empty'}") as (code, log):
        assert code == control.EXIT_CONFIGURATION
        assert "holds no saved_model.pb" in log


def test_an_empty_list_of_models_serves_none(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("model_config_list {}")
    arguments = ["--port=0", f"--model_config_file={file}", "--grpc_socket_path", tmp_path / "grpc"]
    with (
        Server(*map(str, arguments), command="tfs") as server,
        GrpcClient(f"unix:{tmp_path}/grpc") as client,
    ):
        said = client.refusal("Predict", predict_request("m", {}))
        assert said == "NOT_FOUND: Servable not found for request: Latest(m)"
        assert server.stats()["models"] == []
        server.stop()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("no_such_module:function", "ModuleNotFoundError: No module named 'no_such_module'"),
        (callable_path("no_such_function"), "has no attribute 'no_such_function'"),
        ("sys:maxsize", "sys:maxsize: is not callable"),
    ],
)
def test_a_python_model_that_does_not_load(path: str, complaint: str) -> None:
    with refused("--model", f"m={path}", "--workers", "2") as (code, log):
        assert code == control.EXIT_MODEL
        assert "batchyard: model 'm' does not load: " in log
        assert complaint in log
        assert "Traceback" not in log


def test_savedmodels_that_do_not_load(savedmodels: Path) -> None:
    complaints = {"bad": "saved_model.pb", "no_signatures": "has no signature that can be served"}
    servers = {
        kind: Server("--model", f"m={savedmodels / kind}", wait=False) for kind in complaints
    }
    # Each imports TensorFlow: side by side.
    with servers["bad"], servers["no_signatures"]:
        for kind, server in servers.items():
            assert server.wait_for_exit(60.0) == control.EXIT_MODEL
            (line,) = [ln for ln in server.log.splitlines() if ln.startswith("batchyard: ")]
            assert line.startswith(
                f"batchyard: model 'm' does not load: {savedmodels / kind / '1'}"
            )
            assert complaints[kind] in line
            assert "Traceback" not in server.log


def test_clients_tell_that_nobody_is_there() -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"no server answered at tcp://127.0.0.1:9 within 0.1 s"):
        Client("tcp://127.0.0.1:9", connect_timeout=0.1)
    assert time.monotonic() - started < DEADLINE_S


def test_what_lies_in_the_working_directory_is_not_imported() -> None:
    server = Server(*ECHO)
    for name in ("batchyard", "numpy", "json", "zmq", "queue"):
        (server.working_folder / f"{name}.py").write_text("raise SystemExit('not this one')")
    with server, server.client() as client:
        assert client.predict("echo", {"x": [1]})["x"].tolist() == [1]
