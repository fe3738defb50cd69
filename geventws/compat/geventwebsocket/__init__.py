"""gevent-websocket 0.10.1's modules and names on geventws; `geventws.compat.install` gives them their old names too."""

from __future__ import annotations

from geventws.compat.geventwebsocket.exceptions import WebSocketError
from geventws.compat.geventwebsocket.resource import Resource, WebSocketApplication
from geventws.compat.geventwebsocket.server import WebSocketServer
from geventws.compat.geventwebsocket.utils import VERSION, get_version

__all__ = ["VERSION", "Resource", "WebSocketApplication", "WebSocketError", "WebSocketServer", "get_version"]
