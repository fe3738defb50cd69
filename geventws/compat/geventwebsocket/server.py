"""``geventwebsocket.server``: the server of gevent-websocket, on geventws' own."""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from typing import Any

from geventws.compat.geventwebsocket.handler import WebSocketHandler
from geventws.compat.geventwebsocket.logging import create_logger
from geventws.compat.geventwebsocket.middleware import Clients
from geventws.server import WSGIServer
from geventws.settings import Settings

__all__ = ["WebSocketServer"]


class WebSocketServer(WSGIServer):
    """A `geventws.WSGIServer` that gives its application ``environ["wsgi.websocket"]``.

    With ``debug`` its logger writes to stderr. ``pre_start_hook`` is called with the handler of each request; where it
    gives something true the request is plain HTTP, also one that offers a WebSocket. Further arguments are those of the
    server, and settings of `geventws.Settings` for its WebSockets.
    """

    handler_class: Any = WebSocketHandler
    debug_log_format = "%(levelname)s in %(module)s [%(pathname)s:%(lineno)d]: %(message)s"

    def __init__(
        self,
        listener: Any,
        application: Any = None,
        *arguments: Any,
        debug: bool = False,
        pre_start_hook: Callable[[WebSocketHandler], object] | None = None,
        **keywords: Any,
    ) -> None:
        settings = {name: keywords.pop(name) for name in Settings.names() if name in keywords}
        self.websocket_settings = Settings().override(**settings)
        self.debug = debug
        self.pre_start_hook = pre_start_hook
        self.clients = Clients()
        self.logger: Logger = create_logger("geventwebsocket.server", debug, self.debug_log_format)
        super().__init__(listener, application, *arguments, **keywords)
