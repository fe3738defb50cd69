"""Topics over Redis or Valkey: what one process publishes reaches the subscribers in all.

A broker connects to nothing before it is used, and then in the process that uses it: a fork of that process starts
anew, with connections, an origin and a worker's name of its own.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

from gevent.monkey import is_module_patched

from geventws.errors import UsageError
from geventws.topics.nouns import Member, Position
from geventws.topics.redis_connections import Connector, current_process
from geventws.topics.redis_greenlets import Greenlets
from geventws.topics.redis_publishing import Synchronous
from geventws.topics.redis_subscriptions import Receiver
from geventws.topics.statistics import Statistics
from geventws.topics.wire import Names

__all__ = ["Receiver", "RedisBroker"]


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
        # Redis can't count much further than to this, which is 31,000 years.
        milliseconds = None if history_seconds is None else int(min(history_seconds, 1e12) * 1000)
        self.history_milliseconds = b"" if milliseconds is None else b"%d" % max(milliseconds, 1)
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

    @property
    def has_thread(self) -> bool:
        """Whether all is to be called in one thread, whose greenlets send and receive."""
        return is_module_patched("socket")

    def subscribe(self, topic: str) -> Position | None:
        """Listens to a topic, and gives where its history stands; None without one.

        Blocks until the server has acknowledged it. Once Redis is known to be away it gives None, and the topic is
        subscribed when Redis is back. That is known at once of one that refuses connections, and after some seconds of
        one that does not answer. A greenlet that is killed meanwhile leaves the topic subscribed.
        """
        return self._here().subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        """Listens to a topic no more. Never blocks."""
        if not self._closed:
            self._here().unsubscribe(topic)

    def publish(self, topic: str, opcode: int, payload: bytes) -> bool:
        """Sends a message to all processes; False if Redis is away.

        The caller counts it as published, the broker as ``unsent`` or ``unconfirmed`` where it came to that.

        Does not wait for Redis, but for other messages while more than 1 MiB of them wait, unless `wait_for_room` did
        so in the same turn of the hub. One of a topic with history comes back to this process with its position; if it
        can't be sent although True was returned, or perhaps was not, it comes back without one. Where False is
        returned, those before it have come back.
        """
        running = self._running
        if running is None or self._process != current_process() or self._closed:
            running = self._here()
        return running.publish(topic, opcode, payload)

    def wait_for_room(self, topic: str) -> None:
        """Blocks while more than 1 MiB of messages wait for the server of ``topic``; not in the hub."""
        running = self._running
        if running is not None and self._process == current_process():
            running.wait_for_room(topic)

    def missed(self, topic: str, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        """The messages behind ``since`` up to ``up_to``; None where not all of them can be had. Blocks.

        An offset that is left out stands for messages of some process that Redis never got.
        """
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

        Raises ``TimeoutError``, and ``ConnectionError`` when Redis is away, was lost meanwhile or has refused messages.
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
