"""Flask-Sockets on geventws: WebSocket routes beside a Flask app's own, whose views take the WebSocket first.

Runs on every server of geventws. Its views get the WebSocket of gevent-websocket, already open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.local import LocalProxy
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
        #: The blueprints by name; nested ones as Flask names them.
        self.blueprints: dict[str, Any] = {}
        self._registered: list[tuple[Blueprint, dict[str, Any]]] = []
        self._apps: list[Flask] = []
        self.settings = Settings().override(**settings)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Puts the routes in front of ``app``, those added later too."""
        app.wsgi_app = SocketMiddleware(app.wsgi_app, app, self)  # type: ignore[method-assign]
        self._apps.append(app)
        self._set_up(app, 0)

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
        """Adds the routes of a Flask blueprint and of those nested in it, as WebSocket routes; ``options`` are Flask's.

        What a blueprint does to its app, by ``before_app_request``, ``app_errorhandler``, ``record`` and so on, is done
        to the Flask app; without one yet, all is done by `init_app`. Hooks and error handlers of the blueprint itself,
        its static files, templates and commands don't count.

        Raises ``UsageError`` where another one has its name.
        """
        family = list(_with_nested(blueprint, options))
        for name, each, _ in family:
            if self.blueprints.get(name, each) is not each:
                raise UsageError(f"a blueprint {name!r} is registered already: give this one another by name=")
        start = len(self._registered)
        for name, each, its_options in family:
            self.blueprints[name] = each
            self._registered.append((each, its_options))
        for app in self._apps:
            self._set_up(app, start)

    def _set_up(self, app: Flask, start: int) -> None:
        """Does what Flask's own register does, with ``app`` and the blueprints from number ``start`` on."""
        # The routes are of all apps.
        add_rule = self.add_url_rule if app is self._apps[0] else _add_nothing
        known = list(app.blueprints.values()) + [blueprint for blueprint, _ in self._registered[:start]]
        for blueprint, options in self._registered[start:]:
            first = not any(blueprint is other for other in known)
            known.append(blueprint)
            as_seen: Any = _BlueprintsApp(app, add_rule)
            state = blueprint.make_setup_state(as_seen, options, first)
            for deferred in blueprint.deferred_functions:
                deferred(state)


class _BlueprintsApp(LocalProxy[Any]):
    """The Flask app, as a blueprint sees it that is registered: its rules are those of WebSockets."""

    __slots__ = ("_add_rule",)

    _add_rule: Callable[..., None]

    def __init__(self, app: Flask, add_rule: Callable[..., None]) -> None:
        super().__init__(lambda: app)
        object.__setattr__(self, "_add_rule", add_rule)

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        view_func: Callable[..., Any] | None = None,
        provide_automatic_options: bool | None = None,
        **options: Any,
    ) -> None:
        """As Flask's."""
        self._add_rule(rule, endpoint, view_func, **options)


def _add_nothing(*arguments: Any, **options: Any) -> None:
    """Adds no rule."""


def _with_nested(blueprint: Any, options: Mapping[str, Any]) -> Iterator[tuple[str, Blueprint, dict[str, Any]]]:
    """A blueprint and those nested in it, each with its full name and its options, in Flask's order."""
    name = f"{options.get('name_prefix', '')}.{options.get('name', blueprint.name)}".lstrip(".")
    yield name, blueprint, dict(options)
    prefix = _first_given(options.get("url_prefix"), blueprint.url_prefix)
    subdomain = _first_given(options.get("subdomain"), blueprint.subdomain)
    for nested, nested_options in blueprint._blueprints:
        own_prefix = _first_given(nested_options.get("url_prefix"), nested.url_prefix)
        own_subdomain = _first_given(nested_options.get("subdomain"), nested.subdomain)
        if prefix is not None and own_prefix is not None:
            own_prefix = f"{prefix.rstrip('/')}/{own_prefix.lstrip('/')}"
        if subdomain is not None and own_subdomain is not None:
            own_subdomain = f"{own_subdomain}.{subdomain}"
        inherited = {
            "name_prefix": name,
            "url_prefix": _first_given(own_prefix, prefix),
            "subdomain": _first_given(own_subdomain, subdomain),
        }
        yield from _with_nested(nested, {**nested_options, **inherited})


def _first_given(own: str | None, inherited: str | None) -> str | None:
    return inherited if own is None else own


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
