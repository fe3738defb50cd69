"""``geventwebsocket.protocols.base``: the protocol that passes everything on to its application."""

from __future__ import annotations

from typing import Any

__all__ = ["BaseProtocol"]


class BaseProtocol:
    """Passes what happens on a WebSocket on to ``app``, a `WebSocketApplication`; subclasses translate."""

    #: The subprotocol that clients get where they offer it; empty for none.
    PROTOCOL_NAME = ""

    def __init__(self, app: Any) -> None:
        self._app = app

    def on_open(self) -> None:
        """The WebSocket is open."""
        self.app.on_open()

    def on_message(self, message: Any) -> None:
        """A message has come; None where there will be no more."""
        self.app.on_message(message)

    def on_close(self, reason: Any = None) -> None:
        """The WebSocket is over."""
        self.app.on_close(reason)

    @property
    def app(self) -> Any:
        """The application; raises ``RuntimeError`` where there is none."""
        if not self._app:
            raise RuntimeError("this protocol has no application: make it with one, as in BaseProtocol(app)")
        return self._app

    @property
    def handler(self) -> Any:
        """The handler of the connection; None before the application has its WebSocket."""
        ws = getattr(self.app, "ws", None)
        return None if ws is None else ws.handler

    @property
    def server(self) -> Any:
        """The server; None before the application has its WebSocket."""
        handler = self.handler
        return None if handler is None else handler.server
