"""One session's permessage-deflate (RFC 7692 7.2): messages inflated and deflated with zlib.

Outgoing messages go through one compressor a session, which costs most of the memory: 2 ** (window bits + 2) and
2 ** (memory level + 9) bytes. Incoming ones get a fresh decompressor each, which starts from the last bytes that the
message before inflated to: a session that waits keeps no more than these, and a message that stops halfway is noticed,
for its end can be fed a final block, which must come out as nothing.

deflating.pyx is the compiled twin of this file, under the same tests. It needs zlib's header; without it, this serves.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from geventws.errors import ProtocolError
from geventws.frames import CloseCode, Frame
from geventws.protocol.shared import SharedFrame, SharedMessage

__all__ = ["ZLIB", "DeflateSession"]

#: The zlib that does the work.
ZLIB = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"

_RSV1 = 4

# What a sender cuts off the end of a message (RFC 7692 7.2.1).
_TAIL = b"\x00\x00\xff\xff"
# An empty block which is marked as the last one.
_FINAL = b"\x01\x00\x00\xff\xff"
# What a message is fed at its end.
_END = _TAIL + _FINAL
# An empty message, and the last fragment of a message when nothing is left to say (RFC 7692 7.2.3.6).
_EMPTY = b"\x00"

# Bytes that go into the decompressor at a time, and that come out. Both bound what zlib is given and gives at once; the
# second is the first block that CPython allocates for its output, so that it copies none.
_INPUT_SIZE = 8 * 1024
_OUTPUT_SIZE = 32 * 1024

# DEFLATE streams that may end within one frame (RFC 7692 7.2.3.4). Peers end one a message, if any; each takes a new
# decompressor, for two bytes of input.
_MAX_STREAMS = 16


class DeflateSession:
    """One session's permessage-deflate: a window for what comes in, and a compressor for what goes out."""

    __slots__ = (
        "_client_bits",
        "_client_no_context_takeover",
        "_compress_if",
        "_deflater",
        "_deflating",
        "_inflater",
        "_inflating",
        "_level",
        "_memory_level",
        "_min_size",
        "_server_bits",
        "_server_no_context_takeover",
        "_window",
    )

    def __init__(
        self,
        level: int,
        memory_level: int,
        min_size: int,
        compress_if: Callable[[Frame], bool] | None,
        server_no_context_takeover: bool,
        client_no_context_takeover: bool,
        server_bits: int,
        client_bits: int,
    ) -> None:
        self._level = level
        self._memory_level = memory_level
        self._min_size = min_size
        self._compress_if = compress_if
        self._server_no_context_takeover = server_no_context_takeover
        self._client_no_context_takeover = client_no_context_takeover
        self._server_bits = server_bits
        # Clients that agree to 8 may compress with zlib, which then uses 9. A larger window reads every smaller one.
        self._client_bits = max(client_bits, 9)
        # Whether the message that is coming in, or going out, is a compressed one.
        self._inflating = False
        self._deflating = False
        # Only between the fragments of a message; None also behind the end of a DEFLATE stream.
        self._inflater: zlib._Decompress | None = None
        # The last bytes that came out of it: what the next stream may refer back to.
        self._window = b""
        self._deflater: zlib._Compress | None = None

    def __repr__(self) -> str:
        takeover = self._server_no_context_takeover, self._client_no_context_takeover
        bits = f"window bits {self._server_bits} and {self._client_bits}"
        return f"<permessage-deflate by {ZLIB}, {bits}, no takeover {takeover}>"

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        """Gives a frame inflated to at most ``limit`` bytes (RFC 7692 7.2.2), None for none; raises as `inflated`."""
        opcode, payload, fin, rsv = frame
        data = self.inflated((0x80 if fin else 0) | rsv << 4 | opcode, payload, limit)
        return Frame(opcode, data, fin, rsv & ~_RSV1) if self._inflating else frame

    def inflated(self, first: int, payload: bytes, limit: int | None) -> bytes:
        """What a payload inflates to, or itself in a message not compressed; ``first`` is the frame's first byte.

        Raises ``ProtocolError`` with 1009 as soon as the limit is passed, with 1007 for what is no DEFLATE data, with
        1002 for RSV1 where it may not be, with 1008 for data which is made to take long. The session is over then.
        """
        # Below 0 where the limit was lowered within the message.
        limit = None if limit is None else max(limit, 0)
        if first & 0x0F:
            self._inflating = bool(first & _RSV1 << 4)
        elif first & _RSV1 << 4:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a continuation frame has RSV1 set")
        if self._inflating:
            return self._inflate(payload, bool(first & 0x80), limit)
        if limit is not None and len(payload) > limit:
            raise _too_big(limit)
        return payload

    def _inflate(self, payload: bytes, fin: bool, limit: int | None) -> bytes:
        chunks: list[bytes] = []
        size = 0
        streams = 0
        for start in range(0, len(payload), _INPUT_SIZE):
            data = payload[start : start + _INPUT_SIZE]
            while True:
                inflater = self._inflater
                if inflater is None:
                    inflater = self._inflater = zlib.decompressobj(-self._client_bits, self._window)
                # One byte more than allowed tells that the limit is passed; 0 would mean no limit to zlib.
                room = _OUTPUT_SIZE if limit is None else min(_OUTPUT_SIZE, limit - size + 1)
                try:
                    chunk = inflater.decompress(data, room)
                except zlib.error:
                    raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a message is no DEFLATE data") from None
                if chunk:
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise _too_big(limit)
                    chunks.append(chunk)
                    self._remember(chunk)
                if inflater.eof:
                    self._inflater = None
                    data = inflater.unused_data
                    if not data:
                        break
                    streams += 1
                    if streams > _MAX_STREAMS:
                        raise ProtocolError(CloseCode.POLICY_VIOLATION, "a frame has too many DEFLATE streams")
                elif inflater.unconsumed_tail:
                    data = inflater.unconsumed_tail
                elif len(chunk) == room:
                    # All is read in, but not all is out.
                    data = b""
                else:
                    break
        if fin:
            inflater = self._inflater
            # Without one there is nothing to finish: zlib's sync flush gives no data for an empty message behind
            # another, and some peers send just that; and one that ends its streams should add an empty block behind,
            # but not all do.
            if inflater is not None:
                self._inflater = None
                _finish(inflater)
            if self._client_no_context_takeover:
                self._window = b""
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _remember(self, chunk: bytes) -> None:
        size = 1 << self._client_bits
        self._window = chunk[-size:] if len(chunk) >= size else (self._window + chunk)[-size:]

    def encode(self, frame: Frame) -> Frame:
        """Gives a frame compressed (RFC 7692 7.2.1), or as it is where its message is not to be compressed."""
        opcode, payload, fin, rsv = frame
        data = self.deflated(opcode, payload, fin)
        if data is None:
            return frame
        return Frame(opcode, data, fin, rsv | _RSV1 if opcode else rsv)

    def deflated(self, opcode: int, payload: str | bytes | bytearray | memoryview, fin: bool) -> bytes | None:
        """The compressed payload of a frame, whose RSV1 is to be set where it begins a message; None to leave it so."""
        if opcode:
            self._deflating = False
        elif not self._deflating:
            return None
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        if opcode:
            # An empty message would grow by a byte.
            if fin and len(data) < (self._min_size or 1):
                return None
            if self._compress_if is not None and not self._compress_if(Frame(opcode, data, fin)):  # type: ignore[arg-type]
                return None
            self._deflating = True
        result = self._deflate(data, fin)
        if fin and self._server_no_context_takeover:
            self._deflater = None
        return result

    def frame_of(self, message: SharedMessage) -> SharedFrame:
        """The frame of a message for many sessions: compressed once for all sessions with the same parameters.

        It refers back to nothing but itself, so any peer can inflate it behind whatever came before (RFC 7692 7.2.3.3).
        """
        payload = message.payload
        self._deflating = False
        if len(payload) < (self._min_size or 1):
            return message.plain()
        if self._compress_if is not None and not self._compress_if(Frame(message.opcode, payload)):  # type: ignore[arg-type]
            return message.plain()
        # The peer's window has it now, and the own compressor's has not: what comes next is to begin afresh.
        self._deflater = None
        parameters = self._level + 1 | self._server_bits << 4 | self._memory_level << 8
        frame = message.deflated.get(parameters)
        if frame is None:
            data = self._deflate(payload, True)
            self._deflater = None
            frame = message.deflated[parameters] = SharedFrame(0xC0 | message.opcode, data)
        return frame

    def _deflate(self, payload: bytes, fin: bool) -> bytes:
        if not payload:
            # A flush without new data gives none, so there would be no tail to cut.
            return _EMPTY if fin else b""
        deflater = self._deflater
        if deflater is None:
            deflater = zlib.compressobj(self._level, zlib.DEFLATED, -self._server_bits, self._memory_level)
        # Not kept while it works: where this is cut short, the next message starts a new one, which the peer's window
        # doesn't mind.
        self._deflater = None
        data = deflater.compress(payload)
        flushed = deflater.flush(zlib.Z_SYNC_FLUSH)
        self._deflater = deflater
        return data + (flushed[: -len(_TAIL)] if fin else flushed)


def _finish(inflater: zlib._Decompress) -> None:
    """Sees that a message's data end where a block does.

    Within a block, what is fed here may be read as codes of that block, so that bytes come out which nobody sent, and
    even as its end. Behind one nothing comes out, and what is left over is all of the last block, where the sender
    marked the one whose tail it cut off as the last, or none of it.
    """
    try:
        made_up = inflater.decompress(_END, 1)
    except zlib.error:
        made_up = _END
    if made_up or not inflater.eof or inflater.unused_data not in (b"", _FINAL):
        raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a message ends within its DEFLATE data")


def _too_big(limit: int) -> ProtocolError:
    return ProtocolError(CloseCode.MESSAGE_TOO_BIG, f"a message is larger than {limit} bytes")
