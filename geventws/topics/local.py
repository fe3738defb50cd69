"""All topics of this process: who is subscribed here, what is kept, and what Redis is told and brings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Literal

from gevent import spawn
from gevent.event import AsyncResult

from geventws.protocol.shared import SharedMessage
from geventws.topics.broadcasting import shared_message
from geventws.topics.history import History, HistorySizes
from geventws.topics.nouns import Gap, Member, Position, Presence
from geventws.topics.recovery import position_of
from geventws.topics.statistics import Statistics
from geventws.topics.topic import Topic, content_of, wait_unless_in_hub
from geventws.transport import monotonic

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.topics.delivery import Delivery
    from geventws.topics.redis_broker import RedisBroker

__all__ = ["Envelope", "LocalTopics"]

log = logging.getLogger("geventws")

Envelope = Callable[[str, str | bytes, Position | None], str | bytes]

SECONDS_BETWEEN_SWEEPS = 10.0


class LocalTopics:
    """The topics that somebody of this process is subscribed to, or that are kept in it; by name.

    With a ``broker`` they are shared with other processes: this is the receiver of what comes from there.
    """

    def __init__(
        self, sizes: HistorySizes, history_seconds: float | None, closes: bool, envelope: Envelope | None
    ) -> None:
        self._sizes = sizes
        self._history_seconds = history_seconds
        self._closes = closes
        self._envelope = envelope
        self.broker: RedisBroker | None = None

    def begin(self) -> None:
        """Comes before all else, in each process: a forked child begins without subscribers, which are its parent's."""
        self.statistics = Statistics()
        if self.broker is not None:
            self.broker.statistics = self.statistics
        self.topics: dict[str, Topic] = {}
        self._identity = os.urandom(8).hex()
        self._numbers = count(1)
        self._swept = monotonic()

    def open(self, name: str) -> Topic:
        """The topic of this name, made where there is none."""
        here = self.topics.get(name)
        if here is None:
            here = self.topics[name] = Topic(name, self, self._closes, self.statistics)
        return here

    def start(self, here: Topic) -> None:
        """Has other processes' messages arrive; blocks until they do."""
        if self.broker is None:
            self._keep_history(here)
            return
        if here.started is None:
            here.started = AsyncResult()
            # Whoever waits for it may be killed, and others wait as well.
            spawn(self._subscribe_to_broker, self.broker, here, here.started)
        try:
            here.started.get()
        except BaseException:
            if here.started.ready() and not here.started.successful():
                here.started = None
            raise

    def _subscribe_to_broker(self, broker: RedisBroker, here: Topic, started: AsyncResult[None]) -> None:
        try:
            # Whoever wanted it may have been killed before this had its turn.
            if self.topics.get(here.name) is here:
                broker.here().subscribe(here.name)
        except Exception as error:
            started.set_exception(error)
        else:
            started.set()

    def drop_if_deserted(self, here: Topic) -> None:
        """Forgets a topic that nobody here needs any more."""
        if here.deserted and self.topics.get(here.name) is here:
            del self.topics[here.name]
            if self.broker is not None and here.started is not None:
                running = self.broker.started
                if running is not None:
                    running.unsubscribe(here.name)

    def close(self) -> None:
        """Ends all subscriptions, and the broker."""
        for here in list(self.topics.values()):
            here.history = None
            here.listeners = None
            for connection in list(here.connections):
                here.remove(connection)
            self.drop_if_deserted(here)
        if self.broker is not None:
            self.broker.close()

    # -- Histories kept here
    # -----------------------------------------------------------------------------------------------------------------

    def _keep_history(self, here: Topic) -> None:
        size = self._sizes.of(here.name)
        if size and here.history is None:
            self._sweep()
            here.history = History(size)

    def _sweep(self) -> None:
        """Drops histories that nobody added to for ``history_seconds``, once in a while."""
        seconds = self._history_seconds
        now = monotonic()
        if seconds is None or now - self._swept < min(seconds, SECONDS_BETWEEN_SWEEPS):
            return
        self._swept = now
        for here in list(self.topics.values()):
            if (
                here.history is not None
                and not here.connections
                and not here.arriving
                and not here.listeners
                and now - here.history.appended > seconds
            ):
                here.history = None
                self.drop_if_deserted(here)

    def position(self, topic: str) -> Position | None:
        """Where a topic stands; blocks for Redis where nobody here is subscribed."""
        here = self.topics.get(topic)
        position = None if here is None else position_of(here, self.broker)
        if position is None and self.broker is not None:
            position = self.broker.here().position(topic)
        return position

    # -- Messages
    # -----------------------------------------------------------------------------------------------------------------

    def publish(self, topic: str, message: SharedMessage) -> None:
        """Sends a message to the subscribers here, and to Redis; blocks as `Topics.publish`."""
        self.statistics.published += 1
        broker = self.broker
        delivery = None
        if broker is None:
            here = self.topics.get(topic)
            if here is None:
                if not self._sizes.of(topic):
                    return
                here = self.open(topic)
            self._keep_history(here)
            position = None if here.history is None else here.history.append(message.opcode, message.payload)
            delivery = self._send(here, message, position)
        else:
            # Before it goes out here: all that follows is done in one go, so that nothing else comes in between.
            running = broker.started
            if running is not None:
                running.wait_for_room(topic)
            here = self.topics.get(topic)
            if not self._sizes.of(topic):
                if here is not None:
                    delivery = self._send(here, message, None)
                broker.here().publish(topic, message.opcode, message.payload)
            elif broker.here().publish(topic, message.opcode, message.payload):
                # It comes back with its position.
                return
            elif here is not None:
                # With Redis away nobody gives it a position; those who are here get it all the same.
                delivery = self._send(here, message, None)
        if here is not None and here.listeners is not None:
            here.hear(message)
        wait_unless_in_hub(delivery)

    def message(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> None:
        """Called by the broker for each message, in order."""
        here = self.topics.get(topic)
        if here is None:
            return
        shared = SharedMessage(opcode, payload)
        delivery = self._send(here, shared, position)
        here.hear(shared)
        wait_unless_in_hub(delivery)

    def gap(self, topic: str, lost: int | None) -> None:
        """Called by the broker where messages may have been lost."""
        here = self.topics.get(topic)
        if here is not None:
            here.tell(Gap(topic, lost))

    def _send(self, here: Topic, message: SharedMessage, position: Position | None) -> Delivery | None:
        """Sends a message to the sessions of this process; gives what to wait for."""
        if not here.connections:
            return None
        wrapped = message if self._envelope is None else self.wrapped(here.name, message, position)
        return None if wrapped is None else here.send(wrapped, position)

    def wrapped(self, topic: str, message: SharedMessage, position: Position | None) -> SharedMessage | None:
        """What sessions get of a message; None where the envelope fails."""
        if self._envelope is None:
            return message
        try:
            return shared_message(self._envelope(topic, content_of(message), position))
        except Exception:
            # Others get the message all the same: those in other processes, and who listens.
            log.exception("the envelope of topics failed, so that sessions miss a message")
            return None

    # -- Members
    # -----------------------------------------------------------------------------------------------------------------

    def _worker(self) -> str:
        return self._identity if self.broker is None else self.broker.here().worker_id

    def join(self, here: Topic, connection: Connection, name: str) -> None:
        """Makes a subscriber a member."""
        member = Member(name, f"{self._worker()}.{next(self._numbers)}")
        if here.members is None:
            here.members = {}
        here.members[connection] = member
        if self.broker is None:
            here.tell(Presence(here.name, "join", member))
        else:
            self.broker.here().join(here.name, member)

    def left(self, here: Topic, member: Member | None) -> None:
        """Called by a topic that a subscriber has left, who may have been a member, and the last one."""
        if member is not None:
            if self.broker is None:
                here.tell(Presence(here.name, "leave", member))
            elif self.broker.started is not None:
                self.broker.started.leave(here.name, member)
        self.drop_if_deserted(here)

    def presence(self, topic: str, event: Literal["join", "leave"], member: Member) -> None:
        """Called by the broker for a member that came or left, in order with the messages."""
        here = self.topics.get(topic)
        if here is not None:
            here.tell(Presence(topic, event, member))

    def members(self, topic: str) -> list[Member]:
        """Who is on a topic, of all processes; blocks for Redis."""
        worker = self._worker()
        elsewhere = [] if self.broker is None else self.broker.here().members(topic)
        # Of its own this process knows better: what it told Redis last may be on its way.
        here = self.topics.get(topic)
        members = None if here is None else here.members
        own = {member.key: member for member in (members or {}).values()}
        known = [member for member in elsewhere if member.key in own or not member.key.startswith(f"{worker}.")]
        keys = {member.key for member in known}
        return known + [member for key, member in own.items() if key not in keys]
