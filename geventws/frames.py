"""The nouns of RFC 6455: opcodes, frames, close codes and close reasons."""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from geventws.errors import ProtocolError

__all__ = ["MAX_CONTROL_PAYLOAD", "NORMAL_CLOSURE", "CloseCode", "CloseReason", "Frame", "Opcode", "read_close"]

#: The longest payload of a control frame (RFC 6455 5.5).
MAX_CONTROL_PAYLOAD = 125


class Opcode(IntEnum):
    """What a frame carries (RFC 6455 5.2)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """The registered close codes (RFC 6455 7.4.1 and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


#: The codes below 3000 that may stand in a Close frame; 1005, 1006 and 1015 only report (RFC 6455 7.4.1).
SENDABLE_CODES = frozenset(code for code in CloseCode if code not in (1005, 1006, 1015))


def may_be_sent(code: int) -> bool:
    """Tells whether ``code`` may stand in a Close frame (RFC 6455 7.4)."""
    return code in SENDABLE_CODES or 3000 <= code <= 4999


class CloseReason(NamedTuple):
    """Why a WebSocket ended: a close code and a text of at most 123 bytes in UTF-8.

    The codes 1005 (a Close frame without a code) and 1006 (no Close frame) are only reported, never sent.
    """

    code: int
    message: str = ""

    def __str__(self) -> str:
        try:
            name = CloseCode(self.code).name.lower().replace("_", " ")
        except ValueError:
            name = "registered" if self.code < 4000 else "private"
        return f"{self.code} {name}: {self.message!r}" if self.message else f"{self.code} {name}"

    def to_payload(self) -> bytes:
        """The payload of a Close frame with this reason; raises ``ValueError`` if it may not be sent."""
        if isinstance(self.code, bool) or not isinstance(self.code, int):
            raise TypeError(f"a close code must be an int, not {type(self.code).__name__}")
        if not isinstance(self.message, str):
            raise TypeError(f"a close reason must be a str, not {type(self.message).__name__}")
        if not may_be_sent(self.code):
            raise ValueError(f"close code {self.code} may not be sent: use 1000 to 1003, 1007 to 1014 or 3000 to 4999")
        message = self.message.encode()
        if len(message) > MAX_CONTROL_PAYLOAD - 2:
            raise ValueError(f"a close reason must have at most 123 bytes in UTF-8, not {len(message)}")
        return self.code.to_bytes(2, "big") + message

    @classmethod
    def from_payload(cls, payload: bytes) -> CloseReason:
        """Reads a Close frame's payload; raises ``ProtocolError`` for what RFC 6455 5.5.1 and 7.4 forbid."""
        if not payload:
            return cls(CloseCode.NO_STATUS)
        if len(payload) == 1:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a Close frame has a payload of one byte")
        code = int.from_bytes(payload[:2], "big")
        if not may_be_sent(code):
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, f"a Close frame has the code {code}")
        try:
            return cls(code, payload[2:].decode())
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "a close reason is not UTF-8") from None

    @classmethod
    def truncated(cls, code: int, message: str) -> CloseReason:
        """A reason for machine-made text, cut at a code point to fit into 123 bytes."""
        cut = message.encode()[: MAX_CONTROL_PAYLOAD - 2].decode(errors="ignore")
        return cls(code, cut)


#: As `CloseReason.from_payload` for bytes; most sessions end with one of few payloads, which it remembers.
read_close = lru_cache(maxsize=64)(CloseReason.from_payload)

#: How a session ends that has done what it was for.
NORMAL_CLOSURE = CloseReason(CloseCode.NORMAL)


class Frame(NamedTuple):
    """One frame (RFC 6455 5.2), its payload unmasked.

    ``fin`` is False on every fragment of a message but the last; ``rsv`` holds RSV1 (4), RSV2 (2) and RSV3 (1),
    which only extensions may set.
    """

    opcode: Opcode
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0

    @classmethod
    def text(cls, message: str, *, fin: bool = True) -> Frame:
        """A text frame; raises ``TypeError`` for anything but a str."""
        if not isinstance(message, str):
            raise TypeError(f"the message of a text frame must be a str, not {type(message).__name__}")
        return cls(Opcode.TEXT, message.encode(), fin)

    @classmethod
    def binary(cls, message: bytes, *, fin: bool = True) -> Frame:
        """A binary frame."""
        return cls(Opcode.BINARY, message, fin)

    @classmethod
    def continuation(cls, payload: bytes, *, fin: bool = True) -> Frame:
        """The next fragment of a message."""
        return cls(Opcode.CONTINUATION, payload, fin)

    @classmethod
    def ping(cls, payload: bytes = b"") -> Frame:
        """A ping, of at most 125 bytes."""
        return cls(Opcode.PING, payload)

    @classmethod
    def pong(cls, payload: bytes = b"") -> Frame:
        """A pong, of at most 125 bytes."""
        return cls(Opcode.PONG, payload)

    @classmethod
    def close(cls, code: int = CloseCode.NORMAL, message: str = "") -> Frame:
        """A Close frame; raises ``ValueError`` for a code or text that may not be sent."""
        return cls(Opcode.CLOSE, CloseReason(code, message).to_payload())

    @property
    def close_reason(self) -> CloseReason:
        """The reason in a Close frame."""
        return CloseReason.from_payload(self.payload)
