"""Frames as bytes, made here and not by the code under test, and the ways to feed them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

KEY = b"\x37\xfa\x21\x3d"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    length: bytes | None = None,
) -> bytes:
    """A frame as a client sends it;

    ``key`` None leaves it unmasked, ``length`` puts other bytes in the place of the length.
    """
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0 if key is None else 0x80
    if length is not None:
        head = bytes((first, mask_bit | length[0])) + length[1:]
    elif len(payload) < 126:
        head = bytes((first, mask_bit | len(payload)))
    elif len(payload) < 65536:
        head = bytes((first, mask_bit | 126)) + len(payload).to_bytes(2, "big")
    else:
        head = bytes((first, mask_bit | 127)) + len(payload).to_bytes(8, "big")
    if key is None:
        return head + payload
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def close_frame(code: int | None = 1000, reason: bytes = b"", **options: object) -> bytes:
    """A Close frame as a client sends it."""
    payload = b"" if code is None else code.to_bytes(2, "big") + reason
    return frame(CLOSE, payload, **options)  # type: ignore[arg-type]


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """What a server sent, as (first byte, payload); asserts that all of it is whole, unmasked, minimal frames."""
    frames = []
    position = 0
    while position < len(data):
        first, second = data[position], data[position + 1]
        assert not second & 0x80, "a server masked a frame"
        position += 2
        length = second
        if second == 126:
            length = int.from_bytes(data[position : position + 2], "big")
            assert length >= 126
            position += 2
        elif second == 127:
            length = int.from_bytes(data[position : position + 8], "big")
            assert length >= 65536
            position += 8
        assert position + length <= len(data), "a server sent half a frame"
        frames.append((first, data[position : position + length]))
        position += length
    return frames


def splits(data: bytes, seed: int = 6455) -> Iterator[tuple[str, list[bytes]]]:
    """``data`` whole, byte by byte and in random pieces, each way with its name."""
    yield "whole", [data]
    if len(data) <= 4096:
        yield "byte by byte", [data[i : i + 1] for i in range(len(data))]
    random_source = random.Random(seed)
    for number in range(4):
        count = min(len(data) - 1, random_source.randint(1, 8))
        if count < 1:
            return
        cuts = [0, *sorted(random_source.sample(range(1, len(data)), count)), len(data)]
        yield f"random pieces {number}", [data[a:b] for a, b in pairwise(cuts)]
