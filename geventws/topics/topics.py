"""Topics: what is published on one, all its subscribers get, in this process and in others by Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from gevent import get_hub

from geventws.arguments import check_function, check_number, check_wait, encode_text, missing_extra, shown
from geventws.connection import State
from geventws.errors import ConnectionClosed, UsageError
from geventws.session import DefaultWebSocketSession
from geventws.settings import check_option
from geventws.topics.broadcasting import shared_message
from geventws.topics.history import HistorySizes
from geventws.topics.local import Envelope, LocalTopics
from geventws.topics.nouns import Gap, Member, Position, Presence, Subscribed
from geventws.topics.recovery import Recovery, position_of
from geventws.topics.statistics import Statistics
from geventws.topics.threads import HomeThread, thread_identity
from geventws.topics.topic import Listener
from geventws.topics.wire import Names, encode_topic
from geventws.transport import monotonic

if TYPE_CHECKING:
    from geventws.connection import Connection
    from geventws.topics.redis_broker import RedisBroker

__all__ = ["Topics"]

Message = str | bytes | bytearray | memoryview

#: Bytes of a member's name: all processes get it.
LONGEST_MEMBER = 4096
#: Seconds that `Topics.close` may take for what other threads have published.
CLOSE_SECONDS = 1.0


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
        prefixes as in ``{"room/*": 100}``, to such numbers. All workers have to agree on it; a process that gevent
        has not patched, such as a script, adds to the histories that there are.
    :param history_seconds: how long after its last message a topic's history is kept; None for ever.
    :param slow: what happens to a session with more than its ``write_limit`` waiting for its peer: ``"skip"`` leaves
        the message out for it, ``"close"`` closes it with 1013, so that its client can come back and ask for the rest.
    :param envelope: called as ``envelope(topic, message, position)`` for what the sessions are to get in place of the
        bare message, once for each message in each process. It must not block. One that raises is logged, and keeps
        the message from the sessions of its process alone.
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
        names = Names(namespace)
        if slow not in ("skip", "close"):
            raise ValueError(f'slow must be "skip" or "close", not {shown(slow)}')
        check_function("envelope", envelope, "a topic, a message and a position")
        check_option("history_seconds", history_seconds)
        check_option("max_message_size", max_message_size)
        self._sizes = HistorySizes(history)
        self._max_message_size = max_message_size
        self._local = LocalTopics(self._sizes, history_seconds, slow == "close", envelope)
        self._closed = False
        self._broker: RedisBroker | None = None
        if url is not None:
            try:
                from geventws.topics.redis_broker import RedisBroker
            except ModuleNotFoundError as error:
                raise missing_extra(error, "redis", "Topics with a URL", "redis") from None

            self._broker = RedisBroker(
                url,
                names,
                self._local,
                max_message_size=max_message_size,
                history=self._sizes.of,
                history_seconds=history_seconds,
            )
            self._local.broker = self._broker
        self._start_anew()

    def _start_anew(self) -> None:
        """Begins without subscribers, as a forked child does: its parent's are not its own."""
        self._process = os.getpid()
        self._local.begin()
        self._home = HomeThread(self._local.publish, self._broker)

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
        of no or over 255 bytes and a member of over 4 KiB, ``TypeError`` for what is no default session, ``UsageError``
        for one of another thread.
        """
        self._enter()
        encode_topic(topic)
        if member is not None:
            _check_member(member)
        if since is not None and not isinstance(since, (Position, str)):
            raise TypeError(f"since must be a Position, its text or None, not {type(since).__name__}")
        check_number("recent", recent, "messages", least=0)
        check_function("on_presence", on_presence, "a Presence")
        check_function("on_gap", on_gap, "a Gap")
        connection = self._connection_of(session)
        here = self._local.open(topic)
        here.arriving += 1
        try:
            if since is not None or recent:
                here.withdraw(connection)
            here.remove(connection)
            self._local.start(here)
            recovery = Recovery(here, self._broker, session, self._local.wrapped)
            recovered = recovery.catch_up(since, recent, self._sizes.of(topic))
            self._enter()
            if connection.state != State.OPEN:
                raise ConnectionClosed(connection.ending())
            # Another greenlet may have subscribed it meanwhile.
            here.remove(connection)
            here.add(connection)
            here.ask(connection, on_presence, on_gap)
            if on_presence is not None and self._broker is not None:
                self._broker.here().watch_members()
            position = position_of(here, self._broker)
            if recovery.ahead is not None and position is not None:
                here.leave_out(connection, position, recovery.ahead)
                position = recovery.ahead
        finally:
            here.arriving -= 1
            self._local.drop_if_deserted(here)
        if member is not None:
            self._local.join(here, connection, member)
        return Subscribed(position, recovered, recovery.missed)

    def unsubscribe(self, session: DefaultWebSocketSession, topic: str) -> bool:
        """Ends a subscription; tells whether there was one. Never blocks.

        A session that ends is unsubscribed by itself. A message that is just going out may still reach the session.
        Raises ``UsageError`` in another thread than that of the sessions.
        """
        self._enter_thread()
        encode_topic(topic)
        _check_session(session)
        here = self._local.topics.get(topic)
        return here is not None and here.remove(session.connection)

    def listen(self, topic: str, listener: Listener) -> Callable[[], None]:
        """Has ``listener(message)`` called for each message on ``topic``, str or bytes, without a session.

        In this process alone, in the order of the messages, when they are on their way to the sessions here, and
        without the envelope. It must not block. Ends with `close`, or when what this gives is called. Blocks until
        Redis has acknowledged it, and raises as `subscribe`, and ``TypeError`` for what can't be called.
        """
        self._enter_thread()
        encode_topic(topic)
        if not callable(listener):
            raise TypeError(f"listener must be a function of a message, not {type(listener).__name__}")
        if self._home.hub is None:
            self._home.begin()
        here = self._local.open(topic)
        # An object of its own: the same function may listen twice.
        own = partial(listener)
        here.arriving += 1
        try:
            self._local.start(here)
            self._enter()
            here.listeners = [*(here.listeners or ()), own]
        finally:
            here.arriving -= 1
            self._local.drop_if_deserted(here)

        def stop() -> None:
            here.listeners = [other for other in here.listeners or () if other is not own] or None
            self._local.drop_if_deserted(here)

        return stop

    def _connection_of(self, session: Any) -> Connection:
        _check_session(session)
        session.accept_if_needed()
        connection: Connection = session.connection
        if connection.state != State.OPEN or connection.close_sent:
            raise ConnectionClosed(connection.ending())
        hub = get_hub()
        if self._home.hub is None and connection.hub is hub:
            self._home.begin()
        if connection.hub is not hub or self._home.hub is not hub:
            raise UsageError(
                "a session must be subscribed in the thread that runs it, and all of one Topics in the same thread"
            )
        return connection

    # -- Publishing
    # -----------------------------------------------------------------------------------------------------------------

    def publish(self, topic: str, message: Message) -> None:
        """Sends ``message``, str as text and bytes-like as binary, to all who are subscribed to ``topic``.

        From any greenlet or thread, with or without sessions in this process. Blocks until it is on its way to the
        sessions of this process (not until they have it), and while more than 1 MiB waits for Redis; never for Redis
        itself: `flush` does that. What Redis can't be told is counted in `statistics`.

        Another thread than that of the sessions hands its messages over to that one, which sends them in their order;
        it blocks, with all its greenlets, while more than 1 MiB waits there. Where no thread is known to have sessions
        they go to the main thread.

        Raises ``ValueError`` for a message over ``max_message_size`` and a topic of no or over 255 bytes, ``TypeError``
        for what is no message, and ``UsageError`` in a thread without sessions where the main thread does not answer
        within 5 s and nobody has used these topics before.
        """
        self._enter()
        encode_topic(topic)
        shared = shared_message(message)
        size = len(shared.payload)
        if self._max_message_size is not None and size > self._max_message_size:
            raise ValueError(f"message must have at most {self._max_message_size} bytes, max_message_size, not {size}")
        home = self._home
        if thread_identity() != home.thread and home.is_elsewhere():
            home.hand_over(topic, shared)
        else:
            self._local.publish(topic, shared)

    def flush(self, timeout: float | None = None) -> None:
        """Blocks until Redis has confirmed all that was published here before; at once without Redis.

        That is also what other threads have handed over before. Raises ``TimeoutError`` after ``timeout`` seconds,
        ``ConnectionError`` if Redis is away or has refused it, and ``UsageError`` in another thread than that of the
        sessions.
        """
        check_wait("timeout", timeout)
        self._enter_thread()
        ends = None if timeout is None else monotonic() + timeout
        self._home.wait(timeout)
        running = None if self._broker is None else self._broker.started
        if running is not None:
            running.flush(None if ends is None else max(ends - monotonic(), 0.0))

    # -- Asking
    # -----------------------------------------------------------------------------------------------------------------

    def count(self, topic: str) -> int:
        """How many sessions of this process are subscribed to ``topic``; `presence` knows the members everywhere."""
        self._enter()
        encode_topic(topic)
        here = self._local.topics.get(topic)
        return 0 if here is None else len(here)

    def sessions(self, topic: str) -> list[DefaultWebSocketSession]:
        """The sessions of this process that are subscribed to ``topic``."""
        self._enter()
        encode_topic(topic)
        here = self._local.topics.get(topic)
        return [] if here is None else [connection.session for connection in here.connections]

    def presence(self, topic: str) -> list[Member]:
        """Who is on ``topic``, of all processes: the subscriptions that have a ``member``.

        Blocks for an answer of Redis. While Redis is away it knows those of this process alone. The members of a
        process that died are gone after a few seconds.
        """
        self._enter_thread()
        encode_topic(topic)
        return self._local.members(topic)

    def position(self, topic: str) -> Position | None:
        """Where ``topic`` stands; None without a history, and while Redis is away.

        Blocks for an answer of Redis where no session of this process is subscribed to the topic.
        """
        self._enter_thread()
        encode_topic(topic)
        return self._local.position(topic)

    def statistics(self) -> Statistics:
        """What was counted in this process up to now."""
        if os.getpid() != self._process:
            self._start_anew()
        return replace(self._local.statistics)

    def close(self) -> None:
        """Ends all subscriptions and the connections to Redis, for good; the sessions stay open.

        All that is called afterwards raises ``UsageError``, but `statistics` and this itself; so does it in another
        thread than that of the sessions. Blocks, some seconds at most, until what was published is sent.
        """
        if os.getpid() != self._process:
            self._start_anew()
        if self._closed:
            return
        self._enter_thread()
        try:
            self._home.wait(CLOSE_SECONDS)
        except TimeoutError:
            pass
        self._closed = True
        dropped = self._home.close()
        self._local.statistics.published += dropped
        self._local.statistics.unsent += dropped
        self._local.close()

    # -- Within
    # -----------------------------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Begins anew in a forked child; raises ``UsageError`` where these topics are closed."""
        if os.getpid() != self._process:
            self._start_anew()
        if self._closed:
            raise UsageError("these topics are closed")

    def _enter_thread(self) -> None:
        """The same, and raises ``UsageError`` in any thread but that of the sessions."""
        self._enter()
        self._home.check()


def _check_session(session: Any) -> None:
    if not isinstance(session, DefaultWebSocketSession):
        kind = type(session).__name__
        raise TypeError(f"session must be a default session, of a route without raw=True, not {kind}")


def _check_member(member: Any) -> None:
    """Raises ``TypeError`` or ``ValueError`` for what nobody can be called."""
    if not isinstance(member, str):
        raise TypeError(f"member must be a str or None, not {type(member).__name__}")
    size = len(encode_text("member", member))
    if size > LONGEST_MEMBER:
        raise ValueError(f"member must have at most {LONGEST_MEMBER} bytes in UTF-8, not {size}")
