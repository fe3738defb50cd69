"""Flask-SocketIO and python-socketio on geventws' sessions, in their ``async_mode="gevent"``.

python-engineio, on which both stand, gets its WebSockets from a table of its gevent driver. `install` puts ours there.
Packets, heartbeats, rooms and message queues stay Socket.IO's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from geventws.call import DefaultWebSocketServerSession, ServerCall, call_handler, finish, refusal
from geventws.errors import ConnectionClosed, HandshakeError
from geventws.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["WebSocketWSGI", "install"]

#: Socket.IO pings by itself, and has looked at the origin (``cors_allowed_origins``) before it asks for a WebSocket.
_DEFAULTS = Settings(ping_interval=None, origins=None)


def install(**settings: Any) -> None:
    """Has python-engineio's gevent driver make its WebSockets of sessions, in this process; before or after servers.

    ``settings`` are those of `geventws.Settings`, as in ``install(extensions=[PermessageDeflate()])``.
    ``max_frame_size`` is by default the server's ``max_http_buffer_size``. Raises ``ImportError`` without
    python-engineio.
    """
    from engineio.async_drivers import gevent as driver  # type: ignore[import-untyped]

    chosen = _DEFAULTS.override(**settings)
    bounded = "max_frame_size" in settings

    class Configured(WebSocketWSGI):
        """With the settings that were given."""

        def __init__(self, handler: Callable[[Any], Any], server: Any) -> None:
            limit = {} if bounded else {"max_frame_size": max(1, int(server.max_http_buffer_size))}
            super().__init__(handler, server, chosen.override(**limit))

    driver._async["websocket"] = Configured


class WebSocketWSGI:
    """The WebSocket of one Engine.IO connection, and the WSGI application that runs it.

    ``handler`` is called with it, and may leave ``send`` and ``close`` to another greenlet.
    """

    def __init__(self, handler: Callable[[Any], Any], server: Any, settings: Settings = _DEFAULTS) -> None:
        self._handler = handler
        self._server = server
        self._settings = settings
        self.environ: WSGIEnvironment = {}
        #: The session; None before the request.
        self.session: DefaultWebSocketServerSession | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.environ = environ
        answer: Any
        try:
            self.session = DefaultWebSocketServerSession(
                self._settings, ServerCall(environ, self._server, self._settings)
            )
            answer = call_handler(self.session, (), self._run, {}, "of Socket.IO")
        except HandshakeError as error:
            answer = refusal(error, environ)
        return finish(answer, environ, start_response)

    def _run(self, session: DefaultWebSocketServerSession) -> None:
        self._handler(self)

    @property
    def version(self) -> str | None:
        """The version of the protocol."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str:
        """The request's path."""
        return str(self.environ.get("PATH_INFO", ""))

    @property
    def origin(self) -> str | None:
        """The origin of the page that asked, or None."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """The subprotocols that the client offered, or None."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    def wait(self) -> str | bytes | None:
        """The next message; blocks. None once the WebSocket is over."""
        try:
            return self._opened().receive()  # type: ignore[no-any-return]
        except ConnectionClosed:
            return None

    def send(self, message: str | bytes) -> None:
        """Sends str as text, bytes as binary; blocks while the peer lags behind. Raises ``ConnectionClosed``."""
        self._opened().send(message)

    def close(self) -> None:
        """Begins the closing handshake; any greenlet may, and again."""
        self._opened().start_close()

    def _opened(self) -> DefaultWebSocketServerSession:
        assert self.session is not None, "there is no request yet"
        return self.session
