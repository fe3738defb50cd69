"""The seam between the servers and the application: an `Upgrade` in the WSGI environ of a request that offers one.

The server half owns the socket, what was read ahead from it and the leaving of HTTP; the application half owns what
follows.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import intern
from types import FunctionType, MethodType
from typing import Any, NamedTuple, Protocol

from gevent._socket3 import _closedsocket  # type: ignore[import-not-found]
from gevent.ssl import SSLSocket

from geventws.errors import UsageError

__all__ = ["KEY", "Outcome", "Upgrade", "flatten", "lighten", "names_websocket", "on_refusal", "unwrap"]

#: Where the environ holds the `Upgrade`.
KEY = "geventws.upgrade"

#: What is called with the environ and the status of each handshake that a server of this process refuses by itself: no
#: application hears of it.
on_refusal: list[Callable[[dict[str, Any], int], object]] = []

#: What an environ needs no more once the connection is taken: ways to write HTTP.
_USELESS = ("wsgi.early_hints", "gunicorn.socket", "gunicorn.sock", "werkzeug.socket")

#: What an environ has of a connection or a path that others have too. Their sessions share one string.
_COMMON = ("PATH_INFO", "RAW_URI", "REMOTE_ADDR")


#: What a gevent socket has in place of its own when that is taken.
_GONE = _closedsocket(-1, -1, -1, None, "detached")


class Borrower(Protocol):
    """What took the connection for an app that speaks WebSocket itself, and ends it when the app has returned."""

    #: Whether the app has failed.
    failed: bool

    def finish(self) -> None:
        """Ends the WebSocket; blocks."""
        ...


class Outcome(NamedTuple):
    """How a WebSocket ended, for the server's logs."""

    #: The close code; 1006 where there was no Close frame.
    code: int
    #: Why, in the peer's words or ours.
    message: str
    #: Bytes that came and went, the 101 included.
    received: int
    sent: int
    #: Whether the peer did wrong.
    failed: bool


class Upgrade:
    """The offer to leave HTTP on the connection that a request came on (RFC 9110 7.8).

    ``release`` ends HTTP for the server. ``sessions`` are the server's open sessions: the application adds its own and
    discards it at its end, and a server that stops calls ``start_close``, ``wait_closed`` and ``terminate`` on them.
    """

    __slots__ = ("_release", "borrower", "outcome", "remote_address", "sessions", "taken")

    def __init__(self, release: Callable[[], tuple[Any, bytearray]], remote_address: Any, sessions: set[Any]) -> None:
        self._release: Callable[[], tuple[Any, bytearray]] | None = release
        #: The socket address of the TCP peer, a proxy's where one stands in front; a Unix socket's is empty.
        self.remote_address = remote_address
        self.sessions = sessions
        #: Whether the application took the connection. From then on nothing of HTTP is written to it.
        self.taken = False
        #: What the application told of the WebSocket's end; None before it, and from an application that tells nothing.
        self.outcome: Outcome | None = None
        #: Who has the connection where that is no session of ours.
        self.borrower: Borrower | None = None

    def take(self) -> tuple[Any, bytearray]:
        """Ends HTTP on the connection; gives its socket, for the caller to close, and the bytes behind the request.

        The socket is a ``_socket.socket`` that never blocks, under TLS gevent's ``SSLSocket``. Nothing has been written
        to it: the 101 is the caller's. Raises ``UsageError`` when the connection is taken already, the response has
        begun, or the request has a body or is over.
        """
        release = self._release
        if release is None:
            raise UsageError(
                "the connection is taken already"
                if self.taken
                else "the request is over: take its connection before the application has answered"
            )
        connection = release()
        self._release = None
        self.taken = True
        return connection

    def told(self, status: str) -> None:
        """Is told the status of the response that an application makes for a connection which is taken."""
        if self.borrower is not None and status.startswith("5"):
            self.borrower.failed = True

    def finish(self) -> None:
        """Ends what an application that has returned would leave open; blocks."""
        if self.borrower is not None:
            self.borrower.finish()

    def expire(self) -> None:
        """Withdraws the offer: the request is over, and its connection is the server's again or closed."""
        self._release = None


def names_websocket(upgrade: str | None) -> bool:
    """Tells whether an Upgrade field's value names the websocket protocol (RFC 6455 4.2.1)."""
    if upgrade is None:
        return False
    return upgrade == "websocket" or any(token.strip(" \t").lower() == "websocket" for token in upgrade.split(","))


def flatten(application: Any) -> Any:
    """``application`` as Python calls it without a detour through C, whose frames stay on the stack of each session."""
    call = type(application).__call__
    return MethodType(call, application) if isinstance(call, FunctionType) else application


def unwrap(sock: Any) -> Any:
    """What `Upgrade.take` gives for a gevent ``sock``. The wrapper of a plain one is dead afterwards."""
    if isinstance(sock, SSLSocket) and sock._sslobj is not None:  # type: ignore[attr-defined]
        return sock
    # As its close() does, but for the descriptor: a new socket object would take system calls.
    raw = sock._sock
    sock._drop_events_and_close(closefd=False)
    sock._sock = _GONE
    return raw


class NoInput:
    """The ``wsgi.input`` of a request without a body. It has no state, and one serves all."""

    __slots__ = ()

    def read(self, size: int | None = -1) -> bytes:
        """Nothing."""
        return b""

    readline = read

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """No lines."""
        return []

    def __iter__(self) -> NoInput:
        return self

    def __next__(self) -> bytes:
        raise StopIteration

    def _discard(self) -> None:
        """Called by pywsgi to pass over what the application left unread."""


NO_INPUT = NoInput()


def lighten(environ: dict[str, Any]) -> None:
    """Drops from the environ of a taken connection, which lives as long as its session, what only HTTP needs.

    An app may have a copy of the server's, which is then lightened too.
    """
    for key in _USELESS:
        environ.pop(key, None)
    environ["wsgi.input"] = NO_INPUT
    for key in _COMMON:
        value = environ.get(key)
        if type(value) is str:
            environ[key] = intern(value)
    kept = environ.copy()
    # A dict that grew key by key has up to twice the room it needs; one that is updated while empty has not.
    environ.clear()
    environ.update(kept)
