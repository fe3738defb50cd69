"""Whatever a client offers, only a HandshakeError with 400 leaves and what is agreed on keeps RFC 7692 7.1; whatever it
deflates, only a ProtocolError with a code that may be sent leaves, no message is over the limit, each one taken is what
zlib makes of it, and both builds tell the same, word for word; what is sent inflates to what it was, in its window.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping

from fuzzing.builds import fuzz, load
from fuzzing.inputs import CUTS, Decisions, client_frame, pieces, records, ways

COMPILED, PURE = load("protocol.deflate", "protocol.handshake")

from fuzzing.reading import Options, Outcome, read  # noqa: E402
from geventws.errors import HandshakeError  # noqa: E402
from geventws.frames import Frame, Opcode  # noqa: E402
from geventws.protocol.deflate import PermessageDeflate  # noqa: E402
from geventws.protocol.handshake import negotiate, parse_extensions  # noqa: E402
from tests.wire import BINARY, CONTINUATION, TEXT  # noqa: E402

DECISIONS = 8 + CUTS
LIMITS = (0, 1024 * 1024, 1, 100, 125, 1023, 1024, 1025, 32 * 1024, 32 * 1024 + 1, 70_000)
#: Limits by what the largest message of an input has beyond them; None for one of LIMITS.
EDGES = (None, 0, 1, -1)
BITS = (15, 8, 9, 10, 11, 12, 13, 14)
#: Fragments of a message, and bytes of one that is sent: beyond a window of 12 bits, the default.
FRAGMENTS = 12
LONGEST = 6_000
NAME = "permessage-deflate"
TAIL = b"\x00\x00\xff\xff"
#: An empty block that is the last one: where one ended, a stream ends with it and nothing comes out.
FINAL = b"\x01\x00\x00\xff\xff"
Parameters = Mapping[str, "str | None"]


def options_by(decisions: Decisions) -> PermessageDeflate:
    """A server's options."""
    flags = decisions.byte()
    bits = decisions.byte()
    effort = decisions.byte()
    return PermessageDeflate(
        server_no_context_takeover=bool(flags & 1),
        client_no_context_takeover=bool(flags & 2),
        server_max_window_bits=BITS[bits & 7],
        client_max_window_bits=BITS[bits >> 3 & 7],
        level=effort % 11 - 1,
        memory_level=(effort >> 4) % 9 + 1,
        min_size=0 if flags & 4 else 64,
    )


def check_answer(options: PermessageDeflate, offer: Parameters, answer: Parameters) -> None:
    """RFC 7692 7.1: an answer says what the offer allows and what the server wants."""
    allowed = {"server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits"}
    if "client_max_window_bits" in offer:
        allowed.add("client_max_window_bits")
    assert set(answer) <= allowed, answer
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        assert (name in answer) == (name in offer or getattr(options, name))
        assert answer.get(name) is None
    for name in ("server_max_window_bits", "client_max_window_bits"):
        if name in answer:
            bits = int(answer[name] or "")
            assert 8 <= bits <= min(15, getattr(options, name), int(offer.get(name) or 15))
    if "server_max_window_bits" in offer:
        assert "server_max_window_bits" in answer


def negotiated(options: PermessageDeflate, header: str) -> Parameters | None:
    """What is agreed on with a client that offers ``header``; None for nothing, or where it is malformed."""
    try:
        offers = parse_extensions(header)
    except HandshakeError as error:
        assert type(error) is HandshakeError
        assert error.status == 400
        assert error.message.isascii()
        assert error.message.isprintable()
        return None
    text, sessions = negotiate(offers, [options])
    assert (text is None) == (not sessions)
    if text is None:
        return None
    ((name, answer),) = parse_extensions(text)
    assert name == NAME
    accepted = [offer for offered, offer in offers if offered == NAME and options.accept(offer) is not None]
    check_answer(options, accepted[0], answer)
    return answer


class Peer:
    """A client's half of permessage-deflate, written with zlib from RFC 7692 7.2."""

    def __init__(self, answer: Parameters) -> None:
        # zlib deflates with a window of 9 bits in the place of 8, which reads the same.
        self.bits = max(9, int(answer.get("client_max_window_bits") or 15))
        self.fresh = "client_no_context_takeover" in answer
        self.server_bits = int(answer.get("server_max_window_bits") or 15)
        self.server_fresh = "server_no_context_takeover" in answer
        self.compressor = zlib.compressobj(wbits=-self.bits)
        self.decompressor = zlib.decompressobj(-self.server_bits)

    def deflate(self, message: bytes, cuts: bytes) -> bytes:
        """A message as the client sends it, flushed where it is cut."""
        if self.fresh:
            self.compressor = zlib.compressobj(wbits=-self.bits)
        payload = b"".join(
            self.compressor.compress(piece) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
            for piece in pieces(message, cuts, FRAGMENTS) or [b""]
        )
        return payload.removesuffix(TAIL) if payload.endswith(TAIL) else payload + b"\x00"

    def inflate(self, payload: bytes) -> bytes:
        """A message that the server sent; 64 bytes at a time, so that zlib finds a reference to before the window."""
        if self.server_fresh:
            self.decompressor = zlib.decompressobj(-self.server_bits)
        message = b""
        data = payload + TAIL
        while True:
            piece = self.decompressor.decompress(data, 64)
            message += piece
            data = self.decompressor.unconsumed_tail
            if not data and len(piece) < 64:
                assert not self.decompressor.eof
                return message


def fragments(first: int, payload: bytes, cuts: bytes, rsv: int) -> bytes:
    """A message's frames as the client sends them."""
    parts = pieces(payload, cuts, FRAGMENTS) or [b""]
    opcode = TEXT if first & 1 else BINARY
    return b"".join(
        client_frame(CONTINUATION if i else opcode, part, i == len(parts) - 1, 0 if i else rsv)
        for i, part in enumerate(parts)
    )


def expected(messages: list[tuple[int, bytes]], answer: Parameters) -> tuple[list[str | bytes], bool | None]:
    """What zlib alone makes of the messages, and whether the one behind them is none (True), to be refused (False), for
    it ends within a block, or not for a plain loop to judge (None).
    """
    bits = max(9, int(answer.get("client_max_window_bits") or 15))
    inflater = zlib.decompressobj(-bits)
    result: list[str | bytes] = []
    for first, payload in messages:
        if first & 2:
            if "client_no_context_takeover" in answer:
                inflater = zlib.decompressobj(-bits)
            # Some peers send an empty message as nothing at all.
            if payload:
                try:
                    payload = inflater.decompress(payload)
                    if inflater.eof:
                        return result, None
                    # Within a block, what is added is read as more of it: what comes out then is not of the message.
                    if inflater.decompress(TAIL):
                        return result, False
                    whole = inflater.copy()
                    if whole.decompress(FINAL):
                        return result, False
                except zlib.error:
                    return result, None
                if inflater.eof or not whole.eof or whole.unused_data:
                    return result, None
        try:
            result.append(payload.decode() if first & 1 else payload)
        except UnicodeDecodeError:
            return result, None
    return result, True


def read_both(
    wires: list[bytes], options: Options, server: PermessageDeflate, offer: Parameters, cuts: bytes
) -> Outcome:
    """Reads each of ``wires``, which say the same, in every way with both builds; gives what the first one gave."""
    first: Outcome | None = None
    for wire in wires:
        whole: Outcome | None = None
        for way in ways(wire, cuts):
            outcomes = []
            for build in (COMPILED, PURE):
                accepted = server.accept(offer)
                assert accepted is not None
                outcomes.append(read(build, way, options, [accepted[1]], 4))
            compiled, pure = outcomes
            assert compiled == pure, f"in {len(way)} pieces:\ncompiled {compiled}\npure     {pure}"
            compiled = compiled.whatever_the_cuts()
            whole = whole or compiled
            assert compiled == whole, f"in {len(way)} pieces: {compiled}, whole: {whole}"
        assert whole is not None
        first = first or whole
        # A limit of a frame's own may refuse what would pass in fragments; what passes must be the same.
        if not first.error and not whole.error:
            assert first.queue == whole.queue
    assert first is not None
    return first


def check_inflating(
    data: bytes, server: PermessageDeflate, offer: Parameters, options: Options, edge: int | None, cuts: bytes
) -> None:
    """Hostile payloads: ``data`` are records of messages, whose first byte says text (1), compressed (2)."""
    accepted = server.accept(offer)
    assert accepted is not None
    messages = records(data, 16)
    model, complete = expected(messages, accepted[0])
    largest = max((len(m.encode() if isinstance(m, str) else m) for m in model), default=0)
    if edge is not None and largest > edge:
        options = options._replace(limit=largest - edge)
    whole = b"".join(fragments(first, payload, b"\xff", 2 * (first & 2)) for first, payload in messages)
    cut = b"".join(fragments(first, payload, cuts, 2 * (first & 2)) for first, payload in messages)
    outcome = read_both([whole, cut], options, server, offer, cuts)
    assert outcome.queue[: len(model)] == model[: len(outcome.queue)]
    assert complete is not False or outcome.error is not None, "taken, though it ends within a block"
    # What deflate made much longer is refused by its length on the wire.
    limit = options.limit or sys.maxsize
    if limit < largest:
        assert outcome.error is not None
        assert outcome.error[0] == 1009, outcome.error
    elif limit >= max((largest, *(len(payload) for _, payload in messages))):
        assert len(outcome.queue) >= len(model), f"refused, though zlib reads it: {outcome.error}"
        assert complete is not True or outcome.error is None, f"refused, though zlib reads it: {outcome.error}"


def check_round_trip(data: bytes, server: PermessageDeflate, offer: Parameters, options: Options, cuts: bytes) -> None:
    """What either side sends inflates to what it was."""
    accepted = server.accept(offer)
    assert accepted is not None
    answer, session = accepted
    peer = Peer(answer)
    messages: list[str | bytes] = []
    wire = b""
    for first, payload in records(data, 5):
        # Text that is repeated by its first byte's upper half, so that windows matter.
        payload = (payload * (1 + (first >> 4) * (first >> 4)))[:LONGEST]
        if first & 1:
            payload = payload.decode("latin-1").encode()
        messages.append(payload.decode() if first & 1 else payload)
        wire += fragments(first, peer.deflate(payload, cuts), cuts, 4)
        parts = pieces(payload, cuts[::-1], FRAGMENTS) or [b""]
        opcode = Opcode.TEXT if first & 1 else Opcode.BINARY
        sent = []
        for i, part in enumerate(parts):
            out = session.encode(Frame(Opcode.CONTINUATION if i else opcode, part, i == len(parts) - 1))
            assert out.opcode == (Opcode.CONTINUATION if i else opcode)
            assert out.fin == (i == len(parts) - 1)
            assert out.rsv in ((0, 4) if i == 0 else (0,))
            sent.append(out)
        joined = b"".join(out.payload for out in sent)
        assert (peer.inflate(joined) if sent[0].rsv else joined) == payload
    outcome = read_both([wire], options._replace(limit=0), server, offer, cuts)
    assert outcome.error is None, outcome.error
    assert outcome.queue == messages


def one_input(data: bytes) -> None:
    """Negotiates with the first line of one input and has the rest read or sent."""
    decisions = Decisions(data, DECISIONS)
    flags = decisions.byte()
    server = options_by(decisions)
    options = Options(limit=decisions.choice(LIMITS), raw=bool(flags & 2))
    edge = decisions.choice(EDGES)
    decisions.byte()
    decisions.byte()
    cuts = decisions.cuts()
    header, _, rest = decisions.rest.partition(b"\n")
    offer: Parameters = {}
    answer = negotiated(server, header.decode("latin-1"))
    if answer is None:
        # Where nothing is agreed on, a plain offer is, so that what is behind the line counts in any case.
        offer = {"client_max_window_bits": None}
        if server.accept(offer) is None:
            return
    else:
        accepted = [offer for name, offer in parse_extensions(header.decode("latin-1")) if name == NAME]
        offer = next(offer for offer in accepted if server.accept(offer) is not None)
    if flags & 1:
        check_round_trip(rest, server, offer, options._replace(raw=False), cuts)
    elif flags & 2:
        wire = b"".join(fragments(first, payload, cuts, first >> 1 & 7) for first, payload in records(rest, 16))
        read_both([wire], options, server, offer, cuts)
    else:
        check_inflating(rest, server, offer, options, edge, cuts)


if __name__ == "__main__":
    fuzz(one_input)
