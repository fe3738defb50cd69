"""What is due when: one greenlet a hub works off the deadlines of all its sessions.

A sleeping greenlet a connection would cost 4 KB and a timer 300 bytes; an entry here costs about 130. The calls run
in that greenlet and not in the hub, so they may log; but none may block, for all others wait behind it. schedule.pxd
gives the types to the compiled build.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from gevent import Greenlet, get_hub, sleep
from gevent.event import Event
from gevent.hub import Hub

from geventws.transport import monotonic

__all__ = ["Entry", "Schedule"]

log = logging.getLogger("geventws")

#: Seconds of work at a stretch before other greenlets get their turn.
SLICE = 0.005


class Entry:
    """One call, at one time."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        #: None once it is made or cancelled.
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Entry) -> bool:
        return _is_earlier(self, other)


def _is_earlier(entry: Entry, other: Entry) -> bool:
    return entry.when < other.when


class Schedule:
    """The deadlines of one hub."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._earlier = Event()
        self._greenlet: Greenlet[[], None] | None = None
        #: Until when the greenlet sleeps; 0 while it is awake or about to be.
        self._wakes_at = 0.0
        self._cancelled = 0

    @classmethod
    def of_hub(cls, hub: Hub | None = None) -> Schedule:
        """The schedule of ``hub``, the current thread's by default."""
        hub = hub or get_hub()
        schedule: Schedule | None = hub.__dict__.get("geventws_schedule")
        if schedule is None:
            schedule = hub.__dict__["geventws_schedule"] = cls()
        return schedule

    def after(self, seconds: float, call: Callable[[], None]) -> Entry:
        """Calls ``call`` in ``seconds``, on the monotonic clock."""
        when = monotonic() + seconds
        entry = Entry(when, call)
        heappush(self._entries, entry)
        if self._greenlet is None:
            self._greenlet = Greenlet.spawn(self._run)
        elif when < self._wakes_at:
            self._wakes_at = 0.0
            self._earlier.set()
        return entry

    def cancel(self, entry: Entry | None) -> None:
        """Takes a call back; None and calls already made are passed over."""
        if entry is None or entry.call is None:
            return
        entry.call = None
        self._cancelled += 1
        if self._cancelled == len(self._entries):
            # Nothing is left to wait for, and libuv's loop could not be destroyed while a timer runs.
            self._entries.clear()
            self._cancelled = 0
            if self._wakes_at:
                self._wakes_at = 0.0
                self._earlier.set()
        # Short sessions would otherwise leave their entries behind until they are due.
        elif self._cancelled > 100 and self._cancelled > len(self._entries) // 2:
            self._entries[:] = [entry for entry in self._entries if entry.call is not None]
            heapify(self._entries)
            self._cancelled = 0

    def log_exception(self, told: str) -> None:
        """Logs the current exception, as what is ``told``, when the greenlet has its turn: to log may block."""
        fault = sys.exc_info()
        self.after(0, lambda: log.error(told, exc_info=fault))

    def _run(self) -> None:
        entries = self._entries
        slice_ends = monotonic() + SLICE
        try:
            while entries:
                now = monotonic()
                first = entries[0]
                if first.when > now:
                    # Also for one that is cancelled: to wake for what comes behind it takes no more than that.
                    self._wakes_at = first.when
                    self._earlier.clear()
                    self._earlier.wait(first.when - now)
                    self._wakes_at = 0.0
                    slice_ends = monotonic() + SLICE
                    continue
                heappop(entries)
                call, first.call = first.call, None
                if call is None:
                    self._cancelled -= 1
                else:
                    try:
                        call()
                    except Exception:
                        log.exception("a scheduled call failed")
                if now > slice_ends:
                    sleep(0)
                    slice_ends = monotonic() + SLICE
        finally:
            self._greenlet = None
            self._wakes_at = 0.0
