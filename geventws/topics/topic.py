"""One topic in this process: who is subscribed to it here, and what goes out to them, in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent import get_hub, spawn
from gevent.event import AsyncResult

from geventws.switching import current
from geventws.topics.audience import Audience
from geventws.topics.broadcasting import shared_message
from geventws.topics.delivery import Delivery, deliver
from geventws.topics.nouns import TEXT, Gap, Member, Position, Presence

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.protocol.shared import SharedMessage
    from geventws.topics.history import History
    from geventws.topics.local import LocalTopics
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
        "_ahead",
        "_closes",
        "_deliveries",
        "_owner",
        "_statistics",
        "_tellers",
        "_unheard",
        "arriving",
        "history",
        "listeners",
        "members",
        "name",
        "started",
    )

    def __init__(self, name: str, owner: LocalTopics, closes: bool, statistics: Statistics) -> None:
        super().__init__()
        self.name = name
        self._owner = owner
        self._closes = closes
        self._statistics = statistics
        # There may be many topics of few subscribers: what most of them don't need they don't have.
        #: Who is on it by name, of this process; None for nobody.
        self.members: dict[Connection, Member] | None = None
        self._tellers: Tellers | None = None
        #: Who has seen more than went out here, with the position that went out and the one that it has seen.
        self._ahead: dict[Connection, tuple[Position, Position]] | None = None
        #: Messages with a position that take long to go out.
        self._deliveries: list[Delivery] | None = None
        #: The messages kept in this process; None where none are, or Redis keeps them.
        self.history: History | None = None
        #: Set when messages of other processes arrive; None where there are no others.
        self.started: AsyncResult[None] | None = None
        #: What is called for each message; None for nothing.
        self.listeners: list[Listener] | None = None
        #: Messages that they are yet to be called for; None while none of them is called.
        self._unheard: deque[SharedMessage] | None = None
        #: How many sessions and listeners are about to be added.
        self.arriving = 0

    @property
    def deserted(self) -> bool:
        """Whether nobody is subscribed or listens, or is about to, and nothing is kept."""
        return not self.connections and not self.arriving and not self.listeners and self.history is None

    def left(self, connection: Connection) -> None:
        """Forgets a subscriber that has left."""
        if self._tellers is not None:
            self._tellers.remove(connection)
        if self._ahead is not None:
            self._ahead.pop(connection, None)
        member = None if self.members is None else self.members.pop(connection, None)
        self._owner.left(self, member)

    def ask(self, connection: Connection, on_presence: Teller | None, on_gap: Teller | None) -> None:
        """Has a subscriber told of members, and of gaps."""
        if on_presence is not None or on_gap is not None:
            if self._tellers is None:
                self._tellers = Tellers()
            self._tellers.add(connection, on_presence, on_gap)

    def hear(self, message: SharedMessage) -> None:
        """Calls the listeners, for one message after the other; never blocks."""
        if self.listeners is None:
            return
        if self._unheard is not None:
            # A listener has published it: all are called for what came before first.
            self._unheard.append(message)
            return
        unheard = self._unheard = deque([message])
        try:
            while unheard:
                self._call_listeners(unheard.popleft())
        finally:
            self._unheard = None

    def _call_listeners(self, message: SharedMessage) -> None:
        told = content_of(message)
        for listener in self.listeners or ():
            try:
                listener(told)
            except Exception:
                log.exception("what listens to a topic failed")

    def leave_out(self, connection: Connection, behind: Position, seen: Position) -> None:
        """Keeps from a subscriber what it has ``seen``, which is to go out here after the message at ``behind``."""
        if self._ahead is None:
            self._ahead = {}
        self._ahead[connection] = (behind, seen)

    def withdraw(self, connection: Connection) -> None:
        """Takes a connection out of what is just going out, for it gets that from the history."""
        for delivery in self._deliveries or ():
            delivery.withdraw(connection)

    def send(
        self, message: SharedMessage, position: Position | None = None, audience: Audience | None = None
    ) -> Delivery:
        """Sends a message to the subscribers, or to an audience among them; never blocks."""
        if position is not None and self._ahead is not None:
            connections = self._who_lacks(position, self._ahead)
        else:
            connections = (self if audience is None else audience).lend()
        delivery = deliver(connections, message, self._closes)
        if delivery.done:
            self._count(delivery)
        else:
            if position is not None:
                self._deliveries = [*(self._deliveries or ()), delivery]
            # A greenlet of its own: whoever publishes may be killed.
            spawn(self._count_when_done, delivery)
        return delivery

    def _who_lacks(self, position: Position, ahead: dict[Connection, tuple[Position, Position]]) -> list[Connection]:
        """The subscribers that have not seen the message at ``position``."""
        seen_by = set()
        for connection, (behind, seen) in list(ahead.items()):
            if position.epoch == seen.epoch:
                if position.offset <= seen.offset:
                    seen_by.add(connection)
                if position.offset >= seen.offset:
                    del ahead[connection]
            elif position.epoch == behind.epoch:
                # What came before the epoch in which it has seen something.
                seen_by.add(connection)
            else:
                del ahead[connection]
        self._ahead = ahead or None
        return [other for other in self.connections if other not in seen_by] if seen_by else self.lend()

    def _count_when_done(self, delivery: Delivery) -> None:
        delivery.wait()
        self._deliveries = [other for other in self._deliveries or () if other is not delivery] or None
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
                    self.send(shared_message(message), None, audience)
            except Exception:
                log.exception("what topics call for a %s failed", type(event).__name__.lower())


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


def content_of(message: SharedMessage) -> str | bytes:
    """What was published."""
    return message.payload.decode() if message.opcode == TEXT else message.payload


def wait_unless_in_hub(delivery: Delivery | None) -> None:
    """Blocks until a message is on its way to all; not in the hub, which can't wait for itself."""
    if delivery is not None and not delivery.done and current() is not get_hub():
        delivery.wait()
