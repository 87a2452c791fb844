"""BentoML: one service, one worker process, one thread for the model.

Tuned as its documentation says: ``batchable=True`` with ``max_batch_size`` (how long it waits it
finds out by itself: there is no 1 ms to set), uvloop and httptools installed, no access log,
metrics or tracing. Its own tensor type reads JSON only, so a body of bytes has a type here.
https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import bentoml  # type: ignore[import-not-found]
import numpy as np
from pydantic_core import core_schema
from served_model import ServedModel, arguments  # type: ignore[import-not-found]

# This file is loaded anew in the worker, whose command line is BentoML's.
_ARGUMENTS = "PEER_ARGUMENTS"
_PATIENCE_MS = 60_000


class Octets:
    """Bytes outside, an array of one row inside, which is what BentoML batches."""

    @staticmethod
    def __get_pydantic_core_schema__(*_: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            _array,
            core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda array: array.tobytes()
            ),
        )

    @staticmethod
    def __get_pydantic_json_schema__(*_: Any) -> dict[str, str]:
        return {"type": "string", "format": "binary"}


def _array(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else np.frombuffer(value, np.float32)[np.newaxis]


Row = Annotated[np.ndarray, Octets]
options = arguments(json.loads(os.environ.setdefault(_ARGUMENTS, json.dumps(sys.argv[1:]))))


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": _PATIENCE_MS // 1000},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class ModelService:
    """Rows in, outputs out."""

    def __init__(self) -> None:
        self._model = ServedModel(options.model)

    @bentoml.api(  # type: ignore[untyped-decorator]
        # Without a timeout the shortest way is not to batch.
        batchable=options.batch_timeout_micros > 0,
        max_batch_size=options.max_batch_size,
        # Later it would refuse requests instead of running them.
        max_latency_ms=_PATIENCE_MS,
    )
    def infer(self, rows: Row, /) -> Row:
        """A batch of rows, each flat."""
        outputs: Row = self._model.run(rows.reshape(-1, *self._model.row_shape))
        return outputs


if __name__ == "__main__":
    folder, name = os.path.split(os.path.abspath(__file__))
    target = f"{name.removesuffix('.py')}:ModelService"
    os.environ |= {"BENTOML_DO_NOT_TRACK": "true"}
    os.execv(
        sys.executable,
        [
            *(sys.executable, "-m", "bentoml", "serve", target, "--working-dir", folder),
            *("--host", "127.0.0.1", "--port", str(options.port)),
        ],
    )
