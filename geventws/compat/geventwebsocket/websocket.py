"""``geventwebsocket.websocket``: the WebSocket of gevent-websocket, on a session of geventws.

What apps rely on is as they know it: None at the end, then errors, and ``closed``. What the wire sees is the
session's: close codes, limits, pings, and frames that never mix.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from struct import pack
from typing import TYPE_CHECKING, Any

from geventws.compat.geventwebsocket.exceptions import WebSocketError
from geventws.compat.geventwebsocket.handler_socket import HandlerSocket, Silence
from geventws.errors import ConnectionClosed, ProtocolError
from geventws.frames import MAX_CONTROL_PAYLOAD, CloseCode, CloseReason, may_be_sent

if TYPE_CHECKING:
    from geventws.call import DefaultWebSocketServerSession

__all__ = ["MSG_ALREADY_CLOSED", "MSG_CLOSED", "MSG_SOCKET_DEAD", "Header", "Stream", "WebSocket"]

MSG_SOCKET_DEAD = "Socket is dead"
MSG_ALREADY_CLOSED = "Connection is already closed"
MSG_CLOSED = "Connection closed"


class WebSocket:
    """A WebSocket as apps of gevent-websocket know it.

    Any greenlet may send or close; one at a time may receive. ``session`` is the session of geventws beneath.
    """

    OPCODE_CONTINUATION = 0x00
    OPCODE_TEXT = 0x01
    OPCODE_BINARY = 0x02
    OPCODE_CLOSE = 0x08
    OPCODE_PING = 0x09
    OPCODE_PONG = 0x0A

    #: What the app has as ``handler.socket``, once it has asked for that.
    handler_socket: HandlerSocket | None = None

    def __init__(
        self, session: DefaultWebSocketServerSession, handler: Any, open_session: Callable[[], object]
    ) -> None:
        self.session = session
        self.handler = handler
        self.environ = session.environ
        self.stream = Stream(handler)
        self._open = open_session
        # Whether the app was told the end or has made it: only then does an app that receives see `closed`, for in its
        # loop the end is a message None, by which it cleans up.
        self._over = False
        self._receives = False

    def receive(self) -> str | bytearray | None:
        """The next message, str for text and bytearray for binary; blocks. Gives None once at the end.

        After that, and after `close`, raises ``WebSocketError``.
        """
        self._open()
        if self._over:
            self.current_app.on_close(MSG_ALREADY_CLOSED)
            raise WebSocketError(MSG_ALREADY_CLOSED)
        self._receives = True
        try:
            held = self.handler_socket
            message = self.session.receive() if held is None else held.receive()
        except Silence:
            self.close()
            self.current_app.on_close(MSG_CLOSED)
            return None
        except ConnectionClosed as error:
            self._over = True
            if self._was_lost(error.reason.code):
                self.current_app.on_close(MSG_CLOSED)
            return None
        return message if isinstance(message, str) else bytearray(message)

    def _was_lost(self, code: int) -> bool:
        """Whether a WebSocket that ended with ``code`` was lost; a peer that answers no ping is given up with 1011."""
        closed_by_peer = self.session.connection.reader.close_reason is not None
        return code == CloseCode.ABNORMAL or (code == CloseCode.INTERNAL_ERROR and not closed_by_peer)

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Sends a message: str as text, bytes-like as binary, unless ``binary`` says otherwise.

        Blocks while the peer lags behind. Raises ``WebSocketError`` after the end.
        """
        self._open()
        if self._over:
            self.current_app.on_close(MSG_ALREADY_CLOSED)
            self.current_app.on_close(MSG_SOCKET_DEAD)
            raise WebSocketError(MSG_SOCKET_DEAD)
        if binary is None:
            binary = not isinstance(message, str)
        try:
            self.session.send(_as_bytes(message) if binary else _as_text(message))
        except ConnectionClosed:
            self.current_app.on_close(MSG_SOCKET_DEAD)
            raise WebSocketError(MSG_SOCKET_DEAD) from None

    def send_frame(self, message: Any, opcode: int) -> None:
        """Sends one frame: a whole message, a ping, a pong or a Close frame.

        Blocks and raises as `send`; raises ``WebSocketError`` also for what is no frame of these.
        """
        self._open()
        if self.closed:
            self.current_app.on_close(MSG_ALREADY_CLOSED)
            raise WebSocketError(MSG_ALREADY_CLOSED)
        if opcode in (self.OPCODE_TEXT, self.OPCODE_BINARY):
            self.send(message, opcode == self.OPCODE_BINARY)
            return
        is_bytes = isinstance(message, (bytes, bytearray, memoryview))
        payload = bytes(message) if is_bytes else _as_text(message).encode()
        if opcode not in (self.OPCODE_CLOSE, self.OPCODE_PING, self.OPCODE_PONG):
            raise WebSocketError(f"a frame with the opcode {opcode} can't be sent by itself")
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise WebSocketError(f"a control frame carries at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
        if opcode == self.OPCODE_CLOSE:
            try:
                self.close(*CloseReason.from_payload(payload))
            except ProtocolError as error:
                raise WebSocketError(error.message) from None
            return
        try:
            self.session.connection.send(0x80 | opcode, payload)
        except ConnectionClosed:
            raise WebSocketError(MSG_SOCKET_DEAD) from None

    def close(self, code: int = 1000, message: str | bytes | None = b"") -> None:
        """Begins the closing handshake; never blocks, and may be called by any greenlet and again.

        A ``code`` that may not be sent (RFC 6455 7.4.1) goes out as 1000; ``message`` is cut to the 123 bytes that fit.
        """
        if self._over:
            self.current_app.on_close(MSG_ALREADY_CLOSED)
            return
        self._over = True
        text = message if isinstance(message, str) else bytes(message or b"").decode(errors="replace")
        reason = CloseReason.truncated(code if may_be_sent(code) else CloseCode.NORMAL, text)
        self._open()
        self.session.start_close(*reason)

    def ended(self) -> None:
        """Called when the request is over: others that hold the WebSocket see that it is closed."""
        self._over = True
        if self.handler_socket is not None:
            self.handler_socket.ended()

    def hold_socket(self) -> HandlerSocket:
        """The socket that apps find as ``handler.socket``."""
        if self.handler_socket is None:
            self.handler_socket = HandlerSocket(self.session)
        return self.handler_socket

    @property
    def closed(self) -> bool:
        """Whether the WebSocket is over: the app has closed it, or `receive` has given None.

        For an app that never receives: whether the peer has closed it, or is gone.
        """
        self._open()
        return self._over or (not self._receives and self.session.connection.input_over)

    @property
    def close_reason(self) -> CloseReason | None:
        """Close code and text of the end, whoever made it; None while the WebSocket is open."""
        return self.session.close_reason

    @property
    def origin(self) -> str | None:
        """The Origin field of the request."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """The subprotocols that the client offered, as it wrote them."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """The version of the protocol: "13"."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str | None:
        """The path of the request."""
        return self.environ.get("PATH_INFO")

    @property
    def logger(self) -> Logger:
        """The logger of the server."""
        return self.handler.logger  # type: ignore[no-any-return]

    @property
    def current_app(self) -> Any:
        """The ``current_app`` of the server's application, where it has one; else an object that does nothing.

        Its ``on_close`` is called with one of the ``MSG_`` texts: where `receive` finds that the connection was lost,
        and by each use behind the end. That of a peer that closes is told by None alone.
        """
        return getattr(self.handler.server.application, "current_app", None) or _NoApplication()


class Stream:
    """What stands for the stream below a WebSocket: its ``handler``. Reading and writing is the session's."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler


class Header:
    """The header of a frame, for apps that make frames; patches of it change nothing."""

    FIN_MASK = 0x80
    OPCODE_MASK = 0x0F
    MASK_MASK = 0x80
    LENGTH_MASK = 0x7F

    @classmethod
    def encode_header(cls, fin: bool, opcode: int, mask: bytes, length: int, flags: int) -> bytes:
        """The header of a frame with a payload of ``length`` bytes; ``flags`` are the bits RSV1 to RSV3 in place."""
        first = (cls.FIN_MASK if fin else 0) | flags | opcode
        masked = cls.MASK_MASK if mask else 0
        if length < 126:
            head = pack("!BB", first, masked | length)
        elif length < 1 << 16:
            head = pack("!BBH", first, masked | 126, length)
        else:
            head = pack("!BBQ", first, masked | 127, length)
        return head + mask


class _NoApplication:
    def on_close(self, *arguments: Any) -> None:
        """Does nothing."""


def _as_bytes(message: Any) -> memoryview:
    return memoryview(message.encode() if isinstance(message, str) else message)


def _as_text(message: Any) -> str:
    if isinstance(message, str):
        return message
    return bytes(message).decode() if isinstance(message, (bytes, bytearray, memoryview)) else str(message or "")
