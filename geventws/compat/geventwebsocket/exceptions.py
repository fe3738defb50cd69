"""The errors of ``geventwebsocket.exceptions``."""

from __future__ import annotations

__all__ = ["FrameTooLargeException", "ProtocolError", "WebSocketError"]


class WebSocketError(OSError):
    """The WebSocket is over, or what was asked of it can't be done."""


class ProtocolError(WebSocketError):
    """The peer broke RFC 6455. Never raised: the peer gets its close code, and ``receive`` gives None."""


class FrameTooLargeException(ProtocolError):
    """A message is beyond the limit. Never raised: the peer gets 1009, and ``receive`` gives None."""
