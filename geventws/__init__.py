"""WebSockets for WSGI apps, in plain blocking Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geventws._build import choose_build

choose_build()

from geventws._build import VERSION, build  # noqa: E402
from geventws.call import DefaultWebSocketServerSession, WebSocketServerSession  # noqa: E402
from geventws.client import Connections, connect  # noqa: E402
from geventws.client_session import DefaultWebSocketClientSession, WebSocketClientSession  # noqa: E402
from geventws.connection import State  # noqa: E402
from geventws.converters import ContentConverter, JSONConverter, MsgspecConverter  # noqa: E402
from geventws.errors import (  # noqa: E402
    ConnectionClosed,
    HandshakeError,
    HandshakeFailed,
    HandshakeRefused,
    ProtocolError,
    ProxyRefused,
    UsageError,
    WebSocketError,
)
from geventws.frames import CloseCode, CloseReason, Frame, Opcode  # noqa: E402
from geventws.pinger import Pinger, pinger  # noqa: E402
from geventws.protocol.deflate import PermessageDeflate  # noqa: E402
from geventws.protocol.extensions import ClientExtension, Extension, ExtensionSession  # noqa: E402
from geventws.routing import Blueprint, WebSockets, WebSocketUpgrade  # noqa: E402
from geventws.server import WSGIServer  # noqa: E402
from geventws.session import DefaultWebSocketSession, WebSocketSession  # noqa: E402
from geventws.settings import Settings, SettingsDict  # noqa: E402
from geventws.stats import SessionStats  # noqa: E402
from geventws.topics import Position, Topics, broadcast  # noqa: E402

if TYPE_CHECKING:
    from geventws.worker import Worker

__version__ = VERSION

__all__ = [
    "Blueprint",
    "ClientExtension",
    "CloseCode",
    "CloseReason",
    "ConnectionClosed",
    "Connections",
    "ContentConverter",
    "DefaultWebSocketClientSession",
    "DefaultWebSocketServerSession",
    "DefaultWebSocketSession",
    "Extension",
    "ExtensionSession",
    "Frame",
    "HandshakeError",
    "HandshakeFailed",
    "HandshakeRefused",
    "JSONConverter",
    "MsgspecConverter",
    "Opcode",
    "PermessageDeflate",
    "Pinger",
    "Position",
    "ProtocolError",
    "ProxyRefused",
    "SessionStats",
    "Settings",
    "SettingsDict",
    "State",
    "Topics",
    "UsageError",
    "WSGIServer",
    "WebSocketClientSession",
    "WebSocketError",
    "WebSocketServerSession",
    "WebSocketSession",
    "WebSocketUpgrade",
    "WebSockets",
    "Worker",
    "__version__",
    "broadcast",
    "build",
    "connect",
    "pinger",
]


def __getattr__(name: str) -> Any:
    # The worker needs gunicorn, an extra, so it is imported when it is asked for.
    if name == "Worker":
        from geventws.worker import Worker

        return Worker
    raise AttributeError(f"module 'geventws' has no attribute {name!r}")
