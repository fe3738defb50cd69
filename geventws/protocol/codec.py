"""Framing (RFC 6455 5): a Reader of what the peer sends, and the rules for what a raw session sends.

The Reader takes bytes as they come and queues what the session gets: whole messages (str or bytes), or, in raw mode,
every frame. It answers pings into a buffer of replies, for that is no business of the session's. A violation leaves
`feed` as a ProtocolError with its close code; what came before it stays queued. codec.pxd gives the types to the
compiled build.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from geventws.errors import ProtocolError
from geventws.frames import CloseReason, Frame, Opcode, read_close
from geventws.protocol.buffer import (
    Buffer,
    Utf8Validator,
    copy_bytes,
    memory_of_text,
    unmasked_bytes,
    unmasked_text,
)
from geventws.protocol.deflating import DeflateSession

if TYPE_CHECKING:
    from geventws.protocol.extensions import ExtensionSession

__all__ = ["FrameRules", "Reader"]

#: What a queued message counts beside its payload towards the read limit: about its object's own size. A frame's is
#: larger, for it is an object with a payload.
MESSAGE_COST = 64
FRAME_COST = 96
#: Frames after which `feed` returns, so that its caller can look at the clock.
FRAMES_AT_A_TIME = 512
#: Of a payload that has so much to come, the rest is received straight into the message.
LARGE_REST = 64 * 1024
#: The longest header: two bytes, a length of 64 bits, a mask.
MAX_HEADER = 14

OPCODES = {int(opcode): opcode for opcode in Opcode}


class Reader:
    """Parses what a peer sends.

    ``replies`` gets the pongs. ``client`` tells the role: a server's input is masked, a client's is not. ``raw``
    queues frames instead of messages. ``limit`` and ``max_fragments`` (0 for none) bound a message in the default
    mode; ``limit`` a frame in raw mode. ``read_limit`` (0 for none) is the size of the queue at which `feed` stops.
    """

    def __init__(
        self,
        replies: Buffer,
        client: bool,
        raw: bool,
        limit: int,
        max_fragments: int,
        read_limit: int,
        extensions: Sequence[ExtensionSession] = (),
        rsv: int = 0,
    ) -> None:
        self.replies = replies
        self.client = client
        self.raw = raw
        self.limit = limit
        self.max_fragments = max_fragments
        self.read_limit = read_limit
        self.extensions = tuple(reversed(extensions))
        #: permessage-deflate where it is the only extension, and messages are wanted: then no Frame is made.
        self.inflater: DeflateSession | None = None
        if len(extensions) == 1 and isinstance(extensions[0], DeflateSession) and not raw:
            self.inflater = extensions[0]
        self.rsv_allowed = rsv << 4
        # The queue: a list read by index, for a deque costs 600 bytes while empty.
        self.queue: list[str | bytes | Frame] = []
        self.head = 0
        #: How many messages (raw: frames) wait in the queue, and their size.
        self.waiting = 0
        #: How many were ever put into it.
        self.received = 0
        self.queued = 0
        #: What the peer's Close frame said; None until it came.
        self.close_reason: CloseReason | None = None
        #: Whether pings are still answered and data still queued: not after our own Close frame.
        self.open = True
        self.masking = client
        #: Whether a ping was answered since somebody looked.
        self.answered = False
        #: Payloads of pongs, while somebody waits for one.
        self.pongs: list[bytes] | None = None
        #: Counts the messages (raw: frames) begun, so that a slow one can be told from a new one.
        self.begun = 0
        self.partial = b""
        #: Whether `begun` counts the frame whose header is not whole yet.
        self.counted = False
        self.first = 0
        self.remaining = -1
        self.offset = 0
        self.key = 0
        self.message_opcode = 0
        self.fragments = 0
        self.payload: Buffer | None = None
        self.message: Buffer | None = None
        self.utf8: Utf8Validator | None = None

    def within_message(self) -> bool:
        """Whether a message or frame has begun and not ended."""
        return self.remaining >= 0 or len(self.partial) > 0 or (self.message_opcode != 0 and not self.raw)

    def pop(self) -> str | bytes | Frame:
        """Takes the oldest message (raw: frame) from the queue, which must hold one."""
        item = self.queue[self.head]
        self.head += 1
        self.waiting -= 1
        if self.head == len(self.queue):
            self.queue.clear()
            self.head = 0
            self.queued = 0
            return item
        if self.read_limit:
            self.queued -= MESSAGE_COST + self._size(item)
        if self.head > 4096:
            del self.queue[: self.head]
            self.head = 0
        else:
            self.queue[self.head - 1] = b""
        return item

    def stop(self) -> None:
        """Drops what is queued and all data to come; only the peer's Close frame still counts."""
        self.open = False
        self.queue.clear()
        self.head = 0
        self.waiting = 0
        self.queued = 0

    def feed(self, data: bytearray, position: int, end: int) -> int:
        """Parses ``data[position:end]``; gives where it stopped.

        That is ``end``, or earlier after a Close frame (nothing after it counts), when the queue has reached its limit
        (feed the rest when there is room), and after some hundreds of frames. Raises ``ProtocolError``.
        """
        frames = 0
        while position < end:
            if self.close_reason is not None:
                return position
            if frames == FRAMES_AT_A_TIME or (self.read_limit and self.queued >= self.read_limit):
                return position
            frames += 1
            if self.remaining >= 0:
                position = self._read_payload(data, position, end)
            elif self.partial:
                position = self._continue_header(data, position, end)
            else:
                size = self._read_header(data, position, end)
                if size == 0:
                    self.partial = copy_bytes(data, position, end)
                    if self.raw or self.message_opcode == 0:
                        self.begun += 1
                        self.counted = True
                    return end
                position = self._begin_payload(data, position + size, end)
        return position

    def _continue_header(self, data: bytearray, position: int, end: int) -> int:
        held = len(self.partial)
        head = bytearray(self.partial)
        head += copy_bytes(data, position, min(end, position + MAX_HEADER - held))
        size = self._read_header(head, 0, len(head))
        if size == 0:
            self.partial = bytes(head)
            return end
        self.partial = b""
        return self._begin_payload(data, position + size - held, end)

    def _read_header(self, data: bytearray, position: int, end: int) -> int:
        """Reads and checks a frame's header (RFC 6455 5.2); gives its size, or 0 where bytes of it are missing."""
        available = end - position
        if available < 2:
            return 0
        first = data[position]
        second = data[position + 1]
        length = second & 0x7F
        opcode = first & 0x0F
        if opcode >= 8:
            if opcode > 10:
                raise ProtocolError(1002, f"a frame has the reserved opcode {opcode}")
            if first & 0xF0 != 0x80:
                raise ProtocolError(1002, "a control frame is fragmented or has a reserved bit set")
            if length > 125:
                raise ProtocolError(1002, "a control frame has more than 125 bytes")
        else:
            if first & 0x70 & ~self.rsv_allowed:
                raise ProtocolError(1002, "a reserved bit is set that no extension claims")
            if opcode > 2:
                raise ProtocolError(1002, f"a frame has the reserved opcode {opcode}")
            if opcode == 0:
                if self.message_opcode == 0:
                    raise ProtocolError(1002, "a continuation frame comes with no message begun")
            elif self.message_opcode != 0:
                raise ProtocolError(1002, "a new message begins within a fragmented one")
        if self.client:
            if second & 0x80:
                raise ProtocolError(1002, "a frame from the server is masked")
            size = 2
        else:
            if not second & 0x80:
                raise ProtocolError(1002, "a frame from the client is not masked")
            size = 6
        if length == 126:
            if available < size + 2:
                return 0
            length = data[position + 2] << 8 | data[position + 3]
            if length < 126:
                raise ProtocolError(1002, "a length is not encoded in the fewest bytes")
            size += 2
        elif length == 127:
            if available < size + 8:
                return 0
            if data[position + 2] & 0x80:
                raise ProtocolError(1002, "a length has its highest bit set")
            length = 0
            for i in range(position + 2, position + 10):
                length = length << 8 | data[i]
            if length < 65536:
                raise ProtocolError(1002, "a length is not encoded in the fewest bytes")
            size += 8
        elif available < size:
            return 0
        if opcode < 8:
            self._check_limits(first, length)
        if not self.client:
            i = position + size - 4
            # Shifted where it is unsigned: the compiled build's bytes are ints to C, and too large for 24 places.
            key = data[i]
            key = key << 8 | data[i + 1]
            key = key << 8 | data[i + 2]
            self.key = key << 8 | data[i + 3]
        # Control frames within a fragmented message do not renew it: they are no progress.
        if self.counted:
            self.counted = False
        elif self.raw or self.message_opcode == 0:
            self.begun += 1
        self.first = first
        self.remaining = length
        self.offset = 0
        return size

    def _check_limits(self, first: int, length: int) -> None:
        """Refuses by the header what is too long, before a byte of the payload is stored."""
        held = 0
        if not first & 0x0F:
            self.fragments += 1
            if self.max_fragments and self.fragments > self.max_fragments and not self.raw:
                raise ProtocolError(1008, f"a message has more than {self.max_fragments} fragments")
            if self.message is not None:
                held = self.message.length()
        else:
            self.fragments = 1
        # What an extension makes longer, as deflate does with noise, may still be within the limit when it is undone.
        slack = self.limit // 1024 + 64 if self.extensions else 0
        if self.limit and length - slack > self.limit - held:
            kind = "frame" if self.raw else "message"
            # As Python's integers: the sum may be too large for one of the compiled build's.
            size = sum((held, length))
            raise ProtocolError(1009, f"a {kind} of {size} bytes is over the limit of {self.limit}")

    def _begin_payload(self, data: bytearray, position: int, end: int) -> int:
        """Takes a frame whose payload is all here in one go; leaves others to `_read_payload`."""
        first = self.first
        if self.remaining > end - position or self.raw:
            return self._read_payload(data, position, end)
        stop = position + self.remaining
        if first & 0x0F >= 8:
            self.remaining = -1
            self._control(first, unmasked_bytes(data, position, stop, 0 if self.client else self.key))
            return stop
        if self.inflater is not None:
            if first & 0x0F:
                self.message_opcode = first & 0x0F
            self.remaining = -1
            self._end_frame(unmasked_bytes(data, position, stop, 0 if self.client else self.key))
            return stop
        if first & 0x8F < 0x81 or self.extensions:
            return self._read_payload(data, position, end)
        if first == 0x81:
            try:
                text = unmasked_text(data, position, stop, 0 if self.client else self.key)
            except UnicodeDecodeError:
                raise ProtocolError(1007, "a text message is not UTF-8") from None
            self._put(text)
        else:
            self._put(unmasked_bytes(data, position, stop, 0 if self.client else self.key))
        self.remaining = -1
        return stop

    def rest(self) -> Buffer | None:
        """Where the rest of a large payload is received to, for `took`; None where no such one is under way."""
        if self.remaining < LARGE_REST or self.offset == 0 or not self.open:
            return None
        target = self._target()
        # Once, and early: what has to be moved then leaves a hole of its size behind.
        if self.remaining > 16 * target.length():
            return None
        target.expect(self.remaining)
        return target

    def took(self, count: int) -> None:
        """Takes ``count`` bytes of the payload under way that were received behind what `rest` gave holds."""
        target = self._target()
        target.unmask_last(count, 0 if self.client else self.key, self.offset)
        self._took(target, target.length() - count, count)

    def _target(self) -> Buffer:
        """The buffer that the payload under way goes to."""
        if self.first & 0x0F < 8 and not self.raw and not self.extensions:
            if self.message is None:
                self.message = Buffer()
            return self.message
        if self.payload is None:
            self.payload = Buffer()
        return self.payload

    def _read_payload(self, data: bytearray, position: int, end: int) -> int:
        """Takes what is here of a frame's payload."""
        target = self._target()
        count = min(self.remaining, end - position)
        before = target.length()
        # Room for the whole payload saves moving it while it grows; but only in proportion to what really came.
        if self.remaining > count:
            target.expect(min(self.remaining, 16 * (before + count)))
        target.append_unmasked(data, position, position + count, 0 if self.client else self.key, self.offset)
        self._took(target, before, count)
        return position + count

    def _took(self, target: Buffer, before: int, count: int) -> None:
        first = self.first
        data_frame = first & 0x0F < 8
        self.remaining -= count
        self.offset += count
        if data_frame:
            if first & 0x0F:
                self.message_opcode = first & 0x0F
            if not self.extensions:
                self._check_text(target, before)
        if self.remaining == 0:
            self.remaining = -1
            if not data_frame:
                self._control(first, target.take_bytes())
            elif not self.raw and not self.extensions:
                if first & 0x80:
                    self._end_message()
            else:
                self._end_frame(target.take_bytes())

    def _check_text(self, target: Buffer, before: int) -> None:
        if self.message_opcode == 1 and (self.utf8 is not None or not target.is_ascii()):
            if self.utf8 is None:
                self.utf8 = Utf8Validator()
            if not self.utf8.check(target, before):
                raise ProtocolError(1007, "a text message is not UTF-8")

    def _end_frame(self, payload: bytes) -> None:
        """Ends a data frame that goes through extensions, or to a raw session."""
        if self.inflater is not None:
            self._end_deflated(payload)
        else:
            self._end_other_frame(payload)

    def _end_other_frame(self, payload: bytes) -> None:
        first = self.first
        frame = Frame(OPCODES[first & 0x0F], payload, bool(first & 0x80), (first & 0x70) >> 4)
        if self.extensions:
            limit = self._limit_left()
            for extension in self.extensions:
                frame = extension.decode(frame, limit)
            if frame.rsv:
                raise ProtocolError(1002, "a reserved bit is set that no extension took")
            self._append_decoded(frame.payload)
        if self.raw:
            if self.message is not None:
                self.message.clear()
            if frame.fin:
                self._check_text_end()
                self.message_opcode = 0
            self._put(frame)
        elif frame.fin:
            self._end_message()

    def _end_deflated(self, payload: bytes) -> None:
        """The same where permessage-deflate is the only extension: a message of one frame is what comes out of it."""
        inflater = self.inflater
        assert inflater is not None
        first = self.first
        data = inflater.inflated(first, payload, self._limit_left())
        if first & (0x30 if first & 0x0F else 0x70):
            raise ProtocolError(1002, "a reserved bit is set that no extension took")
        if first & 0x80 and first & 0x0F:
            self.message_opcode = 0
            if first & 0x0F == 1:
                try:
                    self._put(data.decode())
                except UnicodeDecodeError:
                    raise ProtocolError(1007, "a text message is not UTF-8") from None
            else:
                self._put(data)
        else:
            self._append_decoded(data)
            if first & 0x80:
                self._end_message()

    def _limit_left(self) -> int | None:
        """The bytes that the message, or a raw session's frame, may still grow by; None for no limit."""
        if not self.limit:
            return None
        return self.limit - (0 if self.message is None else self.message.length())

    def _append_decoded(self, payload: bytes) -> None:
        """Appends to the message what an extension made of a frame's payload."""
        if self.message is None:
            self.message = Buffer()
        before = self.message.length()
        self.message.append(payload)
        self._check_text(self.message, before)

    def _check_text_end(self) -> None:
        if self.utf8 is not None:
            complete = self.utf8.complete
            self.utf8 = None
            if not complete:
                raise ProtocolError(1007, "a text message ends within a character")

    def _end_message(self) -> None:
        message = self.message
        assert message is not None
        opcode = self.message_opcode
        self._check_text_end()
        self.message_opcode = 0
        self.message = None
        if opcode == 1:
            self._put(message.take_text())
        else:
            self._put(message.take_bytes())

    def _control(self, first: int, payload: bytes) -> None:
        opcode = first & 0x0F
        if opcode == 8:
            self.close_reason = read_close(payload)
        elif not self.raw:
            if opcode == 9:
                if self.open:
                    self.answered = True
                    self.replies.append_frame(0x8A, payload, self.masking)
            elif self.pongs is not None:
                self.pongs.append(payload)
        if self.raw:
            self._put(Frame(OPCODES[opcode], payload))

    def _put(self, item: str | bytes | Frame) -> None:
        if self.open:
            self.queue.append(item)
            self.waiting += 1
            self.received += 1
            if self.read_limit:
                self.queued += MESSAGE_COST + self._size(item)

    def _size(self, item: str | bytes | Frame) -> int:
        if isinstance(item, str):
            return memory_of_text(item)
        return len(item) if isinstance(item, bytes) else FRAME_COST + len(item.payload)


class FrameRules:
    """Keeps a raw session from sending what RFC 6455 forbids; knows where the outgoing message stands."""

    __slots__ = ("_cut", "_message_opcode")

    def __init__(self) -> None:
        self._message_opcode = 0
        # The start of a character that the text so far ends within. No validator: it would remember a refused frame.
        self._cut = b""

    def check(self, frame: Frame) -> None:
        """Raises ``TypeError`` or ``ValueError`` where ``frame`` may not be sent now; remembers it otherwise."""
        if not isinstance(frame, Frame):
            raise TypeError(f"a raw session sends a Frame, as in Frame.text('hello'), not {type(frame).__name__}")
        if not isinstance(frame.payload, (bytes, bytearray, memoryview)):
            raise TypeError(f"a frame's payload must be bytes-like, not {type(frame.payload).__name__}")
        if isinstance(frame.payload, memoryview):
            if not frame.payload.c_contiguous:
                raise TypeError("a frame's payload must be contiguous bytes, not a memoryview with steps")
            # Byte by byte: items of other sizes would make its length lie.
            frame = frame._replace(payload=frame.payload.cast("B"))
        if not isinstance(frame.opcode, int) or frame.opcode not in OPCODES:
            raise ValueError(f"a frame's opcode must be one of Opcode, not {frame.opcode!r} (RFC 6455 5.2)")
        if frame.opcode >= 8:
            self._check_control(frame)
            return
        if frame.rsv:
            raise ValueError(
                f"a frame's rsv must be 0, not {frame.rsv!r}: its bits are extensions' to set (RFC 6455 5.2)"
            )
        if frame.opcode == 0 and self._message_opcode == 0:
            raise ValueError("a continuation frame needs a message begun with fin=False (RFC 6455 5.4)")
        if frame.opcode != 0 and self._message_opcode != 0:
            raise ValueError("the fragmented message must end before a new one begins (RFC 6455 5.4)")
        opcode = frame.opcode or self._message_opcode
        if opcode == 1:
            self._check_text(frame)
        self._message_opcode = 0 if frame.fin else opcode

    def _check_control(self, frame: Frame) -> None:
        if not frame.fin or frame.rsv:
            raise ValueError("a control frame must have fin=True and rsv=0 (RFC 6455 5.5)")
        if len(frame.payload) > 125:
            raise ValueError(f"a control frame must have at most 125 bytes, not {len(frame.payload)} (RFC 6455 5.5)")
        if frame.opcode == 8:
            try:
                CloseReason.from_payload(bytes(frame.payload))
            except ProtocolError as error:
                raise ValueError(f"{error.message} (RFC 6455 7.4)") from None

    def _check_text(self, frame: Frame) -> None:
        buffer = Buffer()
        buffer.append(self._cut)
        buffer.append(frame.payload)
        validator = Utf8Validator()
        if not validator.check(buffer, 0) or (frame.fin and not validator.complete):
            raise ValueError("a text message must be UTF-8 (RFC 6455 5.6)")
        self._cut = b"" if validator.complete else _last_character(buffer.take_bytes())


def _last_character(text: bytes) -> bytes:
    """What there is of the last character of ``text``, which is more than ASCII."""
    start = len(text) - 1
    while text[start] & 0xC0 == 0x80:
        start -= 1
    return text[start:]
