"""One channel that a process listens to: what of its messages was seen, what is missing, and what waits for that."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from gevent.event import Event

from geventws.peer_log import escape, shorten
from geventws.topics.nouns import TEXT, Member, Position
from geventws.topics.statistics import Statistics
from geventws.topics.wire import (
    GAP,
    Channel,
    Malformed,
    Origins,
    Plain,
    Positioned,
    decode,
    decode_entry,
    decode_position,
    is_text,
)

__all__ = ["ChannelSubscription", "Inbox", "Receiver"]

log = logging.getLogger("geventws")

#: Messages that wait for those missing before them; with more, the history is read once more instead.
MOST_WAITING = 1024
#: Seconds between two lines about messages that are in no history.
UNKEPT_SECONDS = 60.0
#: Messages of this process, and bytes of them, that are kept until they come back from Redis.
MOST_OWN, MOST_OWN_BYTES = 65536, 32 * 1024 * 1024


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
        self._unkept_logged = -UNKEPT_SECONDS

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
        """Hands on a message that came from Redis."""
        self.statistics.received += 1
        try:
            self.receiver.message(topic, opcode, payload, position)
        except Exception:
            self.failed()

    def deliver(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> None:
        """Hands on a message of this process, which did not come from Redis."""
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

    def unkept(self, topic: str) -> None:
        """Logs, once a minute, that a message came past a topic's history: who comes back later misses it."""
        now = monotonic()
        if now - self._unkept_logged >= UNKEPT_SECONDS:
            self._unkept_logged = now
            log.warning(
                "topic %s has a history here, and another process publishes without: its Topics need the same history=",
                shorten(escape(topic)),
            )

    def failed(self) -> None:
        """Logs what the receiver has raised."""
        # One call's fault must not end the subscriptions of all others.
        log.exception("what a topic's message was handed to failed")


class ChannelSubscription:
    """A topic's channel that this process listens to.

    ``read_history`` is called when messages have to be read from the history, and leads to `caught_up`.

    What this process publishes on a topic with a history is delivered when it comes back with its position. It is kept
    until then: where it does not come, all of it is delivered without, in order, and what comes later is known by its
    number.
    """

    __slots__ = (
        "_broken",
        "_catching_up",
        "_inbox",
        "_origins",
        "_own",
        "_own_bytes",
        "_own_delivered",
        "_own_sent",
        "_read_history",
        "_refused",
        "_waiting",
        "active",
        "channel",
        "position",
        "reading",
        "ready",
        "requested",
        "told",
    )

    def __init__(self, channel: Channel, inbox: Inbox, read_history: Callable[[ChannelSubscription], None]) -> None:
        self.channel = channel
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
        #: Messages that have to wait for those before them, each with the reading that was under way as it came; None
        #: when nothing has to.
        self._waiting: deque[tuple[int, Positioned]] | None = None
        self._catching_up = False
        #: The number of the last reading of the history.
        self.reading = 0
        #: Whether the connection was lost since the history was read.
        self._broken = False
        #: Whether the server does not let us listen.
        self._refused = False
        #: This process's messages that are on their way to come back, None for none; and the number of the last one
        #: delivered.
        self._own: deque[tuple[int, int, bytes]] | None = None
        self._own_bytes = 0
        self._own_delivered = -1
        #: The last one that was sent before the history was read.
        self._own_sent = -1

    def acknowledged(self) -> None:
        """The server has subscribed us, at first or again."""
        self.active = True
        self._refused = False
        if self.channel.history:
            self._catch_up()
            return
        if self.told:
            self._inbox.gap(self.channel.topic, None)
        self.told = True
        self.ready.set()

    def broken(self) -> None:
        """The connection is lost."""
        self.requested = self.active = False
        self._broken = True
        # What waits is in the history, which is read again.
        if self._waiting is not None:
            self._waiting.clear()
        self.give_up()

    def refused(self) -> None:
        """The server does not let us listen to it."""
        self._refused = True
        if self._own:
            self.deliver_own(self._own[-1][0])
        self._inbox.gap(self.channel.topic, None)
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
            if item.opcode == GAP:
                lost = self._origins.missing_up_to(item.origin, item.sequence, -1)
                if lost:
                    # Of who was never heard it is not known what was sent before anybody listened.
                    inbox.gap(self.channel.topic, lost if lost > 0 else None)
                return
            lost = self._origins.missing(item.origin, item.sequence)
            if lost:
                inbox.gap(self.channel.topic, lost)
            if inbox.takes(item.opcode, item.payload):
                if self.channel.history:
                    inbox.unkept(self.channel.topic)
                inbox.message(self.channel.topic, item.opcode, item.payload, None)
        elif isinstance(item, Positioned):
            if not self.channel.history:
                # Another process keeps a history of the topic; here it is a message like others.
                self._take(item, None)
            elif self._waiting is not None:
                self._wait(item)
            else:
                self._positioned(item)
        else:
            inbox.presence(self.channel.topic, item.event, item.member)

    # What this process publishes.

    def published(self, sequence: int, opcode: int, payload: bytes) -> None:
        """A message of this process is sent, and is to come back."""
        if self._own is None:
            self._own = deque()
        self._own.append((sequence, opcode, payload))
        self._own_bytes += len(payload)
        if self._refused:
            # Redis lets us publish, but not listen.
            self.deliver_own(sequence)
        while self._own and (len(self._own) > MOST_OWN or self._own_bytes > MOST_OWN_BYTES):
            self.deliver_own(self._own[0][0])

    def withdraw(self, sequence: int) -> None:
        """The message that was published last is delivered by who published it, and does not come back."""
        self.deliver_own(sequence - 1)
        if self._own and self._own[0][0] == sequence:
            self._take_own()

    def deliver_own(self, up_to: int) -> None:
        """Delivers this process's messages, up to this one, that did not come back."""
        while self._own and self._own[0][0] <= up_to:
            self._inbox.deliver(self.channel.topic, *self._take_own(), None)

    def _take_own(self) -> tuple[int, bytes]:
        own = self._own
        assert own is not None
        self._own_delivered, opcode, payload = own.popleft()
        self._own_bytes -= len(payload)
        if not own:
            # An empty one is as large as all the rest of a subscription.
            self._own = None
        return opcode, payload

    # What comes with a position.

    def _positioned(self, item: Positioned) -> None:
        """A message that nothing waits before."""
        if self._is_next(item.position):
            self._deliver(item)
        elif not self._is_seen(item.position):
            self._waiting = deque(((self.reading, item),))
            self._read()

    def _is_seen(self, position: Position) -> bool:
        last = self.position
        return last is not None and position.epoch == last.epoch and position.offset <= last.offset

    def _is_next(self, position: Position) -> bool:
        last = self.position
        # While the history can't be read anything may follow. Another epoch is believed once it was read.
        return last is None or (position.epoch == last.epoch and position.offset == last.offset + 1)

    def _deliver(self, item: Positioned) -> None:
        self.position = item.position
        self._take(item, item.position)

    def _take(self, item: Positioned, position: Position | None) -> None:
        """Hands on a message, or tells of a gap."""
        inbox = self._inbox
        if item.origin == inbox.origin:
            if item.opcode == GAP or item.sequence <= self._own_delivered:
                # It was delivered here without a position.
                return
            # Redis has left out those before it.
            self.deliver_own(item.sequence - 1)
            if self._own and self._own[0][0] == item.sequence:
                self._take_own()
        elif item.opcode == GAP:
            lost = self._origins.missing_up_to(item.origin, item.sequence, item.lost)
            if lost:
                inbox.gap(self.channel.topic, lost)
            return
        else:
            lost = self._origins.missing(item.origin, item.sequence)
            if lost:
                inbox.gap(self.channel.topic, lost)
        if inbox.takes(item.opcode, item.payload):
            inbox.message(self.channel.topic, item.opcode, item.payload, position)

    def _wait(self, item: Positioned) -> None:
        waiting = self._waiting
        assert waiting is not None
        if len(waiting) >= MOST_WAITING:
            # The rest is read from the history once the first ones are there.
            waiting.clear()
            self._broken = True
        waiting.append((self.reading, item))

    def _catch_up(self) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._read()

    def _read(self) -> None:
        self.reading += 1
        self._own_sent = self.channel.sequence - 1
        self._read_history(self)

    def caught_up(self, reply: Any) -> None:
        """The history was read from the position on."""
        if self._catching_up:
            # It is read again when that is done.
            return
        self._catching_up = True
        reading = self.reading
        try:
            self._take_history(reply)
        except (Malformed, TypeError, IndexError):
            # Nobody but us writes to the stream.
            self._inbox.statistics.malformed += 1
            self._lose_history()
        finally:
            self._catching_up = False
        if self.reading != reading:
            # The connection was lost and is back, while the receiver let others run.
            self._read()
        else:
            self._deliver_waiting()

    def not_caught_up(self) -> None:
        """The history can't be read: goes on without what is missing."""
        self._lose_history()
        self._deliver_waiting()

    def _lose_history(self) -> None:
        self._inbox.gap(self.channel.topic, None)
        self.position = None

    def _take_history(self, reply: Any) -> None:
        inbox, since = self._inbox, self.position
        last = decode_position(reply[0])
        broken, self._broken = self._broken, False
        own_sent = self._own_sent
        if since is not None:
            if last.epoch != since.epoch:
                for _, item in list(self._waiting or ()):
                    if self._is_next(item.position):
                        self._deliver(item)
                if broken or last.epoch < since.epoch:
                    # What there was in the epoch before nobody knows.
                    inbox.gap(self.channel.topic, None)
                since = Position(last.epoch, 0)
            elif last.offset < since.offset:
                # Redis came back with an older state.
                inbox.gap(self.channel.topic, None)
            found = self._between(since, last, reply[1])
            lost = last.offset - since.offset - len(found) - self._own_missing(found, own_sent)
            if lost > 0:
                inbox.gap(self.channel.topic, lost)
                # By their numbers they would be counted again.
                self._origins.clear()
            for entry in found:
                if entry is not None:
                    self._deliver(entry)
        elif self.told:
            # It had begun without Redis.
            inbox.gap(self.channel.topic, None)
        if self.told:
            # They were there before the history was read, and are there no more.
            self.deliver_own(own_sent)
        else:
            # Nobody was subscribed yet.
            while self._own and self._own[0][0] <= own_sent:
                self._take_own()
        self.position = last

    def _own_missing(self, found: list[Positioned | None], own_sent: int) -> int:
        """How many messages of this process are not among those that were found."""
        origin, delivered = self._inbox.origin, self._own_delivered
        there = {item.sequence for item in found if item is not None and item.origin == origin}
        return sum(
            1 for sequence, _, _ in self._own or () if delivered < sequence <= own_sent and sequence not in there
        )

    def _between(self, since: Position, last: Position, entries: Any) -> list[Positioned | None]:
        """What comes after ``since`` up to ``last``: of the history, and what waits where that is there no more.

        None for what is there, but malformed.
        """
        found: dict[int, Positioned | None] = {}
        for entry in entries:
            position = decode_position(entry[0])
            if position.epoch == last.epoch and position.offset > since.offset:
                try:
                    found[position.offset] = decode_entry(entry)
                except Malformed:
                    self._inbox.statistics.malformed += 1
                    found[position.offset] = None
        for _, item in self._waiting or ():
            if item.position.epoch == last.epoch and since.offset < item.position.offset <= last.offset:
                found.setdefault(item.position.offset, item)
        return [found[offset] for offset in sorted(found)]

    def _deliver_waiting(self) -> None:
        # A receiver may let others run, so that more come meanwhile: they wait until the last of these is delivered.
        waiting = self._waiting
        while waiting:
            reading, item = waiting.popleft()
            if self._is_next(item.position):
                self._deliver(item)
            elif self._is_seen(item.position):
                continue
            elif reading < self.reading:
                # The history was read since it came, and has no such message.
                self._inbox.statistics.malformed += 1
            else:
                waiting.appendleft((reading, item))
                self._read()
                return
        self._waiting = None
        self.told = True
        self.ready.set()
