"""``gunicorn -k geventws.compat.Worker``: the worker under which apps of older libraries run unchanged."""

from __future__ import annotations

from geventws.compat.aliases import install
from geventws.compat.geventwebsocket.gunicorn.workers import GeventWebSocketWorker

__all__ = ["Worker"]


class Worker(GeventWebSocketWorker):
    """`geventws.Worker`, with ``environ["wsgi.websocket"]`` and with the old names of what geventws stands in for."""

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn before the application is loaded, also where the master does that."""
        install()

    def load_wsgi(self) -> None:
        """Loads the application."""
        install()
        super().load_wsgi()
