"""flask-sock's API on geventws' sessions: ``from geventws.compat.flask_sock import Sock`` in place of flask_sock's.

Views, rules and ``SOCK_SERVER_OPTIONS`` stay as they are. What flask-sock has no option for is set as for any session,
by ``WEBSOCKETS_...`` in the app's configuration: see `geventws.flask.WebSockets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import geventws.errors
from geventws.arguments import missing_extra
from geventws.call import DefaultWebSocketServerSession, call_handler, refusal
from geventws.errors import HandshakeError, UsageError
from geventws.frames import CloseCode, CloseReason
from geventws.protocol.handshake import check_origin
from geventws.settings import Settings, unknown_option

try:
    import flask
except ModuleNotFoundError as error:
    raise missing_extra(error, "flask", "geventws.compat.flask_sock", "flask") from None

from geventws.flask import FlaskCall, configured

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["ConnectionClosed", "Server", "Sock", "WebSocket"]

View = Callable[..., Any]

#: flask-sock's options by what they are here.
_SETTINGS = {"ping_interval": "ping_interval", "max_message_size": "max_frame_size"}
#: Options of simple-websocket's own machinery, which is not used.
_WITHOUT_MEANING = ("receive_bytes", "thread_class", "event_class", "selector_class")

#: Codes that no Close frame carries (RFC 6455 7.4.1).
_LOCAL_CODES = (CloseCode.NO_STATUS, CloseCode.ABNORMAL, 1015)

#: Where an app keeps what its options come to.
_EXTENSION = "geventws.compat.flask_sock"


try:
    # Apps import it from there, and go on catching it.
    from simple_websocket import ConnectionClosed as _Base  # type: ignore[import-untyped]
except ImportError:
    _Base = RuntimeError


class ConnectionClosed(_Base):  # type: ignore[misc]
    """The WebSocket is over: ``reason`` is the close code, ``message`` its text; None where no Close frame came.

    Raised by ``send``, ``receive`` and ``close``. One that leaves its own WebSocket's view is a normal end.
    """

    def __init__(
        self, reason: int = CloseCode.NO_STATUS, message: str | None = None, websocket: WebSocket | None = None
    ) -> None:
        RuntimeError.__init__(self, reason, message)
        self.reason = reason
        self.message = message
        #: Whose end it tells.
        self.websocket = websocket

    def __str__(self) -> str:
        return f"the WebSocket is closed ({CloseReason(self.reason, self.message or '')})"


class WebSocket:
    """What a view gets: messages in and out of ``session``, a `geventws.DefaultWebSocketServerSession`."""

    def __init__(self, session: DefaultWebSocketServerSession) -> None:
        self.session = session
        # Whether the view was told the end: the session may still be sending what it was given before.
        self._told = False

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """The next message, str for text and bytes for binary; None where none came within ``timeout`` seconds.

        Blocks; with 0 it does not. Raises `ConnectionClosed` behind the last message, and ``geventws.UsageError``
        while another greenlet receives.
        """
        try:
            return self.session.receive(timeout)
        except TimeoutError:
            return None
        except geventws.errors.ConnectionClosed:
            raise self._over() from None

    def send(self, data: Any) -> None:
        """Sends bytes as a binary message, anything else as the text that ``str`` makes of it.

        Blocks while the peer lags behind; any greenlet may send. Raises `ConnectionClosed`.
        """
        if self._told:
            raise self._over()
        try:
            self.session.send(data if isinstance(data, (str, bytes, bytearray, memoryview)) else str(data))
        except geventws.errors.ConnectionClosed:
            raise self._over() from None

    def close(self, reason: int | None = None, message: str | None = None) -> None:
        """Closes with the code ``reason``, 1000 by default, and a text; returns at once.

        1005, 1006 and 1015, which stand for the lack of a code, go out as 1000. Raises `ConnectionClosed` where the
        WebSocket is closed already, ``ValueError`` for another code that may not be sent.
        """
        if not self.connected:
            raise self._over()
        code = CloseCode.NORMAL if not reason or reason in _LOCAL_CODES else int(reason)
        self.session.start_close(code, CloseReason.truncated(code, message or "").message)

    @property
    def connected(self) -> bool:
        """Whether messages can be sent: not once `receive`, `send` or `close` has raised `ConnectionClosed`."""
        return not (self._told or self.session.closed)

    @property
    def close_reason(self) -> int:
        """The code with which the WebSocket was closed, by either side; 1005 as long as it is open."""
        reason = self.session.close_reason
        return CloseCode.NO_STATUS if reason is None else reason.code

    @property
    def close_message(self) -> str | None:
        """The text that came with the code; None while the WebSocket is open, and where no Close frame came."""
        reason = self.session.close_reason
        return None if reason is None or reason.code == CloseCode.ABNORMAL else reason.message

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, or None."""
        return self.session.protocol

    @property
    def environ(self) -> WSGIEnvironment:
        """The WSGI environ of the request."""
        return self.session.environ

    @property
    def mode(self) -> str:
        """What simple-websocket takes the server for: "werkzeug" under `geventws.Worker`, else "gevent"."""
        software = str(self.environ.get("SERVER_SOFTWARE", ""))
        return "gevent" if software.startswith("gevent") else "werkzeug"

    def _over(self) -> ConnectionClosed:
        self._told = True
        return ConnectionClosed(self.close_reason, self.close_message, self)


#: What flask-sock calls it; views have it in their annotations.
Server = WebSocket


class Sock:
    """WebSocket routes in a Flask app: ``Sock(app)``, or ``Sock()`` and ``init_app(app)`` later.

    ``app.config["SOCK_SERVER_OPTIONS"]`` is a dict of ``subprotocols``, ``ping_interval`` and ``max_message_size``.
    """

    def __init__(self, app: flask.Flask | None = None) -> None:
        self.app: flask.Flask | None = None
        self.bp: flask.Blueprint | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Adds the routes made so far to ``app``, and later ones too."""
        if self.bp is not None:
            app.register_blueprint(self.bp)
        self.app = app

    def route(self, path: str, bp: flask.Blueprint | None = None, **options: Any) -> Callable[[View], View]:
        """Decorates the view of the WebSockets at ``path``, which is called with a `WebSocket` and the rule's values.

        ``bp`` is the Flask blueprint that has the route, by default the app; ``options`` are those of Flask's own
        ``route``. The 101 is sent before the view runs; ``before_request`` functions run before that. A view that
        returns closes with 1000, one that raises with 1011.
        """

        def decorate(view: View) -> View:
            @wraps(view)
            def answer(**values: Any) -> Any:
                return _serve(view, values)

            self._owner(bp).route(path, **{**options, "websocket": True})(answer)
            return view

        return decorate

    def _owner(self, bp: flask.Blueprint | None) -> flask.Flask | flask.Blueprint:
        if bp is not None:
            return bp
        if self.app is not None:
            return self.app
        if self.bp is None:
            # flask-sock's name, which is a part of its users' endpoints.
            self.bp = flask.Blueprint("__flask_sock", __name__)
        return self.bp


def _serve(view: View, values: Mapping[str, Any]) -> Any:
    """Answers the request by a WebSocket for ``view``; gives Flask's response."""
    app = flask.current_app._get_current_object()  # type: ignore[attr-defined]
    environ = flask.request.environ
    settings, subprotocols = _options(app)
    try:
        call = FlaskCall(environ, app, settings)
        call.protocol = next((name for name in call.offered_protocols if name in subprotocols), None)
        check_origin(environ, settings.origins)
    except HandshakeError as error:
        return refusal(error, environ)

    def handle(session: DefaultWebSocketServerSession, /, **values: Any) -> None:
        # As flask-sock does: its clients may wait for it before the view has anything to say.
        session.accept()
        websocket = WebSocket(session)
        try:
            view(websocket, **values)
        except ConnectionClosed as error:
            if error.websocket not in (websocket, None):
                raise UsageError(
                    "the ConnectionClosed of another WebSocket left the view: catch it where you use one not its own"
                ) from error

    call_handler(DefaultWebSocketServerSession(settings, call), (), handle, values, view.__name__)
    call.tell_lost_changes()
    # For after_request functions, which see a view's 200 by flask-sock; nothing of it goes onto the wire.
    return app.response_class()


def _options(app: flask.Flask) -> tuple[Settings, tuple[str, ...]]:
    """The settings of an app's sessions, and the subprotocols that they speak."""
    options = app.config.get("SOCK_SERVER_OPTIONS", {})
    known = app.extensions.get(_EXTENSION)
    if known is None or known[0] != options:
        known = app.extensions[_EXTENSION] = (dict(options), _read(configured(app), options))
    return known[1]


def _read(settings: Settings, options: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    subprotocols: Any = ()
    for name, value in options.items():
        if name == "subprotocols":
            subprotocols = (value,) if isinstance(value, str) else tuple(value or ())
        elif name in _SETTINGS:
            # 0 stands for none there.
            settings = settings.override(**{_SETTINGS[name]: value or None})  # type: ignore[arg-type]
        elif name not in _WITHOUT_MEANING:
            raise unknown_option(name, ["subprotocols", *_SETTINGS])
    return settings, subprotocols
