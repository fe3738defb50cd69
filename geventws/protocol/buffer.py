"""Bytes on their way in or out: a growing buffer, masks (RFC 6455 5.3) and UTF-8 that is checked as it arrives.

buffer.pyx is the compiled twin of this file, under the same tests.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from os import urandom

__all__ = [
    "Buffer",
    "Utf8Validator",
    "copy_bytes",
    "give_back_freed_memory",
    "keep_freed_memory",
    "memory_of_text",
    "unmasked_bytes",
    "unmasked_text",
]

BytesLike = bytes | bytearray | memoryview


class Buffer:
    """Bytes that are appended at the end and consumed at the front."""

    __slots__ = ("_ascii", "_data")

    def __init__(self) -> None:
        self._data = bytearray()
        self._ascii = True

    def __len__(self) -> int:
        return len(self._data)

    def length(self) -> int:
        """The number of bytes held; what the compiled code calls for ``len``."""
        return len(self._data)

    def append(self, data: BytesLike) -> None:
        """Appends ``data``."""
        self._data += data
        self._ascii = self._ascii and not data

    def append_body(self, payload: bytes) -> None:
        """Appends a large payload, which need not be copied."""
        self._data += payload

    def append_shared(self, frame: bytes) -> None:
        """Appends a frame that other buffers hold too, and that need not be copied into an empty one."""
        self._data += frame

    def expect(self, count: int) -> None:
        """Makes room for ``count`` bytes to come."""

    def append_header(self, first: int, length: int) -> None:
        """Appends the header of an unmasked frame (RFC 6455 5.2) whose payload follows by other ways."""
        self._data += _header(first, length, 0)

    def append_frame(self, first: int, payload: str | BytesLike, masked: bool = False) -> None:
        """Appends one frame; ``first`` is its first byte: FIN, RSV bits and opcode. Text goes out in UTF-8."""
        data = payload.encode() if isinstance(payload, str) else memoryview(payload).cast("B")
        if masked:
            key = urandom(4)
            self._data += _header(first, len(data), 0x80) + key + _xor(data, int.from_bytes(key, "big"), 0)
        else:
            self._data += _header(first, len(data), 0)
            self._data += data

    def append_unmasked(self, data: bytearray, start: int, end: int, key: int, offset: int) -> None:
        """Appends ``data[start:end]`` unmasked; ``offset`` is the place of ``start`` in the frame's payload."""
        piece = _xor(data[start:end], key, offset)
        self._data += piece
        self._ascii = self._ascii and piece.isascii()

    def room(self) -> int:
        """Bytes that can be received behind those held without moving them; the uncompiled form always can."""
        return 1 << 62

    def unmask_last(self, count: int, key: int, offset: int) -> None:
        """Unmasks the last ``count`` bytes where they lie; ``offset`` as in `append_unmasked`."""
        start = len(self._data) - count
        piece = _xor(self._data[start:], key, offset)
        self._data[start:] = piece
        self._ascii = self._ascii and piece.isascii()

    def is_ascii(self) -> bool:
        """Whether all is known to be ASCII, of what was unmasked here since the buffer was empty."""
        return self._ascii

    def peek(self, most: int) -> bytes:
        """Some of the first bytes, at most ``most``; none only where there are none."""
        return bytes(self._data[:most])

    def consume(self, count: int) -> None:
        """Drops the first ``count`` bytes."""
        del self._data[:count]

    def take_bytes(self) -> bytes:
        """Gives all the bytes and empties the buffer."""
        taken = bytes(self._data)
        self.clear()
        return taken

    def take_text(self) -> str:
        """Gives all the bytes as text and empties the buffer; raises ``UnicodeDecodeError``."""
        taken = self._data.decode()
        self.clear()
        return taken

    def clear(self) -> None:
        """Drops everything and gives the memory back."""
        self._data.clear()
        self._ascii = True


class Utf8Validator:
    """Tells at the first impossible byte that a text is no UTF-8 (RFC 6455 8.1)."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")()

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return not self._decoder.getstate()[0]

    def check(self, buffer: Buffer, start: int) -> bool:
        """Checks what ``buffer`` holds from ``start`` on, as the text's next bytes."""
        try:
            self._decoder.decode(memoryview(buffer._data)[start:])
        except UnicodeDecodeError:
            return False
        # Python's decoder waits for the last byte of a surrogate before it refuses it.
        held = self._decoder.getstate()[0]
        return not (len(held) > 1 and held[0] == 0xED and held[1] >= 0xA0)


def keep_freed_memory() -> None:
    """Has glibc keep up to 64 MiB of freed memory for the next large messages, rather than have it zeroed each time."""


def give_back_freed_memory() -> None:
    """Gives freed memory back to the system."""


def memory_of_text(text: str) -> int:
    """The most bytes that ``text`` takes: Python stores all characters as it does the largest, beyond ASCII in four."""
    return len(text) if text.isascii() else 4 * len(text)


def copy_bytes(data: bytearray, start: int, end: int) -> bytes:
    """``data[start:end]`` as bytes."""
    return bytes(memoryview(data)[start:end])


def unmasked_bytes(data: bytearray, start: int, end: int, key: int) -> bytes:
    """``data[start:end]``, a whole payload, unmasked as bytes."""
    return _xor(data[start:end], key, 0)


def unmasked_text(data: bytearray, start: int, end: int, key: int) -> str:
    """``data[start:end]``, a whole payload, unmasked as text; raises ``UnicodeDecodeError``."""
    return _xor(data[start:end], key, 0).decode()


def _header(first: int, length: int, mask_bit: int) -> bytes:
    if length < 126:
        return bytes((first, mask_bit | length))
    if length < 65536:
        return bytes((first, mask_bit | 126)) + length.to_bytes(2, "big")
    return bytes((first, mask_bit | 127)) + length.to_bytes(8, "big")


def _xor(data: BytesLike, key: int, offset: int) -> bytes:
    # One XOR of two long integers is the fastest loop that Python has without a compiler.
    count = len(data)
    mask = key.to_bytes(4, "big")
    shift = offset & 3
    repeated = (mask[shift:] + mask[:shift]) * (count // 4 + 1)
    return (int.from_bytes(data, "little") ^ int.from_bytes(repeated[:count], "little")).to_bytes(count, "little")
