"""The extension permessage-deflate (RFC 7692): messages compressed with zlib.

Outgoing messages go through one compressor a session, which costs most of the memory: 2 ** (window bits + 2) and
2 ** (memory level + 9) bytes. Incoming ones get a fresh decompressor each, which starts from the last bytes that the
message before inflated to: a session that waits keeps no more than these, and a message that stops halfway is noticed,
for its end can be fed a final block, which must come out as nothing. A decompressor is made in about a microsecond.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from geventws.errors import ProtocolError
from geventws.frames import CloseCode, Frame

if TYPE_CHECKING:
    from geventws.protocol.extensions import ExtensionSession

__all__ = ["PermessageDeflate"]

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

_MAX_WINDOW_BITS = 15
_WINDOW_BITS: dict[str | None, int] = {str(bits): bits for bits in range(8, _MAX_WINDOW_BITS + 1)}


class PermessageDeflate:
    """Compresses messages with permessage-deflate (RFC 7692) for clients that offer it.

    The defaults take 43 KB for a session that both sends and receives, 72 KB where the client doesn't limit its window.
    A window of 15 bits and a memory level of 8, as elsewhere, take 300 KB, for messages shorter by a tenth or less.

    Compressed text can leak a secret that stands beside text of an attacker (RFC 7692 8); leave such messages out with
    ``compress_if``.

    :param server_no_context_takeover: compress each message on its own: no memory between messages, larger messages.
    :param client_no_context_takeover: make the client do so.
    :param server_max_window_bits: the base-2 logarithm of the window in bytes that messages are compressed with, 8 to
        15. zlib can't do 8: with it here no client gets compression, and without it none that asks for 8.
    :param client_max_window_bits: the same for the client, 8 to 15. A client that doesn't offer to obey uses 15.
    :param level: 1 is the fastest and 9 the smallest, 0 doesn't compress, -1 is zlib's own choice.
    :param memory_level: how much memory zlib takes for its hash table, 1 to 9.
    :param min_size: bytes below which an unfragmented message goes out as it is. Around such a message the headers of
        WebSocket, TCP, IP and TLS take more bytes than it could save; a session that sends no other never makes a
        compressor.
    :param compress_if: called with the first frame of each message of at least ``min_size`` bytes; False leaves the
        message as it is. It must not block. What it raises comes out of ``send``, and the message is not sent.

    Raises ``ValueError`` that names the option.
    """

    #: The token that names it in Sec-WebSocket-Extensions.
    name = "permessage-deflate"
    #: It claims RSV1.
    rsv = _RSV1

    __slots__ = (
        "client_max_window_bits",
        "client_no_context_takeover",
        "compress_if",
        "level",
        "memory_level",
        "min_size",
        "server_max_window_bits",
        "server_no_context_takeover",
    )

    def __init__(
        self,
        *,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int = 12,
        client_max_window_bits: int = 12,
        level: int = 6,
        memory_level: int = 5,
        min_size: int = 64,
        compress_if: Callable[[Frame], bool] | None = None,
    ) -> None:
        _check_flag("server_no_context_takeover", server_no_context_takeover)
        _check_flag("client_no_context_takeover", client_no_context_takeover)
        _check_number("server_max_window_bits", server_max_window_bits, 8, _MAX_WINDOW_BITS)
        _check_number("client_max_window_bits", client_max_window_bits, 8, _MAX_WINDOW_BITS)
        _check_number("level", level, -1, 9)
        _check_number("memory_level", memory_level, 1, 9)
        _check_number("min_size", min_size, 0, None)
        if compress_if is not None and not callable(compress_if):
            raise ValueError(f"compress_if must be a function of a frame, or None, not {compress_if!r}")
        self.server_no_context_takeover = server_no_context_takeover
        self.client_no_context_takeover = client_no_context_takeover
        self.server_max_window_bits = server_max_window_bits
        self.client_max_window_bits = client_max_window_bits
        self.level = level
        self.memory_level = memory_level
        self.min_size = min_size
        self.compress_if = compress_if

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"PermessageDeflate({options})"

    def accept(self, parameters: Mapping[str, str | None]) -> tuple[dict[str, str | None], ExtensionSession] | None:
        """Answers one offer of a client (RFC 7692 5.1 and 7.1): parameters and a session's instance, or None."""
        server_no_context_takeover = self.server_no_context_takeover
        client_no_context_takeover = self.client_no_context_takeover
        server_bits = self.server_max_window_bits
        # A client that doesn't offer to limit its window may not be told to (RFC 7692 7.1.2.2).
        client_bits = None
        for name, value in parameters.items():
            if name == "client_max_window_bits":
                bits = _MAX_WINDOW_BITS if value is None else _WINDOW_BITS.get(value)
                if bits is None:
                    return None
                client_bits = min(bits, self.client_max_window_bits)
            elif name == "server_max_window_bits":
                bits = _WINDOW_BITS.get(value)
                if bits is None:
                    return None
                server_bits = min(bits, server_bits)
            elif value is not None:
                return None
            elif name == "server_no_context_takeover":
                server_no_context_takeover = True
            elif name == "client_no_context_takeover":
                client_no_context_takeover = True
            else:
                return None
        # zlib refuses to compress with a window of 8 bits, or takes one of 9 in its place.
        if server_bits == 8:
            return None
        answer: dict[str, str | None] = {}
        if server_no_context_takeover:
            answer["server_no_context_takeover"] = None
        if client_no_context_takeover:
            answer["client_no_context_takeover"] = None
        # The client may save memory by our limit even where it didn't ask for one (RFC 7692 7.1.2.1).
        if server_bits < _MAX_WINDOW_BITS or "server_max_window_bits" in parameters:
            answer["server_max_window_bits"] = str(server_bits)
        if client_bits is not None:
            answer["client_max_window_bits"] = str(client_bits)
        return answer, _DeflateSession(
            self,
            server_no_context_takeover,
            client_no_context_takeover,
            server_bits,
            _MAX_WINDOW_BITS if client_bits is None else client_bits,
        )


class _DeflateSession:
    """One session's permessage-deflate: a window for what comes in, and a compressor for what goes out."""

    __slots__ = (
        "_client_bits",
        "_client_no_context_takeover",
        "_deflater",
        "_deflating",
        "_inflater",
        "_inflating",
        "_options",
        "_server_bits",
        "_server_no_context_takeover",
        "_window",
    )

    def __init__(
        self,
        options: PermessageDeflate,
        server_no_context_takeover: bool,
        client_no_context_takeover: bool,
        server_bits: int,
        client_bits: int,
    ) -> None:
        self._options = options
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
        return f"<permessage-deflate, window bits {self._server_bits} and {self._client_bits}, no takeover {takeover}>"

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        """Gives a frame inflated to at most ``limit`` bytes (RFC 7692 7.2.2); None for no limit.

        Raises ``ProtocolError`` with 1009 as soon as the limit is passed, with 1007 for what is no DEFLATE data, with
        1002 for RSV1 where it may not be, with 1008 for data which is made to take long. The session is over then.
        """
        opcode, payload, fin, rsv = frame
        if opcode:
            self._inflating = bool(rsv & _RSV1)
        elif rsv & _RSV1:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a continuation frame has RSV1 set")
        if self._inflating:
            return Frame(opcode, self._inflate(payload, fin, limit), fin, rsv & ~_RSV1)
        if limit is not None and len(payload) > limit:
            raise _too_big(limit)
        return frame

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
        if opcode:
            self._deflating = False
            if not self._is_worth_it(frame):
                return frame
            self._deflating = True
            rsv |= _RSV1
        elif not self._deflating:
            return frame
        payload = self._deflate(payload, fin)
        if fin and self._server_no_context_takeover:
            self._deflater = None
        return Frame(opcode, payload, fin, rsv)

    def _is_worth_it(self, frame: Frame) -> bool:
        # An empty message would grow by a byte.
        if frame.fin and len(frame.payload) < (self._options.min_size or 1):
            return False
        compress_if = self._options.compress_if
        return compress_if is None or bool(compress_if(frame))

    def _deflate(self, payload: bytes, fin: bool) -> bytes:
        if not payload:
            # A flush without new data gives none, so there would be no tail to cut.
            return _EMPTY if fin else b""
        deflater = self._deflater
        if deflater is None:
            options = self._options
            deflater = zlib.compressobj(options.level, zlib.DEFLATED, -self._server_bits, options.memory_level)
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


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


def _check_number(name: str, value: Any, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"from {least} up" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {allowed}, not {value!r}")
