"""``environ["wsgi.websocket"]``: how an app of gevent-websocket gets at its WebSocket, and what becomes of its answer.

All is plain HTTP until the app takes the WebSocket from its environ. That sends the 101; until then the app may answer
as it likes, and from then on nothing that it does writes HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPMessage
from itertools import count
from logging import Logger
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug.exceptions import HTTPException

from geventws.call import DefaultWebSocketServerSession, ServerCall, call_handler, refusal
from geventws.compat.geventwebsocket.exceptions import WebSocketError
from geventws.compat.geventwebsocket.handler_socket import HandlerSocket
from geventws.compat.geventwebsocket.logging import create_logger
from geventws.compat.geventwebsocket.websocket import WebSocket
from geventws.compat.matching import match_plain_rules_too
from geventws.errors import HandshakeError
from geventws.frames import CloseCode
from geventws.protocol.handshake import check_origin
from geventws.settings import Settings
from geventws.upgrade import KEY, lighten

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from typing_extensions import Unpack

    from geventws.settings import SettingsDict

__all__ = ["WEBSOCKET", "Client", "Clients", "ConnectionHandler", "OfferEnviron", "ServerState", "WebSocketMiddleware"]

#: Where the environ holds the WebSocket.
WEBSOCKET = "wsgi.websocket"

_numbers = count(1)


class Client:
    """A client of a server: its ``address`` and its WebSocket ``ws``. Apps add attributes of their own."""

    def __init__(self, address: Any, ws: WebSocket) -> None:
        self.address = address
        self.ws = ws


class Clients(dict[Any, Client]):
    """The clients of a server by their addresses.

    What it lists are copies: clients come and go while an app that walks through them sends.
    """

    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().keys()))

    def keys(self) -> Any:
        """The addresses."""
        return list(super().keys())

    def values(self) -> Any:
        """The clients."""
        return list(super().values())

    def items(self) -> Any:
        """Pairs of address and client."""
        return list(super().items())


class ServerState:
    """What apps look for in ``ws.handler.server``, where the server itself has no place for it."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.clients = Clients()
        self.logger = create_logger("geventwebsocket")


class HandlerFace:
    """What apps look for in ``ws.handler``."""

    server: Any
    environ: Any
    client_address: Any
    #: The WebSocket while it is open.
    websocket: WebSocket | None = None

    @property
    def headers(self) -> HTTPMessage:
        """The header fields of the request, by their names in any case, as in ``headers.get("Cookie")``."""
        headers = HTTPMessage()
        for name, value in (self.environ or {}).items():
            if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                headers.add_header(name.removeprefix("HTTP_").replace("_", "-").title(), str(value))
        return headers

    @property
    def active_client(self) -> Client:
        """This connection's entry in the list of clients; raises ``KeyError`` where it has none."""
        return self.server.clients[self.client_address]  # type: ignore[no-any-return]

    @property
    def logger(self) -> Logger:
        """The logger of the server."""
        return self.server.logger  # type: ignore[no-any-return]


class ConnectionHandler(HandlerFace):
    """The handler of a connection whose server has none of its own."""

    def __init__(self, server: Any, environ: WSGIEnvironment) -> None:
        self.server = server
        self.environ = environ
        self.client_address = address_of(environ)
        self.command: str = environ["REQUEST_METHOD"]
        self.request_version: str = environ["SERVER_PROTOCOL"]

    @property
    def path(self) -> str:
        """The path of the request with its query, as the client sent it where the server tells."""
        environ = self.environ
        if "RAW_URI" in environ:
            return str(environ["RAW_URI"])
        path = quote((environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]).encode("latin-1"))
        return f"{path}?{environ['QUERY_STRING']}" if environ.get("QUERY_STRING") else path

    @property
    def requestline(self) -> str:
        """The first line of the request."""
        return f"{self.command} {self.path} {self.request_version}"

    @property
    def socket(self) -> HandlerSocket | None:
        """The socket of the WebSocket; None where there is none that is open."""
        return None if self.websocket is None else self.websocket.hold_socket()


def address_of(environ: WSGIEnvironment) -> Any:
    """By what a client is listed: its socket address, or for a Unix socket, which gives none, one of its own."""
    address = environ[KEY].remote_address
    return address if isinstance(address, tuple) else ("", next(_numbers))


class OfferEnviron(dict[str, Any]):
    """The environ of a request that offers a WebSocket, which opens when it is taken from here.

    It opens not later, at its first use: an app may put it aside for others to send to, while its client waits for the
    101. ``handler`` is what the app finds as ``ws.handler``.
    """

    def __init__(self, environ: WSGIEnvironment, handler: Any, settings: Settings) -> None:
        super().__init__(environ)
        self.offer = _Offer(self, handler, settings)
        self[WEBSOCKET] = self.offer.websocket
        self["wsgi.websocket_version"] = environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key == WEBSOCKET and value is self.offer.websocket:
            self.offer.open()
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """As of any dict; opens the WebSocket too."""
        try:
            return self[key]
        except KeyError:
            return default


class _Offer:
    """A WebSocket that may be opened."""

    def __init__(self, environ: OfferEnviron, handler: Any, settings: Settings) -> None:
        self._environ = environ
        self.handler = handler
        self._settings = settings
        self.upgrade = environ[KEY]
        #: None where the handshake is no good, and once the request is over.
        self.websocket: WebSocket | None = None
        #: Whether the app has opened it.
        self.opened = False
        self._refused: HandshakeError | None = None
        self._over = False
        try:
            call = ServerCall(environ, handler.server.application, settings)
        except HandshakeError as error:
            self._refused = error
        else:
            self._call = call
            self.session = DefaultWebSocketServerSession(settings, call)
            self.websocket = WebSocket(self.session, handler, self.open)

    def open(self) -> None:
        """Sends the 101, unless that is done; raises `Refused` for a client that can't have a WebSocket."""
        if self.opened or self._over:
            return
        environ, handler = self._environ, self.handler
        try:
            if self._refused is not None:
                raise self._refused
            check_origin(environ, self._settings.origins)
        except HandshakeError as error:
            raise Refused(error, environ) from None
        self.opened = True
        app_protocol = getattr(handler.server.application, "app_protocol", None)
        protocol = app_protocol(environ.get("PATH_INFO", "")) if app_protocol is not None else None
        self.session.accept(protocol if protocol in self._call.offered_protocols else None)
        lighten(environ)
        assert self.websocket is not None
        handler.websocket = self.websocket
        handler.server.clients[handler.client_address] = Client(handler.client_address, self.websocket)

    def end(self) -> None:
        """The request is over."""
        self._over = True
        if self.websocket is not None:
            self.websocket.ended()
        clients, address = self.handler.server.clients, self.handler.client_address
        client = clients.get(address)
        if client is not None and client.ws is self.websocket:
            del clients[address]
        self._environ[WEBSOCKET] = self.handler.websocket = None


class Refused(HTTPException):
    """Raised where an app takes the WebSocket of a client that can't have one; Flask answers it by itself."""

    def __init__(self, error: HandshakeError, environ: WSGIEnvironment) -> None:
        super().__init__(error.message, refusal(error, environ))


class WebSocketMiddleware:
    """A WSGI middleware that puts ``wsgi.websocket`` into the environ of requests that offer one.

    ``server`` is what ``application`` finds as ``ws.handler.server``; the settings are those of `geventws.Settings`.
    """

    def __init__(self, application: WSGIApplication, server: Any = None, **settings: Unpack[SettingsDict]) -> None:
        self.application = application
        self.server = ServerState(application) if server is None else server
        self.settings = Settings().override(**settings)
        match_plain_rules_too()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not offers(environ):
            return self.application(environ, start_response)
        handler = ConnectionHandler(self.server, environ)
        return serve(self.application, environ, start_response, handler=handler, settings=self.settings)


def offers(environ: WSGIEnvironment) -> bool:
    """Whether a request offers a WebSocket. One with another method than GET is left to the app."""
    return KEY in environ and environ["REQUEST_METHOD"] == "GET"


def serve(
    application: WSGIApplication,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    *,
    handler: Any,
    settings: Any,
) -> Iterable[bytes]:
    """Calls ``application`` for a request that offers a WebSocket, and runs that to its end; gives the HTTP answer."""
    offered = handler.environ = OfferEnviron(environ, handler, settings)
    offer = offered.offer
    response = _Response(start_response)
    name = str(getattr(application, "__qualname__", type(application).__qualname__))

    def handle(session: DefaultWebSocketServerSession | None) -> Any:
        try:
            answer = _call(application, offered, response)
        except WebSocketError:
            # As it leaves an app that sends or receives once more at the end.
            if session is None or not session.closed:
                raise
            return None
        if answer is None and session is not None and response.failed:
            session.start_close(CloseCode.INTERNAL_ERROR)
        return answer

    try:
        if offer.websocket is None:
            return handle(None) or ()
        return call_handler(offer.session, (), handle, {}, name) or ()
    except Refused as refused:
        return refused(environ, start_response)
    finally:
        offer.end()


class _Response:
    """The ``start_response`` of an offer, which keeps whether the app has failed."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response: Callable[..., Any] = start_response
        self.failed = False

    def __call__(self, status: str, headers: Any, *exc_info: Any) -> Any:
        self.failed = status.startswith("5")
        return self._start_response(status, headers, *exc_info)


def _call(application: WSGIApplication, environ: OfferEnviron, start_response: Any) -> Iterable[bytes] | None:
    """What the app answers in HTTP; None after it has opened the WebSocket."""
    upgrade = environ.offer.upgrade
    result = application(environ, start_response)
    if isinstance(result, (list, tuple)) and not upgrade.taken:
        return result
    try:
        # A generator may open the WebSocket when it is asked for its first piece.
        pieces = iter(result)
        first = next(pieces, b"")
        if not upgrade.taken:
            return _resume(first, pieces, result)
        for _ in pieces:
            pass
    except BaseException:
        _close(result)
        raise
    _close(result)
    # Another part of the app may have taken the connection.
    return None if environ.offer.opened else ()


def _resume(first: bytes, pieces: Iterator[bytes], result: Any) -> Iterator[bytes]:
    try:
        yield first
        yield from pieces
    finally:
        _close(result)


def _close(result: Any) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()
