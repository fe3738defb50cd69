"""The opening handshake of a client (RFC 6455 4.1): the request that it sends, and a response read strictly.

Bytes in, bytes out, as in handshake.py. What is wrong with a server's answer is a ``HandshakeFailed`` that says what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from geventws.arguments import shown
from geventws.errors import HandshakeError, HandshakeFailed
from geventws.protocol.handshake import (
    accept_value,
    check_field,
    cut,
    is_token,
    lists,
    parse_extensions,
    serialise_extension,
)

if TYPE_CHECKING:
    from geventws.protocol.extensions import ClientExtension, ExtensionSession

__all__ = ["Agreement", "ResponseHead", "ResponseHeadBuffer", "check_response", "header_pairs", "request_head"]

#: Header fields of one response.
MAX_FIELDS = 200

#: All bytes that may stand in a line, as in http_head.py.
_TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_match_status_line = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (.*))?").fullmatch
_START = b"HTTP/1."


class ResponseHead(NamedTuple):
    """A status line and its fields, names as they came."""

    version: str
    status: int
    reason: str
    fields: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """The values of a field, joined with commas; None without one. ``name`` is in lower case."""
        values = [value for field, value in self.fields if field.lower() == name]
        return ", ".join(values) if values else None

    def single(self, name: str) -> str | None:
        """The value of a field that may stand once; raises ``HandshakeFailed`` for one that is repeated."""
        values = [value for field, value in self.fields if field.lower() == name.lower()]
        if len(values) > 1:
            raise HandshakeFailed(f"the server's answer has the header {name} {len(values)} times")
        return values[0] if values else None


class ResponseHeadBuffer:
    """Collects what a connection brings until a head of at most ``limit`` bytes is whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: What is left of it: interim responses count as well.
        self._left = limit
        #: What came and was not taken yet; behind the head taken, what the server sent next.
        self.data = bytearray()
        self._scanned = 0

    def take_head(self) -> ResponseHead | None:
        """The head, or None while it is incomplete.

        Raises ``HandshakeFailed`` as soon as it can become none that is allowed.
        """
        data = self.data
        end = data.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if not data.startswith(_START[: len(data)]):
            # An alert or a handshake of TLS.
            hint = ", but TLS: see whether it is wss://" if bytes(data[:2]) in (b"\x15\x03", b"\x16\x03") else ""
            raise HandshakeFailed(f"what answers does not speak HTTP/1.1{hint}: {bytes(data[:40])!r}")
        if end > self._left or (end < 0 and len(data) > self._left + 3):
            raise HandshakeFailed(f"the head of the server's answer is longer than {self._limit} bytes")
        if end < 0:
            if data.count(b"\n", self._scanned) != data.count(b"\r\n", max(0, self._scanned - 1)):
                raise HandshakeFailed("the server's answer has a line that ends in a bare LF")
            self._scanned = len(data)
            return None
        head = bytes(data[:end])
        del data[: end + 4]
        self._scanned = 0
        self._left -= end
        return _parse_head(head)


def _parse_head(head: bytes) -> ResponseHead:
    lines = head.decode("latin-1").split("\r\n")
    found = _match_status_line(lines[0])
    if found is None:
        raise HandshakeFailed(f"the server's answer begins with no status line of HTTP/1.1: {cut(lines[0])}")
    if head.translate(None, _TEXT) != b"\r\n" * (len(lines) - 1):
        raise HandshakeFailed("the server's answer has a control character or a bare CR or LF in its head")
    if len(lines) > MAX_FIELDS + 1:
        raise HandshakeFailed(f"the server's answer has more than {MAX_FIELDS} header fields")
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not is_token(name):
            raise HandshakeFailed(f"the server's answer has a malformed header field: {cut(line)}")
        fields.append((name, value.strip(" \t")))
    return ResponseHead(f"HTTP/1.{found[1]}", int(found[2]), found[3] or "", fields)


def header_pairs(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that a caller adds to the request, checked; Host is the caller's to replace.

    Raises ``ValueError`` or ``TypeError`` that names the header.
    """
    allowed = 'headers must be a dict or a list of pairs, as in [("Cookie", "a=b")]'
    if isinstance(headers, (str, bytes)) or not isinstance(headers, Iterable):
        raise TypeError(f"{allowed}, not {type(headers).__name__}")
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"{allowed}, and {shown(pair)} is no pair")
        check_field(*pair, "the request of a handshake")
    return pairs


def request_head(
    target: str,
    host: str,
    key: str,
    *,
    protocols: Sequence[str] = (),
    extensions: Sequence[ClientExtension] = (),
    headers: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The request that offers a WebSocket (RFC 6455 4.1).

    ``key`` is the Sec-WebSocket-Key; ``headers`` are those of `header_pairs`, and may replace Host.

    Raises ``ValueError`` for protocols that are no tokens or repeated.
    """
    for protocol in protocols:
        if not isinstance(protocol, str) or not is_token(protocol):
            raise ValueError(f"protocols must be tokens (RFC 6455 4.1), and {protocol!r} is none")
    if len(set(protocols)) != len(protocols):
        raise ValueError(f"protocols names one twice: {', '.join(protocols)}")
    lines = [f"GET {target} HTTP/1.1"]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append(f"Host: {host}")
    lines += [
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    if protocols:
        lines.append(f"Sec-WebSocket-Protocol: {', '.join(protocols)}")
    offers = [serialise_extension(each.name, parameters) for each in extensions for parameters in each.offers()]
    if offers:
        lines.append(f"Sec-WebSocket-Extensions: {', '.join(offers)}")
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Agreement(NamedTuple):
    """What a 101 says that a handshake agreed on."""

    protocol: str | None
    extensions: list[ExtensionSession]
    #: The RSV bits that the extensions claim.
    rsv: int


def check_response(
    head: ResponseHead, key: str, protocols: Sequence[str], extensions: Sequence[ClientExtension]
) -> Agreement:
    """Checks the 101 that answers a request (RFC 6455 4.1); ``protocols`` and ``extensions`` are those offered.

    Raises ``HandshakeFailed``.
    """
    if head.version != "HTTP/1.1":
        raise HandshakeFailed(f"the server's 101 is of {head.version}, which has no upgrade")
    upgrade = head.get("upgrade")
    if upgrade is None or upgrade.lower() != "websocket":
        raise HandshakeFailed(f"the server's 101 lacks the header Upgrade: websocket; it is {_told(upgrade)}")
    connection = head.get("connection")
    if connection is None or not lists(connection, "upgrade"):
        raise HandshakeFailed(f"the server's 101 lacks the header Connection: Upgrade; it is {_told(connection)}")
    accept = head.single("Sec-WebSocket-Accept")
    if accept != accept_value(key):
        raise HandshakeFailed(
            f"the server's Sec-WebSocket-Accept does not answer this request, but is {_told(accept)}: "
            "it is no WebSocket server, or something in between answers for it"
        )
    protocol = head.single("Sec-WebSocket-Protocol")
    if protocol is not None and protocol not in protocols:
        offered = ", ".join(protocols) or "none"
        raise HandshakeFailed(f"the server chose the subprotocol {cut(protocol)}, and those offered were: {offered}")
    sessions, rsv = _agree(head.get("sec-websocket-extensions"), extensions)
    return Agreement(protocol, sessions, rsv)


def _agree(answer: str | None, extensions: Sequence[ClientExtension]) -> tuple[list[ExtensionSession], int]:
    if answer is None:
        return [], 0
    try:
        # It passes over those that repeat a parameter, which a server may not.
        agreed = parse_extensions(answer)
    except HandshakeError as error:
        raise HandshakeFailed(f"of the server's answer: {error.message}") from None
    if len(agreed) != sum(1 for element in answer.split(",") if element.strip(" \t")):
        raise HandshakeFailed(f"the server answered an extension with a parameter twice: {cut(answer)}")
    offered = {extension.name.lower(): extension for extension in extensions}
    sessions: list[ExtensionSession] = []
    rsv = 0
    for name, parameters in agreed:
        extension: Any = offered.pop(name, None)
        if extension is None:
            raise HandshakeFailed(f"the server chose the extension {cut(name)}, which was not offered")
        if extension.rsv & rsv:
            raise HandshakeFailed(f"the server chose {cut(name)} and another extension that claims the same RSV bit")
        try:
            sessions.append(extension.agree(parameters))
        except ValueError as error:
            raise HandshakeFailed(f"the server answered {cut(name)} with what was not offered: {error}") from None
        rsv |= extension.rsv
    return sessions, rsv


def _told(value: str | None) -> str:
    return "missing" if value is None else cut(value)
