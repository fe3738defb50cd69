"""What runs of a broker in one process, whether messages are received there or only sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from os import urandom
from typing import Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import RedisError

from geventws.topics.nouns import Member, Position
from geventws.topics.redis_commands import Command, Publication
from geventws.topics.redis_connections import Connector, Slots
from geventws.topics.redis_scripts import LIVE, PUBLISH, READ, Script
from geventws.topics.redis_subscriptions import ChannelSubscription, Inbox, Receiver
from geventws.topics.statistics import Statistics
from geventws.topics.wire import (
    GAP,
    Channel,
    ChannelTable,
    Malformed,
    Names,
    decode_entry,
    decode_position,
    encode_gap,
    encode_plain,
    encode_source,
    kind_of,
    missing_before,
)

__all__ = ["Configuration", "Running"]

#: Channels whose sequence numbers a process remembers.
CHANNELS = 10_000


class Configuration(NamedTuple):
    """What is the same in all processes."""

    connector: Connector
    names: Names
    receiver: Receiver
    max_message_size: int | None
    #: How many messages are kept of a topic.
    history: Callable[[str], int]
    #: How long, as Redis takes it; empty for ever.
    history_milliseconds: bytes


class Running(ABC):
    """A broker in one process: what `Topics` asks of Redis there, and how it is put into commands.

    `Greenlets` sends and receives where gevent's sockets are; elsewhere `Synchronous` only sends.
    """

    def __init__(self, configuration: Configuration, statistics: Statistics) -> None:
        self.connector = configuration.connector
        self.names = configuration.names
        self.statistics = statistics
        self.origin = urandom(8)
        #: What tells this process from all others.
        self.worker_id = self.origin.hex()
        self.inbox = Inbox(configuration.receiver, self.origin, configuration.max_message_size, statistics)
        #: The channels of topics.
        self.channels = ChannelTable(CHANNELS, self._known_channel)
        self._lives = count()
        #: Channels with messages that Redis perhaps lacks, and knows nothing of.
        self.unsettled: dict[str, Channel] = {}
        self.subscriptions: dict[str, ChannelSubscription] = {}
        self.slots: Slots | None = None
        self._history = configuration.history
        self._history_milliseconds = configuration.history_milliseconds

    # -- What topics ask for
    # -----------------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether Redis can be reached, as far as known."""

    @abstractmethod
    def subscribe(self, topic: str) -> Position | None:
        """Listens to a topic, and gives where its history stands; None without one.

        Blocks until the server has acknowledged it. Once Redis is known to be away it gives None, and the topic is
        subscribed when Redis is back. That is known at once of one that refuses connections, and after some seconds of
        one that does not answer. A greenlet that is killed meanwhile leaves the topic subscribed.
        """

    @abstractmethod
    def unsubscribe(self, topic: str) -> None:
        """Listens to a topic no more. Never blocks."""

    @abstractmethod
    def publish(self, topic: str, opcode: int, payload: bytes) -> bool:
        """Sends a message to all processes; False if Redis is away.

        The caller counts it as published, this as ``unsent`` or ``unconfirmed`` where it came to that.

        Does not wait for Redis, but for other messages while more than 1 MiB of them wait, unless `wait_for_room` did
        so in the same turn of the hub. One of a topic with history comes back to this process with its position; if it
        can't be sent although True was returned, or perhaps was not, it comes back without one. Where False is
        returned, those before it have come back.
        """

    @abstractmethod
    def wait_for_room(self, topic: str) -> None:
        """Blocks while more than 1 MiB of messages wait for the server of a topic; not in the hub."""

    @abstractmethod
    def flush(self, timeout: float | None = None) -> None:
        """Blocks until Redis has answered to all that was published.

        Raises ``TimeoutError``, and ``ConnectionError`` when Redis is away, was lost meanwhile or has refused messages.
        """

    @abstractmethod
    def join(self, topic: str, member: Member) -> None:
        """Registers a member, until it leaves or this process ends. Never blocks."""

    @abstractmethod
    def leave(self, topic: str, member: Member) -> None:
        """Takes a member back. Never blocks."""

    @abstractmethod
    def watch_members(self) -> None:
        """Has this process tell of members whose process has ended, although it may have none itself."""

    @abstractmethod
    def close(self) -> None:
        """Sends what waits, for a second at most; members leave, and the connections are closed."""

    def missed(self, topic: str, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        """The messages behind ``since`` up to ``up_to``; None where not all of them can be had. Blocks.

        An offset that is left out stands for messages of some process that Redis never got.
        """
        if up_to.epoch != since.epoch or up_to.offset < since.offset:
            return None
        channel = self.channels.get(topic)
        try:
            [reply] = self.ask(lambda done: self.read_command(channel, str(since).encode(), str(up_to).encode(), done))
            last = decode_position(reply[0])
            found = [decode_entry(entry) for entry in reply[1]]
        except (RedisError, Malformed):
            return None
        if last.epoch != since.epoch or last.offset < up_to.offset:
            return None
        if missing_before(since, up_to, [item.position.offset for item in found]) != 0:
            return None
        return [(item.position, item.opcode, item.payload) for item in found if item.opcode != GAP]

    def position(self, topic: str) -> Position | None:
        """Where the history of a topic stands in Redis; None without one. Blocks; None while Redis is away."""
        channel = self.channels.get(topic)
        if not channel.history:
            return None
        try:
            [reply] = self.ask(lambda done: self.read_command(channel, b"", b"+", done))
            return decode_position(reply[0])
        except (RedisError, Malformed):
            return None

    def reached(self, topic: str) -> Position | None:
        """Just behind the last message of a subscribed topic that was handed on; None without a history.

        Never blocks. None too where the topic was subscribed while Redis was away, until it is back.
        """
        subscription = self.subscriptions.get(topic)
        return None if subscription is None else subscription.position

    def members(self, topic: str) -> list[Member]:
        """Who is on a topic, in all processes that live, in order of joining. Blocks.

        While Redis is away: those of this process.
        """
        channel = self.channels.get(topic)
        try:
            values, live = self._read_members(channel)
        except RedisError:
            return self.own_members(topic)
        living = {lease.decode() for lease in live} | self.own_leases()
        found = []
        for key, value in zip(values[::2], values[1::2], strict=True):
            lease, _, rest = value.decode("utf-8", "replace").partition(" ")
            since, _, member = rest.partition(" ")
            if lease in living and since.isdecimal():
                found.append((int(since), Member(member, key.decode("utf-8", "replace"))))
        return [member for _, member in sorted(found, key=lambda item: item[0])]

    def _read_members(self, channel: Channel) -> tuple[Any, Any]:
        workers = self.names.workers
        values, live = self.ask(
            lambda done: Command(channel.slot, (b"HGETALL", channel.members), 0, None, done),
            lambda done: self.script(LIVE, key_slot(workers), (workers,), (), done),
        )
        return values, live

    def own_members(self, topic: str) -> list[Member]:
        """The members of this process."""
        return []

    def own_leases(self) -> set[str]:
        """The leases of this process."""
        return set()

    # -- Commands
    # -----------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def ask(self, *makes: Callable[[Any], Command]) -> list[Any]:
        """The replies to the commands that ``makes`` make. Blocks; raises one of redis-py's errors."""

    @property
    def sharded(self) -> bool:
        """Whether the server is a cluster."""
        return self.slots is not None

    @property
    def publish_command(self) -> bytes:
        """How to publish to a channel."""
        return b"PUBLISH" if self.slots is None else b"SPUBLISH"

    def make_channel(self, topic: str) -> Channel:
        """The channel of a topic of which nothing is known."""
        name = self.names.channel(topic)
        return Channel(topic, name, key_slot(name), self._history(topic), next(self._lives))

    def _known_channel(self, topic: str) -> Channel:
        """A channel that is none of those used last."""
        subscription = self.subscriptions.get(topic)
        if subscription is not None:
            return subscription.channel
        return self.unsettled.get(topic) or self.make_channel(topic)

    def script(
        self, script: Script, slot: int, keys: tuple[bytes, ...], arguments: tuple[bytes, ...], done: Any = None
    ) -> Command:
        """A command that runs a script."""
        return Command(slot, (b"EVALSHA", script.hash, b"%d" % len(keys), *keys, *arguments), 0, None, done)

    def publication(self, channel: Channel, opcode: int, payload: bytes) -> Command:
        """The command that publishes a message."""
        sequence = channel.sequence
        channel.sequence += 1
        if not channel.history:
            return self._plain(channel, opcode, payload, Publication(channel, sequence))
        return self._positioned(channel, kind_of(opcode), payload, sequence, Publication(channel, sequence))

    def _plain(self, channel: Channel, opcode: int, payload: bytes, publication: Publication) -> Command:
        """The command that publishes a message of a topic that has no history here."""
        data = encode_plain(opcode, self.origin, publication.sequence, payload)
        return Command(channel.slot, (self.publish_command, channel.name, data), len(data), publication)

    def settlement(self, channel: Channel) -> Command:
        """The command that has all told of what Redis lacks of a topic's messages."""
        if not channel.history:
            sequence = channel.sequence - 1
            data = encode_gap(self.origin, sequence)
            settles = self._settles(channel, sequence)
            return Command(channel.slot, (self.publish_command, channel.name, data), len(data), None, settles)
        return self._positioned(channel, b"", b"", channel.sequence, None)

    def _positioned(
        self, channel: Channel, kind: bytes, payload: bytes, sequence: int, publication: Publication | None
    ) -> Command:
        first, before = b"", b""
        settles: Callable[[Any], None] | None = None
        if channel.first_lost is not None:
            first = b"%d" % channel.first_lost
            before = encode_source(self.origin, sequence - 1)
            settles = self._settles(channel, sequence - 1)
        arguments = (
            b"EVALSHA",
            PUBLISH.hash,
            b"2",
            channel.stream,
            channel.name,
            b"%d" % channel.history,
            self._history_milliseconds,
            kind,
            payload,
            encode_source(self.origin, sequence),
            before,
            first,
            # The last one, which is another in a cluster.
            self.publish_command,
        )
        return Command(channel.slot, arguments, len(payload), publication, settles)

    def not_sent(self, publication: Publication) -> None:
        """A message was not sent, or perhaps not: those of other processes are told once Redis is back."""
        channel = publication.channel
        # Without a history the next message shows it as well.
        if channel.history or len(self.unsettled) < CHANNELS:
            channel.lose(publication.sequence)
            self.unsettled[channel.topic] = channel

    def _settles(self, channel: Channel, sequence: int) -> Callable[[Any], None]:
        """What is called with Redis' answer, when it was told of all that it lacks up to a message."""

        def done(reply: Any) -> None:
            if not isinstance(reply, Exception):
                channel.settle(sequence)
                if channel.first_lost is None:
                    self.unsettled.pop(channel.topic, None)

        return done

    def read_command(self, channel: Channel, since: bytes, up_to: bytes, done: Any) -> Command:
        """The command that reads a history."""
        return self.script(READ, channel.slot, (channel.stream,), (since, up_to, self._history_milliseconds), done)
