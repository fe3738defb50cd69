"""Whatever bytes a Reader is fed, in whatever pieces, only a ProtocolError with a code that may be sent leaves it, what
it queues keeps the limit, and both builds tell the same, word for word.
"""

from __future__ import annotations

import os
from typing import Any

from fuzzing.builds import fuzz, load
from fuzzing.inputs import CUTS, Decisions, client_frame, records, ways

COMPILED, PURE = load("protocol.deflate", "protocol.handshake")

from fuzzing.reading import Options, Outcome, read  # noqa: E402
from geventws.errors import ProtocolError  # noqa: E402
from geventws.frames import Frame  # noqa: E402
from geventws.protocol.deflate import PermessageDeflate  # noqa: E402
from tests.wire import frame  # noqa: E402

DECISIONS = 6 + CUTS
LIMITS = (0, 1024 * 1024, 125, 126, 1, 7, 300, 70_000)
FRAGMENTS = (0, 1024, 1, 2, 3, 10)
READ_LIMITS = (0, 1, 100, 1000, 64 * 1024)
#: Set by the runner to see that a difference between the builds is found.
PLANTED = bool(os.environ.get("GEVENTWS_FUZZ_FAULT"))


class Reversing:
    """An extension that claims RSV2 and turns the payload of a frame that has it around."""

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        if limit is not None and len(frame.payload) > limit:
            raise ProtocolError(1009, "a payload is too long to be turned around")
        if not frame.rsv & 2:
            return frame
        if frame.payload[:1] == b"!":
            raise ProtocolError(1007, "a payload can't be turned around")
        return frame._replace(payload=frame.payload[::-1], rsv=frame.rsv & ~2)


def deflate(**parameters: str | None) -> Any:
    """A new session's half of permessage-deflate."""
    answer = PermessageDeflate().accept(parameters)
    assert answer is not None
    return answer[1]


#: Extensions as a session has them, and the RSV bits that they claim.
EXTENSIONS = (
    (list, 0),
    (lambda: [deflate(client_max_window_bits=None)], 4),
    (lambda: [deflate(client_no_context_takeover=None)], 4),
    (lambda: [Reversing()], 2),
    (lambda: [Reversing(), deflate(client_max_window_bits="9")], 6),
    (lambda: [deflate()], 7),
)


def wire_of(data: bytes, client: bool) -> bytes:
    """Frames for ``data`` read as records: a first byte and a payload each."""
    wire = b""
    for first, payload in records(data):
        opcode, fin, rsv = first & 0x0F, bool(first & 0x80), first >> 4 & 7
        if client:
            wire += frame(opcode, payload, fin=fin, rsv=rsv, key=None)
        else:
            wire += client_frame(opcode, payload, fin, rsv)
    return wire


def check_rules(data: bytes) -> None:
    """Has both builds' FrameRules judge frames that an app might send."""
    compiled, pure = COMPILED.codec.FrameRules(), PURE.codec.FrameRules()
    for first, payload in records(data):
        made = Frame(first & 0x0F, payload, bool(first & 0x80), first >> 4 & 7)  # type: ignore[arg-type]
        verdicts = []
        for rules in (compiled, pure):
            try:
                rules.check(made)
            except ValueError as error:
                verdicts.append(str(error))
            else:
                verdicts.append("")
        assert verdicts[0] == verdicts[1], verdicts


def one_input(data: bytes) -> None:
    """Reads one input in every way with both builds."""
    decisions = Decisions(data, DECISIONS)
    flags = decisions.byte()
    stop_after = decisions.byte()
    options = Options(
        client=bool(flags & 1),
        raw=bool(flags & 2),
        limit=decisions.choice(LIMITS),
        max_fragments=decisions.choice(FRAGMENTS),
        read_limit=decisions.choice(READ_LIMITS),
        eager=not flags & 4,
        stop_after=stop_after if 0 < stop_after < 8 else -1,
    )
    extensions, rsv = decisions.choice(EXTENSIONS)
    cuts = decisions.cuts()
    wire = decisions.rest
    if flags & 8:
        check_rules(wire)
        wire = wire_of(wire, options.client)
    first: Outcome | None = None
    for pieces in ways(wire, cuts):
        compiled = read(COMPILED, pieces, options, extensions(), rsv)
        pure = read(PURE, pieces, options, extensions(), rsv)
        if PLANTED and pure.error and pure.error[0] == 1009:
            pure = pure._replace(error=(1009, "planted"))
        assert compiled == pure, f"{options}, in {len(pieces)} pieces:\ncompiled {compiled}\npure     {pure}"
        # When an app takes messages depends on the pieces, and with that what our own Close still finds in the queue.
        if options.stop_after >= 0:
            continue
        if first is None:
            first = compiled.whatever_the_cuts()
        assert compiled.whatever_the_cuts() == first, f"{options}, in {len(pieces)} pieces: {compiled}, whole: {first}"


if __name__ == "__main__":
    fuzz(one_input)
