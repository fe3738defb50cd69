"""``geventwebsocket.gunicorn.workers``: a gunicorn worker that gives apps ``environ["wsgi.websocket"]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geventws.compat.geventwebsocket.middleware import ServerState, WebSocketMiddleware
from geventws.upgrade import flatten
from geventws.worker import Worker

__all__ = ["GeventWebSocketWorker"]


class GeventWebSocketWorker(Worker):
    """`geventws.Worker` for apps that take their WebSockets from ``environ["wsgi.websocket"]``."""

    #: Settings of `geventws.Settings` for these WebSockets, as in ``{"origins": None}``.
    websocket_settings: Mapping[str, Any] = {}

    def load_wsgi(self) -> None:
        """Loads the application, which gets offers with a ``wsgi.websocket``, and all else as ever."""
        super().load_wsgi()
        application = self.app.wsgi()
        self._middleware = WebSocketMiddleware(
            flatten(application), ServerState(application), **dict(self.websocket_settings)
        )

    def application_for_offer(self) -> Any:
        """The application that an offer gets: a stand-in where no more WebSockets may be opened."""
        application = super().application_for_offer()
        return self._middleware if application is self._application else application
