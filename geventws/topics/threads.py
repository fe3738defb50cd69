"""Threads: which of them has the sessions, and how what others publish gets to it, in one queue."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent import Timeout, get_hub, getcurrent, spawn
from gevent.event import Event
from gevent.hub import MAIN_THREAD_IDENT, Hub  # type: ignore[attr-defined]
from gevent.monkey import get_original

from geventws.errors import UsageError
from geventws.protocol.shared import SharedMessage
from geventws.transport import fork_count

if TYPE_CHECKING:
    from geventws.topics.redis_broker import RedisBroker

__all__ = ["HomeThread", "thread_identity"]

log = logging.getLogger("geventws")

#: Bytes that wait before a thread that publishes has to wait, and what a message takes beside its own.
MOST_WAITING = 1024 * 1024
MESSAGE_SIZE = 64
#: Seconds that the main thread has to answer in where nothing else tells whether it runs the sessions.
ANSWER_SECONDS = 5.0

# Of threads, also in a patched process: who waits here has no hub that could run meanwhile.
allocate_lock = get_original("_thread", "allocate_lock")
thread_identity = get_original("_thread", "get_ident")


class HomeThread:
    """The thread that has the sessions of a `Topics`, and speaks to Redis, once it is known which it is.

    Without Redis it is the one that subscribes first, and before that any may call anything. With Redis it is the first
    that calls anything and has greenlets that get their turn, or the main thread. A script that gevent has not patched,
    and which only publishes, needs none.

    What other threads publish goes to it in the order in which they do: a greenlet calls ``publish`` there, for one
    message after the other.
    """

    def __init__(self, publish: Callable[[str, SharedMessage], None], broker: RedisBroker | None) -> None:
        self._publish = publish
        self._broker = broker
        self._forks = fork_count()
        #: Its hub and its number; None and 0 while it is not known.
        self.hub: Hub | None = None
        self.thread = 0
        # Held for moments, and never while greenlets switch.
        self._lock = allocate_lock()
        #: What waits: messages, and events to be set when those before them are published.
        self._waiting: deque[tuple[str, SharedMessage] | Event] = deque()
        self._size = 0
        #: Locks that the threads wait for which have to; the first is to go on first.
        self._blocked: deque[Any] = deque()
        #: Whether the greenlet runs, or is about to.
        self._runs = False
        self._closed = False

    def begin(self) -> None:
        """Notes that it is this thread."""
        hub = get_hub()
        self.thread = thread_identity()
        self.hub = hub

    def check(self) -> None:
        """Raises ``UsageError`` in any other thread."""
        if thread_identity() == self.thread:
            return
        if self._broker is None:
            if self.hub is None:
                return
        elif not self._broker.has_thread:
            return
        elif self.hub is None and runs_greenlets():
            self.begin()
            return
        raise UsageError("this is not the thread of the sessions: of these topics it can only publish")

    def is_elsewhere(self) -> bool:
        """Whether this thread has to hand over what it publishes.

        Where Redis is to be told and the thread is not known it is looked for; raises ``UsageError`` if that fails.
        """
        if self._broker is not None:
            if not self._broker.has_thread:
                return False
            if self.hub is None:
                self._find()
        return self.hub is not None and thread_identity() != self.thread

    def _find(self) -> None:
        if runs_greenlets():
            self.begin()
            return

        def begin_there() -> None:
            if self.hub is None:
                self.begin()

        hub = main_hub()
        if hub is None or not call_in(hub, begin_there, ANSWER_SECONDS):
            raise UsageError(
                "the main thread runs no greenlets, and no thread is known to have sessions, "
                "so that nobody would send what this one publishes: call flush() once in the thread that has them"
            )

    def hand_over(self, topic: str, message: SharedMessage) -> None:
        """Has a message of another thread published. Blocks it, with all its greenlets, while more than 1 MiB waits."""
        assert self.hub is not None
        while True:
            with self._lock:
                if self._closed:
                    raise UsageError("these topics are closed")
                if self._size <= MOST_WAITING:
                    self._size += len(message.payload) + MESSAGE_SIZE
                    self._waiting.append((topic, message))
                    wakes, self._runs = not self._runs, True
                    break
                blocked = allocate_lock()
                blocked.acquire()
                self._blocked.append(blocked)
            blocked.acquire()
        if wakes:
            self.hub.loop.run_callback_threadsafe(spawn, self._run)

    def wait(self, timeout: float | None = None) -> None:
        """Blocks, in this thread, until all that was handed over is published; raises ``TimeoutError``."""
        with self._lock:
            if not self._runs:
                return
            done = Event()
            self._waiting.append(done)
        with Timeout(timeout, TimeoutError(f"what other threads publish was not sent within {timeout} s")):
            done.wait()

    def close(self) -> int:
        """Lets nothing more in, and raises ``UsageError`` in who waits; gives how many messages are dropped."""
        with self._lock:
            self._closed = True
            dropped, self._waiting = self._waiting, deque()
            self._size = 0
            self._let_on()
        for item in dropped:
            if isinstance(item, Event):
                item.set()
        return sum(not isinstance(item, Event) for item in dropped)

    def _let_on(self) -> None:
        while self._blocked:
            self._blocked.popleft().release()

    def _run(self) -> None:
        try:
            while self._go_on():
                pass
        except BaseException:
            # Whoever kills this greenlet does not know what waits.
            spawn(self._run)
            raise

    def _go_on(self) -> bool:
        if self._forks != fork_count():
            # A fork of the process, whose parent publishes what waits; and the lock may be held there for ever.
            return False
        with self._lock:
            if not self._waiting:
                self._runs = False
                return False
            item = self._waiting.popleft()
            if not isinstance(item, Event):
                self._size -= len(item[1].payload) + MESSAGE_SIZE
                if self._size <= MOST_WAITING:
                    self._let_on()
        if isinstance(item, Event):
            item.set()
            return True
        try:
            self._publish(*item)
        except Exception:
            if not self._closed:
                log.exception("a message of another thread could not be published")
        return True


def call_in(hub: Hub, call: Callable[[], None], timeout: float) -> bool:
    """Has the thread of ``hub`` make a call, and tells whether it did so within ``timeout`` seconds; blocks."""
    called = allocate_lock()
    called.acquire()

    def run() -> None:
        call()
        called.release()

    hub.loop.run_callback_threadsafe(run)
    return bool(called.acquire(timeout=timeout))


def runs_greenlets() -> bool:
    """Whether this is a thread in which greenlets have their turn: the main thread, or that of a running hub."""
    if thread_identity() == MAIN_THREAD_IDENT:
        return True
    here = getcurrent()
    return isinstance(here, Hub) or isinstance(here.parent, Hub)


def main_hub() -> Hub | None:
    """The main thread's hub, seen from another thread; None where it has none."""
    # gevent keeps a thread's hub from other threads. This is done once in a process, if at all.
    for candidate in gc.get_objects():
        if issubclass(type(candidate), Hub) and candidate.main_hub and candidate.loop is not None:
            return candidate  # type: ignore[no-any-return]
    return None
