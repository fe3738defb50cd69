"""What goes out, byte by byte: the frames that an Output makes of messages, and what the extensions make of them."""

from __future__ import annotations

from typing import Any

import pytest

from geventws.frames import Frame
from geventws.protocol.codec import Reader
from geventws.protocol.deflate import PermessageDeflate
from geventws.protocol.output import Output
from geventws.protocol.shared import SharedMessage
from tests.wire import frame, server_frames


class Tagging:
    """An extension that puts a letter behind each payload, and says so by a reserved bit."""

    def __init__(self, tag: bytes = b"~") -> None:
        self.tag = tag

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        assert frame.payload[-1:] == self.tag
        return frame._replace(payload=frame.payload[:-1], rsv=frame.rsv & ~1)

    def encode(self, frame: Frame) -> Frame:
        return frame._replace(payload=frame.payload + self.tag, rsv=frame.rsv | 1)


class Refusing(Tagging):
    """An extension that fails on what goes out."""

    def encode(self, frame: Frame) -> Frame:
        raise RuntimeError("no")


def an_output(*extensions: Any, raw: bool = False, masking: bool = False) -> Output:
    output = Output(raw, masking)
    output.extensions = extensions
    return output


def taken(output: Output) -> bytes:
    """All that waits, as the socket would take it."""
    data = b""
    while len(output):
        piece = output.peek(100_000)
        output.consume(len(piece))
        data += piece
    return data


def deflate() -> Any:
    answered = PermessageDeflate(min_size=0).accept({})
    assert answered is not None
    return answered[1]


def read(data: bytes, *extensions: Any, client: bool, rsv: int) -> list[Any]:
    """What the peer's Reader makes of it."""
    reader = Reader(Output(False, client), client, False, 0, 0, 0, extensions, rsv)
    assert reader.feed(bytearray(data), 0, len(data)) == len(data)
    return list(reader.queue)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 16 * 1024 - 1, 16 * 1024, 65535, 65536])
def test_a_message_is_a_frame(size: int) -> None:
    output = an_output()
    output.put_data(1, "é" * (size // 2) + "x" * (size % 2), True)
    output.put_data(2, memoryview(bytes(size)), True)
    assert server_frames(taken(output)) == [
        (0x81, ("é" * (size // 2) + "x" * (size % 2)).encode()),
        (0x82, bytes(size)),
    ]
    assert output.messages == 2


def test_fragments_are_one_message() -> None:
    output = an_output()
    output.put_data(1, "a", False)
    output.put(0x89, b"between")
    output.put_data(0, b"b", True)
    assert taken(output) == b"\x01\x01a\x89\x07between\x80\x01b"


def test_a_raw_output_counts_frames() -> None:
    messages, frames = an_output(), an_output(raw=True)
    for output in (messages, frames):
        output.put_data(1, "a", False)
        output.put_data(0, "b", True)
    assert (messages.messages, frames.messages) == (1, 2)


def test_masks_are_put_on_from_now_on() -> None:
    output = an_output()
    output.put_data(1, "plain", True)
    output.masking = True
    output.put_data(1, "masked", True)
    output.put_data(2, bytes(20000), True)
    output.put_shared(SharedMessage(1, b"for many"))
    data = taken(output)
    assert data.startswith(b"\x81\x05plain")
    assert read(data[7:], client=False, rsv=0) == ["masked", bytes(20000), "for many"]


def test_extensions_see_each_data_frame_in_their_order() -> None:
    output = an_output(Tagging(b"1"), Tagging(b"2"))
    output.put_data(1, "abc", False)
    output.put(0x8A, b"pong")
    output.put_data(0, b"def", True)
    assert taken(output) == b"\x11\x05abc12\x8a\x04pong\x90\x05def12"


@pytest.mark.parametrize("extension", [Tagging, deflate])
def test_what_is_shared_is_what_each_would_have_sent(extension: Any) -> None:
    output = an_output(extension())
    output.put_data(1, "alone, alone", True)
    output.put_shared(SharedMessage(2, b"for many, for many"))
    output.put_data(1, "alone, alone", True)
    assert output.messages == 3
    rsv = 1 if extension is Tagging else 4
    sent = read(taken(output), extension(), client=True, rsv=rsv)
    assert sent == ["alone, alone", b"for many, for many", "alone, alone"]


def test_what_is_shared_is_compressed_once() -> None:
    message = SharedMessage(1, b"for many, for many")
    outputs = [an_output(deflate()) for _ in range(2)]
    for output in outputs:
        output.put_shared(message)
    assert taken(outputs[0]) == taken(outputs[1])
    assert len(message.deflated) == 1


def test_a_large_shared_message_is_sent_from_where_it_lies() -> None:
    output = an_output()
    output.put_shared(SharedMessage(2, bytes(20000)))
    assert taken(output) == frame(2, bytes(20000), key=None)
    assert output.messages == 1


def test_what_an_extension_refuses_leaves_nothing_behind() -> None:
    output = an_output(Refusing())
    for put in (lambda: output.put_data(1, "x", True), lambda: output.put_shared(SharedMessage(1, b"x"))):
        with pytest.raises(RuntimeError, match="no"):
            put()
    assert (taken(output), output.messages) == (b"", 0)
