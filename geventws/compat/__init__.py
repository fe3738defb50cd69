"""Apps of older libraries on geventws: gevent-websocket, Flask-Sockets and flask-sock, by their own APIs.

``gunicorn -k geventws.compat.Worker`` runs such an app unchanged. Elsewhere it calls `install` before it imports them,
or imports them from here: ``from geventws.compat.flask_sockets import Sockets``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geventws.compat.aliases import install

if TYPE_CHECKING:
    from geventws.compat.worker import Worker

__all__ = ["Worker", "install"]


def __getattr__(name: str) -> Any:
    # The worker needs gunicorn, an extra, so it is imported when it is asked for.
    if name == "Worker":
        from geventws.compat.worker import Worker

        return Worker
    raise AttributeError(f"module 'geventws.compat' has no attribute {name!r}")
