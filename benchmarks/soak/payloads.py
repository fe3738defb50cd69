"""What goes over the wire in the soak: messages of mixed sizes, and the ones that both sides can make on their own."""

from __future__ import annotations

import random

__all__ = ["LARGEST", "Payloads", "pushed"]

#: The default limit of a message, which must still be echoed.
LARGEST = 1024 * 1024

_PATTERN = random.Random(6455).randbytes(2 * LARGEST)
_TEXT = "".join(random.Random(7692).choices('etaoin shrdlu,.0123456789{}:"äöüßñ€漢字語😀🜁', k=LARGEST))


def pushed(number: int, size: int) -> bytes:
    """The message of this number that the server's push route sends."""
    start = number * 7919 % LARGEST
    return _PATTERN[start : start + size]


class Payloads:
    """Messages at random. Most are small, as in life; each thousand has some of the largest size."""

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def size(self) -> int:
        """A size from 0 to LARGEST."""
        draw = self._random.random()
        if draw < 0.02:
            return 0
        if draw < 0.8:
            return int(16 * 1024 ** self._random.random())
        if draw < 0.98:
            return int(128 * 1024 ** self._random.random())
        if draw < 0.998:
            return int(LARGEST ** self._random.random())
        return LARGEST

    def message(self, size: int | None = None) -> tuple[bytes, bool]:
        """A message, and whether it is text."""
        size = self.size() if size is None else size
        if self._random.random() < 0.5:
            start = self._random.randrange(LARGEST)
            return _PATTERN[start : start + size], False
        # In characters of one to four bytes, so the whole is cut back to a whole character.
        start = self._random.randrange(LARGEST - size // 4) if size < LARGEST else 0
        return _TEXT[start : start + size].encode()[:size].decode(errors="ignore").encode(), True
