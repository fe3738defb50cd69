"""``gunicorn -k geventws.Worker module:app``: gunicorn's gevent worker, with the seam to WebSockets.

HTTP stays gunicorn's: its parser, settings, hooks and logs. What is new: a request may take its connection out of the
keep-alive loop, and a worker that stops closes its WebSockets at once and waits for nobody who has nothing to say.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from errno import ECONNRESET, ENOTCONN, EPIPE
from math import inf
from ssl import OP_NO_RENEGOTIATION
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import socket as GeventSocket
from gevent.ssl import SSLSocket

try:
    import gunicorn  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    from geventws.arguments import missing_extra

    raise missing_extra(error, "gunicorn", "geventws.Worker", "gunicorn") from None
if gunicorn.version_info < (27,):
    raise ImportError(
        f"geventws.Worker needs gunicorn 27 or newer, and {gunicorn.__version__} is here: "
        "pip install --upgrade 'geventws[gunicorn]'"
    )

from gunicorn import util
from gunicorn.config import PostRequest  # type: ignore[import-untyped]
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders  # type: ignore[import-untyped]
from gunicorn.sock import ssl_context  # type: ignore[import-untyped]
from gunicorn.workers.base_async import AsyncWorker  # type: ignore[import-untyped]
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]

from geventws import socketio
from geventws.accepting import Acceptor, Waiting, WaitingRoom
from geventws.arguments import check_number, check_seconds
from geventws.errors import UsageError
from geventws.frames import CloseCode
from geventws.http_head import MAX_HEAD
from geventws.offers import Exchange, OfferReader, answer_offer, reads_offers
from geventws.peer_log import PeerLog, escape, format_address, shorten
from geventws.server import (
    CLOSE_SPREAD,
    CRUMBS,
    CRUMBS_GATHER,
    INPUT_SIZE,
    close_sessions,
    server_is_full,
    server_is_stopping,
    shake_hands,
)
from geventws.switching import start
from geventws.upgrade import flatten, names_websocket

__all__ = ["Worker"]

#: Seconds before graceful_timeout, when gunicorn kills the worker, at which the worker ends its handlers itself.
KILL_MARGIN = 2.0
#: Seconds that a worker leaves for what is on its way out when it has to go at once.
FLUSH_SECONDS = 0.1
#: Seconds in which a master that stops has closed its listeners, which it does before it signals its workers; not where
#: something else signals all of them together.
MASTER_CLOSES = 0.1
#: gunicorn's defaults of ``limit_request_field_size`` and ``limit_request_fields``. Whoever raises them has a longer
#: head in proportion, whoever sets one to 0 has none.
USUAL_FIELD_SIZE = 8190
USUAL_FIELDS = 100
#: Seconds behind ``timeout`` when a hang that no signal handler of Python's gets through is logged; gunicorn kills the
#: worker at the earliest one second behind.
HANG_MARGIN = 0.9

#: Fields that an offer may have once, beyond those of which gunicorn's parser sees to it.
_SINGLE = ("ORIGIN", "SEC-WEBSOCKET-KEY", "SEC-WEBSOCKET-VERSION")

StartResponse = Callable[..., Callable[[bytes], object]]


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, for WebSockets and plain HTTP. Every setting works as with ``-k gevent``.

    A whole request head is limited to 64 KiB, beside gunicorn's limits for its lines, and in proportion to more if you
    raise those.

    Options for which gunicorn has no setting are attributes. Set them on a class in ``gunicorn.conf.py``:
    ``class worker_class(geventws.Worker): handshake_timeout = 5``.
    """

    #: Seconds from the accept to the end of the first request's head, the TLS handshake included. None: only
    #: ``keepalive`` limits it.
    handshake_timeout: float | None = 10.0
    #: The most WebSockets of the worker at a time; further handshakes get a 503. None: nine tenths of
    #: ``worker_connections``, which leaves room for pages and health checks.
    max_websockets: int | None = None
    #: Seconds that a stopping worker gives its WebSockets for the closing handshake, and their handlers to end.
    close_timeout: float = 5.0

    wsgi: Any
    # Made in the worker's own process: gunicorn constructs workers before it forks.
    _stopping: Event | None = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._alive = True
        #: The open sessions; the application half keeps them.
        self.sessions: set[Any] = set()
        #: The greenlets that serve an offer of a WebSocket, or the WebSocket.
        self.handlers: set[Any] = set()
        #: The connections that wait for a request.
        self.waiting = WaitingRoom()
        #: Whether new WebSockets are turned away.
        self.draining = False
        self._exchanges: dict[Any, Exchange] = {}
        # The deadlines of the first requests, by the greenlets that wait for them.
        self._deadlines: dict[Any, _HeadTimeout] = {}
        #: The requests that are being answered, and whose, by the greenlets that answer them.
        self.requests: dict[Any, tuple[Any, Any]] = {}
        # The listeners, as the system knows them in every process that has them.
        self._inodes: set[int] = set()
        self._listeners: list[_Listener] = []
        self._signalled = False
        self._failed = False
        super().__init__(*arguments, **keywords)
        #: Whether a hook gets to see the responses.
        self.watches_responses = self.cfg.post_request is not PostRequest.default
        self.peer_log = PeerLog(self.log.warning)

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn's master: it tells in one line of attributes that can't be, and ends."""
        try:
            check_seconds("handshake_timeout", cls.handshake_timeout, optional=True)
            check_number("max_websockets", cls.max_websockets, "sessions", optional=True)
            check_seconds("close_timeout", cls.close_timeout)
        except ValueError as error:
            raise UsageError(f"worker_class: {error}") from None

    @property
    def alive(self) -> bool:
        """Whether the worker goes on. gunicorn clears it on signals and at ``max_requests``, which wakes `run`."""
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        self._alive = value
        if not value and self._stopping is not None:
            self._stopping.set()

    # -- The life of the process ---------------------------------------------------------------------------------------

    def init_process(self) -> None:
        """Sets the process up, and runs it to its end."""
        error_log = getattr(self.log, "error_log", None)
        if isinstance(error_log, logging.Logger):
            error_log.addFilter(_PeerFilter(self.peer_log))
        access_log = getattr(self.log, "access_log", None)
        if isinstance(access_log, logging.Logger):
            access_log.addFilter(_escaped)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            # The soft limit is low for programs that use select(), which gevent replaces.
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        super().init_process()

    def load_wsgi(self) -> None:
        """Loads the application, and stands between it and gunicorn."""
        super().load_wsgi()
        socketio.install_if_used()
        #: The hook, which the configuration takes long to look up; post_fork may have set it.
        self.pre_request_hook = self.cfg.pre_request
        # What handlers raise belongs into the error log, where the application has not said otherwise.
        logger = logging.getLogger("geventws")
        if not logger.hasHandlers():
            for handler in self._log_handlers():
                logger.addHandler(handler)
        self._application = flatten(self.wsgi)
        self.wsgi = self._call
        # What is there now stays. A full collection, in which everybody waits, need not look at it again.
        gc.collect()
        gc.freeze()

    def run(self) -> None:
        """Serves until the worker is told to stop, then ends what is open."""
        self._stopping = Event()
        try:
            listeners = self._listeners = self._listen()
            while self.alive:
                self.notify()
                self._stopping.wait(1.0)
            if self.aborted or self._failed:
                sys.exit(1)
            self._drain(listeners)
        except SystemExit:
            # The worker has to go at once: it was told to quit or aborted, or its master is gone.
            close_sessions(self.sessions, CloseCode.GOING_AWAY)
            gevent.sleep(FLUSH_SECONDS)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()

    def notify(self) -> None:
        """Tells the master that the worker lives, and that the loop does not hang."""
        super().notify()
        if self.cfg.timeout:
            # A thread of its own, for a hang within C code; other ones are logged by `handle_abort`.
            faulthandler.dump_traceback_later(self.cfg.timeout + HANG_MARGIN, file=self._log_file())

    def handle_usr1(self, sig: int, frame: Any) -> None:
        """SIGUSR1: opens the log's files anew."""
        # Armed again by the next `notify`: its file may be another one then.
        faulthandler.cancel_dump_traceback_later()
        super().handle_usr1(sig, frame)
        # Behind gunicorn's own greenlet, which does it.
        for listener in self._listeners:
            if listener.offers is not None:
                gevent.spawn(listener.offers.forget)

    def _log_handlers(self) -> list[logging.Handler]:
        # A `logger_class` may be of any kind.
        error_log = getattr(self.log, "error_log", None)
        return error_log.handlers if isinstance(error_log, logging.Logger) else []

    def _log_file(self) -> Any:
        for handler in self._log_handlers():
            stream: Any = getattr(handler, "stream", None)
            with suppress(AttributeError, OSError, ValueError):
                stream.fileno()
                return stream
        return sys.__stderr__

    def listener_failed(self, error: BaseException) -> None:
        """Ends the worker, for a listener can't be opened again here. Called in the hub."""
        self._failed = True
        gevent.spawn(self.log.critical, "Worker (pid:%s) has lost a listener: %s", self.pid, error)
        self.alive = False

    def _listen(self) -> list[_Listener]:
        options = {}
        if self.cfg.is_ssl:
            options["ssl_context"] = context = ssl_context(self.cfg)
            context.sslsocket_class = _TLSClient
            context.options |= OP_NO_RENEGOTIATION
        listeners = []
        for sock in self.sockets:
            sock.setblocking(1)
            self._inodes.add(os.fstat(sock.fileno()).st_ino)
            listener = _Listener(self, sock, spawn=Pool(self.worker_connections, _Connection), **options)
            if self.cfg.workers > 1:
                listener.max_accept = 1
            listener.start()
            listeners.append(listener)
        return listeners

    def _drain(self, listeners: list[_Listener]) -> None:
        """Stops accepting, ends all connections, and returns as soon as they are gone.

        WebSockets get a Close frame, and their handlers ``close_timeout`` to end; plain requests get graceful_timeout,
        at which gunicorn kills the worker. So it ends all handlers a little before: their ``finally`` must run.
        """
        began = monotonic()
        grace = self.cfg.graceful_timeout
        kill_all_at = began + grace - min(KILL_MARGIN, grace / 3)
        kill_sessions_at = min(began + self.close_timeout, kill_all_at)
        self.draining = True
        for listener in listeners:
            if self.cfg.reuse_port:
                # Its backlog is its own, and would be reset.
                listener.accept_rest()
            listener.close()
        code = CloseCode.SERVICE_RESTART if self._is_replaced() else CloseCode.GOING_AWAY
        told: set[Any] = set()
        for request, _ in self.requests.values():
            # Where the response has not begun, it says so.
            request.force_close()
        pools = [listener.pool for listener in listeners]
        while open_pools := [pool for pool in pools if pool]:
            self.notify()
            # Again each time: a TLS handshake may have ended since, and an offer have become a session.
            fresh = self.waiting.end_input()
            untold = self.sessions - told
            close_sessions(untold, code, min(CLOSE_SPREAD, self.close_timeout / 2, grace / 4))
            told |= untold
            now = monotonic()
            if now >= kill_all_at:
                self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
                self._kill(open_pools, began + grace - now)
                return
            if now >= kill_sessions_at:
                for session in list(self.sessions):
                    session.terminate()
                gevent.killall(list(self.handlers), block=False)
                kill_sessions_at = kill_all_at
            open_pools[0].join(min(0.1 if fresh else 1.0, max(0.0, kill_sessions_at - now)))

    def _is_replaced(self) -> bool:
        """Whether other workers go on: then the master still has the listeners. It closes them first when it stops."""
        if not self._signalled:
            return True
        if not self._master_listens():
            return False
        gevent.sleep(MASTER_CLOSES)
        return self._master_listens()

    def _master_listens(self) -> bool:
        # Where the master's descriptors can't be seen, because the worker runs as another user, nobody can tell.
        try:
            opened = {os.stat(entry.path).st_ino for entry in os.scandir(f"/proc/{self.ppid}/fd")}
        except OSError:
            return False
        return not opened.isdisjoint(self._inodes)

    def _kill(self, pools: list[Pool], seconds: float) -> None:
        for session in list(self.sessions):
            session.terminate()
        for pool in pools:
            pool.kill(block=False)
        ends = monotonic() + max(0.0, seconds - 0.25)
        for pool in pools:
            pool.join(max(0.0, ends - monotonic()))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: stops gracefully."""
        self._signalled = True
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT and SIGINT: exits."""
        self._signalled = True
        super().handle_quit(sig, frame)

    def handle_abort(self, sig: int, frame: Any) -> None:
        """SIGABRT: the master has not heard of the worker for too long. What keeps it busy is what this interrupts."""
        self.aborted = True
        faulthandler.cancel_dump_traceback_later()
        what = "no request"
        if gevent.getcurrent() in self.requests:
            request, address = self.requests[gevent.getcurrent()]
            what = shorten(f"{request.method} {request.uri} of {format_address(address)}")
        stack = "".join(traceback.format_stack(frame))
        self.log.critical("Worker (pid:%s) is aborted while it runs %s:\n%s", self.pid, what, stack)
        super().handle_abort(sig, frame)

    # -- A connection --------------------------------------------------------------------------------------------------

    def serve(self, server: Any, connection: list[Any]) -> None:
        """Serves a new connection, a socket and an address, to its end, in its greenlet.

        The list is empty afterwards, and already when a session has the connection: nothing else of it stays.
        """
        began = monotonic()
        client, addr = connection
        waiting = self.waiting.enter(client.fileno(), addr)
        greenlet = gevent.getcurrent()
        limit = self.handshake_timeout
        try:
            if server.ssl_enabled:
                connection[0] = client = shake_hands(server, client, waiting, limit)
                if client is None:
                    return
            client.waiting = waiting
            if server.offers is not None and limit is not None:
                del client
                if self._serve_offer(server.offers, connection):
                    return
                client = connection[0]
            client.head_limit = self._head_limit()
            if limit is not None:
                self._deadlines[greenlet] = _HeadTimeout.start_new(max(0.0, began + limit - monotonic()))
            self.handle(server, client, addr)
        finally:
            # The descriptor may be another one's already, so this must not give way to anybody.
            self.waiting.leave(waiting)
            if greenlet in self._deadlines:
                self._deadlines.pop(greenlet).close()
            client = connection[0] if connection else None
            connection.clear()
            if client is not None:
                # Where it waited for a further request.
                self.waiting.leave(client.waiting)
                util.close(client)

    def _serve_offer(self, offers: OfferReader, connection: list[Any]) -> bool:
        """Serves a connection whose first packet is a plain offer; any other is left to gunicorn, and gives False."""
        client, addr = connection
        # Past settimeout(), which looks at its argument for longer than a receipt takes.
        client.timeout = self.handshake_timeout
        try:
            piece = client.recv(INPUT_SIZE)
        except OSError:
            # It is gone; or it said nothing, as browsers do that connect in advance, and expects no answer.
            return True
        client.timeout = None
        offer = offers.read(piece, addr)
        if offer is None:
            client.put_back(piece)
            return False
        self._head_is_here(client)
        del client, piece
        try:
            answer_offer(self, connection, offer)
        except OSError as error:
            if error.errno not in (EPIPE, ECONNRESET, ENOTCONN):
                self.log.exception("Socket error processing request.")
        return True

    def _head_limit(self) -> float:
        cfg = self.cfg
        # 0 lifts a limit.
        if not (cfg.limit_request_line and cfg.limit_request_fields and cfg.limit_request_field_size):
            return inf
        larger: float = max(1.0, cfg.limit_request_field_size / USUAL_FIELD_SIZE)
        more: float = max(1.0, cfg.limit_request_fields / USUAL_FIELDS)
        return MAX_HEAD * larger * more

    def timeout_ctx(self) -> AbstractContextManager[Any]:
        """What bounds the wait for a request: ``keepalive`` for all but the first, which has its own deadline."""
        if gevent.getcurrent() in self._deadlines:
            return nullcontext()
        return super().timeout_ctx()  # type: ignore[no-any-return]

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serves one request; raises ``StopIteration`` where no other may follow on its connection."""
        self._head_is_here(sock)
        exchange = self._offer(req, sock, addr)
        greenlet = gevent.getcurrent()
        self.requests[greenlet] = (req, addr)
        try:
            # Past GeventWorker's, which swallows the SystemExit that ends the process.
            AsyncWorker.handle_request(self, listener_name, req, sock, addr)
        except StopIteration as stop:
            # gunicorn makes one of a SystemExit when the response has begun.
            if isinstance(stop.__context__, SystemExit):
                raise stop.__context__ from None
            raise
        except gevent.GreenletExit:
            raise StopIteration from None
        finally:
            del self.requests[greenlet]
            if exchange is not None:
                exchange.upgrade.expire()
                del self._exchanges[sock]
        # What follows an offer is a WebSocket, or was meant to be one: never another request.
        if exchange is not None or self.draining or not self._pass_over_body(req):
            raise StopIteration
        sock.waiting = self.waiting.enter(sock.fileno(), addr)
        sock.receipts = sock.received = 0

    def _pass_over_body(self, req: Any) -> bool:
        """Reads what the application left of a request's body; tells whether another request may follow.

        gunicorn would do so while it waits for that one, and the rest be taken for a part of its head.
        """
        if getattr(req.body, "failed", False):
            return False
        with self.timeout_ctx():
            while req.body.read(INPUT_SIZE):
                pass
            return True
        return False

    def handle_http2(self, listener: Any, client: Any, *arguments: Any, **keywords: Any) -> None:
        """Serves an HTTP/2 connection, on which there are no upgrades (RFC 9113 8.6)."""
        client.receipts = client.received = -sys.maxsize
        super().handle_http2(listener, client, *arguments, **keywords)

    def handle_http2_request(self, listener_name: Any, req: Any, sock: Any, addr: Any, h2_conn: Any) -> None:
        """Serves one request of an HTTP/2 connection, which waits for the next one then."""
        self._head_is_here(sock)
        try:
            super().handle_http2_request(listener_name, req, sock, addr, h2_conn)
        finally:
            sock.waiting = self.waiting.enter(sock.fileno(), addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Logs what ended a connection, and answers it where it is the client's fault."""
        if isinstance(exc, (SystemExit, KeyboardInterrupt)):
            if not self.aborted:
                self.log.error("Worker (pid:%s) is ended by the application", self.pid, exc_info=exc)
            # Not with the application's own status: gunicorn takes 3 and 4 for a failed boot, and gives up.
            raise SystemExit(1) from exc
        if isinstance(exc, _HeadTimeout):
            # A client that said nothing, as browsers do in advance, expects nothing.
            if client.receipts > 1:
                self.peer_log.log("408 the head of the request took too long", addr)
                with suppress(OSError):
                    util.write_error(client, 408, "Request Timeout", "")
        elif not isinstance(exc, gevent.GreenletExit):
            super().handle_error(req, client, addr, exc)

    def _head_is_here(self, sock: Any) -> None:
        # A body may come as it likes.
        sock.receipts = sock.received = -sys.maxsize
        self.waiting.leave(sock.waiting)
        deadline = self._deadlines.pop(gevent.getcurrent(), None)
        if deadline is not None:
            deadline.close()

    def _offer(self, req: Any, sock: Any, addr: Any) -> Exchange | None:
        """The exchange of a request that offers a WebSocket."""
        offers = [value for name, value in req.headers if name == "UPGRADE"]
        if not offers or not names_websocket(",".join(offers)) or self.cfg.protocol != "http":
            return None
        names = [name for name, _ in req.headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise InvalidHeader(name, req=req)
        # The response says so, and the keep-alive loop ends, whatever the application answers.
        req.force_close()
        exchange = self._exchanges[sock] = Exchange(self, req, sock, addr)
        return exchange

    def _call(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
        """The application that gunicorn calls."""
        exchange = self._exchanges.get(environ["gunicorn.socket"])
        if exchange is None:
            return self._application(environ, start_response)
        return exchange.run(self.application_for_offer(), environ, start_response)

    def application_for_offer(self) -> Any:
        """The application that an offer gets: a stand-in where no more WebSockets may be opened."""
        if self.draining:
            return server_is_stopping
        if len(self.handlers) >= self._most_websockets():
            return server_is_full
        return self._application

    def count_request(self) -> None:
        """Counts a request that gunicorn does not see, for ``max_requests``."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def _most_websockets(self) -> int:
        most: int = self.worker_connections
        return max(1, most - max(1, most // 10)) if self.max_websockets is None else self.max_websockets


class _HeadTimeout(gevent.Timeout):
    """The head of the first request took too long."""


class _Gathering:
    """A client's socket. A head in crumbs is left to gather, for gunicorn's parser looks at all of it each time."""

    receipts = received = 0
    head_limit: float = MAX_HEAD
    waiting: Waiting | None = None
    _put_back = b""

    def put_back(self, piece: bytes) -> None:
        """Has ``piece`` be what is received next."""
        self._put_back = piece

    def recv(self, *arguments: Any) -> bytes:
        """Receives, as a socket does."""
        self.receipts += 1
        if self.receipts > CRUMBS:
            gevent.sleep(CRUMBS_GATHER)
        piece: bytes
        if self._put_back:
            size = arguments[0]
            piece, self._put_back = self._put_back[:size], self._put_back[size:]
            return piece
        piece = super().recv(*arguments)  # type: ignore[misc]
        self.received += len(piece)
        # gunicorn would take 100 fields of 8 KiB, and looks at all that it has with each piece.
        if self.received > self.head_limit + INPUT_SIZE:
            raise LimitRequestHeaders("the head of the request is too long")
        return piece


class _Client(_Gathering, GeventSocket):
    """A client's plain socket."""


class _TLSClient(_Gathering, SSLSocket):
    """A client's TLS socket."""


class _Connection(gevent.Greenlet):  # type: ignore[type-arg]
    """The greenlet of a connection, which does not keep whence it was started: that is the same for all."""

    __slots__ = ()
    spawning_stack_limit = 0

    def start(self) -> None:
        """Has the hub start it; further down on the stack than gevent would, for less to be copied at each switch."""
        gevent.get_hub().loop.run_callback(start, self)


class _Listener(Acceptor, StreamServer):
    """A listening socket of a worker."""

    client_class = _Client
    _spawn: Any

    def __init__(self, worker: Worker, listener: Any, **options: Any) -> None:
        self._worker = worker
        self._name = listener.getsockname()
        #: What reads plain offers; None where gunicorn reads all requests.
        self.offers = OfferReader(worker.cfg, self._name) if reads_offers(worker.cfg, self._name) else None
        self.waiting = worker.waiting
        self.peer_log = worker.peer_log
        super().__init__(listener, **options)

    def is_fatal_error(self, error: BaseException) -> bool:
        """Tells gevent whether a listener that gives this error is lost."""
        fatal: bool = super().is_fatal_error(error)
        if fatal:
            self._worker.listener_failed(error)
        return fatal

    def do_handle(self, sock: Any, address: Any) -> None:
        """Starts the greenlet of a new connection; gevent's own way goes through more frames."""
        try:
            self._spawn(self._worker.serve, self, [sock, address])
        except BaseException:
            sock.close()
            raise

    def handle(self, sock: Any, address: Any) -> None:
        """Serves a connection."""
        self._worker.serve(self, [sock, address])

    def getsockname(self) -> Any:
        """The address, for gunicorn; also of a listener that was closed between an accept and the greenlet's turn."""
        return self._name


class _PeerFilter(logging.Filter):
    """Keeps gunicorn's lines about invalid requests short, escaped and few."""

    def __init__(self, peer_log: PeerLog) -> None:
        super().__init__()
        self._peer_log = peer_log

    def filter(self, record: logging.LogRecord) -> bool:
        """Tells whether a line is logged."""
        if isinstance(record.msg, str) and record.msg.startswith("Invalid request from ip="):
            if not self._peer_log.admit("invalid requests"):
                return False
            record.msg = shorten(record.msg)
        return True


def _escaped(record: logging.LogRecord) -> bool:
    """Escapes what a line of the access log has of the peer: gunicorn passes on all but ASCII's control characters."""
    atoms = record.args
    if isinstance(atoms, dict) and not record.getMessage().isprintable():
        for name, value in atoms.items():
            if isinstance(value, str):
                atoms[name] = escape(value)
    return True
