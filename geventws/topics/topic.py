"""One topic in this process: who is subscribed to it here, and what goes out to them, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from gevent import get_hub, spawn
from gevent.event import AsyncResult

from geventws.switching import current
from geventws.topics.audience import Audience
from geventws.topics.broadcasting import shared_message
from geventws.topics.delivery import Delivery, deliver
from geventws.topics.nouns import Gap, Member, Presence

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.protocol.shared import SharedMessage
    from geventws.topics.history import History
    from geventws.topics.statistics import Statistics

__all__ = ["Topic"]

log = logging.getLogger("geventws")

Teller = Callable[[Any], Any]
Listener = Callable[[str | bytes], object]


class Topic(Audience):
    """The subscribers of one topic in this process.

    What is sent to them goes out one message after the other, so that all get it in the same order.
    """

    __slots__ = (
        "_closes",
        "_owner",
        "_statistics",
        "_tellers",
        "arriving",
        "history",
        "listeners",
        "members",
        "name",
        "started",
    )

    def __init__(self, name: str, owner: Owner, closes: bool, statistics: Statistics) -> None:
        super().__init__()
        self.name = name
        self._owner = owner
        self._closes = closes
        self._statistics = statistics
        # There may be many topics of few subscribers: what most of them don't need they don't have.
        #: Who is on it by name, of this process; None for nobody.
        self.members: dict[Connection, Member] | None = None
        self._tellers: Tellers | None = None
        #: The messages kept in this process; None where none are, or Redis keeps them.
        self.history: History | None = None
        #: Set when messages of other processes arrive; None where there are no others.
        self.started: AsyncResult[None] | None = None
        #: What is called for each message; None for nothing.
        self.listeners: list[Listener] | None = None
        #: How many sessions are about to be subscribed, and how many listeners there are.
        self.arriving = 0

    @property
    def deserted(self) -> bool:
        """Whether nobody is subscribed, or about to be, and nothing is kept."""
        return not self.connections and not self.arriving and self.history is None

    def left(self, connection: Connection) -> None:
        """Forgets a subscriber that has left."""
        if self._tellers is not None:
            self._tellers.remove(connection)
        member = None if self.members is None else self.members.pop(connection, None)
        self._owner.left(self, member)

    def ask(self, connection: Connection, on_presence: Teller | None, on_gap: Teller | None) -> None:
        """Has a subscriber told of members, and of gaps."""
        if on_presence is not None or on_gap is not None:
            if self._tellers is None:
                self._tellers = Tellers()
            self._tellers.add(connection, on_presence, on_gap)

    def hear(self, message: SharedMessage) -> None:
        """Calls the listeners; never blocks."""
        if self.listeners is not None:
            told = message.payload.decode() if message.opcode == 1 else message.payload
            for listener in self.listeners:
                try:
                    listener(told)
                except Exception:
                    log.exception("what listens to a topic failed")

    def send(self, message: SharedMessage, audience: Audience | None = None) -> Delivery:
        """Sends a message to the subscribers, or to an audience among them; never blocks."""
        delivery = deliver((self if audience is None else audience).lend(), message, self._closes)
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

    def tell(self, event: Presence | Gap) -> None:
        """Sends what the subscribers who asked make of an event."""
        if self._tellers is None:
            return
        for teller, audience in self._tellers.of(event):
            try:
                message = teller(event)
                if message is not None:
                    self.send(shared_message(message), audience)
            except Exception:
                log.exception("what topics call for a %s failed", type(event).__name__.lower())


class Owner(Protocol):
    """What a topic tells of."""

    def left(self, topic: Topic, member: Member | None) -> None:
        """Called when a subscriber has left; it may have been a member, and the last one. Must not block."""
        ...


class Tellers:
    """The functions that make messages of events, each with the subscribers that gave it: they share its result."""

    __slots__ = ("_asked", "_gap", "_presence")

    def __init__(self) -> None:
        self._presence: dict[Teller, Audience] = {}
        self._gap: dict[Teller, Audience] = {}
        self._asked: dict[Connection, tuple[Teller | None, Teller | None]] = {}

    def add(self, connection: Connection, on_presence: Teller | None, on_gap: Teller | None) -> None:
        """Adds what a subscriber has given."""
        self._asked[connection] = (on_presence, on_gap)
        for teller, audiences in ((on_presence, self._presence), (on_gap, self._gap)):
            if teller is not None:
                audiences.setdefault(teller, Audience()).add(connection)

    def remove(self, connection: Connection) -> None:
        """Undoes `add`."""
        on_presence, on_gap = self._asked.pop(connection, (None, None))
        for teller, audiences in ((on_presence, self._presence), (on_gap, self._gap)):
            if teller is not None:
                audience = audiences[teller]
                audience.remove(connection)
                if not audience:
                    del audiences[teller]

    def of(self, event: Presence | Gap) -> list[tuple[Teller, Audience]]:
        """The functions for an event, and who is to get what they make."""
        return list((self._presence if isinstance(event, Presence) else self._gap).items())


def wait_unless_in_hub(delivery: Delivery | None) -> None:
    """Blocks until a message is on its way to all; not in the hub, which can't wait for itself."""
    if delivery is not None and not delivery.done and current() is not get_hub():
        delivery.wait()
