"""Freed memory of large messages, which is kept for the next ones and given back when none have come for a while.

glibc would return it with each message and get it back page by page, zeroed by the kernel: with messages of 4 MiB
that is 40 % of all the time that they take.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from geventws.protocol.buffer import give_back_freed_memory, keep_freed_memory
from geventws.schedule import Entry, Schedule

__all__ = ["SpareMemory"]

#: Seconds without a large message, after which the memory is given back.
IDLE = 10.0


class SpareMemory:
    """What the connections of one hub have been using for large messages."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._entry: Entry | None = None
        self._used = 0.0

    @classmethod
    def of_hub(cls, hub: Any) -> SpareMemory:
        """The one of ``hub``."""
        spare: SpareMemory | None = hub.__dict__.get("geventws_spare_memory")
        if spare is None:
            keep_freed_memory()
            spare = hub.__dict__["geventws_spare_memory"] = cls(hub)
        return spare

    def used(self) -> None:
        """Notes that a large message has come."""
        self._used = monotonic()
        if self._entry is None:
            self._entry = Schedule.of_hub(self._hub).after(IDLE, self._due)

    def _due(self) -> None:
        self._entry = None
        left = self._used + IDLE - monotonic()
        if left > 0:
            self._entry = Schedule.of_hub(self._hub).after(left, self._due)
        else:
            give_back_freed_memory()
