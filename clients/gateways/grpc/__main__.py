"""The gRPC gateway, which the supervisor starts:
``python -m batchyard.clients.gateways.grpc CONTROL_FD PARENT_PID``."""

from __future__ import annotations

import os
import sys

# gRPC writes lines of its own to stderr for whatever strangers send. Read when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from batchyard.clients.gateways.child import run
from batchyard.clients.gateways.grpc.serving import serve

if __name__ == "__main__":
    # gRPC tells whoever calls while it is taken down CANCELLED, after which nobody tries another
    # server; a connection that ends is UNAVAILABLE.
    sys.exit(run("grpc", serve, int(sys.argv[1]), int(sys.argv[2]), ends_at_once=True))
