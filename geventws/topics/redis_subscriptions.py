"""One topic that a process listens to: what of its messages was seen, what is missing, and what waits for that."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gevent.event import Event

from geventws.topics.nouns import Member, Position
from geventws.topics.statistics import Statistics
from geventws.topics.wire import (
    TEXT,
    Malformed,
    Origins,
    Plain,
    Positioned,
    Topic,
    decode,
    decode_entry,
    decode_position,
    is_text,
    missing_before,
)

__all__ = ["Inbox", "Receiver", "Subscription"]

log = logging.getLogger("geventws")

#: Messages that wait for those missing before them; with more, the history is read once more instead.
MOST_WAITING = 1024


class Receiver(Protocol):
    """Who gets what comes in. Its calls must not block on peers."""

    def message(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> None:
        """A message, 1 text or 2 binary; those of a topic in order, each once."""

    def presence(self, topic: str, event: Any, member: Member) -> None:
        """A member, of this process or of another, that came ("join") or left ("leave")."""

    def gap(self, topic: str, lost: int | None) -> None:
        """Messages of a topic that are lost, as far as known how many."""


class Inbox:
    """What all subscriptions of a process share: who gets their messages, and what is dropped and counted."""

    def __init__(self, receiver: Receiver, origin: bytes, max_message_size: int | None, statistics: Statistics) -> None:
        self.receiver = receiver
        self.origin = origin
        self.max_message_size = max_message_size
        self.statistics = statistics

    def takes(self, opcode: int, payload: bytes) -> bool:
        """Whether this is a message; counts it if it is none."""
        if self.max_message_size is not None and len(payload) > self.max_message_size:
            self.statistics.oversize += 1
            return False
        if opcode == TEXT and not is_text(payload):
            self.statistics.malformed += 1
            return False
        return True

    def message(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> None:
        """Hands a message on."""
        self.statistics.received += 1
        try:
            self.receiver.message(topic, opcode, payload, position)
        except Exception:
            self.failed()

    def gap(self, topic: str, lost: int | None) -> None:
        """Tells of a gap."""
        self.statistics.gaps += 1
        if lost:
            self.statistics.lost += lost
        try:
            self.receiver.gap(topic, lost)
        except Exception:
            self.failed()

    def presence(self, topic: str, event: Any, member: Member) -> None:
        """Tells of a member."""
        try:
            self.receiver.presence(topic, event, member)
        except Exception:
            self.failed()

    def failed(self) -> None:
        """Logs what the receiver has raised."""
        # One call's fault must not end the subscriptions of all others.
        log.exception("what a topic's message was handed to failed")


class Subscription:
    """One topic that this process listens to.

    ``read_history`` is called when messages have to be read from the history, and leads to `caught_up`.
    """

    __slots__ = (
        "_catching_up",
        "_inbox",
        "_origins",
        "_read_history",
        "_waiting",
        "active",
        "position",
        "ready",
        "requested",
        "told",
        "topic",
    )

    def __init__(self, topic: Topic, inbox: Inbox, read_history: Callable[[Subscription], None]) -> None:
        self.topic = topic
        self._inbox = inbox
        self._read_history = read_history
        #: Set once the server has acknowledged the subscription and its position is known, or it is out of reach.
        self.ready = Event()
        #: Whether the caller was told that it is subscribed: what is missed from then on is a gap.
        self.told = False
        #: Whether the server was asked for it on the present connection, and whether it has acknowledged it.
        self.requested = False
        self.active = False
        #: Just behind the last message delivered; None without a history, and while it is unknown.
        self.position: Position | None = None
        self._origins = Origins()
        #: Messages that have to wait for those before them; None when nothing has to.
        self._waiting: deque[Positioned] | None = None
        self._catching_up = False

    @property
    def is_behind(self) -> bool:
        """Whether messages are being read from the history."""
        return self._waiting is not None

    def acknowledged(self) -> None:
        """The server has subscribed us, at first or again."""
        self.active = True
        if self.topic.history:
            self._catch_up()
            return
        if self.told:
            self._inbox.gap(self.topic.name, None)
        self.told = True
        self.ready.set()

    def broken(self) -> None:
        """The connection is lost."""
        self.requested = self.active = False
        # What waits is in the history, which is read again.
        if self._waiting is not None:
            self._waiting.clear()
        self.give_up()

    def refused(self) -> None:
        """The server does not let us listen to it."""
        self._inbox.gap(self.topic.name, None)
        self.give_up()

    def give_up(self) -> None:
        """Lets who waits for the subscription go on without."""
        self.told = True
        self.ready.set()

    def arrived(self, data: bytes) -> None:
        """Something came in on the channel."""
        inbox = self._inbox
        try:
            item = decode(data)
        except Malformed:
            inbox.statistics.malformed += 1
            return
        if isinstance(item, Plain):
            if item.origin == inbox.origin:
                return
            lost = self._origins.missing(item.origin, item.sequence)
            if lost:
                inbox.gap(self.topic.name, lost)
            if inbox.takes(item.opcode, item.payload):
                inbox.message(self.topic.name, item.opcode, item.payload, None)
        elif isinstance(item, Positioned):
            if not self.topic.history:
                # Another process keeps a history of the topic; here it is a message like others.
                if inbox.takes(item.opcode, item.payload):
                    inbox.message(self.topic.name, item.opcode, item.payload, None)
            elif self._waiting is not None:
                self._wait(item)
            else:
                self._positioned(item)
        else:
            inbox.presence(self.topic.name, item.event, item.member)

    def _positioned(self, item: Positioned) -> None:
        """A message that nothing waits before."""
        if self._is_next(item.position):
            self._deliver(item)
        elif not self._is_seen(item.position):
            self._catch_up()
            self._wait(item)

    def _is_seen(self, position: Position) -> bool:
        last = self.position
        return last is not None and position.epoch == last.epoch and position.offset <= last.offset

    def _is_next(self, position: Position) -> bool:
        last = self.position
        if last is None:
            # The history can't be read: anything may follow.
            return True
        # The first of an epoch follows on the last of the one before, for no connection was lost in between.
        return position.offset == (last.offset + 1 if position.epoch == last.epoch else 1)

    def _deliver(self, item: Positioned) -> None:
        self.position = item.position
        if self._inbox.takes(item.opcode, item.payload):
            self._inbox.message(self.topic.name, item.opcode, item.payload, item.position)

    def _wait(self, item: Positioned) -> None:
        waiting = self._waiting
        assert waiting is not None
        if len(waiting) >= MOST_WAITING:
            # The rest is read from the history once the first ones are there.
            waiting.clear()
        waiting.append(item)

    def _catch_up(self) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._read_history(self)

    def caught_up(self, reply: Any) -> None:
        """The history was read from the position on."""
        if self._catching_up:
            # Of two connections; what this reply has more than the other's will show as missing.
            return
        self._catching_up = True
        try:
            self._take_history(reply)
        except (Malformed, TypeError, IndexError):
            # Nobody but us writes to the stream.
            self._inbox.statistics.malformed += 1
            self._lose_history()
        finally:
            self._catching_up = False
        self._deliver_waiting()

    def not_caught_up(self) -> None:
        """The history can't be read: goes on without what is missing."""
        self._lose_history()
        self._deliver_waiting()

    def _lose_history(self) -> None:
        self._inbox.gap(self.topic.name, None)
        self.position = None

    def _take_history(self, reply: Any) -> None:
        inbox, since = self._inbox, self.position
        last = decode_position(reply[0])
        entries = [(decode_position(entry[0]), entry) for entry in reply[1]]
        if since is not None:
            entries = [(position, entry) for position, entry in entries if position.epoch == last.epoch]
            lost = missing_before(since, last, [position.offset for position, _ in entries])
            if lost != 0:
                inbox.gap(self.topic.name, lost)
            for position, entry in entries:
                try:
                    opcode, payload = decode_entry(entry)
                except Malformed:
                    inbox.statistics.malformed += 1
                else:
                    self._deliver(Positioned(opcode, position, payload))
        elif self.told:
            # It had begun without Redis.
            inbox.gap(self.topic.name, None)
        self.position = last

    def _deliver_waiting(self) -> None:
        # A receiver may let others run, so that more come meanwhile: they wait until the last of these is delivered.
        waiting = self._waiting
        while waiting:
            item = waiting.popleft()
            if self._is_next(item.position):
                self._deliver(item)
            elif not self._is_seen(item.position):
                waiting.appendleft(item)
                self._read_history(self)
                return
        self._waiting = None
        self.told = True
        self.ready.set()
