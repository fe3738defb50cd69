"""Whatever comes in the place of a request, only a HeadError leaves the reader of heads and only a HandshakeError the
handshake, each with a status that fits it; what is a head, what is not and what is behind it are the same in whatever
pieces it comes, and a handshake that is taken is answered with one well-formed 101.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fuzzing.builds import fuzz, load
from fuzzing.inputs import CUTS, Decisions, ways

load("protocol.deflate", "protocol.handshake", "http_head")

from geventws import http_head  # noqa: E402
from geventws.errors import HandshakeError  # noqa: E402
from geventws.http_head import HeadBuffer, HeadError, RequestHead, parse_head  # noqa: E402
from geventws.protocol.deflate import PermessageDeflate  # noqa: E402
from geventws.protocol.handshake import (  # noqa: E402
    check_origin,
    choose_protocol,
    negotiate,
    read_handshake,
    response_head,
)

DECISIONS = 2 + CUTS
#: Lines and heads that a fuzzer's inputs reach.
SMALL = {"MAX_FIELDS": 12, "MAX_LINE": 200, "MAX_HEAD": 900}
USUAL = {name: getattr(http_head, name) for name in SMALL}
#: What ends any head, or makes none of it.
END = b"\r\n\r\n"
STATUS = (400, 414, 431, 501, 505)
ORIGINS = ("same", None, ("https://example.com", "http://localhost:8000"), ())

_FIELD = re.compile(r"(CONTENT_TYPE|CONTENT_LENGTH|HTTP_[!#$%&'*+.^`|~0-9A-Z_]+)")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*")


def limits(flags: int, wire: bytes) -> dict[str, int]:
    """The limits: the usual ones, small ones, or just what ``wire`` takes and up to two more or less."""
    if not flags & 4:
        return USUAL if flags & 1 else SMALL
    lines = wire.split(b"\r\n")
    just = {
        "MAX_FIELDS": len(lines) - 2 + (flags >> 3 & 1),
        "MAX_LINE": max(map(len, lines)) - 1 + (flags >> 4 & 3),
        "MAX_HEAD": len(wire) - 2 + (flags >> 6 & 3),
    }
    # Below 0 even the empty lines before a request are over a limit, or not, by how they are cut.
    return {name: max(0, value) for name, value in just.items()}


class Outcome(NamedTuple):
    """What a connection's bytes were taken for."""

    heads: list[RequestHead]
    refused: bool
    #: What waits for more; empty behind a refusal.
    rest: bytes


def read(pieces: list[bytes]) -> Outcome:
    """Takes head by head, each one behind the other."""
    buffer = HeadBuffer()
    heads: list[RequestHead] = []
    try:
        for piece in pieces:
            buffer.feed(piece)
            while (head := buffer.take_head()) is not None:
                heads.append(parse_head(head))
    except HeadError as error:
        assert type(error) is HeadError
        assert error.status in STATUS, error.status
        assert error.message.isascii()
        assert error.message.isprintable()
        return Outcome(heads, True, b"")
    return Outcome(heads, False, bytes(buffer.data))


def check_head(head: RequestHead) -> None:
    """Nothing of a head can be taken for something else behind us."""
    assert head.version in ("HTTP/1.0", "HTTP/1.1")
    assert not head.chunked or head.content_length is None
    assert head.content_length is None or head.content_length >= 0
    assert head.version == "HTTP/1.0" or "HTTP_HOST" in head.fields
    assert isinstance(head.closes, bool)
    for name, value in head.fields.items():
        assert _FIELD.fullmatch(name), name
        assert _VALUE.fullmatch(value), value
        assert value == value.strip(" \t")


def check_handshake(head: RequestHead, origins: object, options: PermessageDeflate) -> None:
    """Takes a request for a handshake, and answers it."""
    environ = {"REQUEST_METHOD": head.method, "SERVER_PROTOCOL": head.version, **head.fields}
    try:
        check_origin(environ, origins)  # type: ignore[arg-type]
        handshake = read_handshake(environ)
    except HandshakeError as error:
        assert type(error) is HandshakeError
        assert error.status in (400, 403, 405, 426), error.status
        assert error.message.isascii()
        assert error.message.isprintable()
        return
    protocol = choose_protocol(handshake.protocols, ["v2.chat", "chat"])
    assert protocol is None or protocol in handshake.protocols
    answer, _ = negotiate(handshake.extensions, [options])
    response = response_head(handshake.key, protocol=protocol, extensions=answer)
    first, *lines, last, end = response.split(b"\r\n")
    assert first == b"HTTP/1.1 101 Switching Protocols"
    assert last == end == b""
    assert len(lines) == 3 + (protocol is not None) + (answer is not None)
    for line in lines:
        assert _LINE.fullmatch(line), line


def one_input(data: bytes) -> None:
    """Reads one input in every way, and takes what it is for handshakes."""
    decisions = Decisions(data, DECISIONS)
    flags = decisions.byte()
    origins = decisions.choice(ORIGINS)
    cuts = decisions.cuts()
    wire = decisions.rest
    for name, value in limits(flags, wire).items():
        setattr(http_head, name, value)
    whole = [wire], [wire + END]
    outcome, ended = map(read, whole)
    for pieces in ways(wire, cuts)[1:]:
        # What ends it comes at once or byte by byte, as the last piece does.
        last = [END] if flags & 2 else [END[i : i + 1] for i in range(4)]
        other, other_ended = read(pieces), read([*pieces, *last])
        told = f"in {len(pieces)} pieces: {other}, whole: {outcome}"
        assert other_ended == ended, f"in {len(pieces)} pieces, and ended: {other_ended}, whole: {ended}"
        assert other.heads == outcome.heads, told
        # A head that is not whole may be refused now or when it is, for not every line is looked at before.
        assert other.rest == outcome.rest or other.refused or outcome.refused, told
        assert not (other.refused or outcome.refused) or ended.refused, told
    for head in ended.heads:
        check_head(head)
        check_handshake(head, origins, PermessageDeflate())


if __name__ == "__main__":
    fuzz(one_input)
