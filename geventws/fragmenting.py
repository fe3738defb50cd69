"""A message in fragments: between its frames no other message's go out (RFC 6455 5.4).

fragmenting.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from gevent.event import Event

from geventws.errors import UsageError
from geventws.protocol.shared import SharedMessage
from geventws.switching import current

__all__ = ["Fragmenting"]

#: What a postponed message counts beside its payload: with its header, or there would be no limit to empty ones.
MESSAGE_COST = 10


class Fragmenting:
    """The turn of the greenlet that makes it, from its message's first fragment to its last."""

    __slots__ = ("_greenlet", "_over", "_size", "postponed")

    def __init__(self) -> None:
        self._greenlet = current()
        self._over = Event()
        #: The messages for many sessions that go out when the turn is over.
        self.postponed: list[SharedMessage] = []
        self._size = 0

    def wait(self) -> None:
        """Blocks until the turn is over; raises ``UsageError`` in the greenlet whose turn it is."""
        if self._greenlet is current():
            raise UsageError("a message is sent on this session by the iterable that yields another one's fragments")
        self._over.wait()

    def postpone(self, message: SharedMessage, limit: int) -> bool:
        """Keeps a message, unless over ``limit`` bytes (0 for none) are kept already; tells whether it does."""
        if limit and self._size > limit:
            return False
        self.postponed.append(message)
        self._size += len(message.payload) + MESSAGE_COST
        return True

    def end(self) -> None:
        """Ends the turn: who waits for it goes on."""
        self._over.set()
