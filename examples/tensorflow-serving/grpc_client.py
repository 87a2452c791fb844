"""Asks by gRPC with the published stubs: python grpc_client.py [HOST:PORT]

pip install tensorflow-serving-api
"""

from __future__ import annotations

import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def main(address: str) -> None:
    """Prints what the version labelled ``stable`` makes of three rows."""
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "half_plus_two"
        request.model_spec.version_label = "stable"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1.0, 2.0, 5.0])))
        # Within a minute, of which a server that is just starting may take some.
        response = stub.Predict(request, 60.0, wait_for_ready=True)
    version = response.model_spec.version.value
    print(f"version {version}: {list(response.outputs['y'].float_val)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8500")
