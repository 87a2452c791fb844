#!/bin/sh
# Requests as in TensorFlow Serving's documentation: ./requests.sh [http://HOST:PORT]
set -eu
models=${1:-http://localhost:8501}/v1/models

curl --fail --silent --show-error -d '{"instances": [1.0, 2.0, 5.0]}' -X POST "$models/half_plus_two:predict"
curl --fail --silent --show-error -d '{"inputs": {"x": [1.0, 2.0, 5.0]}}' "$models/half_plus_two/labels/stable:predict"
curl --fail --silent --show-error "$models/half_plus_three"
curl --fail --silent --show-error "$models/half_plus_three/metadata"
