"""What a Reader tells of bytes, as one value that can be compared between builds and between ways of cutting."""

from __future__ import annotations

from typing import Any, NamedTuple

from fuzzing.builds import Build
from geventws.errors import ProtocolError
from geventws.frames import CloseReason, Frame, may_be_sent

#: One fault that a text is told to have at different places: the whole text, or the pieces of it, were looked at.
_CUT_TEXT = "a text message ends within a character"
_NO_TEXT = "a text message is not UTF-8"


class Outcome(NamedTuple):
    """All that a Reader tells."""

    queue: list[Any]
    replies: list[tuple[int, bytes]]
    pongs: list[bytes]
    closed: CloseReason | None
    error: tuple[int, str] | None
    #: Whether it is within a message, and how many were begun; None behind an error, where nothing reads them.
    progress: tuple[bool, int] | None

    def whatever_the_cuts(self) -> Outcome:
        """The same without what may tell how the bytes were cut."""
        if self.error == (1007, _CUT_TEXT):
            return self._replace(error=(1007, _NO_TEXT))
        return self


class Options(NamedTuple):
    """How a Reader is made and used."""

    client: bool = False
    raw: bool = False
    limit: int = 0
    max_fragments: int = 0
    read_limit: int = 0
    #: Empty the queue after every piece, or only where it is full.
    eager: bool = True
    #: Stop the Reader, as our own Close does, when that many items were taken; -1 never.
    stop_after: int = -1


def read(build: Build, pieces: list[bytes], options: Options, extensions: list[Any], rsv: int) -> Outcome:
    """Feeds ``pieces`` to a new Reader until one is refused, and asserts what must hold at every moment."""
    replies = build.buffer.Buffer()
    reader = build.codec.Reader(replies, *options[:5], extensions, rsv)
    reader.pongs = []
    queue: list[Any] = []
    error = None
    stopped = False
    for piece in pieces:
        data = bytearray(piece)
        position = 0
        while error is None and position < len(data) and reader.close_reason is None:
            before = position
            try:
                position = reader.feed(data, position, len(data))
            except ProtocolError as problem:
                error = problem.code, problem.message
                assert type(problem) is ProtocolError
                assert may_be_sent(problem.code), f"the close code {problem.code} may not be sent"
            else:
                assert before <= position <= len(data)
                full = options.read_limit and reader.queued >= options.read_limit
                assert position > before or reader.close_reason is not None or full, "it stopped for no reason"
                if not options.eager and not full:
                    continue
            while reader.waiting and not stopped:
                queue.append(reader.pop())
                if len(queue) == options.stop_after:
                    stopped = True
                    reader.stop()
        assert len(piece) == len(data), "a Reader changed the length of what it was fed"
    while reader.waiting and not stopped:
        queue.append(reader.pop())
    if not stopped:
        assert reader.queued == 0
    for item in queue:
        size = len(item.payload) if isinstance(item, Frame) else len(item.encode() if isinstance(item, str) else item)
        assert not options.limit or size <= options.limit or _is_control(item), f"{size} bytes of {options.limit}"
    sent = frames_of(replies.take_bytes(), options.client)
    progress = None if error else (bool(reader.within_message()), reader.begun)
    return Outcome(queue, sent, reader.pongs, reader.close_reason, error, progress)


def _is_control(item: Any) -> bool:
    return isinstance(item, Frame) and item.opcode >= 8


def frames_of(data: bytes, masked: bool) -> list[tuple[int, bytes]]:
    """The frames that a Reader answers with, all of them short, as (first byte, payload)."""
    frames = []
    while data:
        length = data[1] & 0x7F
        assert length <= 125
        assert bool(data[1] & 0x80) == masked
        start = 6 if masked else 2
        key = data[2:6] if masked else bytes(4)
        assert len(data) >= start + length
        frames.append((data[0], bytes(byte ^ key[i % 4] for i, byte in enumerate(data[start : start + length]))))
        data = data[start + length :]
    return frames
