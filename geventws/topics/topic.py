"""One topic in this process: who is subscribed to it here, and what goes out to them, in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import AsyncResult, Event

from geventws.switching import current
from geventws.topics.audience import Audience
from geventws.topics.delivery import SharedMessage, deliver, opcode_and_payload
from geventws.topics.nouns import Gap, Member, Position, Presence

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.topics.history import History
    from geventws.topics.statistics import Statistics

__all__ = ["Topic"]

log = logging.getLogger("geventws")

Teller = Callable[[Any], Any]


class Topic:
    """The subscribers of one topic in this process.

    What is sent to them goes out one message after the other, so that all get it in the same order: one that is not out
    after a slice of 5 ms goes on in the hub, and those behind it queue.
    """

    __slots__ = (
        "_asked",
        "_closes",
        "_queue",
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
        #: What waits behind the message that goes out; None while none does.
        self._queue: deque[tuple[list[Connection], SharedMessage, Event]] | None = None

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

    def send(self, message: SharedMessage, audience: Audience | None = None) -> Event | None:
        """Sends a message to the subscribers, or to an audience among them; never blocks.

        Gives what is set when it is out; None where it is out already.
        """
        if audience is None:
            audience = self.audience
        if self._queue is not None:
            out = Event()
            self._queue.append((audience.lend(), message, out))
            return out
        delivery = deliver(audience.connections, message, self._closes)
        if delivery.finished:
            self._count(delivery)
            return None
        audience.lend()
        out = Event()
        self._queue = deque()
        # A greenlet of its own: whoever publishes may be killed, and the others' order must not depend on that.
        gevent.spawn(self._work_off, delivery, out)
        return out

    def _work_off(self, delivery: Any, out: Event) -> None:
        assert self._queue is not None
        while True:
            delivery.wait()
            self._count(delivery)
            out.set()
            if not self._queue:
                self._queue = None
                return
            connections, message, out = self._queue.popleft()
            delivery = deliver(connections, message, self._closes)

    def _count(self, delivery: Any) -> None:
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
                    self.send(SharedMessage(*opcode_and_payload(message)), audience)
            except Exception:
                log.exception("what topics call for a %s failed", type(event).__name__.lower())


def wait_unless_in_hub(out: Event | None) -> None:
    """Blocks until a message is out; not in the hub, which can't wait for itself."""
    if out is not None and current() is not gevent.get_hub():
        out.wait()
