"""A WebSocket client for gevent that trusts nobody: its own frames, every byte of the server's checked.

It is made for faults, so the pieces are open: the socket, the bytes of a frame, and an end at any point.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import zlib
from contextlib import suppress
from typing import Any

from gevent import socket

__all__ = ["BINARY", "CLOSE", "CONTINUATION", "PING", "PONG", "TEXT", "Client", "Closed", "Lost", "Wrong", "frame"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FLUSH = b"\x00\x00\xff\xff"


class Lost(Exception):
    """The connection ended without a Close frame."""


class Wrong(Exception):
    """The server sent what it must not."""


class Closed(Exception):
    """The server sent a Close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code


def frame(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A frame as a client sends it."""
    size = len(payload)
    bit = 0x80 if mask else 0
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    pad = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")


class Client:
    """A connection. The constructor connects, `open` shakes hands."""

    def __init__(self, address: tuple[str, int], timeout: float = 30.0, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        self._buffer = bytearray()
        self._inflate: Any = None
        self._deflate: Any = None
        #: Whether this side has sent a Close frame.
        self.closing = False
        #: The process that serves the connection, by what the server says; 0 before the 101.
        self.worker = 0
        #: Pings that were answered.
        self.pings = 0
        try:
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.connect(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            self.socket.close()
            raise Lost(f"connect: {error}") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # -- The handshake

    def open(self, path: str, deflate: bool = False) -> Client:
        """Shakes hands; raises ``Wrong`` where the answer is not a sound 101."""
        key = base64.b64encode(os.urandom(16))
        fields = [f"GET {path} HTTP/1.1", "Host: soak", "Upgrade: websocket", "Connection: Upgrade"]
        fields += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key.decode()}"]
        if deflate:
            fields.append("Sec-WebSocket-Extensions: permessage-deflate")
        self.send("\r\n".join([*fields, "", ""]).encode())
        status, head = self.response()
        if status != 101:
            raise Wrong(f"status {status}", status)
        if head.get("sec-websocket-accept") != base64.b64encode(hashlib.sha1(key + _MAGIC).digest()).decode():
            raise Wrong("the wrong Sec-WebSocket-Accept")
        self.worker = int(head.get("x-worker", 0))
        if deflate:
            if not head.get("sec-websocket-extensions", "").startswith("permessage-deflate"):
                raise Wrong("permessage-deflate was declined")
            self._inflate = zlib.decompressobj(-15)
            self._deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
        return self

    def response(self) -> tuple[int, dict[str, str]]:
        """The head of a response: its status, and its fields with their names in lower case."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._fill()
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        if not first.startswith("HTTP/1.1 "):
            raise Wrong(f"no response: {first[:80]!r}")
        return int(first.split()[1]), {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }

    # -- Sending

    def send(self, data: bytes) -> None:
        """Sends bytes; raises ``Lost``, or ``Closed`` where the server's Close frame tells why."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            with suppress(Lost, Wrong):
                while True:
                    self.receive(answer=False)
            raise Lost(f"send: {error}") from None

    def encode(self, message: bytes, text: bool, fragments: int = 1) -> bytes:
        """A message as frames."""
        opcode, rsv = TEXT if text else BINARY, 0
        if self._deflate is not None:
            message = (self._deflate.compress(message) + self._deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_FLUSH)
            rsv = 4
        if fragments == 1:
            return frame(opcode, message, rsv=rsv)
        step = len(message) // fragments + 1
        pieces = [message[start : start + step] for start in range(0, step * fragments, step)]
        frames = [frame(opcode, pieces[0], fin=False, rsv=rsv)]
        frames += [frame(CONTINUATION, piece, fin=False) for piece in pieces[1:-1]]
        return b"".join([*frames, frame(CONTINUATION, pieces[-1])])

    # -- Receiving

    def receive(self, answer: bool = True) -> tuple[bytes, bool]:
        """The next message, and whether it is text; answers pings. Raises ``Closed``, ``Lost`` and ``Wrong``."""
        kind, compressed, parts = None, False, []
        while True:
            first, payload = self.receive_frame()
            opcode, rsv, fin = first & 0xF, first >> 4 & 7, first & 0x80
            if opcode == PING:
                self.pings += 1
                if answer and not self.closing:
                    self.send(frame(PONG, payload))
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                raise Closed(code, payload[2:].decode())
            elif opcode == PONG:
                continue
            else:
                if (kind is None) != (opcode in (TEXT, BINARY)) or rsv & 3 or (rsv and (kind or not self._inflate)):
                    raise Wrong(f"a frame that begins with {first:#x}")
                if kind is None:
                    kind, compressed = opcode, bool(rsv)
                parts.append(payload)
                if fin:
                    break
        message = b"".join(parts)
        if compressed:
            try:
                message = self._inflate.decompress(message + _FLUSH)
            except zlib.error as error:
                raise Wrong(f"deflate: {error}") from None
        return message, kind == TEXT

    def receive_frame(self) -> tuple[int, bytes]:
        """The next frame: its first byte and its payload."""
        first, second = self.exactly(2)
        if second & 0x80:
            raise Wrong("a server masked a frame")
        size, least = second, 0
        if second == 126:
            size, least = int.from_bytes(self.exactly(2), "big"), 126
        elif second == 127:
            size, least = int.from_bytes(self.exactly(8), "big"), 65536
        if size < least or size > 64 * 1024 * 1024 or (first & 8 and (size > 125 or not first & 0x80)):
            raise Wrong(f"a frame that begins with {first:#x}, of {size} bytes")
        return first, self.exactly(size)

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes; raises ``Lost``."""
        while len(self._buffer) < size:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self) -> None:
        try:
            data = self.socket.recv(256 * 1024)
        except OSError as error:
            raise Lost(f"receive: {error}") from None
        if not data:
            raise Lost("end of input")
        self._buffer += data

    # -- Ends

    def close(self, code: int = 1000) -> None:
        """The closing handshake, to the server's FIN; raises ``Wrong`` where it is not answered in kind."""
        self.closing = True
        self.send(frame(CLOSE, code.to_bytes(2, "big")))
        self.expect_close(code)

    def expect_close(self, *codes: int) -> None:
        """Waits for the server's Close frame and its FIN; messages before it are dropped."""
        try:
            while True:
                self.receive()
        except Closed as closed:
            if closed.code not in codes:
                raise
        if not self.closing:
            self.closing = True
            # A server that has failed the connection may be gone by now.
            with suppress(Lost):
                self.send(frame(CLOSE, codes[0].to_bytes(2, "big")))
        self.expect_end()

    def expect_end(self, timeout: float = 30.0) -> None:
        """Waits for the server's FIN; raises ``Wrong`` for a byte before it."""
        self.socket.settimeout(timeout)
        try:
            data = self._buffer or self.socket.recv(65536)
        except TimeoutError:
            raise Wrong("the server does not end the connection") from None
        except OSError:
            return
        if data:
            raise Wrong(f"{len(data)} bytes behind the end: {bytes(data[:40])!r}")

    def half_close(self) -> None:
        """Ends this side's output, without a Close frame."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Ends the connection with a RST."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
