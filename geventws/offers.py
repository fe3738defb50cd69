"""The requests that offer WebSockets to gunicorn's worker: how they are read, and answered.

Most are plain and come with the first packet. Those are read by our own parser: it is as strict as gunicorn's, whose
pace would be the pace of handshakes. What it does not take goes gunicorn's way, whose answer then stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from sys import intern
from typing import Any

import gevent
from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http.wsgi import Response, create  # type: ignore[import-untyped]
from gunicorn.workers.base_async import ALREADY_HANDLED  # type: ignore[import-untyped]

from geventws.errors import UsageError
from geventws.http_head import COMMON_FIELDS, HeadError, parse_head
from geventws.lent_socket import LentSocket
from geventws.peer_log import shorten
from geventws.server import tell_failure
from geventws.upgrade import KEY, NO_INPUT, Upgrade, lighten, unwrap

__all__ = ["Exchange", "OfferReader", "answer_offer", "reads_offers"]

#: What ends the application on a connection that it took without being an error; simple-websocket's users raise
#: StopIteration, for gunicorn.
_QUIET = (gevent.GreenletExit, ConnectionError, StopIteration)

StartResponse = Callable[..., Callable[[bytes], object]]

#: A field whose name has an underscore: whether it counts is for gunicorn's settings to say.
_UNDERSCORE = re.compile(rb"\r\n[^:\r]*_")
#: Fields of requests that have more to them than an offer.
_BEYOND_OFFERS = frozenset(("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT"))


class OfferedRequest:
    """What gunicorn's hooks, logs and responses look at in a request, of one that our own parser has read."""

    __slots__ = ("environ", "peer_addr")

    method = "GET"
    fragment = ""
    version = (1, 1)
    scheme = "http"
    trailers = ()
    body = NO_INPUT
    req_number = 1
    must_close = True
    _expected_100_continue = False

    def __init__(self, environ: dict[str, Any], address: Any) -> None:
        self.environ = environ
        self.peer_addr = address

    @property
    def remote_addr(self) -> Any:
        """The socket address of the peer."""
        return self.peer_addr

    @property
    def uri(self) -> str:
        """The request's target, as it came."""
        return self.environ["RAW_URI"]  # type: ignore[no-any-return]

    @property
    def path(self) -> str:
        """The target's path, as it came."""
        return self.uri.partition("?")[0]

    @property
    def query(self) -> str:
        """The target's query."""
        return self.environ["QUERY_STRING"]  # type: ignore[no-any-return]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The header fields, with gunicorn's names for them."""
        fields = [(key[5:], value) for key, value in self.environ.items() if key.startswith("HTTP_")]
        if "CONTENT_TYPE" in self.environ:
            fields.append(("CONTENT_TYPE", self.environ["CONTENT_TYPE"]))
        return [(name.replace("_", "-"), value) for name, value in fields]

    @property
    def proxy_protocol_info(self) -> dict[str, Any]:
        """What PROXY protocol told: nothing."""
        return {}

    def force_close(self) -> None:
        """The connection closes behind an offer anyway."""

    def should_close(self) -> bool:
        """Whether the connection closes behind the response."""
        return True


class OfferReader:
    """Reads the plain offers that come to one listener of a worker."""

    def __init__(self, cfg: Any, listener_name: Any) -> None:
        self._name = listener_name
        self._cfg = cfg
        self._line = cfg.limit_request_line or 1 << 30
        self._fields = cfg.limit_request_fields or 1 << 30
        self._field = cfg.limit_request_field_size or 1 << 30
        #: Fields by which a proxy tells gunicorn what the client's connection was like; it knows which proxies may.
        self._schemes = {"HTTP_" + name.upper().replace("-", "_") for name in cfg.secure_scheme_headers}
        self._common: dict[str, Any] | None = None

    def forget(self) -> None:
        """Has what all environs have in common made anew: the log's files are other ones now."""
        self._common = None

    def read(self, data: bytes, address: Any) -> tuple[dict[str, Any], bytes] | None:
        """The environ of an offer, and the bytes behind it; None for ``data`` that gunicorn has to read."""
        end = data.find(b"\r\n\r\n")
        if end < 0 or not data.startswith(b"GET /") or not (b"\nUpgrade:" in data or b"\nupgrade:" in data):
            return None
        head = data[:end]
        if len(head) > self._field or (b"_" in head and _UNDERSCORE.search(head) is not None):
            return None
        try:
            request = parse_head(head)
        except HeadError:
            return None
        fields = request.fields
        target = request.line[4:-9]
        if (
            request.version != "HTTP/1.1"
            or len(request.line) > self._line
            or head.count(b"\r\n") > self._fields
            or not fields.keys().isdisjoint(_BEYOND_OFFERS)
            or not fields.keys().isdisjoint(self._schemes)
            or fields.get("HTTP_UPGRADE", "").lower() != "websocket"
        ):
            return None
        environ = self._make_common() if self._common is None else self._common.copy()
        environ.update(fields)
        environ["PATH_INFO"] = request.path
        environ["QUERY_STRING"] = request.query
        environ["RAW_URI"] = target
        environ["REMOTE_ADDR"] = address[0]
        environ["REMOTE_PORT"] = str(address[1])
        return environ, data[end + 4 :]

    def _make_common(self) -> dict[str, Any]:
        """What all environs have in common, as gunicorn makes them."""
        blank = OfferedRequest({"RAW_URI": "/", "QUERY_STRING": ""}, ("", 0))
        _, environ = create(blank, None, blank.peer_addr, self._name, self._cfg)
        del environ["wsgi.early_hints"], environ["gunicorn.socket"]
        environ["wsgi.multithread"] = True
        self._common = environ
        return dict(environ)


def reads_offers(cfg: Any, listener_name: Any) -> bool:
    """Whether gunicorn's settings leave it to the request alone what its environ is."""
    return (
        cfg.protocol == "http"
        and not cfg.is_ssl
        and isinstance(listener_name, tuple)
        and "SCRIPT_NAME" not in os.environ
    )


class Exchange:
    """A request that offers a WebSocket, between gunicorn and the application."""

    __slots__ = ("_begun", "_environ", "_rest", "request", "socket", "upgrade", "worker")

    def __init__(self, worker: Any, request: Any, sock: Any, address: Any, rest: bytes | None = None) -> None:
        self.upgrade = Upgrade(self._let_go, address, worker.sessions)
        self.worker = worker
        self.request = request
        self.socket = sock
        #: What came behind the request; None where gunicorn has read it.
        self._rest = rest
        self._environ: dict[str, Any] = {}
        self._begun = False

    def run(self, application: Any, environ: dict[str, Any], start_response: StartResponse) -> Any:
        """Calls the application; once it has taken the connection, nothing of what it does reaches gunicorn."""
        began = datetime.now()
        worker, upgrade = self.worker, self.upgrade
        self._environ = environ
        environ[KEY] = upgrade
        environ.pop("wsgi.early_hints", None)
        # For apps on simple-websocket. It looks for Werkzeug's first, and then ends with a response; with gunicorn's it
        # would raise StopIteration, which what watches an app takes for an error.
        environ["werkzeug.socket"] = environ["gunicorn.socket"] = LentSocket(upgrade, self.socket)
        handler = gevent.getcurrent()
        worker.handlers.add(handler)
        try:
            try:
                result = application(environ, partial(self._start_response, start_response))
                # A generator takes the connection when it is asked for its first piece.
                result = self._begin(result)
            except BaseException as error:
                if not upgrade.taken or isinstance(error, (SystemExit, KeyboardInterrupt)):
                    raise
                if not isinstance(error, _QUIET):
                    upgrade.told("500 Internal Server Error")
                    worker.log.exception("Error on the connection taken by %s", shorten(self.request.uri))
            upgrade.finish()
        finally:
            worker.handlers.discard(handler)
        if not upgrade.taken:
            return result
        if worker.watches_responses:
            # Nothing is written by it.
            with suppress(AssertionError):
                start_response("101 Switching Protocols", [])
        outcome = upgrade.outcome
        if outcome is not None:
            tell_failure(worker.peer_log, upgrade.remote_address, outcome)
            environ["geventws.close_code"] = str(int(outcome.code))
            environ["geventws.received"] = str(outcome.received)
        response = _Switched(None if outcome is None else outcome.sent)
        worker.log.access(response, self.request, environ, datetime.now() - began)
        return ALREADY_HANDLED

    def _begin(self, result: Iterable[bytes]) -> Iterable[bytes]:
        pieces: Iterator[bytes] = iter(())
        try:
            if not self.upgrade.taken:
                pieces = iter(result)
                first = next(pieces, b"")
        except BaseException:
            _close(result)
            raise
        if self.upgrade.taken:
            _close(result)
            return ()
        return _resume(first, pieces, result)

    def _start_response(
        self, start_response: StartResponse, status: str, headers: Any, *exc_info: Any
    ) -> Callable[[bytes], object]:
        if self.upgrade.taken:
            self.upgrade.told(status)
            return _ignore
        # gunicorn would let "Connection: Upgrade", which belongs to a 426, win over its own "close".
        headers = [(name, value) for name, value in headers if name.lower() != "connection"]
        return partial(self._write, start_response(status, headers, *exc_info))

    def _write(self, write: Callable[[bytes], object], data: bytes) -> None:
        if not self.upgrade.taken:
            self._begun = True
            write(data)

    def _let_go(self) -> tuple[Any, bytearray]:
        """Ends HTTP on this connection, for `Upgrade.take`."""
        environ = self._environ
        if self._begun:
            raise UsageError("the response has begun: take the connection before anything of it is written")
        if environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ:
            raise UsageError("a request with a body can't be upgraded")
        if self._rest is None:
            read_ahead = self.request.unreader.take_buffered()
            _share_values(environ)
        else:
            read_ahead = self._rest
        sock, self.socket, self._rest = self.socket, None, b""
        lighten(environ)
        return unwrap(sock), bytearray(read_ahead)


def _share_values(environ: dict[str, Any]) -> None:
    """Has sessions share the strings that many have in common; gunicorn's parser makes them anew for each."""
    for key in COMMON_FIELDS & environ.keys():
        value = environ[key]
        if type(value) is str:
            environ[key] = intern(value)


class _Switched:
    """The response to an upgrade, as the access log sees it."""

    status = "101 Switching Protocols"
    headers = ()

    def __init__(self, sent: int | None) -> None:
        self.sent = sent


class _LateResponse:
    """gunicorn's response to an offer, made when it is needed: few offers are answered in HTTP."""

    __slots__ = ("_exchange", "_made")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._made: Any = None

    def make(self) -> Any:
        """The response."""
        if self._made is None:
            exchange = self._exchange
            self._made = Response(exchange.request, exchange.socket, exchange.worker.cfg)
        return self._made

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """As PEP 3333 has it."""
        return self.make().start_response(status, headers, exc_info)

    @property
    def begun(self) -> bool:
        """Whether any of it is written."""
        return self._made is not None and self._made.headers_sent


def answer_offer(worker: Any, connection: list[Any], offer: tuple[dict[str, Any], bytes]) -> None:
    """Serves an offer that an `OfferReader` has read, as gunicorn serves what its own parser read.

    Empties ``connection``, a socket and an address. Raises ``OSError`` where the peer is gone, and what ends the
    process.
    """
    address, sock = connection.pop(), connection.pop()
    environ, rest = offer
    environ["gunicorn.socket"] = sock
    exchange = Exchange(worker, OfferedRequest(environ, address), sock, address, rest)
    del offer, sock, rest
    late = _LateResponse(exchange)
    began = datetime.now()
    worker.requests[gevent.getcurrent()] = (exchange.request, address)
    try:
        worker.pre_request_hook(worker, exchange.request)
        worker.count_request()
        answer = exchange.run(worker.application_for_offer(), environ, late.start_response)
        if answer is not ALREADY_HANDLED:
            response = late.make()
            try:
                for piece in answer:
                    response.write(piece)
                response.close()
            finally:
                worker.log.access(response, exchange.request, environ, datetime.now() - began)
                answer.close()
    except OSError:
        raise
    except BaseException as error:
        if not late.begun or isinstance(error, (SystemExit, KeyboardInterrupt)):
            worker.handle_error(exchange.request, exchange.socket, address, error)
        else:
            # A second response would be taken for the rest of the first.
            worker.log.exception("Error handling request")
    finally:
        del worker.requests[gevent.getcurrent()]
        exchange.upgrade.expire()
        if exchange.socket is not None:
            util.close(exchange.socket)
        if worker.watches_responses:
            try:
                worker.cfg.post_request(worker, exchange.request, environ, late.make())
            except Exception:
                worker.log.exception("Exception in post_request hook")


def _ignore(data: bytes) -> None:
    """Writes nothing."""


def _close(result: Any) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _resume(first: bytes, rest: Iterator[bytes], result: Any) -> Iterator[bytes]:
    try:
        yield first
        yield from rest
    finally:
        _close(result)
