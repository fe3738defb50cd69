"""Tests of WebSocket handlers in the test's own process and thread, without a port.

The app runs as under `WSGIServer`, in a greenlet, on one end of a socket pair; the test has a client's session on the
other. The handler's turn comes whenever the test waits for its session. Nothing need be monkey-patched; what blocks the
thread in a handler (``time.sleep``, a ``queue.Queue``, a database's socket) blocks the test too, as it would block all
sessions of a worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import gevent
from gevent.monkey import get_original
from gevent.socket import socketpair

from geventws.arguments import check_flag, check_seconds, check_wait, shown
from geventws.call import FAILURE_KEY
from geventws.client_session import (
    ClientCall,
    DefaultWebSocketClientSession,
    Offer,
    WebSocketClientSession,
    client_settings,
    open_session,
)
from geventws.errors import ConnectionClosed, HandshakeRefused, UsageError, WebSocketError
from geventws.interrupting import Interrupter
from geventws.protocol.url import WebSocketURL, parse_url
from geventws.routing import Blueprint
from geventws.server import WSGIServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from typing_extensions import Unpack

    from geventws.converters import ContentConverter
    from geventws.frames import Frame
    from geventws.protocol.extensions import ClientExtension
    from geventws.session import BytesLike, R, Receives, T

__all__ = ["DefaultWebSocketTestSession", "WebSocketTestSession", "connect"]

#: Seconds that a wait may take before the test fails.
PATIENCE = 5.0

# Of threads also where gevent has put greenlets in their place.
_thread_id = get_original("_thread", "get_ident")

#: The modules whose frames are not where a handler waits.
_LIBRARIES = ("gevent.", "geventws.", "greenlet", "threading", "queue")


class _Default:
    """Stands for the session's own limit."""

    def __repr__(self) -> str:
        return "DEFAULT"


_DEFAULT = _Default()


class _Server(WSGIServer):
    """A server of one connection, which it need not accept."""

    #: It serves from the start.
    started = True

    def serve(self, sock: Any) -> None:
        """Serves a connection to its end."""
        self._serve([sock, ("127.0.0.1", 0)])


class _Peer:
    """What is at the other end: the greenlet that runs the app, and what went wrong in it."""

    def __init__(self, app: Any, url: WebSocketURL, environ: Mapping[str, Any], patience: float) -> None:
        self.patience = patience
        self.thread = _thread_id()
        self.failure: BaseException | None = None
        self._interrupter = Interrupter()

        def watched(environ: dict[str, Any], start_response: Any) -> Any:
            try:
                return app(environ, start_response)
            except Exception as error:
                self.failed(error)
                raise

        base = {
            "SERVER_NAME": url.host,
            "SERVER_PORT": str(url.port),
            **environ,
            FAILURE_KEY: self.failed,
        }
        self._server = _Server((url.host, url.port), watched, log=None, environ=base)
        self._server.environ["wsgi.url_scheme"] = "https" if url.secure else "http"
        self._greenlet: gevent.Greenlet[..., Any] | None = None

    def __del__(self) -> None:
        interrupter = getattr(self, "_interrupter", None)
        if interrupter is not None:
            interrupter.stop()

    def start(self) -> Any:
        """Begins to serve; gives the client's end."""
        ours, theirs = socketpair()
        self._greenlet = gevent.spawn(self._server.serve, theirs)
        return ours

    def failed(self, error: BaseException) -> None:
        """Told of an exception that leaves the handler or the app."""
        if self.failure is None:
            self.failure = error

    def take_failure(self) -> BaseException | None:
        """What went wrong, once: it is raised in the test."""
        failure, self.failure = self.failure or self._interrupter.raised, None
        self._interrupter.raised = None
        return failure

    def check_thread(self) -> None:
        """Raises ``UsageError`` in another thread than that of the test."""
        if _thread_id() != self.thread:
            raise UsageError("this WebSocket belongs to the thread that connected it: have each thread connect its own")

    @contextmanager
    def limited(self, seconds: float, what: str) -> Iterator[None]:
        """A wait for the app, which ends after ``seconds`` with a ``TimeoutError`` that says ``what`` and where."""
        timer = gevent.Timeout.start_new(seconds)
        try:
            with self._interrupter.waiting(seconds):
                yield
        except gevent.Timeout as error:
            if error is not timer:
                raise
            raise TimeoutError(f"{what} within {seconds:g} s: {self.where()}") from None
        finally:
            timer.close()

    def end(self) -> str | None:
        """Waits for the app to return; where it does not in time, ends it and tells where it was."""
        greenlet = self._greenlet
        try:
            if greenlet is None or greenlet.dead:
                return None
            with self._interrupter.waiting(self.patience):
                greenlet.join(self.patience)
            if greenlet.dead:
                return None
            where = self.where()
            with self._interrupter.waiting(self.patience):
                greenlet.kill(timeout=self.patience)
            return where
        finally:
            self._interrupter.stop()

    def where(self) -> str:
        """What the app does, in words."""
        greenlet = self._greenlet
        if greenlet is None or greenlet.dead:
            return "the app has returned"
        frame: FrameType | None = greenlet.gr_frame
        first = frame
        while frame is not None and frame.f_globals.get("__name__", "").startswith(_LIBRARIES):
            frame = frame.f_back
        frame = frame or first
        if frame is None:
            return "the app has not begun"
        code = frame.f_code
        return f"the app waits in {code.co_name}, {code.co_filename}:{frame.f_lineno}"


class WebSocketTestSession(WebSocketClientSession):
    """A raw session in a test, with frames; each of its waits ends after ``receive_timeout`` seconds.

    The end of its ``with`` block closes it, waits for the handler to end, and raises what left the handler.
    """

    peer: _Peer
    propagate: bool

    @overload
    def receive(  # type: ignore[misc, overload-overlap]  # as of sessions elsewhere
        self: DefaultWebSocketTestSession, timeout: float | _Default | None = ...
    ) -> str | bytes: ...

    @overload
    def receive(self, timeout: float | _Default | None = ...) -> Frame: ...

    def receive(self, timeout: float | _Default | None = _DEFAULT) -> Any:
        """The next message, str for text and bytes for binary; of a raw session the next frame. Blocks.

        Raises ``TimeoutError`` after ``timeout`` seconds, by default ``receive_timeout``; None waits for ever. Raises
        ``ConnectionClosed`` after the end.
        """
        peer = self.peer
        peer.check_thread()
        limit = peer.patience if isinstance(timeout, _Default) else timeout
        if limit is None:
            return super().receive()
        check_wait("timeout", limit)
        with peer.limited(limit, "no message came"):
            return super().receive()

    def send(self, frame: Frame) -> None:
        """Sends one frame; blocks and raises as a client's ``send``, and ``TimeoutError`` where nothing is read."""
        self.peer.check_thread()
        with self.peer.limited(self.peer.patience, "nothing more was read"):
            super().send(frame)

    def flush(self) -> None:
        """Blocks until all that was sent is on its way; raises ``ConnectionClosed`` and ``TimeoutError``."""
        self.peer.check_thread()
        with self.peer.limited(self.peer.patience, "nothing more was read"):
            super().flush()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes, and blocks until the handler's side has answered, at most ``timeout`` seconds."""
        peer = self.peer
        peer.check_thread()
        # Its own limit ends it; this is for a thread that is blocked.
        with peer.limited(self.timeout + peer.patience, "the WebSocket did not close"):
            super().close(code, reason)

    def wait_closed(self, timeout: float | _Default | None = _DEFAULT) -> bool:
        """Blocks until the connection is gone, by default for ``receive_timeout`` seconds; tells whether it is gone."""
        peer = self.peer
        peer.check_thread()
        limit = peer.patience if isinstance(timeout, _Default) else timeout
        check_wait("timeout", limit)
        if limit is None:
            return super().wait_closed(None)
        # Its own limit ends it; this is for a thread that is blocked.
        with peer.limited(max(0.0, limit) + peer.patience, "the WebSocket did not end"):
            return super().wait_closed(limit)

    def __iter__(self: Receives[R]) -> Iterator[R]:
        try:
            while True:
                yield self.receive()
        except ConnectionClosed:
            return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peer = self.peer
        peer.check_thread()
        super().__exit__(kind, error, trace)
        where = peer.end()
        if not self.propagate:
            return
        failure = peer.take_failure()
        if failure is not None:
            # One of the test's own is not for us to hide; those that follow from the handler's are.
            if error is None or isinstance(error, (WebSocketError, TimeoutError)):
                raise failure
            if hasattr(error, "add_note"):
                error.add_note(f"before it, the handler failed with {failure!r}")
        elif where is not None and error is None:
            raise TimeoutError(f"the app did not return within {peer.patience:g} s of its WebSocket's end: {where}")


class DefaultWebSocketTestSession(WebSocketTestSession, DefaultWebSocketClientSession):
    """A default session in a test, with messages; each of its waits ends after ``receive_timeout`` seconds.

    The end of its ``with`` block closes it, waits for the handler to end, and raises what left the handler.
    """

    def send(  # type: ignore[override]  # as of default and raw sessions elsewhere
        self, message: str | BytesLike | Iterable[str | BytesLike]
    ) -> None:
        """Sends a message: str as text, bytes-like as binary, an iterable of either as one message in fragments.

        Blocks and raises as a client's ``send``, and ``TimeoutError`` where nothing is read.
        """
        super().send(message)  # type: ignore[arg-type]

    def ping(self, timeout: float | None = None) -> float:
        """Sends a ping and blocks until its pong is here; gives the seconds between, and raises as a client's."""
        peer = self.peer
        peer.check_thread()
        check_wait("timeout", timeout)
        # Its own limit ends it; this is for a thread that is blocked.
        limit = max(0.0, self.timeout if timeout is None else timeout)
        with peer.limited(limit + peer.patience, "no pong came"):
            return super().ping(timeout)

    @overload
    def receive_deserialized(self, type: type[T], timeout: float | _Default | None = ...) -> T: ...

    @overload
    def receive_deserialized(self, type: Any = ..., timeout: float | _Default | None = ...) -> Any: ...

    def receive_deserialized(self, type: Any = None, timeout: float | _Default | None = _DEFAULT) -> Any:
        """The next message as the object that the content converter makes of it; blocks and raises as `receive`."""
        return self._converter().deserialize(self.receive(timeout), type)


class InProcessOptions(TypedDict, total=False):
    """The options of `connect`, for type checkers."""

    protocols: Sequence[str] | None
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None
    origin: str | None
    extensions: Sequence[ClientExtension]
    environ: Mapping[str, Any]
    receive_timeout: float
    propagate: bool
    ping_interval: float | None
    timeout: float
    max_frame_size: int | None
    max_fragments: int | None
    message_timeout: float | None
    read_limit: int | None
    write_limit: int | None
    content_converter: ContentConverter | None


@overload
def connect(
    app: WSGIApplication, path: str = ..., *, raw: Literal[False] = ..., **options: Unpack[InProcessOptions]
) -> DefaultWebSocketTestSession: ...


@overload
def connect(
    app: WSGIApplication, path: str = ..., *, raw: Literal[True], **options: Unpack[InProcessOptions]
) -> WebSocketTestSession: ...


def connect(
    app: WSGIApplication,
    path: str = "/",
    *,
    protocols: Sequence[str] | None = (),
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = (),
    raw: bool = False,
    origin: str | None = None,
    extensions: Sequence[ClientExtension] = (),
    environ: Mapping[str, Any] | None = None,
    receive_timeout: float = PATIENCE,
    propagate: bool = True,
    **settings: Any,
) -> Any:
    """Runs ``app`` on its own WebSocket, and returns the client's session, for a ``with`` block.

    :param app: a WSGI app: a ``geventws.WebSockets``, a Flask app with ``geventws.flask``, or any other.
    :param path: the path and query, or a whole URL, ``wss://example.com/path``, for its host and scheme.
    :param protocols: the subprotocols to offer; ``session.protocol`` is the one agreed on.
    :param headers: a dict or list of pairs to add to the request, such as ``{"Cookie": "session=..."}``.
    :param raw: whether the session gives frames instead of messages.
    :param origin: the Origin header.
    :param extensions: to offer, such as ``[geventws.PermessageDeflate()]``.
    :param environ: keys to add to the WSGI environ, such as ``{"REMOTE_USER": "ada"}``.
    :param receive_timeout: seconds that any wait of the session may take before it raises ``TimeoutError``.
    :param propagate: whether an exception that leaves the handler is raised at the end of the block, or here if it
        comes before the 101, instead of only being logged. A handler that doesn't return is a ``TimeoutError`` then.
    :param settings: those of `geventws.Settings`, for the client's side; it sends pings only if you set
        ``ping_interval``.

    Raises ``HandshakeRefused`` if the app answers in HTTP: its text names the response, as in "401 Unauthorized: log
    in first", and it has ``status``, ``headers``, ``text`` and ``json``.
    """
    if isinstance(app, Blueprint):
        raise TypeError("a Blueprint is no app: register it on a WebSockets() or a Flask app, and connect to that")
    if not callable(app):
        raise TypeError(f"app must be a WSGI app, not {type(app).__name__}")
    check_seconds("receive_timeout", receive_timeout)
    check_flag("raw", raw)
    check_flag("propagate", propagate)
    if environ is not None and not isinstance(environ, Mapping):
        raise TypeError(f"environ must be a mapping, as in {{'REMOTE_USER': 'ada'}}, or None, not {shown(environ)}")
    if not isinstance(path, str) or not ("://" in path or path.startswith("/")):
        raise ValueError(f'path must begin with a slash, as in "/chat", or be a whole URL, not {shown(path)}')
    url = parse_url(f"ws://localhost{path}" if path.startswith("/") else path)
    if not raw:
        settings.setdefault("ping_interval", None)
    settings.setdefault("timeout", receive_timeout)
    offer = Offer(
        url.target,
        url.authority,
        protocols=protocols,
        headers=headers,
        origin=origin,
        extensions=extensions,
        authorization=url.authorization,
    )
    session_class = WebSocketTestSession if raw else DefaultWebSocketTestSession
    call = ClientCall(str(url), ("127.0.0.1", 0))
    session = session_class(client_settings(settings, raw, extensions), call, client=True)
    peer = session.peer = _Peer(app, url, environ or {}, receive_timeout)
    session.propagate = propagate
    try:
        with peer.limited(receive_timeout, "the app did not answer the handshake"):
            return open_session(session, peer.start(), offer)
    except HandshakeRefused:
        peer.end()
        failure = peer.take_failure()
        if propagate and failure is not None:
            raise failure from None
        raise
    except BaseException:
        peer.end()
        raise
