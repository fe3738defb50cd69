"""The last messages of a topic, kept in this process."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from secrets import randbelow
from typing import Any

from geventws.arguments import shown
from geventws.topics.nouns import Position
from geventws.transport import monotonic

__all__ = ["History", "HistorySizes"]

_last_epoch = 0


class History:
    """The last ``size`` messages, as (opcode, payload), and the position of the newest."""

    def __init__(self, size: int) -> None:
        self._messages: deque[tuple[int, bytes]] = deque(maxlen=size)
        self.position = Position(new_epoch(), 0)
        #: When the newest came, on the monotonic clock.
        self.appended = monotonic()

    def append(self, opcode: int, payload: bytes) -> Position:
        """Adds a message, in place of the oldest where it is full; gives its position."""
        self._messages.append((opcode, payload))
        self.position = Position(self.position.epoch, self.position.offset + 1)
        self.appended = monotonic()
        return self.position

    def missed(self, since: Position, up_to: Position) -> list[tuple[Position, int, bytes]] | None:
        """The messages behind ``since``, up to ``up_to``; None where not all of them are there any more."""
        oldest = self.position.offset - len(self._messages)
        if since.epoch != self.position.epoch or up_to.epoch != since.epoch or since.offset < oldest:
            return None
        messages = list(self._messages)[since.offset - oldest : up_to.offset - oldest]
        return [
            (Position(since.epoch, offset), opcode, payload)
            for offset, (opcode, payload) in enumerate(messages, since.offset + 1)
        ]


def new_epoch() -> int:
    """What tells a history from all others, of other topics, from before, and of other processes."""
    global _last_epoch
    # The clock may stand still, or go back; and two processes may begin one at a time.
    _last_epoch = max(time.time_ns() // 1000 * 1000 + randbelow(1000), _last_epoch + 1)
    return _last_epoch


class HistorySizes:
    """How many messages are kept of which topic: of all as many, or by name, or by a prefix that ends in ``*``.

    A name counts before a prefix, and a longer prefix before a shorter. Raises ``ValueError`` that names ``history``.
    """

    def __init__(self, history: int | Mapping[str, int]) -> None:
        self._names: dict[str, int] = {}
        self._prefixes: list[tuple[str, int]] = []
        if isinstance(history, Mapping):
            for name, size in history.items():
                if not isinstance(name, str) or not name:
                    raise ValueError(f'history has {shown(name)}: its keys must be topics, or prefixes as in "room/*"')
                _check_size(size)
                if name.endswith("*"):
                    self._prefixes.append((name[:-1], size))
                else:
                    self._names[name] = size
        else:
            _check_size(history)
            self._prefixes.append(("", history))
        self._prefixes.sort(key=lambda prefix: len(prefix[0]), reverse=True)

    def of(self, topic: str) -> int:
        """The messages kept of ``topic``."""
        size = self._names.get(topic)
        if size is None:
            size = next((size for prefix, size in self._prefixes if topic.startswith(prefix)), 0)
        return size


def _check_size(size: Any) -> None:
    # A deque is what keeps them, which can't be asked to keep more.
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= sys.maxsize:
        raise ValueError(
            f"history must be a whole number of messages, 0 for none, or a mapping of topics to such, not {shown(size)}"
        )
