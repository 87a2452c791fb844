"""LitServe: FastAPI in a process of its own, one inference worker behind queues.

Tuned as its documentation says: ``max_batch_size`` and ``batch_timeout`` of the API,
``fast_queue=True`` (answers by ZeroMQ), as many API servers as workers; bodies are bytes
(by FastAPI's annotations) instead of JSON. https://lightning.ai/docs/litserve/features/batching
"""

# No annotations from __future__: LitServe reads those of decode_request as what they are.

from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
from fastapi import Body, Response  # type: ignore[import-not-found]
from served_model import ServedModel, arguments  # type: ignore[import-not-found]

_OCTETS = "application/octet-stream"


class ModelAPI(litserve.LitAPI):  # type: ignore[misc]
    """Rows in, outputs out. ``setup`` and what follows run in the inference worker."""

    def __init__(self, folder: str, **batching: Any) -> None:
        super().__init__(**batching)
        self._folder = folder

    def setup(self, device: str) -> None:
        """Loads the model."""
        self._model = ServedModel(self._folder)

    def decode_request(self, request: Annotated[bytes, Body(media_type=_OCTETS)]) -> bytes:
        """A request's body as it is."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """The bodies as they are: the model joins them."""
        return inputs

    def predict(self, x: Any) -> Any:
        """A list of bodies where it batches, else one."""
        return self._model.answers(x) if self.max_batch_size > 1 else self._model.answers([x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """An output for each body, which they are already."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """An answer with the output's bytes."""
        return Response(output, media_type=_OCTETS)


if __name__ == "__main__":
    options = arguments()
    api = ModelAPI(
        options.model,
        # Without a timeout its batching loop never sleeps: the shortest way is not to batch.
        max_batch_size=options.max_batch_size if options.batch_timeout_micros else 1,
        batch_timeout=options.batch_timeout_micros / 1e6,
    )
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True, timeout=60)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)
