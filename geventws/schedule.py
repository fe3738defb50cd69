"""What is due when: one greenlet a hub works off the deadlines of all its sessions.

A sleeping greenlet a connection would cost 4 KB and a timer 300 bytes; an entry here costs about 150. The calls run
in that greenlet and not in the hub, so they may log; but none may block, for all others wait behind it.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from itertools import count
from time import monotonic

from gevent import Greenlet, get_hub, sleep
from gevent.event import Event
from gevent.hub import Hub

__all__ = ["Entry", "Schedule"]

log = logging.getLogger("geventws")

#: Seconds of work at a stretch before other greenlets get their turn.
SLICE = 0.005


class Entry:
    """One call, at one time."""

    __slots__ = ("call", "number", "when")

    def __init__(self, when: float, number: int, call: Callable[[], None] | None) -> None:
        self.when = when
        self.number = number
        self.call = call

    def __lt__(self, other: Entry) -> bool:
        return (self.when, self.number) < (other.when, other.number)


class Schedule:
    """The deadlines of one hub."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._numbers = count()
        self._earlier = Event()
        self._greenlet: Greenlet[[], None] | None = None
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
        entry = Entry(monotonic() + seconds, next(self._numbers), call)
        heapq.heappush(self._entries, entry)
        if self._greenlet is None:
            self._greenlet = Greenlet.spawn(self._run)
        elif self._entries[0] is entry:
            self._earlier.set()
        return entry

    def cancel(self, entry: Entry | None) -> None:
        """Takes a call back; None and calls already made are passed over."""
        if entry is None or entry.call is None:
            return
        entry.call = None
        self._cancelled += 1
        # Short sessions would otherwise leave their entries behind until they are due.
        if self._cancelled > 100 and self._cancelled > len(self._entries) // 2:
            self._entries[:] = [entry for entry in self._entries if entry.call is not None]
            heapq.heapify(self._entries)
            self._cancelled = 0

    def _run(self) -> None:
        entries = self._entries
        slice_ends = monotonic() + SLICE
        try:
            while entries:
                if entries[0].call is None:
                    heapq.heappop(entries)
                    self._cancelled -= 1
                    continue
                now = monotonic()
                wait = entries[0].when - now
                if wait > 0:
                    self._earlier.clear()
                    self._earlier.wait(wait)
                    slice_ends = monotonic() + SLICE
                    continue
                entry = heapq.heappop(entries)
                call, entry.call = entry.call, None
                try:
                    if call is not None:
                        call()
                except Exception:
                    log.exception("a scheduled call failed")
                if now > slice_ends:
                    sleep(0)
                    slice_ends = monotonic() + SLICE
        finally:
            self._greenlet = None
