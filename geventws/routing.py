"""Routes, blueprints, and the WSGI app that serves them without a framework."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, RequestRedirect, Rule

from geventws.arguments import check_flag, shown
from geventws.call import (
    CALL_KEY,
    DefaultWebSocketServerSession,
    Handler,
    Observers,
    ServerCall,
    WebSocketServerSession,
    call_handler,
    finish,
    refusal,
)
from geventws.errors import HandshakeError, UsageError
from geventws.protocol.handshake import check_origin, choose_protocol, is_upgrade
from geventws.settings import Settings, SettingsDict, unknown_option

if TYPE_CHECKING:
    from typing import Concatenate

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    # To type checkers ours are Flask's blueprints, since Flask's register_blueprint takes no other. Without Flask this
    # is Any to them.
    from flask.sansio.blueprints import Blueprint as FlaskBlueprint
    from typing_extensions import Unpack

    from geventws.frames import CloseReason
else:
    FlaskBlueprint = object

__all__ = ["Blueprint", "Route", "RouteIndex", "RouteTable", "WebSocketUpgrade", "WebSockets"]

# What handlers and hooks may be, for type checkers. A hook sees the sessions of all routes: it is only asked to take
# default ones, and where there are raw routes it had better be annotated with WebSocketServerSession.
DefaultHandler = TypeVar("DefaultHandler", bound="Callable[Concatenate[DefaultWebSocketServerSession, ...], object]")
RawHandler = TypeVar("RawHandler", bound="Callable[Concatenate[WebSocketServerSession, ...], object]")
AnyHandler = TypeVar("AnyHandler", bound=Handler)
RequestHook = TypeVar("RequestHook", bound="Callable[[DefaultWebSocketServerSession], object] | Callable[[], object]")
OpenHook = TypeVar("OpenHook", bound="Callable[[DefaultWebSocketServerSession], object]")
CloseHook = TypeVar("CloseHook", bound="Callable[[DefaultWebSocketServerSession, CloseReason], object]")
ErrorHook = TypeVar("ErrorHook", bound="Callable[[DefaultWebSocketServerSession, BaseException], object]")
H = TypeVar("H", bound=Callable[..., object])

#: The options of a route that go to Werkzeug's Rule.
RULE_OPTIONS = frozenset({"defaults", "subdomain", "host", "strict_slashes", "merge_slashes", "build_only"})

#: Matches that an app remembers by host and path, and characters of those.
_REMEMBERED = 256
_REMEMBERED_LENGTH = 256

_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


class RouteOptions(SettingsDict, total=False):
    """The settings that a route overrides, and what goes to Werkzeug's ``Rule``, for type checkers."""

    defaults: Mapping[str, Any] | None
    subdomain: str | None
    host: str | None
    strict_slashes: bool | None
    merge_slashes: bool | None
    build_only: bool


class Route:
    """A handler, the rule it answers, and how its sessions are made."""

    __slots__ = (
        "before",
        "endpoint",
        "handler",
        "negotiate_extensions",
        "observers",
        "options",
        "protocols",
        "raw",
        "rule",
        "rule_options",
    )

    def __init__(
        self,
        rule: str,
        handler: Handler,
        *,
        endpoint: str | None = None,
        protocol: str | Sequence[str] | None = None,
        raw: bool = False,
        negotiate_extensions: bool = False,
        **options: Any,
    ) -> None:
        _check_handler(handler)
        check_flag("raw", raw)
        check_flag("negotiate_extensions", negotiate_extensions)
        if endpoint is not None and (not isinstance(endpoint, str) or not endpoint):
            raise ValueError(f"endpoint must be a str that is not empty, or None, not {shown(endpoint)}")
        if negotiate_extensions and not raw:
            raise ValueError("negotiate_extensions is for raw routes; default sessions always negotiate theirs")
        self.rule = rule
        self.handler = handler
        self.endpoint = endpoint or str(getattr(handler, "__name__", type(handler).__name__))
        self.protocols = _check_protocols(protocol)
        self.raw = raw
        self.negotiate_extensions = negotiate_extensions
        #: What runs before the handler: the hooks of the route's blueprint.
        self.before: Sequence[Handler] = ()
        #: What is called for its sessions: that of its blueprint.
        self.observers: Observers | None = None
        self.rule_options = {name: options.pop(name) for name in RULE_OPTIONS & options.keys()}
        self.options = options
        self._check_options()

    def _check_options(self) -> None:
        """Tells of bad options where they stand, not at the first request."""
        for name in self.options:
            if name not in Settings.names():
                raise unknown_option(name, [*Settings.names(), *sorted(RULE_OPTIONS)])
        self.settings(Settings())
        if self.raw and self.options.get("ping_interval") is not None:
            raise ValueError("ping_interval is for default sessions: a raw one is kept alive by geventws.pinger")
        if self.raw and self.options.get("extensions") and not self.negotiate_extensions:
            raise ValueError("extensions of a raw route are only negotiated with negotiate_extensions=True")

    def settings(self, base: Settings) -> Settings:
        """``base`` with this route's options; a raw route has no extensions unless it asks for them."""
        settings = base.override(**self.options)
        return settings if not self.raw or self.negotiate_extensions else settings.override(extensions=())


def _check_handler(handler: Any) -> None:
    if not callable(handler):
        raise TypeError(f"a handler must be a function of a session, not {type(handler).__name__}")
    if inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError(f"the handler {handler.__name__} must be a plain function: def instead of async def, no await")
    if inspect.isgeneratorfunction(handler):
        raise TypeError(f"the handler {handler.__name__} must not yield: it sends by session.send(...)")
    if not _can_be_called(handler, None):
        raise TypeError(f"the handler {getattr(handler, '__name__', handler)!r} must take the session first")


def _check_values(route: Route, rule: Rule) -> None:
    """Tells of a handler that could never be called with the values of its rule."""
    try:
        signature = inspect.signature(route.handler, follow_wrapped=False)
    except ValueError:
        return
    try:
        signature.bind(None, **dict.fromkeys(rule.arguments))
    except TypeError as error:
        names = ", ".join(["the session", *sorted(rule.arguments)])
        raise TypeError(
            f"the handler {route.endpoint!r} at {rule.rule!r} must take {names}, and no more: {error}"
        ) from None


def _can_be_called(function: Callable[..., Any], *arguments: Any) -> bool:
    """Tells whether ``function`` takes ``arguments``, and perhaps others."""
    try:
        # Of a decorator's function, not of the one it wraps: that may be called with more, or with less.
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:
        # A builtin may have none.
        return True
    try:
        signature.bind_partial(*arguments)
    except TypeError:
        return False
    return True


def _check_protocols(protocol: Any) -> tuple[str, ...] | None:
    if protocol is None:
        return None
    protocols = (protocol,) if isinstance(protocol, str) or not isinstance(protocol, Iterable) else tuple(protocol)
    for name in protocols:
        if not isinstance(name, str) or not _is_token(name):
            raise ValueError(f"protocol must be a token or a list of tokens (RFC 6455 4.1), not {shown(protocol)}")
    if not protocols:
        raise ValueError("protocol must name a subprotocol, or be None for any client")
    return protocols


class RouteTable(ABC):
    """What a blueprint and an app have in common: routes are added to them, and hooks that run before handlers."""

    def __init__(self) -> None:
        self._hooks: list[Handler] = []
        self._observers = Observers()

    @overload
    def route(
        self,
        rule: str,
        *,
        protocol: str | Sequence[str] | None = None,
        raw: Literal[False] = False,
        endpoint: str | None = None,
        **options: Unpack[RouteOptions],
    ) -> Callable[[DefaultHandler], DefaultHandler]: ...

    @overload
    def route(
        self,
        rule: str,
        *,
        protocol: str | Sequence[str] | None = None,
        raw: Literal[True],
        negotiate_extensions: bool = False,
        endpoint: str | None = None,
        **options: Unpack[RouteOptions],
    ) -> Callable[[RawHandler], RawHandler]: ...

    def route(
        self,
        rule: str,
        *,
        protocol: str | Sequence[str] | None = None,
        raw: bool = False,
        negotiate_extensions: bool = False,
        endpoint: str | None = None,
        **options: Unpack[RouteOptions],
    ) -> Callable[[AnyHandler], AnyHandler]:
        """Decorates the handler of the WebSockets at ``rule``, in Werkzeug's (Flask's) syntax.

        ``protocol`` is the subprotocol that the handler speaks, or a list of them in order of preference; None accepts
        any client. Routes with different protocols may share a rule, and the first that fits is taken. ``raw`` gives
        the handler frames instead of messages; ``negotiate_extensions`` lets a raw route use the app's extensions.
        ``endpoint`` is the name for ``url_for``, by default the function's. Other options are settings that this route
        overrides, and Werkzeug's ``defaults``, ``subdomain``, ``host``, ``strict_slashes`` and so on.

        The handler is called with the session and the rule's values. Until it uses the session it may raise an
        ``HTTPException`` or return a response, which the client gets. What it returns after that is ignored.

        Raises ``ValueError``, ``TypeError`` or ``UsageError`` for an invalid route.
        """
        if not isinstance(rule, str):
            raise TypeError(f"a route needs its rule, as in @....route('/path'), not {shown(rule)}")

        def decorate(handler: AnyHandler) -> AnyHandler:
            self._add(
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

    def before_request(self, function: RequestHook) -> RequestHook:
        """Decorates a function that runs before each handler, while the request is still plain HTTP.

        An app's functions run for its blueprints' handlers too. The function takes the session or nothing. If it
        raises, or returns anything but None, that is the client's answer instead of a WebSocket.
        """
        if not callable(function):
            raise TypeError(
                f"before_request takes a function of a session or of nothing, not {type(function).__name__}"
            )
        if _can_be_called(function, None):
            self._hooks.append(function)
        else:
            self._hooks.append(lambda session: function())  # type: ignore[call-arg]
        return function

    def on_open(self, function: OpenHook) -> OpenHook:
        """Decorates a function that is called with each session that has opened.

        It runs after the 101, in the greenlet that first used the session, usually its handler's, which goes on when
        the function returns. An app's functions are called for its blueprints' sessions too, before the blueprint's
        own, in the order in which they were added. What a function raises is logged, here and in `on_close` and
        `on_error`, and changes nothing else.
        """
        return _added("on_open", function, self._observers.opened, 1)

    def on_close(self, function: CloseHook) -> CloseHook:
        """Decorates a function that is called with each session that has ended, and its close reason; as `on_open`.

        It is called once for each session that opened, however it ended, in the greenlet of its handler, after the
        handler has returned and the connection is gone.
        """
        return _added("on_close", function, self._observers.closed, 2)

    def on_error(self, function: ErrorHook) -> ErrorHook:
        """Decorates a function that is called with a session and what its handler raised after the 101; as `on_open`.

        It is called in the handler's greenlet before the session is closed with 1011, and may close it with another
        code. ``ConnectionClosed`` and ``ProtocolError`` don't count as errors of a handler.
        """
        return _added("on_error", function, self._observers.failed, 2)

    @abstractmethod
    def _add(self, route: Route) -> None:
        """Adds a route."""


def _added(name: str, function: H, hooks: list[Any], arguments: int) -> H:
    if not callable(function) or not _can_be_called(function, *[None] * arguments):
        takes = (
            "a session" if arguments == 1 else f"a session and {'a reason' if name == 'on_close' else 'an exception'}"
        )
        raise TypeError(f"{name} takes a function of {takes}, not {shown(function)}")
    hooks.append(function)
    return function


class Blueprint(RouteTable, FlaskBlueprint):  # type: ignore[misc]  # of the methods of both, ours count
    """Routes that are registered together, on a Flask app with ``app.register_blueprint`` or on a ``WebSockets``.

    ``name`` precedes the endpoints, and ``url_prefix`` the rules. ``import_name`` is the module's ``__name__``.
    ``subdomain`` is for Flask apps that match subdomains.
    """

    def __init__(
        self, name: str, import_name: str = "__main__", *, url_prefix: str | None = None, subdomain: str | None = None
    ) -> None:
        super().__init__()
        self.name = _check_name(name)
        if not isinstance(import_name, str):
            raise TypeError(f"import_name must be a module's __name__, not {shown(import_name)}")
        _check_prefix(url_prefix)
        if subdomain is not None and not isinstance(subdomain, str):
            raise TypeError(f"subdomain must be a str or None, not {shown(subdomain)}")
        self.import_name = import_name
        self.url_prefix = url_prefix
        self.subdomain = subdomain
        self._routes: list[Route] = []
        #: HTTP pages beside the routes: their rules, endpoints and WSGI applications.
        self.pages: list[tuple[str, str, WSGIApplication]] = []
        self._registered = False

    def registered(self, app: Any) -> None:
        """Called when an app has registered the blueprint; ``app.observe`` adds observers of that app's sessions."""

    def _add(self, route: Route) -> None:
        if self._registered:
            raise UsageError(f"the blueprint {self.name!r} is registered already: add {route.rule!r} before that")
        if any(other.endpoint == route.endpoint for other in self._routes):
            raise endpoint_taken(f"the blueprint {self.name!r}", route)
        route.before = self._hooks
        route.observers = self._observers
        self._routes.append(route)

    def register(self, app: Any, options: Mapping[str, Any]) -> None:
        """Called by Flask's ``register_blueprint``; the ``WebSockets`` extension of ``app`` does the rest."""
        extension = getattr(app, "extensions", {}).get("geventws")
        if extension is None:
            raise UsageError(
                f"the blueprint {self.name!r} needs the extension first: "
                "`from geventws.flask import WebSockets` and `WebSockets(app)` before app.register_blueprint(...)"
            )
        extension.register_blueprint(self, **options)

    def take_routes(self) -> Sequence[Route]:
        """The routes, for an app that registers them; from now on none can be added."""
        self._registered = True
        return self._routes


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"a blueprint's name must be a str that is not empty and has no dot, not {shown(name)}")
    return name


def _check_prefix(prefix: Any) -> None:
    if prefix is None or prefix == "":
        return
    if not isinstance(prefix, str) or not prefix.startswith("/"):
        raise ValueError(f'url_prefix must begin with a slash, as in "/chat", or be None, not {shown(prefix)}')


def endpoint_taken(owner: str, route: Route) -> UsageError:
    """The error for a route whose endpoint ``owner`` has already."""
    return UsageError(
        f"{owner} has an endpoint {route.endpoint!r} already: give the route at {route.rule!r} another by endpoint="
    )


def name_taken(name: str) -> UsageError:
    """The error for a blueprint whose ``name`` an app has already."""
    return UsageError(f"a blueprint {name!r} is registered already: give this one another by name=")


class Choice(NamedTuple):
    """A route of an app, its settings there, its name there, and its whole rule."""

    route: Route
    settings: Settings
    endpoint: str
    rule: str | None = None


class RouteIndex:
    """The routes of an app by the rules that Werkzeug matches; ``settings`` are the app's."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._by_rule: dict[Any, list[Choice]] = {}

    def add(self, rule: Rule, route: Route) -> None:
        """Adds a route by the ``rule`` that an app's map has for it.

        Raises ``UsageError`` where no client could ever get to it, because of the routes that share its rule.
        """
        choices = self._by_rule.setdefault(_key(rule), [])
        spoken: set[str] = set()
        for choice in choices:
            if choice.route.protocols is None:
                raise UsageError(f"{_no_way_to(rule)}: {choice.endpoint!r} comes before it and takes any client")
            if choice.route.rule_options.get("defaults") != route.rule_options.get("defaults"):
                raise UsageError(f"{choice.endpoint!r} and {rule.endpoint!r} share a rule, and must share its defaults")
            spoken.update(choice.route.protocols)
        if route.protocols is not None and spoken.issuperset(route.protocols):
            raise UsageError(f"{_no_way_to(rule)}: the routes before it speak {', '.join(route.protocols)} already")
        choices.append(Choice(route, route.settings(self.settings), rule.endpoint, rule.rule))

    def find(self, rule: Rule) -> Sequence[Choice]:
        """The routes that share ``rule``, in the order in which they were added."""
        return self._by_rule[_key(rule)]


def _key(rule: Rule) -> tuple[str, str | None, str | None]:
    return rule.rule, rule.subdomain, rule.host


def _no_way_to(rule: Rule) -> str:
    return f"the route {rule.endpoint!r} at {rule.rule!r} would never be taken"


def respond(call: ServerCall, choices: Sequence[Choice], hooks: Sequence[Handler], values: Mapping[str, Any]) -> Any:
    """Runs the first of ``choices`` that fits the client; gives the HTTP answer, or None after a WebSocket.

    Raises ``HandshakeError``, and before the 101 what the handler raises.
    """
    choice = choices[0]
    if choice.route.protocols is not None:
        choice, call.protocol = _choose(choices, call.offered_protocols)
    route, settings, name, call.rule = choice
    if route.observers is not None:
        call.observers = (*call.observers, route.observers)
    check_origin(call.environ, settings.origins)
    session_class = WebSocketServerSession if route.raw else DefaultWebSocketServerSession
    return call_handler(session_class(settings, call), (*hooks, *route.before), route.handler, values, name)


def _choose(choices: Sequence[Choice], offered: Sequence[str]) -> tuple[Choice, str | None]:
    """The first choice that speaks a subprotocol of ``offered``, and which; without one it takes any client."""
    for choice in choices:
        protocols = choice.route.protocols
        if protocols is None:
            return choice, None
        protocol = choose_protocol(offered, protocols)
        if protocol is not None:
            return choice, protocol
    spoken = dict.fromkeys(protocol for choice in choices for protocol in choice.route.protocols or ())
    raise HandshakeError(
        400, f"This route speaks the subprotocols {', '.join(spoken)}: offer one of them in Sec-WebSocket-Protocol."
    )


class WebSockets(RouteTable):
    """A WSGI app with WebSocket routes; all other requests go to ``app``.

    ``app`` is the WSGI app behind this one. With None, unknown paths get a 404, and plain HTTP requests for a route a
    426. The settings are those of `Settings`. Raises ``ValueError`` that names the option for a bad one.
    """

    def __init__(self, app: WSGIApplication | None = None, **settings: Unpack[SettingsDict]) -> None:
        super().__init__()
        if app is not None and not callable(app):
            raise TypeError(f"app must be the WSGI app behind this one, or None, not {type(app).__name__}")
        self.app = app
        self.settings = Settings().override(**settings)
        self._map = Map()
        self._index = RouteIndex(self.settings)
        # The routes of hosts and paths of late that have no values: Werkzeug's match is a large part of a handshake.
        self._known: dict[tuple[str | None, str | None], Sequence[Choice]] = {}
        # What blueprints have in HTTP; None for nothing.
        self._pages: Map | None = None
        self._page_of: dict[str, WSGIApplication] = {}
        self._endpoints: set[str] = set()
        self._blueprints: set[str] = set()

    def _add(self, route: Route, blueprint: str | None = None, prefix: str | None = None) -> None:
        endpoint = route.endpoint if blueprint is None else f"{blueprint}.{route.endpoint}"
        if endpoint in self._endpoints:
            raise endpoint_taken("the app", route)
        if "subdomain" in route.rule_options or "host" in route.rule_options:
            raise UsageError(
                "subdomain and host are for Flask apps: without a framework a route looks at session.request.host"
            )
        rule = Rule(_prefixed(prefix, route.rule), endpoint=endpoint, websocket=True, **route.rule_options)
        self._map.add(rule)
        _check_values(route, rule)
        self._known.clear()
        self._index.add(rule, route)
        self._endpoints.add(endpoint)

    def register_blueprint(self, blueprint: Blueprint, url_prefix: str | None = None, name: str | None = None) -> None:
        """Adds a blueprint's routes; ``url_prefix`` and ``name`` replace the blueprint's own.

        Raises ``UsageError`` if that name is registered already.
        """
        if not isinstance(blueprint, Blueprint):
            raise TypeError(f"blueprint must be a geventws.Blueprint, not {type(blueprint).__name__}")
        if blueprint.subdomain is not None:
            raise UsageError(f"the blueprint {blueprint.name!r} has a subdomain, which only a Flask app can match")
        _check_prefix(url_prefix)
        name = blueprint.name if name is None else _check_name(name)
        if name in self._blueprints:
            raise name_taken(name)
        self._blueprints.add(name)
        prefix = blueprint.url_prefix if url_prefix is None else url_prefix
        for route in blueprint.take_routes():
            self._add(route, name, prefix)
        for rule, endpoint, page in blueprint.pages:
            if self._pages is None:
                self._pages = Map()
            self._pages.add(Rule(_prefixed(prefix, rule), endpoint=f"{name}.{endpoint}", methods=["GET"]))
            self._page_of[f"{name}.{endpoint}"] = page
        blueprint.registered(self)

    def url_for(self, endpoint: str, /, **values: Any) -> str:
        """The path of a route: ``url_for("chat.echo", name="ada")``. Values that aren't in the rule go into the query.

        Raises Werkzeug's ``BuildError``.
        """
        # Werkzeug builds whole URLs for WebSockets; the host is the business of who asks.
        return self._map.bind("host").build(endpoint, values).removeprefix("ws://host")

    def observe(self, observers: Observers) -> None:
        """Adds what is called for this app's sessions, by something other than the app."""
        self._observers.add(observers)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._pages is not None and not is_upgrade(environ):
            page = self._page(self._pages, environ)
            if page is not None:
                return page(environ, start_response)
        if self.app is not None and not is_upgrade(environ):
            return self.app(environ, start_response)
        if self._observers.answered:
            start_response = self._telling(environ, start_response)
        # Here and not in a function of its own, whose frame would stand below every session.
        answer: Any
        try:
            # Matched as a WebSocket whatever the headers say, so that an incomplete handshake is told what it lacks.
            choices, values = self._match(environ)
        except NotFound as error:
            environ[CALL_KEY] = self._call
            answer = error if self.app is None else self.app
        except HTTPException as error:
            answer = error
        else:
            try:
                answer = respond(self._call(environ), choices, self._hooks, values)
            except HTTPException as error:
                answer = error
            except HandshakeError as error:
                answer = refusal(error, environ)
            except Exception:
                # The server answers.
                self._observers.tell_answer(environ, 500)
                raise
        return finish(answer, environ, start_response)

    def _telling(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """``start_response``, which tells of an answer in HTTP."""

        def tell(status: str, headers: Any, *exc_info: Any) -> Any:
            self._observers.tell_answer(environ, int(status[:3]))
            return start_response(status, headers, *exc_info)

        return tell

    def _page(self, pages: Map, environ: WSGIEnvironment) -> WSGIApplication | None:
        """The application of a blueprint's page, or a redirect to it."""
        try:
            endpoint, _ = pages.bind_to_environ(environ).match()
        except RequestRedirect as redirect:
            return redirect
        except HTTPException:
            return None
        return self._page_of[endpoint]

    def _match(self, environ: WSGIEnvironment) -> tuple[Sequence[Choice], Mapping[str, Any]]:
        """The routes of a request's path, and its values; raises Werkzeug's errors."""
        place = (environ.get("HTTP_HOST"), environ.get("PATH_INFO"))
        choices = self._known.get(place)
        if choices is not None:
            return choices, {}
        rule, values = self._map.bind_to_environ(environ).match(websocket=True, return_rule=True)
        choices = self._index.find(rule)
        if not values and len(place[0] or "") + len(place[1] or "") < _REMEMBERED_LENGTH:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[place] = choices
        return choices, values

    def _call(self, environ: WSGIEnvironment) -> ServerCall:
        call = ServerCall(environ, self, self.settings)
        call.observers = (self._observers,)
        return call


class WebSocketUpgrade:
    """A WSGI application that answers a WebSocket request with a raw session: call it, or return it from a view.

    ``handle`` is called with the session. ``protocol`` is the subprotocol that it speaks, or a list of them; None
    accepts any client. ``install_extensions`` negotiates the app's extensions. The settings are those of the app that
    the request came through, a ``WebSockets`` or a Flask app with the extension; ``settings`` override them. In Flask
    the view's rule needs ``websocket=True``.
    """

    def __init__(
        self,
        handle: Callable[[WebSocketServerSession], object],
        protocol: str | Sequence[str] | None = None,
        install_extensions: bool = False,
        **settings: Unpack[SettingsDict],
    ) -> None:
        for name in settings:
            if name not in Settings.names():
                raise unknown_option(name, Settings.names())
        check_flag("install_extensions", install_extensions)
        if settings.get("extensions") and not install_extensions:
            raise ValueError("extensions of a WebSocketUpgrade are only negotiated with install_extensions=True")
        self._route = Route(
            "", handle, protocol=protocol, raw=True, negotiate_extensions=install_extensions, **settings
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        route = self._route
        answer: Any
        try:
            call = environ.get(CALL_KEY, self._call)(environ)
            answer = respond(call, [Choice(route, route.settings(call.settings), route.endpoint)], (), {})
        except HTTPException as error:
            answer = error
        except HandshakeError as error:
            answer = refusal(error, environ)
        return finish(answer, environ, start_response)

    def _call(self, environ: WSGIEnvironment) -> ServerCall:
        return ServerCall(environ, self, Settings())


def _prefixed(prefix: str | None, rule: str) -> str:
    """``rule`` behind ``prefix``, with one slash between."""
    if not prefix:
        return rule
    return f"{prefix.rstrip('/')}/{rule.lstrip('/')}" if rule else prefix
