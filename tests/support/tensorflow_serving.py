"""A stand-in for TensorFlow Serving: as much of its two interfaces as its clients meet.

It serves ``double`` (float32 ``x`` of shape (-1, 2), answers twice that), ``names`` (string and int
inputs), ``stuck`` (answers after ``stuck_s``) and ``full`` (UNAVAILABLE), and keeps what it was
sent.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

SPECS: dict[str, dict[str, tuple[str, int, list[int]]]] = {
    "double": {"x": ("DT_FLOAT", 1, [-1, 2])},
    "names": {"name": ("DT_STRING", 7, [-1]), "count": ("DT_INT64", 9, [-1, 1])},
    "stuck": {"x": ("DT_FLOAT", 1, [-1, 2])},
    "full": {"x": ("DT_FLOAT", 1, [-1, 2])},
}


@dataclass
class StandIn:
    """Where it listens, and what it was asked."""

    port: int
    requests: list[Any] = field(default_factory=list)
    connections: int = 0
    stuck_s: float = 10.0
    released: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def rest_stand_in(chunked: bool = False, closes: bool = False) -> Iterator[StandIn]:
    """REST. Answers in chunks, or closes the connection after each, when asked to."""

    class Handler(_RestHandler):
        in_chunks = chunked
        close_after = closes

    with _Server(("127.0.0.1", 0), Handler) as server:
        server.stand_in = StandIn(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.stand_in
        finally:
            server.stand_in.released.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    stand_in: StandIn


class _RestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    in_chunks = False
    close_after = False

    def setup(self) -> None:
        super().setup()
        # Clients that keep a connection must not keep the test.
        self.connection.settimeout(10)
        self.server.stand_in.connections += 1

    def do_GET(self) -> None:
        model = self._model()
        if model is None or not self.path.endswith("/metadata"):
            self._answer(404, {"error": f"Could not find any versions of {self.path}"})
            return
        signature = {
            "inputs": {
                name: {
                    "dtype": dtype,
                    "tensor_shape": {
                        "dim": [{"size": str(size), "name": ""} for size in sizes],
                        "unknown_rank": False,
                    },
                    "name": f"{name}:0",
                }
                for name, (dtype, _, sizes) in SPECS[model].items()
            },
            "outputs": {},
            "method_name": "tensorflow/serving/predict",
        }
        signatures = {"serving_default": signature, "other": signature}
        self._answer(
            200,
            {
                "model_spec": {"name": model, "signature_name": "", "version": "1"},
                "metadata": {"signature_def": {"signature_def": signatures}},
            },
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stand_in = self.server.stand_in
        stand_in.requests.append((self.path, body))
        model = self._model()
        if model == "stuck":
            stand_in.released.wait(stand_in.stuck_s)
        if model == "full":
            self._answer(503, {"error": "Too many requests in the queue"})
        elif model is None:
            self._answer(404, {"error": f"Servable not found for request: {self.path}"})
        elif model == "double" and "instances" in body:
            rows = np.array(body["instances"], np.float32)
            if rows.shape[1:] == (2,):
                self._answer(200, {"predictions": (2 * rows).tolist()})
            else:
                self._answer(400, {"error": f"Matrix size-incompatible: {rows.shape}"})
        else:
            self._answer(200, {"predictions": [0]})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _model(self) -> str | None:
        model = self.path.removeprefix("/v1/models/").partition("/")[0].partition(":")[0]
        return model if model in SPECS else None

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if self.close_after:
                self.send_header("Connection", "close")
            if self.in_chunks:
                self.send_header("Transfer-Encoding", "chunked")
                content = b"".join(
                    b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:5], content[5:])
                )
                content += b"0\r\n\r\n"
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextlib.contextmanager
def grpc_stand_in() -> Iterator[StandIn]:
    """gRPC, with the messages that the target describes."""
    import grpc

    from batchyard.benchmarks.load.targets import predict_messages as messages

    stand_in = StandIn(0)

    def predict(request: Any, context: Any) -> Any:
        stand_in.requests.append((request, context.time_remaining()))
        model = request.model_spec.name
        if model not in SPECS:
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(x)")
        if model == "full":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Too many requests in the queue")
        if model == "stuck":
            stand_in.released.wait(stand_in.stuck_s)
        answer = messages.PredictResponse(model_spec=request.model_spec)
        if model == "double":
            tensor = request.inputs["x"]
            rows = np.frombuffer(tensor.tensor_content, np.float32)
            answer.outputs["y"].CopyFrom(tensor)
            answer.outputs["y"].tensor_content = (2 * rows).tobytes()
        return answer

    def metadata(request: Any, context: Any) -> Any:
        model = request.model_spec.name
        if model not in SPECS:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        signatures = messages.SignatureDefMap()
        for name, (_, number, sizes) in SPECS[model].items():
            info = signatures.signature_def["serving_default"].inputs[name]
            info.dtype = number
            for size in sizes:
                info.tensor_shape.dim.add(size=size)
        answer = messages.GetModelMetadataResponse(model_spec=request.model_spec)
        answer.metadata["signature_def"].value = signatures.SerializeToString()
        return answer

    def handler(function: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            function, request.FromString, lambda answer: answer.SerializeToString()
        )

    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "tensorflow.serving.PredictionService",
                    {
                        "Predict": handler(predict, messages.PredictRequest),
                        "GetModelMetadata": handler(metadata, messages.GetModelMetadataRequest),
                    },
                )
            ]
        )
        stand_in.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield stand_in
        finally:
            stand_in.released.set()
            server.stop(None).wait()
