"""Apps of Flask-Sockets on geventws: as on the real package where that still works, and as its README where not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import flask
import pytest
from werkzeug.routing import BaseConverter, Map

import geventws.flask
from geventws import UsageError, WebSockets
from geventws.compat.flask_sockets import Sockets
from tests.faces import conversation, fetch, refused
from tests.old_conversations import BINARY_FRAME, CLOSE_FRAME, Server, Servers
from tests.peer import Peer, serving
from tests.rigs import get, offer
from tests.wire import BINARY, TEXT, close_frame, frame


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(params=[("real", "sockets"), ("ours", "sockets"), ("ours", "handler")], ids="-".join)
def either(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """The ways of the README to serve an app: gunicorn with the worker's name there, and a handler class."""
    return servers.get(*request.param)


@pytest.fixture
def ours(servers: Servers) -> Server:
    return servers.get("ours", "sockets")


class TestAlike:
    """The real package with the one repair that lets its routes match at all (see `old_apps`)."""

    def test_echo(self, either: Server) -> None:
        with either.client("/flask/echo") as client:
            client.say(TEXT, b"hello")
            client.hears("hello")
            client.say(BINARY, b"\x00")
            assert client.hear() == (BINARY_FRAME, b"\x00")
            client.bye()

    def test_values_and_contexts(self, either: Server) -> None:
        with either.client("/flask/values/7/ada?a=b") as client:
            path = "/flask/values/7/ada"
            assert client.told() == [7, "ADA", path, {"a": "b"}, "tests.old_apps", "/flask/page"]
            assert client.told() == [None, None]
            assert client.hear()[0] == CLOSE_FRAME

    def test_what_has_no_route_goes_on_to_flask(self, either: Server) -> None:
        assert get(either.address, "/flask/page") == "page"
        with either.client("/flask/marked") as client:
            client.hears("view ")


class TestReadme:
    """What fails with the real package on Flask since version 2."""

    def test_blueprints(self, ours: Server) -> None:
        for path in ("/flask/blueprint", "/flask/second/flask/blueprint"):
            with ours.client(path) as client:
                client.say(TEXT, b"hello")
                client.hears("hello")
                client.bye()
        with ours.client("/flask/second/41") as client:
            client.hears("41 7 /flask/second/41")
        assert get(ours.address, "/flask/hello") == "Hello World!"

    def test_a_page_on_the_same_path(self, ours: Server) -> None:
        with ours.client("/flask/both") as client:
            client.hears("socket")
        assert get(ours.address, "/flask/both") == "page"

    def test_a_view_that_fails_with_a_key_error_has_failed(self, ours: Server) -> None:
        """The real package takes it for a request without a WebSocket, and goes on to the app."""
        with ours.client("/flask/fails") as client:
            assert client.hear() == (CLOSE_FRAME, b"\x03\xf3")
            client.send(close_frame(1011))
            assert client.rest() == b""
        ours.program.wait_for("the handler fails_socket failed")
        ours.program.wait_for("KeyError: 'fails'")


class Upper(BaseConverter):
    """A converter of an app's own."""

    def to_python(self, value: str) -> str:
        return value.upper()


@pytest.fixture
def app() -> flask.Flask:
    app = flask.Flask(__name__)
    app.secret_key = "not secret"
    return app


class TestSockets:
    """On a server that knows nothing of the older libraries."""

    def test_init_app_later_and_converters(self, app: flask.Flask) -> None:
        sockets = Sockets()
        assert isinstance(sockets.url_map, Map)
        sockets.url_map.converters["upper"] = Upper

        @sockets.route("/<upper:name>")
        def view(ws: Any, name: str) -> None:
            ws.send(name)

        sockets.init_app(app)
        sockets.add_url_rule("/added/<int:number>", None, lambda ws, number: ws.send(str(number + 1)))
        assert view.__name__ == "view"
        with serving(app) as server:
            assert conversation(server, "/ada") == [b"ADA"]
            assert conversation(server, "/added/1") == [b"2"]
            assert refused(server, "/nothing/at/all").status == 404
            assert refused(server, "/ada", Sec_WebSocket_Version="8").status == 426
            assert refused(server, "/ada", Origin="http://evil.example").status == 403
            assert fetch(server, "/ada").status == 404

    def test_settings(self, app: flask.Flask) -> None:
        sockets = Sockets(app, max_frame_size=4, origins=["http://good.example"])

        @sockets.route("/")
        def view(ws: Any) -> None:
            while (message := ws.receive()) is not None:
                ws.send(message)

        with serving(app) as server, Peer(server, Origin="http://good.example") as peer:
            peer.accepted()
            peer.send(frame(TEXT, b"four"))
            assert peer.frame() == (0x81, b"four")
            peer.send(frame(TEXT, b"seven"))
            peer.closed_with(1009)

    def test_the_session_and_the_clients(self, app: flask.Flask) -> None:
        sockets = Sockets(app)
        left: list[Any] = []

        @sockets.route("/")
        def view(ws: Any) -> None:
            clients = ws.handler.server.clients
            ws.send(f"{flask.session.get('user')} {len(clients)} {ws.handler.active_client.ws is ws}")
            left.append(clients)
            ws.handler.active_client.room = 7

        serializer = flask.sessions.SecureCookieSessionInterface().get_signing_serializer(app)
        assert serializer is not None
        with serving(app) as server:
            cookie = f"session={serializer.dumps({'user': 'ada'})}"
            assert conversation(server, Cookie=cookie) == [b"ada 1 True"]
        assert left == [{}]

    def test_beside_routes_of_geventws(self, app: flask.Flask) -> None:
        """For a move route by route."""
        old, new = Sockets(app), geventws.flask.WebSockets(app)

        @old.route("/old")
        def old_view(ws: Any) -> None:
            ws.send("old")

        @new.route("/new")
        def new_view(session: Any) -> None:
            session.send("new")

        with serving(app) as server:
            assert conversation(server, "/old") == [b"old"]
            assert conversation(server, "/new") == [b"new"]

    def test_behind_another_app(self, app: flask.Flask) -> None:
        sockets = Sockets(app)

        @sockets.route("/old/", strict_slashes=False)
        def old_view(ws: Any) -> None:
            ws.send("old")

        with serving(WebSockets(app)) as server:
            assert conversation(server, "/old") == [b"old"]

    def test_blueprints(self, app: flask.Flask) -> None:
        sockets = Sockets(app)
        chat = flask.Blueprint("chat", __name__, url_prefix="/chat")

        @chat.route("/<room>")
        def view(ws: Any, room: str) -> None:
            ws.send(room)

        sockets.register_blueprint(chat)
        sockets.register_blueprint(chat, url_prefix="/other")
        assert sockets.blueprints == {"chat": chat}
        with pytest.raises(UsageError, match="a blueprint 'chat' is registered already"):
            sockets.register_blueprint(flask.Blueprint("chat", __name__))
        sockets.register_blueprint(flask.Blueprint("chat", __name__), name="second")
        with serving(app) as server:
            assert conversation(server, "/chat/one") == [b"one"]
            assert conversation(server, "/other/two") == [b"two"]

    @pytest.mark.parametrize("late", [False, True], ids=["app", "init_app"])
    def test_nested_blueprints_stand_where_flask_puts_them(self, app: flask.Flask, late: bool) -> None:
        """Flask's own registration is the measure: that of the real package fails on Flask since version 2."""

        def family() -> flask.Blueprint:
            parent = flask.Blueprint("parent", __name__, url_prefix="/parent")
            child = flask.Blueprint("child", __name__, url_prefix="/unused")
            grandchild = flask.Blueprint("grandchild", __name__, url_prefix="grand/")
            bare = flask.Blueprint("bare", __name__)
            for blueprint in (parent, child, grandchild, bare):

                @blueprint.route("/<int:number>")
                @blueprint.route("/named/<name>", defaults={"number": 7})
                def view(*ws: Any, number: int, name: str = blueprint.name) -> str:
                    for socket in ws:
                        socket.send(f"{flask.request.path} {number} {name}")
                    return ""

            child.register_blueprint(grandchild)
            parent.register_blueprint(child, url_prefix="/child/")
            parent.register_blueprint(child, name="again", url_prefix="/again")
            parent.register_blueprint(bare, url_defaults={"number": 8})
            return parent

        def rules(url_map: Map) -> list[str]:
            return sorted(map(str, url_map.iter_rules()))

        measure = flask.Flask(__name__, static_folder=None)
        measure.register_blueprint(family(), url_prefix="/top")
        sockets = Sockets(None if late else app)
        sockets.register_blueprint(family(), url_prefix="/top")
        if late:
            sockets.init_app(app)
            # A second app has the same rules, and no more of them.
            sockets.init_app(flask.Flask(__name__))
        assert rules(sockets.url_map) == rules(measure.url_map)
        assert list(sockets.blueprints) == list(measure.blueprints)
        with serving(app) as server:
            assert conversation(server, "/top/child/grand/41") == [b"/top/child/grand/41 41 grandchild"]
            assert conversation(server, "/top/again/named/x") == [b"/top/again/named/x 7 x"]
            assert refused(server, "/parent/41").status == 404

    @pytest.mark.parametrize("late", [False, True], ids=["app", "init_app"])
    def test_what_a_blueprint_does_to_its_app_is_as_in_flask(self, late: bool) -> None:
        def blueprint(told: list[str]) -> flask.Blueprint:
            made = flask.Blueprint("made", __name__, url_prefix="/made")
            made.before_app_request(lambda: told.append("before"))
            made.after_app_request(lambda response: told.append("after") or response)
            made.teardown_app_request(lambda error: told.append("teardown"))
            made.app_errorhandler(404)(lambda error: ("nothing here", 404))
            made.app_template_filter("double")(lambda text: text * 2)
            made.app_template_test("odd")(lambda number: number % 2)
            made.app_template_global("seven")(lambda: 7)
            made.app_context_processor(lambda: {"name": "Ada"})
            made.app_url_defaults(lambda endpoint, values: values.setdefault("lang", "en"))
            made.app_url_value_preprocessor(lambda endpoint, values: told.append("values"))
            made.record(lambda state: told.append(f"{state.app.config['MINE']} {state.url_prefix}"))
            made.record(lambda state: state.app.extensions.update(mine=state.app.name))
            made.record(lambda state: setattr(state.app, "mine", isinstance(state.app, flask.Flask)))
            made.record_once(lambda state: told.append("once"))
            made.record(lambda state: state.add_url_rule("/state", "state", lambda *ws: ""))
            made.record_once(lambda state: state.app.add_url_rule("/app", view_func=lambda *ws: ""))
            return made

        def outcome(app: flask.Flask, owner: Any) -> Any:
            told: list[str] = []
            made = blueprint(told)
            app.config["MINE"] = "configured"
            if late and owner is not app:
                owner.register_blueprint(made)
                owner.register_blueprint(made, name="again", url_prefix="/again")
                owner.init_app(app)
            else:
                owner.register_blueprint(made)
                owner.register_blueprint(made, name="again", url_prefix="/again")
            registered = list(told)
            app.add_url_rule(
                "/page", "page", lambda: flask.render_template_string("{{ name|double }} {{ 7 is odd }} {{ seven() }}")
            )
            client = app.test_client()
            pages = [client.get(path).text for path in ("/page", "/nothing")]
            return registered, pages, told, app.extensions["mine"], app.mine  # type: ignore[attr-defined]

        expected, app = flask.Flask("app"), flask.Flask("app")
        sockets = Sockets() if late else Sockets(app)
        measure = outcome(expected, expected)
        assert outcome(app, sockets) == measure
        assert measure[1] == ["AdaAda 1 7", "nothing here"]
        # Rules, however they are added, are those of WebSockets.
        assert {str(rule) for rule in sockets.url_map.iter_rules()} == {"/made/state", "/again/state", "/app"}
        assert {str(rule) for rule in app.url_map.iter_rules()} == {"/static/<path:filename>", "/page"}

    def test_a_slash_too_few_is_told(self, app: flask.Flask) -> None:
        sockets = Sockets(app)
        sockets.add_url_rule("/slash/", None, lambda ws: None)
        with serving(app) as server:
            assert refused(server, "/slash").status in (301, 308)

    def test_teardown_runs_and_errors_close_with_1011(self, app: flask.Flask, caplog: pytest.LogCaptureFixture) -> None:
        sockets = Sockets(app)
        torn: list[BaseException | None] = []
        app.teardown_request(torn.append)

        @sockets.route("/")
        def view(ws: Any) -> None:
            raise ValueError("the view failed")

        with serving(app) as server, Peer(server) as peer:
            peer.accepted().closed_with(1011)
        assert [type(error) for error in torn] == [ValueError]
        assert len([record for record in caplog.records if record.exc_info]) == 1


def test_the_module_needs_no_gunicorn() -> None:
    program = """
import sys
sys.modules["gunicorn"] = None
from geventws.compat.flask_sockets import Sockets
try:
    from geventws.compat.flask_sockets import worker
except ImportError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert finished.stderr == ""
    assert re.search("gunicorn", finished.stdout)


def test_the_offer_is_refused_where_no_server_of_geventws_runs(app: flask.Flask) -> None:
    """Then it is a page, as it was for Flask-Sockets under `app.run()`; there is no KeyError in it."""
    sockets = Sockets(app)
    sockets.add_url_rule("/", None, lambda ws: ws.send("x"))
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    assert app.test_client().get("/", headers=headers).status_code == 404
    assert offer("/").startswith(b"GET / ")
