"""How much memory the bodies of all requests take together. Pure."""

from __future__ import annotations

# Bodies that are held at once, in bodies of the largest size.
_BODIES = 4


class BodyMemory:
    """Counts what is held. What is read of a body, and what comes of it behind gzip, is held until
    its request is answered, or given up."""

    def __init__(self, max_body_nbytes: int) -> None:
        self.max_body_nbytes = max_body_nbytes
        self.nbytes = 0

    def hold(self, nbytes: int) -> bool:
        """Takes note of some more, if there is room for it."""
        if self.nbytes + nbytes > _BODIES * self.max_body_nbytes:
            return False
        self.nbytes += nbytes
        return True

    def let_go(self, nbytes: int) -> None:
        """Somebody needs it no more."""
        self.nbytes -= nbytes
