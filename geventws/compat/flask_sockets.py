"""Flask-Sockets on geventws: WebSocket routes beside a Flask app's own, whose views take the WebSocket first.

Runs on every server of geventws. Its views get the WebSocket of gevent-websocket, already open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule

from geventws.compat.geventwebsocket.middleware import WEBSOCKET, ConnectionHandler, OfferEnviron, ServerState, offers
from geventws.compat.geventwebsocket.middleware import serve as serve_offer
from geventws.compat.matching import take_either
from geventws.errors import UsageError
from geventws.routing import RULE_OPTIONS
from geventws.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Blueprint, Flask
    from typing_extensions import Unpack

    from geventws.settings import SettingsDict

__all__ = ["SocketMiddleware", "Sockets"]

View = TypeVar("View", bound=Callable[..., Any])


class Sockets:
    """WebSocket routes for a Flask app.

    ``Sockets(app)``, or ``Sockets()`` and ``init_app(app)`` later. The settings are those of `geventws.Settings`.
    """

    def __init__(self, app: Flask | None = None, **settings: Unpack[SettingsDict]) -> None:
        #: The rules; converters may be added to it before routes that use them. No client of a WebSocket follows a
        #: redirect to a rule with the same defaults.
        self.url_map = Map(redirect_defaults=False)
        #: The blueprints by name.
        self.blueprints: dict[str, Any] = {}
        self.settings = Settings().override(**settings)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Puts the routes in front of ``app``, those added later too."""
        app.wsgi_app = SocketMiddleware(app.wsgi_app, app, self)  # type: ignore[method-assign]

    def route(self, rule: str, **options: Any) -> Callable[[View], View]:
        """Decorates the view of the WebSockets at ``rule``; it is called with the WebSocket and the rule's values.

        Of ``options`` those of Werkzeug's Rule count.
        """

        def decorate(view: View) -> View:
            self.add_url_rule(rule, options.pop("endpoint", None), view, **options)
            return view

        return decorate

    def add_url_rule(self, rule: str, endpoint: str | None, f: Callable[..., Any], **options: Any) -> None:
        """Adds a route; ``endpoint`` does not matter."""
        taken = {name: value for name, value in options.items() if name in RULE_OPTIONS and value is not None}
        self.url_map.add(Rule(rule, endpoint=f, websocket=True, **taken))

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Adds the routes of a Flask blueprint, as WebSocket routes; ``options`` are those of Flask.

        Raises ``UsageError`` where another one has its name. Hooks and error handlers of the blueprint don't count.
        """
        name = str(options.get("name", blueprint.name))
        first = name not in self.blueprints
        if self.blueprints.setdefault(name, blueprint) is not blueprint:
            raise UsageError(f"a blueprint {name!r} is registered already: give this one another by name=")
        # What Flask's own register does with the routes; the rest of it needs an app.
        state = blueprint.make_setup_state(self, options, first)
        for deferred in blueprint.deferred_functions:
            deferred(state)


class SocketMiddleware:
    """Stands before ``wsgi_app``, the WSGI application of a Flask ``app``, and serves the routes of ``socket``.

    What offers no WebSocket, or has no route, goes on to ``wsgi_app``.
    """

    def __init__(self, wsgi_app: WSGIApplication, app: Flask, socket: Sockets) -> None:
        self.wsgi_app = wsgi_app
        self.app = app
        self.ws = socket
        self._server = ServerState(app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not offers(environ):
            return self.wsgi_app(environ, start_response)
        try:
            view, values = take_either(self.ws.url_map.bind_to_environ(environ)).match()
        except NotFound:
            return self.wsgi_app(environ, start_response)
        except HTTPException as error:
            return error(environ, start_response)

        def run(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            ws = environ[WEBSOCKET]
            with self.app.request_context(environ):
                view(ws, **values)
            return []

        run.__qualname__ = getattr(view, "__qualname__", type(view).__qualname__)
        # The server may have one with its own list of clients.
        handler = environ.offer.handler if isinstance(environ, OfferEnviron) else None
        handler = handler or ConnectionHandler(self._server, environ)
        return serve_offer(run, environ, start_response, handler=handler, settings=self.ws.settings)


if TYPE_CHECKING:
    from geventws.compat.worker import Worker

    worker = Worker


def __getattr__(name: str) -> Any:
    # The worker needs gunicorn, an extra, so it is imported when it is asked for.
    if name in ("Worker", "worker"):
        from geventws.compat.worker import Worker

        return Worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
