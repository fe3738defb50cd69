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
from geventws.topics.redis_subscriptions import Inbox, Receiver, Subscription
from geventws.topics.statistics import Statistics
from geventws.topics.wire import (
    GAP,
    Malformed,
    Names,
    Topic,
    TopicTable,
    decode_entry,
    decode_position,
    encode_gap,
    encode_plain,
    encode_source,
    kind_of,
    missing_before,
)

__all__ = ["Configuration", "Running"]

#: Topics whose sequence numbers a process remembers.
TOPICS = 10_000


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
        self.topics = TopicTable(TOPICS, self._known_topic)
        self._lives = count()
        #: Topics with messages that Redis perhaps lacks, and knows nothing of.
        self.unsettled: dict[str, Topic] = {}
        self.subscriptions: dict[str, Subscription] = {}
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
    def subscribe(self, name: str) -> Position | None:
        """Listens to a topic, and gives where its history stands; None without one.

        Blocks until the server has acknowledged it. Once Redis is known to be away it gives None, and the topic is
        subscribed when Redis is back. That is known at once of one that refuses connections, and after some seconds of
        one that does not answer. A greenlet that is killed meanwhile leaves the topic subscribed.
        """

    @abstractmethod
    def unsubscribe(self, name: str) -> None:
        """Listens to a topic no more. Never blocks."""

    @abstractmethod
    def publish(self, name: str, opcode: int, payload: bytes) -> bool:
        """Sends a message to all processes; False if Redis is away.

        The caller counts it as published, this as ``unsent`` or ``unconfirmed`` where it came to that.

        Does not wait for Redis, but for other messages while more than 1 MiB of them wait, unless `wait_for_room` did
        so in the same turn of the hub. One of a topic with history comes back to this process with its position; if it
        can't be sent although True was returned, or perhaps was not, it comes back without one. Where False is
        returned, those before it have come back.
        """

    @abstractmethod
    def wait_for_room(self, name: str) -> None:
        """Blocks while more than 1 MiB of messages wait for the server of a topic; not in the hub."""

    @abstractmethod
    def flush(self, timeout: float | None = None) -> None:
        """Blocks until Redis has answered to all that was published.

        Raises ``TimeoutError``, and ``ConnectionError`` when Redis is away, was lost meanwhile or has refused messages.
        """

    @abstractmethod
    def join(self, name: str, member: Member) -> None:
        """Registers a member, until it leaves or this process ends. Never blocks."""

    @abstractmethod
    def leave(self, name: str, member: Member) -> None:
        """Takes a member back. Never blocks."""

    @abstractmethod
    def watch_members(self) -> None:
        """Has this process tell of members whose process has ended, although it may have none itself."""

    @abstractmethod
    def close(self) -> None:
        """Sends what waits, for a second at most; members leave, and the connections are closed."""

    def missed(self, name: str, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        """The messages behind ``since`` up to ``up_to``; None where not all of them can be had. Blocks.

        An offset that is left out stands for messages of some process that Redis never got.
        """
        if up_to.epoch != since.epoch or up_to.offset < since.offset:
            return None
        topic = self.topics.get(name)
        try:
            [reply] = self.ask(lambda done: self.read_command(topic, str(since).encode(), str(up_to).encode(), done))
            last = decode_position(reply[0])
            found = [decode_entry(entry) for entry in reply[1]]
        except (RedisError, Malformed):
            return None
        if last.epoch != since.epoch or last.offset < up_to.offset:
            return None
        if missing_before(since, up_to, [item.position.offset for item in found]) != 0:
            return None
        return [(item.position, item.opcode, item.payload) for item in found if item.opcode != GAP]

    def position(self, name: str) -> Position | None:
        """Where the history of a topic stands in Redis; None without one. Blocks; None while Redis is away."""
        topic = self.topics.get(name)
        if not topic.history:
            return None
        try:
            [reply] = self.ask(lambda done: self.read_command(topic, b"", b"+", done))
            return decode_position(reply[0])
        except (RedisError, Malformed):
            return None

    def reached(self, name: str) -> Position | None:
        """Just behind the last message of a subscribed topic that was handed on; None without a history.

        Never blocks. None too where the topic was subscribed while Redis was away, until it is back.
        """
        subscription = self.subscriptions.get(name)
        return None if subscription is None else subscription.position

    def members(self, name: str) -> list[Member]:
        """Who is on a topic, in all processes that live, in order of joining. Blocks.

        While Redis is away: those of this process.
        """
        topic = self.topics.get(name)
        try:
            values, live = self._read_members(topic)
        except RedisError:
            return self.own_members(name)
        living = {lease.decode() for lease in live} | self.own_leases()
        found = []
        for key, value in zip(values[::2], values[1::2], strict=True):
            lease, _, rest = value.decode("utf-8", "replace").partition(" ")
            since, _, member = rest.partition(" ")
            if lease in living and since.isdecimal():
                found.append((int(since), Member(member, key.decode("utf-8", "replace"))))
        return [member for _, member in sorted(found, key=lambda item: item[0])]

    def _read_members(self, topic: Topic) -> tuple[Any, Any]:
        workers = self.names.workers
        values, live = self.ask(
            lambda done: Command(topic.slot, (b"HGETALL", topic.members), 0, None, done),
            lambda done: self.script(LIVE, key_slot(workers), (workers,), (), done),
        )
        return values, live

    def own_members(self, name: str) -> list[Member]:
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

    def make_topic(self, name: str) -> Topic:
        """What a topic is called, of which nothing else is known."""
        channel = self.names.channel(name)
        return Topic(name, channel, key_slot(channel), self._history(name), next(self._lives))

    def _known_topic(self, name: str) -> Topic:
        """A topic that is none of those used last."""
        subscription = self.subscriptions.get(name)
        if subscription is not None:
            return subscription.topic
        return self.unsettled.get(name) or self.make_topic(name)

    def script(
        self, script: Script, slot: int, keys: tuple[bytes, ...], arguments: tuple[bytes, ...], done: Any = None
    ) -> Command:
        """A command that runs a script."""
        return Command(slot, (b"EVALSHA", script.hash, b"%d" % len(keys), *keys, *arguments), 0, None, done)

    def publication(self, topic: Topic, opcode: int, payload: bytes) -> Command:
        """The command that publishes a message."""
        sequence = topic.sequence
        topic.sequence += 1
        if not topic.history:
            data = encode_plain(opcode, self.origin, sequence, payload)
            publication = Publication(topic, sequence)
            return Command(topic.slot, (self.publish_command, topic.channel, data), len(data), publication)
        return self._positioned(topic, kind_of(opcode), payload, sequence, Publication(topic, sequence))

    def settlement(self, topic: Topic) -> Command:
        """The command that has all told of what Redis lacks of a topic's messages."""
        if not topic.history:
            sequence = topic.sequence - 1
            data = encode_gap(self.origin, sequence)
            settles = self._settles(topic, sequence)
            return Command(topic.slot, (self.publish_command, topic.channel, data), len(data), None, settles)
        return self._positioned(topic, b"", b"", topic.sequence, None)

    def _positioned(
        self, topic: Topic, kind: bytes, payload: bytes, sequence: int, publication: Publication | None
    ) -> Command:
        first, before = b"", b""
        settles: Callable[[Any], None] | None = None
        if topic.first_lost is not None:
            first = b"%d" % topic.first_lost
            before = encode_source(self.origin, sequence - 1)
            settles = self._settles(topic, sequence - 1)
        arguments = (
            b"EVALSHA",
            PUBLISH.hash,
            b"2",
            topic.stream,
            topic.channel,
            b"%d" % topic.history,
            self._history_milliseconds,
            kind,
            payload,
            encode_source(self.origin, sequence),
            before,
            first,
            # The last one, which is another in a cluster.
            self.publish_command,
        )
        return Command(topic.slot, arguments, len(payload), publication, settles)

    def not_sent(self, publication: Publication) -> None:
        """A message was not sent, or perhaps not: those of other processes are told once Redis is back."""
        topic = publication.topic
        # Without a history the next message shows it as well.
        if topic.history or len(self.unsettled) < TOPICS:
            topic.lose(publication.sequence)
            self.unsettled[topic.name] = topic

    def _settles(self, topic: Topic, sequence: int) -> Callable[[Any], None]:
        """What is called with Redis' answer, when it was told of all that it lacks up to a message."""

        def done(reply: Any) -> None:
            if not isinstance(reply, Exception):
                topic.settle(sequence)
                if topic.first_lost is None:
                    self.unsettled.pop(topic.name, None)

        return done

    def read_command(self, topic: Topic, since: bytes, up_to: bytes, done: Any) -> Command:
        """The command that reads a history."""
        return self.script(READ, topic.slot, (topic.stream,), (since, up_to, self._history_milliseconds), done)
