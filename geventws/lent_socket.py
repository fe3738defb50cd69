"""Sockets for apps that make the WebSocket handshake themselves, as those on simple-websocket do.

Such an app finds a socket in the environ and writes a 101 and frames to it. The one it finds here takes the connection
with its first use, as any session does, so that HTTP is over for the server; and it follows the frames that go out, so
that the server can put a Close frame between two of them when it stops, or behind the last when the app forgets it.
"""

from __future__ import annotations

from contextlib import suppress
from socket import SHUT_RDWR, SHUT_WR
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.socket import socket as GeventSocket
from gevent.ssl import SSLSocket

from geventws.frames import CloseCode, CloseReason, Opcode
from geventws.settings import Settings
from geventws.upgrade import NoInput, Outcome, Upgrade

__all__ = ["LentInput", "LentSocket", "linger"]

#: For how many seconds and bytes input is read on after the last output, lest a reset destroy it (RFC 9112 9.6).
LINGER_SECONDS = 1.0
LINGER_BYTES = 256 * 1024

#: Bytes that one system call may receive of what nobody wants.
_PIECE = 16 * 1024

#: Seconds that the peer has for its part of the closing handshake.
_CLOSE_SECONDS = Settings().timeout

# An enum's member takes longer to get and to compare.
_CLOSE = int(Opcode.CLOSE)

#: Bytes of a response's head that are looked at.
_LONGEST_HEAD = 64 * 1024


def linger(sock: Any) -> None:
    """Ends output and reads on for a moment, so that the peer gets what was sent before the socket is closed."""
    ends = monotonic() + LINGER_SECONDS
    received = 0
    try:
        sock._sock.shutdown(SHUT_WR)
        while received < LINGER_BYTES:
            sock.settimeout(max(0.001, ends - monotonic()))
            piece = sock.recv(_PIECE)
            if not piece:
                return
            received += len(piece)
    except OSError:
        pass


class LentSocket:
    """The socket in the environ of an offer: ``sock`` to look at, and with the first byte out or in the app's own.

    What it sends is sent whole, and what one greenlet sends is not mixed with another's.
    """

    __slots__ = ("_sock", "_upgrade", "_websocket")

    def __init__(self, upgrade: Upgrade, sock: Any) -> None:
        self._upgrade = upgrade
        self._sock = sock
        self._websocket: _AppWebSocket | None = None

    def _take(self) -> _AppWebSocket:
        if self._websocket is None:
            sock, read_ahead = self._upgrade.take()
            if not isinstance(sock, SSLSocket):
                sock = GeventSocket(sock.family, sock.type, sock.proto, sock.detach())
            self._sock = sock
            self._websocket = self._upgrade.borrower = _AppWebSocket(self._upgrade, sock, read_ahead)
        return self._websocket

    # -- What a socket does --------------------------------------------------------------------------------------------

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends ``data``, which is the next bytes of frames; blocks. Raises ``OSError``."""
        (self._websocket or self._take()).send(bytes(data))

    def send(self, data: Any, flags: int = 0) -> int:
        """As `sendall`: no caller need care for a rest. Gives the number of bytes."""
        (self._websocket or self._take()).send(bytes(data))
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """The next bytes, at most ``size``, none at the end; blocks. Raises ``OSError``."""
        return (self._websocket or self._take()).receive(size)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """As `recv`, into ``buffer``; gives the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.recv(size or len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Ends the connection, where the app has used it; blocks a moment while the peer still sends."""
        if self._websocket is not None:
            self._websocket.close()

    def dup(self) -> LentSocket:
        """Itself: a second descriptor would be out of sight."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class LentInput(NoInput):
    """The ``wsgi.input`` of an offer to gevent's pywsgi, where simple-websocket looks for ``.raw._sock``."""

    __slots__ = ("_sock",)

    def __init__(self, sock: LentSocket) -> None:
        self._sock = sock

    @property
    def raw(self) -> LentInput:
        """What has the socket, as in a buffered reader."""
        return self


class _AppWebSocket:
    """A WebSocket that an app speaks by itself. To a server that stops it is a session among the others."""

    __slots__ = (
        "__weakref__",
        "_closed",
        "_closing",
        "_draining",
        "_input",
        "_output",
        "_over",
        "_owed",
        "_read_ahead",
        "_readers",
        "_received",
        "_sent",
        "_socket",
        "_turn",
        "_upgrade",
        "failed",
    )

    def __init__(self, upgrade: Upgrade, sock: Any, read_ahead: bytearray) -> None:
        self._upgrade = upgrade
        self._socket = sock
        self._read_ahead = bytes(read_ahead)
        self._input = _Frames(behind_response=False)
        self._output = _Frames(behind_response=True)
        self._turn = BoundedSemaphore(1)
        #: Set when there is nothing more to wait for: the input has ended, or the app has closed.
        self._over = Event()
        self._closed = self._draining = False
        self._readers = 0
        self._received = self._sent = 0
        #: The code of a Close frame that the server has to send as soon as a frame of the app's ends.
        self._owed: int | None = None
        #: Whether the server has sent it: nothing may follow.
        self._closing = False
        #: Whether the app has failed; the server tells.
        self.failed = False
        upgrade.sessions.add(self)

    # -- For the app ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Sends what the app has made."""
        with self._turn:
            if self._closing:
                # The app learns of it by the peer's answer.
                return
            self._write(data)
            if self._owed is not None:
                self._pay()

    def receive(self, size: int) -> bytes:
        """Receives for the app."""
        if self._read_ahead:
            data, self._read_ahead = self._read_ahead[:size], self._read_ahead[size:]
            self._came(data)
            return data
        if self._over.is_set() or self._draining:
            return b""
        self._readers += 1
        try:
            return self._receive(size)
        finally:
            self._readers -= 1

    def close(self) -> None:
        """Ends the connection."""
        if self._closed or self._draining:
            return
        self._closed = True
        if not self._over.is_set() and self._readers == 0:
            linger(self._socket)
        self._let_go()

    # -- For the server ------------------------------------------------------------------------------------------------

    def start_close(self, code: int = CloseCode.NORMAL) -> None:
        """Sends a Close frame as soon as a frame of the app's has ended; never blocks."""
        if self._owed is None:
            self._owed = code
            gevent.spawn(self._close_in_turn)

    def terminate(self) -> None:
        """Ends the connection at once; never blocks."""
        self._shut_down()
        self._over.set()

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Blocks until the connection is gone, or for ``timeout`` seconds; tells whether it is gone."""
        return self._over.wait(timeout)

    def finish(self) -> None:
        """Ends what the app has left open; blocks for the closing handshake."""
        try:
            with suppress(TimeoutError), gevent.Timeout(_CLOSE_SECONDS, TimeoutError()):
                if self._output.follow:
                    self.start_close(CloseCode.INTERNAL_ERROR if self.failed else CloseCode.NORMAL)
                    self._wait_for_peer()
                else:
                    self.close()
        finally:
            self._closed = True
            self._let_go()
            self._upgrade.sessions.discard(self)
            self._upgrade.borrower = None
            code = CloseCode.ABNORMAL if self._output.close_code is None else self._output.close_code
            self._upgrade.outcome = Outcome(code, "", self._received, self._sent, False)

    def _wait_for_peer(self) -> None:
        if self._readers or self._closed:
            # A greenlet of the app's gets the peer's answer, or closes.
            self._over.wait()
        elif not self._over.is_set():
            self._draining = True
            with suppress(OSError):
                while not self._over.is_set():
                    self._receive(_PIECE)

    def _close_in_turn(self) -> None:
        with self._turn, suppress(OSError):
            self._pay()

    def _pay(self) -> None:
        """Sends the Close frame that is owed where one may stand; the turn is the caller's."""
        if self._owed is None or self._closing or not self._output.ends_here or self._output.close_code is not None:
            return
        payload = CloseReason(self._owed).to_payload()
        frame = bytes((0x80 | _CLOSE, len(payload))) + payload
        self._closing = True
        self._write(frame)

    def _let_go(self) -> None:
        # While the app still selects on it, gevent closes a socket at the loop's next event, which this is.
        self._shut_down()
        self._socket.close()
        self._over.set()

    def _shut_down(self) -> None:
        with suppress(OSError):
            self._socket._sock.shutdown(SHUT_RDWR)

    def _write(self, data: bytes) -> None:
        try:
            # gevent's sendall asks the system for the size of its buffer each time.
            count = self._socket.send(data)
            if count < len(data):
                self._socket.sendall(memoryview(data)[count:])
        except BaseException:
            # A frame may be cut off, and behind it another would be taken for its rest.
            self._output.follow = False
            raise
        self._sent += len(data)
        self._output.feed(data)
        if self._output.close_code is not None:
            self._look_for_end()

    def _receive(self, size: int) -> bytes:
        data: bytes
        try:
            data = self._socket.recv(size)
        except OSError as error:
            # One that waits no longer may come again.
            if not isinstance(error, (TimeoutError, BlockingIOError)):
                self._over.set()
            raise
        if not data:
            self._over.set()
        self._came(data)
        return data

    def _came(self, data: bytes) -> None:
        self._received += len(data)
        self._input.feed(data)
        if self._input.close_code is not None:
            self._look_for_end()

    def _look_for_end(self) -> None:
        """Behind both Close frames nothing comes (RFC 6455 7.1.1)."""
        if self._input.close_code is not None and self._output.close_code is not None:
            self._over.set()


class _Frames:
    """Where the frames end in what one side sends, a server ``behind_response``, and its Close frame among them."""

    __slots__ = ("_head", "_left", "_responding", "close_code", "follow")

    def __init__(self, *, behind_response: bool) -> None:
        self._head = b""
        self._left = 0
        self._responding = behind_response
        #: Whether frames follow: behind a response only a 101.
        self.follow = not behind_response
        #: The code of the first Close frame, as it came if that is masked; 1005 for one without. None before it.
        self.close_code: int | None = None

    @property
    def ends_here(self) -> bool:
        """Whether a frame may begin here."""
        return self.follow and not self._head and self._left == 0

    def feed(self, data: bytes) -> None:
        """Looks at the next bytes that are sent."""
        if self.follow and not self._left and not self._head and len(data) > 1 and data[0] & 0x0F != _CLOSE:
            # As most come: a short frame as a whole.
            length = data[1] & 0x7F
            if length < 126 and len(data) == length + (6 if data[1] & 0x80 else 2):
                return
        position = 0
        while position < len(data):
            if self.follow:
                position = self._frame(data, position)
            elif self._responding:
                position = self._response(data, position)
            else:
                return

    def _response(self, data: bytes, position: int) -> int:
        head = self._head + data[position:]
        end = head.find(b"\r\n\r\n")
        if end < 0 and len(head) < _LONGEST_HEAD:
            self._head = head
            return len(data)
        accepted = end >= 0 and head.startswith(b"HTTP/1.1 101 ")
        self._responding = False
        self.follow = accepted
        position = end + 4 - len(self._head) if accepted else len(data)
        self._head = b""
        return position

    def _frame(self, data: bytes, position: int) -> int:
        if self._left:
            skipped = min(self._left, len(data) - position)
            self._left -= skipped
            return position + skipped
        # 14 bytes are the longest head (RFC 6455 5.2), and a Close frame is looked at with its code.
        head = self._head + data[position : position + 14 - len(self._head)]
        kept, size = len(self._head), _head_size(head)
        is_close = bool(head) and head[0] & 0x0F == _CLOSE
        if is_close and len(head) >= 2 and head[1] & 0x7F >= 2:
            size += 2
        if len(head) < size:
            self._head = head
            return len(data)
        self._head = b""
        length = head[1] & 0x7F
        if length == 126:
            length = int.from_bytes(head[2:4], "big")
        elif length == 127:
            length = int.from_bytes(head[2:10], "big")
        self._left = length
        if is_close:
            has_code = length >= 2
            self._left -= 2 if has_code else 0
            if self.close_code is None:
                self.close_code = int.from_bytes(head[size - 2 : size], "big") if has_code else CloseCode.NO_STATUS
        return position + size - kept


def _head_size(head: bytes) -> int:
    """The size of a frame's head, as far as its first two bytes tell (RFC 6455 5.2)."""
    if len(head) < 2:
        return 2
    length = head[1] & 0x7F
    return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if head[1] & 0x80 else 0)
