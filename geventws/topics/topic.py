"""One topic in this process: who is subscribed to it here, and what goes out to them, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gevent import get_hub, spawn
from gevent.event import AsyncResult

from geventws.switching import current
from geventws.topics.audience import Audience
from geventws.topics.broadcasting import shared_message
from geventws.topics.delivery import Delivery, deliver
from geventws.topics.nouns import Gap, Member, Position, Presence

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.protocol.shared import SharedMessage
    from geventws.topics.history import History
    from geventws.topics.statistics import Statistics

__all__ = ["Topic"]

log = logging.getLogger("geventws")

Teller = Callable[[Any], Any]


class Topic:
    """The subscribers of one topic in this process.

    What is sent to them goes out one message after the other, so that all get it in the same order.
    """

    __slots__ = (
        "_asked",
        "_closes",
        "_statistics",
        "arriving",
        "audience",
        "gap_audiences",
        "history",
        "members",
        "name",
        "position",
        "presence_audiences",
        "started",
    )

    def __init__(
        self, name: str, left: Callable[[Topic, Connection], Any], closes: bool, statistics: Statistics
    ) -> None:
        self.name = name
        self.audience = Audience(lambda connection: left(self, connection))
        self._closes = closes
        self._statistics = statistics
        #: Who is on it by name, of this process.
        self.members: dict[Connection, Member] = {}
        #: Whom to send what a function makes of an event: all that gave the same function share its result.
        self.presence_audiences: dict[Teller, Audience] = {}
        self.gap_audiences: dict[Teller, Audience] = {}
        self._asked: dict[Connection, tuple[Teller | None, Teller | None]] = {}
        #: The position of the newest message that the subscribers were sent, or were not here for.
        self.position: Position | None = None
        #: The messages kept in this process; None where none are, or Redis keeps them.
        self.history: History | None = None
        #: Set when messages of other processes arrive; None where there are no others.
        self.started: AsyncResult[None] | None = None
        #: How many sessions are about to be subscribed.
        self.arriving = 0

    @property
    def deserted(self) -> bool:
        """Whether nobody is subscribed, or about to be, and nothing is kept."""
        return not self.audience and not self.arriving and self.history is None

    def ask(self, connection: Connection, on_presence: Teller | None, on_gap: Teller | None) -> None:
        """Has a subscriber told of members, and of gaps."""
        if on_presence is not None or on_gap is not None:
            self._asked[connection] = (on_presence, on_gap)
        for teller, audiences in ((on_presence, self.presence_audiences), (on_gap, self.gap_audiences)):
            if teller is not None:
                audiences.setdefault(teller, Audience()).add(connection)

    def forget(self, connection: Connection) -> Member | None:
        """Undoes `ask` for a subscriber that has left; gives the member that it was."""
        on_presence, on_gap = self._asked.pop(connection, (None, None))
        for teller, audiences in ((on_presence, self.presence_audiences), (on_gap, self.gap_audiences)):
            if teller is not None:
                audience = audiences[teller]
                audience.remove(connection)
                if not audience:
                    del audiences[teller]
        return self.members.pop(connection, None)

    def send(self, message: SharedMessage, audience: Audience | None = None) -> Delivery:
        """Sends a message to the subscribers, or to an audience among them; never blocks."""
        delivery = deliver((audience or self.audience).lend(), message, self._closes)
        if delivery.done:
            self._count(delivery)
        else:
            # A greenlet of its own: whoever publishes may be killed.
            spawn(self._count_when_done, delivery)
        return delivery

    def _count_when_done(self, delivery: Delivery) -> None:
        delivery.wait()
        self._count(delivery)

    def _count(self, delivery: Delivery) -> None:
        self._statistics.delivered += delivery.taken
        self._statistics.slow += delivery.lagging

    def tell_presence(self, event: Presence) -> None:
        """Sends what the subscribers' ``on_presence`` makes of it."""
        self._tell(self.presence_audiences.items(), event)

    def tell_gap(self, gap: Gap) -> None:
        """Sends what the subscribers' ``on_gap`` makes of it."""
        self._tell(self.gap_audiences.items(), gap)

    def _tell(self, audiences: Iterable[tuple[Teller, Audience]], event: Presence | Gap) -> None:
        for teller, audience in list(audiences):
            try:
                message = teller(event)
                if message is not None:
                    self.send(shared_message(message), audience)
            except Exception:
                log.exception("what topics call for a %s failed", type(event).__name__.lower())


def wait_unless_in_hub(delivery: Delivery | None) -> None:
    """Blocks until a message is on its way to all; not in the hub, which can't wait for itself."""
    if delivery is not None and not delivery.done and current() is not get_hub():
        delivery.wait()
