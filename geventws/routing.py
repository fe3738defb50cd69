"""Routes, blueprints, and the WSGI app that serves them without a framework."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, RequestRedirect, Rule
from werkzeug.wrappers import Response

from geventws.call import (
    DefaultWebSocketServerSession,
    Handler,
    ServerCall,
    WebSocketServerSession,
    call_handler,
    choose,
    http_response,
    refusal,
)
from geventws.errors import HandshakeError, UsageError
from geventws.protocol.handshake import is_upgrade
from geventws.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.wrappers import Request

__all__ = ["Blueprint", "Route", "RouteTable", "WebSocketUpgrade", "WebSockets"]

F = TypeVar("F", bound=Handler)

#: The options of a route that go to Werkzeug's Rule.
RULE_OPTIONS = frozenset({"defaults", "subdomain", "host", "strict_slashes", "merge_slashes", "build_only"})


class Route:
    """A handler, the rule it answers, and how its sessions are made."""

    __slots__ = ("before", "endpoint", "handler", "negotiate_extensions", "options", "protocols", "raw", "rule", "rule_options")

    def __init__(
        self,
        rule: str,
        handler: Handler,
        *,
        endpoint: str | None = None,
        protocol: str | Sequence[str] | None = None,
        raw: bool = False,
        negotiate_extensions: bool = False,
        before: Sequence[Handler] = (),
        **options: Any,
    ) -> None:
        if not callable(handler):
            raise TypeError(f"a handler is a function of a session, not {type(handler).__name__}")
        if negotiate_extensions and not raw:
            raise ValueError("negotiate_extensions is for raw routes; default sessions always negotiate theirs")
        self.rule = rule
        self.handler = handler
        self.endpoint = endpoint or handler.__name__
        self.protocols = _protocols(protocol)
        self.raw = raw
        self.negotiate_extensions = negotiate_extensions
        self.before = before
        self.rule_options = {name: options.pop(name) for name in RULE_OPTIONS & options.keys()}
        # Bad options are told where they stand, not at the first request.
        Settings().override(**options)
        self.options = options

    def settings(self, base: Settings) -> Settings:
        """``base`` with this route's options; a raw route has no extensions unless it asks for them."""
        settings = base.override(**self.options)
        return settings if not self.raw or self.negotiate_extensions else settings.override(extensions=())


def _protocols(protocol: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if protocol is None:
        return None
    protocols = (protocol,) if isinstance(protocol, str) else tuple(protocol)
    for name in protocols:
        if not isinstance(name, str) or not name or not all(c.isascii() and c.isprintable() and c not in '()<>@,;:\\"/[]?={} ' for c in name):
            raise ValueError(f"protocol must be a token or a list of tokens (RFC 6455 4.1), not {protocol!r}")
    if not protocols:
        raise ValueError("protocol must name a subprotocol, or be None for any client")
    return protocols


class RouteTable:
    """What a blueprint and an app have in common: routes are added to them, by decorator or by call."""

    def route(
        self,
        rule: str,
        *,
        protocol: str | Sequence[str] | None = None,
        raw: bool = False,
        negotiate_extensions: bool = False,
        endpoint: str | None = None,
        **options: Any,
    ) -> Callable[[F], F]:
        """Decorates the handler of the WebSockets at ``rule``, in Werkzeug's (Flask's) syntax.

        ``protocol`` is the subprotocol that it speaks, or a list of them in order of preference, None for any client; several routes may share a
        rule with different ones. ``raw`` gives the handler frames instead of messages; ``negotiate_extensions`` lets a raw route use the app's
        extensions. ``endpoint`` is the name for ``url_for``, the function's by default. Further options are settings that this route overrides,
        and Werkzeug's ``defaults``, ``subdomain``, ``host`` and ``strict_slashes``. The handler is called with the session and the rule's values.
        """

        def decorate(handler: F) -> F:
            self.add_route(
                Route(
                    rule,
                    handler,
                    protocol=protocol,
                    raw=raw,
                    negotiate_extensions=negotiate_extensions,
                    endpoint=endpoint,
                    **options,
                )
            )
            return handler

        return decorate

    def add_route(self, route: Route) -> None:
        """Adds a route."""
        raise NotImplementedError


class Blueprint(RouteTable):
    """Routes that are registered together, on a Flask app with ``app.register_blueprint`` or on a ``WebSockets``.

    ``name`` precedes the endpoints, ``import_name`` is the module's ``__name__``, ``url_prefix`` precedes the rules.
    """

    def __init__(
        self, name: str, import_name: str = "__main__", *, url_prefix: str | None = None, subdomain: str | None = None
    ) -> None:
        if not name or "." in name:
            raise ValueError(f"a blueprint's name is not empty and has no dot, which stands before the endpoint: {name!r}")
        self.name = name
        self.import_name = import_name
        self.url_prefix = url_prefix
        self.subdomain = subdomain
        self.routes: list[Route] = []
        self._before: list[Handler] = []
        self._registered = False

    def add_route(self, route: Route) -> None:
        """Adds a route; raises ``UsageError`` after the blueprint was registered, or for a second one of the same endpoint."""
        if self._registered:
            raise UsageError(f"the blueprint {self.name!r} is registered already: add {route.rule!r} before that")
        if any(other.endpoint == route.endpoint for other in self.routes):
            raise UsageError(f"the blueprint {self.name!r} has a route {route.endpoint!r} already: give this one an endpoint=")
        route.before = self._before
        self.routes.append(route)

    def before_request(self, function: F) -> F:
        """Decorates a function that runs before each handler of this blueprint, while all is still HTTP.

        It takes the session or nothing. What it raises or returns, unless None, is the client's answer in place of a WebSocket.
        """
        takes_session = len(inspect.signature(function).parameters) > 0
        self._before.append(function if takes_session else lambda session: function())
        return function

    def register(self, app: Any, options: Mapping[str, Any]) -> None:
        """Called by Flask's ``register_blueprint``; the ``WebSockets`` extension of ``app`` does the rest."""
        extension = getattr(app, "extensions", {}).get("geventws")
        if extension is None:
            raise UsageError(
                f"the blueprint {self.name!r} needs the extension first: "
                "`from geventws.flask import WebSockets` and `WebSockets(app)` before app.register_blueprint(...)"
            )
        extension.register_blueprint(self, **options)

    def registered(self) -> None:
        """Called by an app that took the routes."""
        self._registered = True


def prefixed(prefix: str | None, rule: str) -> str:
    """``rule`` behind ``prefix``, with one slash between."""
    if not prefix:
        return rule
    return f"{prefix.rstrip('/')}/{rule.lstrip('/')}" if rule else prefix


def respond(
    environ: WSGIEnvironment,
    routes: Sequence[Route],
    values: Mapping[str, Any],
    settings: Callable[[Route], Settings],
    application: Any,
    request: Request | None = None,
    extra_headers: Callable[[], Sequence[tuple[str, str]]] | None = None,
) -> Any:
    """Answers a request on one of ``routes``, which share a rule: gives the HTTP answer, or None after a WebSocket.

    Raises ``HandshakeError``, and before the 101 what the handler raises.
    """
    # Protocols choose the route and the route's settings choose the origins, so the request is read before.
    call = ServerCall(environ, application, settings(routes[0]), request, extra_headers)
    route, protocol = choose(routes, call.offered_protocols)
    if route is not routes[0]:
        call = ServerCall(environ, application, settings(route), request, extra_headers)
    call.protocol = protocol
    session_class = WebSocketServerSession if route.raw else DefaultWebSocketServerSession
    session = session_class(settings(route), call)
    for function in route.before:
        answer = function(session)
        if answer is not None:
            return answer
    return call_handler(session, route.handler, values, route.endpoint)


def finish(answer: Any, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Gives a WSGI server the HTTP answer, or what it must see after a WebSocket: nothing."""
    if answer is None:
        start_response("101 Switching Protocols", [])
        return []
    return http_response(answer)(environ, start_response)


class WebSockets(RouteTable):
    """A WSGI app of WebSocket routes; what is no WebSocket request on one of them goes to ``app``.

    ``app`` is the WSGI app behind this one, None for none: then unknown paths get 404, and a route without a WebSocket client 426. The
    settings are those of `Settings`. Raises ``ValueError`` that names the option for a bad one.
    """

    def __init__(self, app: WSGIApplication | None = None, **settings: Any) -> None:
        self.app = app
        self.settings = Settings().override(**settings)
        self._map = Map()
        self._routes: dict[str, Route] = {}
        self._settings: dict[Route, Settings] = {}
        self._by_rule: dict[Any, list[Route]] = {}
        self._blueprints: set[str] = set()

    def add_route(self, route: Route) -> None:
        """Adds a route; raises ``UsageError`` for a second one of the same endpoint."""
        self._add(route, route.endpoint, route.rule)

    def _add(self, route: Route, endpoint: str, rule: str, subdomain: str | None = None) -> None:
        if endpoint in self._routes:
            raise UsageError(f"there is a route {endpoint!r} already: give this one an endpoint=")
        options = dict(route.rule_options)
        if subdomain is not None:
            options.setdefault("subdomain", subdomain)
        added = Rule(rule, endpoint=endpoint, websocket=True, **options)
        self._map.add(added)
        self._routes[endpoint] = route
        self._settings[route] = route.settings(self.settings)
        self._by_rule.setdefault((added.rule, added.subdomain, added.host), []).append(route)

    def register_blueprint(self, blueprint: Blueprint, url_prefix: str | None = None, name: str | None = None) -> None:
        """Adds a blueprint's routes, behind ``url_prefix`` in place of the blueprint's own, under ``name`` in place of its name.

        Raises ``UsageError`` where that name is registered already.
        """
        name = name or blueprint.name
        if name in self._blueprints:
            raise UsageError(f"a blueprint {name!r} is registered already: give this one another name=")
        self._blueprints.add(name)
        prefix = blueprint.url_prefix if url_prefix is None else url_prefix
        for route in blueprint.routes:
            self._add(route, f"{name}.{route.endpoint}", prefixed(prefix, route.rule), blueprint.subdomain)
        blueprint.registered()

    def url_for(self, endpoint: str, **values: Any) -> str:
        """The path of a route: ``url_for("chat.echo", name="ada")``."""
        return self._map.bind("").build(endpoint, values)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self.app is not None and not is_upgrade(environ):
            return self.app(environ, start_response)
        try:
            # Matched as a WebSocket whatever the headers say, so that an incomplete handshake is told what it lacks.
            rule, values = self._map.bind_to_environ(environ).match(websocket=True, return_rule=True)
            routes = self._by_rule[rule.rule, rule.subdomain, rule.host]
            answer = respond(environ, routes, values, self._settings.__getitem__, self)
        except NotFound as error:
            answer = error if self.app is None else self.app
        except RequestRedirect as redirect:
            answer = redirect
        except HTTPException as error:
            answer = error
        except HandshakeError as error:
            answer = refusal(error)
        return finish(answer, environ, start_response)


class WebSocketUpgrade:
    """A WSGI application that answers a WebSocket request by a raw session: call it, or return it from a view.

    ``handle`` is called with the session. ``protocol`` is the subprotocol that it speaks, or a list of them, None for any client. ``install_extensions``
    negotiates the ``extensions`` of the settings. In Flask the view's rule needs ``websocket=True``.
    """

    def __init__(
        self,
        handle: Handler,
        protocol: str | Sequence[str] | None = None,
        install_extensions: bool = False,
        **settings: Any,
    ) -> None:
        self._route = Route("", handle, protocol=protocol, raw=True, negotiate_extensions=install_extensions, endpoint=_name(handle))
        self._settings = self._route.settings(Settings().override(**settings))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer: Any
        try:
            answer = respond(environ, [self._route], {}, lambda route: self._settings, self)
        except HTTPException as error:
            answer = error
        except HandshakeError as error:
            answer = refusal(error)
        return finish(answer, environ, start_response)


def _name(handle: Handler) -> str:
    return str(getattr(handle, "__name__", type(handle).__name__))
