"""The standalone server: gevent's pywsgi with strict request heads, a deadline for them, and the seam to WebSockets.

A connection is served by one greenlet, in few frames: what stands on its stack while a WebSocket idles there is most of
what an idle WebSocket costs. For the same reason the handler drops what it has of HTTP as soon as the application takes
the connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from errno import ECONNRESET, ENOENT
from functools import partial
from math import inf
from socket import IPPROTO_TCP, TCP_NODELAY
from sys import intern
from time import monotonic
from typing import Any, Literal

import gevent
from gevent import pywsgi
from gevent.baseserver import parse_address  # type: ignore[attr-defined]
from gevent.event import Event
from gevent.monkey import get_original
from gevent.ssl import SSLContext, SSLSocket
from greenlet import greenlet

from geventws.accepting import Acceptor, Waiting, WaitingRoom
from geventws.arguments import check_number, check_seconds, shown
from geventws.errors import UsageError
from geventws.frames import CloseCode
from geventws.http_head import HeadBuffer, HeadError, RequestHead, parse_head
from geventws.lent_socket import LINGER_SECONDS, LentInput, LentSocket, linger
from geventws.peer_log import PeerLog
from geventws.settings import unknown_option
from geventws.switching import start
from geventws.upgrade import KEY, NO_INPUT, Outcome, Upgrade, flatten, lighten, names_websocket, on_refusal, unwrap

__all__ = ["WSGIServer"]

#: Bytes that one system call may receive.
INPUT_SIZE = 16 * 1024
#: A head that is not whole after this many receipts comes in crumbs, which are then left to gather for these seconds.
CRUMBS = 64
CRUMBS_GATHER = 0.01

#: Sessions that are closed in a second, where they are closed one after another, and before others have their turn.
CLOSE_RATE = 1000
CLOSED_AT_A_TIME = 20
#: Seconds over which a stopping server closes its sessions.
CLOSE_SPREAD = 2.0

#: Seconds that a stopping server leaves the handlers of sessions that it terminated.
LAST_MOMENT = 0.1

# Of threads also where gevent has put greenlets in their place.
_thread_id = get_original("_thread", "get_ident")
_allocate_lock = get_original("_thread", "allocate_lock")

_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


#: What pywsgi takes, and what gevent takes for TLS.
_TLS = (
    "keyfile", "certfile", "ssl_version", "cert_reqs", "ca_certs", "ciphers", "server_side", "do_handshake_on_connect",
    "suppress_ragged_eofs",
)  # fmt: skip
_KEYWORDS = ("backlog", "spawn", "log", "error_log", "handler_class", "environ", "ssl_context", *_TLS)


def spawn(function: Callable[..., object], *arguments: Any) -> None:
    """Runs ``function`` in a greenlet: a plain one, which is smaller and switched to faster, as nobody links to it."""
    hub = gevent.get_hub()
    hub.loop.run_callback(start, greenlet(function, hub), *arguments)


def shake_hands(server: Any, sock: Any, waiting: Waiting, timeout: float | None) -> Any:
    """The TLS socket for a plain one; None after a handshake that failed or took too long, which is logged.

    Meanwhile the connection waits in the server's room as ``waiting``.
    """
    try:
        # An OSError, as gevent's socket closes itself after one.
        with gevent.Timeout(timeout, TimeoutError("it took too long")):
            return server.wrap_socket(sock, **server.ssl_args)
    except BaseException as error:
        waited = server.waiting.leave(waiting)
        if not isinstance(error, OSError):
            raise
        reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
        if waited:
            server.peer_log.log("the TLS handshake failed", waiting.address, reason or type(error).__name__)
    sock.close()
    return None


def close_sessions(sessions: Iterable[Any], code: int, spread: float = 0.0) -> None:
    """Begins the closing handshake on all ``sessions``, some a time; blocks.

    They get it over ``spread`` seconds at most, and faster where they are few, so that their clients don't come back
    all at once.
    """
    batch = list(sessions)
    pause = min(1 / CLOSE_RATE, spread / max(1, len(batch))) * CLOSED_AT_A_TIME
    for number, session in enumerate(batch, 1):
        session.start_close(code)
        if number % CLOSED_AT_A_TIME == 0:
            gevent.sleep(pause)


class _Input:
    """What a connection brings: the heads of its requests, and their bodies as the file that pywsgi reads."""

    __slots__ = ("_buffer", "_socket", "closed")

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._buffer = HeadBuffer()
        self.closed = False

    def read_head(self, deadline: float | None) -> bytes | None:
        """The next head; None where the peer has ended, or said nothing until the monotonic time ``deadline``.

        Raises ``HeadError`` for one that is not allowed or not whole by then, and ``OSError``.
        """
        buffer = self._buffer
        head = buffer.take_head() if buffer.data else None
        receipts = 0
        while head is None:
            receipts += 1
            if receipts > CRUMBS:
                gevent.sleep(CRUMBS_GATHER)
            if deadline is not None:
                # Zero would mean not to wait; what has arrived in time is read even when the deadline is over. Past
                # settimeout(), which looks at its argument for longer than all else here takes.
                self._socket.timeout = max(0.001, deadline - monotonic())
            try:
                piece = self._socket.recv(INPUT_SIZE)
            except TimeoutError:
                piece = None
            if piece is None or (deadline is not None and receipts > 1 and monotonic() > deadline):
                if not buffer.data and not piece:
                    return None
                raise HeadError(408, "the head of the request took too long")
            if not piece:
                if buffer.data:
                    raise ConnectionResetError("the peer ended within the head of a request")
                return None
            buffer.feed(piece)
            head = buffer.take_head()
        if deadline is not None:
            self._socket.timeout = None
        return head

    def read(self, size: int) -> bytes:
        """``size`` bytes of the body; blocks. Raises ``ConnectionResetError`` where the peer ends before."""
        data = self._buffer.data
        while len(data) < size:
            self._receive()
        return self._take(size)

    def readline(self, size: int) -> bytes:
        """A line of the body, at most ``size`` bytes; blocks and raises as `read`."""
        data = self._buffer.data
        scanned = 0
        while (end := data.find(b"\n", scanned, size)) < 0 and len(data) < size:
            scanned = len(data)
            self._receive()
        return self._take(end + 1 if end >= 0 else size)

    def take_all(self) -> bytearray:
        """All that was received and not read yet."""
        return self._buffer.data

    def _receive(self) -> None:
        piece = self._socket.recv(4 * INPUT_SIZE)
        if not piece:
            # With this number pywsgi takes it for the peer's fault, where the application lets it pass.
            raise ConnectionResetError(ECONNRESET, "the peer ended within the body of a request")
        self._buffer.data += piece

    def _take(self, size: int) -> bytes:
        data = self._buffer.data
        taken = bytes(data[:size])
        del data[:size]
        return taken


class WSGIHandler(pywsgi.WSGIHandler):
    """One connection of a `WSGIServer`."""

    server: WSGIServer
    socket: Any
    rfile: Any
    environ: dict[str, Any] | None
    wsgi_input: Any

    # Beyond thirty attributes a dict is made for each connection: here ours are, in its own pywsgi's.
    __slots__ = (
        "application",
        "client_address",
        "close_connection",
        "command",
        "deadline",
        "environ",
        "request",
        "request_version",
        "requestline",
        "rfile",
        "server",
        "socket",
        "upgrade",
        "waiting",
        "wsgi_input",
    )

    def __init__(self, sock: Any, address: Any, server: WSGIServer, rfile: Any = None) -> None:
        self.socket = sock
        self.client_address = address
        self.server = server
        self.rfile = rfile or _Input(sock)
        #: By when, on the monotonic clock, the head of the next request must be whole.
        self.deadline: float | None = None
        #: The place of a connection that waits for its first request.
        self.waiting: Waiting | None = None
        self.request: RequestHead | None = None
        #: The offer of a WebSocket by the request that is being answered.
        self.upgrade: Upgrade | None = None
        self.environ = None
        self.application: Any = None
        self.close_connection = False
        self.command = self.request_version = self.requestline = ""
        self.wsgi_input = NO_INPUT

    def handle(self) -> None:
        """Serves the connection to its end."""
        try:
            while self.handle_one_request():
                pass
        finally:
            sock, self.socket = self.socket, None
            if sock is not None:
                self._close(sock)

    def _close(self, sock: Any) -> None:
        if self.upgrade is not None:
            linger(sock)
        else:
            # Without a wait: what came behind the last request must not become a reset.
            with suppress(OSError):
                sock._sock.recv(INPUT_SIZE)
        sock.close()

    def handle_one_request(self) -> Literal[True] | None:
        """Serves one request; True where another one may follow."""
        if not self._read_request():
            return None
        self.handle_one_response()
        # The next request may be long in coming.
        self.environ = None
        if self.upgrade is not None:
            self.upgrade.expire()
            return None
        if self.close_connection or not self.server.started:
            return None
        if self.server.handshake_timeout is not None:
            self.deadline = monotonic() + self.server.handshake_timeout
        return True

    def _read_request(self) -> bool:
        """Waits for a request and prepares its call; what it used is gone with its frame when the call begins."""
        server = self.server
        waiting = self.waiting or server.waiting.enter(self.socket.fileno(), self.client_address)
        self.waiting = None
        try:
            head = self.rfile.read_head(self.deadline)
            if head is None:
                return False
            self.request = request = parse_head(head)
        except HeadError as error:
            self._refuse(error)
            return False
        except OSError:
            # The peer is gone.
            return False
        finally:
            server.waiting.leave(waiting)
        self.requestline = request.line
        self.command = request.method
        self.request_version = request.version
        self.close_connection = request.closes or not server.started
        self.environ = self.get_environ()
        self.request = None
        if self.upgrade is not None and not server.started:
            self.application = server_is_stopping
        elif self.upgrade is not None and len(server.sessions) >= server.max_websockets:
            self.application = server_is_full
        else:
            self.application = flatten(server.application)
        return True

    def get_environ(self) -> dict[str, Any]:
        """The WSGI environ of the request, with an `Upgrade` where it offers one."""
        request = self.request
        assert request is not None
        environ: dict[str, Any] = self.server.get_environ()
        environ.update(request.fields)
        environ["REQUEST_METHOD"] = request.method
        environ["SCRIPT_NAME"] = ""
        environ["PATH_INFO"] = request.path
        environ["QUERY_STRING"] = request.query
        environ["SERVER_PROTOCOL"] = request.version
        address = self.client_address
        if isinstance(address, tuple):
            environ["REMOTE_ADDR"] = str(address[0])
            environ["REMOTE_PORT"] = str(address[1])
        if request.chunked or request.content_length:
            expects = request.version == "HTTP/1.1" and request.fields.get("HTTP_EXPECT", "").lower() == "100-continue"
            self.wsgi_input = pywsgi.Input(
                self.rfile, request.content_length, self.socket if expects else None, request.chunked
            )
        else:
            self.wsgi_input = NO_INPUT
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        if names_websocket(request.fields.get("HTTP_UPGRADE")):
            self.upgrade = environ[KEY] = Upgrade(self._let_go, address, self.server.sessions)
            if self.wsgi_input is NO_INPUT:
                environ["wsgi.input"] = LentInput(LentSocket(self.upgrade, self.socket))
            # What follows on the connection is a WebSocket, or was meant to be one: never another request.
            self.close_connection = True
        return environ

    def _let_go(self) -> tuple[Any, bytearray]:
        """Ends HTTP on this connection, for `Upgrade.take`."""
        if self.headers_sent:
            raise UsageError("the response has begun: take the connection before anything of it is written")
        if self.wsgi_input is not NO_INPUT:
            raise UsageError("a request with a body can't be upgraded")
        sock, read_ahead = self.socket, self.rfile.take_all()
        self.socket = self.rfile = None
        self.close_connection = True
        self.headers_sent = True
        self.response_headers = None
        self._orig_status = self.status = "101 Switching Protocols"
        self.requestline = intern(self.requestline or "")
        assert self.environ is not None
        lighten(self.environ)
        return unwrap(sock), read_ahead

    # -- What pywsgi's response code calls -----------------------------------------------------------------------------

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        """As PEP 3333 has it; does nothing once the connection is taken."""
        if self._is_taken():
            self.upgrade.told(status)  # type: ignore[union-attr]
            return _ignore
        if self.close_connection and not _has_close(headers):
            headers = [*headers, ("Connection", "close")]
        return super().start_response(status, headers, exc_info)

    def process_result(self) -> None:
        """Writes what the application returned. A generator may take the connection within."""
        if not self._is_taken():
            super().process_result()

    def _send_error_response_if_possible(self, error_code: int) -> None:
        if self._is_taken():
            self.upgrade.told(str(error_code))  # type: ignore[union-attr]
        else:
            super()._send_error_response_if_possible(error_code)  # type: ignore[misc]

    def _sendall(self, data: bytes) -> None:
        # Whatever pywsgi would write on a connection that is taken is swallowed.
        if not self._is_taken():
            super()._sendall(data)  # type: ignore[misc]

    def _is_taken(self) -> bool:
        return self.upgrade is not None and self.upgrade.taken

    def _handle_client_error(self, ex: BaseException) -> None:
        self.server.peer_log.log("400 the body of the request is malformed", self.client_address, str(ex))

    def log_request(self) -> None:
        """Writes the line of the access log; that of a WebSocket at its end, with status 101."""
        if self.upgrade is not None:
            # Here, where the app has returned, and not in a frame of its own that would stand below every session.
            self.upgrade.finish()
        outcome = None if self.upgrade is None else self.upgrade.outcome
        if outcome is not None:
            self.response_length = outcome.sent
            tell_failure(self.server.peer_log, self.client_address, outcome)
        if self.server.logs_requests:
            super().log_request()

    def format_request(self) -> str:
        """A line of the access log; behind that of a WebSocket stands its close code."""
        line: str = super().format_request()
        if self.upgrade is None or self.upgrade.outcome is None:
            return line
        return f"{line} {self.upgrade.outcome.code}"

    def _refuse(self, error: HeadError) -> None:
        """Answers a request whose head can't be read, and ends the connection."""
        self.server.peer_log.log(str(error), self.client_address, error.detail)
        body = error.message + "\n"
        response = (
            f"HTTP/1.1 {error.status} {_REASONS[error.status]}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        try:
            self.socket.settimeout(LINGER_SECONDS)
            self.socket.sendall(response.encode("ascii"))
        except OSError:
            return
        linger(self.socket)


def _ignore(data: bytes) -> None:
    """Writes nothing."""


def _has_close(headers: Any) -> bool:
    return any(name.lower() == "connection" and "close" in value.lower() for name, value in headers)


def tell_failure(peer_log: PeerLog, address: Any, outcome: Outcome) -> None:
    """Logs what the peer of a WebSocket did wrong, where it did."""
    if outcome.failed:
        peer_log.log(f"the WebSocket failed with {outcome.code}", address, outcome.message)


def server_is_stopping(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The application that offers of WebSockets get while the server stops."""
    return _unavailable(environ, start_response, b"The server is stopping: connect again.\n")


def server_is_full(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The application that offers of WebSockets get while there are as many as there may be."""
    body = b"The server has as many WebSockets as it may have: try again later.\n"
    return _unavailable(environ, start_response, body)


def _unavailable(environ: dict[str, Any], start_response: Callable[..., Any], body: bytes) -> list[bytes]:
    for tell in on_refusal:
        tell(environ, 503)
    start_response("503 Service Unavailable", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class WSGIServer(Acceptor, pywsgi.WSGIServer):
    """Serves a WSGI application, WebSockets and plain HTTP, on one listener of this process.

    Takes all arguments of ``gevent.pywsgi.WSGIServer``: the listener as an address or a listening socket, ``backlog``,
    ``spawn``, ``log``, ``error_log``, ``environ``, and for TLS ``keyfile`` and ``certfile`` or ``ssl_context``.
    ``handshake_timeout`` limits the seconds from the accept to the end of the first request's head, the TLS handshake
    included, and from each response to the end of the next head. ``max_websockets`` limits the sessions at a time:
    further handshakes get a 503. None lifts either limit.

    The process needn't be monkey-patched. The server can run in its own thread, which must create and start it.
    """

    handler_class: Any = WSGIHandler
    _spawn: Any = staticmethod(spawn)
    wrap_socket: Any
    ssl_args: Any
    socket: Any

    def __init__(
        self,
        listener: Any,
        application: Any = None,
        *arguments: Any,
        handshake_timeout: float | None = 10.0,
        max_websockets: int | None = None,
        **keywords: Any,
    ) -> None:
        check_seconds("handshake_timeout", handshake_timeout, optional=True)
        check_number("max_websockets", max_websockets, "sessions", optional=True)
        if application is not None and not callable(application):
            raise TypeError(f"application must be a WSGI app, not {type(application).__name__}")
        _check_listener(listener)
        _check_keywords(keywords)
        self.handshake_timeout = handshake_timeout
        self.max_websockets: float = inf if max_websockets is None else max_websockets
        #: The open sessions; the application half keeps them.
        self.sessions: set[Any] = set()
        #: The connections that wait for a request.
        self.waiting = WaitingRoom()
        self._connections = 0
        self._all_gone = Event()
        self._stop_by: float | None = None
        self._stopped = False
        self._thread = _thread_id()
        if "certfile" in keywords and "ssl_context" not in keywords:
            keywords["ssl_context"] = _make_context(keywords)
        context = keywords.get("ssl_context")
        self.peer_log = PeerLog(lambda line: self.error_log.write(line + "\n"))
        super().__init__(listener, application, *arguments, **keywords)
        self.logs_requests = not isinstance(self.log, pywsgi._NoopLog)  # type: ignore[attr-defined]
        if context is not None and not isinstance(context, SSLContext):
            # In a process that is not patched the standard library's context makes sockets that block the hub.
            self.wrap_socket = partial(_wrap_socket, context)

    def init_socket(self) -> None:
        """Makes the listener where an address was given."""
        super().init_socket()
        # Connections inherit it. With Nagle's algorithm a small message may wait 40 ms for an acknowledgement.
        with suppress(OSError):
            self.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)

    def start(self) -> None:
        """Starts to accept; returns at once."""
        self._stop_by = None
        self._stopped = False
        super().start()

    def do_handle(self, sock: Any, address: Any) -> None:
        """Starts the greenlet of a new connection; gevent's own way goes through more frames."""
        # A greenlet holds its arguments to its end, and the list lets go of the socket.
        connection = [sock, address]
        try:
            if self._spawn is None:
                self._serve(connection)
            else:
                self._spawn(self._serve, connection)
        except BaseException:
            sock.close()
            raise

    def _serve(self, connection: list[Any]) -> None:
        address, sock = connection.pop(), connection.pop()
        deadline = None if self.handshake_timeout is None else monotonic() + self.handshake_timeout
        self._connections += 1
        waiting = self.waiting.enter(sock.fileno(), address)
        try:
            if self.ssl_enabled:
                sock = shake_hands(self, sock, waiting, self.handshake_timeout)
                if sock is None:
                    return
            handler = self.handler_class(sock, address, self)
            handler.deadline = deadline
            handler.waiting = waiting
            del waiting
            del sock, address
            handler.handle()
        finally:
            self._connections -= 1
            if self._connections == 0:
                self._all_gone.set()

    def update_environ(self) -> None:
        """Fills in the listener's address, without pywsgi's look-up of its name, which may take seconds."""
        self.environ.setdefault("SERVER_NAME", self.address[0] if isinstance(self.address, tuple) else "")
        super().update_environ()

    def stop(self, timeout: float | None = None) -> None:
        """Stops accepting, closes all sessions with 1001, and blocks until all connections are gone.

        Sessions that are left after ``timeout`` seconds, by default ``stop_timeout``, are terminated; with a pool as
        ``spawn`` its greenlets are killed. May be called from another thread, which it blocks, loop and all.
        """
        if _thread_id() == self._thread:
            self._stop(timeout)
            return
        if self._stopped:
            # Its loop may be gone, with its thread.
            return
        done = _allocate_lock()
        done.acquire()
        self.loop.run_callback_threadsafe(gevent.Greenlet.spawn, self._stop, timeout, done.release)
        # The loop may end before it comes to that, with a stop() of its own.
        while not done.acquire(True, 0.1) and not self._stopped:
            pass

    def _stop(self, timeout: float | None, done: Callable[[], object] | None = None) -> None:
        try:
            self.close()
            # serve_forever() ends with a stop() of its own, which must not cut short the one that made it end.
            if self._stop_by is None or timeout is not None:
                stop_by = monotonic() + (self.stop_timeout if timeout is None else timeout)
                self._stop_by = stop_by if self._stop_by is None else min(stop_by, self._stop_by)
            self.waiting.end_input()
            self._all_gone.clear()
            told: set[Any] = set()
            while self._connections and (left := self._stop_by - monotonic()) > 0:
                # Again each time: an application may have taken its connection since.
                untold = self.sessions - told
                close_sessions(untold, CloseCode.GOING_AWAY, min(CLOSE_SPREAD, left / 4))
                told |= untold
                self._all_gone.wait(max(0.0, min(self._stop_by - monotonic(), 0.5)))
            for session in list(self.sessions):
                session.terminate()
            super().stop(max(0.0, self._stop_by - monotonic()))
            # Their handlers get a moment to notice.
            if self._connections:
                self._all_gone.wait(LAST_MOMENT)
            self._stopped = True
        finally:
            if done is not None:
                done()


def _check_keywords(keywords: dict[str, Any]) -> None:
    # gevent takes all that it does not know for arguments of TLS, and would serve nothing but that.
    for name in keywords:
        if name not in _KEYWORDS:
            raise unknown_option(name, ["handshake_timeout", "max_websockets", *_KEYWORDS])
    context = keywords.get("ssl_context")
    if "ssl_context" in keywords and not callable(getattr(context, "wrap_socket", None)):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {shown(context)}")
    if "ssl_context" not in keywords and "certfile" not in keywords:
        for name in _TLS:
            if name in keywords:
                raise ValueError(f"{name} is for TLS, which needs certfile or ssl_context too")


def _check_listener(listener: Any) -> None:
    if hasattr(listener, "accept"):
        return
    try:
        address = ("", -1) if isinstance(listener, bool) else parse_address(listener)[1]
    except (TypeError, ValueError, IndexError):
        address = ("", -1)
    # A str is the path of a Unix socket.
    port = (*address, -1, -1)[1] if isinstance(address, tuple) else 0
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(
            f'listener must be an address, as in ("127.0.0.1", 8000), or a listening socket, not {shown(listener)}'
        )


def _make_context(arguments: dict[str, Any]) -> SSLContext:
    """The TLS context for pywsgi's ``keyfile``, ``certfile`` and so on, which gevent makes anew for each connection."""
    context = SSLContext(arguments.pop("ssl_version", ssl.PROTOCOL_TLS_SERVER))
    context.options |= ssl.OP_NO_RENEGOTIATION
    certfile, keyfile = arguments.pop("certfile"), arguments.pop("keyfile", None)
    try:
        context.load_cert_chain(certfile, keyfile)
    except FileNotFoundError:
        files = f"certfile {certfile!r}" + ("" if keyfile is None else f" or keyfile {keyfile!r}")
        raise FileNotFoundError(ENOENT, f"there is no file of TLS: {files}") from None
    context.verify_mode = arguments.pop("cert_reqs", ssl.CERT_NONE)
    authorities = arguments.pop("ca_certs", None)
    if authorities:
        context.load_verify_locations(authorities)
    ciphers = arguments.pop("ciphers", None)
    if ciphers:
        context.set_ciphers(ciphers)
    return context


def _wrap_socket(context: ssl.SSLContext, sock: Any, **arguments: Any) -> SSLSocket:
    return SSLSocket(sock=sock, _context=context, **arguments)
