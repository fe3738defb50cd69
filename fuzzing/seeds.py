"""Writes the first corpus: the cases of tests/wire.py and of the RFCs, as the fuzzers read their inputs.

python fuzzing/seeds.py DIRECTORY
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame


def deflated(data: bytes, end: bool = False) -> bytes:
    """A message of permessage-deflate; with ``end`` its DEFLATE stream ends."""
    compressor = zlib.compressobj(wbits=-15)
    payload = compressor.compress(data)
    return payload + compressor.flush() if end else (payload + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def record(first: int, payload: bytes) -> bytes:
    """One record as inputs.py reads it."""
    if len(payload) < 255:
        return bytes((first, len(payload))) + payload
    return bytes((first, 255, len(payload) // 256 - 1)) + payload[: len(payload) // 256 * 256]


TEXTS = ["Hello", "κόσμε", "\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff", "é" * 60, "€" * 300]
BAD_TEXTS = "80 c0 c080 e08080 eda080 f0808080 f4908080 f5 c328 e228a1 e28228 f09028bc cebae1bdb9cf83cebcceb5eda0806564"


def wires(key: bytes | None) -> Iterator[bytes]:
    """Frames right and wrong, as in the tests of RFC 6455."""
    for size in (0, 1, 5, 125, 126, 127, 1000):
        yield frame(BINARY, bytes(i * 131 % 251 for i in range(size)), key=key)
    for text in TEXTS:
        data = text.encode()
        yield frame(TEXT, data, key=key)
        third = len(data) // 3
        yield frame(TEXT, data[:third], fin=False, key=key) + frame(CONTINUATION, data[third:], key=key)
    for bad in BAD_TEXTS.split():
        yield frame(TEXT, b"fine " + bytes.fromhex(bad) + b" fine", key=key)
        yield frame(TEXT, bytes.fromhex(bad), fin=False, key=key)
    for opcode in range(16):
        yield frame(opcode, b"x", key=key)
        yield frame(opcode, b"x", rsv=4, key=key) + frame(CONTINUATION, b"y", rsv=2, key=key)
    for length in (b"\x7e\x00\x05", b"\x7f" + (5).to_bytes(8, "big"), b"\x7f" + (70_000).to_bytes(8, "big")):
        yield frame(BINARY, b"xxxxx", length=length, key=key)
    for size in (2**63, 2**64 - 1, 2**63 - 1, 2**32):
        yield frame(BINARY, b"x", length=b"\x7f" + size.to_bytes(8, "big"), key=key)
        yield frame(BINARY, b"x", fin=False, key=key) + frame(
            CONTINUATION, b"x", length=b"\x7f" + size.to_bytes(8, "big"), key=key
        )
    for code in (None, 999, 1000, 1005, 1015, 3000, 5000):
        yield close_frame(code, b"" if code is None else b"bye", key=key) + frame(TEXT, b"after", key=key)
    yield frame(CLOSE, b"\x03", key=key)
    yield frame(CLOSE, b"\x03\xe8\xff", key=key)
    for opcode in (PING, PONG, CLOSE):
        yield frame(opcode, b"", fin=False, key=key)
        yield frame(opcode, b"\x03\xe8" + b"x" * 124, key=key)
    control = frame(PING, b"?", key=key) + frame(PONG, b"!", key=key)
    yield frame(BINARY, b"ab", fin=False, key=key) + control + frame(CONTINUATION, b"cd", key=key)
    yield frame(TEXT, b"one", key=key) + frame(PING, b"p", key=key) + frame(BINARY, b"two", key=key) + frame(3, key=key)
    yield frame(BINARY, b"x" * 100, key=key) * 6
    yield frame(BINARY, b"x", fin=False, key=key) + frame(CONTINUATION, b"x", fin=False, key=key) * 12
    for data in (b"Hello", b"a" * 3000, b""):
        payload = deflated(data)
        yield frame(TEXT, payload, rsv=4, key=key) * 2
        yield frame(TEXT, payload[:3], rsv=4, fin=False, key=key) + frame(CONTINUATION, payload[3:], key=key)
    yield frame(BINARY, b"drawkcab", rsv=2, key=key)


def frames_seeds() -> Iterator[bytes]:
    """Decisions of fuzz_frames.py: flags, stop, limit, fragments, read limit, extensions, four cuts."""
    for key, flags in product((b"\0\0\0\0", b"\x37\xfa\x21\x3d", None), (0, 2)):
        for number, wire in enumerate(wires(key)):
            flags_here = flags | (1 if key is None else 0) | (4 if number % 3 == 0 else 0)
            for extension in (0, 1 + number % 5):
                decided = (flags_here, 0, number % 8, number % 6, number % 5, extension, 0, 2, 5, number % 256)
                yield bytes(decided) + wire
    for flags in (8, 9, 10, 11):
        for number, payload in enumerate((b"Hello", "κόσμε".encode(), b"\xff", deflated(b"Hello"), b"\x03\xe8bye")):
            scripted = b"".join(record(first, payload) for first in (0x01, 0x89, 0x80, 0x82, 0xC1, 0x88))
            for extension in range(6):
                yield bytes((flags, 0, number, number, number, extension, 0, 2, 5, 1)) + scripted


OFFERS = (
    "",
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; client_max_window_bits=8; server_max_window_bits=9",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    'permessage-deflate; server_max_window_bits="10", permessage-deflate',
    "permessage-deflate; server_max_window_bits=8, x-webkit-deflate-frame; a=b",
    "permessage-deflate; server_max_window_bits=16; client_max_window_bits=07",
    "permessage-deflate; client_max_window_bits; client_max_window_bits",
    ' , foo; bar = "a\\b" ;baz,,permessage-deflate ;unknown=1',
    "permessage-deflate;;",
    'permessage-deflate; client_max_window_bits="15',
)


def deflate_seeds() -> Iterator[bytes]:
    """Decisions of fuzz_deflate.py: flags, three of the server's options, limit, edge, two unused, four cuts."""
    compressible = b"the window, the window, the window " * 8
    contents = [b"Hello", compressible, bytes(range(256)), b"", b"\x00" * 4000]
    payloads = [
        *map(deflated, contents),
        deflated(b"Hello", end=True),
        deflated(b"Hello", end=True) + deflated(b"again", end=True) + b"\x00",
        bytes.fromhex("f200110000"),
        bytes.fromhex("000500faff48656c6c6f00"),
        b"\x00\x00\x00\xff\xff" * 8,
        b"\x06",
        b"",
    ]
    for number, offer in enumerate(OFFERS):
        for flags in (0, 1, 2):
            for one, payload in enumerate(payloads if flags != 1 else contents):
                decided = (flags, number % 8, 1 + number * 9 % 64, 7 + one, one % 11, number % 4, 0, 0, 1, 7, 30, 200)
                firsts = (2, 3, 1, 2) if flags != 1 else (0x20, 0x41, 0xF0)
                yield bytes(decided) + offer.encode() + b"\n" + b"".join(record(first, payload) for first in firsts)


HANDSHAKE = (
    "GET /chat?room=1 HTTP/1.1\r\nHost: example.com:8000\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
REQUESTS = (
    HANDSHAKE,
    HANDSHAKE + "Origin: http://example.com:8000\r\nSec-WebSocket-Protocol: chat, superchat\r\n",
    HANDSHAKE + "Origin: null\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: v2.chat\r\n",
    *(f"{HANDSHAKE}Sec-WebSocket-Extensions: {offer}\r\n" for offer in OFFERS),
    HANDSHAKE.replace("13", "8, 13"),
    HANDSHAKE.replace("1.1", "1.0"),
    HANDSHAKE.replace("GET", "POST") + "Content-Length: 5\r\n",
    HANDSHAKE + "Transfer-Encoding: chunked\r\n",
    HANDSHAKE + "Transfer-Encoding: gzip\r\nContent-Length: 0\r\n",
    "GET http://example.com/a%20b HTTP/1.1\r\nHost: x\r\nCookie: a=1\r\nCookie: b=2\r\nX_Y: 1\r\n",
    "GET http://[::1]:80?q HTTP/1.0\r\nConnection: keep-alive\r\n",
    "OPTIONS * HTTP/1.1\r\nHost:\r\n",
    "GET / HTTP/2.0\r\nHost: x\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n",
    "GET / HTTP/1.1\nHost: x\n",
    "GET / HTTP/1.1\r\nHost : x\r\n",
    "GET /\x00 HTTP/1.1\r\nHost: x\rX: y\r\n",
    "GET /" + "a" * 190 + " HTTP/1.1\r\nHost: x\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n" + "".join(f"X-{i}: {'b' * 60}\r\n" for i in range(13)),
)


def http_seeds() -> Iterator[bytes]:
    """Decisions of fuzz_http.py: the limits, the origins, four cuts."""
    for number, request in enumerate(REQUESTS):
        wire = (request + "\r\n").encode("latin-1")
        for flags, behind in ((0, b""), (1, b""), (0, b"\r\n" + wire)):
            yield bytes((flags, number % 4, 0, 3, 17, 90)) + wire + behind
        for flags in range(0x04, 0x100, 8):
            yield bytes((flags, number % 4, 200, 3, 17, 90)) + request.encode("latin-1").removesuffix(b"\r\n")


def buffers_seeds() -> Iterator[bytes]:
    """fuzz_buffers.py: a kind, and records of what to do."""
    texts = [text.encode()[:200] for text in TEXTS]
    for kind in range(3):
        for text in texts:
            for times in (0, 8, 16, 24):
                what = (*range(8), 1, 4)
                yield bytes((kind,)) + b"".join(record(one | times | text[0] & 0x60, text) for one in what)


def main(directory: Path) -> None:
    """Writes all of them, each under its digest as libFuzzer names its files."""
    makers = {"frames": frames_seeds, "deflate": deflate_seeds, "http": http_seeds, "buffers": buffers_seeds}
    for target, make in makers.items():
        place = directory / target
        place.mkdir(parents=True, exist_ok=True)
        for seed in make():
            (place / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
        print(f"{target}: {len(list(place.iterdir()))} files")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
