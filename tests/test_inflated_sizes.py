"""A2 row 25: messages of every size, inflated through the Reader of the build under test to a limit of just that size.

GEVENTWS_SIZES_STEP in the environment is the step between the sizes; with 1 they are all of them up to 70,000.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest

from geventws.errors import ProtocolError
from geventws.protocol.buffer import Buffer
from geventws.protocol.codec import Reader
from geventws.protocol.deflate import PermessageDeflate
from tests.wire import BINARY, CONTINUATION, TEXT, frame

STEP = int(os.environ.get("GEVENTWS_SIZES_STEP", "53"))
LARGEST = 70_000
#: What the sizes are taken from: neither repetitive nor outside of ASCII.
CONTENT = bytes(32 + i * i % 89 for i in range(LARGEST))


def edges() -> list[int]:
    """Powers of two and their neighbours, up to where every buffer has grown several times, and the largest of all."""
    return sorted({2**k + d for k in range(21) for d in (-1, 0, 1)} | {LARGEST})


def stored(data: bytes) -> bytes:
    """``data`` as a message in blocks without compression (RFC 1951 3.2.4), without the tail that senders cut."""
    payload = b""
    for start in range(0, len(data), 65535):
        size = len(data[start : start + 65535])
        payload += b"\x00" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
        payload += data[start : start + 65535]
    return payload + b"\x00"


def deflated(data: bytes) -> bytes:
    """``data`` as a message of matches, as far as it repeats itself."""
    compressor = zlib.compressobj(1, wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def wires(opcode: int, payload: bytes) -> Iterator[bytes]:
    """A compressed message in one frame and in two."""
    yield frame(opcode, payload, rsv=4, key=None)
    half = len(payload) // 2
    first = frame(opcode, payload[:half], rsv=4, fin=False, key=None)
    yield first + frame(CONTINUATION, payload[half:], key=None)


def inflate(wire: bytes, limit: int) -> str | bytes:
    """The message that a Reader makes of ``wire``; it is fed with a cut within."""
    accepted = PermessageDeflate().accept({"client_max_window_bits": "15"})
    assert accepted is not None
    reader = Reader(Buffer(), True, False, limit, 0, 0, [accepted[1]], 4)
    for piece in (wire[: len(wire) // 3], wire[len(wire) // 3 :]):
        data = bytearray(piece)
        reader.feed(data, 0, len(data))
    assert reader.waiting == 1
    message: str | bytes = reader.pop()
    return message


def check(size: int) -> None:
    """Text in blocks without compression, zeros in matches: each within a limit of its size."""
    text = CONTENT[:size] if size <= LARGEST else (CONTENT * (size // LARGEST + 1))[:size]
    for wire in wires(TEXT, stored(text)):
        assert inflate(wire, size or 1) == text.decode()
    for wire in wires(BINARY, deflated(bytes(size))):
        assert inflate(wire, size or 1) == bytes(size)
        if size > 1:
            with pytest.raises(ProtocolError) as refused:
                inflate(wire, size - 1)
            assert refused.value.code == 1009


def test_sizes_around_powers_of_two() -> None:
    for size in edges():
        check(size)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("start", range(0, LARGEST, 10_000))
def test_sizes_in_steps(start: int) -> None:
    for size in range(start, start + 10_000, STEP):
        check(size)
