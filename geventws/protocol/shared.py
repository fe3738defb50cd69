"""One message for many sessions: what goes over the wire is made once for all who can share it.

shared.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from geventws.protocol.buffer import Buffer

__all__ = ["SharedFrame", "SharedMessage"]

#: A payload from this size on is sent from where it lies, behind a header of its own.
DIRECT_SIZE = 16 * 1024


class SharedFrame:
    """An unmasked frame that many sessions send; ``first`` is its first byte: FIN, RSV bits and opcode."""

    def __init__(self, first: int, payload: bytes) -> None:
        self.first = first
        self.payload = payload
        #: The frame as it goes over the wire; None where that would be the copy of a large payload.
        self.whole: bytes | None = None
        if len(payload) < DIRECT_SIZE:
            buffer = Buffer()
            buffer.append_frame(first, payload)
            self.whole = buffer.take_bytes()


class SharedMessage:
    """A whole message; ``opcode`` is 1 for text, whose payload is UTF-8, and 2 for binary."""

    def __init__(self, opcode: int, payload: bytes) -> None:
        self.opcode = opcode
        self.payload = payload
        #: Its compressed frames, by what a session that compresses calls its parameters.
        self.deflated: dict[int, SharedFrame] = {}
        self._plain: SharedFrame | None = None

    def plain(self) -> SharedFrame:
        """Its frame as it is, made at the first use."""
        plain = self._plain
        if plain is None:
            plain = self._plain = SharedFrame(0x80 | self.opcode, self.payload)
        return plain
