"""Ends what blocks the main thread, where a test waits for another greenlet that can't get its turn.

A wait of a test has a timer in the hub. When a handler calls what blocks the thread, as ``time.sleep`` does in a
process that is not monkey-patched, the hub and its timers stand still too, and the test would hang. So a thread of the
system watches the waits, and signals the main thread: the exception then comes out of the very call that blocks.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

import gevent
from gevent.monkey import get_original

from geventws.errors import UsageError

__all__ = ["Interrupter"]

#: Sent to the main thread alone, and used by hardly anybody: the alarm is pytest-timeout's.
SIGNAL = signal.SIGVTALRM
#: Seconds that the hub's own timer has to end a wait, before the thread is taken to be blocked.
GRACE = 1.0
#: Seconds between two looks.
INTERVAL = 0.25

#: Modules of debuggers, whose prompts may block for as long as they like.
_DEBUGGERS = ("pdb", "bdb", "pydevd", "IPython", "ipdb", "pudb")

# Of threads also where gevent has put greenlets in their place.
_start_thread = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")
_thread_id = get_original("_thread", "get_ident")


class Interrupter:
    """Watches the waits of one greenlet of the main thread; in another thread it does nothing."""

    _signalled: Interrupter | None = None

    def __init__(self) -> None:
        self._thread = _thread_id()
        self._waiter = gevent.getcurrent()
        self._since = 0.0
        self._deadline: float | None = None
        #: What it has raised, which whoever is around the call that blocked may have caught.
        self.raised: UsageError | None = None
        self._over = _allocate_lock()
        self._over.acquire()
        if self._thread == threading.main_thread().ident:
            signal.signal(SIGNAL, _interrupt)
            _start_thread(self._watch, ())

    def stop(self) -> None:
        """Ends the watch; once more is no harm."""
        if self._over.locked():
            self._over.release()

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """A wait that a timer of the hub's ends after ``seconds``."""
        self._since = monotonic()
        self._deadline = self._since + seconds + GRACE
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        while not self._over.acquire(True, INTERVAL):
            deadline = self._deadline
            if deadline is not None and monotonic() > deadline:
                Interrupter._signalled = self
                signal.pthread_kill(self._thread, SIGNAL)

    def interrupt(self, frame: FrameType | None) -> None:
        """Called in the main thread; raises where it is blocked."""
        current = gevent.getcurrent()
        if self._deadline is None or current is self._waiter or current is gevent.get_hub():
            return
        where = frame
        while where is not None:
            if where.f_globals.get("__name__", "").partition(".")[0] in _DEBUGGERS:
                self._deadline = None
                return
            where = where.f_back
        seconds, self._deadline = monotonic() - self._since, None
        self.raised = UsageError(
            f"this blocked the thread for {seconds:.1f} s, and with it the test, which waits for this handler. Have "
            "`from gevent import monkey; monkey.patch_all()` first, at the top of conftest.py, or use gevent's own"
        )
        raise self.raised


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of the signal."""
    signalled, Interrupter._signalled = Interrupter._signalled, None
    if signalled is not None:
        signalled.interrupt(frame)
