"""The hooks of sessions that open, end and fail, and what a session tells of itself."""

from __future__ import annotations

import logging
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask
import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import geventws
from geventws import Blueprint, CloseReason, Frame, SessionStats, Topics
from geventws.call import DefaultWebSocketServerSession
from tests.faces import MakeFace, either, fetch, refused
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.programs import ROOT, development_server
from tests.wire import close_frame, frame

Told = list[tuple[Any, ...]]


def watched(sockets: Any, name: str, told: Told) -> None:
    """Has what happens to sessions noted."""
    sockets.on_open(lambda session: told.append((name, "open", session.rule)))
    sockets.on_close(lambda session, reason: told.append((name, "close", reason.code)))
    sockets.on_error(lambda session, error: told.append((name, "error", str(error))))


# -- Hooks -------------------------------------------------------------------------------------------------------------


@either
def test_hooks_of_app_and_blueprint(make: MakeFace) -> None:
    told: Told = []
    face, blueprint = make(), Blueprint("inner", __name__, url_prefix="/inner")
    watched(face.sockets, "app", told)
    watched(blueprint, "blueprint", told)
    handlers = []

    @blueprint.route("/<name>")
    def inner(session: Any, name: str) -> None:
        handlers.append(gevent.getcurrent())
        session.send(name)

    @face.sockets.route("/outer", raw=True)
    def outer(session: Any) -> None:
        session.send(Frame.close(4000))

    face.register(blueprint)
    face.sockets.on_close(lambda session, reason: handlers.append(gevent.getcurrent()))
    with serving(face.app) as server:
        with Peer(server, "/inner/ada") as peer:
            peer.accepted()
            assert peer.frame() == (0x81, b"ada")
            peer.closed_with(1000)
        wait_until(lambda: len(handlers) == 2)
        assert told == [
            ("app", "open", "/inner/<name>"),
            ("blueprint", "open", "/inner/<name>"),
            ("app", "close", 1000),
            ("blueprint", "close", 1000),
        ]
        # That of the handler, in which Flask's contexts are at hand.
        assert handlers[0] is handlers[1]
        told.clear()
        with Peer(server, "/outer") as peer:
            peer.accepted()
            peer.closed_with(4000)
        wait_until(lambda: len(told) == 2)
        assert told == [("app", "open", "/outer"), ("app", "close", 4000)]


@either
def test_no_session_no_hooks(make: MakeFace) -> None:
    told: Told = []
    face = make()
    watched(face.sockets, "app", told)

    @face.sockets.route("/refuses")
    def refuses(session: Any) -> Any:
        flask.abort(401)

    @face.sockets.route("/fails")
    def fails(session: Any) -> Any:
        raise ValueError("in HTTP")

    with serving(face.app, error_log=None) as server:
        assert refused(server, "/refuses").status == 401
        assert refused(server, "/fails").status == 500
        assert refused(server, "/refuses", Origin="http://evil.example").status == 403
        assert fetch(server, "/refuses").status == 426
    assert told == []


@either
def test_the_error_of_a_handler(make: MakeFace, caplog: pytest.LogCaptureFixture) -> None:
    told: Told = []
    face = make()
    watched(face.sockets, "app", told)
    error = ValueError("a fault")

    @face.sockets.route("/")
    def fails(session: Any) -> None:
        session.accept()
        raise error

    @face.sockets.route("/kind")
    def kind(session: Any) -> None:
        session.accept()
        raise OverflowError

    @face.sockets.on_error
    def explain(session: Any, raised: BaseException) -> None:
        if raised is not error:
            session.start_close(4010, "too much")

    with serving(face.app, error_log=None) as server:
        with Peer(server) as peer:
            peer.accepted().closed_with(1011)
        with Peer(server, "/kind") as peer:
            peer.accepted().closed_with(4010)
        wait_until(lambda: len(told) == 6)
    assert [entry[1:] for entry in told] == [
        ("open", "/"), ("error", "a fault"), ("close", 1011), ("open", "/kind"), ("error", ""), ("close", 4010),
    ]  # fmt: skip


@either
def test_the_ends_of_sessions_are_no_errors(make: MakeFace) -> None:
    told: Told = []
    face = make(content_converter=geventws.JSONConverter())
    watched(face.sockets, "app", told)

    @face.sockets.route("/")
    def take(session: Any) -> None:
        while True:
            session.receive_deserialized()

    with serving(face.app) as server:
        with Peer(server) as peer:
            peer.accepted()
            peer.send(close_frame(4001))
            assert peer.frame() == (0x88, (4001).to_bytes(2, "big"))
        with Peer(server) as peer:
            peer.accepted()
            peer.reset()
        with Peer(server) as peer:
            peer.accepted()
            peer.send(frame(1, b"no JSON"))
            peer.closed_with(1007)
        with Peer(server) as peer:
            peer.accepted()
            peer.send(b"\xff\xff")
            peer.closed_with(1002)
        wait_until(lambda: len(told) == 8)
    assert [entry[2] for entry in told if entry[1] == "close"] == [4001, 1006, 1007, 1002]


@either
def test_a_hook_that_fails_breaks_nothing(make: MakeFace, caplog: pytest.LogCaptureFixture) -> None:
    face, closed = make(), Event()

    @face.sockets.route("/")
    def greet(session: Any) -> None:
        session.send("hello")
        raise ArithmeticError("the handler's")

    @face.sockets.on_open
    def open_badly(session: Any) -> None:
        raise ValueError("of on_open")

    @face.sockets.on_error
    def fail_badly(session: Any, error: BaseException) -> None:
        raise ValueError("of on_error")

    @face.sockets.on_close
    def close_badly(session: Any, reason: CloseReason) -> None:
        # Sending to who is gone is no fault.
        with pytest.raises(geventws.ConnectionClosed):
            session.send("late")
        raise gevent.Timeout(1)

    @face.sockets.on_close
    def close_late(session: Any, reason: CloseReason) -> None:
        closed.set()
        session.send("late")

    with serving(face.app, error_log=None) as server, Peer(server) as peer:
        peer.accepted()
        assert peer.frame() == (0x81, b"hello")
        peer.closed_with(1011)
        assert closed.wait(PATIENCE)
    failures = [record for record in caplog.records if "hook" in record.getMessage()]
    assert [record.getMessage().rpartition(".")[2] for record in failures] == [
        "open_badly failed", "fail_badly failed", "close_badly failed",
    ]  # fmt: skip
    assert all(record.exc_info for record in failures)
    assert all(record.levelno == logging.ERROR for record in failures)


def test_on_close_of_handlers_that_are_killed() -> None:
    app, told = geventws.WebSockets(), []
    handlers: list[Any] = []

    @app.route("/")
    def wait(session: Any) -> None:
        session.accept()
        handlers.append(gevent.getcurrent())
        gevent.sleep(PATIENCE)

    @app.on_close
    def first(session: Any, reason: CloseReason) -> None:
        told.append((1, reason.code))
        handlers[0].kill(block=False)
        gevent.sleep(PATIENCE)

    @app.on_close
    def second(session: Any, reason: CloseReason) -> None:
        told.append((2, reason.code))

    # Of a greenlet that can be killed.
    with serving(app, spawn=Pool()) as server, Peer(server) as peer:
        peer.accepted()
        wait_until(lambda: handlers)
        handlers[0].kill(block=False)
        peer.closed_with(1001)
        wait_until(lambda: len(told) == 2)
    assert told == [(1, 1001), (2, 1001)]


def test_on_open_may_talk_and_close() -> None:
    app, closed = geventws.WebSockets(), Event()

    @app.route("/")
    def chat(session: Any) -> None:
        session.send("of the handler")

    @app.on_open
    def greet(session: Any) -> None:
        session.send("of the hook")
        if session.request.args:
            session.close(4002)

    app.on_close(lambda session, reason: closed.set())
    with serving(app) as server:
        with Peer(server) as peer:
            peer.accepted()
            assert [peer.frame()[1] for _ in range(2)] == [b"of the hook", b"of the handler"]
            peer.closed_with(1000)
        assert closed.wait(PATIENCE)
        closed.clear()
        with Peer(server, "/?close") as peer:
            peer.accepted()
            assert peer.frame()[1] == b"of the hook"
            peer.closed_with(4002)
        assert closed.wait(PATIENCE)


def test_no_hook_runs_in_the_hub() -> None:
    app, greenlets = geventws.WebSockets(), []
    app.on_open(lambda session: greenlets.append(gevent.getcurrent()))
    app.on_close(lambda session, reason: greenlets.append(gevent.getcurrent()))

    @app.route("/")
    def wait(session: Any) -> None:
        # The first use of the session is by a callback of the hub, and so is its end.
        gevent.get_hub().loop.run_callback(session.send, "hello")
        gevent.sleep(0)
        gevent.sleep(0)
        gevent.get_hub().loop.run_callback(session.terminate)
        session.wait_closed()

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        assert peer.frame()[1] == b"hello"
        wait_until(lambda: len(greenlets) == 2)
    assert gevent.get_hub() not in greenlets


def test_hooks_of_an_upgrade_are_the_apps() -> None:
    told: Told = []
    app = geventws.WebSockets(geventws.WebSocketUpgrade(lambda session: session.send(Frame.text("up"))))
    watched(app, "app", told)
    with serving(app) as server:
        with Peer(server) as peer:
            peer.accepted()
            assert peer.frame() == (0x81, b"up")
        wait_until(lambda: len(told) == 2)
    assert told[0] == ("app", "open", None)


@pytest.mark.parametrize(("name", "hook"), [("on_open", lambda: 0), ("on_close", lambda session: 0), ("on_error", 3)])
def test_what_is_no_hook(name: str, hook: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} takes a function of a session"):
        getattr(geventws.WebSockets(), name)(hook)


# -- Figures of a session ----------------------------------------------------------------------------------------------


def test_stats_of_a_default_session() -> None:
    app, topics = geventws.WebSockets(), Topics()
    told: list[SessionStats] = []

    @app.route("/")
    def talk(session: DefaultWebSocketServerSession) -> None:
        told.append(session.stats())
        assert session.connection.state == geventws.State.CONNECTING
        assert session.receive() == "hello"
        topics.subscribe(session, "one")
        topics.subscribe(session, "two")
        session.send("in fragments" for _ in range(3))
        session.send(b"whole")
        topics.publish("one", "to all")
        session.flush()
        session.ping()
        told.append(session.stats())
        session.receive()

    with serving(app) as server:
        with Peer(server) as peer:
            peer.accepted()
            peer.send(frame(1, b"hel", fin=False) + frame(9, b"a ping between") + frame(0, b"lo"))
            sent = 0
            while (received := peer.frame())[0] != 0x89:
                sent += 2 + len(received[1])
            # Behind the pong, for it is read when that is here.
            peer.send(frame(10, received[1]) + frame(1, b"unread") * 2)
        wait_until(lambda: len(told) == 2)
    before, stats = told
    assert before == SessionStats()
    assert stats.messages_received in (1, 3)
    assert stats.messages_sent == 3
    assert stats.bytes_sent > sent
    assert stats.bytes_received > 0
    assert stats.subscriptions == 2
    assert stats.bytes_buffered == 0
    assert stats.latency is not None
    assert 0 < stats.latency <= stats.seconds


def test_what_waits_is_told() -> None:
    app, filled, stop = geventws.WebSockets(), Event(), Event()
    told: list[SessionStats] = []

    @app.route("/", write_limit=None)
    def fill(session: DefaultWebSocketServerSession) -> None:
        session.send(b"x" * (64 << 20))
        filled.wait(PATIENCE)
        wait_until(lambda: session.stats().messages_queued == 2)
        told.append(session.stats())
        stop.set()

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        peer.send(frame(1, b"one") + frame(1, b"two"))
        filled.set()
        assert stop.wait(PATIENCE)
    (stats,) = told
    assert stats.messages_queued == stats.messages_received == 2
    assert stats.bytes_queued >= 6
    assert stats.messages_sent == 1
    assert stats.bytes_buffered > 1 << 20


def test_stats_of_a_raw_session() -> None:
    app, told = geventws.WebSockets(), []

    @app.route("/", raw=True)
    def frames(session: Any) -> None:
        session.send(Frame.text("a", fin=False))
        session.send(Frame.ping())
        session.send(Frame.continuation(b"b"))
        assert session.receive().payload == b"ping"
        told.append(session.stats())

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        peer.send(frame(9, b"ping"))
        wait_until(lambda: told)
    assert told[0].messages_sent == 3
    assert told[0].messages_received == 1
    assert told[0].latency is None


def test_stats_of_a_session_that_is_over() -> None:
    app, told = geventws.WebSockets(), []
    app.on_close(lambda session, reason: told.append(session.stats()))

    @app.route("/")
    def echo(session: Any) -> None:
        for message in session:
            session.send(message)

    with serving(app) as server:
        with Peer(server) as peer:
            peer.accepted()
            peer.send(frame(1, b"hello") + close_frame(1000))
            assert peer.frame() == (0x81, b"hello")
        wait_until(lambda: told)
    assert (told[0].messages_received, told[0].messages_sent) == (1, 1)


# -- The documentation -------------------------------------------------------------------------------------------------


def test_the_code_of_the_documentation(tmp_path: Path, open_page: Callable[[str], Page]) -> None:
    # What stands below the last heading is an app of its own.
    text = (ROOT / "docs/observability.md").read_text().partition("\n## In Flask")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    more = """
@app.route("/room/<name>")
def fails(session, name):
    session.receive()
    raise ValueError("a fault")
"""
    (tmp_path / "app.py").write_text("\n\n".join([*blocks, more]))
    with development_server("app:app", tmp_path) as (address, program):
        with connect(f"ws://{address}/room/lobby", proxy=None) as client:
            program.wait_for("open /room/<name>")
            client.send("hello")
            with pytest.raises(ConnectionClosed, match=r"4000.*something went wrong"):
                client.recv(PATIENCE)
        program.wait_for("closed /room/<name> 4000 1")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/metrics", timeout=PATIENCE) as page:
            figures = page.read().decode()
        assert 'geventws_handler_errors_total{route="/room/<name>"} 1.0' in figures
        # In a browser, for the documented guard has to let the page's WebSocket in as well.
        live_page = open_page(f"http://{address}/dashboard/?word=sesame")
        expect(live_page.get_by_role("status")).to_have_text("Live")
        expect(live_page.get_by_role("cell", name="/dashboard/socket this page")).to_be_visible()
        # Whatever is told of there is there.
        table = set(re.findall(r"`(geventws_[a-z_]+)`", (ROOT / "docs/observability.md").read_text()))
        told = {
            name.partition("{")[0] for name in re.findall(r"^(?:# TYPE )?(geventws_[a-z_]+)", figures, re.MULTILINE)
        }
        assert table - {"geventws_topics_published_total"} <= told
        assert program.stop() == 0
