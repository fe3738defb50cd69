"""Topics over Redis or Valkey: what one process publishes reaches the subscribers in all.

A broker connects to nothing before it is used, and then in the process that uses it: a fork of that process starts
anew, with connections, an origin and a worker's name of its own.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from os import urandom
from time import monotonic
from typing import Any
from weakref import ref

import gevent
from gevent import get_hub
from gevent.event import AsyncResult
from gevent.hub import Hub
from gevent.monkey import is_module_patched
from redis.crc import key_slot
from redis.exceptions import RedisError

from geventws.errors import UsageError
from geventws.topics.nouns import Member, Position
from geventws.topics.redis_connections import Connector, Slots, current_process
from geventws.topics.redis_links import Command, Link, Publication
from geventws.topics.redis_presence import Attendance
from geventws.topics.redis_publishing import SynchronousLink
from geventws.topics.redis_scripts import LIVE, PUBLISH, READ, Script
from geventws.topics.redis_subscriptions import Inbox, Receiver, Subscription
from geventws.topics.statistics import Statistics
from geventws.topics.wire import (
    Malformed,
    Names,
    Topic,
    TopicTable,
    decode_entry,
    decode_position,
    encode_plain,
    encode_presence,
    kind_of,
    missing_before,
)

__all__ = ["Receiver", "RedisBroker"]

#: Topics whose sequence numbers a process remembers.
TOPICS = 10_000
#: Seconds that the end of a process may wait for what is yet to be sent.
EXIT_SECONDS = 1.0

#: Of a message that needs nothing more than to be counted.
_PLAIN = Publication(None, 0, b"")


class RedisBroker:
    """The way of one `Topics` to Redis.

    ``receiver`` is called, in greenlets of the broker, with what other processes publish, and with all messages of
    topics for which ``history`` gives a number of messages to keep. Raises ``ValueError`` for a URL or namespace that
    can't be.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        receiver: Receiver,
        *,
        max_message_size: int | None = None,
        history: Callable[[str], int] = lambda topic: 0,
        history_seconds: float | None = 3600.0,
        statistics: Statistics | None = None,
    ) -> None:
        self.connector = Connector(url)
        self.names = Names(namespace)
        self.receiver = receiver
        self.max_message_size = max_message_size
        self.history = history
        self.history_milliseconds = b"" if history_seconds is None else b"%d" % max(int(history_seconds * 1000), 1)
        self.statistics = Statistics() if statistics is None else statistics
        self._process = -1
        self._running: Greenlets | Synchronous | None = None
        self._starting = threading.Lock()
        #: What a parent process had: its sockets are closed there, not here.
        self._inherited: list[Any] = []
        self._closed = False
        self._at_exit: Callable[[], None] | None = None

    @property
    def available(self) -> bool:
        """Whether Redis can be reached, as far as known."""
        running = self._running
        return running is None or running.available

    @property
    def worker_id(self) -> str:
        """What tells this process from all others."""
        if self._closed:
            return ""
        return self._here().worker_id

    def subscribe(self, topic: str) -> Position | None:
        """Listens to a topic, and gives where its history stands; None without one.

        Blocks until the server has acknowledged it. While Redis is away it gives None at once, and the topic is
        subscribed when Redis is back. A greenlet that is killed meanwhile leaves the topic subscribed.
        """
        return self._here().subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        """Listens to a topic no more. Never blocks."""
        if not self._closed:
            self._here().unsubscribe(topic)

    def publish(self, topic: str, opcode: int, payload: bytes) -> bool:
        """Sends a message to all processes; False if Redis is away.

        The caller counts it as published, the broker as ``unsent`` or ``unconfirmed`` where it came to that.

        Does not wait for Redis, but for other messages while more than 1 MiB of them wait. One of a topic with history
        comes back to this process with its position; if it can't be sent although True was returned, it comes back
        without one.
        """
        running = self._running
        if running is None or self._process != current_process() or self._closed:
            running = self._here()
        return running.publish(topic, opcode, payload)

    def missed(self, topic: str, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        """The messages behind ``since`` up to ``up_to``; None where not all of them can be had. Blocks."""
        return self._here().missed(topic, since, up_to)

    def position(self, topic: str) -> Position | None:
        """Where the history of a topic stands in Redis; None without one. Blocks; None while Redis is away."""
        return self._here().position(topic)

    def reached(self, topic: str) -> Position | None:
        """Just behind the last message of a subscribed topic that was handed on; None without a history.

        Never blocks. None too where the topic was subscribed while Redis was away, until it is back.
        """
        return None if self._closed else self._here().reached(topic)

    def join(self, topic: str, member: Member) -> None:
        """Registers a member, until it leaves or this process ends. Never blocks."""
        self._here().join(topic, member)

    def leave(self, topic: str, member: Member) -> None:
        """Takes a member back. Never blocks."""
        if not self._closed:
            self._here().leave(topic, member)

    def members(self, topic: str) -> list[Member]:
        """Who is on a topic, in all processes that live, in order of joining. Blocks.

        While Redis is away: those of this process.
        """
        return self._here().members(topic)

    def watch_members(self) -> None:
        """Has this process tell of members whose process has ended, although it may have none itself."""
        self._here().watch_members()

    def flush(self, timeout: float | None = None) -> None:
        """Blocks until Redis has answered to all that was published.

        Raises ``TimeoutError``, and ``ConnectionError`` when Redis is away or was lost meanwhile.
        """
        running = self._running
        if running is not None and self._process == current_process():
            running.flush(timeout)

    def close(self) -> None:
        """Sends what waits, for a second at most; members leave, and the connections are closed."""
        self._closed = True
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        running, self._running = self._running, None
        if running is not None and self._process == current_process():
            running.close()

    def _here(self) -> Greenlets | Synchronous:
        """What runs in this process."""
        if self._closed:
            raise UsageError("these topics are closed")
        if self._running is None or self._process != current_process():
            with self._starting:
                if self._running is not None and self._process != current_process():
                    self._inherited.append(self._running)
                    self._running = None
                if self._running is None:
                    self._process = current_process()
                    self._running = Greenlets(self) if is_module_patched("socket") else Synchronous(self)
                    if self._at_exit is None:
                        self._at_exit = _close_at_exit(self)
        return self._running


def _close_at_exit(broker: RedisBroker) -> Callable[[], None]:
    reference = ref(broker)

    def close() -> None:
        remaining = reference()
        if remaining is not None:
            remaining.close()

    atexit.register(close)
    return close


class Running:
    """A broker in one process."""

    def __init__(self, broker: RedisBroker) -> None:
        self.connector = broker.connector
        self.names = broker.names
        self.statistics = broker.statistics
        self.origin = urandom(8)
        self.worker_id = self.origin.hex()
        self.inbox = Inbox(broker.receiver, self.origin, broker.max_message_size, broker.statistics)
        self.topics = TopicTable(TOPICS, self._make_topic)
        self.subscriptions: dict[str, Subscription] = {}
        self.slots: Slots | None = None
        self._history = broker.history
        self._history_milliseconds = broker.history_milliseconds

    @property
    def sharded(self) -> bool:
        """Whether the server is a cluster."""
        return self.slots is not None

    @property
    def publish_command(self) -> bytes:
        """How to publish to a channel."""
        return b"PUBLISH" if self.slots is None else b"SPUBLISH"

    def _make_topic(self, name: str) -> Topic:
        channel = self.names.channel(name)
        return Topic(name, channel, key_slot(channel), self._history(name))

    def script(
        self, script: Script, slot: int, keys: tuple[bytes, ...], arguments: tuple[bytes, ...], done: Any = None
    ) -> Command:
        """A command that runs a script."""
        return Command(slot, (b"EVALSHA", script.hash, b"%d" % len(keys), *keys, *arguments), 0, None, done)

    def publication(self, topic: Topic, opcode: int, payload: bytes) -> Command:
        """The command that publishes a message."""
        if not topic.history:
            data = encode_plain(opcode, self.origin, topic.sequence, payload)
            topic.sequence += 1
            return Command(topic.slot, (self.publish_command, topic.channel, data), len(data), _PLAIN)
        return Command(
            topic.slot,
            (
                b"EVALSHA",
                PUBLISH.hash,
                b"2",
                topic.stream,
                topic.channel,
                b"%d" % topic.history,
                self._history_milliseconds,
                kind_of(opcode),
                payload,
                self.publish_command,
            ),
            len(payload),
            Publication(topic.name, opcode, payload),
        )

    def read_command(self, topic: Topic, since: bytes, up_to: bytes, done: Any) -> Command:
        """The command that reads a history."""
        return self.script(READ, topic.slot, (topic.stream,), (since, up_to, self._history_milliseconds), done)

    def ask(self, make: Callable[[Any], Command]) -> Any:
        """The reply to the command that ``make`` makes. Blocks; raises one of redis-py's errors."""
        raise NotImplementedError

    def missed(self, name: str, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        """See `RedisBroker`."""
        if up_to.epoch != since.epoch or up_to.offset < since.offset:
            return None
        topic = self.topics.get(name)
        try:
            reply = self.ask(lambda done: self.read_command(topic, str(since).encode(), str(up_to).encode(), done))
            last = decode_position(reply[0])
            found = [(decode_position(entry[0]), *decode_entry(entry)) for entry in reply[1]]
        except (RedisError, Malformed):
            return None
        if last.epoch != since.epoch or last.offset < up_to.offset:
            return None
        return found if missing_before(since, up_to, [item[0].offset for item in found]) == 0 else None

    def position(self, name: str) -> Position | None:
        """See `RedisBroker`."""
        topic = self.topics.get(name)
        if not topic.history:
            return None
        try:
            return decode_position(self.ask(lambda done: self.read_command(topic, b"", b"+", done))[0])
        except (RedisError, Malformed):
            return None

    def reached(self, name: str) -> Position | None:
        """See `RedisBroker`."""
        subscription = self.subscriptions.get(name)
        return None if subscription is None else subscription.position

    def members(self, name: str) -> list[Member]:
        """See `RedisBroker`."""
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
        live = self.ask(lambda done: self.script(LIVE, key_slot(workers), (workers,), (), done))
        return self.ask(lambda done: Command(topic.slot, (b"HGETALL", topic.members), 0, None, done)), live

    def own_members(self, name: str) -> list[Member]:
        """The members of this process."""
        return []

    def own_leases(self) -> set[str]:
        """The leases of this process."""
        return set()


class Synchronous(Running):
    """In a process that gevent has not patched, such as a script: nothing runs beside the caller."""

    def __init__(self, broker: RedisBroker) -> None:
        super().__init__(broker)
        self._link = SynchronousLink(self)
        self._lock = threading.Lock()
        #: Why a message could not be published since the last flush.
        self._error: RedisError | None = None

    @property
    def available(self) -> bool:
        """Whether Redis can be reached, as far as known."""
        return not self._link.is_away

    def use_slots(self, slots: Slots) -> None:
        """A cluster's slots are known, or have moved."""
        self.slots = slots

    def publish(self, name: str, opcode: int, payload: bytes) -> bool:
        """See `RedisBroker`."""
        with self._lock:
            self._link.prepare()
            command = self.publication(self.topics.get(name), opcode, payload)
            try:
                self._link.execute(command)
            except RedisError as error:
                self._error = error
                if self._link.was_sent:
                    self.statistics.unconfirmed += 1
                else:
                    self.statistics.unsent += 1
                return False
            return True

    def ask(self, make: Callable[[Any], Command]) -> Any:
        """The reply to a command."""
        with self._lock:
            self._link.prepare()
            return self._link.execute(make(None))

    def subscribe(self, name: str) -> Position | None:
        """Refused: nobody could receive."""
        raise _needs_patch("subscribe to topics")

    def join(self, name: str, member: Member) -> None:
        """Refused: nobody could keep up the lease."""
        raise _needs_patch("register members")

    def unsubscribe(self, name: str) -> None:
        """Nothing is subscribed."""

    def leave(self, name: str, member: Member) -> None:
        """Nobody is registered."""

    def watch_members(self) -> None:
        """Refused: nobody could watch."""
        raise _needs_patch("watch members")

    def flush(self, timeout: float | None) -> None:
        """All that was published was answered to, or failed."""
        error, self._error = self._error, None
        if error is not None:
            raise ConnectionError(str(error)) from None

    def close(self) -> None:
        """Closes the connections."""
        with self._lock:
            self._link.close()


def _needs_patch(doing: str) -> UsageError:
    return UsageError(
        f"to {doing} over Redis, the process has to be patched before anything else: "
        "from gevent import monkey; monkey.patch_all() (gunicorn -k geventws.Worker does it)"
    )


class Greenlets(Running):
    """In a process that gevent has patched: greenlets send and receive."""

    def __init__(self, broker: RedisBroker) -> None:
        super().__init__(broker)
        self.hub = get_hub()
        self.links: dict[Any, Link] = {self.connector.address: Link(self, self.connector, self.connector.address)}
        #: The link where there is but one server.
        self._only: Link | None = self.links[self.connector.address]
        self.attendance = Attendance(self, self.names, self.worker_id)
        self._looking = False

    @property
    def available(self) -> bool:
        """Whether Redis can be reached, as far as known."""
        return not any(link.is_lost for link in self.links.values())

    # What links need of their owner.

    def link(self, slot: int) -> Link:
        """The link to the server that has a slot."""
        if self._only is not None:
            return self._only
        assert self.slots is not None
        return self.links[self.slots.node(slot)]

    def use_slots(self, slots: Slots) -> None:
        """A cluster's slots are known, or have moved: everything goes to where it belongs."""
        if slots == self.slots:
            return
        first = self.slots is None
        self.slots = slots
        self._only = None
        old = dict(self.links)
        for address in slots.nodes:
            if address not in self.links:
                self.links[address] = Link(self, self.connector, address)
        gone = [link for address, link in old.items() if address not in slots.nodes]
        for link in gone:
            del self.links[link.address]
        for link in old.values():
            for later in {self.link(command.slot) for command in link.in_flight}:
                if later is not link:
                    later.come_behind(link)
            commands = link.take_outbox()
            for command in commands:
                if first and command.arguments[0] == b"PUBLISH":
                    command.arguments = (b"SPUBLISH", *command.arguments[1:])
                elif first and command.arguments[-1] == b"PUBLISH":
                    command.arguments = (*command.arguments[:-1], b"SPUBLISH")
                if not self.link(command.slot).submit(command):
                    link.refuse([command])
            for subscription in list(link.wanted.values()):
                new = self.link(subscription.topic.slot)
                if new is not link:
                    link.hand_over(subscription, new)
        for link in gone:
            link.leave_cluster()

    def send_again(self, commands: list[Command]) -> None:
        """Sends what another node is to do, before all else."""
        by_link: dict[Link, list[Command]] = {}
        for command in commands:
            by_link.setdefault(self.link(command.slot), []).append(command)
        for link, those in by_link.items():
            link.submit_first(those)

    def deliver_here(self, publication: Publication) -> None:
        """A message that was taken to be sent, and was not."""
        assert publication.topic is not None
        if publication.topic in self.subscriptions:
            try:
                self.inbox.receiver.message(publication.topic, publication.opcode, publication.payload, None)
            except Exception:
                self.inbox.failed()

    def history_command(self, subscription: Subscription, done: Callable[[Any], None]) -> Command:
        """The command that reads what a subscription lacks."""
        since = subscription.position
        return self.read_command(subscription.topic, b"" if since is None else str(since).encode(), b"+", done)

    def lost(self, link: Link) -> None:
        """A server does not answer; in a cluster another one may have its slots."""
        if self.slots is None or self._looking:
            return
        self._looking = True
        gevent.spawn(self._look_for_slots, link)

    def _look_for_slots(self, link: Link) -> None:
        try:
            for address in [other for other in self.links if other != link.address] + [self.connector.address]:
                try:
                    connection, _ = self.connector.connect(address, self.connector.timeout)
                    try:
                        self.use_slots(self.connector.slots(connection, address))
                        return
                    finally:
                        connection.disconnect()
                except (RedisError, OSError):
                    continue
        finally:
            self._looking = False

    # What the broker does.

    def publish(self, name: str, opcode: int, payload: bytes) -> bool:
        """See `RedisBroker`."""
        if get_hub() is not self.hub:
            # Of another thread: its order is that in which it calls.
            self.hub.loop.run_callback_threadsafe(self._publish, self.topics.get(name), opcode, payload)
            return self.available
        topic = self.topics.get(name)
        link = self.link(topic.slot)
        if link.is_full and not isinstance(gevent.getcurrent(), Hub):
            link.wait_for_room()
        return self._publish(topic, opcode, payload)

    def _publish(self, topic: Topic, opcode: int, payload: bytes) -> bool:
        if self.link(topic.slot).submit(self.publication(topic, opcode, payload)):
            return True
        self.statistics.unsent += 1
        return False

    def ask(self, make: Callable[[Any], Command]) -> Any:
        """The reply to a command, for which this greenlet waits."""
        self._check_thread()
        result: AsyncResult[Any] = AsyncResult()
        self.ask_later(make(result.set))
        reply = result.get()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def ask_later(self, command: Command) -> None:
        """Has a command done; its ``done`` is called in any case."""
        link = self.link(command.slot)
        if not link.submit(command):
            link.refuse([command])

    def subscribe(self, name: str) -> Position | None:
        """See `RedisBroker`."""
        self._check_thread()
        subscription = self.subscriptions.get(name)
        if subscription is None:
            topic = self._make_topic(name)
            subscription = Subscription(topic, self.inbox, lambda behind: self.link(topic.slot).read_history(behind))
            self.subscriptions[name] = subscription
            self.link(topic.slot).want(subscription)
        subscription.ready.wait()
        return subscription.position

    def unsubscribe(self, name: str) -> None:
        """See `RedisBroker`."""
        subscription = self.subscriptions.pop(name, None)
        if subscription is not None:
            self.link(subscription.topic.slot).unwant(subscription)

    def join(self, name: str, member: Member) -> None:
        """See `RedisBroker`."""
        encode_presence("join", member)
        self.attendance.join(self.topics.get(name), member)

    def leave(self, name: str, member: Member) -> None:
        """See `RedisBroker`."""
        self.attendance.leave(self.topics.get(name), member)

    def members(self, name: str) -> list[Member]:
        """See `RedisBroker`."""
        self.attendance.watch()
        return super().members(name)

    def watch_members(self) -> None:
        """See `RedisBroker`."""
        self.attendance.watch()

    def own_members(self, name: str) -> list[Member]:
        """The members of this process."""
        return self.attendance.members(name)

    def own_leases(self) -> set[str]:
        """The leases of this process."""
        return {self.attendance.lease}

    def flush(self, timeout: float | None) -> None:
        """See `RedisBroker`."""
        self._check_thread()
        ends = None if timeout is None else monotonic() + timeout
        lost = self.statistics.unsent + self.statistics.unconfirmed
        # Once more for what a node of a cluster has sent on to another.
        for _ in range(2):
            for link in list(self.links.values()):
                if not link.is_busy:
                    continue
                result: AsyncResult[Any] = AsyncResult()
                if not link.submit(Command(0, (b"PING",), 0, None, result.set)):
                    raise ConnectionError("Redis is away")
                with gevent.Timeout(None if ends is None else max(ends - monotonic(), 0), TimeoutError("flush")):
                    if isinstance(result.get(), Exception):
                        raise ConnectionError("Redis is away")
        if any(link.refuses for link in self.links.values()):
            raise ConnectionError("Redis is away")
        if self.statistics.unsent + self.statistics.unconfirmed > lost:
            raise ConnectionError("Redis was lost, and messages with it")

    def close(self) -> None:
        """See `RedisBroker`."""
        try:
            if get_hub() is self.hub and self.available:
                with gevent.Timeout(EXIT_SECONDS, False):  # type: ignore[arg-type]
                    self.attendance.close()
                    self.flush(None)
        except (ConnectionError, RedisError):
            pass
        finally:
            self.attendance.end()
            for link in list(self.links.values()):
                link.end()

    def _check_thread(self) -> None:
        if get_hub() is not self.hub:
            raise UsageError("these topics belong to another thread: only publish can be called from this one")
