"""What can go wrong, by whose fault: the caller's, the peer's, or nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geventws.frames import CloseReason

__all__ = ["ConnectionClosed", "HandshakeError", "ProtocolError", "UsageError", "WebSocketError"]


class WebSocketError(Exception):
    """The base of the errors that geventws raises on its own account."""


class UsageError(WebSocketError, RuntimeError):
    """The caller broke a rule of this API: a second concurrent ``receive``, a route without the plugin."""


class ConnectionClosed(WebSocketError):
    """The WebSocket is over; ``reason`` tells how it ended.

    Raised by ``send`` and ``receive``. One that leaves a handler is a normal end of the session.
    """

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the WebSocket is closed ({self.reason})"


class ProtocolError(WebSocketError):
    """The peer broke RFC 6455, an extension's rules or a limit; ``code`` is the close code it gets."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


class HandshakeError(WebSocketError):
    """An opening handshake that is refused with ``status``, a plain sentence and extra ``headers``."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = list(headers)

    def __str__(self) -> str:
        return f"{self.status} {self.message}"
