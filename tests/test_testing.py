"""geventws.testing, used as the tests of an app use it."""

from __future__ import annotations

import contextvars
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask
import gevent
import pytest
from werkzeug.exceptions import abort

import geventws
from geventws.flask import WebSockets as FlaskWebSockets
from geventws.testing import connect
from tests.programs import ROOT

#: For what is to fail by its limit.
SHORT = 0.1


def make_app() -> geventws.WebSockets:
    app = geventws.WebSockets(content_converter=geventws.JSONConverter(), extensions=[geventws.PermessageDeflate()])

    @app.route("/echo")
    def echo(session: Any) -> None:
        for message in session:
            session.send(message)

    @app.route("/goodbye")
    def goodbye(session: Any) -> None:
        session.accept(headers=[("X-Room", "7")])
        session.send(session.request.query_string.decode())
        session.close(4000, "enough")

    @app.route("/protocols", protocol=["v2", "v1"])
    def protocols(session: Any) -> None:
        session.send(session.protocol)

    @app.route("/raw", raw=True)
    def raw(session: Any) -> None:
        for frame in session:
            session.send(frame)

    @app.route("/sum")
    def add(session: Any) -> None:
        session.send_serialized({"sum": sum(session.receive_deserialized(list))})

    @app.route("/environ")
    def environ(session: Any) -> None:
        told = session.environ
        session.send(f"{told['wsgi.url_scheme']} {told['HTTP_HOST']} {told['SERVER_PORT']} {told.get('REMOTE_USER')}")

    @app.route("/private")
    def private(session: Any) -> None:
        abort(401, "log in first")

    @app.route("/json")
    def refuse_in_json(session: Any) -> Any:
        from werkzeug.wrappers import Response

        return Response('{"error": "too many"}', status=429, mimetype="application/json")

    @app.route("/early")
    def early(session: Any) -> None:
        raise KeyError("before the 101")

    @app.route("/late")
    def late(session: Any) -> None:
        session.receive()
        raise KeyError("after the 101")

    @app.route("/asleep")
    def asleep(session: Any) -> None:
        session.accept()
        gevent.sleep(3600)

    @app.route("/never")
    def never(session: Any) -> None:
        gevent.sleep(3600)

    return app


app = make_app()


def blocking(block: Callable[[], object]) -> geventws.WebSockets:
    """An app whose handler calls ``block`` when it has a message."""
    made = geventws.WebSockets()

    @made.route("/")
    def wait(session: Any) -> None:
        session.receive()
        block()

    return made


@pytest.fixture
def interrupts_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks the thread is interrupted after a moment."""
    monkeypatch.setattr("geventws.interrupting.GRACE", SHORT)
    monkeypatch.setattr("geventws.interrupting.INTERVAL", SHORT)


class TestConversations:
    def test_messages_both_ways(self) -> None:
        with connect(app, "/echo") as ws:
            for message in ("hello", b"\x00\xff", "", "Grüße, 世界"):
                ws.send(message)
                assert ws.receive() == message
            assert ws.close_reason is None
        assert ws.closed
        assert ws.close_reason == (1000, "")

    def test_the_handler_closes(self) -> None:
        with connect(app, "/goodbye?a=1&b=%20") as ws:
            assert ws.headers["X-Room"] == "7"
            assert ws.receive() == "a=1&b=%20"
            with pytest.raises(geventws.ConnectionClosed):
                ws.receive()
            assert ws.close_reason == (4000, "enough")

    def test_iteration_ends_with_the_session(self) -> None:
        with connect(app, "/goodbye?x") as ws:
            assert list(ws) == ["x"]

    def test_a_code_of_ones_own(self) -> None:
        with connect(app, "/echo") as ws:
            ws.close(4001, "done")
            assert ws.close_reason == (4001, "done")
            with pytest.raises(geventws.ConnectionClosed):
                ws.send("more")

    def test_protocols(self) -> None:
        with connect(app, "/protocols", protocols=["v0", "v1", "v2"]) as ws:
            assert ws.protocol == "v2"
            assert ws.receive() == "v2"

    def test_none_for_what_is_not_given(self) -> None:
        with connect(app, "/echo", protocols=None, headers=None) as ws:
            ws.send("hello")
            assert ws.receive() == "hello"

    def test_raw(self) -> None:
        with connect(app, "/raw", raw=True) as ws:
            ws.send(geventws.Frame.text("a", fin=False))
            assert ws.receive() == geventws.Frame.text("a", fin=False)
            ws.send(geventws.Frame.continuation(b"b"))
            assert ws.receive().payload == b"b"
            ws.send(geventws.Frame.ping(b"?"))
            assert ws.receive() == geventws.Frame.ping(b"?")

    def test_objects(self) -> None:
        with connect(app, "/sum", content_converter=geventws.JSONConverter()) as ws:
            ws.send_serialized([1, 2])
            assert ws.receive_deserialized(dict) == {"sum": 3}

    def test_extensions(self) -> None:
        with connect(app, "/echo", extensions=[geventws.PermessageDeflate()]) as ws:
            assert len(ws.extensions) == 1
            ws.send("a" * 10_000)
            assert ws.receive() == "a" * 10_000
        with connect(app, "/echo") as ws:
            assert ws.extensions == ()

    def test_the_environ(self) -> None:
        with connect(app, "/environ") as ws:
            assert ws.receive() == "http localhost 80 None"
        with connect(app, "wss://example.com:8443/environ", environ={"REMOTE_USER": "ada"}) as ws:
            assert ws.receive() == "https example.com:8443 8443 ada"

    def test_several_at_a_time(self) -> None:
        visitors: set[Any] = set()
        rooms = geventws.WebSockets()

        @rooms.route("/")
        def talk(session: Any) -> None:
            session.accept()
            visitors.add(session)
            for message in session:
                geventws.broadcast(visitors, message)

        with connect(rooms) as ada, connect(rooms) as grace:
            ada.send("hello")
            assert [ada.receive(), grace.receive()] == ["hello", "hello"]

    def test_a_wsgi_app_that_upgrades(self) -> None:
        with connect(geventws.WebSocketUpgrade(lambda session: session.send(geventws.Frame.text("up")))) as ws:
            assert ws.receive() == "up"

    def test_the_handler_has_a_context_of_its_own(self) -> None:
        """As in production: what the test has pushed, an app context of Flask's too, is not there."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
        variable.set("the test's")
        looking = geventws.WebSockets()

        @looking.route("/")
        def look(session: Any) -> None:
            session.send(variable.get())

        with connect(looking) as ws:
            assert ws.receive() == "none"

    def test_a_large_message_and_pings(self) -> None:
        with connect(app, "/echo") as ws:
            ws.send(b"x" * 1_000_000)
            assert len(ws.receive()) == 1_000_000
            assert ws.ping() < 5


class TestRefusals:
    def test_the_response_is_named(self) -> None:
        with pytest.raises(geventws.HandshakeRefused, match=r"^401 Unauthorized: log in first$") as refused:
            connect(app, "/private")
        assert refused.value.status == 401
        assert refused.value.headers["content-type"] == "text/html; charset=utf-8"
        assert "<p>log in first</p>" in refused.value.text

    def test_json(self) -> None:
        with pytest.raises(geventws.HandshakeRefused) as refused:
            connect(app, "/json")
        assert refused.value.status == 429
        assert refused.value.json == {"error": "too many"}

    @pytest.mark.parametrize(
        ("path", "options", "told"),
        [
            ("/nowhere", {}, "404 Not Found"),
            ("/echo", {"origin": "https://evil.example"}, "403 Forbidden: Pages of the Origin"),
            ("/protocols", {"protocols": ["v9"]}, "400 Bad Request: This route speaks the subprotocols v2, v1"),
        ],
    )
    def test_other_ones(self, path: str, options: dict[str, Any], told: str) -> None:
        with pytest.raises(geventws.HandshakeRefused, match=told):
            connect(app, path, **options)

    def test_the_same_origin(self) -> None:
        with connect(app, "/echo", origin="http://localhost") as ws:
            ws.send("x")
            assert ws.receive() == "x"


class TestFailures:
    def test_an_exception_that_leaves_the_handler_is_raised_at_the_end(self) -> None:
        with pytest.raises(KeyError, match="after the 101") as raised, connect(app, "/late") as ws:
            ws.send("go")
            assert ws.wait_closed()
            assert ws.close_reason == (1011, "")
        # With the line where it was.
        assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "late"

    def test_it_takes_the_place_of_what_follows_from_it(self) -> None:
        with pytest.raises(KeyError, match="after the 101"), connect(app, "/late") as ws:
            ws.send("go")
            ws.receive()

    def test_but_not_of_the_tests_own(self) -> None:
        with pytest.raises(AssertionError), connect(app, "/late") as ws:
            ws.send("go")
            ws.wait_closed()
            raise AssertionError

    def test_one_before_the_101(self) -> None:
        with pytest.raises(KeyError, match="before the 101"):
            connect(app, "/early")
        with pytest.raises(geventws.HandshakeRefused, match="500 Internal Server Error"):
            connect(app, "/early", propagate=False)

    def test_without_propagate(self) -> None:
        with connect(app, "/late", propagate=False) as ws:
            ws.send("go")
            assert ws.wait_closed()
            assert ws.close_reason == (1011, "")

    def test_assertions_in_handlers_count(self) -> None:
        checked = geventws.WebSockets()

        @checked.route("/")
        def check(session: Any) -> None:
            assert session.receive() == "right"

        with pytest.raises(AssertionError), connect(checked) as ws:
            ws.send("wrong")

    def test_no_message_in_time(self) -> None:
        with (
            pytest.raises(
                TimeoutError, match=rf"^no message came within {SHORT} s: the app waits in echo, .*\.py:\d+$"
            ),
            connect(app, "/echo", receive_timeout=SHORT) as ws,
        ):
            ws.receive()
        with connect(app, "/echo") as ws:
            with pytest.raises(TimeoutError):
                ws.receive(timeout=SHORT)
            ws.send("late")
            assert ws.receive() == "late"

    def test_a_handler_that_never_answers(self) -> None:
        with pytest.raises(TimeoutError, match=r"did not answer the handshake .* the app waits in never"):
            connect(app, "/never", receive_timeout=SHORT)

    def test_a_handler_that_does_not_return(self) -> None:
        with (
            pytest.raises(TimeoutError, match=r"did not return .* the app waits in asleep"),
            connect(app, "/asleep", receive_timeout=SHORT),
        ):
            pass

    def test_nothing_is_read(self) -> None:
        with (
            pytest.raises(TimeoutError, match=r"nothing more was read .* the app waits in asleep"),
            connect(app, "/asleep", receive_timeout=SHORT) as ws,
        ):
            while True:
                ws.send(b"x" * 65536)

    @pytest.mark.parametrize(
        "block", [lambda: time.sleep(3600), lambda: queue.Queue[int]().get()], ids=["time.sleep", "queue.Queue"]
    )
    def test_a_handler_that_blocks_the_thread(self, interrupts_soon: None, block: Callable[[], object]) -> None:
        with (
            pytest.raises(geventws.UsageError, match=r"monkey\.patch_all\(\)") as raised,
            connect(blocking(block), receive_timeout=SHORT) as ws,
        ):
            ws.send("go")
            ws.receive()
        assert "block()" in [entry.line for entry in traceback.extract_tb(raised.value.__traceback__)]

    def test_a_handler_that_blocks_the_thread_while_the_test_waits_for_the_end(self, interrupts_soon: None) -> None:
        with (
            pytest.raises(geventws.UsageError, match=r"monkey\.patch_all\(\)"),
            connect(blocking(lambda: time.sleep(3600)), receive_timeout=SHORT) as ws,
        ):
            ws.send("go")
            ws.wait_closed()

    def test_what_blocks_the_thread_within_a_framework_that_answers_errors(self, interrupts_soon: None) -> None:
        pages = flask.Flask(__name__)
        FlaskWebSockets(pages)
        pages.before_request(lambda: time.sleep(3600))
        with pytest.raises(geventws.UsageError, match=r"monkey\.patch_all\(\)"):
            connect(pages, receive_timeout=SHORT)

    def test_another_thread(self) -> None:
        told: list[str] = []

        def use() -> None:
            for call in (ws.receive, lambda: ws.send("x"), ws.close):
                try:
                    call()
                except geventws.UsageError as error:
                    told.append(str(error))

        with connect(app, "/echo") as ws:
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
        assert len(told) == 3
        assert told[0].startswith("this WebSocket belongs to the thread that connected it")

    def test_a_thread_of_its_own(self) -> None:
        heard: list[Any] = []

        def talk() -> None:
            with connect(app, "/echo") as ws:
                ws.send("x")
                heard.append(ws.receive())
            gevent.get_hub().destroy(destroy_loop=True)

        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()
        assert heard == ["x"]

    @pytest.mark.parametrize(
        ("wrong", "options", "told"),
        [
            (geventws.Blueprint("x"), {}, "a Blueprint is no app"),
            (None, {}, "app must be a WSGI app, not NoneType"),
            (app, {"path": "http://localhost/"}, "must begin with ws:// or wss://"),
            (app, {"path": "echo"}, 'path must begin with a slash, as in "/chat"'),
            (app, {"path": ""}, "path must begin with a slash"),
            (app, {"receive_timeout": 0}, "receive_timeout must be"),
            (app, {"masking": False}, "clients always mask"),
            (app, {"pingintervall": 3}, "ping_interval"),
            (app, {"protocols": "v1"}, r"must be a list, as in \['v1'\]"),
            (app, {"headers": {"X": "a\r\nb"}}, "the header X has characters"),
            (app, {"headers": {"Upgrade": "h2c"}}, "not for an app to set"),
        ],
    )
    def test_wrong_arguments(self, wrong: Any, options: dict[str, Any], told: str) -> None:
        with pytest.raises((ValueError, TypeError), match=told):
            connect(wrong, **options)


class TestFlask:
    def app(self) -> flask.Flask:
        app = flask.Flask(__name__)
        app.secret_key = "of the tests"
        sockets = FlaskWebSockets(app)

        @app.post("/login")
        def log_in() -> str:
            flask.session["user"] = flask.request.form["user"]
            return "in"

        @sockets.route("/ws")
        def whoami(session: Any) -> None:
            if "user" not in flask.session:
                flask.abort(401, "log in first")
            session.send(flask.session["user"])

        @sockets.route("/fails")
        def fails(session: Any) -> None:
            session.receive()
            raise KeyError("in Flask")

        return app

    def test_the_session_of_a_test_client(self) -> None:
        app = self.app()
        client = app.test_client()
        client.post("/login", data={"user": "ada"})
        cookie = client.get_cookie("session")
        assert cookie is not None
        with connect(app, "/ws", headers={"Cookie": f"session={cookie.value}"}) as ws:
            assert ws.receive() == "ada"
        with pytest.raises(geventws.HandshakeRefused, match="401 Unauthorized: log in first"):
            connect(app, "/ws")

    @pytest.mark.parametrize("testing", [False, True])
    def test_an_exception(self, testing: bool) -> None:
        app = self.app()
        app.testing = testing
        with pytest.raises(KeyError, match="in Flask"), connect(app, "/fails") as ws:
            ws.send("go")
            ws.receive()


SAMPLE = """
import sys

def test_the_plugin_imports_nothing():
    assert not [name for name in sys.modules if name.partition(".")[0] in ("geventws", "gevent")]

def test_echo(websocket_connect):
    import geventws
    app = geventws.WebSockets()

    @app.route("/")
    def echo(session):
        for message in session:
            session.send(message)

    first, second = websocket_connect(app), websocket_connect(app, "/")
    for ws in (first, second):
        ws.send("hello")
        assert ws.receive() == "hello"
    with websocket_connect(app) as ws:
        ws.send("hello")
        assert ws.receive() == "hello"

def test_failure(websocket_connect):
    import geventws
    app = geventws.WebSockets()

    @app.route("/")
    def fail(session):
        session.accept()
        raise KeyError("of the handler")

    websocket_connect(app).wait_closed()
"""


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_sample.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "KeyError: 'of the handler'" in done.stdout


def test_a_patched_process(tmp_path: Path) -> None:
    (tmp_path / "patched.py").write_text(
        "from gevent import monkey; monkey.patch_all()\n"
        "import time, geventws, geventws.testing\n"
        "app = geventws.WebSockets()\n"
        "@app.route('/')\n"
        "def nap(session):\n"
        "    time.sleep(0.01)\n"
        "    session.send('slept')\n"
        "with geventws.testing.connect(app) as ws:\n"
        "    print(ws.receive())\n"
    )
    done = subprocess.run(
        [sys.executable, "patched.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("slept\n", "", 0)
