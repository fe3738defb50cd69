"""permessage-deflate by RFC 7692, against zlib used as the RFC says, and the resources that hostile data takes."""

from __future__ import annotations

import random
import sys
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.errors import ProtocolError
from geventws.frames import Frame, Opcode
from geventws.protocol import deflate, deflating
from geventws.protocol.deflate import PermessageDeflate
from geventws.protocol.extensions import ExtensionSession

TAIL = b"\x00\x00\xff\xff"
RSV1 = 4

# The least distance of each distance code (RFC 1951 3.2.5).
DISTANCES = {code: code + 1 if code < 4 else (2 + code % 2 << code // 2 - 1) + 1 for code in range(30)}


def uncompiled() -> ModuleType:
    """The uncompiled twin, whichever the build under test uses."""
    spec = spec_from_file_location("uncompiled_deflating", Path(deflating.__file__).with_name("deflating.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UNCOMPILED = uncompiled()
IMPLEMENTATIONS = {"uncompiled": UNCOMPILED}
if not deflating.__file__.endswith(".py"):
    IMPLEMENTATIONS["compiled"] = deflating


@pytest.fixture(scope="module", autouse=True, params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has each test run with each of the twins that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deflate, "DeflateSession", IMPLEMENTATIONS[request.param].DeflateSession)
        yield


def agree(offer: dict[str, str | None] | None = None, **options: Any) -> tuple[dict[str, str | None], ExtensionSession]:
    """The parameters and the session that a server with ``options`` agrees on with a client."""
    answer = PermessageDeflate(**options).accept({"client_max_window_bits": None} if offer is None else offer)
    assert answer is not None
    return answer


def session(offer: dict[str, str | None] | None = None, **options: Any) -> ExtensionSession:
    return agree(offer, **options)[1]


class Client:
    """A client's half of permessage-deflate, written with zlib from RFC 7692 7.2."""

    def __init__(self, parameters: dict[str, str | None]) -> None:
        self.send_bits = max(9, int(parameters.get("client_max_window_bits") or 15))
        self.receive_bits = int(parameters.get("server_max_window_bits") or 15)
        self.send_fresh = "client_no_context_takeover" in parameters
        self.receive_fresh = "server_no_context_takeover" in parameters
        self.compressor = zlib.compressobj(wbits=-self.send_bits)
        self.decompressor = zlib.decompressobj(-self.receive_bits)

    def compress(self, message: bytes, flushes: Sequence[int] = ()) -> bytes:
        """A message's payload; it is flushed at the offsets ``flushes`` as well."""
        if self.send_fresh:
            self.compressor = zlib.compressobj(wbits=-self.send_bits)
        payload = b""
        start = 0
        for stop in [*flushes, len(message)]:
            payload += self.compressor.compress(message[start:stop]) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
            start = stop
        return payload[:-4] if payload.endswith(TAIL) else payload + b"\x00"

    def decompress(self, payload: bytes) -> bytes:
        """A message. Inflated 64 bytes at a time, so that zlib finds a reference to before the window."""
        if self.receive_fresh:
            self.decompressor = zlib.decompressobj(-self.receive_bits)
        message = b""
        data = payload + TAIL
        while True:
            piece = self.decompressor.decompress(data, 64)
            message += piece
            data = self.decompressor.unconsumed_tail
            if not data and len(piece) < 64:
                return message


def frames(payload: bytes, cuts: Iterable[int] = (), rsv: int = RSV1, opcode: Opcode = Opcode.BINARY) -> list[Frame]:
    """A message's frames, with ``payload`` cut at the offsets ``cuts``."""
    stops = [*sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    starts = [0, *stops[:-1]]
    return [
        Frame(opcode if i == 0 else Opcode.CONTINUATION, payload[a:b], i == len(stops) - 1, rsv if i == 0 else 0)
        for i, (a, b) in enumerate(zip(starts, stops, strict=True))
    ]


def receive(session: ExtensionSession, message: Iterable[Frame], limit: int | None = None) -> bytes:
    """What a session makes of a message's frames, asserted to be frames as the peer meant them."""
    data = b""
    for frame in message:
        result = session.decode(frame, limit)
        assert (result.opcode, result.fin, result.rsv) == (frame.opcode, frame.fin, 0)
        assert limit is None or len(result.payload) <= limit
        data += result.payload
    return data


def send(session: ExtensionSession, message: Iterable[Frame]) -> list[Frame]:
    """The frames that a session makes of a message's."""
    results = []
    for frame in message:
        result = session.encode(frame)
        assert (result.opcode, result.fin) == (frame.opcode, frame.fin)
        assert result.rsv == 0 or frame.opcode != Opcode.CONTINUATION
        results.append(result)
    return results


def joined(message: Iterable[Frame]) -> bytes:
    return b"".join(frame.payload for frame in message)


def error(session: ExtensionSession, message: Iterable[Frame], limit: int | None = 1024 * 1024) -> int:
    """The close code that a message's frames are refused with."""
    with pytest.raises(ProtocolError) as caught:
        receive(session, message, limit)
    return caught.value.code


def deflated(data: bytes, level: int = 9, bits: int = 15) -> bytes:
    """``data`` as a message of its own."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def ended(data: bytes) -> bytes:
    """``data`` as a whole DEFLATE stream: its last block has BFINAL set."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def match(length: int, distance: int) -> bytes:
    """A message of one match in a block of fixed codes (RFC 1951 3.2.6), which zlib would never make that far back."""
    assert length == 258
    # Bits as they are read: BFINAL, BTYPE 01, and then codes from their highest bit, extra bits from their lowest.
    bits = "0" + "10" + format(285 - 280 + 0b11000000, "08b")
    code, base = max((c, b) for c, b in DISTANCES.items() if b <= distance)
    extra = max(0, code // 2 - 1)
    bits += format(code, "05b") + format(distance - base, f"0{extra}b")[::-1] if extra else format(code, "05b")
    # The end of the block, and the head of an empty block without compression.
    bits += "0000000" + "000"
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


# Text that repeats itself near and far, so that windows matter.
MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda word, count, seed: word * count + random.Random(seed).randbytes(700) * 2,
            st.binary(min_size=1, max_size=20),
            st.integers(0, 60),
            st.integers(0, 3),
        ),
    ),
    max_size=5,
)
CUTS = st.lists(st.integers(0, 3000), max_size=5)


class TestRFC7692Section7231To7236:
    """7.2.3.1 to 7.2.3.6: the examples, byte by byte."""

    HELLO = bytes.fromhex("f248cdc9c90700")

    def test_one_block(self) -> None:
        """7.2.3.1."""
        assert receive(session(), frames(self.HELLO)) == b"Hello"

    @pytest.mark.parametrize("cut", range(8))
    def test_in_two_frames(self, cut: int) -> None:
        """7.2.3.1 has it cut behind the third byte; it may be cut anywhere (6.1)."""
        assert receive(session(), frames(self.HELLO, [cut])) == b"Hello"

    def test_byte_by_byte(self) -> None:
        assert receive(session(), frames(self.HELLO, range(1, 7))) == b"Hello"

    def test_the_window_is_shared(self) -> None:
        """7.2.3.2."""
        peer = session()
        assert receive(peer, frames(self.HELLO)) == b"Hello"
        assert receive(peer, frames(self.HELLO)) == b"Hello"
        assert receive(peer, frames(bytes.fromhex("f200110000"))) == b"Hello"

    def test_the_window_is_not_shared_without_takeover(self) -> None:
        """7.1.1.2 and 7.2.3.2."""
        peer = session({"client_no_context_takeover": None})
        assert receive(peer, frames(self.HELLO)) == b"Hello"
        assert error(peer, frames(bytes.fromhex("f200110000"))) == 1007

    def test_a_block_without_compression(self) -> None:
        """7.2.3.3."""
        assert receive(session(), frames(bytes.fromhex("000500faff48656c6c6f00"))) == b"Hello"

    def test_a_block_with_bfinal(self) -> None:
        """7.2.3.4."""
        peer = session()
        assert receive(peer, frames(bytes.fromhex("f348cdc9c9070000"))) == b"Hello"
        # The window goes on, and so does the session.
        assert receive(peer, frames(bytes.fromhex("f200110000"))) == b"Hello"
        assert receive(peer, frames(bytes.fromhex("f348cdc9c9070000"))) == b"Hello"

    def test_two_blocks(self) -> None:
        """7.2.3.5."""
        assert receive(session(), frames(bytes.fromhex("f248050000 00ffffcac9c90700"))) == b"Hello"

    def test_an_empty_message(self) -> None:
        """7.2.3.6."""
        assert receive(session(), frames(b"\x00")) == b""

    def test_the_server_compresses_as_the_examples_do(self) -> None:
        peer = session(min_size=0)
        first = peer.encode(Frame.text("Hello"))
        assert first == Frame(Opcode.TEXT, self.HELLO, True, RSV1)
        assert peer.encode(Frame.text("Hello")).payload == bytes.fromhex("f200110000")


class TestRFC7692Section6:
    """6: RSV1 marks compressed messages, in their first frame only."""

    def test_a_message_without_rsv1_is_left_as_it_is(self) -> None:
        peer = session()
        for frame in [*frames(b"plain", [2], rsv=0), Frame.text("x"), Frame.binary(b"")]:
            assert peer.decode(frame, 100) is frame

    def test_plain_and_compressed_messages_mix(self) -> None:
        parameters, peer = agree()
        client = Client(parameters)
        for i in range(6):
            message = b"one and the same message " * 3
            if i % 3 == 1:
                assert receive(peer, frames(message, [5], rsv=0)) == message
            else:
                assert receive(peer, frames(client.compress(message), [5])) == message

    @pytest.mark.parametrize("first_rsv", [0, RSV1])
    def test_rsv1_on_a_continuation_is_1002(self, first_rsv: int) -> None:
        """A2 row 20."""
        peer = session()
        peer.decode(Frame(Opcode.TEXT, b"\x00", False, first_rsv), None)
        assert error(peer, [Frame(Opcode.CONTINUATION, b"\x00", True, RSV1)]) == 1002

    def test_other_bits_are_left_to_others(self) -> None:
        result = session().decode(Frame(Opcode.TEXT, b"\x00", True, 7), None)
        assert result.rsv == 3
        assert session(min_size=0).encode(Frame(Opcode.TEXT, b"x", True, 3)).rsv == 7

    def test_a_message_may_be_cut_into_frames_with_empty_ones(self) -> None:
        payload = deflated(b"Hello, hello, hello")
        assert receive(session(), frames(payload, [0, 0, 3, 3, len(payload), len(payload)])) == b"Hello, hello, hello"

    def test_rsv1_goes_on_the_first_frame_only(self) -> None:
        message = send(session(), frames(b"a" * 100, [30, 60], rsv=0))
        assert [frame.rsv for frame in message] == [RSV1, 0, 0]


class TestRFC7692Section72:
    """7.2: what one side compresses, the other reads, however it is cut, in every mode."""

    @settings(deadline=None)
    @given(
        messages=MESSAGES,
        cuts=CUTS,
        offered=st.sampled_from([None, *range(8, 16)]),
        limit=st.integers(8, 15),
        fresh=st.booleans(),
        flushes=CUTS,
    )
    def test_what_a_client_sends(
        self, messages: list[bytes], cuts: list[int], offered: int | None, limit: int, fresh: bool, flushes: list[int]
    ) -> None:
        offer: dict[str, str | None] = {"client_max_window_bits": str(offered)} if offered else {}
        if fresh:
            offer["client_no_context_takeover"] = None
        parameters, peer = agree(offer, client_max_window_bits=limit)
        client = Client(parameters)
        assert client.send_bits == (15 if offered is None else max(9, min(offered, limit)))
        for message in messages:
            payload = client.compress(message, sorted(min(flush, len(message)) for flush in flushes))
            assert receive(peer, frames(payload, cuts), len(message)) == message

    @settings(deadline=None)
    @given(
        messages=MESSAGES,
        cuts=CUTS,
        bits=st.integers(9, 15),
        fresh=st.booleans(),
        level=st.integers(-1, 9),
        memory_level=st.integers(1, 9),
        min_size=st.sampled_from([0, 1, 64]),
    )
    def test_what_a_server_sends(
        self,
        messages: list[bytes],
        cuts: list[int],
        bits: int,
        fresh: bool,
        level: int,
        memory_level: int,
        min_size: int,
    ) -> None:
        parameters, peer = agree(
            server_max_window_bits=bits,
            server_no_context_takeover=fresh,
            level=level,
            memory_level=memory_level,
            min_size=min_size,
        )
        client = Client(parameters)
        assert client.receive_bits == bits
        for message in messages:
            result = send(peer, frames(message, cuts, rsv=0))
            if result[0].rsv:
                assert client.decompress(joined(result)) == message
            else:
                assert len(result) == 1
                assert joined(result) == message
                assert len(message) < max(min_size, 1)

    @settings(deadline=None, max_examples=30)
    @given(messages=MESSAGES, cuts=CUTS, server_fresh=st.booleans(), client_fresh=st.booleans())
    def test_an_echo(self, messages: list[bytes], cuts: list[int], server_fresh: bool, client_fresh: bool) -> None:
        parameters, peer = agree(
            server_no_context_takeover=server_fresh, client_no_context_takeover=client_fresh, min_size=0
        )
        client = Client(parameters)
        for message in messages:
            echo = receive(peer, frames(client.compress(message), cuts))
            result = send(peer, frames(echo, cuts, rsv=0))
            assert (client.decompress(joined(result)) if result[0].rsv else joined(result)) == message

    @pytest.mark.parametrize("bits", range(8, 16))
    def test_a_window_reaches_back_as_far_as_agreed(self, bits: int) -> None:
        """A reference as far back as the window reaches is followed into the message before; one byte further, 1007."""
        window = 1 << max(bits, 9)
        text = random.Random(bits).randbytes(window)
        for distance, known in ((window, True), (window + 1, False)):
            peer = session({"client_max_window_bits": str(bits)}, client_max_window_bits=15)
            assert receive(peer, frames(deflated(b"-" + text, 0))) == b"-" + text
            payload = match(258, distance)
            if known:
                assert receive(peer, frames(payload)) == text[:258]
            else:
                assert error(peer, frames(payload)) == 1007

    @pytest.mark.parametrize("bits", [9, 12, 15])
    def test_a_window_is_kept_over_many_messages(self, bits: int) -> None:
        """References to all distances within the window are followed after messages of all sizes."""
        chance = random.Random(bits)
        window = 1 << bits
        peer = session({"client_max_window_bits": str(bits)}, client_max_window_bits=15)
        past = b""
        for _ in range(200):
            size = chance.choice((1, 7, window // 3, window - 1, window, window + 1, chance.randrange(1, 2 * window)))
            text = chance.randbytes(size)
            assert receive(peer, frames(deflated(text, 0))) == text
            past = (past + text)[-window:]
            if len(past) < 258:
                continue
            for distance in (chance.randint(258, len(past)), len(past)):
                start = len(past) - distance
                expected = past[start : start + 258]
                assert receive(peer, frames(match(258, distance))) == expected
                past = (past + expected)[-window:]

    @pytest.mark.parametrize(
        "size", [0, 1, 2, 8191, 8192, 8193, 16384, 32767, 32768, 32769, 65535, 65536, 65537, 300_000]
    )
    @pytest.mark.parametrize("level", [0, 9])
    def test_sizes_at_the_boundaries_of_buffers(self, size: int, level: int) -> None:
        """A2 row 25."""
        data = random.Random(size).randbytes(size)
        for content in (data, bytes(size)):
            peer = session()
            for _ in range(2):
                payload = deflated(content, level)
                assert receive(peer, frames(payload), size) == content
                assert receive(peer, frames(payload, [len(payload) // 2]), size) == content
                if size:
                    assert error(session(), frames(payload), size - 1) == 1009

    def test_every_small_size_of_output(self) -> None:
        """A2 row 25."""
        for size in range(2000):
            assert receive(session(), frames(deflated(b"a" * size)), size) == b"a" * size

    @pytest.mark.parametrize("size", [*range(32_768 - 300, 32_768 + 300, 13), 65_536, 65_537])
    def test_each_frame_gives_all_that_its_payload_says(self, size: int) -> None:
        """A long match may leave more output in zlib than it gave, with no input left."""
        payload = deflated(bytes(size))
        assert receive(session(), frames(payload), None) == bytes(size)
        for cut in range(len(payload)):
            first = session().decode(Frame(Opcode.BINARY, payload[:cut], False, RSV1), None)
            assert first.payload == zlib.decompressobj(-15).decompress(payload[:cut])


class TestRFC7692Section721:
    """7.2.1: what is compressed, and how its end is cut."""

    def test_the_tail_is_cut_off_the_last_frame_only(self) -> None:
        peer = session()
        result = send(peer, frames(b"a" * 300, [100, 200], rsv=0))
        assert [frame.payload.endswith(TAIL) for frame in result] == [True, True, False]
        assert zlib.decompressobj(-12).decompress(joined(result) + TAIL) == b"a" * 300

    @pytest.mark.parametrize("sizes", [(0, 0), (0, 9, 0), (9, 0), (0, 9), (9, 0, 0, 9, 0), (0, 0, 0)])
    def test_empty_fragments(self, sizes: tuple[int, ...]) -> None:
        parameters, peer = agree()
        client = Client(parameters)
        for _ in range(3):
            message = [
                Frame(Opcode.TEXT if i == 0 else Opcode.CONTINUATION, b"x" * size, i == len(sizes) - 1)
                for i, size in enumerate(sizes)
            ]
            result = send(peer, message)
            assert result[0].rsv == RSV1
            assert client.decompress(joined(result)) == b"x" * sum(sizes)

    def test_an_empty_message_is_not_compressed(self) -> None:
        """It would grow by a byte."""
        for min_size in (0, 1, 64):
            frame = Frame.text("")
            assert session(min_size=min_size).encode(frame) is frame

    def test_short_messages_are_not_compressed(self) -> None:
        peer = session(min_size=10)
        short, enough = Frame.binary(b"123456789"), Frame.binary(b"1234567890")
        assert peer.encode(short) is short
        assert peer.encode(enough).rsv == RSV1

    def test_min_size_is_for_unfragmented_messages(self) -> None:
        """The size of a fragmented one isn't known at its first frame."""
        result = send(session(min_size=1000), frames(b"abc", [1], rsv=0))
        assert result[0].rsv == RSV1

    def test_compress_if_decides_for_the_whole_message(self) -> None:
        seen = []

        def compress_if(frame: Frame) -> bool:
            seen.append(frame)
            return frame.opcode == Opcode.TEXT

        parameters, peer = agree(compress_if=compress_if, min_size=5)
        client = Client(parameters)
        text = frames(b"some text" * 9, [20, 40], rsv=0, opcode=Opcode.TEXT)
        binary = frames(b"some data" * 9, [20, 40], rsv=0)
        for _ in range(2):
            assert client.decompress(joined(send(peer, text))) == b"some text" * 9
            assert send(peer, binary) == binary
        short = Frame.text("shor")
        assert peer.encode(short) is short
        assert seen == [text[0], binary[0]] * 2

    def test_what_compress_if_raises_leaves_the_context_whole(self) -> None:
        failing = False

        def compress_if(frame: Frame) -> bool:
            if failing:
                raise LookupError("no")
            return True

        parameters, peer = agree(compress_if=compress_if)
        client = Client(parameters)
        for cuts in ([], [50], [], [10, 20]):
            message = b"a message of some length " * 5
            failing = False
            assert client.decompress(joined(send(peer, frames(message, cuts, rsv=0)))) == message
            failing = True
            with pytest.raises(LookupError):
                send(peer, frames(message, cuts, rsv=0))

    @pytest.mark.parametrize("cut_short", ["compress", "flush"])
    def test_a_compression_cut_short_leaves_the_stream_whole(
        self, cut_short: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A2 row 27: a signal, or no memory, in the middle of it."""
        stop = False

        class Compressor:
            def __init__(self, *arguments: int) -> None:
                self.compressor = zlib.compressobj(*arguments)

            def compress(self, data: bytes) -> bytes:
                if stop and cut_short == "compress":
                    raise MemoryError
                return self.compressor.compress(data)

            def flush(self, mode: int) -> bytes:
                if stop and cut_short == "flush":
                    raise MemoryError
                return self.compressor.flush(mode)

        class Zlib:
            DEFLATED, Z_SYNC_FLUSH, compressobj = zlib.DEFLATED, zlib.Z_SYNC_FLUSH, Compressor

        monkeypatch.setattr(deflate, "DeflateSession", UNCOMPILED.DeflateSession)
        monkeypatch.setattr(UNCOMPILED, "zlib", Zlib)
        parameters, peer = agree()
        client = Client(parameters)
        message = b"a message of some length " * 5
        for _ in range(3):
            stop = False
            assert client.decompress(joined(send(peer, frames(message, rsv=0)))) == message
            stop = True
            with pytest.raises(MemoryError):
                send(peer, frames(message + b"lost", rsv=0))


class TestRFC7692Section722:
    """7.2.2: what is no message, and what is barely one."""

    @pytest.mark.parametrize(
        "payload",
        [
            b"\xff",
            b"\xff" * 10,
            b"\xff" * 100_000,
            b"\x00\x00\x00\xff\xff",  # its tail was not cut off
            b"\x00\x00\xff\xff",
            b"\x00\x05\x00\xfa\xffHel",  # a block that stops halfway
            b"\x00\x05",
            b"\x07",
            b"\x06",
            b"\x04",
            deflated(b"Hello, hello!" * 9)[:-1],
            deflated(random.Random(1).randbytes(90_000))[:-1],
            ended(b"Hello") + b"\xff",
            ended(b"Hello") + TAIL,
            ended(b"Hello")[:-1],
            b"\x78\x9c" + deflated(b"with the header of zlib"),
            b"garbage",
        ],
        ids=lambda payload: f"{payload[:12].hex()}-{len(payload)}",
    )
    def test_what_is_no_deflate_data_is_1007(self, payload: bytes) -> None:
        """A1 row 2: it ends at once, and with no message."""
        assert error(session(), frames(payload)) == 1007
        assert error(session(), frames(payload, [1, 2, 5])) == 1007
        assert error(session(), frames(payload), None) == 1007

    @pytest.mark.parametrize(
        "payload", [b"", b"\x00", b"\x02\x00", b"\x00\x00\x00\xff\xff\x00", b"\x03\x00", b"\x03\x00\x00"]
    )
    def test_ways_to_say_nothing(self, payload: bytes) -> None:
        """A1 row 2. The first is what zlib gives for an empty message behind another, and peers send it."""
        peer = session()
        for _ in range(3):
            assert receive(peer, frames(payload)) == b""
            assert receive(peer, frames(payload, [0])) == b""
            assert receive(peer, frames(payload, [len(payload)])) == b""
            assert receive(peer, frames(deflated(b"Hello"))) == b"Hello"

    def test_truncated_anywhere_it_is_no_message(self) -> None:
        payload = deflated(b"The quick brown fox jumps over the lazy dog. " * 3 + bytes(range(256)))
        for stop in range(1, len(payload)):
            assert error(session(), frames(payload[:stop])) == 1007

    @pytest.mark.parametrize(
        "payload",
        [
            # Blocks of dynamic codes, the last ones of a stream, cut short so that what a receiver adds reads as more
            # codes and as their end: zlib makes of it four bytes that nobody sent.
            "0dcf09b645200000d086af81883449a854f6bfc3ff3670cfb94fab20d45bdd535a3b74c3ddf7cc615a71a8d8cf1041218c2f851c2ff7df"
            "11c59785007b79064e46466c2d5e",
            "05c1d10a82301400d0cab4ba0f052315575774774d5047385638636494fbff4fea9caa04091bf9f0377b192ceed484be3be712a22c4971"
            "844061cb35d4fd408d",
            # Blocks of fixed codes: what is added reads as a match and a literal.
            "f348cdc9c9757575757561785f7775",
            "f348cdffffffff",
        ],
        ids=lambda payload: f"{payload[:12]}-{len(payload) // 2}",
    )
    def test_what_ends_within_a_block_is_1007(self, payload: str) -> None:
        """What is added to a message's end makes nothing of one that stops halfway."""
        data = bytes.fromhex(payload)
        added = zlib.decompressobj(-15)
        added.decompress(data)
        assert added.decompress(TAIL) != b""
        for cuts in ([], [1, 2, 5], range(1, len(data)), [len(data)]):
            assert error(session(), frames(data, cuts)) == 1007
            assert error(session(), frames(data, cuts), None) == 1007

    def test_the_empty_block_at_the_end_may_be_the_last_of_its_stream(self) -> None:
        """7.2.1 asks for an empty block without compression, and leaves BFINAL to the sender."""
        compressor = zlib.compressobj(wbits=-15)
        payload = compressor.compress(b"Hello") + compressor.flush(zlib.Z_SYNC_FLUSH) + b"\x01"
        peer = session()
        for cuts in ([], [len(payload) - 1], range(1, len(payload))):
            assert receive(peer, frames(payload, cuts)) == b"Hello"
            assert receive(peer, frames(deflated(b"Hello"), cuts)) == b"Hello"

    @given(st.binary(max_size=200), CUTS, st.one_of(st.none(), st.integers(0, 300)))
    def test_nothing_but_a_protocol_error_leaves(self, payload: bytes, cuts: list[int], limit: int | None) -> None:
        peer = session()
        for data in (payload, deflated(b"abc" * 40) + payload, b"\x00\x00\x00\xff\xff" + payload, payload + b"\x00"):
            try:
                receive(peer, frames(data, cuts), limit)
            except ProtocolError as problem:
                code, peer = problem.code, session()
            else:
                code = None
            assert code in (None, 1007, 1008, 1009)


class TestRFC7692Section7234:
    """7.2.3.4: DEFLATE streams that end within a message."""

    def test_a_stream_that_ends_with_the_payload(self) -> None:
        """Its sender should add an empty block, but not all do."""
        for cuts in ([], [3], range(1, 20)):
            peer = session()
            for _ in range(3):
                assert receive(peer, frames(ended(b"Hello"), cuts)) == b"Hello"
                assert receive(peer, frames(deflated(b"Hello"), cuts)) == b"Hello"

    @pytest.mark.parametrize("cuts", [[], [1, 2, 3], range(1, 60)])
    def test_several_streams_in_a_message(self, cuts: Sequence[int]) -> None:
        payload = ended(b"Hello") + ended(b", ") + ended(b"World") + deflated(b"!")
        assert receive(session(), frames(payload, cuts)) == b"Hello, World!"

    def test_a_long_stream_in_small_and_large_pieces(self) -> None:
        data = random.Random(7).randbytes(50_000)
        payload = ended(data) + b"\x00"
        for cuts in ([], [len(payload) - 1], [len(payload) - 2], range(0, len(payload), 8192), [8192]):
            assert receive(session(), frames(payload, cuts)) == data
            assert receive(session(), frames(payload[:-1], cuts)) == data

    def test_the_window_reaches_into_the_stream_before(self) -> None:
        text = random.Random(3).randbytes(500)
        sender = zlib.compressobj(wbits=-12, zdict=text)
        second = (sender.compress(text) + sender.flush(zlib.Z_SYNC_FLUSH))[:-4]
        assert len(second) < 30
        for fresh in (False, True):
            peer = session(client_no_context_takeover=fresh)
            assert receive(peer, frames(ended(text) + second)) == text * 2
            assert receive(peer, frames(ended(text) + second, [100, 400, 510])) == text * 2

    def test_many_streams_in_a_frame_are_1008(self) -> None:
        """Each takes a new decompressor, for two bytes."""
        assert receive(session(), frames(ended(b"") * 10 + b"\x00")) == b""
        assert error(session(), frames(ended(b"") * 500_000)) == 1008

    def test_many_streams_take_little_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = 0

        class Zlib:
            error = zlib.error

            @staticmethod
            def decompressobj(*arguments: Any) -> Any:
                nonlocal made
                made += 1
                return zlib.decompressobj(*arguments)

        monkeypatch.setattr(deflate, "DeflateSession", UNCOMPILED.DeflateSession)
        monkeypatch.setattr(UNCOMPILED, "zlib", Zlib)
        assert error(session(), frames(ended(b"") * 500_000)) == 1008
        assert made < 20


class Peak:
    """The most memory allocated within a block, beyond what was allocated before, in bytes."""

    def __enter__(self) -> Peak:
        tracemalloc.start()
        tracemalloc.reset_peak()
        self.before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *exception: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1] - self.before
        tracemalloc.stop()


MIB = 1024 * 1024


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """1 MB that inflates to 1 GiB."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = b"".join(compressor.compress(bytes(MIB)) for _ in range(1024))
    payload += compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
    assert 10**6 < len(payload) < 1.1 * 10**6
    return payload


class TestBombs:
    """A1 rows 1 to 3: the limit is on what comes out, and is met before it is passed."""

    @pytest.mark.parametrize("bits", ["12", "15"])
    @pytest.mark.parametrize("limit", [1, 1000, 65_536, MIB])
    def test_a_bomb_is_1009_within_64_kib_of_the_limit(self, bomb: bytes, bits: str, limit: int) -> None:
        """A1 rows 1 and 3."""
        peer = session({"client_max_window_bits": bits}, client_max_window_bits=15)
        message = frames(bomb)
        with Peak() as peak:
            assert error(peer, message, limit) == 1009
        assert peak.bytes <= limit + 64 * 1024

    def test_a_bomb_in_fragments_is_1009(self, bomb: bytes) -> None:
        """The caller gives each frame what is left of the message's limit."""
        peer = session()
        message = frames(bomb, range(10, 5_000, 10))
        held = []
        with Peak() as peak, pytest.raises(ProtocolError) as caught:
            for frame in message:
                held.append(peer.decode(frame, MIB - sum(map(len, held))).payload)
        assert caught.value.code == 1009
        assert sum(map(len, held)) > MIB // 2
        assert peak.bytes <= MIB + 64 * 1024

    def test_no_input_is_copied_over_and_over(self, bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """What zlib leaves of its input is copied for each piece of output, so it gets little at a time."""
        fed = []

        class Decompressor:
            eof, unused_data = False, b""

            def __init__(self, *arguments: Any) -> None:
                self.decompressor = zlib.decompressobj(*arguments)

            def decompress(self, data: bytes, room: int) -> bytes:
                fed.append(len(data))
                assert 0 < room <= 64 * 1024
                chunk = self.decompressor.decompress(data, room)
                self.unconsumed_tail = self.decompressor.unconsumed_tail
                self.eof = self.decompressor.eof
                return chunk

        class Zlib:
            error, decompressobj = zlib.error, Decompressor

        monkeypatch.setattr(deflate, "DeflateSession", UNCOMPILED.DeflateSession)
        monkeypatch.setattr(UNCOMPILED, "zlib", Zlib)
        assert error(session({}), frames(bomb), 8 * MIB) == 1009
        assert max(fed) <= 16 * 1024
        assert len(fed) < 300

    def test_the_limit_itself_is_allowed(self) -> None:
        payload = deflated(bytes(MIB))
        assert receive(session(), frames(payload), MIB) == bytes(MIB)
        assert error(session(), frames(payload), MIB - 1) == 1009
        assert receive(session(), frames(payload), None) == bytes(MIB)

    def test_a_limit_of_nothing(self) -> None:
        """What is left when a message has reached its limit. zlib takes 0 for no limit."""
        assert receive(session(), frames(b"\x00"), 0) == b""
        assert receive(session(), frames(b""), 0) == b""
        assert error(session(), frames(deflated(b"a")), 0) == 1009

    def test_a_plain_frame_has_a_limit_too(self) -> None:
        assert receive(session(), frames(b"123", rsv=0), 3) == b"123"
        assert error(session(), frames(b"1234", rsv=0), 3) == 1009

    def test_empty_blocks_take_no_memory(self) -> None:
        """A1 row 2: no output comes out of a megabyte."""
        message = frames(b"\x00\x00\x00\xff\xff" * 200_000 + b"\x00")
        peer = session()
        with Peak() as peak:
            assert receive(peer, message, 0) == b""
        assert peak.bytes <= 64 * 1024


class TestMemory:
    """A1 row 16: what a session holds, counted by tracemalloc."""

    COUNT = 20

    def held(self, use: bool, offer: dict[str, str | None] | None = None, **options: Any) -> float:
        """Bytes of one session between messages, after it has echoed some where it is in ``use``."""
        extension = PermessageDeflate(**options)
        offer = {"client_max_window_bits": None} if offer is None else offer
        sessions = []
        # What sessions share is made by the first one.
        first = session(offer, **options)
        receive(first, frames(deflated(b"a" * 100)))
        first.encode(Frame.binary(b"a" * 100))
        del first
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(self.COUNT):
            answer = extension.accept(offer)
            assert answer is not None
            parameters, peer = answer
            sessions.append(peer)
            if use:
                client = Client(parameters)
                for i in range(40):
                    data = random.Random(1000 * number + i).randbytes(1000)
                    result = peer.encode(Frame.binary(receive(peer, frames(client.compress(data)))))
                    assert result.rsv == RSV1
                del client
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return (after - before) / self.COUNT

    def test_an_unused_session_has_no_contexts(self) -> None:
        assert self.held(False) < 500

    def test_a_used_session_at_the_defaults(self) -> None:
        assert 30_000 < self.held(True) < 50_000

    def test_a_used_session_whose_client_has_the_largest_window(self) -> None:
        assert self.held(True, {}) < 80_000

    def test_a_session_without_takeover_keeps_nothing(self) -> None:
        assert self.held(True, server_no_context_takeover=True, client_no_context_takeover=True) < 500

    def test_short_messages_make_no_compressor(self) -> None:
        peer = session()
        with Peak() as peak:
            for _ in range(10):
                send(peer, frames(b"short", rsv=0))
        assert peak.bytes < 2000

    def test_sessions_have_no_dict(self) -> None:
        for instance in (session(), PermessageDeflate()):
            assert not hasattr(instance, "__dict__")
        assert sys.getsizeof(session()) < 200
