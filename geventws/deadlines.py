"""How long a connection waits for its peer: for a message to arrive, and for what is sent to be taken.

Each is made when there is something to wait for; an idle connection has none. deadlines.pxd gives the types to the
compiled build.
"""

from __future__ import annotations

from collections.abc import Callable

from geventws.protocol.codec import Reader
from geventws.schedule import Entry, Schedule
from geventws.transport import Transport, monotonic

__all__ = ["MessageDeadline", "UptakeDeadline"]


class MessageDeadline:
    """Calls ``missed`` for a message that takes over ``seconds`` to arrive, those apart in which reading is paused."""

    __slots__ = ("_begun", "_entry", "_missed", "_paused_at", "_reader", "_schedule", "_seconds", "_since")

    def __init__(self, reader: Reader, schedule: Schedule, seconds: float, missed: Callable[[], None]) -> None:
        self._reader = reader
        self._schedule = schedule
        self._seconds = seconds
        self._missed = missed
        #: When the message began, as `Reader.begun` counts it.
        self._since = 0.0
        self._begun = 0
        #: When reading was paused; 0 where it is not.
        self._paused_at = 0.0
        self._entry: Entry | None = None

    def note(self) -> None:
        """Called when more has come of a message that is not whole."""
        if self._entry is None:
            self._entry = self._schedule.after(self._seconds, self._due)
        elif self._reader.begun == self._begun:
            return
        self._begun = self._reader.begun
        self._since = monotonic()

    def pause(self) -> None:
        """Called when reading stops: the peer can't go on."""
        self._paused_at = monotonic()

    def resume(self) -> None:
        """Called when reading goes on."""
        if self._paused_at:
            self._since += monotonic() - self._paused_at
            self._paused_at = 0.0

    def cancel(self) -> None:
        """Calls nothing any more."""
        self._schedule.cancel(self._entry)

    def _due(self) -> None:
        self._entry = None
        if not self._reader.within_message():
            return
        # A message that has begun since has some time left.
        left = self._seconds if self._paused_at else self._since + self._seconds - monotonic()
        if left > 0:
            self._entry = self._schedule.after(left, self._due)
        else:
            self._missed()


class UptakeDeadline:
    """Calls ``due`` in ``seconds``, by when the peer should have taken some of what is sent to it."""

    __slots__ = ("_entry", "_queued", "_schedule", "_sent", "_transport")

    def __init__(self, transport: Transport, schedule: Schedule, seconds: float, due: Callable[[], None]) -> None:
        self._transport = transport
        self._schedule = schedule
        self._sent = transport.sent
        self._queued = transport.queued()
        self._entry = schedule.after(seconds, due)

    def met(self) -> bool:
        """Whether the peer has taken any since this was made."""
        # On a slow link the kernel takes more only when much of its own buffer is gone: that counts as well.
        return self._transport.sent != self._sent or self._transport.queued() < self._queued

    def cancel(self) -> None:
        """Calls nothing any more."""
        self._schedule.cancel(self._entry)
