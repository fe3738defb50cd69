"""Framing by RFC 6455, section by section: what the Reader gives for bytes, however they come."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.errors import ProtocolError
from geventws.frames import CloseReason, Frame, Opcode
from geventws.protocol import buffer as buffer_module
from geventws.protocol.buffer import Buffer, unmasked_bytes, unmasked_text
from geventws.protocol.codec import FrameRules, Reader
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, server_frames, splits


class Outcome(NamedTuple):
    """All that a Reader tells."""

    queue: list[Any]
    replies: list[tuple[int, bytes]]
    closed: CloseReason | None
    error: int | None


def read(pieces: list[bytes], **options: Any) -> Outcome:
    """Feeds ``pieces`` to a new Reader until one is refused."""
    replies = Buffer()
    options = {
        "client": False,
        "raw": False,
        "limit": 1024 * 1024,
        "max_fragments": 1024,
        "read_limit": 0,
        **options,
    }
    reader = Reader(replies, **options)
    queue = []
    error = None
    for piece in pieces:
        data = bytearray(piece)
        position = 0
        try:
            while position < len(data) and reader.close_reason is None:
                position = reader.feed(data, position, len(data))
        except ProtocolError as problem:
            error = problem.code
        while reader.waiting:
            queue.append(reader.pop())
        if error is not None:
            break
    return Outcome(queue, server_frames(replies.take_bytes()), reader.close_reason, error)


def outcome(data: bytes, **options: Any) -> Outcome:
    """What ``data`` gives, asserted to be the same for every way of feeding it, and with bytes behind it."""
    results = {name: read(pieces, **options) for name, pieces in splits(data, len(data))}
    expected = results["whole"]
    for name, result in results.items():
        assert result == expected, name
    if expected.error is not None or expected.closed is not None:
        assert read([data + b"\xff" * 40], **options) == expected, "with bytes behind it"
    else:
        after = read([data + frame(TEXT, b"after")], **options)
        assert after == expected._replace(
            queue=[*expected.queue, Frame(Opcode.TEXT, b"after") if options.get("raw") else "after"]
        )
    return expected


def messages(data: bytes, **options: Any) -> list[Any]:
    result = outcome(data, **options)
    assert result.error is None
    return result.queue


def error(data: bytes, **options: Any) -> int:
    result = outcome(data, **options)
    assert result.error is not None, result
    return result.error


@contextmanager
def allocated() -> Iterator[list[int]]:
    """Gives a list that then holds the most bytes that were allocated within the block, beyond those before."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


class TestSection51Masking:
    """5.1: a client masks every frame; an unmasked one fails the connection."""

    def test_masked_frames_are_read(self) -> None:
        assert messages(frame(TEXT, b"Hello")) == ["Hello"]

    def test_unmasked_text_is_1002(self) -> None:
        """A2 row 19."""
        assert error(b"\x81\x05Hello") == 1002

    @pytest.mark.parametrize("opcode", [BINARY, PING, CLOSE])
    def test_any_unmasked_frame_is_1002(self, opcode: int) -> None:
        assert error(frame(opcode, b"", key=None)) == 1002

    def test_each_mask_is_four_bytes_of_the_systems_randomness(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A2 row 29, for the `masking` setting: a key of its own for each frame, and none that could be foretold."""
        keys = [b"\x01\x02\x03\x04", b"\xff\xfe\xfd\xfc", b"\x00\x00\x00\x00"]
        asked = []

        def urandom(count: int) -> bytes:
            asked.append(count)
            return keys[len(asked) - 1]

        monkeypatch.setattr(buffer_module, "urandom", urandom)
        output = Buffer()
        for opcode in (0x81, 0x82, 0x89):
            output.append_frame(opcode, b"Hello", True)
        assert output.take_bytes() == b"".join(
            frame(opcode, b"Hello", key=key) for opcode, key in zip((TEXT, BINARY, PING), keys, strict=True)
        )
        assert asked == [4, 4, 4]

    def test_a_client_refuses_masked_frames(self) -> None:
        assert read([frame(TEXT, b"x")], client=True).error == 1002
        assert read([frame(TEXT, b"Hello", key=None)], client=True).queue == ["Hello"]


class TestSection52BaseFraming:
    """5.2: the header's bits and lengths."""

    @pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 9, 125, 126, 127, 128, 1000, 65535, 65536, 65537])
    def test_every_form_of_length(self, size: int) -> None:
        payload = bytes(i * 131 % 251 for i in range(size))
        assert messages(frame(BINARY, payload)) == [payload]
        assert messages(frame(TEXT, b"a" * size)) == ["a" * size]

    @pytest.mark.parametrize("rsv", [1, 2, 3, 4, 5, 6, 7])
    def test_reserved_bits_without_an_extension_are_1002(self, rsv: int) -> None:
        """A2 row 20."""
        for opcode in (TEXT, BINARY, PING, CLOSE):
            assert error(frame(opcode, b"", rsv=rsv)) == 1002

    @pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
    def test_reserved_opcodes_are_1002(self, opcode: int) -> None:
        """A2 row 20."""
        assert error(frame(opcode, b"x")) == 1002

    def test_what_came_before_an_error_is_kept(self) -> None:
        result = outcome(frame(TEXT, b"one") + frame(PING, b"p") + frame(BINARY, b"two") + frame(3, b"x"))
        assert result == Outcome(["one", b"two"], [(0x8A, b"p")], None, 1002)

    @pytest.mark.parametrize(
        ("length", "size"),
        [
            (b"\x7e\x00\x05", 5),
            (b"\x7e\x00\x7d", 125),
            (b"\x7f" + (5).to_bytes(8, "big"), 5),
            (b"\x7f" + (65535).to_bytes(8, "big"), 65535),
        ],
    )
    def test_lengths_not_minimal_are_1002(self, length: bytes, size: int) -> None:
        """A2 row 18."""
        assert error(frame(BINARY, b"x" * size, length=length)) == 1002

    def test_every_length_of_16_bits_that_needs_fewer_is_1002(self) -> None:
        """A2 row 18: told from the header."""
        for length in range(65536):
            head = frame(BINARY, length=b"\x7e" + length.to_bytes(2, "big"))
            assert read([head]).error == (1002 if length < 126 else None), length

    @given(length=st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 70_000), st.integers(2**63 - 2, 2**63 + 1)))
    def test_every_length_of_64_bits(self, length: int) -> None:
        """A2 rows 17 and 18: told from the header alone, and nothing is allocated for it."""
        head = frame(BINARY, length=b"\x7f" + length.to_bytes(8, "big"))
        if length >= 2**63 or length < 65536:
            expected: int | None = 1002
        else:
            expected = 1009 if length > 1024 * 1024 else None
        with allocated() as peak:
            assert read([head]).error == expected
            assert read([head[i : i + 1] for i in range(14)]).error == expected
        assert peak[0] < 64 * 1024

    @pytest.mark.parametrize(
        ("length", "code"),
        [(2**63, 1002), (2**64 - 1, 1002), (2**63 + 5, 1002), (2**63 - 1, 1009), (2**62, 1009), (2**32, 1009)],
    )
    def test_lengths_of_64_bits(self, length: int, code: int) -> None:
        """A2 row 17: told from the header."""
        head = frame(BINARY, length=b"\x7f" + length.to_bytes(8, "big"))
        assert error(head) == code
        begun = frame(BINARY, b"x", fin=False)
        assert error(begun + frame(CONTINUATION, length=b"\x7f" + length.to_bytes(8, "big"))) == code

    def test_the_sum_of_lengths_is_told_in_full(self) -> None:
        """It may be too large for 64 bits."""
        reader = Reader(Buffer(), False, False, 100, 0, 0)
        data = bytearray(frame(BINARY, b"x", fin=False))
        data += frame(CONTINUATION, length=b"\x7f" + (2**63 - 1).to_bytes(8, "big"))
        with pytest.raises(ProtocolError, match=f"a message of {2**63} bytes is over the limit of 100"):
            reader.feed(data, 0, len(data))

    def test_the_largest_length_without_a_limit_waits_for_its_payload(self) -> None:
        head = frame(BINARY, length=b"\x7f" + (2**63 - 1).to_bytes(8, "big"))
        for pieces in ([head + b"x" * 100], [head[:9], head[9:] + b"x" * 100]):
            assert read(pieces, limit=0) == Outcome([], [], None, None)

    def test_a_message_of_the_limit_passes_and_one_more_byte_is_1009(self) -> None:
        """A1 row 8: from the header alone, before any payload."""
        assert messages(frame(BINARY, b"x" * 200), limit=200) == [b"x" * 200]
        assert error(frame(BINARY, b"x" * 201), limit=200) == 1009
        assert error(frame(BINARY, length=b"\x7e" + (201).to_bytes(2, "big")), limit=200) == 1009


#: What is masked below, and the result of the plain loop of the RFC for each byte of the key that it may begin with.
DATA = bytes(i * 7 % 256 for i in range(5000))
MASK = 0x37FA213D
PLAIN = [bytes(byte ^ MASK.to_bytes(4, "big")[(i + begin) % 4] for i, byte in enumerate(DATA)) for begin in range(4)]


class TestSection53Unmasking:
    @given(payload=st.binary(max_size=300), key=st.binary(min_size=4, max_size=4), seed=st.integers(0, 1000))
    @settings(max_examples=200, deadline=None)
    def test_unmasking_at_every_offset(self, payload: bytes, key: bytes, seed: int) -> None:
        """A2 row 28: pieces of any length and place unmask as the plain loop of the RFC does."""
        for _, pieces in splits(frame(BINARY, payload, key=key), seed):
            assert read(pieces).queue == [payload]

    def test_places_and_lengths_against_the_plain_loop(self) -> None:
        """A2 row 28: a piece that begins at any of 64 places and has any length up to 4096."""
        data = bytearray(DATA)
        buffer = Buffer()
        for start in range(64):
            plain = PLAIN[0][start:]
            for length in range(4097):
                buffer.append_unmasked(data, start, start + length, MASK, start)
                assert buffer.take_bytes() == plain[:length]
        assert data == DATA

    def test_places_of_the_key_against_the_plain_loop(self) -> None:
        """A2 row 28: the key begins anywhere, whatever the place of the piece in memory."""
        data = bytearray(DATA)
        for start in range(64):
            for begin in range(4):
                plain = PLAIN[begin][start:]
                for length in (*range(300), 4095, 4096):
                    # A buffer that holds something has the piece end up at another place too.
                    buffer = Buffer()
                    buffer.append(DATA[: start % 7])
                    buffer.append_unmasked(data, start, start + length, MASK, start + begin)
                    assert buffer.take_bytes() == DATA[: start % 7] + plain[:length]

    def test_whole_payloads_against_the_plain_loop(self) -> None:
        """A2 row 28: the way that a payload takes which came in one piece."""
        plain = [PLAIN[-start % 4][start:] for start in range(64)]
        data = bytearray(DATA)
        for start in range(64):
            for length in (*range(300), 1000, 4095, 4096):
                assert unmasked_bytes(data, start, start + length, MASK) == plain[start][:length]
        assert data == DATA

    def test_whole_texts_against_the_plain_loop(self) -> None:
        """The same of text, with a character beyond ASCII at every place of it, and none."""
        for length in (*range(2, 150), 1000, 4096):
            ascii_text = bytes(i * 7 % 128 for i in range(length))
            for place in (None, *range(min(length - 1, 140)), length - 2):
                text = ascii_text
                if place is not None:
                    text = text[:place] + "é".encode() + text[place + 2 :]
                start = length % 64
                data = bytearray(start) + bytearray(
                    byte ^ MASK.to_bytes(4, "big")[i % 4] for i, byte in enumerate(text)
                )
                assert unmasked_text(data, start, start + length, MASK) == text.decode()
                broken = bytearray(data)
                broken[start + (place or 0)] ^= 0x80
                with pytest.raises(UnicodeDecodeError):
                    unmasked_text(broken, start, start + length, MASK)

    @pytest.mark.parametrize("cut", range(1, 6))
    def test_fragments_of_ascii_around_others(self, cut: int) -> None:
        """Fragments that are all ASCII aren't looked at, but for where one ends within a character."""
        text = "ab\u20accd".encode()
        pieces = [text[:cut], text[cut : cut + 1], text[cut + 1 :]]
        data = frame(TEXT, pieces[0], fin=False) + frame(CONTINUATION, pieces[1], fin=False)
        assert messages(data + frame(CONTINUATION, pieces[2])) == ["ab\u20accd"]
        inside = len(pieces[0] + pieces[1]) in (3, 4)
        assert outcome(data + frame(CONTINUATION, b"ascii")).error == (1007 if inside else None)


class TestSection54Fragmentation:
    """5.4: fragments make a message, and only control frames come between them."""

    def test_fragments(self) -> None:
        data = frame(TEXT, b"Hel", fin=False) + frame(CONTINUATION, b"", fin=False) + frame(CONTINUATION, b"lo")
        assert messages(data) == ["Hello"]

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_a_first_fragment_may_be_empty(self, opcode: int) -> None:
        """No memory is there for it yet, and none is looked at: an assertion of CPython's would end the process."""
        assert messages(frame(opcode, fin=False) + frame(CONTINUATION)) == ["" if opcode == TEXT else b""]
        assert read([frame(opcode, fin=False)]) == Outcome([], [], None, None)
        assert read([frame(opcode, fin=False)], raw=True).queue == [Frame(Opcode(opcode), b"", False)]

    def test_control_frames_between_fragments(self) -> None:
        """A2 row 21."""
        data = frame(BINARY, b"ab", fin=False) + frame(PING, b"?") + frame(PONG, b"!") + frame(CONTINUATION, b"cd")
        assert outcome(data) == Outcome([b"abcd"], [(0x8A, b"?")], None, None)

    def test_a_continuation_of_nothing_is_1002(self) -> None:
        """A2 row 21."""
        for fin in (True, False):
            assert error(frame(CONTINUATION, b"x", fin=fin)) == 1002
        assert outcome(frame(TEXT, b"a") + frame(CONTINUATION, b"x")) == Outcome(["a"], [], None, 1002)

    def test_a_message_within_a_message_is_1002(self) -> None:
        """A2 row 21."""
        assert error(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b")) == 1002
        assert error(frame(TEXT, b"", fin=False) + frame(BINARY, b"b", fin=False)) == 1002

    def test_a_close_within_a_message(self) -> None:
        result = outcome(frame(TEXT, b"a", fin=False) + close_frame(1001))
        assert result == Outcome([], [], CloseReason(1001), None)

    def test_the_number_of_fragments_is_limited(self) -> None:
        """A1 rows 5 and 6: one too many is 1008, empty ones counted."""
        for payload in (b"x", b""):
            start = frame(BINARY, payload, fin=False) + frame(CONTINUATION, payload, fin=False) * 8
            assert messages(start + frame(CONTINUATION, payload), max_fragments=10) == [payload * 10]
            assert error(start + frame(CONTINUATION, payload, fin=False) * 2, max_fragments=10) == 1008

    def test_the_sum_of_fragments_is_limited(self) -> None:
        """A1 row 4: at the first byte past the limit, told from its header."""
        start = frame(BINARY, b"x" * 60, fin=False) + frame(CONTINUATION, b"x" * 40, fin=False)
        assert messages(start + frame(CONTINUATION, b""), limit=100) == [b"x" * 100]
        assert error(start + frame(CONTINUATION, b"x"), limit=100) == 1009
        assert error(start + frame(CONTINUATION, length=b"\x01"), limit=100) == 1009

    @given(
        payload=st.binary(max_size=400),
        cuts=st.lists(st.integers(0, 400), max_size=6),
        seed=st.integers(0, 10**6),
    )
    @settings(max_examples=150, deadline=None)
    def test_any_fragmentation_gives_the_message(self, payload: bytes, cuts: list[int], seed: int) -> None:
        bounds = sorted({0, len(payload), *(min(cut, len(payload)) for cut in cuts)})
        parts = [payload[a:b] for a, b in itertools.pairwise(bounds)] or [b""]
        wire = b""
        for i, part in enumerate(parts):
            wire += frame(CONTINUATION if i else BINARY, part, fin=i == len(parts) - 1)
        for _, pieces in splits(wire, seed):
            assert read(pieces).queue == [payload]


class TestSection55ControlFrames:
    def test_fragmented_control_frames_are_1002(self) -> None:
        """A2 row 20."""
        for opcode in (PING, PONG, CLOSE):
            assert error(frame(opcode, b"", fin=False)) == 1002

    def test_long_control_frames_are_1002(self) -> None:
        """A2 row 20."""
        assert outcome(frame(PING, b"x" * 125)).replies == [(0x8A, b"x" * 125)]
        for opcode in (PING, PONG, CLOSE):
            assert error(frame(opcode, b"\x03\xe8" + b"x" * 124)) == 1002

    def test_close(self) -> None:
        assert outcome(close_frame(1000, b"bye")) == Outcome([], [], CloseReason(1000, "bye"), None)
        assert outcome(close_frame(None)) == Outcome([], [], CloseReason(1005), None)

    def test_a_close_of_one_byte_is_1002(self) -> None:
        """A2 row 23."""
        assert error(frame(CLOSE, b"\x03")) == 1002

    def test_nothing_after_a_close_counts(self) -> None:
        """A2 row 23."""
        result = outcome(frame(TEXT, b"a") + close_frame() + frame(TEXT, b"b") + frame(PING, b"p"))
        assert result == Outcome(["a"], [], CloseReason(1000), None)

    def test_pings_are_answered_in_order_with_their_payload(self) -> None:
        data = b"".join(frame(PING, bytes([i])) for i in range(10))
        assert outcome(data).replies == [(0x8A, bytes([i])) for i in range(10)]

    def test_pongs_that_nobody_waits_for_leave_nothing(self) -> None:
        """A1 row 13."""
        reader = Reader(Buffer(), False, False, 1024, 16, 0)
        data = bytearray(frame(PONG, b"x" * 100) * 1000)
        position = 0
        while position < len(data):
            before, position = position, reader.feed(data, position, len(data))
            # It stops now and then, so that its caller can look at the clock.
            assert position > before
        assert reader.pongs is None
        assert reader.waiting == 0


class TestSection74CloseCodes:
    @pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
    def test_codes_that_may_not_be_sent_are_1002(self, code: int) -> None:
        """A2 row 23."""
        assert error(close_frame(code)) == 1002

    @pytest.mark.parametrize(
        "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
    )
    def test_codes_that_may_be_sent(self, code: int) -> None:
        assert outcome(close_frame(code)).closed == CloseReason(code)

    def test_what_is_remembered_of_one_session_is_right_for_the_next(self) -> None:
        """The usual payloads are read once; others are refused each time."""
        for _ in range(2):
            assert outcome(close_frame(1000)).closed == CloseReason(1000)
            assert outcome(close_frame(1000, b"bye")).closed == CloseReason(1000, "bye")
            assert outcome(close_frame(4000)).closed == CloseReason(4000)
            assert outcome(frame(CLOSE)).closed == CloseReason(1005)
            assert error(close_frame(1005)) == 1002
            assert error(frame(CLOSE, b"\x03")) == 1002
            assert error(frame(CLOSE, b"\x03\xe8\xff")) == 1007


VALID = [
    "κόσμε",
    "\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff",
    "é" * 3000,
    "a" * 7 + "€" + "b" * 9,
]
INVALID = [
    "80", "bf", "c0", "c1", "c080", "c1bf", "e08080", "e09fbf", "eda080", "edbfbf", "f0808080", "f08fbfbf", "f4908080",
    "f5", "f888808080", "fc8480808080", "fe", "ff", "c328", "e228a1", "e28228", "f0288cbc", "f09028bc", "f0288c28",
    "cebae1bdb9cf83cebcceb5eda080656469746564",
]  # fmt: skip


class TestSection81Utf8:
    """8.1: text is UTF-8, and is refused at its first impossible byte."""

    @pytest.mark.parametrize("text", VALID)
    def test_valid(self, text: str) -> None:
        data = text.encode()
        assert messages(frame(TEXT, data)) == [text]
        third = len(data) // 3
        wire = frame(TEXT, data[:third], fin=False) + frame(CONTINUATION, data[third:])
        assert messages(wire) == [text]

    @pytest.mark.parametrize("bad", INVALID)
    def test_invalid_is_1007(self, bad: str) -> None:
        """A2 row 22."""
        data = bytes.fromhex(bad)
        assert error(frame(TEXT, data)) == 1007
        assert error(frame(TEXT, b"fine " + data + b" fine")) == 1007
        wire = b"".join(frame(CONTINUATION if i else TEXT, data[i : i + 1], fin=False) for i in range(len(data)))
        assert error(wire + frame(CONTINUATION, b" fine")) == 1007

    @pytest.mark.parametrize("cut", [b"\xce", b"\xe2\x82", b"\xf0\x90\x80"])
    def test_a_text_that_ends_within_a_character_is_1007(self, cut: bytes) -> None:
        assert error(frame(TEXT, b"a" + cut)) == 1007
        assert error(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, cut)) == 1007

    def test_the_first_impossible_byte_counts_in_mid_frame(self) -> None:
        """The rest of the frame need not come: the third byte makes a surrogate."""
        wire = frame(TEXT, b"ab\xed\xa0" + b"c" * 100)
        header = 6
        for end in range(header + 4):
            assert read([wire[:end]]).error is None
        assert read([wire[: header + 4]]).error == 1007
        assert read([wire[:header], *(wire[i : i + 1] for i in range(header, header + 4))]).error == 1007

    def test_every_sequence_of_two_bytes_and_the_edges_of_longer_ones(self) -> None:
        """T10: nothing valid is refused and nothing invalid taken."""
        edges = (0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)
        sequences = [bytes((a, b)) for a in range(256) for b in range(256)]
        sequences += [bytes((a, b, c)) for a in range(0xE0, 0xF0) for b in edges for c in edges]
        sequences += [bytes((a, b, c, d)) for a in range(0xF0, 0xF8) for b in edges for c in edges for d in edges]
        for data in sequences:
            try:
                expected: list[Any] = [data.decode()]
            except UnicodeDecodeError:
                expected = []
            assert read([frame(TEXT, data)]).queue == expected, data
            wire = frame(TEXT, data)
            assert read([wire[:7], wire[7:]]).queue == expected, data

    def test_a_close_reason_that_is_not_utf8_is_1007(self) -> None:
        assert error(close_frame(1000, b"\xff")) == 1007

    def test_binary_is_not_checked(self) -> None:
        assert messages(frame(BINARY, b"\xff\xfe")) == [b"\xff\xfe"]


class TestRawMode:
    """Every frame reaches a raw session; the rules hold all the same."""

    def test_every_frame(self) -> None:
        data = (
            frame(TEXT, b"a", fin=False)
            + frame(PING, b"p")
            + frame(CONTINUATION, b"b")
            + frame(PONG)
            + close_frame(1000, b"x")
        )
        result = outcome(data, raw=True)
        assert result.queue == [
            Frame(Opcode.TEXT, b"a", False),
            Frame(Opcode.PING, b"p"),
            Frame(Opcode.CONTINUATION, b"b"),
            Frame(Opcode.PONG),
            Frame(Opcode.CLOSE, b"\x03\xe8x"),
        ]
        assert result.replies == []
        assert result.closed == CloseReason(1000, "x")

    def test_the_limit_is_a_frames(self) -> None:
        data = frame(BINARY, b"x" * 100, fin=False) + frame(CONTINUATION, b"x" * 100)
        assert len(messages(data, raw=True, limit=100)) == 2
        assert error(frame(BINARY, b"x" * 101), raw=True, limit=100) == 1009

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(CONTINUATION, b"x"), 1002),
            (frame(TEXT, b"\xff"), 1007),
            (frame(TEXT, b"\xe2", fin=False) + frame(CONTINUATION, b"x"), 1007),
            (frame(TEXT, b"\xe2\x82"), 1007),
            (frame(CLOSE, b"\x03"), 1002),
            (frame(3), 1002),
        ],
    )
    def test_violations(self, data: bytes, code: int) -> None:
        assert error(data, raw=True) == code


class TestBackpressure:
    def test_feed_stops_at_the_read_limit_and_goes_on_later(self) -> None:
        reader = Reader(Buffer(), False, False, 0, 0, 1000)
        data = bytearray(frame(BINARY, b"x" * 100) * 50)
        position = reader.feed(data, 0, len(data))
        assert position < len(data)
        assert 6 <= reader.waiting <= 10
        count = 0
        while True:
            while reader.waiting:
                assert reader.pop() == b"x" * 100
                count += 1
            if position == len(data):
                break
            position = reader.feed(data, position, len(data))
        assert count == 50

    @pytest.mark.parametrize("text", ["a" * 999 + "\U0001f600", "a" * 999 + "\u20ac", "a" * 999 + "\xe9", "a" * 1000])
    @pytest.mark.parametrize("raw", [False, True])
    def test_the_queue_takes_no_more_memory_than_it_counts(self, text: str, raw: bool) -> None:
        """A1 row 10: Python takes up to four bytes for each character of a text, and a frame is an object."""
        for wire in (frame(TEXT, text.encode()) * 1000, frame(PING, b"") * 10_000 + frame(BINARY, b"ab") * 10_000):
            reader = Reader(Buffer(), False, raw, 0, 0, 64 * 1024)
            data = bytearray(wire)
            with allocated() as peak:
                reader.feed(data, 0, len(data))
            assert reader.queued <= 64 * 1024 + 5000
            assert peak[0] <= 64 * 1024 + 64 * 1024

    def test_a_declared_length_takes_no_memory(self) -> None:
        """A1 row 9."""
        reader = Reader(Buffer(), False, False, 2**30, 0, 0)
        head = bytearray(frame(BINARY, length=b"\x7f" + (2**30).to_bytes(8, "big")) + b"x")
        with allocated() as peak:
            reader.feed(head, 0, len(head))
        assert reader.within_message()
        assert peak[0] < 4096

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_a_frame_in_crumbs_is_one_buffer(self, opcode: int) -> None:
        """A1 row 7: in pieces of a byte it takes no more than the payload thrice, the message included."""
        size = 64 * 1024
        reader = Reader(Buffer(), False, False, size, 0, 0)
        wire = frame(opcode, b"x" * size)
        crumb = bytearray(1)
        with allocated() as peak:
            for byte in wire:
                crumb[0] = byte
                reader.feed(crumb, 0, 1)
        assert len(reader.pop()) == size
        assert peak[0] < 3 * size

    @pytest.mark.parametrize("payload", [b"", b"x"])
    def test_fragments_leave_nothing_but_their_payload(self, payload: bytes) -> None:
        """A1 rows 5 and 6: ten thousand of them, where no limit ends them before."""
        reader = Reader(Buffer(), False, False, 1024 * 1024, 0, 0)
        begin = bytearray(frame(BINARY, payload, fin=False))
        reader.feed(begin, 0, len(begin))
        piece = frame(CONTINUATION, payload, fin=False) * 1000
        data = bytearray(len(piece))
        with allocated() as peak:
            for _ in range(10):
                data[:] = piece
                reader.feed(data, 0, len(data))
        assert peak[0] < 4 * 10_000 * len(payload) + 16 * 1024


@given(data=st.binary(max_size=200), seed=st.integers(0, 1000), raw=st.booleans())
@settings(max_examples=400, deadline=None)
def test_only_protocol_errors_leave_the_reader(data: bytes, seed: int, raw: bool) -> None:
    """Whatever comes, the result is the same for every way of feeding it, and nothing but a ProtocolError is raised."""
    results = [read(pieces, raw=raw, max_fragments=4, limit=64) for _, pieces in splits(data, seed)]
    assert all(result == results[0] for result in results)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly right: frames with a few things wrong."""
    frames = draw(
        st.lists(
            st.builds(
                frame,
                st.sampled_from([0, 0, 1, 1, 2, 8, 9, 10, 3]),
                st.one_of(st.binary(max_size=140), st.text(max_size=40).map(str.encode)),
                fin=st.booleans(),
                rsv=st.sampled_from([0] * 9 + [4]),
                key=st.sampled_from([b"\x01\x02\x03\x04"] * 9 + [None]),
            ),
            max_size=8,
        )
    )
    data = b"".join(frames)
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@given(data=wires(), seed=st.integers(0, 1000), raw=st.booleans())
@settings(max_examples=400, deadline=None)
def test_nearly_right_frames_read_the_same_in_all_pieces(data: bytes, seed: int, raw: bool) -> None:
    results = [read(pieces, raw=raw, max_fragments=4, limit=300) for _, pieces in splits(data, seed)]
    assert all(result == results[0] for result in results)


class TestFrameRules:
    """Nothing that RFC 6455 forbids leaves a raw session."""

    @pytest.mark.parametrize(
        "wrong",
        [
            Frame(3),  # type: ignore[arg-type]
            Frame(Opcode.CONTINUATION, b"x"),
            Frame(Opcode.PING, b"x" * 126),
            Frame(Opcode.PING, b"", fin=False),
            Frame(Opcode.PONG, b"", rsv=4),
            Frame(Opcode.TEXT, b"x", rsv=4),
            Frame(Opcode.TEXT, b"\xff"),
            Frame(Opcode.TEXT, b"\xe2\x82"),
            Frame(Opcode.CLOSE, b"\x03"),
            Frame(Opcode.CLOSE, (1005).to_bytes(2, "big")),
            Frame(Opcode.CLOSE, b"\x03\xe8\xff"),
        ],
    )
    def test_wrong_frames(self, wrong: Frame) -> None:
        with pytest.raises(ValueError, match="RFC 6455"):
            FrameRules().check(wrong)

    def test_payloads_are_counted_in_bytes(self) -> None:
        """A1 row 15: items of other sizes make no longer control frame, and no half of an item is one."""
        items = memoryview(bytes(400)).cast("f")
        assert len(items) == 100
        for opcode in (Opcode.PING, Opcode.PONG):
            with pytest.raises(ValueError, match="at most 125 bytes, not 400"):
                FrameRules().check(Frame(opcode, items))  # type: ignore[arg-type]
            FrameRules().check(Frame(opcode, items[:31]))  # type: ignore[arg-type]
        rules = FrameRules()
        with pytest.raises(TypeError):
            rules.check(Frame(Opcode.BINARY, memoryview(bytes(10))[::2], fin=False))  # type: ignore[arg-type]
        # It was never begun.
        rules.check(Frame.text("a"))

    def test_wrong_types(self) -> None:
        for wrong in ("text", b"bytes", Frame(Opcode.TEXT, "text"), None):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                FrameRules().check(wrong)  # type: ignore[arg-type]

    def test_a_message_in_fragments_is_followed(self) -> None:
        rules = FrameRules()
        rules.check(Frame.text("a", fin=False))
        with pytest.raises(ValueError, match="must end"):
            rules.check(Frame.text("b"))
        rules.check(Frame.ping(b"p"))
        rules.check(Frame.continuation(b"\xe2", fin=False))
        rules.check(Frame.continuation(b"\x82\xac"))
        rules.check(Frame.binary(b"b"))

    @pytest.mark.parametrize("wrong", [b"\xff", b"\x82\xff", b"\x82", b"\x82\xac\xff"])
    def test_a_frame_that_is_refused_leaves_no_trace(self, wrong: bytes) -> None:
        """What follows is judged by what was sent, so nothing invalid gets past, and nothing valid is held up."""
        for good in (b"\x82\xac", b"\x82\xace"):
            rules = FrameRules()
            rules.check(Frame.text("a", fin=False))
            rules.check(Frame.continuation(b"b\xe2", fin=False))
            with pytest.raises(ValueError, match="UTF-8"):
                rules.check(Frame.continuation(wrong))
            with pytest.raises(ValueError, match="UTF-8"):
                rules.check(Frame.continuation(b"\xac"))
            rules.check(Frame.continuation(good))
            rules.check(Frame.text("c"))

    def test_a_character_in_as_many_frames_as_it_has_bytes(self) -> None:
        for text in ("é", "€", "\U0010ffff", "a€"):
            rules = FrameRules()
            data = text.encode()
            rules.check(Frame(Opcode.TEXT, data[:1], False))
            for i in range(1, len(data)):
                rules.check(Frame.continuation(bytearray(data[i : i + 1]), fin=i == len(data) - 1))
