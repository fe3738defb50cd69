"""What a caller does wrong is told where it is done, in words that say what to do."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.simple_server import make_server as make_wsgiref_server

import flask
import pytest
from gevent import get_hub, pywsgi, socket
from werkzeug.serving import WSGIRequestHandler as WerkzeugRequestHandler
from werkzeug.serving import make_server as make_werkzeug_server

import geventws.flask
import geventws.testing
from geventws import (
    Blueprint,
    ConnectionClosed,
    Extension,
    Frame,
    JSONConverter,
    Opcode,
    PermessageDeflate,
    Settings,
    Topics,
    UsageError,
    WebSockets,
    WebSocketUpgrade,
    pinger,
)
from geventws.call import _other_server
from geventws.topics.wire import Names
from tests.faces import FlaskFace, MakeFace, conversation, either, refused
from tests.peer import PATIENCE, Peer, request, serving, wait_until

INFINITY, NAN = float("inf"), float("nan")

#: Option, value that it can't have, what the message says beside the option's name.
BAD_VALUES: list[tuple[str, Any, str]] = [
    *(
        (name, value, "number of seconds above 0")
        for name in ("ping_interval", "timeout", "message_timeout")
        for value in (
            0,
            -1,
            "20",
            True,
            INFINITY,
            -INFINITY,
            NAN,
            timedelta(seconds=20),
            [20],
            b"1",
            1j,
            10**400,
        )
    ),
    ("timeout", None, "not None"),
    *(
        (name, value, f"must be a whole number of {of} above 0")
        for name, of in (
            ("max_frame_size", "bytes"),
            ("max_fragments", "fragments"),
            ("read_limit", "bytes"),
            ("write_limit", "bytes"),
        )
        for value in (0, -1, 1.0, "1024", True, False, INFINITY, [1], 2**63, 10**400)
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

    @pytest.mark.parametrize(
        ("rule", "handler", "said"),
        [
            ("/<name>", lambda session: None, "must take the session, name, and no more: got an unexpected"),
            (
                "/",
                lambda session, name: None,
                "must take the session, and no more: missing a required argument: 'name'",
            ),
            ("/<name>", lambda session, *, room: None, "must take the session, name, and no more"),
        ],
    )
    def test_a_handler_that_does_not_take_its_rules_values(self, rule: str, handler: Any, said: str) -> None:
        with pytest.raises(TypeError, match=re.escape(f"the handler 'here' at '{rule}' {said}")):
            WebSockets().route(rule, endpoint="here")(handler)
        blueprint = Blueprint("b", __name__)
        blueprint.route(rule, endpoint="here")(handler)
        with pytest.raises(TypeError, match=re.escape(said)):
            WebSockets().register_blueprint(blueprint)

    def test_a_handler_may_take_more_than_its_rules_values(self) -> None:
        app = WebSockets()
        app.route("/<name>", endpoint="a")(lambda session, name, other=None: None)
        app.route("/<name>/<room>", endpoint="b")(lambda *arguments, **values: None)
        app.route("/", endpoint="c", defaults={"page": 1})(lambda session, page: None)

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
            {"headers": {"X-A": "b\r\nSet-Cookie: x=1"}},
            {"headers": {"X-A": 5}},
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


def said_in(handler: Callable[[Any], object], raw: bool = False) -> BaseException:
    """What ``handler`` raises on an open session, in process."""
    app = WebSockets()
    caught: list[BaseException] = []

    @app.route("/", raw=raw)
    def run(session: Any) -> None:
        session.accept()
        try:
            handler(session)
        except Exception as error:
            caught.append(error)

    with geventws.testing.connect(app) as ws:
        ws.wait_closed()
    (error,) = caught
    return error


#: How long a call may block; 2.5 hours as no number, a time that is none, and what stops all of gevent's timers.
NO_TIMES = ("5", b"5", [1], True, NAN, timedelta(seconds=5))


class TestCalls:
    """What is wrong with an argument of a session's methods."""

    @pytest.mark.parametrize("value", NO_TIMES, ids=name_of)
    @pytest.mark.parametrize("method", ["receive", "ping", "wait_closed"])
    def test_timeouts(self, method: str, value: Any) -> None:
        """Of a handler's session, and of one that a test has."""
        said = f"timeout must be a number of seconds, or None for any time, not {value!r}"
        error = said_in(lambda session: getattr(session, method)(timeout=value))
        assert (type(error), str(error)) == (ValueError, said)
        app = WebSockets()
        app.route("/")(lambda session: session.receive())
        with (
            geventws.testing.connect(app) as ws,
            pytest.raises(ValueError, match="timeout must be a number of seconds, or None"),
        ):
            getattr(ws, method)(timeout=value)

    @pytest.mark.parametrize("value", [0, -1, -0.5])
    def test_a_time_that_is_over_is_none_that_is_wrong(self, value: Any) -> None:
        """As the difference of two times may be."""
        assert isinstance(said_in(lambda session: session.receive(value)), TimeoutError)
        topics = Topics()
        topics.flush(value)
        with pytest.raises(ValueError, match="timeout must be a number of seconds, or None for any time, not 'x'"):
            topics.flush("x")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("message", "said"),
        [
            (123, "a message must be str, bytes-like or an iterable of these, not int"),
            (None, "a message must be str, bytes-like or an iterable of these, not NoneType"),
            ({"a": 1}, "a message must be str, bytes-like or an iterable of these, not dict: see send_serialized"),
            (Frame.text("x"), "a default session sends messages, not a Frame: send the str or bytes themselves"),
            ([1], "a fragment must be str or bytes-like, not int"),
            (["a", b"b"], "the fragments of a message must be all str or all bytes-like"),
            (
                memoryview(b"abcd")[::2],
                "a message must be contiguous bytes, not a memoryview with steps: send bytes(view)",
            ),
        ],
    )
    def test_messages(self, message: Any, said: str) -> None:
        error = said_in(lambda session: session.send(message))
        assert (type(error), str(error)) == (TypeError, said)

    @pytest.mark.parametrize(
        ("frame", "kind", "said"),
        [
            ("text", TypeError, "a raw session sends a Frame, as in Frame.text('hello'), not str"),
            (Frame(Opcode.TEXT, "text"), TypeError, "a frame's payload must be bytes-like, not str"),  # type: ignore[arg-type]
            (
                Frame(Opcode.BINARY, memoryview(b"abcd")[::2]),  # type: ignore[arg-type]
                TypeError,
                "a frame's payload must be contiguous bytes, not a memoryview with steps",
            ),
            (Frame(3), ValueError, "a frame's opcode must be one of Opcode, not 3 (RFC 6455 5.2)"),  # type: ignore[arg-type]
            (Frame([1]), ValueError, "a frame's opcode must be one of Opcode, not [1] (RFC 6455 5.2)"),  # type: ignore[arg-type]
            (
                Frame.text("x")._replace(rsv=4),
                ValueError,
                "a frame's rsv must be 0, not 4: its bits are extensions' to set (RFC 6455 5.2)",
            ),
            (
                Frame.ping()._replace(fin=False),
                ValueError,
                "a control frame must have fin=True and rsv=0 (RFC 6455 5.5)",
            ),
            (Frame.ping(bytes(126)), ValueError, "a control frame must have at most 125 bytes, not 126 (RFC 6455 5.5)"),
            (Frame(Opcode.TEXT, b"\xff"), ValueError, "a text message must be UTF-8 (RFC 6455 5.6)"),
        ],
    )
    def test_frames(self, frame: Any, kind: type[Exception], said: str) -> None:
        error = said_in(lambda session: session.send(frame), raw=True)
        assert (type(error), str(error)) == (kind, said)

    @pytest.mark.parametrize(
        ("arguments", "kind", "said"),
        [
            (("1000",), TypeError, "a close code must be an int, not str"),
            ((True,), TypeError, "a close code must be an int, not bool"),
            ((1005,), ValueError, "close code 1005 may not be sent: use 1000 to 1003, 1007 to 1014 or 3000 to 4999"),
            ((1000, None), TypeError, "a close reason must be a str, not NoneType"),
            ((1000, "x" * 124), ValueError, "a close reason must have at most 123 bytes in UTF-8, not 124"),
        ],
    )
    def test_closes(self, arguments: Any, kind: type[Exception], said: str) -> None:
        for error in (
            said_in(lambda session: session.close(*arguments)),
            said_in(lambda session: session.start_close(*arguments)),
        ):
            assert (type(error), str(error)) == (kind, said)

    @pytest.mark.parametrize("method", ["receive", "ping", "flush", "close", "wait_closed"])
    def test_another_thread(self, method: str) -> None:
        """Where the wait would never end, for its own hub has nothing to wait for."""
        error = said_in(lambda session: get_hub().threadpool.apply(getattr(session, method)))
        assert type(error) is UsageError
        assert str(error).startswith("a session must be used in the thread that runs it")

    def test_a_text_frame_of_bytes(self) -> None:
        with pytest.raises(TypeError, match="the message of a text frame must be a str, not bytes"):
            Frame.text(b"x")  # type: ignore[arg-type]

    def test_pinger(self) -> None:
        for name in ("period", "timeout"):
            for value in (0, -1, "5", None, NAN, INFINITY, True, 10**400):
                options: dict[str, Any] = {"period": 5, "timeout": 5, name: value}
                with pytest.raises(ValueError, match=f"{name} must be a number of seconds above 0, not"):
                    pinger(None, **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="session must be a raw session, not NoneType"):
            pinger(None, 5, 5)  # type: ignore[arg-type]
        error = said_in(lambda session: pinger(session, 5, 5))
        assert str(error) == "pinger is for raw sessions: a default one pings by itself, see its ping_interval"


class TestTopics:
    """One check of a topic's name, in whatever is done with it."""

    @pytest.mark.parametrize(
        ("topic", "said"),
        [
            (5, "topic must be a str, not int"),
            (None, "topic must be a str, not NoneType"),
            (b"room", "topic must be a str, not bytes"),
            ("", "topic must have 1 to 255 bytes in UTF-8, not 0"),
            ("é" * 128, "topic must have 1 to 255 bytes in UTF-8, not 256"),
            ("\ud800", r"topic must be text that UTF-8 can encode, without surrogates, not '\ud800'"),
        ],
        ids=name_of,
    )
    def test_names(self, topic: Any, said: str) -> None:
        topics = Topics()
        places: list[Callable[[], object]] = [
            lambda: topics.publish(topic, "x"),
            lambda: topics.subscribe(None, topic),  # type: ignore[arg-type]
            lambda: topics.unsubscribe(None, topic),  # type: ignore[arg-type]
            lambda: topics.listen(topic, print),
            lambda: topics.count(topic),
            lambda: topics.sessions(topic),
            lambda: topics.presence(topic),
            lambda: topics.position(topic),
            lambda: Names("geventws").channel(topic),
        ]
        for place in places:
            with pytest.raises((TypeError, ValueError)) as caught:
                place()
            assert str(caught.value) == said

    def test_arguments(self) -> None:
        topics = Topics(max_message_size=5)
        for call in (topics.subscribe, topics.unsubscribe):
            with pytest.raises(
                TypeError, match="session must be a default session, of a route without raw=True, not int"
            ):
                call(5, "a")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="listener must be a function of a message, not int"):
            topics.listen("a", 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="message must have at most 5 bytes, max_message_size, not 6"):
            topics.publish("a", "123456")
        for name, value, said in (
            ("recent", -1, "recent must be a whole number of messages from 0 up, not -1"),
            ("recent", "5", "recent must be a whole number of messages from 0 up, not '5'"),
            ("on_presence", 5, "on_presence must be a function of a Presence, or None, not 5"),
            ("on_gap", 5, "on_gap must be a function of a Gap, or None, not 5"),
            ("member", 5, "member must be a str or None, not int"),
            ("since", 5, "since must be a Position, its text or None, not int"),
        ):
            error = said_in(lambda session: topics.subscribe(session, "a", **{name: value}))  # noqa: B023
            assert str(error) == said


EXTRAS = [
    ("flask", "import geventws.flask", "geventws.flask needs flask: pip install 'geventws[flask]'"),
    (
        "flask",
        "import geventws.compat.flask_sock",
        "geventws.compat.flask_sock needs flask: pip install 'geventws[flask]'",
    ),
    (
        "prometheus_client",
        "import geventws.metrics",
        "geventws.metrics needs prometheus_client: pip install 'geventws[metrics]'",
    ),
    (
        "redis",
        "import geventws; geventws.Topics('redis://x')",
        "Topics with a URL needs redis: pip install 'geventws[redis]'",
    ),
    (
        "gunicorn",
        "import geventws; geventws.Worker",
        "geventws.Worker needs gunicorn: pip install 'geventws[gunicorn]'",
    ),
    (
        "gunicorn",
        "import geventws.compat; geventws.compat.Worker",
        "geventws.Worker needs gunicorn: pip install 'geventws[gunicorn]'",
    ),
    (
        "msgspec",
        "import geventws; geventws.MsgspecConverter()",
        "MsgspecConverter needs msgspec: pip install 'geventws[msgspec]'",
    ),
]


class TestExtras:
    @pytest.mark.parametrize(("package", "code", "said"), EXTRAS)
    def test_one_that_is_not_installed(self, package: str, code: str, said: str) -> None:
        """In a process of its own, from which the package is kept."""
        process = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None; {code}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE * 3,
            check=False,
        )
        assert process.stderr.splitlines()[-1] == f"ModuleNotFoundError: {said}"
        # No error behind it, which a new user would take for the matter.
        assert process.stderr.count("Traceback") == 1


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
