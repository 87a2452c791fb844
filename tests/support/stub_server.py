"""A peer for tests, without TensorFlow: half plus two, from the standard library.

It takes the command line of ``benchmarks/peers/servers``.
"""

from __future__ import annotations

import argparse
import array
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """A float32 in, a float32 out."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """One row."""
        row = array.array("f", self.rfile.read(int(self.headers["Content-Length"])))
        body = array.array("f", [x / 2 + 2 for x in row]).tobytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--model", "--port", "--max-batch-size", "--batch-timeout-micros"):
        parser.add_argument(name, required=True)
    ThreadingHTTPServer(("127.0.0.1", int(parser.parse_args().port)), Handler).serve_forever()
