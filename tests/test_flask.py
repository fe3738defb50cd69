"""What Flask gives to a WebSocket route, and what a route gives back to Flask."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import flask
import gevent
import pytest
from flask import current_app, g, got_request_exception, request
from gevent.event import Event
from itsdangerous import URLSafeTimedSerializer
from werkzeug.exceptions import HTTPException

from geventws import Blueprint, Frame, HandshakeError, PermessageDeflate, UsageError, WebSocketUpgrade
from geventws.flask import WebSockets
from tests.faces import conversation, fetch, refused
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.wire import TEXT, close_frame, frame


@pytest.fixture
def app() -> flask.Flask:
    app = flask.Flask(__name__)
    app.secret_key = "not secret"
    return app


def serializer(app: flask.Flask) -> URLSafeTimedSerializer:
    found = flask.sessions.SecureCookieSessionInterface().get_signing_serializer(app)
    assert found is not None
    return found


def cookie(app: flask.Flask, **values: Any) -> str:
    """A Cookie header with a ``flask.session`` of these values."""
    return f"session={serializer(app).dumps(values)}"


def session_in(app: flask.Flask, head: str) -> Any:
    """The ``flask.session`` that a response sets; None for none."""
    fields = [line for line in head.split("\r\n") if line.startswith("Set-Cookie: session=")]
    if not fields:
        return None
    (field,) = fields
    return serializer(app).loads(field.partition("=")[2].partition(";")[0])


class TestExtension:
    def test_with_the_app(self, app: flask.Flask) -> None:
        sockets = WebSockets(app, max_frame_size=7)

        @sockets.route("/")
        def handler(session: Any) -> None:
            session.send(str(session.max_frame_size))
            assert session.application is app

        with serving(app) as server:
            assert conversation(server) == [b"7"]

    def test_init_app_later(self, app: flask.Flask) -> None:
        sockets = WebSockets(max_frame_size=7)

        @sockets.route("/before")
        def before(session: Any) -> None:
            session.send(str(session.max_frame_size))

        sockets.init_app(app)

        @sockets.route("/after")
        def after(session: Any) -> None:
            session.send(str(session.max_frame_size))

        with serving(app) as server:
            assert conversation(server, "/before") == [b"7"]
            assert conversation(server, "/after") == [b"7"]

    def test_on_two_apps(self) -> None:
        """As an application factory has it: each app gets all routes, and its own settings."""
        sockets = WebSockets(timeout=3)
        apps = [flask.Flask(name) for name in ("one", "two")]
        apps[1].config["WEBSOCKETS_MAX_FRAME_SIZE"] = 22

        @sockets.route("/early")
        def early(session: Any) -> None:
            session.send(f"{current_app.name} {session.application.name} {session.max_frame_size} {session.timeout}")

        for app in apps:
            sockets.init_app(app)
        sockets.route("/late", endpoint="late")(early)
        blueprint = Blueprint("b", __name__)
        blueprint.route("/b")(early)
        apps[0].register_blueprint(blueprint)
        apps[1].register_blueprint(blueprint, name="other", url_prefix="/other")
        with serving(apps[0]) as one, serving(apps[1]) as two:
            for path in ("/early", "/late", "/b"):
                assert conversation(one, path) == [b"one one 1048576 3"]
            for path in ("/early", "/late", "/other/b"):
                assert conversation(two, path) == [b"two two 22 3"]
            assert refused(two, "/b").status == 404

    def test_an_extension_keeps_no_app_alive(self) -> None:
        sockets = WebSockets()
        sockets.route("/")(lambda session: None)
        app = flask.Flask("shortlived")
        sockets.init_app(app)
        seen = weakref.ref(app)
        del app
        gc.collect()
        assert seen() is None

    def test_configuration(self, app: flask.Flask) -> None:
        app.config.update(WEBSOCKETS_PING_INTERVAL=None, WEBSOCKETS_TIMEOUT=4, WEBSOCKETS_ORIGINS=["https://a.example"])
        sockets = WebSockets(app, timeout=5)

        @sockets.route("/", max_frame_size=6)
        def handler(session: Any) -> None:
            session.send(f"{session.ping_interval} {session.timeout} {session.max_frame_size}")

        with serving(app) as server:
            assert conversation(server, Origin="https://a.example") == [b"None 5 6"]
            assert refused(server, Origin="https://b.example").status == 403


class TestRules:
    def test_pages_beside(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)

        @app.get("/chat")
        def page() -> str:
            return flask.url_for("chat", _external=True)

        @sockets.route("/chat")
        def chat(session: Any) -> None:
            session.send("socket")

        with serving(app) as server:
            assert fetch(server, "/chat", Host="example.com").body == "ws://example.com/chat"
            assert conversation(server, "/chat") == [b"socket"]

    def test_http_on_a_websocket_rule(self, app: flask.Flask) -> None:
        WebSockets(app).route("/ws")(lambda session: None)
        with serving(app) as server:
            answer = fetch(server, "/ws")
            assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
            assert "WebSocket client" in answer.body
            assert "proxy" not in answer.body

    def test_a_proxy_that_drops_headers_is_told_of(self, app: flask.Flask) -> None:
        WebSockets(app).route("/ws")(lambda session: None)
        with serving(app) as server:
            dropped: Any = ("Upgrade",)
            with Peer(server, "/ws", Connection="close", drop=dropped) as peer:
                response = peer.rest().decode()
            assert response.startswith("HTTP/1.1 426 ")
            assert "proxy" in response
            answer = refused(server, "/ws", Connection="keep-alive")
            assert answer.status == 400
            assert "Connection" in answer.body
            assert "proxy" in answer.body

    def test_a_websocket_on_an_http_rule(self, app: flask.Flask) -> None:
        WebSockets(app)
        app.get("/page")(lambda: "page")
        with serving(app) as server:
            answer = refused(server, "/page")
            assert answer.status == 400
            assert "no WebSocket at this path" in answer.body
            assert refused(server, "/nowhere").status == 404

    def test_methods(self, app: flask.Flask) -> None:
        WebSockets(app).route("/ws")(lambda session: None)
        client = app.test_client()
        assert client.post("/ws").status_code == 405
        assert client.get("/ws").status_code == 426

    def test_nested_blueprints(self, app: flask.Flask) -> None:
        WebSockets(app)
        parent = flask.Blueprint("parent", __name__, url_prefix="/parent/<int:number>")
        child = Blueprint("child", __name__, url_prefix="/child")
        order = []

        @app.before_request
        def of_the_app() -> None:
            order.append("app")

        @parent.before_request
        def of_the_parent() -> None:
            order.append("parent")

        @child.before_request
        def of_the_child(session: Any) -> None:
            order.append("child")

        @child.route("/<name>")
        def handler(session: Any, number: int, name: str) -> None:
            order.append(request.endpoint)
            session.send(f"{number} {name} {request.blueprints}")

        parent.register_blueprint(child)
        app.register_blueprint(parent)
        app.register_blueprint(parent, name="again", url_prefix="/again/<int:number>")
        with app.test_request_context():
            assert flask.url_for("parent.child.handler", number=1, name="x") == "ws://localhost/parent/1/child/x"
            assert flask.url_for("again.child.handler", number=1, name="x") == "ws://localhost/again/1/child/x"
        with serving(app) as server:
            assert conversation(server, "/parent/1/child/x") == [b"1 x ['parent.child', 'parent']"]
            assert order == ["app", "parent", "child", "parent.child.handler"]
            assert conversation(server, "/again/2/child/y") == [b"2 y ['again.child', 'again']"]

    def test_options_of_register_blueprint(self, app: flask.Flask) -> None:
        WebSockets(app)
        blueprint = Blueprint("b", __name__, url_prefix="/b")
        blueprint.route("/x")(lambda session: session.send(str(request.endpoint)))
        app.register_blueprint(blueprint, url_prefix="/moved", name="renamed")
        with serving(app) as server:
            assert conversation(server, "/moved/x") == [b"renamed.<lambda>"]
            assert refused(server, "/b/x").status == 404

    def test_subdomains(self) -> None:
        app = flask.Flask(__name__, subdomain_matching=True)
        app.config["SERVER_NAME"] = "example.com"
        WebSockets(app)
        blueprint = Blueprint("b", __name__, subdomain="live")
        blueprint.route("/x")(lambda session: session.send("live"))
        app.register_blueprint(blueprint)
        with serving(app) as server:
            assert conversation(server, "/x", Host="live.example.com") == [b"live"]
            assert refused(server, "/x", Host="example.com").status == 404

    def test_url_value_preprocessors(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)

        @app.url_value_preprocessor
        def take_language(endpoint: Any, values: Any) -> None:
            g.language = values.pop("language")

        @sockets.route("/<language>/x")
        def handler(session: Any) -> None:
            session.send(g.language)

        with serving(app) as server:
            assert conversation(server, "/fr/x") == [b"fr"]


class TestBefore101:
    @pytest.mark.parametrize("where", ["app", "blueprint", "hook", "decorator", "handler"])
    def test_abort_and_error_handlers(self, app: flask.Flask, where: str) -> None:
        WebSockets(app)
        blueprint = Blueprint("b", __name__)

        def stop() -> None:
            flask.abort(401)

        def stopping(function: Any) -> Any:
            @wraps(function)
            def wrapper(*arguments: Any, **values: Any) -> Any:
                if where == "decorator":
                    stop()
                return function(*arguments, **values)

            return wrapper

        @blueprint.route("/")
        @stopping
        def handler(session: Any) -> None:
            assert where == "handler"
            stop()

        @app.errorhandler(401)
        def log_in(error: HTTPException) -> Any:
            return {"error": error.name}, 401, {"X-Error": "yes"}

        if where == "app":
            app.before_request(stop)
        elif where == "hook":
            blueprint.before_request(stop)
        parent = flask.Blueprint("parent", __name__)
        if where == "blueprint":
            parent.before_request(stop)
        parent.register_blueprint(blueprint)
        app.register_blueprint(parent)
        with serving(app) as server:
            answer = refused(server)
            assert (answer.status, answer.headers["x-error"]) == (401, "yes")
            assert answer.body == '{"error":"Unauthorized"}\n'

    def test_what_flask_makes_a_response_of(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)
        sockets.route("/dict", endpoint="dict")(lambda session: {"a": 1})
        sockets.route("/tuple", endpoint="tuple")(lambda session: ("no", 409, {"X-Y": "z"}))
        sockets.route("/redirect", endpoint="redirect")(lambda session: flask.redirect(flask.url_for("dict")))
        sockets.route("/stream", endpoint="stream")(lambda session: iter(["a", "b"]))
        with serving(app) as server:
            assert refused(server, "/dict").body == '{"a":1}\n'
            answer = refused(server, "/tuple")
            assert (answer.status, answer.body, answer.headers["x-y"]) == (409, "no", "z")
            assert refused(server, "/redirect", Host="h").headers["location"] == "ws://h/dict"
            assert "a" in refused(server, "/stream").body

    def test_login_required(self, app: flask.Flask) -> None:
        """As flask-login has it: a decorator that knows nothing of WebSockets."""
        sockets = WebSockets(app)

        def login_required(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def decorated(*arguments: Any, **values: Any) -> Any:
                if "user" not in flask.session:
                    return flask.redirect("/login")
                return current_app.ensure_sync(function)(*arguments, **values)

            return decorated

        @sockets.route("/room/<int:number>")
        @login_required
        def room(session: Any, number: int) -> None:
            session.send(f"{flask.session['user']} {number}")

        with serving(app) as server:
            answer = refused(server, "/room/1")
            assert (answer.status, answer.headers["location"]) == (302, "/login")
            assert conversation(server, "/room/2", Cookie=cookie(app, user="ada")) == [b"ada 2"]

    def test_an_exception_is_flasks(self, app: flask.Flask, caplog: Any) -> None:
        sockets = WebSockets(app)

        @sockets.route("/handled")
        def handled(session: Any) -> None:
            raise LookupError("x")

        @sockets.route("/unhandled")
        def unhandled(session: Any) -> None:
            raise KeyboardError("x")

        class KeyboardError(Exception):
            pass

        @app.errorhandler(LookupError)
        def handle(error: LookupError) -> Any:
            return "handled", 418

        @app.errorhandler(500)
        def handle_all(error: Any) -> Any:
            return f"oops {type(error.original_exception).__name__}", 500

        with serving(app) as server:
            assert refused(server, "/handled").status == 418
            assert not caplog.records
            answer = refused(server, "/unhandled")
            assert (answer.status, answer.body) == (500, "oops KeyboardError")
        assert [record.name for record in caplog.records] == [app.name]


class TestSession:
    def test_it_can_be_read(self, app: flask.Flask) -> None:
        WebSockets(app).route("/")(lambda session: session.send(flask.session["user"]))
        with serving(app) as server, Peer(server, Cookie=cookie(app, user="ada")) as peer:
            assert session_in(app, peer.head()) is None
            assert peer.frame() == (0x81, b"ada")

    @pytest.mark.parametrize("where", ["before_request", "hook", "handler", "another greenlet"])
    def test_a_changed_one_goes_out_with_the_101(self, app: flask.Flask, where: str, caplog: Any) -> None:
        sockets = WebSockets(app)

        def change() -> None:
            flask.session["seen"] = flask.session["seen"] + 1

        if where == "before_request":
            app.before_request(change)
        elif where == "hook":
            sockets.before_request(change)

        @sockets.route("/")
        def handler(session: Any) -> None:
            if where == "handler":
                change()
                session.send("x")
            elif where == "another greenlet":
                change()
                gevent.spawn(session.send, "x").get(timeout=PATIENCE)

        with serving(app) as server, Peer(server, Cookie=cookie(app, seen=1)) as peer:
            head = peer.head()
            assert head.startswith("HTTP/1.1 101 ")
            assert session_in(app, head) == {"seen": 2}
        assert not caplog.records

    def test_one_that_is_saved_elsewhere(self, app: flask.Flask) -> None:
        """Which may take time, in which another greenlet uses the WebSocket's session first."""
        saved: list[Any] = []
        go = Event()

        class Elsewhere(flask.sessions.SessionInterface):
            def open_session(self, app: flask.Flask, request: flask.Request) -> Any:
                return AlwaysModified()

            def save_session(self, app: flask.Flask, session: Any, response: flask.Response) -> None:
                saved.append(dict(session))
                go.wait(PATIENCE)

        class AlwaysModified(dict[str, Any], flask.sessions.SessionMixin):
            """One that does not know whether it was changed."""

        app.session_interface = Elsewhere()
        sockets = WebSockets(app)

        @sockets.route("/")
        def handler(session: Any) -> None:
            flask.session["a"] = 1
            others = [gevent.spawn(session.send, "x") for _ in range(3)]
            wait_until(lambda: len(saved) == 3)
            gevent.spawn(go.set)
            with pytest.raises(UsageError, match="accepted already"):
                session.accept(headers=[("X-Late", "1")])
            gevent.joinall(others, raise_error=True)
            flask.session["b"] = 2

        with serving(app) as server:
            assert conversation(server) == [b"x"] * 3
            wait_until(lambda: not server._connections)
        assert saved == [{"a": 1}] * 4 + [{"a": 1, "b": 2}]

    def test_an_emptied_one_is_deleted(self, app: flask.Flask) -> None:
        WebSockets(app).route("/")(lambda session: flask.session.clear())
        with serving(app) as server, Peer(server, Cookie=cookie(app, seen=1)) as peer:
            assert "Set-Cookie: session=; Expires=Thu, 01 Jan 1970" in peer.head()

    def test_a_permanent_one_is_refreshed(self, app: flask.Flask) -> None:
        WebSockets(app).route("/")(lambda session: None)
        with serving(app) as server, Peer(server, Cookie=cookie(app, seen=1, _permanent=True)) as peer:
            assert session_in(app, peer.head()) == {"seen": 1, "_permanent": True}

    def test_without_a_secret_key(self) -> None:
        app = flask.Flask(__name__)
        WebSockets(app).route("/")(lambda session: None)
        with serving(app) as server:
            assert conversation(server) == []

    def test_a_change_after_the_101_is_warned_of(self, app: flask.Flask, caplog: Any) -> None:
        sockets = WebSockets(app)

        @sockets.route("/late")
        def late(session: Any) -> None:
            session.accept()
            flask.session["late"] = 1

        @sockets.route("/early")
        def early(session: Any) -> None:
            flask.session["early"] = 1

        with serving(app) as server:
            assert conversation(server, "/early") == []
            assert not caplog.records
            assert conversation(server, "/late") == []
            wait_until(lambda: caplog.records)
        assert "after the 101 of '/late'" in caplog.text

    def test_a_refusal_sets_it_as_any_page_does(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)

        @sockets.route("/")
        def handler(session: Any) -> Any:
            flask.session["next"] = "/ws"
            return flask.redirect("/login")

        with serving(app) as server:
            answer = refused(server)
            assert answer.status == 302
            assert "session=" in answer.headers["set-cookie"]


class TestContexts:
    def test_they_live_as_long_as_the_handler(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)
        events: list[str] = []

        @app.before_request
        def begin() -> None:
            g.user = "ada"

        @app.teardown_request
        def end_request(error: Any) -> None:
            events.append(f"teardown request {error}")

        @app.teardown_appcontext
        def end_app(error: Any) -> None:
            events.append(f"teardown app {error}")

        @app.after_request
        def after(response: flask.Response) -> flask.Response:
            events.append(f"after {response.status_code}")
            return response

        @sockets.route("/")
        def handler(session: Any) -> None:
            for message in session:
                assert current_app._get_current_object() is app  # type: ignore[attr-defined]
                assert session.request is request._get_current_object()  # type: ignore[attr-defined]
                session.send(f"{g.user} {request.args['q']} {message}")
            events.append("handler")

        with serving(app) as server, Peer(server, "/?q=1") as peer:
            peer.accepted().send(frame(TEXT, b"a"))
            assert peer.frame() == (0x81, b"ada 1 a")
            assert events == []
            peer.send(close_frame())
            peer.closed_with(1000)
            wait_until(lambda: len(events) == 4)
        assert events == ["handler", "after 101", "teardown request None", "teardown app None"]

    def test_two_sessions_have_their_own(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)

        @sockets.route("/<name>")
        def handler(session: Any, name: str) -> None:
            g.name = name
            for _ in session:
                session.send(f"{g.name} {request.path}")

        with serving(app) as server, Peer(server, "/a") as a, Peer(server, "/b") as b:
            a.accepted()
            b.accepted()
            for _ in range(2):
                a.send(frame(TEXT))
                b.send(frame(TEXT))
                assert a.frame() == (0x81, b"a /a")
                assert b.frame() == (0x81, b"b /b")


class TestAfter101:
    @contextmanager
    def failing(self, app: flask.Flask, error: Exception) -> Iterator[list[Any]]:
        """Runs a handler that raises ``error`` after the 101; gives what the signal and the teardown functions got."""
        told: list[Any] = []

        def receive(sender: Any, exception: Any, **_: Any) -> None:
            told.append(("signal", exception, request.path))

        @app.teardown_request
        def end(exception: Any) -> None:
            told.append(("teardown", exception))

        sockets = WebSockets(app)

        @sockets.route("/<name>")
        def handler(session: Any, name: str) -> None:
            session.send("x")
            raise error

        with got_request_exception.connected_to(receive, app), serving(app) as server, Peer(server, "/ada") as peer:
            assert peer.accepted().frame() == (0x81, b"x")
            assert peer.frame() == (0x88, b"\x03\xf3")
            peer.send(close_frame(1011))
            # Nothing of Flask's page (C2 row 15).
            peer.ended()
            wait_until(lambda: not server._connections)
            yield told

    def test_an_exception_is_what_flask_calls_unhandled(self, app: flask.Flask, caplog: Any) -> None:
        """The signal for Sentry and the like, the app's log, and the error for teardown functions: each once."""
        error = KeyError("secret")
        with self.failing(app, error) as told:
            assert told == [("signal", error, "/ada"), ("teardown", error)]
        (record,) = caplog.records
        assert (record.name, record.getMessage()) == (app.name, "Exception on /ada [GET]")
        assert record.exc_info[1] is error

    def test_an_error_handler_does_not_hide_it(self, app: flask.Flask, caplog: Any) -> None:
        """One for HTTP would answer the exception with a page, which nobody gets."""
        called = []
        app.errorhandler(KeyError)(lambda error: called.append(error) or ("a page", 400))
        app.errorhandler(500)(lambda error: called.append(error.original_exception) or ("a page", 500))
        error = KeyError("x")
        with self.failing(app, error) as told:
            assert [kind for kind, *_ in told] == ["signal", "teardown"]
        assert called == [error]
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("option", ["DEBUG", "TESTING", "PROPAGATE_EXCEPTIONS"])
    def test_one_that_propagates_is_on_no_wire(self, app: flask.Flask, option: str, capsys: Any) -> None:
        app.config[option] = True
        error = TypeError("propagated")
        with self.failing(app, error) as told:
            assert [kind for kind, *_ in told] == ["signal", "teardown"]
        assert capsys.readouterr().err.count("TypeError: propagated") == 1

    def test_one_in_an_upgrade_that_a_view_returns(self, app: flask.Flask, caplog: Any) -> None:
        WebSockets(app)
        told = []
        got_request_exception.connect(lambda sender, exception, **_: told.append(exception), app, weak=False)

        @app.route("/", websocket=True)
        def live() -> Any:
            def handle(session: Any) -> None:
                session.accept()
                raise TypeError("x")

            return WebSocketUpgrade(handle)

        with serving(app) as server, Peer(server) as peer:
            peer.accepted().closed_with(1011)
            wait_until(lambda: caplog.records)
        assert [str(error) for error in told] == ["x"]
        assert len(caplog.records) == 1

    def test_an_abort_is_an_error(self, app: flask.Flask, caplog: Any) -> None:
        app.errorhandler(404)(lambda error: ("not found", 404))
        sockets = WebSockets(app)

        @sockets.route("/")
        def handler(session: Any) -> None:
            session.accept()
            flask.abort(404)

        with serving(app) as server, Peer(server) as peer:
            peer.accepted().closed_with(1011)
            wait_until(lambda: caplog.records)
        assert isinstance(caplog.records[0].exc_info[1], UsageError)

    def test_a_killed_handler_is_torn_down_too(self, app: flask.Flask) -> None:
        sockets = WebSockets(app)
        handlers: list[Any] = []
        torn_down: list[Any] = []
        app.teardown_request(torn_down.append)

        @sockets.route("/")
        def handler(session: Any) -> None:
            session.accept()
            handlers.append(gevent.getcurrent())
            session.receive()

        with serving(app) as server, Peer(server) as peer:
            peer.accepted()
            wait_until(lambda: handlers)
            gevent.kill(handlers[0])
            peer.closed_with(1001)
            wait_until(lambda: torn_down)
        assert isinstance(torn_down[0], gevent.GreenletExit)

    def test_a_failing_after_request_function_is_flasks_affair(self, app: flask.Flask, caplog: Any) -> None:
        sockets = WebSockets(app)

        @app.after_request
        def fail(response: Any) -> Any:
            raise LookupError("after")

        sockets.route("/")(lambda session: session.send("x"))
        with serving(app) as server:
            assert conversation(server) == [b"x"]
            wait_until(lambda: not server._connections)
        assert all(record.levelno == logging.ERROR for record in caplog.records)


class TestUpgradeFromAView:
    def test_a_view_returns_one(self, app: flask.Flask) -> None:
        WebSockets(app, max_frame_size=99, extensions=[PermessageDeflate()])

        @app.route("/live/<name>", websocket=True)
        def live(name: str) -> Any:
            flask.session["name"] = name

            def handle(session: Any) -> None:
                assert session.application is app
                assert session.request is request._get_current_object()  # type: ignore[attr-defined]
                session.accept()
                session.send(
                    Frame.text(f"{name} {current_app.name} {session.max_frame_size} {len(session.extensions)}")
                )

            return WebSocketUpgrade(handle, protocol="v1", install_extensions=name == "ada")

        with serving(app) as server:
            fields = {"Sec_WebSocket_Protocol": "v1", "Sec_WebSocket_Extensions": "permessage-deflate"}
            for name, extensions in (("ada", 1), ("bob", 0)):
                with Peer(server, f"/live/{name}", **fields) as peer:
                    head = peer.head()
                    assert session_in(app, head) == {"name": name}
                    assert ("permessage-deflate" in head) == bool(extensions)
                    assert peer.frame() == (0x81, f"{name} tests.test_flask 99 {extensions}".encode())
                    peer.ended()
            assert refused(server, "/live/ada").status == 400
            assert fetch(server, "/live/ada").status == 426

    def test_without_the_extension(self, app: flask.Flask) -> None:
        @app.route("/", websocket=True)
        def live() -> Any:
            return WebSocketUpgrade(lambda session: session.send(Frame.text("live")))

        with serving(app) as server:
            with Peer(server) as peer:
                assert peer.accepted().frame() == (0x81, b"live")
                peer.ended()
            assert fetch(server).status == 400

    def test_a_handshake_error_in_a_view_is_not_geventws_affair(self, app: flask.Flask) -> None:
        """Nothing of Flask is changed for pages."""
        WebSockets(app)

        @app.get("/")
        def page() -> str:
            raise HandshakeError(403, "mine")

        with serving(app) as server:
            assert fetch(server).status == 500
