"""How a client gets a socket to a server: by TCP, through a proxy, by a Unix socket, and under TLS.

All of it blocks its greenlet alone, on gevent's own sockets, also in a process that is not monkey-patched. Nothing here
keeps a time limit; the caller's ends it all.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from socket import AF_UNIX, IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gevent import Timeout
from gevent.socket import getaddrinfo
from gevent.socket import socket as GeventSocket
from gevent.ssl import SSLSocket
from werkzeug.datastructures import Headers

from geventws.errors import HandshakeFailed, ProxyRefused
from geventws.protocol.client_handshake import ResponseHead, ResponseHeadBuffer
from geventws.protocol.url import WebSocketURL, basic_authorization

__all__ = [
    "ENVIRONMENT",
    "Destination",
    "Environment",
    "Proxy",
    "dial",
    "find_proxy",
    "read_head",
    "read_refusal",
    "tls_context",
]

#: Bytes that one system call may receive.
_PIECE = 16 * 1024
#: Bytes of a refusal's body that are kept.
MAX_BODY = 64 * 1024
#: Seconds for it: the refusal itself is known by then.
_BODY_SECONDS = 2.0
#: Seconds that one of a host's addresses may take while there are others to try.
PATIENCE = 5.0
#: What OpenSSL says of a server that answers in HTTP, or in anything else.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_LAST_CHUNK = b"0\r\n\r\n"
#: Bytes of the head of a proxy's answer.
_PROXY_HEAD = 64 * 1024


class Environment:
    """Stands for the proxy that the environment names."""

    def __repr__(self) -> str:
        return "ENVIRONMENT"


#: The default of ``proxy``.
ENVIRONMENT = Environment()


class Proxy(NamedTuple):
    """An HTTP proxy that is asked to CONNECT (RFC 9110 9.3.6)."""

    host: str
    port: int
    authorization: str | None

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


class Destination(NamedTuple):
    """A server, and the way to it."""

    url: WebSocketURL
    #: The path of a Unix socket in place of the URL's host and port.
    unix_socket: str | None
    proxy: Proxy | None
    #: None without TLS.
    context: ssl.SSLContext | None


def tls_context() -> ssl.SSLContext:
    """A context that verifies the server by the system's authorities."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def find_proxy(proxy: str | Environment | None, url: WebSocketURL) -> Proxy | None:
    """The proxy for ``url``: the one that is given, or the environment's.

    That is HTTPS_PROXY for wss and HTTP_PROXY for ws, else ALL_PROXY, in capitals or not; NO_PROXY names hosts without.
    Raises ``ValueError`` for one that is no HTTP proxy.
    """
    if proxy is None:
        return None
    if not isinstance(proxy, Environment):
        return _parse_proxy(proxy, "proxy")
    # It takes a while, and few programs have no use for it.
    from urllib.request import (  # type: ignore[attr-defined]
        getproxies_environment,
        proxy_bypass_environment,
    )

    proxies = getproxies_environment()
    found = proxies.get("https" if url.secure else "http") or proxies.get("all")
    if not found or proxy_bypass_environment(f"{url.host}:{url.port}", proxies):
        return None
    return _parse_proxy(found, "the environment's proxy")


def _parse_proxy(proxy: str, name: str) -> Proxy:
    if not isinstance(proxy, str):
        raise TypeError(f"{name} must be a URL, as in 'http://127.0.0.1:3128', or None, not {type(proxy).__name__}")
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{name} is no URL: {error}") from None
    if parts.scheme != "http":
        raise ValueError(f"{name} is of the kind {parts.scheme}://: only http:// proxies, asked to CONNECT, are known")
    if not parts.hostname:
        raise ValueError(f"{name} has no host, as in http://127.0.0.1:3128")
    authorization = None
    if parts.username is not None:
        authorization = basic_authorization(parts.username, parts.password or "")
    return Proxy(parts.hostname, port or 80, authorization)


def dial(destination: Destination, tell: Callable[[str], object]) -> Any:
    """A connected socket, under TLS where the destination has it; ``tell`` is called with what is being done.

    Raises ``OSError`` (with ``ssl.SSLError`` for what TLS doesn't like), ``ProxyRefused`` and ``HandshakeFailed``.
    """
    url, proxy = destination.url, destination.proxy
    if destination.unix_socket is not None:
        tell(f"connecting to {destination.unix_socket}")
        sock = _connect(AF_UNIX, 0, destination.unix_socket)
    elif proxy is not None:
        tell(f"connecting to the proxy {proxy}")
        sock = _connect_to_host(proxy.host, proxy.port)
    else:
        tell(f"connecting to {url.host} port {url.port}")
        sock = _connect_to_host(url.host, url.port)
    try:
        if proxy is not None and destination.unix_socket is None:
            tell(f"waiting for the proxy {proxy}")
            _pass_proxy(sock, proxy, url)
        if destination.context is not None:
            tell("waiting for the server's part of the TLS handshake")
            sock = _wrap(sock, destination.context, url.host.partition("%")[0])
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_to_host(host: str, port: int) -> Any:
    """Tries the addresses of a host in their order; raises the error of the last."""
    addresses = list(getaddrinfo(host, port, 0, SOCK_STREAM))
    for number, (family, _, protocol, _, address) in enumerate(addresses, 1):
        try:
            # One that never answers must not take the time of the others.
            with Timeout(None if number == len(addresses) else PATIENCE, TimeoutError(f"{address[0]} is silent")):
                sock = _connect(family, protocol, address)
        except OSError:
            if number == len(addresses):
                raise
        else:
            # With Nagle's algorithm a small message may wait 40 ms for an acknowledgement.
            with suppress(OSError):
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            return sock
    raise OSError(f"{host} has no address")


def _connect(family: int, protocol: int, address: Any) -> Any:
    sock = GeventSocket(family, SOCK_STREAM, protocol)
    try:
        # The process's default timeout is not for this.
        sock.settimeout(None)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _wrap(sock: Any, context: ssl.SSLContext, host: str) -> Any:
    # By hand: the context may be the standard library's, whose own sockets would block all greenlets.
    wrapped = SSLSocket(sock=sock, server_hostname=host, do_handshake_on_connect=False, _context=context)
    try:
        wrapped.do_handshake()
    except BaseException as error:
        wrapped.close()
        if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS and error.strerror:
            error.strerror += ": what answers speaks no TLS, see whether it is ws://"
        raise
    return wrapped


def _pass_proxy(sock: Any, proxy: Proxy, url: WebSocketURL) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    request = f"CONNECT {host}:{url.port} HTTP/1.1\r\nHost: {host}:{url.port}\r\n"
    if proxy.authorization is not None:
        request += f"Proxy-Authorization: {proxy.authorization}\r\n"
    sock.sendall(f"{request}\r\n".encode("ascii"))
    buffer = ResponseHeadBuffer(_PROXY_HEAD)
    head = read_head(sock, buffer, "the proxy")
    if not 200 <= head.status < 300:
        body = read_refusal(sock, buffer, head)
        raise ProxyRefused(head.status, head.reason, Headers(head.fields), body)
    if buffer.data:
        raise HandshakeFailed("the proxy sent something before the server could")


def read_head(sock: Any, buffer: ResponseHeadBuffer, who: str = "the server") -> ResponseHead:
    """The head of the final response, whose interim ones (RFC 9110 15.2) are passed over; blocks.

    Raises ``HandshakeFailed``, and ``OSError`` where the connection ends before.
    """
    while True:
        head = buffer.take_head() if buffer.data else None
        if head is not None:
            if head.status >= 200 or head.status == 101:
                return head
            continue
        piece = sock.recv(_PIECE)
        if not piece:
            raise ConnectionResetError(f"{who} closed the connection before it answered the handshake")
        buffer.data += piece


def read_refusal(sock: Any, buffer: ResponseHeadBuffer, head: ResponseHead) -> bytes:
    """The start of a response's body, up to ``MAX_BODY`` bytes; blocks. What can't be had of it is left out."""
    data = buffer.data
    length = MAX_BODY
    if head.status in (204, 304):
        # Which have none (RFC 9112 6.3).
        return b""
    chunked = "chunked" in (head.get("transfer-encoding") or "").lower()
    declared = head.get("content-length") or ""
    if not chunked and declared.isascii() and declared.isdigit():
        length = min(length, int(declared[:9]))
    with Timeout(_BODY_SECONDS, False), suppress(OSError):  # type: ignore[arg-type]  # gevent's: for no exception
        while len(data) < length and not (chunked and (data == _LAST_CHUNK or data.endswith(b"\r\n" + _LAST_CHUNK))):
            piece = sock.recv(_PIECE)
            if not piece:
                break
            data += piece
    return _unchunked(bytes(data)) if chunked else bytes(data[:length])


def _unchunked(data: bytes) -> bytes:
    """What is here of a body in chunks (RFC 9112 7.1)."""
    body = b""
    while True:
        line, _, rest = data.partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            return body
        if size <= 0:
            return body
        body += rest[:size]
        data = rest[size + 2 :]
