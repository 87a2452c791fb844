"""The lines of TensorFlow Serving's documentation (``docs/api_rest.md``, ``docs/docker.md``).

Bodies are compared to the byte where that page shows the server's own answer.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from support.model_server import ModelServer, rest

# An image of the Triton SDK, and its client package, have it.
_PERF_ANALYZER = shutil.which("perf_analyzer")

STATUS = """\
{
 "model_version_status": [
  {
   "version": "123",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}
"""


def test_status(served: ModelServer) -> None:
    assert rest(served, "/v1/models/half_plus_three")[::2] == (200, STATUS)


def test_predict(served: ModelServer) -> None:
    body = '{"instances": [1.0,2.0,5.0]}'
    status, headers, text = rest(served, "/v1/models/half_plus_three:predict", body)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    # As the server prints it: the page was tidied.
    assert text == '{\n    "predictions": [3.5, 4.0, 5.5\n    ]\n}'
    assert json.loads(rest(served, "/v1/models/half_plus_two:predict", body)[2]) == {
        "predictions": [2.5, 3.0, 4.5]
    }


def test_regress_by_a_signature_that_is_named_as_its_method(served: ModelServer) -> None:
    body = '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}'
    answer = rest(served, "/v1/models/half_plus_three:regress", body)
    assert answer[::2] == (200, '{\n    "results": [3.5, 4.0]\n}')


def test_a_model_that_is_not_there(served: ModelServer) -> None:
    status, headers, text = rest(served, "/v1/models/half:predict", '{"instances": [1.0,5.0]}')
    assert status == 404
    assert headers["Content-Type"] == "application/json"
    assert text == '{ "error": "Servable not found for request: Latest(half)" }'


@pytest.mark.skipif(_PERF_ANALYZER is None, reason="perf_analyzer is not on PATH")
def test_perf_analyzer(served: ModelServer) -> None:
    arguments = [_PERF_ANALYZER, "-m", "half_plus_two_tf2", "--service-kind", "tfserving"]
    # For 20 requests; it wants the size of the open dimension.
    measurement = ["--shape", "x:1", "--measurement-mode", "count_windows"]
    measurement += ["--measurement-request-count", "20", "--stability-percentage", "999"]
    ended = subprocess.run(
        [*arguments, "-i", "grpc", "-u", served.grpc, *measurement],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Throughput" in ended.stdout
