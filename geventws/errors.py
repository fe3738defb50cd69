"""What can go wrong, by whose fault: the caller's, the peer's, or nobody's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import unescape
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geventws.frames import CloseReason

__all__ = [
    "ConnectionClosed",
    "HandshakeError",
    "HandshakeFailed",
    "HandshakeRefused",
    "ProtocolError",
    "ProxyRefused",
    "UsageError",
    "WebSocketError",
]

#: Characters of a response's body that an error's text repeats.
_QUOTED = 200
#: Characters of it that are looked at for that.
_LOOKED_AT = 2000


class WebSocketError(Exception):
    """The base of all errors that geventws defines."""


class UsageError(WebSocketError, RuntimeError):
    """The caller broke a rule of this API: a second concurrent ``receive``, a blueprint without the extension."""


class ConnectionClosed(WebSocketError):
    """The WebSocket is over; ``reason`` says how it ended.

    Raised by ``send`` and ``receive``. If it leaves a handler, that is a normal end of the session.
    """

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the WebSocket is closed ({self.reason})"


class ProtocolError(WebSocketError):
    """The peer broke RFC 6455, an extension's rules or a limit; ``code`` is the close code it gets."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class HandshakeError(WebSocketError):
    """A refused opening handshake, with a ``status``, a sentence and extra ``headers``, a dict or pairs."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = list(headers.items() if isinstance(headers, Mapping) else headers)

    def __str__(self) -> str:
        return f"{self.status} {self.message}"


class HandshakeFailed(WebSocketError):
    """A client's handshake got an answer that doesn't open a WebSocket (RFC 6455 4.1); the text says what is wrong.

    It isn't a ``HandshakeError``: that would be a handler's answer to its own client, and this is another server's.
    """


class HandshakeRefused(HandshakeFailed):
    """A client's handshake was answered with another status than 101.

    ``status`` is the number and ``reason`` the words after it, ``headers`` are the fields in order, looked up in any
    case (``headers.get("location")``), and ``body`` has the first bytes, at most 64 KiB.
    """

    def __init__(self, status: int, reason: str, headers: Any, body: bytes) -> None:
        super().__init__(status, reason, headers, body)
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        """The body as text, in UTF-8 unless its Content-Type names another charset."""
        found = re.search(r"charset=\"?([\w.:-]+)", self.headers.get("content-type", ""), re.IGNORECASE)
        try:
            return self.body.decode(found[1] if found else "utf-8", "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        """The body, parsed as JSON; raises ``ValueError`` if it isn't JSON."""
        return json.loads(self.body)

    def __str__(self) -> str:
        told = f"{self.status} {_words(self.status, self.reason)}".rstrip()
        location = self.headers.get("location")
        if 300 <= self.status < 400 and location is not None:
            return f"{told}: it redirects to {_line(location)}, which is not followed"
        text = self.text[:_LOOKED_AT]
        if "html" in self.headers.get("content-type", ""):
            # Of a page its paragraphs, which are all that the pages of frameworks have to say.
            text = unescape(re.sub("<[^>]*>", "", " ".join(re.findall("<p>(.*?)</p>", text, re.DOTALL))))
        text = _line(text)
        return f"{told}: {text}" if text else told


class ProxyRefused(HandshakeRefused):
    """A proxy answered CONNECT with another status than 2xx, so there was no handshake."""

    def __str__(self) -> str:
        return f"the proxy refused to connect: {super().__str__()}"


def _words(status: int, reason: str) -> str:
    """The words behind a status, as RFC 9110 writes them where a server only has them in other letters."""
    try:
        registered = HTTPStatus(status).phrase
    except ValueError:
        return _line(reason)
    return registered if reason.lower() in ("", registered.lower()) else _line(reason)


def _line(text: str) -> str:
    """The start of a peer's ``text`` in one line, without characters that do harm in a log or a terminal."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text[: 2 * _QUOTED]).split())
    return line if len(line) <= _QUOTED else line[:_QUOTED] + "..."
