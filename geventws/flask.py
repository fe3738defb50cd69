"""The Flask extension: WebSocket routes as rules of the app's own URL map."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from werkzeug.routing import WebsocketMismatch

from geventws.arguments import missing_extra
from geventws.call import CALL_KEY, Observers, ServerCall, log, refusal, upgrade_required
from geventws.errors import HandshakeError, UsageError
from geventws.protocol.handshake import is_upgrade, read_handshake
from geventws.routing import Blueprint, Route, RouteIndex, RouteTable, endpoint_taken, name_taken, respond
from geventws.settings import Settings, unknown_option
from geventws.upgrade import KEY

try:
    import flask
    from flask.sessions import SecureCookieSession
except ModuleNotFoundError as error:
    raise missing_extra(error, "flask", "geventws.flask", "flask") from None

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment
    from typing_extensions import Unpack

    from geventws.call import Handler
    from geventws.settings import SettingsDict

__all__ = ["FlaskCall", "WebSockets", "configured"]

#: How an app's configuration names a setting: WEBSOCKETS_PING_INTERVAL and so on.
CONFIG_PREFIX = "WEBSOCKETS_"


class WebSockets(RouteTable):
    """WebSocket routes in a Flask app.

    ``WebSockets(app, ping_interval=20)``, or ``WebSockets()`` and ``init_app(app)`` later, on any number of apps.
    The settings are those of `geventws.Settings`. The app's configuration can hold them too, as
    ``WEBSOCKETS_PING_INTERVAL``: it is read when the extension is installed, and an argument here wins over it. Raises
    ``ValueError`` that names the option for a bad one.

    The handler runs within Flask's own call: `before_request` functions, decorators and ``abort`` answer in HTTP before
    the 101, ``flask.session`` and ``g`` can be used, and the request and app contexts live as long as the handler.
    Changes to ``flask.session`` before the 101 go out with it. Flask treats what a handler raises after the 101 as an
    unhandled exception: it is logged, sent as the signal ``got_request_exception``, and given to teardown functions.
    """

    def __init__(self, app: flask.Flask | None = None, **settings: Unpack[SettingsDict]) -> None:
        super().__init__()
        Settings().override(**settings)
        self._arguments = settings
        self._routes: list[Route] = []
        # Which live as long as their apps, which have them too.
        self._installations: WeakSet[_Installation] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Installs the extension in ``app``, with the routes added so far.

        Raises ``UsageError`` if the app has the extension already.
        """
        if not isinstance(app, flask.Flask):
            raise TypeError(
                f"geventws.flask.WebSockets is for a Flask app, not {type(app).__name__}: see geventws.WebSockets"
            )
        if "geventws" in app.extensions:
            raise UsageError("this app has the WebSockets extension already: create it once")
        installation = _Installation(app, self._arguments, self._hooks, self._observers)
        for route in self._routes:
            installation.add(route)
        self._installations.add(installation)

    def observe(self, observers: Observers) -> None:
        """Adds what is called for the sessions of its apps, by something other than those."""
        self._observers.add(observers)
        for installation in self._installations:
            installation.watch_answers()

    def _add(self, route: Route) -> None:
        if any(other.endpoint == route.endpoint for other in self._routes):
            raise endpoint_taken("the app", route)
        for installation in self._installations:
            installation.add(route)
        self._routes.append(route)


class _Installation:
    """What an app has of the extension."""

    def __init__(
        self, app: flask.Flask, arguments: SettingsDict, hooks: Sequence[Handler], observers: Observers
    ) -> None:
        self._app = app
        self._hooks = hooks
        self._observers = observers
        self._index = RouteIndex(configured(app).override(**arguments))
        app.extensions["geventws"] = self
        app.before_request(self._lend_call)
        app.register_error_handler(WebsocketMismatch, _mismatch)
        self.watch_answers()

    def observe(self, observers: Observers) -> None:
        """Adds what is called for the app's sessions, by something other than the app."""
        self._observers.add(observers)
        self.watch_answers()

    def watch_answers(self) -> None:
        """Has the answers to handshakes told, where somebody wants that."""
        if self._observers.answered:
            # The one place that the answers of views, hooks and error handlers go through. Connected twice it is once.
            flask.request_finished.connect(self._tell_answer, self._app)

    def _tell_answer(self, app: flask.Flask, response: flask.Response, **_: Any) -> None:
        self._observers.tell_answer(flask.request.environ, response.status_code)

    def add(self, route: Route) -> None:
        """Adds a route of the app itself."""
        if route.endpoint in self._app.view_functions:
            raise endpoint_taken("the app", route)
        self._app.add_url_rule(route.rule, route.endpoint, self._view, websocket=True, **route.rule_options)
        self._remember(route, route.endpoint)

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Registers ``blueprint`` as a Flask blueprint of the same name."""
        path = (options.get("name_prefix", ""), options.get("name", blueprint.name))
        name = ".".join(part for part in path if part)
        if name in self._app.blueprints:
            raise name_taken(name)
        converted = flask.Blueprint(
            blueprint.name, blueprint.import_name, url_prefix=blueprint.url_prefix, subdomain=blueprint.subdomain
        )
        routes = blueprint.take_routes()
        for route in routes:
            converted.add_url_rule(route.rule, route.endpoint, self._view, websocket=True, **route.rule_options)
        for rule, endpoint, page in blueprint.pages:
            converted.add_url_rule(rule, endpoint, partial(_answer, page), methods=["GET"])
        converted.register(self._app, options)
        for route in routes:
            self._remember(route, f"{name}.{route.endpoint}")
        blueprint.registered(self)

    def _remember(self, route: Route, endpoint: str) -> None:
        (rule,) = self._app.url_map.iter_rules(endpoint)
        self._index.add(rule, route)

    def _view(self, **values: Any) -> Any:
        """The view of every route: Flask has matched the rule and run what comes before a view."""
        environ, rule = flask.request.environ, flask.request.url_rule
        assert rule is not None
        try:
            call = self._call(environ)
            answer = respond(call, self._index.find(rule), self._hooks, values)
        except HandshakeError as error:
            return refusal(error, environ)
        if answer is not None:
            return answer
        call.tell_lost_changes()
        # For after_request functions; nothing of it goes onto the wire.
        return self._app.response_class(status=101)

    def _call(self, environ: WSGIEnvironment) -> FlaskCall:
        call = FlaskCall(environ, self._app, self._index.settings)
        call.observers = (self._observers,)
        return call

    def _lend_call(self) -> None:
        """Runs before each request: a view may return a ``WebSocketUpgrade``."""
        environ = flask.request.environ
        if KEY in environ:
            environ[CALL_KEY] = self._call


class FlaskCall(ServerCall):
    """A request in a Flask app that a session answers."""

    __slots__ = ("_session",)

    def __init__(self, environ: WSGIEnvironment, app: flask.Flask, settings: Settings) -> None:
        super().__init__(environ, app, settings)
        # Not by their proxies, for any greenlet may be the first to use a session.
        self._request = flask.request._get_current_object()  # type: ignore[attr-defined]
        self._session = flask.session._get_current_object()  # type: ignore[attr-defined]

    def headers(self) -> Iterable[tuple[str, str]]:
        """The cookie of a ``flask.session`` that was changed."""
        app, session = self.application, self._session
        if app.session_interface.is_null_session(session):
            return []
        response = app.response_class()
        app.session_interface.save_session(app, session, response)
        if isinstance(session, SecureCookieSession):
            # So that it shows whether it changes again; others may go on as they like.
            session.modified = False
        return [("Set-Cookie", value) for value in response.headers.getlist("Set-Cookie")]

    def tell_lost_changes(self) -> None:
        """Warns of a ``flask.session`` that was changed when its cookie was gone."""
        if isinstance(self._session, SecureCookieSession) and self._session.modified:
            log.warning(
                "flask.session was changed after the 101 of %a, which no cookie can tell the client any more: "
                "change it before the first use of the WebSocket's session",
                flask.request.path,
            )

    def failed(self, name: str, error: BaseException) -> None:
        """Lets Flask handle what the handler raised, when the view has returned.

        A view that raised it would have it handled by the app's error handlers, which know nothing of a 101 and may
        pass over it in silence. Where the response is made ready it becomes, in every case, what Flask calls an
        unhandled exception.
        """
        errors = [error]

        @flask.after_this_request
        def raise_once(response: flask.Response) -> flask.Response:
            if errors:
                raise errors.pop()
            return response


def _answer(page: WSGIApplication) -> Any:
    """The view of a blueprint's page: Flask makes a response of what the application answers."""
    return page


def configured(app: flask.Flask) -> Settings:
    """The settings in an app's configuration."""
    names = {CONFIG_PREFIX + name.upper(): name for name in Settings.names()}
    settings = Settings()
    for key, value in app.config.items():
        if key.startswith(CONFIG_PREFIX):
            if key not in names:
                raise unknown_option(key, list(names))
            try:
                settings = settings.override(**{names[key]: value})
            except ValueError as error:
                raise ValueError(f"{key} of the app's configuration: {error}") from None
    return settings


def _mismatch(error: WebsocketMismatch) -> Any:
    """An HTTP request on a WebSocket rule, or the reverse."""
    environ = flask.request.environ
    try:
        if not is_upgrade(environ):
            raise upgrade_required(environ)
        # One that Werkzeug does not take for a WebSocket's, because it is malformed, is told why.
        read_handshake(environ)
        raise HandshakeError(400, "There is no WebSocket at this path: it is an HTTP page.")
    except HandshakeError as refused:
        return refusal(refused, environ)
