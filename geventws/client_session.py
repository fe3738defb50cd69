"""Sessions of a client, and the handshake that opens one on a socket (RFC 6455 4.1)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from os import urandom
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.datastructures import Headers

from geventws._build import VERSION
from geventws.arguments import check_number, shown
from geventws.dialing import read_head, read_refusal
from geventws.errors import HandshakeRefused, UsageError
from geventws.frames import CloseCode
from geventws.protocol.client_handshake import ResponseHeadBuffer, check_response, header_pairs, request_head
from geventws.session import DefaultWebSocketSession, HeaderFields, WebSocketSession
from geventws.settings import Settings, unknown_option
from geventws.tls import transport_of
from geventws.upgrade import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from geventws.protocol.extensions import ClientExtension

__all__ = [
    "ClientCall",
    "DefaultWebSocketClientSession",
    "Offer",
    "WebSocketClientSession",
    "client_settings",
    "open_session",
]

S = TypeVar("S", bound="WebSocketClientSession")

#: Settings that a client has no say in.
_SERVER_SETTINGS = {
    "masking": "clients always mask (RFC 6455 5.3)",
    "origins": "it is for servers; a client's own is origin=",
}


class ClientCall:
    """The request that opened a client's session, and the response to it."""

    __slots__ = ("headers", "protocol", "remote_address", "url")

    def __init__(self, url: str, remote_address: Any) -> None:
        #: The URL without user and password.
        self.url = url
        #: The socket address of the server, or of the proxy in between.
        self.remote_address = remote_address
        #: The subprotocol that the server chose.
        self.protocol: str | None = None
        #: The header fields of the 101.
        self.headers = Headers()

    def accept(self, session: WebSocketSession, protocol: str | None, headers: HeaderFields) -> None:
        """A client's session is open from the start."""
        raise UsageError("a client's session needs no accept()")

    def ended(self, session: WebSocketSession) -> None:
        """Told when the session's connection is gone."""


class WebSocketClientSession(WebSocketSession):
    """A raw session of a client: you get every frame, and nothing is answered automatically.

    As a context manager it closes at the end: with 1000, or with 1011 if an exception leaves the block.
    """

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, Exception):
            self.close(CloseCode.INTERNAL_ERROR)
        else:
            # The greenlet or the process is to end, and doesn't wait for the peer.
            self.start_close(CloseCode.GOING_AWAY)
            self.terminate()

    @property
    def headers(self) -> Headers:
        """The header fields of the server's 101; names can be looked up in any case."""
        return self.call.headers  # type: ignore[no-any-return]

    @property
    def url(self) -> str:
        """The URL of the connection, without user and password."""
        return self.call.url  # type: ignore[no-any-return]


class DefaultWebSocketClientSession(WebSocketClientSession, DefaultWebSocketSession):
    """A default session of a client: whole messages, and everything else is taken care of.

    As a context manager it closes at the end: with 1000, or with 1011 if an exception leaves the block.
    """


class Offer:
    """What a client asks for in each of its handshakes, checked."""

    def __init__(
        self,
        target: str,
        host: str,
        *,
        protocols: Sequence[str] | None = (),
        headers: HeaderFields | None = (),
        origin: str | None = None,
        extensions: Sequence[ClientExtension] = (),
        max_head_size: int = 64 * 1024,
        authorization: str | None = None,
    ) -> None:
        # None, as functions around this have it for what they were not given.
        if protocols is None:
            protocols = ()
        if isinstance(protocols, str):
            raise TypeError(f"protocols must be a list, as in [{protocols!r}]")
        if isinstance(protocols, bytes) or not isinstance(protocols, Iterable):
            raise TypeError(f'protocols must be a list of str, as in ["v1.chat"], not {shown(protocols)}')
        if isinstance(extensions, (str, bytes)) or not isinstance(extensions, Iterable):
            raise ValueError(f"extensions must be a list, as in [PermessageDeflate()], not {shown(extensions)}")
        if origin is not None and not (origin and isinstance(origin, str)):
            raise ValueError(f'origin must be a str, as in "https://example.com", or None, not {shown(origin)}')
        check_number("max_head_size", max_head_size, "bytes")
        self.protocols = tuple(protocols)
        self.extensions = tuple(extensions)
        for extension in self.extensions:
            if isinstance(extension, type):
                name = extension.__name__
                raise ValueError(f"extensions has the class {name}: it takes instances, {name}()")
            if not callable(getattr(extension, "offers", None)) or not callable(getattr(extension, "agree", None)):
                raise ValueError(f"extensions has {extension!r}, which lacks offers or agree of ClientExtension")
        pairs = header_pairs(() if headers is None else headers)
        names = {name.lower() for name, _ in pairs}
        if origin is not None:
            pairs += header_pairs([("Origin", origin)])
        if authorization is not None and "authorization" not in names:
            pairs.append(("Authorization", authorization))
        if "user-agent" not in names:
            pairs.append(("User-Agent", f"geventws/{VERSION}"))
        self.headers = pairs
        self.max_head_size = max_head_size
        self._target = target
        self._host = host
        # So that what is wrong is told before anything is connected.
        self.request("")

    def request(self, key: str) -> bytes:
        """The request with a Sec-WebSocket-Key."""
        return request_head(
            self._target,
            self._host,
            key,
            protocols=self.protocols,
            extensions=self.extensions,
            headers=self.headers,
        )


def client_settings(options: Mapping[str, Any], raw: bool, extensions: Sequence[ClientExtension] = ()) -> Settings:
    """The settings of a client's sessions; raises ``ValueError`` or ``TypeError`` that names the option."""
    names = [name for name in Settings.names() if name not in _SERVER_SETTINGS]
    for name in options:
        if name in _SERVER_SETTINGS:
            raise TypeError(f"{name} is no option of a client: {_SERVER_SETTINGS[name]}")
        if name not in names:
            raise unknown_option(name, names)
    if raw and options.get("ping_interval") is not None:
        raise ValueError("ping_interval is for default sessions: a raw one is kept alive by geventws.pinger")
    return Settings().override(**{**options, "extensions": extensions})


def open_session(session: S, sock: Any, offer: Offer) -> S:
    """Makes the handshake on a connected ``sock``, and opens ``session``, which is new, on it; blocks.

    Raises ``HandshakeRefused`` with the response, ``HandshakeFailed`` for what is no valid answer, and ``OSError``.
    The socket is closed in these cases.
    """
    try:
        # Chosen randomly for each connection (RFC 6455 4.1), so that no answer to another request fits.
        key = b64encode(urandom(16)).decode("ascii")
        sock.sendall(offer.request(key))
        buffer = ResponseHeadBuffer(offer.max_head_size)
        head = read_head(sock, buffer)
        if head.status != 101:
            body = read_refusal(sock, buffer, head)
            raise HandshakeRefused(head.status, head.reason, Headers(head.fields), body)
        agreement = check_response(head, key, offer.protocols, offer.extensions)
        raw = unwrap(sock)
    except BaseException:
        sock.close()
        raise
    session.call.protocol = agreement.protocol
    session.call.headers = Headers(head.fields)
    connection = session.connection
    connection.session = session
    connection.open(transport_of(raw), b"", buffer.data, agreement.extensions, agreement.rsv)
    session.opened()
    return session
