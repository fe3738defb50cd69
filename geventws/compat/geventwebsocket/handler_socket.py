"""``ws.handler.socket``: what apps do with the socket of a WebSocket, beside reading and writing it."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gevent
from gevent.queue import Empty, Queue

from geventws.errors import ConnectionClosed

if TYPE_CHECKING:
    from geventws.call import DefaultWebSocketServerSession

__all__ = ["HandlerSocket", "Silence"]

#: What is the socket's own. To read and to write it is the session's business.
_OF_THE_SOCKET = frozenset(
    {"cipher", "family", "getpeercert", "getpeername", "getsockname", "getsockopt", "proto", "setsockopt", "type"}
)


class Silence(Exception):
    """Nothing came from the peer for as long as the socket's timeout."""


class HandlerSocket:
    """Stands for the socket of a WebSocket, whose session reads and writes it.

    Options and addresses are the socket's. `fileno` is readable while a message, or the end, waits to be received.
    """

    def __init__(self, session: DefaultWebSocketServerSession) -> None:
        self._session = session
        self._timeout: float | None = None
        self._ahead: _Ahead | None = None
        self._over = False

    def settimeout(self, value: float | None) -> None:
        """Has `receive` give up a peer of which nothing comes for ``value`` seconds; None: it waits."""
        self._timeout = value

    def gettimeout(self) -> float | None:
        """The seconds that `settimeout` was told."""
        return self._timeout

    timeout = property(gettimeout, settimeout)

    def fileno(self) -> int:
        """A descriptor for ``select`` and the like: readable while `receive` would not block, and always writable.

        -1 when the request is over.
        """
        if self._over:
            return -1
        if self._ahead is None:
            self._ahead = _Ahead(self._session)
        # Not beside one that receives by itself, as where a greenlet reads and another asks whether it may write.
        if self._session.connection.receiver is None:
            self._ahead.start()
        return self._ahead.fileno()

    def shutdown(self, how: int) -> None:
        """Cuts the connection, whatever ``how`` says; the client sees 1006."""
        self._session.terminate()

    def close(self) -> None:
        """As `shutdown`."""
        self._session.terminate()

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_SOCKET:
            return getattr(self._session.connection.transport.socket, name)
        raise AttributeError(f"{name!r} of a WebSocket's socket is its session's: use the WebSocket's own methods")

    def receive(self) -> Any:
        """The next message for the WebSocket; blocks. Raises ``ConnectionClosed``, and `Silence`."""
        if self._timeout is None:
            return self._receive(None)
        transport = self._session.connection.transport
        while True:
            received = transport.received
            try:
                return self._receive(self._timeout)
            except TimeoutError:
                # A piece of a message, a ping or a pong counts, as of a socket.
                if transport.received == received:
                    raise Silence from None

    def _receive(self, timeout: float | None) -> Any:
        if self._ahead is not None and self._ahead.started:
            return self._ahead.receive(timeout)
        return self._session.receive(timeout)

    def ended(self) -> None:
        """Called when the request is over."""
        self._over = True
        if self._ahead is not None:
            self._ahead.close()


class _Ahead:
    """Receives ahead of the app, so that a descriptor can be readable as long as something waits for it."""

    def __init__(self, session: DefaultWebSocketServerSession) -> None:
        self._session = session
        # What else comes waits in the session, which lets the peer know.
        self._messages: Queue[Any] = Queue(1)
        # There is a byte for each message, and one for the end.
        self._readable, self._bytes = socket.socketpair()
        self._greenlet: Any = None

    @property
    def started(self) -> bool:
        """Whether messages come by way of this."""
        return self._greenlet is not None

    def start(self) -> None:
        """Begins to receive; once is enough."""
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._run)

    def fileno(self) -> int:
        """The descriptor."""
        return self._readable.fileno()

    def _run(self) -> None:
        message: Any = None
        while not isinstance(message, ConnectionClosed):
            try:
                message = self._session.receive()
            except ConnectionClosed as error:
                message = error
            with suppress(OSError):
                self._bytes.send(b"\0")
            self._messages.put(message)

    def receive(self, timeout: float | None) -> Any:
        """As the session's."""
        try:
            message = self._messages.get(timeout=timeout)
        except Empty:
            raise TimeoutError from None
        if isinstance(message, ConnectionClosed):
            # Readable for ever, as a socket at its end.
            self._messages.put(message)
            raise message
        with suppress(OSError):
            self._readable.recv(1)
        return message

    def close(self) -> None:
        """Lets go of the descriptors; whoever still waits, in a greenlet that the app has left behind, gets the end."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            if not self._messages.full():
                self._messages.put(ConnectionClosed(self._session.connection.ending()))
        with suppress(OSError):
            self._readable.close()
            self._bytes.close()
