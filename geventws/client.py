"""``geventws.connect``: a client, once or again and again."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from os import urandom
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, overload

from gevent import Timeout
from gevent.event import Event

from geventws.arguments import check_flag, check_number, check_seconds, shown
from geventws.client_session import (
    ClientCall,
    DefaultWebSocketClientSession,
    Offer,
    WebSocketClientSession,
    client_settings,
    open_session,
)
from geventws.dialing import ENVIRONMENT, Destination, Environment, dial, find_proxy, tls_context
from geventws.errors import HandshakeRefused
from geventws.frames import CloseCode
from geventws.protocol.url import parse_url
from geventws.transport import monotonic

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from geventws.converters import ContentConverter
    from geventws.protocol.extensions import ClientExtension

__all__ = ["Connections", "connect"]

log = logging.getLogger("geventws")

S = TypeVar("S", bound=WebSocketClientSession)

#: Statuses that say of themselves that they pass: too early, too many, and any fault of the server's or a gateway's.
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
#: A connection that lasts so many seconds is a success, after which the wait begins anew.
_LASTS = 5.0


class ConnectOptions(TypedDict, total=False):
    """The options of `connect`, for type checkers."""

    protocols: Sequence[str] | None
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None
    origin: str | None
    extensions: Sequence[ClientExtension]
    open_timeout: float | None
    ssl_context: ssl.SSLContext | None
    proxy: str | Environment | None
    unix_socket: str | os.PathLike[str] | None
    max_head_size: int
    ping_interval: float | None
    timeout: float
    max_frame_size: int | None
    max_fragments: int | None
    message_timeout: float | None
    read_limit: int | None
    write_limit: int | None
    content_converter: ContentConverter | None


class ReconnectOptions(ConnectOptions, total=False):
    """The options of `connect` with ``reconnect=True``."""

    min_delay: float
    max_delay: float
    retries: int | None


@overload
def connect(
    url: str, *, raw: Literal[False] = ..., reconnect: Literal[False] = ..., **options: Unpack[ConnectOptions]
) -> DefaultWebSocketClientSession: ...


@overload
def connect(
    url: str, *, raw: Literal[True], reconnect: Literal[False] = ..., **options: Unpack[ConnectOptions]
) -> WebSocketClientSession: ...


@overload
def connect(
    url: str, *, raw: Literal[False] = ..., reconnect: Literal[True], **options: Unpack[ReconnectOptions]
) -> Connections[DefaultWebSocketClientSession]: ...


@overload
def connect(
    url: str, *, raw: Literal[True], reconnect: Literal[True], **options: Unpack[ReconnectOptions]
) -> Connections[WebSocketClientSession]: ...


def connect(
    url: str,
    *,
    protocols: Sequence[str] | None = (),
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = (),
    raw: bool = False,
    origin: str | None = None,
    extensions: Sequence[ClientExtension] = (),
    open_timeout: float | None = 10.0,
    ssl_context: ssl.SSLContext | None = None,
    proxy: str | Environment | None = ENVIRONMENT,
    unix_socket: str | os.PathLike[str] | None = None,
    max_head_size: int = 64 * 1024,
    reconnect: bool = False,
    min_delay: float = 1.0,
    max_delay: float = 60.0,
    retries: int | None = None,
    **settings: Any,
) -> Any:
    """Opens a WebSocket to ``url`` (RFC 6455 4.1) and returns its session; blocks only its own greenlet.

    The session has the same API as a handler's, is already open, and closes at the end of a ``with`` block. It belongs
    to the thread that opens it.

    :param url: ``ws://host:port/path`` or ``wss://...``; a user and password in it go out as Authorization.
    :param protocols: the subprotocols to offer, in order of preference; ``session.protocol`` is the one agreed on.
    :param headers: a dict or list of pairs to add to the request; Host may be replaced.
    :param raw: whether the session gives frames instead of messages.
    :param origin: the Origin header, which browsers send; None leaves it out.
    :param extensions: to offer, in order of preference, as ``[geventws.PermessageDeflate()]``.
    :param open_timeout: seconds to open, all steps together: name, connection, proxy, TLS and handshake. None: no
        limit.
    :param ssl_context: for ``wss://``, an ``ssl`` or gevent context; by default one that verifies with the system's
        certificate authorities.
    :param proxy: the URL of an HTTP proxy, to which a CONNECT is sent; by default the one in the environment's
        HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, but not for hosts in NO_PROXY. None: no proxy.
    :param unix_socket: the path of a Unix socket to connect to instead of the URL's host and port.
    :param max_head_size: the most bytes of the response's head.
    :param reconnect: whether to return `Connections`, to iterate over, instead of one session.
    :param min_delay: with ``reconnect``, the most seconds of the first wait; each further one may take twice as long,
        up to ``max_delay``.
    :param retries: with ``reconnect``, how many failures in a row to accept; None for any number.
    :param settings: those of `geventws.Settings`: ``ping_interval``, ``timeout``, ``max_frame_size`` and so on.

    Redirects are not followed, so that credentials don't go where they weren't meant to. Raises ``HandshakeRefused``
    with the response if that isn't a 101, ``HandshakeFailed`` for an answer that RFC 6455 doesn't allow,
    ``ProxyRefused``, ``TimeoutError``, ``OSError`` (including ``ssl.SSLError``), and ``ValueError`` or ``TypeError``
    for bad arguments.
    """
    connector = _Connector(
        url,
        raw,
        open_timeout,
        ssl_context,
        proxy,
        unix_socket,
        settings,
        protocols=protocols,
        headers=headers,
        origin=origin,
        extensions=extensions,
        max_head_size=max_head_size,
    )
    check_flag("reconnect", reconnect)
    check_seconds("min_delay", min_delay)
    check_seconds("max_delay", max_delay)
    check_number("retries", retries, least=0, optional=True)
    if reconnect:
        return Connections(connector, min_delay, max_delay, retries)
    if retries is not None or min_delay != 1.0 or max_delay != 60.0:
        raise TypeError("min_delay, max_delay and retries are for reconnect=True")
    return connector.open()


class _Connector:
    """Checked arguments of `connect`, which opens as many sessions as one likes."""

    def __init__(
        self,
        url: str,
        raw: bool,
        open_timeout: float | None,
        ssl_context: ssl.SSLContext | None,
        proxy: str | Environment | None,
        unix_socket: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        **offer: Any,
    ) -> None:
        self._url = parse_url(url)
        self._raw = raw
        check_flag("raw", raw)
        check_seconds("open_timeout", open_timeout, optional=True)
        self._open_timeout = open_timeout
        # Of the standard library's class or of gevent's, whichever a monkey-patched ``ssl`` has.
        if ssl_context is not None and not callable(getattr(ssl_context, "wrap_socket", None)):
            raise TypeError(f"ssl_context must be an ssl.SSLContext or None, not {type(ssl_context).__name__}")
        if ssl_context is not None and not self._url.secure:
            raise ValueError("ssl_context is for wss://, and the URL begins with ws://")
        context = None
        if self._url.secure:
            context = tls_context() if ssl_context is None else ssl_context
        if unix_socket is not None and not (unix_socket and isinstance(unix_socket, (str, os.PathLike))):
            raise ValueError(f"unix_socket must be the path of a socket, or None, not {shown(unix_socket)}")
        path = None if unix_socket is None else os.fspath(unix_socket)
        self._destination = Destination(self._url, path, None if path else find_proxy(proxy, self._url), context)
        self._settings = client_settings(settings, raw, offer["extensions"])
        self._offer = Offer(self._url.target, self._url.authority, authorization=self._url.authorization, **offer)

    def __str__(self) -> str:
        return str(self._url)

    def open(self) -> Any:
        """Opens a session; blocks."""
        doing = ""

        def tell(step: str) -> None:
            nonlocal doing
            doing = step

        timer = Timeout.start_new(self._open_timeout)
        try:
            sock = dial(self._destination, tell)
            tell("waiting for the server's part of the handshake")
            session_class = WebSocketClientSession if self._raw else DefaultWebSocketClientSession
            session = session_class(self._settings, ClientCall(str(self._url), sock.getpeername()), client=True)
            return open_session(session, sock, self._offer)
        except Timeout as error:
            if error is not timer:
                raise
            late = f"{self._url} was not open within {self._open_timeout:g} s, {doing}"
            raise TimeoutError(late) from None
        except OSError as error:
            # The system's own words say neither where to, nor that a proxy stands between.
            if error.strerror and not isinstance(error, ssl.SSLError):
                error.strerror = f"{error.strerror}, {doing}"
            elif error.errno is None:
                error.args = (f"{error}, {doing}",)
            raise
        finally:
            timer.close()


class Connections(Generic[S]):
    """Sessions to one URL, one after another, each opened when the one before is over.

    To iterate over::

        for session in geventws.connect(url, reconnect=True):
            try:
                for message in session: ...
            except geventws.ConnectionClosed:
                pass  # the loop goes on with the next connection

    An exception that leaves the loop's body ends the loop, also ``ConnectionClosed`` unless you catch it there. A
    session that is still open when the body ends is closed with 1000. After network errors, timeouts and temporary
    statuses (408, 425, 429, 500, 502, 503 and 504) it tries again, after waits of random length that may double each
    time. All other errors, such as 401 or an invalid certificate, leave the loop. The last session is closed at the end
    of a ``with`` block; without one, when the iterator is deleted.
    """

    def __init__(self, connector: Any, min_delay: float, max_delay: float, retries: int | None) -> None:
        if max_delay < min_delay:
            raise ValueError(f"max_delay must not be below min_delay, and {max_delay:g} is below {min_delay:g}")
        self._connector = connector
        self._min_delay = min_delay
        self._max_delay = max_delay
        self._retries = retries
        self._session: S | None = None
        self._opened_at = 0.0
        #: Failures since a connection lasted; the first connection is opened at once.
        self._failures = 0
        self._waits = False
        self._over = Event()

    def __iter__(self) -> Iterator[S]:
        return self

    def __next__(self) -> S:
        self._finish()
        failed = 0
        while not self._over.is_set():
            if self._waits and self._over.wait(self._delay()):
                break
            try:
                session: S = self._connector.open()
            except (OSError, HandshakeRefused) as error:
                failed += 1
                if not _passes(error) or (self._retries is not None and failed > self._retries):
                    raise
                self._failures += 1
                self._waits = True
                log.warning("no connection to %s: %s", self._connector, error)
                continue
            if self._over.is_set():
                session.close()
                break
            self._opened_at = monotonic()
            self._session = session
            return session
        raise StopIteration

    def close(self) -> None:
        """Ends the iteration, from any greenlet of the thread: closes the session, and opens none any more; blocks."""
        self._over.set()
        session = self._session
        if session is not None:
            session.close()

    def __enter__(self) -> Connections[S]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(kind, error, trace)

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and not session.closed:
            # Never blocks, wherever this runs, also where the interpreter ends.
            with suppress(Exception):
                session.start_close(CloseCode.NORMAL)

    def _finish(self) -> None:
        """Ends the session whose turn is over."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
            if monotonic() - self._opened_at >= _LASTS:
                self._failures = 0
            else:
                # A server that takes and drops connections is not to be asked in a tight loop.
                self._failures += 1
            self._waits = True

    def _delay(self) -> float:
        """Seconds to wait: random, so that the clients of a server that went away don't come back all at once."""
        most = min(self._max_delay, self._min_delay * 2.0 ** min(max(0, self._failures - 1), 64))
        return most * int.from_bytes(urandom(4), "big") / 2**32


def _passes(error: Exception) -> bool:
    """Whether what failed may succeed later."""
    if isinstance(error, HandshakeRefused):
        return error.status in _PASSING
    # What TLS says is said for good, but for an end within it.
    return not isinstance(error, ssl.SSLError) or isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
