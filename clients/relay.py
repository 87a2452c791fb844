"""What a session asks of those that join it with the sessions of other servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from batchyard.clients.calls import Call, Promise

if TYPE_CHECKING:
    from batchyard.clients.session import Session


class Query(NamedTuple):
    """What a broker is asked."""

    what: str
    arguments: dict[str, Any]
    promise: Promise


class Relay(Protocol):
    """Gives what one server does not take to another."""

    def has_other(self, session: Session) -> bool:
        """Whether there is another that takes calls."""
        ...

    def take(self, session: Session, call: Call) -> bool:
        """Gives it a call; False when there is none."""
        ...

    def take_query(self, session: Session, query: Query) -> bool:
        """Asks it; False when there is none."""
        ...

    def changed(self, session: Session) -> None:
        """The session's server has come, drains, or is gone."""
        ...
