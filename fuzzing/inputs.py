"""How a fuzzer's bytes are read: decisions first, each a byte at a fixed place, and what is parsed behind them.

Fixed places keep a mutation of one from moving all the others. Reading past the end gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tests.wire import KEY, frame

T = TypeVar("T")

#: Decisions about how an input is cut into pieces.
CUTS = 4


class Decisions:
    """The first ``count`` bytes of an input, taken one by one; ``rest`` is what follows them."""

    def __init__(self, data: bytes, count: int) -> None:
        self._bytes = data[:count].ljust(count, b"\0")
        self._next = 0
        self.rest = data[count:]

    def byte(self) -> int:
        """The next byte."""
        self._next += 1
        return self._bytes[self._next - 1]

    def choice(self, choices: Sequence[T]) -> T:
        """One of ``choices``, by the next byte."""
        return choices[self.byte() % len(choices)]

    def cuts(self) -> bytes:
        """What `pieces` goes by."""
        return bytes(self.byte() for _ in range(CUTS))


def pieces(data: bytes, cuts: bytes, most: int = 100) -> list[bytes]:
    """``data`` in pieces of 1 to 200 bytes or up to 3600, in turn as ``cuts`` say; the last of ``most`` is the rest."""
    result = []
    start = 0
    while start < len(data):
        cut = cuts[len(result) % len(cuts)]
        stop = start + (cut + 1 if cut < 200 else (cut - 199) * 64)
        if len(result) == most - 1:
            stop = len(data)
        result.append(data[start:stop])
        start = stop
    return result


def ways(data: bytes, cuts: bytes) -> list[list[bytes]]:
    """``data`` whole, in pieces, and, where it is short, byte by byte."""
    result = [[data], pieces(data, cuts)]
    if len(data) <= 80:
        result.append([data[i : i + 1] for i in range(len(data))])
    return result


def client_frame(opcode: int, payload: bytes, fin: bool, rsv: int) -> bytes:
    """A frame as `tests.wire.frame` makes it, masked faster."""
    plain = frame(opcode, payload, fin=fin, rsv=rsv, key=None)
    size = len(payload)
    head = bytearray(plain[: len(plain) - size])
    head[1] |= 0x80
    mask = (KEY * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return bytes(head) + KEY + masked.to_bytes(size, "big")


def records(data: bytes, most: int = 64) -> list[tuple[int, bytes]]:
    """(a byte, a payload) again and again, the length of the payload between them; 255 means 256 times one more byte.

    Bytes that are put in or left out shift nothing but a payload, so that mutations keep the frames behind them whole.
    """
    result = []
    position = 0
    while position + 1 < len(data) and len(result) < most:
        first, length = data[position], data[position + 1]
        position += 2
        if length == 255 and position < len(data):
            length = 256 * (data[position] + 1)
            position += 1
        result.append((first, data[position : position + length]))
        position += length
    return result
