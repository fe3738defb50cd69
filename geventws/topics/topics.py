"""Topics: what is published on one, all its subscribers get, in this process and in others by Redis."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from gevent import get_hub, spawn
from gevent.event import AsyncResult
from gevent.hub import Hub
from gevent.monkey import get_original

from geventws.arguments import check_function, check_number, check_wait, missing_extra, shown
from geventws.errors import ConnectionClosed, UsageError
from geventws.protocol.shared import SharedMessage
from geventws.session import DefaultWebSocketSession
from geventws.settings import check_option
from geventws.topics.broadcasting import shared_message
from geventws.topics.history import History, HistorySizes
from geventws.topics.nouns import Gap, Member, Position, Presence, Subscribed
from geventws.topics.statistics import Statistics
from geventws.topics.topic import Listener, Topic, wait_unless_in_hub
from geventws.topics.wire import Names, encode_topic
from geventws.transport import monotonic

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.topics.delivery import Delivery
    from geventws.topics.redis_broker import RedisBroker

__all__ = ["Topics"]

log = logging.getLogger("geventws")

Message = str | bytes | bytearray | memoryview
Envelope = Callable[[str, str | bytes, Position | None], str | bytes]

OPEN = 1
TEXT = 1
SECONDS_BETWEEN_SWEEPS = 10.0

# Of the thread, not of the greenlet.
thread_identity = get_original("_thread", "get_ident")


class Topics:
    """Sends what is published on a topic to all sessions that are subscribed to it.

    Without ``url`` the topics are of this process alone. With the URL of a Redis or Valkey server
    (``redis://``, ``rediss://``, ``unix://``, or ``valkey://``) they are shared by all processes that name the same
    server and ``namespace``. Nothing connects or starts before the first use, so that one object made at import serves
    a gunicorn with or without ``preload_app``.

    A message of a topic with a history has a position, and a process delivers it once by that: by the way of Redis, in
    the same order everywhere. One without is delivered to this process's sessions at once, and not again when it comes
    back. Messages of one publisher on one topic arrive in order. Where Redis is away, or refuses messages, the sessions
    stay and messages go on within the process, without a position; what others have missed is counted there and told to
    who asks by ``on_gap``, once Redis takes messages again.

    :param namespace: what stands before all keys and channels in Redis: letters, digits, ``_``, ``.`` and ``-``.
    :param history: the messages that are kept of each topic for ``subscribe(since=)``, or a mapping of topics, or
        prefixes as in ``{"room/*": 100}``, to such numbers. All processes have to agree on it.
    :param history_seconds: how long after its last message a topic's history is kept; None for ever.
    :param slow: what happens to a session with more than its ``write_limit`` waiting for its peer: ``"skip"`` leaves
        the message out for it, ``"close"`` closes it with 1013, so that its client can come back and ask for the rest.
    :param envelope: called as ``envelope(topic, message, position)`` for what the sessions are to get in place of the
        bare message, once for each message in each process. It must not block.
    :param max_message_size: bytes of the largest message; None for no limit.

    Raises ``ValueError`` that names the option.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "geventws",
        history: int | Mapping[str, int] = 0,
        history_seconds: float | None = 3600.0,
        slow: Literal["skip", "close"] = "skip",
        envelope: Envelope | None = None,
        max_message_size: int | None = 1024 * 1024,
    ) -> None:
        # Raises for what can't be one, with Redis and without.
        Names(namespace)
        if slow not in ("skip", "close"):
            raise ValueError(f'slow must be "skip" or "close", not {shown(slow)}')
        check_function("envelope", envelope, "a topic, a message and a position")
        check_option("history_seconds", history_seconds)
        check_option("max_message_size", max_message_size)
        self._sizes = HistorySizes(history)
        self._history_seconds = history_seconds
        self._closes = slow == "close"
        self._envelope = envelope
        self._max_message_size = max_message_size
        self._statistics = Statistics()
        self._events = _Events(self)
        self._broker: RedisBroker | None = None
        if url is not None:
            try:
                from geventws.topics.redis_broker import RedisBroker
            except ModuleNotFoundError as error:
                raise missing_extra(error, "redis", "Topics with a URL", "redis") from None

            self._broker = RedisBroker(
                url,
                namespace,
                self._events,
                max_message_size=max_message_size,
                history=self._sizes.of,
                history_seconds=history_seconds,
                statistics=self._statistics,
            )
        self._start_anew()

    def _start_anew(self) -> None:
        """Begins without subscribers, as a forked child does: its parent's are not its own."""
        self._process = os.getpid()
        #: Of the thread of the sessions, once there is one.
        self._hub: Hub | None = None
        self._thread = 0
        self._topics: dict[str, Topic] = {}
        self._identity = os.urandom(8).hex()
        self._numbers = count(1)
        self._swept = monotonic()

    # -- Subscribing
    # -----------------------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        session: DefaultWebSocketSession,
        topic: str,
        *,
        member: str | None = None,
        since: Position | str | None = None,
        recent: int = 0,
        on_presence: Callable[[Presence], str | bytes | None] | None = None,
        on_gap: Callable[[Gap], str | bytes | None] | None = None,
    ) -> Subscribed:
        """Has ``session`` get what is published on ``topic`` from now on, until it ends or is unsubscribed.

        Opens the session where that has not happened yet. A session that is subscribed already is subscribed anew.

        :param member: as whom it is on the topic, for `presence`; None for an anonymous subscriber.
        :param since: a position that the session's client has seen before, or its text: it is first sent what it
            missed since, in order. Text that is no position counts as one that is long gone.
        :param recent: without such a position, or where not all since is there any more: how many of the last messages
            it is first sent.
        :param on_presence: called for each member that comes to the topic or leaves it, for the message that this
            session is to get then; None for none. Sessions that give the same function share one call. It must not
            block.
        :param on_gap: the same for messages of other processes that this one has lost, or may have.

        Blocks until Redis has acknowledged it, so that nothing published afterwards is missed, and while the session's
        peer takes what it missed. Raises ``ConnectionClosed`` for a session that has ended, ``ValueError`` for a topic
        of no or over 255 bytes, ``TypeError`` for what is no default session, ``UsageError`` for one of another thread.
        """
        self._enter()
        encode_topic(topic)
        connection = self._connection_of(session)
        if member is not None and not isinstance(member, str):
            raise TypeError(f"member must be a str or None, not {type(member).__name__}")
        if since is not None and not isinstance(since, (Position, str)):
            raise TypeError(f"since must be a Position, its text or None, not {type(since).__name__}")
        check_number("recent", recent, "messages", least=0)
        check_function("on_presence", on_presence, "a Presence")
        check_function("on_gap", on_gap, "a Gap")
        here = self._topic(topic)
        here.arriving += 1
        try:
            here.remove(connection)
            self._start(here)
            recovered, missed = self._catch_up(here, session, since, recent)
            if connection.state != OPEN:
                raise ConnectionClosed(connection.ending())
            # Another greenlet may have subscribed it meanwhile.
            here.remove(connection)
            here.add(connection)
            here.ask(connection, on_presence, on_gap)
            if on_presence is not None and self._broker is not None:
                self._broker.watch_members()
            position = self._position(here)
        finally:
            here.arriving -= 1
            self._drop_if_deserted(here)
        if member is not None:
            self._join(here, connection, member)
        return Subscribed(position, recovered, missed)

    def unsubscribe(self, session: DefaultWebSocketSession, topic: str) -> bool:
        """Ends a subscription; tells whether there was one. Never blocks.

        A session that ends is unsubscribed by itself. A message that is just going out may still reach the session.
        """
        self._enter()
        encode_topic(topic)
        _check_session(session)
        here = self._topics.get(topic)
        return here is not None and here.remove(session.connection)

    def listen(self, topic: str, listener: Listener) -> Callable[[], None]:
        """Has ``listener(message)`` called for each message on ``topic``, str or bytes, without a session.

        In this process alone, in the order of the messages, and without the envelope. It must not block. Ends with
        `close`, or when what this gives is called. Blocks until Redis has acknowledged it, and raises as `subscribe`.
        """
        self._enter()
        encode_topic(topic)
        if not callable(listener):
            raise TypeError(f"listener must be a function of a message, not {type(listener).__name__}")
        if self._hub is None:
            self._hub = get_hub()
            self._thread = thread_identity()
        here = self._topic(topic)
        here.arriving += 1
        try:
            self._start(here)
        except BaseException:
            here.arriving -= 1
            self._drop_if_deserted(here)
            raise
        # An object of its own: the same function may listen twice.
        own = partial(listener)
        here.listeners = [*(here.listeners or ()), own]

        def stop() -> None:
            left = [other for other in here.listeners or () if other is not own]
            if len(left) < len(here.listeners or ()):
                here.listeners = left or None
                here.arriving -= 1
                self._drop_if_deserted(here)

        return stop

    def _connection_of(self, session: Any) -> Connection:
        _check_session(session)
        session.accept_if_needed()
        connection: Connection = session.connection
        if connection.state != OPEN or connection.close_sent:
            raise ConnectionClosed(connection.ending())
        hub = get_hub()
        if self._hub is None:
            self._hub = hub
            self._thread = thread_identity()
        if connection.hub is not hub or self._hub is not hub:
            raise UsageError(
                "a session must be subscribed in the thread that runs it, and all of one Topics in the same thread"
            )
        return connection

    def _topic(self, name: str) -> Topic:
        here = self._topics.get(name)
        if here is None:
            here = self._topics[name] = Topic(name, self._events, self._closes, self._statistics)
        return here

    def _start(self, here: Topic) -> None:
        """Has other processes' messages arrive; blocks until they do."""
        if self._broker is None:
            self._keep_history(here)
            return
        if here.started is None:
            here.started = AsyncResult()
            # Whoever waits for it may be killed, and others wait as well.
            spawn(self._subscribe_to_broker, self._broker, here, here.started)
        try:
            here.started.get()
        except BaseException:
            if here.started.ready() and not here.started.successful():
                here.started = None
            raise

    def _subscribe_to_broker(self, broker: RedisBroker, here: Topic, started: AsyncResult[None]) -> None:
        try:
            broker.subscribe(here.name)
        except Exception as error:
            started.set_exception(error)
        else:
            started.set()

    def _keep_history(self, here: Topic) -> None:
        size = self._sizes.of(here.name)
        if size and here.history is None:
            self._sweep()
            here.history = History(size)

    def _position(self, here: Topic) -> Position | None:
        """The position of the newest message that went to the subscribers, or was there before them; never blocks."""
        if self._broker is not None:
            return self._broker.reached(here.name)
        return None if here.history is None else here.history.position

    def _catch_up(
        self, here: Topic, session: DefaultWebSocketSession, since: Position | str | None, recent: int
    ) -> tuple[bool, int]:
        """Sends what was missed; gives whether that was all, and how many. Nothing more is when it returns."""
        recovered, count = True, 0
        reached: Position | None = None
        if since is not None:
            try:
                reached = Position.parse(since) if isinstance(since, str) else since
            except ValueError:
                recovered = False
            else:
                recovered, count, reached = self._send_since(here, session, reached)
        if recent and (since is None or not recovered):
            position = self._position(here)
            if position is not None:
                first = max(position.offset - min(recent, self._sizes.of(here.name)), 0)
                if reached is not None and reached.epoch == position.epoch and reached.offset <= position.offset:
                    # Some of it may have been sent before the rest was gone.
                    first = max(first, reached.offset)
                count += self._send_since(here, session, Position(position.epoch, first))[1]
        return recovered, count

    def _send_since(
        self, here: Topic, session: DefaultWebSocketSession, reached: Position
    ) -> tuple[bool, int, Position]:
        """Sends what is behind a position, until nothing is; gives whether it could, how many, and up to where."""
        whole, count = True, 0
        while True:
            position = self._position(here)
            if position is None or reached.epoch != position.epoch or reached.offset > position.offset:
                return False, count, reached
            if reached.offset == position.offset:
                return whole, count, reached
            messages = self._missed(here, reached, position)
            if messages is None:
                return False, count, reached
            for at, opcode, payload in messages:
                # What was lost on the way to Redis has an offset without a message.
                whole = whole and at.offset == reached.offset + 1
                session.send(self._wrapped(here.name, opcode, payload, at))
                reached = at
                count += 1
            whole = whole and reached == position
            reached = position

    def _missed(self, here: Topic, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        if here.history is not None:
            return here.history.missed(since, up_to)
        return None if self._broker is None else self._broker.missed(here.name, since, up_to)

    def _drop_if_deserted(self, here: Topic) -> None:
        if here.deserted and self._topics.get(here.name) is here:
            del self._topics[here.name]
            if self._broker is not None and here.started is not None:
                self._broker.unsubscribe(here.name)

    # -- Publishing
    # -----------------------------------------------------------------------------------------------------------------

    def publish(self, topic: str, message: Message) -> None:
        """Sends ``message``, str as text and bytes-like as binary, to all who are subscribed to ``topic``.

        From any greenlet or thread, with or without sessions in this process. Blocks until it is on its way to the
        sessions of this process (not until they have it), and while more than 1 MiB waits for Redis; never for Redis
        itself: `flush` does that. What Redis can't be told is counted in `statistics`.

        Raises ``ValueError`` for a message over ``max_message_size`` and a topic of no or over 255 bytes, ``TypeError``
        for what is no message.
        """
        self._enter()
        encode_topic(topic)
        shared = shared_message(message)
        size = len(shared.payload)
        if self._max_message_size is not None and size > self._max_message_size:
            raise ValueError(f"message must have at most {self._max_message_size} bytes, max_message_size, not {size}")
        if self._hub is not None and thread_identity() != self._thread:
            # What is sent must be so in the thread of the sessions.
            self._hub.loop.run_callback_threadsafe(spawn, self._publish, topic, shared)
        else:
            self._publish(topic, shared)

    def _publish(self, topic: str, message: SharedMessage) -> None:
        self._statistics.published += 1
        broker = self._broker
        if broker is None:
            here = self._topics.get(topic)
            if here is None:
                if not self._sizes.of(topic):
                    return
                here = self._topic(topic)
            self._keep_history(here)
            position = None if here.history is None else here.history.append(message.opcode, message.payload)
            wait_unless_in_hub(self._send(here, message, position))
        elif not self._sizes.of(topic):
            here = self._topics.get(topic)
            delivery = None if here is None else self._send(here, message, None)
            broker.publish(topic, message.opcode, message.payload)
            wait_unless_in_hub(delivery)
        elif not broker.publish(topic, message.opcode, message.payload):
            # With Redis away nobody gives it a position; those who are here get it all the same.
            here = self._topics.get(topic)
            if here is not None:
                wait_unless_in_hub(self._send(here, message, None))

    def _send(self, here: Topic, message: SharedMessage, position: Position | None) -> Delivery | None:
        """Sends a message to the sessions of this process, and to who listens; gives what to wait for."""
        if here.listeners is not None:
            here.hear(message)
        if not here.connections:
            return None
        if self._envelope is not None:
            message = shared_message(self._wrapped(here.name, message.opcode, message.payload, position))
        return here.send(message)

    def _wrapped(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> str | bytes:
        """What sessions get of a message."""
        message = payload.decode() if opcode == TEXT else payload
        return message if self._envelope is None else self._envelope(topic, message, position)

    def _sweep(self) -> None:
        """Drops histories that nobody added to for ``history_seconds``, once in a while."""
        seconds = self._history_seconds
        now = monotonic()
        if seconds is None or now - self._swept < min(seconds, SECONDS_BETWEEN_SWEEPS):
            return
        self._swept = now
        for here in list(self._topics.values()):
            if (
                here.history is not None
                and not here.connections
                and not here.arriving
                and now - here.history.appended > seconds
            ):
                here.history = None
                self._drop_if_deserted(here)

    def flush(self, timeout: float | None = None) -> None:
        """Blocks until Redis has confirmed all that was published here before; at once without Redis.

        Raises ``TimeoutError`` after ``timeout`` seconds, and ``ConnectionError`` if Redis is away or has refused it.
        """
        check_wait("timeout", timeout)
        self._enter()
        if self._broker is not None:
            self._broker.flush(timeout)

    # -- Asking
    # -----------------------------------------------------------------------------------------------------------------

    def count(self, topic: str) -> int:
        """How many sessions of this process are subscribed to ``topic``; `presence` knows the members everywhere."""
        self._enter()
        encode_topic(topic)
        here = self._topics.get(topic)
        return 0 if here is None else len(here)

    def sessions(self, topic: str) -> list[DefaultWebSocketSession]:
        """The sessions of this process that are subscribed to ``topic``."""
        self._enter()
        encode_topic(topic)
        here = self._topics.get(topic)
        return [] if here is None else [connection.session for connection in here.connections]

    def presence(self, topic: str) -> list[Member]:
        """Who is on ``topic``, of all processes: the subscriptions that have a ``member``.

        Blocks for an answer of Redis. While Redis is away it knows those of this process alone. The members of a
        process that died are gone after a few seconds.
        """
        self._enter()
        encode_topic(topic)
        broker = self._broker
        elsewhere = [] if broker is None else broker.members(topic)
        # Of its own this process knows better: what it told Redis last may be on its way.
        here = self._topics.get(topic)
        members = None if here is None else here.members
        own = {member.key: member for member in (members or {}).values()}
        known = [member for member in elsewhere if member.key in own or not self._is_own(member)]
        keys = {member.key for member in known}
        return known + [member for key, member in own.items() if key not in keys]

    def position(self, topic: str) -> Position | None:
        """Where ``topic`` stands; None without a history, and while Redis is away.

        Blocks for an answer of Redis where no session of this process is subscribed to the topic.
        """
        self._enter()
        encode_topic(topic)
        here = self._topics.get(topic)
        position = None if here is None else self._position(here)
        if position is None and self._broker is not None:
            position = self._broker.position(topic)
        return position

    def statistics(self) -> Statistics:
        """What was counted in this process up to now."""
        return replace(self._statistics)

    def close(self) -> None:
        """Ends all subscriptions and the connections to Redis; the sessions stay open.

        Blocks, at most a second, until Redis has what was published.
        """
        self._enter()
        for here in list(self._topics.values()):
            here.history = None
            here.arriving -= len(here.listeners or ())
            here.listeners = None
            for connection in list(here.connections):
                here.remove(connection)
            self._drop_if_deserted(here)
        if self._broker is not None:
            self._broker.close()

    # -- Within
    # -----------------------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        if os.getpid() != self._process:
            self._start_anew()

    def _worker(self) -> str:
        return self._identity if self._broker is None else self._broker.worker_id

    def _is_own(self, member: Member) -> bool:
        return member.key.startswith(f"{self._worker()}.")

    def _join(self, here: Topic, connection: Connection, name: str) -> None:
        member = Member(name, f"{self._worker()}.{next(self._numbers)}")
        if here.members is None:
            here.members = {}
        here.members[connection] = member
        if self._broker is None:
            here.tell(Presence(here.name, "join", member))
        else:
            self._broker.join(here.name, member)


def _check_session(session: Any) -> None:
    if not isinstance(session, DefaultWebSocketSession):
        kind = type(session).__name__
        raise TypeError(f"session must be a default session, of a route without raw=True, not {kind}")


class _Events:
    """What Redis brings, and who leaves: handed on to the topics of this process."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics

    def left(self, here: Topic, member: Member | None) -> None:
        """Called by a topic that a subscriber has left."""
        broker = self._topics._broker
        if member is not None:
            if broker is None:
                here.tell(Presence(here.name, "leave", member))
            else:
                broker.leave(here.name, member)
        self._topics._drop_if_deserted(here)

    def message(self, topic: str, opcode: int, payload: bytes, position: Position | None) -> None:
        """Called for each message, in order."""
        here = self._topics._topics.get(topic)
        if here is None:
            return
        try:
            delivery = self._topics._send(here, SharedMessage(opcode, payload), position)
        except Exception:
            log.exception("the envelope of topics failed")
        else:
            wait_unless_in_hub(delivery)

    def presence(self, topic: str, event: Literal["join", "leave"], member: Member) -> None:
        """Called for a member that came or left, in order with the messages."""
        here = self._topics._topics.get(topic)
        if here is not None:
            here.tell(Presence(topic, event, member))

    def gap(self, topic: str, lost: int | None) -> None:
        """Called where messages may have been lost."""
        here = self._topics._topics.get(topic)
        if here is not None:
            here.tell(Gap(topic, lost))
