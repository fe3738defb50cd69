"""What a caller does wrong is told where it is done, in words that say what to do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.simple_server import make_server as make_wsgiref_server

import flask
import pytest
from gevent import pywsgi, socket
from werkzeug.serving import WSGIRequestHandler as WerkzeugRequestHandler
from werkzeug.serving import make_server as make_werkzeug_server

import geventws.flask
from geventws import (
    Blueprint,
    ConnectionClosed,
    Extension,
    JSONConverter,
    PermessageDeflate,
    Settings,
    UsageError,
    WebSockets,
    WebSocketUpgrade,
)
from geventws.call import _other_server
from tests.faces import FlaskFace, MakeFace, conversation, either, refused
from tests.peer import PATIENCE, Peer, request, serving, wait_until

INFINITY = float("inf")

#: Option, value that it can't have, what the message says beside the option's name.
BAD_VALUES: list[tuple[str, Any, str]] = [
    *(
        (name, value, "number of seconds above 0")
        for name in ("ping_interval", "timeout", "message_timeout")
        for value in (0, -1, "20", True, INFINITY, -INFINITY, float("nan"), timedelta(seconds=20), [20], b"1", 1j)
    ),
    ("timeout", None, "not None"),
    *(
        (name, value, "whole number above 0")
        for name in ("max_frame_size", "max_fragments", "read_limit", "write_limit")
        for value in (0, -1, 1.0, "1024", True, False, INFINITY, [1])
    ),
    *(("masking", value, "True or False") for value in (None, 0, 1, "yes")),
    *(("origins", value, "a list of origins") for value in ("https://example.com", "*", "null", "", 5, True, b"same")),
    *(
        ("origins", [value], "an origin is scheme://host")
        for value in (
            "example.com",
            "https://",
            "://example.com",
            "https://example.com/",
            "https://example.com/path",
            "https://*.example.com",
            "*",
            "same",
            "https://user@example.com",
            "https://example.com:port",
            "https://example.com?x",
            "https://exämple.com",
            "https://a.example, https://b.example",
            "https://a.example\r\n",
            "",
            None,
            5,
            b"https://example.com",
        )
    ),
    *(("extensions", value, "a list") for value in (None, 5, PermessageDeflate(), "permessage-deflate", True)),
    ("extensions", [PermessageDeflate], "PermessageDeflate()"),
    ("extensions", ["permessage-deflate"], "accept"),
    ("extensions", [None], "accept"),
    *(
        ("content_converter", value, "serialize and deserialize")
        for value in (5, "json", lambda value: value, {"serialize": str})
    ),
    ("content_converter", JSONConverter, "JSONConverter()"),
]


def name_of(value: Any) -> str:
    return repr(value) if len(repr(value)) < 30 else type(value).__name__


class TestSettings:
    @pytest.mark.parametrize(("name", "value", "said"), BAD_VALUES, ids=name_of)
    def test_a_bad_value_is_a_value_error_that_names_the_option(self, name: str, value: Any, said: str) -> None:
        """Wherever it is given."""
        app, configured = flask.Flask(__name__), flask.Flask(__name__)
        configured.config[f"WEBSOCKETS_{name.upper()}"] = value
        places: list[Callable[[], object]] = [
            lambda: Settings(**{name: value}),
            lambda: WebSockets(**{name: value}),
            lambda: WebSockets().route("/", **{name: value})(lambda session: None),
            lambda: Blueprint("b", __name__).route("/", **{name: value})(lambda session: None),
            lambda: geventws.flask.WebSockets(**{name: value}),
            lambda: geventws.flask.WebSockets(app, **{name: value}),
            lambda: geventws.flask.WebSockets().route("/", **{name: value})(lambda session: None),
            lambda: geventws.flask.WebSockets(configured),
            lambda: WebSocketUpgrade(lambda session: None, install_extensions=True, **{name: value}),
        ]
        for place in places:
            with pytest.raises(ValueError, match=rf"\b{name}\b") as caught:
                place()
            assert said in str(caught.value)

    def test_the_configuration_is_named(self) -> None:
        app = flask.Flask(__name__)
        app.config["WEBSOCKETS_MAX_FRAME_SIZE"] = "1"
        with pytest.raises(ValueError, match="WEBSOCKETS_MAX_FRAME_SIZE of the app's configuration"):
            geventws.flask.WebSockets(app)

    def test_an_unknown_name_is_told_the_known_ones(self) -> None:
        app = flask.Flask(__name__)
        app.config["WEBSOCKETS_PING_INTERVALL"] = 5
        places: list[Callable[[], object]] = [
            lambda: Settings().override(ping_intervall=5),
            lambda: WebSockets(ping_intervall=5),
            lambda: WebSockets().route("/", ping_intervall=5)(lambda session: None),
            lambda: geventws.flask.WebSockets(ping_intervall=5),
            lambda: WebSocketUpgrade(lambda session: None, ping_intervall=5),
        ]
        for place in places:
            with pytest.raises(TypeError, match="there is no option ping_intervall: ping_interval"):
                place()
        with pytest.raises(TypeError, match=r"WEBSOCKETS_PING_INTERVALL: WEBSOCKETS_PING_INTERVAL\?"):
            geventws.flask.WebSockets(app)
        with pytest.raises(TypeError, match=r"there are ping_interval, timeout, .*, strict_slashes"):
            WebSockets().route("/", zzz=5)(lambda session: None)
        with pytest.raises(TypeError, match="no option defaults"):
            WebSocketUpgrade(lambda session: None, defaults={})

    def test_two_extensions_that_claim_one_bit(self) -> None:
        class Mine:
            name = "x-mine"
            rsv = 5

            def accept(self, parameters: Any) -> None:
                """Declines."""

        with pytest.raises(ValueError, match="permessage-deflate and x-mine, which claim the same RSV bit"):
            WebSockets(extensions=[PermessageDeflate(), Mine()])
        with pytest.raises(ValueError, match="claim the same RSV bit"):
            WebSockets(extensions=[PermessageDeflate(), PermessageDeflate(level=1)])
        Mine.rsv = 0
        with pytest.raises(ValueError, match="x-mine twice"):
            WebSockets(extensions=[Mine(), Mine()])

    @pytest.mark.parametrize(
        ("attributes", "said"),
        [
            ({"name": "a b"}, "name must be a token"),
            ({"name": "a\r\nb"}, "name must be a token"),
            ({"name": None}, "name must be a token"),
            ({"rsv": 8}, "rsv must be 0 or a sum"),
            ({"rsv": None}, "rsv must be 0 or a sum"),
            ({"rsv": True}, "rsv must be 0 or a sum"),
            ({"accept": None}, "lacks the method accept"),
        ],
    )
    def test_an_extension_that_is_none(self, attributes: dict[str, Any], said: str) -> None:
        extension: Extension = type(
            "Mine", (), {"name": "x", "rsv": 0, "accept": lambda self, parameters: None} | attributes
        )()
        with pytest.raises(ValueError, match=said):
            WebSockets(extensions=[extension])

    @pytest.mark.parametrize("options", [{"extensions": [PermessageDeflate()]}, {"ping_interval": 5}], ids=list)
    def test_settings_that_a_raw_route_does_not_use(self, options: dict[str, Any]) -> None:
        (name,) = options
        with pytest.raises(ValueError, match=name):
            WebSockets().route("/", raw=True, **options)(lambda session: None)
        with pytest.raises(ValueError, match=name):
            WebSocketUpgrade(lambda session: None, **options)

    def test_negotiate_extensions_is_for_raw_routes(self) -> None:
        with pytest.raises(ValueError, match="negotiate_extensions is for raw routes"):
            WebSockets().route("/", negotiate_extensions=True)(lambda session: None)


async def coroutine(session: Any) -> None:
    """A handler as other frameworks have them."""


def generator(session: Any) -> Iterator[str]:
    yield "message"


class TestRoutes:
    @pytest.mark.parametrize(
        ("handler", "said"),
        [
            (None, "a function of a session"),
            ("echo", "a function of a session"),
            (coroutine, "def instead of async def"),
            (generator, "must not yield"),
            (lambda: None, "must take the session first"),
        ],
        ids=name_of,
    )
    def test_what_is_no_handler(self, handler: Any, said: str) -> None:
        for table in (WebSockets(), Blueprint("b", __name__), geventws.flask.WebSockets()):
            with pytest.raises(TypeError, match=said):
                table.route("/")(handler)
        with pytest.raises(TypeError, match=said):
            WebSocketUpgrade(handler)

    def test_a_decorator_is_not_looked_behind(self) -> None:
        """It may give the function less, or more, than a session."""

        @WebSockets().route("/")
        @lambda inner: lambda session: inner()
        def handler() -> None:
            pass

    def test_a_handler_may_be_any_callable(self) -> None:
        class Echo:
            def __call__(self, session: Any) -> None:
                session.send("called")

        app = WebSockets()
        app.route("/")(Echo())
        assert app.url_for("Echo") == "/"
        with serving(app) as server:
            assert conversation(server) == [b"called"]

    def test_a_route_without_its_rule(self) -> None:
        for table in (WebSockets(), Blueprint("b", __name__), geventws.flask.WebSockets()):
            with pytest.raises(TypeError, match=r"route\('/path'\)"):

                @table.route  # type: ignore[arg-type]
                def handler(session: Any) -> None:
                    pass

    @pytest.mark.parametrize("rule", ["echo", "/<int:>", "/<nix:a>"])
    def test_a_rule_that_is_none(self, rule: str) -> None:
        with pytest.raises((ValueError, LookupError)):
            WebSockets().route(rule)(lambda session: None)

    @pytest.mark.parametrize(
        "protocol", ["", "a b", "a,b", "é", "a\r\nb", [], [""], ["a", None], 5, [5], b"a", {"a": 1, 2: 3}]
    )
    def test_a_protocol_that_is_none(self, protocol: Any) -> None:
        for table in (WebSockets(), Blueprint("b", __name__)):
            with pytest.raises(ValueError, match="protocol must"):
                table.route("/", protocol=protocol)(lambda session: None)
        with pytest.raises(ValueError, match="protocol must"):
            WebSocketUpgrade(lambda session: None, protocol)

    @either
    def test_an_endpoint_twice(self, make: MakeFace) -> None:
        face = make()
        for table in (face.sockets, Blueprint("b", __name__), geventws.flask.WebSockets()):
            table.route("/a", endpoint="x")(lambda session: None)
            with pytest.raises(UsageError, match="endpoint 'x' already: give the route at '/b' another by endpoint="):
                table.route("/b", endpoint="x")(lambda session: None)

    def test_an_endpoint_that_a_page_has(self) -> None:
        face = FlaskFace()
        face.app.get("/page")(coroutine)
        with pytest.raises(UsageError, match="endpoint 'coroutine' already"):
            face.sockets.route("/", endpoint="coroutine")(lambda session: None)

    @either
    @pytest.mark.parametrize(
        ("first", "second", "said"),
        [
            (None, None, "'a' comes before it and takes any client"),
            (None, "v1", "'a' comes before it and takes any client"),
            ("v1", "v1", "speak v1 already"),
            (["v1", "v2"], "v2", "speak v2 already"),
        ],
    )
    def test_a_route_that_would_never_be_taken(self, make: MakeFace, first: Any, second: Any, said: str) -> None:
        face = make()
        sockets = face.sockets
        sockets.route("/x", endpoint="a", protocol=first)(lambda session: None)
        with pytest.raises(UsageError, match=said):
            sockets.route("/x", endpoint="b", protocol=second)(lambda session: None)

    @either
    def test_routes_that_share_a_rule_share_its_defaults(self, make: MakeFace) -> None:
        face = make()
        sockets = face.sockets
        sockets.route("/x", endpoint="a", protocol="a", defaults={"n": 1})(lambda session, n: None)
        with pytest.raises(UsageError, match="share its defaults"):
            sockets.route("/x", endpoint="b", protocol="b")(lambda session: None)

    @pytest.mark.parametrize("option", ["subdomain", "host"])
    def test_what_needs_flask(self, option: str) -> None:
        with pytest.raises(UsageError, match="Flask"):
            WebSockets().route("/", **{option: "live"})(lambda session: None)
        blueprint = Blueprint("b", __name__, subdomain="live")
        with pytest.raises(UsageError, match="Flask"):
            WebSockets().register_blueprint(blueprint)

    @pytest.mark.parametrize("function", [None, "hook"])
    def test_what_is_no_hook(self, function: Any) -> None:
        with pytest.raises(TypeError, match="function of a session or of nothing"):
            Blueprint("b", __name__).before_request(function)


class TestBlueprints:
    @pytest.mark.parametrize("name", ["", "a.b", None, 5])
    def test_a_name_that_is_none(self, name: Any) -> None:
        with pytest.raises(ValueError, match="blueprint's name"):
            Blueprint(name, __name__)

    @either
    def test_registered_twice(self, make: MakeFace) -> None:
        face = make()
        blueprint = Blueprint("chat", __name__)
        face.register(blueprint)
        with pytest.raises(UsageError, match="'chat' is registered already: give this one another by name="):
            face.register(blueprint)
        with pytest.raises(UsageError, match="'chat' is registered already"):
            face.register(Blueprint("chat", __name__))

    @either
    def test_a_route_added_after_the_registration(self, make: MakeFace) -> None:
        face = make()
        blueprint = Blueprint("chat", __name__)
        face.register(blueprint)
        with pytest.raises(UsageError, match="'chat' is registered already: add '/late' before that"):
            blueprint.route("/late")(lambda session: None)

    def test_without_the_extension(self) -> None:
        app = flask.Flask(__name__)
        with pytest.raises(UsageError, match=r"from geventws\.flask import WebSockets"):
            app.register_blueprint(Blueprint("chat", __name__))  # type: ignore[arg-type]

    def test_flasks_blueprint_without_flask(self) -> None:
        with pytest.raises(TypeError, match=r"geventws\.Blueprint"):
            WebSockets().register_blueprint(flask.Blueprint("b", __name__))  # type: ignore[arg-type]


class TestApps:
    def test_an_extension_twice(self) -> None:
        app = flask.Flask(__name__)
        sockets = geventws.flask.WebSockets(app)
        with pytest.raises(UsageError, match="create it once"):
            geventws.flask.WebSockets(app)
        with pytest.raises(UsageError, match="create it once"):
            sockets.init_app(app)

    def test_what_is_no_flask_app(self) -> None:
        with pytest.raises(TypeError, match=r"for a Flask app, not Blueprint: see geventws\.WebSockets"):
            geventws.flask.WebSockets(flask.Blueprint("b", __name__))  # type: ignore[arg-type]

    def test_what_is_no_app_behind(self) -> None:
        with pytest.raises(TypeError, match="WSGI app behind"):
            WebSockets("/chat")  # type: ignore[arg-type]


@either
class TestAccept:
    """A3 row 39: ValueError in the app, 500 to the client, no byte of it on the wire."""

    bad = pytest.mark.parametrize(
        "arguments",
        [
            {"protocol": "v2"},
            {"protocol": "v1\r\nSet-Cookie: x=1"},
            {"protocol": ""},
            {"protocol": "V1"},
            {"protocol": 5},
            {"headers": [("X-A", "b\r\nSet-Cookie: x=1")]},
            {"headers": [("X-A", "b\nSet-Cookie: x=1")]},
            {"headers": [("X-A", "b\0c")]},
            {"headers": [("X-A", "b\x7fc")]},
            {"headers": [("X-A", "☃")]},
            {"headers": [("X A", "b")]},
            {"headers": [("X-A\r\nSet-Cookie", "x=1")]},
            {"headers": [("", "b")]},
            {"headers": [("Content-Length", "0")]},
            {"headers": [("Transfer-Encoding", "chunked")]},
            {"headers": [("Connection", "close")]},
            {"headers": [("Sec-WebSocket-Protocol", "v1")]},
            {"headers": [("X-A", 5)]},
            {"headers": [("X-A",)]},
            {"headers": ["X-A: b"]},
            {"headers": {"X-A": "b"}},
            {"headers": {"ab": "c"}},
            {"headers": "ab"},
        ],
        ids=lambda arguments: ascii(*arguments.values()),
    )

    @bad
    def test_it_is_a_500(self, make: MakeFace, arguments: dict[str, Any]) -> None:
        face = make()
        raised: list[type] = []

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            try:
                session.accept(**arguments)
            except Exception as error:
                raised.append(type(error))
                raise

        with serving(face.app, error_log=None) as server:
            answer = refused(server, Sec_WebSocket_Protocol="v1")
        assert answer.status == 500
        assert "x=1" not in str(answer)
        assert "x-a" not in answer.headers
        assert raised[0] in (ValueError, TypeError)

    @bad
    def test_a_handler_may_go_on(self, make: MakeFace, arguments: dict[str, Any]) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            with pytest.raises((ValueError, TypeError)):
                session.accept(**arguments)
            session.accept("v1", [("X-B", "é\t")])
            with pytest.raises(UsageError, match="accepted already"):
                session.accept("v1")

        with serving(face.app) as server, Peer(server, Sec_WebSocket_Protocol="v1") as peer:
            head = peer.head()
            assert head.startswith("HTTP/1.1 101 ")
            assert "x=1" not in head
            assert "X-A" not in head
            assert "\r\nX-B: é\t" in head + "\r\n"

    def test_what_was_offered_is_told(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> str:
            with pytest.raises(ValueError, match="'v9' is not among those that the client offered: v1, v2"):
                session.accept("v9")
            return "told"

        with serving(face.app) as server:
            assert refused(server, Sec_WebSocket_Protocol="v1, v2").body == "told"

    def test_an_extension_that_answers_nonsense(self, make: MakeFace) -> None:
        class Mine:
            name = "x-mine"
            rsv = 0

            def accept(self, parameters: Any) -> Any:
                return {"a": "b\r\nSet-Cookie: x=1"}, self

        face = make(extensions=[Mine()])
        face.sockets.route("/")(lambda session: None)
        with serving(face.app, error_log=None) as server:
            answer = refused(server, Sec_WebSocket_Extensions="x-mine")
        assert answer.status == 500
        assert "x=1" not in str(answer)


class TestSessions:
    def test_the_end_of_a_handler_is_the_end_of_its_session(self) -> None:
        app = WebSockets()
        kept: list[Any] = []

        @app.route("/")
        def handler(session: Any) -> None:
            kept.append(session)
            session.accept()

        with serving(app) as server:
            assert conversation(server) == []
            wait_until(lambda: not server._connections)
        for use in (lambda: kept[0].send("x"), kept[0].receive):
            with pytest.raises(ConnectionClosed):
                use()


@contextmanager
def threaded(server: Any) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing."""


class QuietWerkzeugHandler(WerkzeugRequestHandler):
    def log(self, type: str, message: str, *arguments: Any) -> None:
        """Logs nothing."""


@contextmanager
def on_pywsgi(app: Any) -> Iterator[int]:
    server = pywsgi.WSGIServer(("127.0.0.1", 0), app, log=None)
    server.start()
    try:
        yield server.server_port
    finally:
        server.stop()


def on_wsgiref(app: Any) -> Any:
    return threaded(make_wsgiref_server("127.0.0.1", 0, app, handler_class=QuietHandler))


def on_werkzeug(app: Any) -> Any:
    """The server of ``flask run`` and ``app.run()``."""
    return threaded(make_werkzeug_server("127.0.0.1", 0, app, request_handler=QuietWerkzeugHandler))


@either
@pytest.mark.parametrize("serve", [on_werkzeug, on_wsgiref, on_pywsgi], ids=lambda serve: serve.__name__)
class TestOtherServers:
    def test_the_page_names_the_servers_that_serve_websockets(self, make: MakeFace, serve: Any, caplog: Any) -> None:
        _other_server.cache_clear()
        face = make()
        face.sockets.route("/ws")(lambda session: None)
        with ExitStack() as stack:
            port = stack.enter_context(serve(face.app))
            for _ in range(2):
                with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:
                    peer.sendall(request("/ws", port))
                    response = http.client.HTTPResponse(peer)
                    response.begin()
                    body = response.read().decode()
                assert response.status == 501
                assert "gunicorn -k geventws.Worker" in body
                assert "python -m geventws" in body
                assert "geventws.WSGIServer" in body
        # Browsers show nobody that page, so it is logged; once.
        assert [record.getMessage() + "\n" for record in caplog.records if record.name == "geventws"] == [body]

    def test_all_else_works(self, make: MakeFace, serve: Any) -> None:
        face = make()
        face.sockets.route("/ws")(lambda session: None)
        with serve(face.app) as port, socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:
            peer.sendall(b"GET /nowhere HTTP/1.0\r\nHost: x\r\n\r\n")
            response = http.client.HTTPResponse(peer)
            response.begin()
            assert response.status == 404
