"""What a connection sends, as the wire has it: frames (RFC 6455 5), made of messages by the negotiated extensions.

The counterpart of codec.py's Reader: messages go in, and bytes wait for whoever takes them to the socket. Whether a
message may be sent now is not asked here. output.pxd gives the types to the compiled build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from geventws.frames import Frame
from geventws.protocol.buffer import Buffer
from geventws.protocol.deflating import DeflateSession
from geventws.protocol.shared import SharedFrame, SharedMessage

if TYPE_CHECKING:
    from geventws.protocol.extensions import ExtensionSession

__all__ = ["Output"]

Payload = str | bytes | bytearray | memoryview

#: A payload from this size on goes to the socket from where it lies, not through the buffer.
DIRECT_SIZE = 16 * 1024


class Output(Buffer):
    """A buffer that takes messages as frames. ``raw`` counts frames in place of messages."""

    __slots__ = ("extensions", "masking", "messages", "raw")

    def __init__(self, raw: bool, masking: bool) -> None:
        super().__init__()
        self.raw = raw
        #: Whether frames are masked from now on.
        self.masking = masking
        #: The negotiated extensions, in the order in which data frames pass through them.
        self.extensions: tuple[ExtensionSession, ...] = ()
        #: How many messages (raw: frames) were ever put into it.
        self.messages = 0

    def put(self, first: int, payload: Payload) -> None:
        """Puts a frame in as it is; ``first`` is its first byte, ``payload`` text or a view of single bytes."""
        if len(payload) < DIRECT_SIZE or self.masking:
            self.append_frame(first, payload, self.masking)
        else:
            data = payload.encode() if isinstance(payload, str) else bytes(payload)
            self.append_header(first, len(data))
            self.append_body(data)
        if first & 0x80 or self.raw:
            self.messages += 1

    def put_data(self, opcode: int, payload: Payload, fin: bool) -> None:
        """Puts a data frame in as the extensions make it; raises what they raise.

        Nothing yields until it is there: compressors need the order of the wire.
        """
        if not self.extensions:
            self.put(0x80 | opcode if fin else opcode, payload)
        elif len(self.extensions) == 1 and isinstance(self.extensions[0], DeflateSession):
            # Spares a Frame where nobody else is to see one.
            deflated = self.extensions[0].deflated(opcode, payload, fin)
            first = 0x80 | opcode if fin else opcode
            if deflated is None:
                self.put(first, payload)
            else:
                self.put(first | 0x40 if opcode else first, deflated)
        else:
            frame = Frame(opcode, payload.encode() if isinstance(payload, str) else bytes(payload), fin)  # type: ignore[arg-type]
            for extension in self.extensions:
                frame = extension.encode(frame)
            self.put((0x80 if frame.fin else 0) | frame.rsv << 4 | frame.opcode, frame.payload)

    def put_shared(self, message: SharedMessage) -> None:
        """Puts a whole message in, by a frame that connections share where that can be; raises as `put_data`."""
        frame: SharedFrame | None = None
        if not self.extensions:
            frame = message.plain()
        elif len(self.extensions) == 1 and isinstance(self.extensions[0], DeflateSession):
            frame = self.extensions[0].frame_of(message)
        if frame is None:
            self.put_data(message.opcode, message.payload, True)
        elif frame.whole is None or self.masking:
            self.put(frame.first, frame.payload)
        else:
            self.append_shared(frame.whole)
            self.messages += 1
