"""Threads: which of them has the sessions, and how what others publish gets to it, in one queue."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import Timeout, getcurrent, spawn
from gevent.event import Event
from gevent.hub import MAIN_THREAD_IDENT, Hub  # type: ignore[attr-defined]
from gevent.monkey import get_original

from geventws.errors import UsageError
from geventws.protocol.shared import SharedMessage

__all__ = ["Outside", "call_in", "main_hub", "runs_greenlets", "thread_identity"]

log = logging.getLogger("geventws")

#: Bytes that wait before a thread that publishes has to wait, and what a message takes beside its own.
MOST_WAITING = 1024 * 1024
MESSAGE_SIZE = 64

# Of threads, also in a patched process: who waits here has no hub that could run meanwhile.
allocate_lock = get_original("_thread", "allocate_lock")
thread_identity = get_original("_thread", "get_ident")


class Outside:
    """What other threads publish, in the order in which they do, on its way to the thread of ``hub``.

    There a greenlet calls ``publish`` for one message after the other.
    """

    def __init__(self, hub: Hub, publish: Callable[[str, SharedMessage], None]) -> None:
        self._hub = hub
        self._publish = publish
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

    def publish(self, topic: str, message: SharedMessage) -> None:
        """Hands a message over. Blocks this thread, with all its greenlets, while more than 1 MiB waits."""
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
            self._hub.loop.run_callback_threadsafe(spawn, self._run)

    def wait(self, timeout: float | None = None) -> None:
        """Blocks, in the thread of the hub, until all that waits now is published; raises ``TimeoutError``."""
        with self._lock:
            if not self._runs:
                return
            done = Event()
            self._waiting.append(done)
        with Timeout(timeout, TimeoutError("flush")):
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
