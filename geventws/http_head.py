"""The head of an HTTP/1.1 request, read strictly: what two could read in two ways is refused (RFC 9112 11.2).

Sans I/O: bytes come in, a `RequestHead` or a `HeadError` comes out. Field names become the keys of a WSGI environ, and
all requests share the strings of the usual ones.
"""

from __future__ import annotations

import re
from sys import intern
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["COMMON_FIELDS", "HeadBuffer", "HeadError", "RequestHead", "parse_head"]

#: Header fields of one request.
MAX_FIELDS = 100
#: Bytes of the request line and of each field line, without its end.
MAX_LINE = 8 * 1024
#: Bytes of the whole head.
MAX_HEAD = 64 * 1024

#: All bytes that may stand in a line: tab, visible ASCII, and the obs-text of RFC 9110 5.5.
_TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: What RFC 9112 3.2 leaves of RFC 3986: visible ASCII, no fragment.
_TARGET = re.compile(r"[!-\"$-~]+")
_ABSOLUTE = re.compile(r"https?://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_VERSION = re.compile(r"HTTP/\d\.\d")

#: Fields that may stand once. Joining two would make a value that neither the client nor a proxy meant.
_SINGLE = frozenset(
    (
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "HTTP_HOST",
        "HTTP_ORIGIN",
        "HTTP_SEC_WEBSOCKET_KEY",
        "HTTP_SEC_WEBSOCKET_VERSION",
        "HTTP_TRANSFER_ENCODING",
    )
)

#: Fields whose values many clients have in common: requests, and the sessions that they become, share the strings.
COMMON_FIELDS = frozenset(
    (
        "HTTP_ACCEPT_ENCODING",
        "HTTP_ACCEPT_LANGUAGE",
        "HTTP_CACHE_CONTROL",
        "HTTP_CONNECTION",
        "HTTP_HOST",
        "HTTP_ORIGIN",
        "HTTP_PRAGMA",
        "HTTP_SEC_WEBSOCKET_EXTENSIONS",
        "HTTP_SEC_WEBSOCKET_PROTOCOL",
        "HTTP_SEC_WEBSOCKET_VERSION",
        "HTTP_UPGRADE",
        "HTTP_USER_AGENT",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PORT",
        "HTTP_X_FORWARDED_PROTO",
    )
)

#: Lines of such fields that are remembered, and characters of the longest of them.
_REMEMBERED = 500
_REMEMBERED_LENGTH = 256

_USUAL_NAMES = (
    "Accept Accept-Encoding Accept-Language Authorization Cache-Control Connection Content-Length "
    "Content-Type Cookie DNT Expect Forwarded Host If-Modified-Since If-None-Match Keep-Alive Origin "
    "Pragma Range Referer Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode "
    "Sec-Fetch-Site Sec-Fetch-User Sec-GPC Sec-WebSocket-Extensions Sec-WebSocket-Key Sec-WebSocket- "
    "Protocol Sec-WebSocket-Version TE Transfer-Encoding Upgrade Upgrade-Insecure-Requests User-Agent Via "
    "X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto X-Real-IP X-Request-ID "
    "X-Requested-With"
)


class HeadError(Exception):
    """A request that is refused with ``status``. ``message`` has nothing of the peer in it, ``detail`` may."""

    def __init__(self, status: int, message: str, detail: str = "") -> None:
        super().__init__(status, message, detail)
        self.status = status
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.status} {self.message}"


class RequestHead(NamedTuple):
    """A request line and its fields; ``fields`` has environ keys."""

    line: str
    method: str
    path: str
    query: str
    version: str
    fields: dict[str, str]
    content_length: int | None
    chunked: bool

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection closed after the response (RFC 9112 9.3)."""
        connection = self.fields.get("HTTP_CONNECTION")
        if connection is None or connection == "Upgrade":
            return self.version == "HTTP/1.0"
        options = [option.strip(" \t") for option in connection.lower().split(",")]
        return "close" in options or (self.version == "HTTP/1.0" and "keep-alive" not in options)


class HeadBuffer:
    """Collects what a connection brings until a head is whole; however small the pieces, it looks at each byte once."""

    __slots__ = ("_line", "_passed", "_scanned", "data")

    def __init__(self) -> None:
        #: What came and was not taken yet; behind a head taken, the start of a body or the next request.
        self.data = bytearray()
        self._scanned = self._line = 0
        self._passed = False

    def feed(self, piece: bytes) -> None:
        """Adds what was received."""
        self.data += piece

    def take_head(self) -> bytes | None:
        """A whole head without its last line end and the empty line, or None while it is incomplete.

        Raises ``HeadError`` as soon as it can become none that is allowed.
        """
        data = self.data
        # One empty line before a request is passed over: some clients end a body with it (RFC 9112 2.2).
        if not self._scanned and not self._passed and data.startswith(b"\r\n"):
            del data[:2]
            self._passed = True
        end = data.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end < 0:
            self._check_growing(data)
            return None
        if end > MAX_HEAD:
            raise HeadError(431, "the head of the request is too long")
        head = bytes(data[:end])
        del data[: end + 4]
        self._scanned = self._line = 0
        self._passed = False
        return head

    def _check_growing(self, data: bytearray) -> None:
        fresh = max(0, self._scanned - 1)
        if data.count(b"\n", self._scanned) != data.count(b"\r\n", fresh):
            raise HeadError(400, "a line ends in a bare LF")
        line = data.rfind(b"\r\n", fresh)
        if line >= 0:
            self._line = line + 2
        if len(data) - self._line > MAX_LINE + 1:
            raise _line_too_long(self._line == 0)
        # All but the last byte of its end may be here.
        if len(data) > MAX_HEAD + 3:
            raise HeadError(431, "the head of the request is too long")
        # A lone CR may be the first half of a leading empty line.
        if data != b"\r":
            self._scanned = len(data)


def parse_head(head: bytes) -> RequestHead:
    """Reads a head as `HeadBuffer.take_head` gives it; raises ``HeadError``."""
    lines = head.decode("latin-1").split("\r\n")
    if len(lines) > MAX_FIELDS + 1:
        raise HeadError(431, "the request has too many header fields")
    if len(head) > MAX_LINE and max(map(len, lines)) > MAX_LINE:
        raise _line_too_long(len(lines[0]) > MAX_LINE)
    # Only line ends may be left when all text is gone.
    if head.translate(None, _TEXT) != b"\r\n" * (len(lines) - 1):
        raise HeadError(400, "the head has a control character or a bare CR or LF", lines[0])
    method, path, query, version, authority = _read_request_line(lines[0])
    fields = _read_fields(lines)
    host = fields.get("HTTP_HOST")
    if host is None:
        if version == "HTTP/1.1":
            raise HeadError(400, "the request has no Host field")
    elif _HOST.fullmatch(host) is None:
        raise HeadError(400, "the Host field is malformed", host)
    if authority is not None:
        # It outranks the Host field (RFC 9112 3.2.2).
        fields["HTTP_HOST"] = authority
    length = fields.get("CONTENT_LENGTH")
    coding = fields.get("HTTP_TRANSFER_ENCODING")
    if length is not None and (len(length) > 18 or not length.isascii() or not length.isdigit()):
        raise HeadError(400, "the Content-Length is malformed", length)
    if coding is not None:
        if length is not None:
            raise HeadError(400, "the request has both Content-Length and Transfer-Encoding")
        if version == "HTTP/1.0":
            raise HeadError(400, "an HTTP/1.0 request has a Transfer-Encoding")
        if coding.lower() != "chunked":
            raise HeadError(501, "the Transfer-Encoding is not supported", coding)
    return RequestHead(
        lines[0], method, path, query, version, fields, None if length is None else int(length), coding is not None
    )


def _read_request_line(line: str) -> tuple[str, str, str, str, str | None]:
    words = line.split(" ")
    if len(words) != 3:
        raise HeadError(400, "the request line is malformed", line)
    method, target, version = words
    if _TOKEN.fullmatch(method) is None or _TARGET.fullmatch(target) is None:
        raise HeadError(400, "the request line is malformed", line)
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        if _VERSION.fullmatch(version) is None:
            raise HeadError(400, "the request line is malformed", line)
        raise HeadError(505, "the HTTP version is not supported", line)
    authority = None
    if target[0] == "/":
        path, _, query = target.partition("?")
    elif (absolute := _ABSOLUTE.fullmatch(target)) is not None:
        authority, path, query = absolute.group(1), absolute.group(2) or "/", (absolute.group(3) or "?")[1:]
        if not authority or _HOST.fullmatch(authority) is None:
            raise HeadError(400, "the request line is malformed", line)
    elif target == "*" and method == "OPTIONS":
        path, query = "*", ""
    else:
        raise HeadError(400, "the request line is malformed", line)
    if "%" in path:
        path = unquote(path, "latin-1")
    return intern(method), path, query, intern(version), authority


def _read_fields(lines: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines[1:]:
        key, value = _LINES.get(line) or _read_field(line)
        if key not in fields:
            fields[key] = value
        elif key in _SINGLE:
            raise HeadError(400, "a header field that may stand once is repeated", line.partition(":")[0])
        else:
            fields[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
    # That of the names that WSGI can't tell from others.
    fields.pop("", None)
    return fields


def _read_field(line: str) -> tuple[str, str]:
    """The environ key of a field line, empty as `_key_of` has it, and the value."""
    name, colon, value = line.partition(":")
    if not colon:
        raise HeadError(400, "a header field has no colon", line)
    key = _KEYS.get(name)
    if key is None:
        key = _key_of(name)
    field = key, value.strip(" \t")
    if key in COMMON_FIELDS and len(line) <= _REMEMBERED_LENGTH:
        if len(_LINES) >= _REMEMBERED:
            _LINES.clear()
        _LINES[line] = field
    return field


def _key_of(name: str) -> str:
    """The environ key of a field name; empty for a name that WSGI can't tell from another one."""
    if _TOKEN.fullmatch(name) is None:
        if name[:1] in (" ", "\t"):
            raise HeadError(400, "a header field is folded")
        raise HeadError(400, "a header field's name is malformed", name)
    # X_Forwarded_For and X-Forwarded-For would get one key, and a proxy only guards the second.
    key = "" if "_" in name else name.upper().replace("-", "_")
    if key and key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = "HTTP_" + key
    if len(_KEYS) < 500 and len(name) <= 64:
        _KEYS[name] = key
    return key


def _line_too_long(is_request_line: bool) -> HeadError:
    if is_request_line:
        return HeadError(414, "the request line is too long")
    return HeadError(431, "a header field is too long")


#: What `_read_field` gives for common lines of late; what a line means never changes.
_LINES: dict[str, tuple[str, str]] = {}
#: Field names and their environ keys: the usual ones in their two spellings, and others as they come, up to a bound.
_KEYS: dict[str, str] = {}
for _name in _USUAL_NAMES.split():
    _KEYS[_name] = _KEYS[_name.lower()] = _key_of(_name)
