"""PyTriton: NVIDIA's Triton Inference Server, and the model in the process that starts it.

Tuned as its documentation says: ``DynamicBatcher`` with ``max_queue_delay_microseconds``, the
``batch`` decorator, rows as binary tensors. gRPC and metrics are off. Shared memory, which since
0.7 needs a token by default, is open to all.
https://triton-inference-server.github.io/pytriton/latest/guides/building_models/
"""

from __future__ import annotations

import os
import sysconfig

import numpy as np
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import (  # type: ignore[import-not-found]
    DynamicBatcher,
    ModelConfig,
    Tensor,
)
from pytriton.triton import (  # type: ignore[import-not-found]
    Triton,
    TritonConfig,
    TritonSecurityConfig,
)
from served_model import ServedModel, arguments  # type: ignore[import-not-found]

if __name__ == "__main__":
    options = arguments()
    model = ServedModel(options.model)

    @batch  # type: ignore[untyped-decorator]
    def infer(x: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of rows in, a batch of outputs out."""
        rows = x.reshape(-1, *model.row_shape)
        return {"y": model.run(rows).reshape(len(rows), *(model.output_shape or (1,)))}

    config = TritonConfig(
        http_address="127.0.0.1", http_port=options.port, allow_grpc=False, allow_metrics=False
    )
    # Triton's own process runs this Python by its library.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    with Triton(
        config=config, security_config=TritonSecurityConfig(restricted_endpoints=[])
    ) as triton:
        triton.bind(
            "model",
            infer,
            # Triton's rows have at least one dimension.
            inputs=[Tensor(name="x", dtype=np.float32, shape=model.row_shape or (1,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=model.output_shape or (1,))],
            config=ModelConfig(
                max_batch_size=options.max_batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=options.batch_timeout_micros),
            ),
        )
        triton.serve()
