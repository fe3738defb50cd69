"""``geventwebsocket.gunicorn.workers``: a gunicorn worker that gives apps ``environ["wsgi.websocket"]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geventws.compat.geventwebsocket.middleware import ServerState, WebSocketMiddleware
from geventws.upgrade import flatten
from geventws.worker import Worker

__all__ = ["GeventWebSocketWorker"]


#: Whose handlers do nothing of an app's own.
_LIBRARIES = frozenset({"builtins", "gevent", "geventws", "gunicorn"})


class GeventWebSocketWorker(Worker):
    """`geventws.Worker` for apps that take their WebSockets from ``environ["wsgi.websocket"]``."""

    #: Settings of `geventws.Settings` for these WebSockets, as in ``{"origins": None}``.
    websocket_settings: Mapping[str, Any] = {}

    def load_wsgi(self) -> None:
        """Loads the application, which gets offers with a ``wsgi.websocket``, and all else as ever."""
        super().load_wsgi()
        self._tell_unused(self.wsgi_handler)
        application = self.app.wsgi()
        self._middleware = WebSocketMiddleware(
            flatten(application), ServerState(application), **dict(self.websocket_settings)
        )

    def _tell_unused(self, handler: Any) -> None:
        """Warns of what a ``wsgi_handler`` would do: HTTP is gunicorn's here, and nothing makes one."""
        names = {
            name
            for each in getattr(handler, "__mro__", ())
            if each.__module__.partition(".")[0] not in _LIBRARIES
            for name, value in vars(each).items()
            if callable(value)
        }
        # Its log of requests is in every copy of Flask-Sockets.
        names -= {"log_request"}
        if names:
            self.log.warning(
                "wsgi_handler is not used, %s: what %s does belongs into the application or a middleware around it",
                handler.__qualname__,
                " and ".join(f"{name}()" for name in sorted(names)),
            )

    def application_for_offer(self) -> Any:
        """The application that an offer gets: a stand-in where no more WebSockets may be opened."""
        application = super().application_for_offer()
        return self._middleware if application is self._application else application
