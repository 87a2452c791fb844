"""What each path is answered with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from batchyard.clients.gateways.exposition import Exposition
from batchyard.clients.gateways.inference import Inference, ModelSpec, Prediction, ServedModel
from batchyard.clients.gateways.rest import encodings
from batchyard.clients.gateways.rest.body_memory import BodyMemory
from batchyard.clients.gateways.rest.example_json import (
    decode_examples,
    encode_classifications,
    encode_regressions,
)
from batchyard.clients.gateways.rest.http_messages import TEXT, HttpRequest, HttpResponse
from batchyard.clients.gateways.rest.latencies import Latencies
from batchyard.clients.gateways.rest.model_json import (
    encode_error,
    encode_metadata,
    encode_statuses,
)
from batchyard.clients.gateways.rest.monitoring_page import monitoring_page
from batchyard.clients.gateways.rest.options import RestOptions
from batchyard.clients.gateways.rest.paths import ModelPath, is_served, parse, path_of
from batchyard.clients.gateways.rest.predict_json import decode_predict, encode_predict
from batchyard.clients.gateways.rest.rebinding import is_rebound
from batchyard.clients.gateways.rest.statuses import status_of
from batchyard.clients.gateways.source import BrokerSource
from batchyard.wire import log
from batchyard.wire.errors import (
    BatchyardError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    shortened,
)
from batchyard.wire.signatures import DEFAULT_SIGNATURE, TensorSpec
from batchyard.wire.tags import is_request_id
from batchyard.wire.version import version

# Bodies of so many bytes are read in a thread, and arrays of so many printed: others go on
# meanwhile. Both take somewhat more than a millisecond, a thread 0.2 to 0.5 ms more. Of the 12 ms
# that a body of 1.6 MB takes, and of the 30 to print 150,528 floats, others wait for one or two.
_READ_IN_THREAD_NBYTES = 128 * 1024
_PRINTED_IN_THREAD_NBYTES = 16 * 1024
_THREADS = 4
_EXPOSED = b"text/plain; version=0.0.4; charset=utf-8"
CORS_HEADERS = (
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"POST, GET"),
    (b"Access-Control-Allow-Headers", b"Content-Type"),
)

_Result = TypeVar("_Result")


class RestGateway:
    """Used by one event loop. ``guarded_port``: where strangers' names are refused (see
    ``rebinding``), or None."""

    def __init__(
        self,
        inference: Inference,
        source: BrokerSource,
        options: RestOptions,
        memory: BodyMemory,
        guarded_port: int | None = None,
    ) -> None:
        self._inference = inference
        self._source = source
        self._options = options
        self._memory = memory
        self._guarded_port = guarded_port
        self._latencies = Latencies()
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "bodies"))
        self._free_threads = asyncio.Semaphore(_THREADS)
        self._version = version()
        self._process = str(os.getpid()) if options.processes > 1 else None

    def error(self, status: int, message: str) -> HttpResponse:
        """An answer that is an error."""
        return HttpResponse(encode_error(message), status)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """The answer to any request; errors are answers too. Cancelling cancels the request."""
        request_id = _request_id(request)
        try:
            response = await self._respond(request, request_id)
        except BatchyardError as error:
            response = self.error(status_of(error), shortened(error.message))
        except Exception as error:  # a bug; the connection and the others on it go on
            trace = log.traceback_of(error)
            reason = f"{type(error).__name__}: {error}"
            log.limited("error", "gateway_erred", reason=reason, traceback=trace)
            response = self.error(500, "the gateway failed; its log says why")
        if self._options.gzip_answers:
            await self._compress(request, response)
        if request_id is not None:
            response.headers = (*response.headers, (b"X-Request-Id", request_id.encode()))
        return response

    async def _respond(self, request: HttpRequest, request_id: str | None) -> HttpResponse:
        path = path_of(request.target)
        port = self._guarded_port
        if port is not None and is_rebound(request.headers.get(b"host"), port):
            words = "ask by an IP address or as localhost; so must a proxy (header Host)"
            return self.error(421, words)
        if request.method == "OPTIONS" and self._options.enable_cors_support:
            return HttpResponse(b"")
        if path.partition("?")[0] == self._options.monitoring_path:
            return await self._monitoring(path)
        try:
            # HEAD is GET without the body, which is left out where it is sent.
            asked = parse("GET" if request.method == "HEAD" else request.method, path)
        except InvalidArgument:
            if is_served(path):
                raise
            return self.error(404, f"nothing is served at {path}; models are below /v1/models/")
        if asked.verb == "status":
            return await self._status(asked)
        if asked.verb == "metadata":
            return await self._metadata(asked)
        encoding = request.headers.get(b"content-encoding")
        if encoding is not None and encodings.is_gzip(encoding):
            return await self._infer_unpacked(asked, request.body, request_id)
        return await self._infer(asked, request.body, request_id)

    async def _infer_unpacked(
        self, asked: ModelPath, packed: bytes, request_id: str | None
    ) -> HttpResponse:
        most = self._options.max_body_nbytes
        try:
            body = await self._read(packed, lambda: encodings.gunzip(packed, most))
        except ResourceExhausted as error:
            # Its own status would have clients try again.
            return self.error(413, error.message)
        nbytes = len(body)
        if not self._memory.hold(nbytes):
            raise Unavailable("bodies of other requests take all memory that is for them")
        try:
            return await self._infer(asked, body, request_id)
        finally:
            self._memory.let_go(nbytes)

    async def _infer(self, asked: ModelPath, body: bytes, request_id: str | None) -> HttpResponse:
        began = self._loop.time()
        deadline = began + self._options.timeout_s
        if asked.verb == "predict":
            answer = await self._predict(asked, body, deadline, request_id)
        else:
            answer = await self._examples(asked, body, deadline, request_id)
        self._latencies.add(asked.name, asked.verb, (self._loop.time() - began) * 1e6)
        return HttpResponse(answer)

    async def _predict(
        self, asked: ModelPath, body: bytes, deadline: float, request_id: str | None
    ) -> bytes:
        spec = ModelSpec(asked.name, asked.version, asked.label)
        model = await self._inference.model(spec, timeout=self._left(deadline))
        prediction, is_row = await self._predicted(spec, model, body, deadline, request_id)
        outputs = prediction.outputs
        if sum(output.nbytes for output in outputs.values()) < _PRINTED_IN_THREAD_NBYTES:
            return encode_predict(outputs, is_row=is_row)
        return await self._in_thread(lambda: encode_predict(outputs, is_row=is_row))

    async def _predicted(
        self,
        spec: ModelSpec,
        model: ServedModel,
        body: bytes,
        deadline: float,
        request_id: str | None,
    ) -> tuple[Prediction, bool]:
        decoded = await self._read(
            body, lambda: decode_predict(body, lambda name: _inputs(model, name))
        )
        asked = ModelSpec(spec.name, spec.version, spec.label, decoded.signature_name)
        try:
            prediction = await self._inference.predict(
                asked, decoded.inputs, timeout=self._left(deadline), request_id=request_id
            )
        except InvalidArgument:
            now = await self._inference.model(spec, timeout=self._left(deadline))
            if now.signatures == model.signatures:
                raise
            # The rows were read as another model has them than the one that answers now.
            return await self._predicted(spec, now, body, deadline, request_id)
        return prediction, decoded.is_row

    async def _examples(
        self, asked: ModelPath, body: bytes, deadline: float, request_id: str | None
    ) -> bytes:
        decoded = await self._read(body, lambda: decode_examples(body))
        spec = ModelSpec(asked.name, asked.version, asked.label, decoded.signature_name)
        left = self._left(deadline)
        if asked.verb == "classify":
            classified = await self._inference.classify(
                spec, decoded.examples, timeout=left, request_id=request_id
            )
            return encode_classifications(classified.classes, classified.scores)
        regressed = await self._inference.regress(
            spec, decoded.examples, timeout=left, request_id=request_id
        )
        return encode_regressions(regressed.values)

    async def _status(self, asked: ModelPath) -> HttpResponse:
        spec = ModelSpec(asked.name, asked.version, asked.label)
        statuses = await self._inference.status(spec, timeout=self._options.timeout_s)
        return HttpResponse(
            encode_statuses([(s.version, s.state, s.code, s.message) for s in statuses])
        )

    async def _metadata(self, asked: ModelPath) -> HttpResponse:
        spec = ModelSpec(asked.name, asked.version, asked.label)
        model = await self._inference.model(spec, timeout=self._options.timeout_s, fresh=True)
        return HttpResponse(encode_metadata(asked.name, model.version, model.signature_def))

    async def _monitoring(self, path: str) -> HttpResponse:
        right = self._options.monitoring_path
        if path != right:
            words = f"Unexpected path: {path}. Should be {right}"
            return HttpResponse(words.encode("latin-1"), 400, TEXT)
        metrics = await self._source.read()
        theirs = monitoring_page(metrics, self._latencies, self._process).encode()
        ours, _ = Exposition(metrics, (), self._version).encode("")
        return HttpResponse(theirs + ours, 200, _EXPOSED)

    async def _compress(self, request: HttpRequest, response: HttpResponse) -> None:
        accepted = request.headers.get(b"accept-encoding", b"")
        body = response.body
        if len(body) < encodings.GZIP_ANSWER_NBYTES_MIN or not encodings.takes_gzip(accepted):
            return
        response.body = await self._read(body, lambda: encodings.gzip(body))
        more = ((b"Content-Encoding", b"gzip"), (b"Vary", b"Accept-Encoding"))
        response.headers = (*response.headers, *more)

    async def _read(self, body: bytes, work: Callable[[], _Result]) -> _Result:
        """What ``work`` on a body returns."""
        if len(body) < _READ_IN_THREAD_NBYTES:
            return work()
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        # Who hangs up while others have the threads is gone at once: the executor would keep the
        # body, which nobody counts any more, until one is free.
        await self._free_threads.acquire()
        running = self._loop.run_in_executor(None, work)
        running.add_done_callback(lambda _: self._free_threads.release())
        return await asyncio.shield(running)

    def _left(self, deadline: float) -> float:
        """The seconds until then; raises DeadlineExceeded when there are none."""
        left = deadline - self._loop.time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the model was asked")
        return left


def _inputs(model: ServedModel, signature_name: str) -> Mapping[str, TensorSpec]:
    """The inputs of a signature, by name. Raises InvalidArgument."""
    name = signature_name or DEFAULT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise InvalidArgument(f'Serving signature name: "{name}" not found in signature def')
    if signature.open:
        raise FailedPrecondition(
            f"signature {name!r} takes any tensors, and JSON does not say of which dtype they are: "
            "declare them in the configuration ([models.signature]), or use the client"
        )
    return {spec.name: spec for spec in signature.inputs}


def _request_id(request: HttpRequest) -> str | None:
    """What the caller names its request; names that cannot be one are left alone, as whatever else
    proxies put into headers."""
    named = request.headers.get(b"x-request-id", b"").decode("latin-1")
    return named if is_request_id(named) else None
