"""``geventwebsocket.resource``: applications as classes, and their choice by path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from geventws.compat.geventwebsocket.exceptions import WebSocketError
from geventws.compat.geventwebsocket.protocols.base import BaseProtocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from geventws.compat.geventwebsocket.websocket import WebSocket

__all__ = ["Resource", "WebSocketApplication"]


class WebSocketApplication:
    """What a class of callbacks makes of one WebSocket, ``ws``."""

    protocol_class: Any = BaseProtocol

    def __init__(self, ws: WebSocket) -> None:
        self.protocol = self.protocol_class(self)
        self.ws = ws

    def handle(self) -> None:
        """Calls the callbacks until the WebSocket is over; blocks."""
        self.protocol.on_open()
        try:
            while True:
                self.protocol.on_message(self.ws.receive())
        except WebSocketError:
            # Of another's WebSocket, in a broadcast, it would be an error of the application.
            if not self.ws.closed:
                raise
            self.protocol.on_close()

    def on_open(self, *arguments: Any, **keywords: Any) -> None:
        """The WebSocket is open."""

    def on_close(self, *arguments: Any, **keywords: Any) -> None:
        """The WebSocket is over. Called once, with a reason that is always None: ``ws.close_reason`` tells it."""

    def on_message(self, message: Any, *arguments: Any, **keywords: Any) -> None:
        """A message has come, and is sent back; at the end there comes None."""
        self.ws.send(message, **keywords)

    @classmethod
    def protocol_name(cls) -> str:
        """The subprotocol that clients get where they offer it; empty for none."""
        return str(cls.protocol_class.PROTOCOL_NAME)


class Resource:
    """A WSGI application that chooses another one by path.

    ``apps`` are pairs of a regular expression, which has to match the beginning of the path, and an application: a
    class derived from `WebSocketApplication` for WebSockets, or a WSGI application for all else. A dict of them is
    taken in its order. The first that fits is called; what is added to the list or the dict later counts too.
    """

    def __init__(self, apps: Mapping[str, Any] | list[tuple[str, Any]] | None = None) -> None:
        #: The pairs: the list that was given itself, or a view of the dict.
        self.apps: Any = apps.items() if isinstance(apps, Mapping) else [] if apps is None else apps

    def _is_websocket_app(self, app: Any) -> bool:
        """Tells WebSocket applications from WSGI applications; for subclasses to override."""
        return isinstance(app, type) and issubclass(app, WebSocketApplication)

    def _app_by_path(self, environ_path: str, is_websocket_request: bool) -> Any:
        for path, app in self.apps:
            if re.match(path, environ_path) and self._is_websocket_app(app) == is_websocket_request:
                return app
        return None

    def app_protocol(self, path: str) -> str:
        """The subprotocol of the WebSocket application at ``path``; empty for none."""
        app = self._app_by_path(path, True)
        return str(app.protocol_name()) if hasattr(app, "protocol_name") else ""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_websocket = "wsgi.websocket" in environ
        app = self._app_by_path(environ["PATH_INFO"], is_websocket)
        if app is None:
            # In place of an exception, which is a 500 and a traceback for each client that asks for a wrong path.
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There is nothing at this path.\n"]
        if not is_websocket:
            return app(environ, start_response)  # type: ignore[no-any-return]
        ws = environ["wsgi.websocket"]
        application = app(ws)
        # For one whose __init__ does not call that of its base.
        application.ws = ws
        application.handle()
        return []
