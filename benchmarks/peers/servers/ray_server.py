"""Ray Serve: one replica, which takes HTTP requests itself.

Tuned as its documentation says: ``RAY_SERVE_THROUGHPUT_OPTIMIZED=1`` (direct ingress, one event
loop, logs in batches), ``serve.batch`` on an async method, what blocks in a thread,
``max_ongoing_requests`` above what is in flight. The HAProxy that may stand before it is left out.
https://docs.ray.io/en/latest/serve/advanced-guides/performance.html
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from typing import Any

from served_model import ServedModel, arguments  # type: ignore[import-not-found]

options = arguments()
# Read when Ray is imported. The replica's own port is the first of a range.
os.environ |= {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(options.port),
    "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(options.port + 1),
    "RAY_USAGE_STATS_ENABLED": "0",
}

import ray  # type: ignore[import-not-found]  # noqa: E402
from ray import serve  # noqa: E402
from starlette.requests import Request  # type: ignore[import-not-found]  # noqa: E402
from starlette.responses import Response  # type: ignore[import-not-found]  # noqa: E402


class ModelDeployment:
    """Rows in, outputs out."""

    def __init__(self, folder: str) -> None:
        self._model = ServedModel(folder)

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=options.max_batch_size,
        batch_wait_timeout_s=options.batch_timeout_micros / 1e6,
    )
    async def _answers(self, bodies: list[bytes]) -> Any:
        return await asyncio.to_thread(self._model.answers, bodies)

    async def __call__(self, request: Request) -> Response:
        """One row."""
        answer = await self._answers(await request.body())
        return Response(answer, media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _temp_dir=tempfile.gettempdir(),
    )
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(ModelDeployment, max_ongoing_requests=1024)
    serve.run(deployment.bind(options.model))
    signal.pause()
