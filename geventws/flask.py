"""The Flask extension: WebSocket routes as rules of the app's own URL map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import WebsocketMismatch

from geventws.call import refusal
from geventws.errors import HandshakeError, UsageError
from geventws.protocol.handshake import is_upgrade
from geventws.routing import Blueprint, Route, RouteTable, respond
from geventws.settings import Settings

__all__ = ["WebSockets"]

#: How an app's configuration names a setting: WEBSOCKETS_PING_INTERVAL and so on.
CONFIG_PREFIX = "WEBSOCKETS_"


class WebSockets(RouteTable):
    """WebSocket routes in a Flask app.

    ``WebSockets(app, ping_interval=20)``, or ``WebSockets()`` and ``init_app(app)`` later. The settings are those of `geventws.Settings`; the app's
    configuration can name them too, as ``WEBSOCKETS_PING_INTERVAL``, and an argument here goes before it. Raises ``ValueError`` for a bad one.

    The handler runs within Flask's own call: `before_request` functions, decorators and ``abort`` answer in HTTP before the 101, ``flask.session``
    and ``g`` are at hand, and the request and app contexts live as long as the handler. What a handler changes in ``flask.session``
    before the session's first use goes out with the 101.
    """

    def __init__(self, app: flask.Flask | None = None, **settings: Any) -> None:
        self._arguments = settings
        Settings().override(**settings)
        self._waiting: list[Route] = []
        self._app: flask.Flask | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Installs the extension in ``app``. Raises ``UsageError`` for an app that has it already."""
        if "geventws" in app.extensions:
            raise UsageError("this app has the WebSockets extension already: create it once")
        self._state = app.extensions["geventws"] = _AppState(app, self._arguments)
        app.register_error_handler(WebsocketMismatch, _mismatch)
        self._app = app
        for route in self._waiting:
            self._state.add(route)
        self._waiting.clear()

    def add_route(self, route: Route) -> None:
        """Adds a route to the app, or keeps it for `init_app`."""
        if self._app is None:
            self._waiting.append(route)
        else:
            self._state.add(route)


class _AppState:
    """The routes of one app, by the endpoints that Flask knows them under."""

    def __init__(self, app: flask.Flask, arguments: dict[str, Any]) -> None:
        self.app = app
        configured = {
            name: app.config[CONFIG_PREFIX + name.upper()]
            for name in Settings.names()
            if CONFIG_PREFIX + name.upper() in app.config
        }
        self.settings = Settings().override(**(configured | arguments))
        self.routes: dict[str, Route] = {}
        self.route_settings: dict[Route, Settings] = {}
        self.sharing: dict[Any, list[Route]] = {}

    def add(self, route: Route) -> None:
        """Adds a route of the app itself."""
        self._check(route.endpoint)
        self.app.add_url_rule(route.rule, route.endpoint, self._view, websocket=True, **_rule_options(route))
        self._remember(route.endpoint, route)

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Registers ``blueprint`` as a Flask blueprint of the same name."""
        converted = flask.Blueprint(
            blueprint.name, blueprint.import_name, url_prefix=blueprint.url_prefix, subdomain=blueprint.subdomain
        )
        for route in blueprint.routes:
            converted.add_url_rule(route.rule, route.endpoint, self._view, websocket=True, **_rule_options(route))
        converted.register(self.app, options)
        prefix = ".".join(part for part in (options.get("name_prefix", ""), options.get("name", blueprint.name)) if part)
        for route in blueprint.routes:
            self._remember(f"{prefix}.{route.endpoint}", route)
        blueprint.registered()

    def _check(self, endpoint: str) -> None:
        if endpoint in self.app.view_functions:
            raise UsageError(f"the app has an endpoint {endpoint!r} already: give this route an endpoint=")

    def _remember(self, endpoint: str, route: Route) -> None:
        self.routes[endpoint] = route
        self.route_settings[route] = route.settings(self.settings)
        self.sharing.clear()

    def _sharing_rule(self, rule: Any) -> list[Route]:
        """The routes that share ``rule``'s path, in the order in which they were added."""
        key = (rule.rule, rule.subdomain, rule.host)
        routes = self.sharing.get(key)
        if routes is None:
            routes = self.sharing[key] = [
                self.routes[other.endpoint]
                for other in self.app.url_map.iter_rules()
                if other.endpoint in self.routes and (other.rule, other.subdomain, other.host) == key
            ]
        return routes

    def _view(self, **values: Any) -> Any:
        """The view of every route: Flask has matched the rule and run what comes before a view."""
        request = flask.request
        try:
            answer = respond(
                request.environ,
                self._sharing_rule(request.url_rule),
                values,
                self.route_settings.__getitem__,
                self.app,
                request._get_current_object(),  # type: ignore[attr-defined]
                self._session_cookie,
            )
        except HandshakeError as error:
            return refusal(error)
        if answer is None:
            # The server lets nothing of this onto the wire any more.
            return self.app.response_class(status=200)
        return answer

    def _session_cookie(self) -> Sequence[tuple[str, str]]:
        """The Set-Cookie header of a ``flask.session`` that was changed before the 101."""
        if not flask.session.modified:
            return ()
        response = self.app.response_class()
        self.app.session_interface.save_session(self.app, flask.session._get_current_object(), response)  # type: ignore[attr-defined]
        return [("Set-Cookie", value) for value in response.headers.getlist("Set-Cookie")]


def _rule_options(route: Route) -> dict[str, Any]:
    return {"methods": ["GET"], **route.rule_options}


def _mismatch(error: HTTPException) -> Any:
    """An HTTP request on a WebSocket rule, or the reverse."""
    if is_upgrade(flask.request.environ):
        return refusal(HandshakeError(400, "There is no WebSocket at this path: it is an HTTP page."))
    return refusal(
        HandshakeError(426, "This is a WebSocket route: ask for it with a WebSocket client.", [("Upgrade", "websocket")])
    )
