"""Topics over Redis or Valkey: what one process publishes reaches the subscribers in all.

Nothing connects before it is used, and then in the process that uses it: a fork of that process starts anew, with
connections, an origin and a worker's name of its own.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from weakref import ref

from gevent.monkey import is_module_patched

from geventws.errors import UsageError
from geventws.topics.redis_connections import Connector, current_process
from geventws.topics.redis_greenlets import Greenlets
from geventws.topics.redis_process import Configuration, Running
from geventws.topics.redis_publishing import Synchronous
from geventws.topics.redis_subscriptions import Receiver
from geventws.topics.statistics import Statistics
from geventws.topics.wire import Names

__all__ = ["RedisBroker"]


class RedisBroker:
    """The Redis of one `Topics`: has `Running` do the work, another one in each process.

    ``receiver`` is called, in greenlets of a broker, with what other processes publish, and with all messages of
    topics for which ``history`` gives a number of messages to keep. Raises ``ValueError`` for a URL that can't be.
    """

    def __init__(
        self,
        url: str,
        names: Names,
        receiver: Receiver,
        *,
        max_message_size: int | None,
        history: Callable[[str], int],
        history_seconds: float | None,
    ) -> None:
        # Redis can't count much further than to this, which is 31,000 years.
        milliseconds = None if history_seconds is None else int(min(history_seconds, 1e12) * 1000)
        self._configuration = Configuration(
            Connector(url),
            names,
            receiver,
            max_message_size,
            history,
            b"" if milliseconds is None else b"%d" % max(milliseconds, 1),
        )
        #: What the next one that starts is to count in.
        self.statistics = Statistics()
        self._process = -1
        self._running: Running | None = None
        self._starting = threading.Lock()
        #: What a parent process had: its sockets are closed there, not here.
        self._inherited: list[Running] = []
        self._closed = False
        self._at_exit: Callable[[], None] | None = None

    @property
    def has_thread(self) -> bool:
        """Whether all is to be called in one thread, whose greenlets send and receive."""
        return is_module_patched("socket")

    @property
    def started(self) -> Running | None:
        """What runs in this process; None before the first use, and when closed."""
        return self._running if self._process == current_process() else None

    def here(self) -> Running:
        """What runs in this process, from now on at the latest; raises ``UsageError`` when closed. Never blocks."""
        running = self.started
        return self._start() if running is None else running

    def _start(self) -> Running:
        with self._starting:
            if self._closed:
                raise UsageError("these topics are closed")
            if self._running is not None and self._process != current_process():
                self._inherited.append(self._running)
                self._running = None
            if self._running is None:
                self._process = current_process()
                kind = Greenlets if is_module_patched("socket") else Synchronous
                self._running = kind(self._configuration, self.statistics)
                if self._at_exit is None:
                    self._at_exit = _close_at_exit(self)
            return self._running

    def close(self) -> None:
        """Sends what waits, for a second at most; members leave, and the connections are closed. For good."""
        self._closed = True
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        running, self._running = self._running, None
        if running is not None and self._process == current_process():
            running.close()


def _close_at_exit(broker: RedisBroker) -> Callable[[], None]:
    reference = ref(broker)

    def close() -> None:
        remaining = reference()
        if remaining is not None:
            remaining.close()

    atexit.register(close)
    return close
