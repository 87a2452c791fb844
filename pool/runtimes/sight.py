"""``python -m batchyard.pool.runtimes.sight``: what TensorFlow is here, and what it sees; as JSON.

It runs in a process of its own: importing TensorFlow takes seconds, and can end or hang a process.
"""

from __future__ import annotations

import json
from typing import Any

import tensorflow as tf


def sight() -> dict[str, Any]:
    """The version, how it was built, and each GPU with its name and compute capability."""
    build = tf.sysconfig.get_build_info()
    return {
        "version": tf.__version__,
        "is_cuda_build": bool(build.get("is_cuda_build")),
        "cuda_version": build.get("cuda_version"),
        "cudnn_version": build.get("cudnn_version"),
        "compute_capabilities": list(build.get("cuda_compute_capabilities") or []),
        "gpus": [_gpu(device) for device in tf.config.list_physical_devices("GPU")],
    }


def _gpu(device: Any) -> dict[str, Any]:
    details = tf.config.experimental.get_device_details(device)
    return {
        "name": details.get("device_name", device.name),
        "compute_capability": list(details.get("compute_capability") or []),
    }


if __name__ == "__main__":
    print(json.dumps(sight()))
