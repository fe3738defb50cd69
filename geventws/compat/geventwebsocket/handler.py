"""``geventwebsocket.handler``: the handler class for gevent's own ``pywsgi.WSGIServer``, and for geventws' server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from gevent import pywsgi

from geventws.accepting import WaitingRoom
from geventws.compat.geventwebsocket.logging import create_logger
from geventws.compat.geventwebsocket.middleware import Client, Clients, HandlerFace, address_of, offers, serve
from geventws.compat.matching import match_plain_rules_too
from geventws.errors import UsageError
from geventws.frames import CloseCode
from geventws.peer_log import PeerLog
from geventws.server import WSGIHandler, close_sessions, server_is_full, server_is_stopping
from geventws.settings import Settings

__all__ = ["Client", "WebSocketHandler"]

#: What subclasses replaced to have a part in the upgrade.
_NEVER_CALLED = frozenset({"run_websocket", "upgrade_connection", "upgrade_websocket"})

#: Where the server keeps a connection's socket.
_socket: Any = WSGIHandler.__dict__["socket"]

#: Seconds for the head of a request where the server has no setting for it.
HANDSHAKE_TIMEOUT = 10.0


class WebSocketHandler(HandlerFace, WSGIHandler):  # type: ignore[misc]  # pywsgi's headers are of a class of its own
    """A connection of ``pywsgi.WSGIServer(listener, app, handler_class=WebSocketHandler)``, or of geventws' server.

    ``client_address`` is by what the client is listed. A ``pre_start_hook`` of the server is called with the handler of
    each request, as soon as its head is read.
    """

    SUPPORTED_VERSIONS = ("13",)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in _NEVER_CALLED & vars(cls).keys():
            # One may be there to tell whom the app lets in.
            raise UsageError(
                f"{cls.__name__}.{name}() would never be called: refuse in pre_start_hook, or where the app takes its "
                "WebSocket, before which it may answer in HTTP"
            )

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        _complete(server)
        super().__init__(sock, address, server, rfile)
        if server.handshake_timeout is not None:
            self.deadline = monotonic() + server.handshake_timeout

    @property
    def socket(self) -> Any:
        """The socket of the connection; while its WebSocket is open, what stands for that."""
        return _socket.__get__(self) if self.websocket is None else self.websocket.hold_socket()

    @socket.setter
    def socket(self, value: Any) -> None:
        _socket.__set__(self, value)

    @property
    def path(self) -> str | None:  # type: ignore[override]
        """The path of the request with its query, as the client sent it; None before the first."""
        return self.requestline.split(" ")[1] if self.requestline else None

    def _read_request(self) -> bool:
        if not super()._read_request():
            return False
        if self.application in (server_is_full, server_is_stopping):
            return True
        assert self.environ is not None
        hook = getattr(self.server, "pre_start_hook", None)
        try:
            is_plain = hook is not None and hook(self)
        except Exception as error:
            # As of the application: 500, and a traceback in the log.
            self.application = partial(_fail, error)
            return True
        if is_plain or not offers(self.environ):
            return True
        self.client_address = address_of(self.environ)
        settings = getattr(self.server, "websocket_settings", None) or Settings()
        self.application = partial(serve, self.application, handler=self, settings=settings)
        return True

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        """As PEP 3333 has it."""
        writer = super().start_response(status, headers, exc_info)
        self._prepare_response()
        return writer

    def _prepare_response(self) -> None:
        """Called when a response in HTTP has been started; for subclasses, as there is nothing to prepare.

        What follows a 101 is no response here.
        """


def _fail(error: Exception, environ: Any, start_response: Any) -> Any:
    """The application that a request gets whose hook has failed."""
    raise error


def _complete(server: Any) -> None:
    """Gives a server of gevent's own what geventws' handlers look for, and each its list of clients."""
    match_plain_rules_too()
    if not hasattr(server, "clients"):
        server.clients = Clients()
    if not hasattr(server, "logger"):
        server.logger = create_logger("geventwebsocket.server")
    if not hasattr(server, "sessions"):
        server.sessions = set()
        server.waiting = WaitingRoom()
        server.handshake_timeout = HANDSHAKE_TIMEOUT
        server.max_websockets = inf
        server.peer_log = PeerLog(lambda line: server.error_log.write(line + "\n"))
        server.logs_requests = not isinstance(server.log, pywsgi._NoopLog)  # type: ignore[attr-defined]
        server.stop = partial(_stop, server, server.stop)


def _stop(server: Any, stop: Callable[[float | None], object], timeout: float | None = None) -> None:
    """Stops a server of gevent's own, which would leave its WebSockets without a word; blocks as its ``stop``."""
    server.close()
    close_sessions(list(server.sessions), CloseCode.GOING_AWAY)
    stop(timeout)
