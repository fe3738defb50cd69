"""The HTTP side of a server's session: the handshake is checked, the handler runs, and its outcome becomes a response or a close.

Until the session is first used all is plain HTTP, and whatever the handler raises or returns is the client's answer. Then the 101
goes out, and from there on the outcome can only be told by a close code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit, Timeout
from werkzeug.wrappers import Request, Response

from geventws.connection import State
from geventws.errors import ConnectionClosed, HandshakeError, ProtocolError
from geventws.frames import CloseCode, CloseReason
from geventws.protocol.handshake import (
    check_origin,
    choose_protocol,
    is_upgrade,
    negotiate,
    read_handshake,
    response_head,
)
from geventws.session import DefaultWebSocketSession, WebSocketSession
from geventws.settings import Settings
from geventws.tls import transport_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from geventws.upgrade import Upgrade

__all__ = ["DefaultWebSocketServerSession", "ServerCall", "WebSocketServerSession", "call_handler", "refusal"]

log = logging.getLogger("geventws")

Handler = Callable[..., Any]

NO_SERVER = (
    "This WebSocket route needs one of geventws' own servers: run `gunicorn -k geventws.Worker module:app`, "
    "or `python -m geventws module:app` for development."
)


class ServerCall:
    """The request that a session answers.

    ``protocols`` are the subprotocols that the route speaks, None for any client; ``extra_headers`` gives headers of a framework for the 101.
    Raises ``HandshakeError`` for a request that can't be accepted.
    """

    __slots__ = ("_extra_headers", "_handshake", "_negotiable", "_request", "_upgrade", "application", "environ", "protocol")

    def __init__(
        self,
        environ: WSGIEnvironment,
        application: Any,
        settings: Settings,
        request: Request | None = None,
        extra_headers: Callable[[], Sequence[tuple[str, str]]] | None = None,
    ) -> None:
        if not is_upgrade(environ):
            raise HandshakeError(
                426, "This is a WebSocket route: ask for it with a WebSocket client.", [("Upgrade", "websocket")]
            )
        self._handshake = read_handshake(environ)
        check_origin(environ, settings.origins)
        upgrade: Upgrade | None = environ.get("geventws.upgrade")
        if upgrade is None:
            raise HandshakeError(501, NO_SERVER)
        self._upgrade = upgrade
        self._request = request
        self._extra_headers = extra_headers
        self._negotiable = settings.extensions
        self.environ = environ
        self.application = application
        self.protocol: str | None = None

    @property
    def offered_protocols(self) -> Sequence[str]:
        """The subprotocols that the client speaks, in its order of preference."""
        return self._handshake.protocols

    @property
    def request(self) -> Request:
        """The request, as Werkzeug or the framework has it."""
        if self._request is None:
            self._request = Request(self.environ)
        return self._request

    @property
    def remote_address(self) -> Any:
        """The peer's socket address."""
        return self._upgrade.remote_address

    def accept(self, session: WebSocketSession, protocol: str | None, headers: Sequence[tuple[str, str]]) -> None:
        """Sends the 101 and opens the session's connection."""
        if protocol is None:
            protocol = self.protocol
        elif protocol not in self.offered_protocols:
            offered = ", ".join(self.offered_protocols) or "none"
            raise ValueError(f"protocol {protocol!r} is not among those that the client offered: {offered}")
        extra = list(headers)
        if self._extra_headers is not None:
            extra += self._extra_headers()
        negotiated, encoders = negotiate(self._handshake.extensions, self._negotiable)
        head = response_head(self._handshake.key, protocol=protocol, extensions=negotiated, headers=extra)
        rsv = 0
        for extension in self._negotiable:
            rsv |= extension.rsv if negotiated and extension.name in negotiated else 0
        socket, read_ahead = self._upgrade.take()
        self.protocol = protocol
        self._upgrade.sessions.add(session)
        connection = session.connection
        connection.session = session
        connection.open(transport_of(socket), head, read_ahead, encoders, rsv)
        session.opened()

    def ended(self, session: WebSocketSession) -> None:
        """Told when the session's connection is gone."""
        self._upgrade.sessions.discard(session)


class WebSocketServerSession(WebSocketSession):
    """A raw session of a server, with the request that it answers."""

    __slots__ = ()

    @property
    def application(self) -> Any:
        """The app that the session runs in: the Flask app, or the ``WebSockets`` without a framework."""
        return self.call.application

    @property
    def environ(self) -> WSGIEnvironment:
        """The WSGI environ of the request."""
        return self.call.environ  # type: ignore[no-any-return]

    @property
    def request(self) -> Any:
        """The request: Werkzeug's, or the framework's own."""
        return self.call.request


class DefaultWebSocketServerSession(WebSocketServerSession, DefaultWebSocketSession):
    """A default session of a server, with the request that it answers."""

    __slots__ = ()


def choose(routes: Sequence[Any], offered: Sequence[str]) -> tuple[Any, str | None]:
    """The first of ``routes`` that speaks a protocol of ``offered``, and the protocol; one with ``protocols`` None takes any client."""
    for route in routes:
        if route.protocols is None:
            return route, None
        protocol = choose_protocol(offered, route.protocols)
        if protocol is not None:
            return route, protocol
    spoken = ", ".join(protocol for route in routes for protocol in route.protocols or ())
    raise HandshakeError(400, f"This route speaks the subprotocols {spoken}: offer one of them in Sec-WebSocket-Protocol.")


def call_handler(session: WebSocketServerSession, handler: Handler, values: Mapping[str, Any], name: str) -> Any:
    """Runs ``handler`` on ``session`` to its end, and the session with it.

    Gives what the handler returned where that is the HTTP answer: the session was never used. Gives None after a 101. What the handler
    raises before the 101 is raised; after it, it is logged under ``name`` and becomes a close code, unless it stops the greenlet or process.
    """
    connection = session.connection
    try:
        result = handler(session, **values)
        if connection.state == State.CONNECTING:
            if result is not None:
                return result
            session.accept()
        _end(session, CloseCode.NORMAL, handled=True)
    except ConnectionClosed:
        if connection.state == State.CONNECTING:
            raise
        _end(session, CloseCode.NORMAL, handled=True)
    except GreenletExit:
        if connection.state != State.CONNECTING:
            _end(session, CloseCode.GOING_AWAY)
        raise
    except Exception as error:
        if connection.state == State.CONNECTING:
            raise
        if isinstance(error, ProtocolError):
            log.info("the handler %s closed its session: %s", name, error)
            _end(session, error.code)
        else:
            log.exception("the handler %s failed", name)
            _end(session, CloseCode.INTERNAL_ERROR)
    finally:
        # Nobody else holds a session whose handler has ended, however it ended.
        if connection.state != State.CONNECTING:
            connection.terminate()
    return None


def _end(session: WebSocketServerSession, code: int, handled: bool = False) -> None:
    """Closes a session whose handler has ended; a raw one that ended well has said what it had to say."""
    connection = session.connection
    if handled and connection.raw:
        with Timeout(connection.timeout, False), suppress(ConnectionClosed):
            connection.wait_flushed()
        return
    connection.start_close(CloseReason(code))
    connection.wait_closed(connection.timeout)


def refusal(error: HandshakeError) -> Response:
    """The response to a handshake that is refused: the status, a plain sentence, and no further request."""
    response = Response(error.message + "\n", status=error.status, mimetype="text/plain")
    for name, value in error.headers:
        response.headers.add(name, value)
    response.headers["Connection"] = "close"
    return response


def http_response(result: Any) -> WSGIApplication:
    """A handler's HTTP answer as a WSGI application."""
    if callable(result):
        return result  # type: ignore[no-any-return]
    if isinstance(result, (str, bytes)):
        return Response(result)
    raise TypeError(
        f"a handler returns None, or before its session is used a response (a WSGI application, str or bytes), not {type(result).__name__}"
    )
