"""The HTTP side of a server's session: the handshake is checked, the handler runs, and its outcome is told.

Until the session is first used all is plain HTTP, and whatever the handler raises or returns is the client's answer.
Then the 101 goes out, and from there on the outcome can only be told by a close code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from gevent import GreenletExit, Timeout, get_hub, spawn
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response

from geventws.arguments import shown
from geventws.connection import State
from geventws.errors import ConnectionClosed, HandshakeError, ProtocolError, UsageError
from geventws.frames import NORMAL_CLOSURE, CloseCode, CloseReason, may_be_sent
from geventws.peer_log import format_address
from geventws.protocol.handshake import is_upgrade, negotiate, read_handshake, response_head
from geventws.session import DefaultWebSocketSession, HeaderFields, WebSocketSession
from geventws.settings import Settings
from geventws.switching import current
from geventws.tls import transport_of
from geventws.upgrade import KEY, Outcome

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from geventws.protocol.extensions import ExtensionSession
    from geventws.protocol.handshake import Handshake
    from geventws.upgrade import Upgrade

__all__ = [
    "CALL_KEY",
    "FAILURE_KEY",
    "DefaultWebSocketServerSession",
    "Observers",
    "ServerCall",
    "WebSocketServerSession",
    "call_handler",
    "finish",
    "refusal",
    "upgrade_required",
]

log = logging.getLogger("geventws")

Handler = Callable[..., Any]

#: Where the environ holds what makes the call in an app, for a ``WebSocketUpgrade`` that the app leads to.
CALL_KEY = "geventws.call"

#: Where the environ of a test holds what is called with an exception that leaves a handler.
FAILURE_KEY = "geventws.failure"

# An enum's member takes longer to get and to compare.
CONNECTING = int(State.CONNECTING)

#: Characters of a path that a line of the log repeats.
_LOGGED_PATH = 100


class Observers:
    """What an app or a blueprint has called for its sessions, each list in order."""

    __slots__ = ("answered", "closed", "failed", "opened")

    def __init__(self) -> None:
        #: Called with a session.
        self.opened: list[Callable[[Any], object]] = []
        #: Called with a session and its close reason.
        self.closed: list[Callable[[Any, CloseReason], object]] = []
        #: Called with a session and what its handler raised.
        self.failed: list[Callable[[Any, BaseException], object]] = []
        #: Called with the environ and the status of a handshake that is answered in HTTP; only an app's are.
        self.answered: list[Callable[[WSGIEnvironment, int], object]] = []

    def add(self, others: Observers) -> None:
        """Adds what others have called."""
        self.opened += others.opened
        self.closed += others.closed
        self.failed += others.failed
        self.answered += others.answered

    def tell_answer(self, environ: WSGIEnvironment, status: int) -> None:
        """Tells of an HTTP answer, where it is one to a handshake."""
        upgrade: Upgrade | None = environ.get(KEY)
        if upgrade is not None and not upgrade.taken:
            _tell(self.answered, environ, status)


class ServerCall:
    """The request that a session answers.

    ``application`` and ``settings`` are those of the app that the session runs in. A framework's subclass adds what the
    framework knows. Raises ``HandshakeError`` for a request that can't be accepted.
    """

    __slots__ = (
        "_handshake",
        "_request",
        "_upgrade",
        "application",
        "environ",
        "observers",
        "protocol",
        "remote_address",
        "rule",
        "settings",
    )

    def __init__(self, environ: WSGIEnvironment, application: Any, settings: Settings) -> None:
        upgrade: Upgrade | None = environ.get(KEY)
        if upgrade is None:
            if not is_upgrade(environ):
                raise upgrade_required(environ)
            raise HandshakeError(501, _other_server(environ.get("SERVER_SOFTWARE") or "this server"))
        #: None once the request is answered, by the 101 or in HTTP.
        self._handshake: Handshake | None = read_handshake(environ)
        self._upgrade = upgrade
        self._request: Request | None = None
        self.environ = environ
        self.application = application
        self.settings = settings
        #: What is called for the session: the app's, then its blueprint's.
        self.observers: tuple[Observers, ...] = ()
        #: The rule that was matched, with its prefix; None where it was no route of ours.
        self.rule: str | None = None
        #: The subprotocol that the session will have, or has.
        self.protocol: str | None = None
        #: The TCP peer's socket address.
        self.remote_address = upgrade.remote_address

    @property
    def described(self) -> str:
        """Whose request it is, and for what, in a line of the log."""
        path = self.environ.get("PATH_INFO", "")[:_LOGGED_PATH]
        return f"{path!a} of {format_address(self.remote_address)}"

    @property
    def sessions(self) -> set[Any]:
        """The open sessions of the server that the request came to, of all apps."""
        return self._upgrade.sessions

    @property
    def offered_protocols(self) -> Sequence[str]:
        """The subprotocols that the client offers, in its order of preference; none once the request is answered."""
        return () if self._handshake is None else self._handshake.protocols

    @property
    def request(self) -> Request:
        """The request, as Werkzeug or the framework has it."""
        if self._request is None:
            self._request = Request(self.environ)
        return self._request

    def headers(self) -> Iterable[tuple[str, str]]:
        """The headers that a framework adds to the 101."""
        return ()

    def failed(self, name: str, error: BaseException) -> None:
        """Reports, once, what the handler of this name raised after the 101."""
        log.error("the handler %s failed, %s", name, self.described, exc_info=error)

    def accept(self, session: WebSocketSession, protocol: str | None, headers: HeaderFields) -> None:
        """Sends the 101 and opens the session's connection."""
        handshake = self._unanswered()
        if protocol is not None and protocol not in handshake.protocols:
            offered = ", ".join(handshake.protocols) or "none"
            raise ValueError(f"protocol {protocol!r} is not among those that the client offered: {offered}")
        connection = session.connection
        extensions = connection.settings.extensions
        answer: str | None = None
        encoders: Sequence[ExtensionSession] = ()
        rsv = 0
        if extensions and handshake.extensions:
            answer, encoders = negotiate(handshake.extensions, extensions)
            names = {element.partition(";")[0].strip() for element in (answer or "").split(",")}
            rsv = sum(extension.rsv for extension in extensions if extension.name in names)
        pairs = _pairs(headers) if headers != () else []
        pairs += self.headers()
        if connection.state != CONNECTING and protocol is None and not headers:
            # A framework's headers may have to be waited for, and meanwhile another greenlet used the session first.
            return
        chosen = self.protocol if protocol is None else protocol
        head = response_head(self._unanswered().key, protocol=chosen, extensions=answer, headers=pairs)
        # It would live as long as the session.
        self.environ.pop(CALL_KEY, None)
        # From here on nothing fails, and HTTP is over.
        socket, read_ahead = self._upgrade.take()
        self._handshake = None
        self.protocol = chosen
        self._upgrade.sessions.add(session)
        connection.session = session
        connection.open(transport_of(socket), head, read_ahead, encoders, rsv)
        session.opened()
        for observers in self.observers:
            if observers.opened:
                _tell_opened(observers, session)

    def _unanswered(self) -> Handshake:
        if self._handshake is None:
            over = "accepted" if self._upgrade.taken else "answered in HTTP"
            raise UsageError(f"the request is {over} already: there is no WebSocket to open any more")
        return self._handshake

    def answered(self) -> None:
        """Told when the request is answered in HTTP: a greenlet that still has the session can't open it any more."""
        self._handshake = None

    def ended(self, session: WebSocketSession) -> None:
        """Told when the session's connection is gone."""
        connection = session.connection
        transport, (code, message) = connection.transport, connection.ending()
        self._upgrade.outcome = Outcome(code, message, transport.received, transport.sent, connection.failed)
        self._upgrade.sessions.discard(session)


def _pairs(headers: Any) -> list[tuple[str, str]]:
    given = headers.items() if isinstance(headers, Mapping) else headers
    are_pairs = isinstance(given, Iterable) and not isinstance(given, str)
    pairs: list[Any] = list(given) if are_pairs else [given]
    if not are_pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError(f'headers must be a dict or a list of pairs, as in [("X-Room", "7")], not {shown(headers)}')
    return pairs


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
    def request(self) -> Request:
        """The request: Werkzeug's, or the framework's own."""
        return self.call.request  # type: ignore[no-any-return]

    @property
    def rule(self) -> str | None:
        """The rule of its route, as in ``/chat/<room>``; None for a ``WebSocketUpgrade``."""
        return self.call.rule  # type: ignore[no-any-return]


class DefaultWebSocketServerSession(WebSocketServerSession, DefaultWebSocketSession):
    """A default session of a server, with the request that it answers."""

    __slots__ = ()


def call_handler(
    session: WebSocketServerSession, hooks: Iterable[Handler], handler: Handler, values: Mapping[str, Any], name: str
) -> Any:
    """Runs ``hooks`` and then ``handler`` on ``session``, and the session with them to its end.

    Gives what the handler returned, or the first hook that returned something, where that is the HTTP answer: the
    session was never used. Gives None after a 101. What is raised before the 101 leaves here; what is raised after it
    is reported under ``name`` and becomes a close code, and only what stops the greenlet or the process leaves.
    """
    connection = session.connection
    try:
        answer = None
        for hook in hooks:
            answer = hook(session)
            if answer is not None:
                break
        else:
            # With ** Python calls through C, whose frames would stay on the session's stack.
            answer = handler(session, **values) if values else handler(session)
        if connection.state == CONNECTING:
            if answer is not None:
                return answer
            session.accept()
        _end(session)
    except GreenletExit:
        if connection.state != CONNECTING:
            _close(session, CloseReason(CloseCode.GOING_AWAY))
        raise
    except (Exception, Timeout) as error:
        if connection.state == CONNECTING:
            if not isinstance(error, (HTTPException, HandshakeError)):
                _tell_test(session, error)
            raise
        if isinstance(error, ConnectionClosed) and session.close_reason is not None:
            _end(session)
        else:
            _fail(session, error, name)
    except BaseException:
        # The process is to end: the peer is told where there is a session, and not waited for.
        connection.start_close(CloseReason(CloseCode.INTERNAL_ERROR))
        raise
    finally:
        if connection.state == CONNECTING:
            session.call.answered()
        else:
            connection.terminate()
            if session.call.observers:
                _tell_closed(session)
    return None


def _end(session: WebSocketServerSession) -> None:
    """Ends a session whose handler has ended well; a raw one has said what it had to say."""
    connection = session.connection
    if connection.raw:
        connection.end_output()
    else:
        connection.start_close(NORMAL_CLOSURE)
    connection.wait_closed(None)


def _close(session: WebSocketServerSession, reason: CloseReason) -> None:
    connection = session.connection
    connection.start_close(reason)
    connection.wait_closed(None)


def _fail(session: WebSocketServerSession, error: BaseException, name: str) -> None:
    """Ends a session whose handler has raised: the peer is told its own fault, but nothing of ours."""
    if isinstance(error, ProtocolError) and may_be_sent(error.code):
        log.info("the handler %s ended its session, %s: %s", name, session.call.described, error)
        _close(session, CloseReason.truncated(error.code, error.message))
        return
    call = session.call
    explained = _explained(error)
    _tell_test(session, explained)
    call.failed(name, explained)
    try:
        # Before the close: it may be another one then.
        for observers in call.observers:
            _tell(observers.failed, session, error)
    finally:
        _close(session, CloseReason(CloseCode.INTERNAL_ERROR))


def _tell_test(session: WebSocketServerSession, error: BaseException) -> None:
    tell = session.environ.get(FAILURE_KEY)
    if tell is not None:
        tell(error)


def _tell_opened(observers: Observers, session: WebSocketSession) -> None:
    if current() is get_hub():
        # Where a callback of the hub was the first to use the session: hooks may block.
        spawn(_tell, observers.opened, session)
    else:
        _tell(observers.opened, session)


def _tell_closed(session: WebSocketServerSession) -> None:
    """Calls the hooks of a session whose connection is gone, in the handler's greenlet."""
    killed = None
    for observers in session.call.observers:
        for hook in observers.closed:
            try:
                _tell((hook,), session, session.connection.ending())
            except GreenletExit as error:
                # The others are called all the same.
                killed = error
    if killed is not None:
        raise killed


def _tell(hooks: Iterable[Callable[..., object]], *arguments: Any) -> None:
    """Calls hooks; what one raises is logged, and breaks nothing."""
    for hook in hooks:
        try:
            hook(*arguments)
        except ConnectionClosed:
            # It used a session that has ended, as a handler may.
            pass
        except (Exception, Timeout) as error:
            log.error("the hook %s failed", getattr(hook, "__qualname__", hook), exc_info=error)


def _explained(error: BaseException) -> BaseException:
    """``error``, or where that would puzzle its reader, one that says what to do and has it as its cause."""
    explained: Exception
    if isinstance(error, HTTPException):
        explained = UsageError(
            f"the handler raised {error} after the 101, when HTTP is over: use session.close(code, reason) then"
        )
    elif isinstance(error, ConnectionClosed):
        explained = UsageError(
            "the ConnectionClosed of another session left the handler: catch it where you use sessions not its own"
        )
    elif isinstance(error, Timeout):
        explained = TimeoutError(f"a gevent.Timeout left the handler: {error}")
    else:
        return error
    explained.__cause__ = error
    return explained


def upgrade_required(environ: WSGIEnvironment) -> HandshakeError:
    """The refusal of a plain HTTP request for a WebSocket route."""
    message = "This is a WebSocket route: ask for it with a WebSocket client."
    if "HTTP_SEC_WEBSOCKET_KEY" in environ:
        # Proxies drop Upgrade and Connection, which are between neighbours (RFC 9110 7.6.1), and pass the others on.
        message = "The header Upgrade is missing: a proxy in between has to be told to pass on Upgrade and Connection."
    return HandshakeError(426, message, [("Upgrade", "websocket")])


@cache
def _other_server(software: str) -> str:
    """What to say, and to log once, where the app runs on a server that is none of ours."""
    message = (
        f"WebSocket routes need one of geventws' own servers, and {software} is none. Run "
        "`gunicorn -k geventws.Worker module:app`, for development `python -m geventws module:app`, "
        "or embed geventws.WSGIServer."
    )
    log.error("%s", message)
    return message


def refusal(error: HandshakeError, environ: WSGIEnvironment) -> Response:
    """The response to a handshake that is refused: the status, and a plain sentence."""
    # Browsers hide it from their pages, and most of it from their developers.
    log.info("%a is refused: %s", environ.get("PATH_INFO", "")[:_LOGGED_PATH], error)
    return Response(error.message + "\n", status=error.status, headers=error.headers, mimetype="text/plain")


def finish(answer: Any, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Gives a WSGI server the HTTP answer, or after a WebSocket, with None, what it must see: nothing."""
    if answer is None:
        start_response("101 Switching Protocols", [])
        return []
    return _http_response(answer)(environ, start_response)


def _http_response(answer: Any) -> WSGIApplication:
    """A handler's HTTP answer as a WSGI application."""
    if callable(answer):
        return answer  # type: ignore[no-any-return]
    if isinstance(answer, (str, bytes)):
        return Response(answer)
    raise TypeError(
        "a handler must return None, or before its session is used a response (a WSGI application, str or bytes), "
        f"not {type(answer).__name__}"
    )
