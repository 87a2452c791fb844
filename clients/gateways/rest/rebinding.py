"""Whether a request may come from a web site that has made its name this machine's (DNS rebinding).
Pure.

TensorFlow Serving answers anybody. A gateway on 0.0.0.0 must, too: people reach it by any name.
But one that listens at a loopback address, as it does if nothing else is said, is for this machine,
and a page of any web site that a browser here shows can have its own name lead to 127.0.0.1 and
read the answers as its own. Proxies beside the server ask at loopback addresses too and may hand on
the names that their callers used, so names are not refused as such: only those with a dot, which
strangers can own, and with the gateway's own port, which a browser names when it comes straight and
a proxy at another port does not. With CORS every web site may read anyway.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache


# Clients name the same few hosts again and again.
@lru_cache(256)
def is_rebound(host: bytes | None, port: int) -> bool:
    """Whether the header Host names a site of the world at this ``port``."""
    if host is None:
        return False
    name, colon, digits = host.decode("latin-1").strip().lower().rpartition(":")
    if not colon or digits != str(port):
        return False
    name = name.rstrip(".")
    if "." not in name or name.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return True
    return False
