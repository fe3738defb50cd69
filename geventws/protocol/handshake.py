"""The opening handshake of a server (RFC 6455 4.2): a WSGI environ in, a refusal or the bytes of the 101 out.

Every parser here takes time in proportion to its input: lists are split and each element is matched once.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from geventws.errors import HandshakeError

try:
    # For so few bytes OpenSSL's, with what it sets up and looks up each time, takes several times as long.
    from _sha1 import sha1  # type: ignore[import-not-found]
except ImportError:
    from hashlib import sha1

if TYPE_CHECKING:
    from geventws.protocol.extensions import Extension, ExtensionSession

__all__ = [
    "Handshake",
    "accept_value",
    "check_field",
    "check_origin",
    "choose_protocol",
    "cut",
    "is_field_value",
    "is_token",
    "is_upgrade",
    "lists",
    "negotiate",
    "parse_extensions",
    "parse_protocols",
    "read_handshake",
    "response_head",
    "serialise_extension",
]

#: What a client may offer: names of extensions in its order of preference, each with its parameters.
Offers = Sequence[tuple[str, Mapping[str, "str | None"]]]

#: Characters of the longest Sec-WebSocket-Protocol or Sec-WebSocket-Extensions taken, and elements of the longest list.
MAX_LIST_LENGTH = 8192
MAX_LIST_ELEMENTS = 100

# Characters of the input that an error message repeats.
_MAX_CUT = 40

# RFC 6455 1.3.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# Characters of a Host, or of it and an Origin, about which is remembered what a regular expression takes long to tell.
_REMEMBERED_LENGTH = 256

is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_is_key = re.compile(r"[+/0-9A-Za-z]{22}==").fullmatch
is_field_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch

# RFC 3986 3.2.2, without the comma: it never stands in a real host, but where a server joined two Host headers.
_HOST = r"(\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z%._~-]+)?\]|[0-9A-Za-z%._~!$&'()*+;=-]+)"
_match_host = re.compile(_HOST + r"(?::([0-9]{0,5}))?").fullmatch
_is_known_host = lru_cache(maxsize=64)(lambda host: _match_host(host) is not None)
_match_origin = re.compile(r"([A-Za-z][0-9A-Za-z+.-]*)://" + _HOST + r"(?::([0-9]{1,5}))?").fullmatch

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

# What the handshake itself says, and what describes a body, which a 101 lacks (RFC 9110 8.6, RFC 9112 6.1).
_RESERVED_HEADERS = frozenset(["connection", "upgrade", "content-length", "transfer-encoding", "trailer"])


class Handshake(NamedTuple):
    """What a valid opening handshake of a client says.

    ``protocols`` are the subprotocols that it offers and ``extensions`` the extensions with their parameters, None for
    one without a value; both in its order of preference, names of extensions and parameters in lower case.
    """

    key: str
    protocols: tuple[str, ...] = ()
    extensions: tuple[tuple[str, dict[str, str | None]], ...] = ()


def is_upgrade(environ: Mapping[str, Any]) -> bool:
    """Tells whether a request asks for a WebSocket: whether its Upgrade header lists ``websocket`` (RFC 6455 4.2.1)."""
    return lists(environ.get("HTTP_UPGRADE", ""), "websocket")


def read_handshake(environ: Mapping[str, Any]) -> Handshake:
    """Checks a client's opening handshake and gives what it says (RFC 6455 4.2.1).

    ``environ`` is that of WSGI: repeated header fields come joined with commas.

    Raises ``HandshakeError`` with 405 for another method than GET, with 426 for a request for no WebSocket or for
    another version of it, with 400 for every other fault.
    """
    method = environ.get("REQUEST_METHOD", "")
    if method != "GET":
        raise HandshakeError(405, f"A WebSocket is opened with the method GET, not {cut(method)}.", [("Allow", "GET")])
    version = environ.get("SERVER_PROTOCOL", "")
    if version != "HTTP/1.1":
        raise HandshakeError(
            400, f"A WebSocket is opened with HTTP/1.1, not {cut(version)}; check what a proxy in between speaks."
        )
    if not is_upgrade(environ):
        raise HandshakeError(
            426,
            "This is the address of a WebSocket: the header Upgrade must be websocket.",
            [("Upgrade", "websocket")],
        )
    if not lists(environ.get("HTTP_CONNECTION", ""), "upgrade"):
        raise HandshakeError(
            400, "The header Connection must list Upgrade; a proxy in between may have to be told to pass it on."
        )
    if environ.get("CONTENT_LENGTH", "") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise HandshakeError(
            400, "A request for a WebSocket has no body: leave out the headers Content-Length and Transfer-Encoding."
        )
    host = environ.get("HTTP_HOST", "")
    if not (_is_known_host(host) if len(host) < _REMEMBERED_LENGTH else _match_host(host)):
        raise HandshakeError(400, f"The header Host must name one host, with or without a port, not {cut(host)}.")
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if version != "13":
        raise _other_version(version)
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    # The length first, so that nothing is done for a long one.
    if len(key) != 24 or not _is_key(key):
        raise HandshakeError(400, f"The header Sec-WebSocket-Key must be 16 bytes in base64, not {cut(key)}.")
    protocols = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")
    extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS")
    return Handshake(
        key,
        () if protocols is None else parse_protocols(protocols),
        () if extensions is None else parse_extensions(extensions),
    )


def _other_version(version: str) -> HandshakeError:
    if "," in version:
        return HandshakeError(400, f"The header Sec-WebSocket-Version must be one number, not {cut(version)}.")
    return HandshakeError(
        426,
        f"The header Sec-WebSocket-Version must be 13, not {cut(version)}.",
        [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")],
    )


def parse_protocols(value: str) -> tuple[str, ...]:
    """The subprotocols of a Sec-WebSocket-Protocol header (RFC 6455 4.1 and 11.3.4).

    Raises ``HandshakeError`` with 400 for what is no list of tokens, for a repeated one and for more than
    ``MAX_LIST_ELEMENTS``.
    """
    _check_bounds("Sec-WebSocket-Protocol", value, value.count(","))
    # RFC 2616 2.1, whose lists RFC 6455 uses: empty elements don't count, but one must be there.
    protocols = [protocol for protocol in _elements(value) if protocol]
    for protocol in protocols:
        if not is_token(protocol):
            raise HandshakeError(
                400, f"The header Sec-WebSocket-Protocol must be a list of tokens, and {cut(protocol)} is none."
            )
    if not protocols:
        raise HandshakeError(400, "The header Sec-WebSocket-Protocol is empty: leave it out, or name a subprotocol.")
    if len(set(protocols)) != len(protocols):
        raise HandshakeError(400, f"The header Sec-WebSocket-Protocol names a subprotocol twice: {cut(value)}.")
    return tuple(protocols)


def parse_extensions(value: str) -> tuple[tuple[str, dict[str, str | None]], ...]:
    """The extensions of a Sec-WebSocket-Extensions header, with their parameters unquoted (RFC 6455 9.1).

    An extension that repeats a parameter is left out, as if declined (RFC 7692 7.1).

    Raises ``HandshakeError`` with 400 for what breaks the grammar and for more than ``MAX_LIST_ELEMENTS`` extensions
    and parameters.
    """
    _check_bounds("Sec-WebSocket-Extensions", value, value.count(",") + value.count(";"))
    extensions = []
    found = False
    # Splitting at once is right for quoted strings as well: what they hold must be a token, so one that holds a comma
    # or a semicolon is as malformed as its parts.
    for element in value.split(","):
        name, *parameters = element.split(";")
        name = name.strip(" \t")
        if not name and not parameters:
            continue
        found = True
        if not is_token(name):
            raise _malformed_extension(element)
        offered: dict[str, str | None] = {}
        for parameter in parameters:
            key, separator, text = parameter.partition("=")
            key = key.strip(" \t")
            if not is_token(key):
                raise _malformed_extension(element)
            if separator:
                text = text.strip(" \t")
                if text.startswith('"'):
                    text = _unquote(text)
                if not is_token(text):
                    raise _malformed_extension(element)
                offered[key.lower()] = text
            else:
                offered[key.lower()] = None
        if len(offered) == len(parameters):
            extensions.append((name.lower(), offered))
    if not found:
        raise HandshakeError(400, "The header Sec-WebSocket-Extensions is empty: leave it out, or name an extension.")
    return tuple(extensions)


def _unquote(text: str) -> str:
    """What a quoted string says, where that is a token; otherwise something that is none."""
    if not text.endswith('"'):
        return ""
    text = text[1:-1]
    # A backslash before another, or at the end, would stand for one, or for a quotation mark: no character of a token.
    return "" if "\\\\" in text or text.endswith("\\") else text.replace("\\", "")


def _malformed_extension(element: str) -> HandshakeError:
    return HandshakeError(
        400, f"The header Sec-WebSocket-Extensions must be a list as in 'a; b=1, c', and {cut(element)} fits in none."
    )


def _check_bounds(header: str, value: str, separators: int) -> None:
    if len(value) > MAX_LIST_LENGTH or separators >= MAX_LIST_ELEMENTS:
        raise HandshakeError(
            400, f"The header {header} must be shorter than {MAX_LIST_LENGTH} bytes and {MAX_LIST_ELEMENTS} elements."
        )


def check_origin(environ: Mapping[str, Any], origins: Literal["same"] | tuple[str, ...] | None) -> None:
    """Checks that the page a browser connects from may do so (RFC 6455 4.2.2 and 10.2).

    ``origins`` is the setting of that name: "same" compares the Origin's host and port with the Host header, but not
    the scheme, so that a proxy may end TLS; a tuple lists the origins allowed; None lets all in. A request without an
    Origin comes from no browser and passes.

    Raises ``HandshakeError`` with 403.
    """
    if origins is None:
        return
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return
    if origins == "same":
        host = environ.get("HTTP_HOST", "")
        known = len(origin) + len(host) < _REMEMBERED_LENGTH
        allowed = _is_known_to_be_same(origin, host) if known else _is_same_host(origin, host)
    else:
        allowed = _serialise_origin(origin) in _serialise_origins(origins)
    if not allowed:
        raise HandshakeError(
            403, f"Pages of the Origin {cut(origin)} may not connect unless the server's option origins allows it."
        )


def _is_same_host(origin: str, host: str) -> bool:
    parsed = _match_origin(origin)
    authority = _match_host(host)
    if parsed is None or authority is None:
        return False
    # A scheme without a default port is an application's own; only a list can allow it.
    default = _DEFAULT_PORTS.get(parsed[1].lower())
    return (
        default is not None
        and parsed[2].lower() == authority[1].lower()
        and int(parsed[3] or default) == int(authority[2] or default)
    )


_is_known_to_be_same = lru_cache(maxsize=64)(_is_same_host)


def _serialise_origin(origin: str) -> str:
    """An origin as RFC 6454 6.2 writes it; empty for what is none."""
    if origin == "null":
        return origin
    parsed = _match_origin(origin)
    if parsed is None:
        return ""
    scheme, host, port = parsed[1].lower(), parsed[2].lower(), parsed[3]
    if port is None or int(port) == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}"


@lru_cache(maxsize=64)
def _serialise_origins(origins: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(_serialise_origin, origins)) - {""}


def choose_protocol(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """The first subprotocol of ``supported``, the server's order of preference, that the client offers, or None."""
    for protocol in supported:
        if protocol in offered:
            return protocol
    return None


def negotiate(offers: Offers, extensions: Sequence[Extension]) -> tuple[str | None, list[ExtensionSession]]:
    """Agrees on extensions: the Sec-WebSocket-Extensions to answer with, or None, and the instances of a session.

    Every one of ``extensions``, in the server's order of preference, takes the first of the client's offers that it can
    accept (RFC 6455 9.1, RFC 7692 5.1). That order is also the one in which they apply to outgoing frames. One that
    claims an RSV bit that is taken already is passed over.

    Raises ``ValueError`` for an extension whose answer can't stand in a header.
    """
    agreed: list[str] = []
    sessions: list[ExtensionSession] = []
    names: set[str] = set()
    claimed = 0
    for extension in extensions:
        name = extension.name.lower()
        if name in names or extension.rsv & claimed:
            continue
        for offered, parameters in offers:
            if offered != name:
                continue
            answer = extension.accept(parameters)
            if answer is not None:
                agreed.append(serialise_extension(extension.name, answer[0]))
                sessions.append(answer[1])
                names.add(name)
                claimed |= extension.rsv
                break
    return ", ".join(agreed) or None, sessions


def serialise_extension(name: str, parameters: Mapping[str, str | None]) -> str:
    """An element of Sec-WebSocket-Extensions; raises ``ValueError`` for what can't stand there."""
    text = name
    for key, value in parameters.items():
        # Quoting is never needed: RFC 6455 9.1 lets no value but a token be quoted.
        if not is_token(key) or not (value is None or is_token(value)):
            raise ValueError(f"the extension {name} answers with {key!r}: {value!r}, where only tokens may stand")
        text += f"; {key}" if value is None else f"; {key}={value}"
    return text


def accept_value(key: str) -> str:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (RFC 6455 4.2.2)."""
    # An identifier and no secret, so that it also works where FIPS rules forbid SHA-1.
    digest = sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return b2a_base64(digest, newline=False).decode("ascii")


def response_head(
    key: str,
    *,
    protocol: str | None = None,
    extensions: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The whole 101 that accepts a handshake (RFC 6455 4.2.2).

    ``key`` is the client's Sec-WebSocket-Key, ``protocol`` the subprotocol, ``extensions`` the answer of ``negotiate``
    and ``headers`` what the app adds.

    Raises ``ValueError`` that names the header for a name that is no token or belongs to the handshake or to a body,
    and for a value with control characters or beyond Latin-1; ``TypeError`` for what is no str.
    """
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_value(key)}\r\n"
    )
    if protocol is not None:
        if not is_token(protocol):
            raise ValueError(f"Sec-WebSocket-Protocol must be a token, not {protocol!r}")
        head += f"Sec-WebSocket-Protocol: {protocol}\r\n"
    if extensions is not None:
        if not is_field_value(extensions):
            raise ValueError(f"Sec-WebSocket-Extensions has characters that no header may have: {extensions!r}")
        head += f"Sec-WebSocket-Extensions: {extensions}\r\n"
    for name, value in headers:
        check_field(name, value, "the answer to a handshake")
        head += f"{name}: {value}\r\n"
    return (head + "\r\n").encode("latin-1")


def check_field(name: str, value: str, where: str) -> None:
    """Checks a header that an app adds to a message of the handshake, which ``where`` names in errors.

    Raises ``ValueError`` for a name that is no token or belongs to the handshake or to a body, and for a value with
    control characters or beyond Latin-1; ``TypeError`` for what is no str.
    """
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"headers must be pairs of str: the header {name!r} has the value {value!r}")
    if not is_token(name):
        raise ValueError(f"the name of a header must be a token, not {name!r}")
    lowered = name.lower()
    if lowered in _RESERVED_HEADERS or lowered.startswith("sec-websocket-"):
        raise ValueError(f"the header {name} is not for an app to set in {where}")
    if not is_field_value(value):
        raise ValueError(f"the header {name} has characters that no header may have: {value!r}")


def _elements(value: str) -> list[str]:
    return [element.strip(" \t") for element in value.split(",")]


def lists(value: str, token: str) -> bool:
    """Tells whether a comma-separated header lists ``token``, in whatever case."""
    if value == token:
        return True
    value = value.lower()
    return value == token or token in _elements(value)


def cut(text: str) -> str:
    """A short and harmless quotation of the input: in ASCII, with control characters escaped."""
    return ascii(text) if len(text) <= _MAX_CUT else ascii(text[:_MAX_CUT]) + "..."
