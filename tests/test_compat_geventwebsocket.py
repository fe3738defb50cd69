"""Apps of gevent-websocket on geventws: what they see is as on the real package, and what was broken there is right.

Each test of the class `TestAlike` is the same conversation with the same app on both.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import pywsgi, socket
from gevent.ssl import SSLContext

from geventws import WebSockets, WSGIServer
from geventws.compat.geventwebsocket.exceptions import WebSocketError
from geventws.compat.geventwebsocket.handler import Client as ListedClient
from geventws.compat.geventwebsocket.handler import WebSocketHandler
from geventws.compat.geventwebsocket.middleware import Clients, WebSocketMiddleware
from geventws.compat.geventwebsocket.server import WebSocketServer
from geventws.compat.geventwebsocket.utils import get_version
from geventws.compat.geventwebsocket.websocket import Header, WebSocket
from geventws.errors import UsageError
from tests.faces import conversation, fetch, refused
from tests.old_conversations import (
    BINARY_FRAME,
    CLOSE_FRAME,
    KINDS,
    PING_FRAME,
    PONG_FRAME,
    TEXT_FRAME,
    Client,
    Server,
    Servers,
    old_server,
)
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.programs import gunicorn_server
from tests.rigs import Certificates, get, offer
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(params=[(package, kind) for kind in KINDS for package in ("real", "ours")], ids="-".join)
def either(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.get(*request.param)


@pytest.fixture(params=KINDS)
def ours(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.get("ours", request.param)


class TestAlike:
    def test_echo(self, either: Server) -> None:
        with either.client("/echo") as client:
            for opcode, payload in [
                (TEXT, "grüße".encode()),
                (BINARY, b"\x00\xff"),
                (TEXT, b""),
                (BINARY, b"b" * 70_000),
                (TEXT, b"t" * 200),
            ]:
                client.say(opcode, payload)
                assert client.hear() == (0x80 | opcode, payload)
            client.say(TEXT, b"in ", fin=False)
            client.say(PING, b"between")
            client.say(CONTINUATION, b"pieces")
            assert client.hear() == (PONG_FRAME, b"between")
            client.hears("in pieces")
            client.bye()

    def test_messages_that_wait_are_received_before_the_end(self, either: Server) -> None:
        with either.client("/ends") as client:
            client.send(frame(TEXT, b"one") + frame(TEXT, b"two") + close_frame(1001))
            client.hears("one")
            client.hears("two")
            assert client.hear()[0] == CLOSE_FRAME
            assert client.rest() == b""
        assert either.events(1) == ["None"]

    def test_types_of_messages_and_the_end(self, either: Server) -> None:
        """Bytearray for binary, None once, then errors that are OSErrors, and closed."""
        with either.client("/types") as client:
            client.say(TEXT, b"text")
            client.hears("str 4")
            client.say(BINARY, b"bin")
            client.hears("bytearray 3")
            client.bye()
        assert either.events(5) == [
            "closed True",
            "True Connection is already closed",
            "True Socket is dead",
            "True Socket is dead",
            "True Connection is already closed",
        ]

    def test_a_lost_peer_is_an_end(self, either: Server) -> None:
        with either.client("/ends") as client:
            client.say(TEXT, b"here")
            client.hears("here")
        assert either.events(1) == ["None"]

    def test_attributes(self, either: Server) -> None:
        """The client list, keyed by address, and the client's own attributes."""
        with either.client("/attributes", "Origin: http://localhost", "Sec-WebSocket-Protocol: a, b") as client:
            told = client.told()
            address = list(client.socket.getsockname())
            client.bye()
        assert told == {
            "environ": "/attributes",
            "version": "13",
            "of the WebSocket": ["13", "/attributes", "http://localhost", "a, b", False],
            "opcodes": [0, 1, 2, 8, 9, 10],
            "client": [True, address, address],
            "clients": ["ada"],
            "keyed": True,
            "loggers": [True, True],
            "application": True,
            "current_app": None,
            "stream": True,
        }

    def test_ways_to_send(self, either: Server) -> None:
        with either.client("/binary") as client:
            assert [client.hear() for _ in range(10)] == [
                (TEXT_FRAME, b"text"),
                (BINARY_FRAME, b"bytes"),
                (BINARY_FRAME, b"bytearray"),
                (BINARY_FRAME, b"memoryview"),
                (BINARY_FRAME, b"said to be binary"),
                (TEXT_FRAME, b"text too"),
                (TEXT_FRAME, b"frame"),
                (BINARY_FRAME, b"frame"),
                (PING_FRAME, b"ping"),
                (PONG_FRAME, b"pong"),
            ]
            client.say(PONG, b"ping")
            client.bye()

    def test_a_timeout_of_gevent_around_receive(self, either: Server) -> None:
        with either.client("/timeouts") as client:
            client.hears("'nothing yet'")
            client.say(TEXT, b"now")
            client.hears("now")

    def test_select_tells_that_a_message_waits(self, either: Server) -> None:
        with either.client("/selects") as client:
            for word in ("one", "two", "three"):
                client.say(TEXT, word.encode())
                client.hears(word)
            client.bye()
        assert either.events(1) == ["selected"]

    def test_a_timeout_of_the_socket_closes(self, either: Server) -> None:
        with either.client("/idles") as client:
            client.say(TEXT, b"here")
            client.hears("here")
            assert client.hear()[0] == CLOSE_FRAME
        assert either.events(1) == ["idle True"]

    def test_who_shuts_the_socket_down_ends_the_wait_for_a_message(self, either: Server) -> None:
        with either.client("/cuts") as client:
            assert client.rest() == b""
        assert either.events(1) == ["cut None"]

    def test_the_socket_has_options_and_addresses(self, either: Server) -> None:
        with either.client("/tunes") as client:
            assert client.told() == [True, 10, 10, list(client.socket.getsockname()), socket.AF_INET, True]
            client.hears("written")
            client.say(TEXT, b"read")
            client.hears("read")
            client.bye()

    def test_the_handler_knows_the_head_of_the_request(self, either: Server) -> None:
        with either.client("/heads?a=%20b", "Cookie: name=ada; b=c", "User-Agent: me", "X-Twice: 1, 2") as client:
            *told, path, command, line, version = client.told()
            client.bye()
        assert told == [True, True, True, True, False, "name=ada; b=c", "nothing", True]
        assert (path, command, line, version) == (
            "/heads?a=%20b",
            "GET",
            "GET /heads?a=%20b HTTP/1.1",
            "HTTP/1.1",
        )

    def test_plain_http_on_the_same_path(self, either: Server) -> None:
        assert get(either.address, "/echo") == "plain"
        with Client(either.address) as client:
            assert client.ask(offer("/echo", method="POST")) == 200
            assert client.body == b"plain"

    def test_other_versions_are_refused(self, either: Server) -> None:
        with Client(either.address) as client:
            client.send(offer("/echo", version="7777"))
            head = client.until(b"\r\n\r\n")
            assert re.match(rb"HTTP/1.1 4\d\d ", head)
            assert b"\r\nSec-WebSocket-Version: 13" in head

    def test_nothing_of_http_follows_the_101(self, either: Server) -> None:
        """Whatever the app does in HTTP after the upgrade is ignored."""
        for path, said in [("/says-http", b"a message"), ("/generates", b"generated")]:
            with either.client(path) as client:
                assert client.hear() == (TEXT_FRAME, said)
                assert client.hear()[0] == CLOSE_FRAME
                client.send(close_frame())
                assert client.rest() == b""

    def test_the_worker_goes_on_after_an_app_that_fails(self, either: Server) -> None:
        with either.client("/raises") as client:
            client.hears("before")
        assert get(either.address, "/echo") == "plain"

    def test_parked_for_others(self, either: Server) -> None:
        """The 101 is there as soon as the app has its WebSocket, though nobody uses it yet."""
        with either.client("/parks") as parked, either.client("/pushes"):
            parked.hears("pushed")

    def test_a_resource_calls_back(self, either: Server) -> None:
        with either.client("/resource/echo") as client:
            client.say(TEXT, b"hello")
            client.hears("hello")
            client.bye()
        assert either.events(2) == ["on_open", "on_close None"]
        assert get(either.address, "/resource/anything") == "page"

    def test_a_resource_has_what_is_added_later(self, either: Server) -> None:
        for path in ("/resource/later", "/resource/last", "/mapped/echo", "/mapped/later"):
            with either.client(path) as client:
                client.say(TEXT, b"hello")
                client.hears("hello")
                client.bye()
        either.events(8)
        assert get(either.address, "/mapped/anything") == "page"

    def test_what_is_no_text_sent_as_text(self, either: Server) -> None:
        with either.client("/nothings") as client:
            for text in (b"", b"", b"5", b"", b"['a']"):
                assert [client.hear() for _ in range(3)] == [(TEXT_FRAME, text), (TEXT_FRAME, text), (PING_FRAME, text)]
            client.hears("TypeError")
            client.hears("TypeError")

    @pytest.mark.parametrize("closes", [True, False])
    def test_the_current_app_is_told_of_the_end(self, either: Server, closes: bool) -> None:
        with either.client("/tells") as client:
            if closes:
                client.bye()
        assert either.events(5) == [
            "[]" if closes else "['Connection closed']",
            "['Connection is already closed']",
            "['Connection is already closed', 'Socket is dead']",
            "['Connection is already closed']",
            "['Connection is already closed']",
        ]

    @pytest.mark.parametrize("kind", ["server", "handler"])
    @pytest.mark.parametrize("package", ["real", "ours"])
    def test_a_hook_sees_each_request(self, servers: Servers, package: str, kind: str) -> None:
        server = servers.get(package, kind)
        assert get(server.address, "/hooked/page") == "plain"
        with Client(server.address) as client:
            # Both requests of one connection.
            for method in ("GET", "PUT"):
                client.send(f"{method} /hooked/kept HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
                assert client.until(b"\r\n\r\nplain").startswith(b"HTTP/1.1 200 ")
        with server.client("/hooked/socket") as client:
            client.bye()
        with Client(server.address) as client:
            assert client.ask(offer("/hooked/plain")) == 200
            assert client.body == b"plain"
        for request in (offer("/hooked/fails"), b"GET /hooked/fails HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"):
            with Client(server.address) as client:
                assert client.ask(request) == 500
        assert server.events(7) == [
            "GET /hooked/page True",
            "GET /hooked/kept True",
            "PUT /hooked/kept True",
            "GET /hooked/socket True",
            "GET /hooked/plain True",
            "GET /hooked/fails True",
            "GET /hooked/fails True",
        ]

    @pytest.mark.parametrize("kind", ["server", "handler"])
    @pytest.mark.parametrize("package", ["real", "ours"])
    def test_a_handler_that_prepares_its_responses(self, servers: Servers, package: str, kind: str) -> None:
        server = servers.get(package, kind)
        assert get(server.address, "/prepared") == "plain"
        assert server.events(1) == ["prepared 200 13"]

    def test_a_chat(self, either: Server) -> None:
        with either.client("/resource/chat") as ada, either.client("/resource/chat") as bob:
            ada.say(TEXT, json.dumps({"type": "join", "nickname": "ada"}).encode())
            assert ada.told() == {"type": "names", "names": ["ada"]}
            bob.say(TEXT, json.dumps({"type": "join", "nickname": "bob"}).encode())
            for client in (ada, bob):
                assert client.told() == {"type": "names", "names": ["ada", "bob"]}
            ada.bye()
            bob.say(TEXT, json.dumps({"type": "say", "what": "alone"}).encode())
            assert bob.told() == {"type": "said", "by": "bob", "what": "alone"}

    def test_a_subprotocol_of_a_resource(self, either: Server) -> None:
        with Client(either.address) as client:
            head = client.switch("/resource/spoken", "Sec-WebSocket-Protocol: other, spoken.v1")
            assert re.search(rb"(?i)\r\nsec-websocket-protocol: spoken\.v1\r\n", head)
            client.say(TEXT, b"loud")
            client.hears("LOUD")
        with Client(either.address) as client:
            head = client.switch("/resource/spoken")
            assert b"\r\nsec-websocket-protocol" not in head.lower()


class TestBetter:
    """What the real package gets wrong; what it does is told where it matters."""

    @pytest.mark.parametrize(
        ("query", "payload"),
        [
            ("", b"\x03\xe8"),
            ("?4000=bye", b"\x0f\xa0bye"),
            ("?1006=never", b"\x03\xe8never"),
            ("?4001=" + "long" * 40, b"\x0f\xa1" + b"long" * 30 + b"lon"),
        ],
    )
    def test_close_codes_go_out(self, ours: Server, query: str, payload: bytes) -> None:
        with ours.client("/closes" + query) as client:
            assert client.hear() == (CLOSE_FRAME, payload)
            client.send(frame(CLOSE, payload))
            assert client.rest() == b""
        assert ours.events(1) == ["closed True"]

    def test_the_real_one_sends_a_reason_in_the_place_of_the_code(self, servers: Servers) -> None:
        real = servers.get("real", "server")
        with real.client("/closes?4000=bye") as client:
            assert client.hear() == (CLOSE_FRAME, b"b'bye'")
        real.events(1)

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (frame(TEXT, b"\xff"), 1007),
            (frame(CONTINUATION, b"of nothing"), 1002),
            (frame(TEXT, b"unmasked", key=None), 1002),
            (frame(TEXT, b"x" * (1 << 20) + b"x"), 1009),
            (frame(CLOSE, b"\x03"), 1002),
        ],
        ids=["UTF-8", "continuation", "unmasked", "too big", "malformed close"],
    )
    def test_a_peer_that_does_wrong_is_told_and_receive_ends(self, ours: Server, bad: bytes, code: int) -> None:
        with ours.client("/ends") as client:
            client.send(bad)
            first, payload = client.hear()
            assert (first, payload[:2]) == (CLOSE_FRAME, code.to_bytes(2, "big"))
        assert ours.events(1) == ["None"]

    def test_select_tells_also_of_messages_that_came_together(self, ours: Server) -> None:
        """The real one waits for more, with the second in a buffer."""
        with ours.client("/selects") as client:
            client.send(frame(TEXT, b"one") + frame(TEXT, b"two") + frame(TEXT, b"leave") + frame(TEXT, b"late"))
            for word in ("one", "two", "leave"):
                client.hears(word)
            assert client.hear() == (CLOSE_FRAME, b"\x03\xe8")
        assert ours.events(1) == ["selected"]

    def test_who_waits_behind_select_is_told_the_end_of_the_request(self, ours: Server) -> None:
        with ours.client("/leaves-behind") as client:
            assert client.rest() == b""
        assert ours.events(1) == ["left None -1"]

    def test_the_environ_of_an_open_websocket_has_no_other_way_to_the_socket(self, ours: Server) -> None:
        with ours.client("/keeps") as client:
            client.hears("open")
            assert client.told() == []
            client.bye()

    def test_what_is_the_sessions_own_is_told_of_the_socket(self, ours: Server) -> None:
        with ours.client("/reads") as client:
            client.hears("'recv' of a WebSocket's socket is its session's: use the WebSocket's own methods")
            assert client.hear()[0] == CLOSE_FRAME

    def test_concurrent_sends_do_not_mix(self, ours: Server) -> None:
        with ours.client("/crowd") as client:
            messages = [client.hear() for _ in range(4)]
            assert sorted(messages) == [(TEXT_FRAME, letter * 4_000_000) for letter in (b"a", b"b", b"c", b"d")]
            client.bye()

    def test_an_app_that_fails_closes_with_1011_and_is_logged_once(self, ours: Server) -> None:
        with ours.client("/raises") as client:
            client.hears("before")
            assert client.hear() == (CLOSE_FRAME, b"\x03\xf3")
            client.send(close_frame(1011))
            assert client.rest() == b""
        ours.program.wait_for("ValueError: the app failed")

    def test_an_app_that_does_not_look_at_the_end_makes_no_noise(self, ours: Server) -> None:
        for path in ("/speaks-on", "/resource/default"):
            with ours.client(path) as client:
                client.say(TEXT, b"hello")
                client.hears("hello")
                client.bye()
        assert ours.events(1) == ["the default is closed"]
        assert not [line for line in ours.program.lines if "WebSocketError" in line]

    def test_an_app_that_never_receives_sees_the_end(self, ours: Server) -> None:
        with ours.client("/waits") as client:
            client.hears("waiting")
            client.bye()
        assert ours.events(1) == ["waited"]

    def test_a_wrong_path_of_a_resource_is_no_error(self, ours: Server) -> None:
        with Client(ours.address) as client:
            assert client.ask(offer("/resource/nothing")) == 404

    def test_pages_of_other_hosts_are_refused(self, ours: Server) -> None:
        """The real package lets any page use its visitors' cookies."""
        with Client(ours.address) as client:
            assert client.ask(offer("/echo", "Origin: http://evil.example")) == 403
        with Client(ours.address) as client:
            # Flask answers it too, for its own reasons it may have caught it.
            assert client.ask(offer("/flask/view/x", "Origin: http://evil.example")) == 403

    def test_a_websocket_has_its_line_in_the_access_log(self, ours: Server) -> None:
        with ours.client("/echo") as client:
            client.bye(1001)
        ours.program.wait_for('"GET /echo HTTP/1.1" 101 ')


@pytest.mark.parametrize("kind", ["handler", "gunicorn"])
def test_a_server_that_stops_says_goodbye_and_does_not_wait(kind: str) -> None:
    with old_server("ours", kind) as server, server.client("/ends") as client:
        client.say(TEXT, b"here")
        client.hears("here")
        server.program.process.send_signal(signal.SIGTERM)
        assert client.hear() == (CLOSE_FRAME, b"\x03\xe9")
        client.send(close_frame(1001))
        assert client.rest() == b""
        assert server.program.stop() == 0


def test_a_preloaded_app_and_settings_of_the_worker(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "import geventws.compat\n"
        "class worker_class(geventws.compat.Worker):\n"
        "    websocket_settings = {'max_frame_size': 4, 'origins': None}\n"
    )
    with (
        gunicorn_server("tests.old_apps", "--preload", "--config", str(tmp_path / "gunicorn.conf.py")) as served,
        Server(*served).client("/echo", "Origin: http://other.example") as client,
    ):
        client.say(TEXT, b"four")
        client.hears("four")
        client.say(TEXT, b"seven")
        assert client.hear()[1][:2] == b"\x03\xf1"


def test_a_handler_of_the_worker_that_is_not_used_is_told(tmp_path: Path) -> None:
    """One may put a client's certificate into the environ. That of Flask-Sockets, which only logs, is no news."""
    (tmp_path / "app.py").write_text(
        """
from geventwebsocket.gunicorn.workers import GeventWebSocketWorker
from geventwebsocket.handler import WebSocketHandler
from gunicorn.workers.ggevent import PyWSGIHandler

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "4")])
    return [b"page"]

class Logs(PyWSGIHandler, WebSocketHandler):
    def log_request(self):
        pass

class Tells(Logs):
    def get_environ(self):
        return super().get_environ()

GeventWebSocketWorker.wsgi_handler = Logs
"""
    )
    (tmp_path / "tells.py").write_text("from app import *\nGeventWebSocketWorker.wsgi_handler = Tells\n")
    told = []
    for name in ("app", "tells"):
        with gunicorn_server(f"{name}:app", "-k", "geventws.compat.Worker", directory=tmp_path) as (address, program):
            host, _, port = address.rpartition(":")
            assert get((host, int(port)), "/") == "page"
            program.stop()
            told.append([line for line in program.rest() if "wsgi_handler" in line])
    assert told[0] == []
    assert len(told[1]) == 1
    assert "wsgi_handler is not used, Tells: what get_environ() does belongs" in told[1][0]


def test_an_app_that_shakes_hands_itself_finds_the_socket(servers: Servers) -> None:
    """Flask-sock takes it from the environ of gunicorn."""
    with Client(servers.get("ours", "gunicorn").address) as client:
        assert client.ask(offer("/socket")) == 200
        assert client.body == b"LentSocket"


class TestFlaskViews:
    """Views on plain rules, which Werkzeug since version 1 takes for HTTP alone."""

    def test_a_view_on_a_plain_rule(self, ours: Server) -> None:
        with ours.client("/flask/view/ada") as client:
            client.hears("view ada")
            client.say(BINARY, b"echo")
            assert client.hear() == (BINARY_FRAME, b"echo")
            client.bye()
        assert get(ours.address, "/flask/view/ada") == "no WebSocket"

    def test_the_real_one_has_lost_it(self, servers: Servers) -> None:
        with servers.get("real", "server").client("/flask/view/ada") as client:
            assert client.hear() == (CLOSE_FRAME, b"")

    def test_a_view_on_a_rule_for_websockets(self, either: Server) -> None:
        with either.client("/flask/marked") as client:
            client.hears("view ")
            client.bye()

    def test_a_view_may_refuse_before_it_takes_its_websocket(self, ours: Server) -> None:
        """Until then all is HTTP, which the real package can't do."""
        with Client(ours.address) as client:
            assert client.ask(offer("/flask/guarded")) == 401
        with ours.client("/flask/guarded?token=right") as client:
            client.hears("welcome")

    def test_other_paths_are_answered_by_flask(self, ours: Server) -> None:
        with Client(ours.address) as client:
            assert client.ask(offer("/flask/nothing")) == 404
        with Client(ours.address) as client:
            assert client.ask(offer("/flask/page")) == 200
            assert client.body == b"page"


def listed(address: str) -> ListedClient:
    """A client without a WebSocket."""
    nothing: Any = None
    return ListedClient(address, nothing)


def echo(environ: dict[str, Any], start_response: Any) -> Any:
    """An app."""
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("200 OK", [("Content-Length", "4")])
        return [b"page"]
    while (message := ws.receive()) is not None:
        ws.send(message)
    return []


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """A server in this process."""
    server.start()
    try:
        yield server
    finally:
        server.stop(PATIENCE)


class TestWebSocketServer:
    def test_settings_and_pings(self) -> None:
        server = WebSocketServer(("127.0.0.1", 0), echo, log=None, ping_interval=0.01, max_frame_size=4)
        with running(server), Peer(server) as peer:
            first, _ = peer.accepted().frame()
            assert first == PING_FRAME
            peer.send(frame(TEXT, b"seven"))
            while (first := peer.frame()[0]) == PING_FRAME:
                pass
            assert first == CLOSE_FRAME

    @pytest.mark.parametrize("closes", [True, False])
    def test_the_current_app_is_told_of_a_client_that_answers_no_ping(self, closes: bool) -> None:
        """Not of one that closes with the code that the other gets."""
        told: list[str] = []

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            assert environ["wsgi.websocket"].receive() is None
            told.append("None")
            return []

        app.current_app = SimpleNamespace(on_close=told.append)  # type: ignore[attr-defined]
        pings = None if closes else 0.01
        server = WebSocketServer(("127.0.0.1", 0), app, log=None, ping_interval=pings, timeout=0.02)
        with running(server), Peer(server) as peer:
            peer.accepted()
            if closes:
                peer.send(close_frame(1011))
            wait_until(lambda: "None" in told)
        assert told == (["None"] if closes else ["Connection closed", "None"])

    def test_a_bad_setting(self) -> None:
        with pytest.raises(ValueError, match="ping_interval"):
            WebSocketServer(("127.0.0.1", 0), echo, log=None, ping_interval=-1)

    def test_a_stop(self) -> None:
        server = WebSocketServer(("127.0.0.1", 0), echo, log=None)
        with running(server), Peer(server) as peer:
            peer.accepted()
            stop = gevent.spawn(server.stop)
            peer.closed_with(1001)
            stop.get()

    def test_the_hook_makes_it_plain_http(self) -> None:
        paths = []

        def hook(handler: WebSocketHandler) -> bool:
            paths.append(handler.environ["PATH_INFO"])
            return paths == ["/first"]

        with running(WebSocketServer(("127.0.0.1", 0), echo, log=None, pre_start_hook=hook)) as server:
            assert refused(server, "/first").body == "page"
            with Peer(server, "/second") as peer:
                peer.accepted()
        assert paths == ["/first", "/second"]

    def test_debug(self, capfd: pytest.CaptureFixture[str]) -> None:
        server = WebSocketServer(("127.0.0.1", 0), echo, log=None, debug=True)
        server.logger.debug("a word")
        assert "a word" in capfd.readouterr().err
        server.logger.handlers.clear()
        server.logger.setLevel("NOTSET")

    @pytest.mark.parametrize("server_class", [WebSocketServer, WSGIServer, pywsgi.WSGIServer])
    def test_over_tls(self, tmp_path: Path, server_class: Any) -> None:
        certificates = Certificates(tmp_path)
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certfile, certificates.keyfile)
        server = server_class(("127.0.0.1", 0), echo, log=None, handler_class=WebSocketHandler, ssl_context=context)
        told: list[bytes] = []

        def talk() -> None:
            with Client(("127.0.0.1", server.server_port), certificates.client) as client:
                client.switch("/", "Sec-WebSocket-Extensions: permessage-deflate")
                client.say(TEXT, b"over TLS")
                told.append(client.hear()[1])
                client.bye()

        with running(server):
            gevent.get_hub().threadpool.apply(talk)
        assert told == [b"over TLS"]

    @pytest.mark.parametrize("server_class", [WebSocketServer, pywsgi.WSGIServer])
    def test_clients_of_a_unix_socket_are_told_apart(self, tmp_path: Path, server_class: Any) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        server = server_class(listener, echo, log=None, handler_class=WebSocketHandler)
        with running(server):
            first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            with first, second:
                for client in (first, second):
                    client.connect(str(tmp_path / "socket"))
                    client.sendall(offer("/"))
                    assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
                assert len(server.clients) == 2
            wait_until(lambda: not server.clients)

    def test_what_was_sent_with_the_handshake_is_received(self) -> None:
        with running(pywsgi.WSGIServer(("127.0.0.1", 0), echo, log=None, handler_class=WebSocketHandler)) as server:
            with Peer(server, behind=frame(TEXT, b"at once")) as peer:
                assert peer.accepted().frame() == (TEXT_FRAME, b"at once")
            assert fetch(server).body == "page"

    def test_a_list_of_clients_may_change_while_an_app_walks_through_it(self) -> None:
        clients = Clients({("a", 1): listed("a"), ("b", 2): listed("b")})
        for walk in (iter(clients), iter(clients.keys()), iter(clients.values()), iter(clients.items())):
            next(walk)
            del clients["b", 2]
            next(walk)
            clients["b", 2] = listed("b")

    @pytest.mark.parametrize("opens", [True, False])
    def test_who_keeps_a_websocket_sees_its_end(self, opens: bool) -> None:
        kept: list[Any] = []

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            kept.extend(value for name, value in environ.items() if name == "wsgi.websocket")
            if opens:
                kept[0].send("hello")
            start_response("200 OK", [("Content-Length", "4")])
            return [b"page"]

        with running(WebSocketServer(("127.0.0.1", 0), app, log=None)) as server:
            if opens:
                assert conversation(server) == [b"hello"]
            else:
                assert refused(server).body == "page"
        (ws,) = kept
        assert ws.closed
        for use in (lambda: ws.send("more"), ws.receive, lambda: ws.send_frame(b"", ws.OPCODE_PING)):
            with pytest.raises(WebSocketError):
                use()
        ws.close()

    def test_frames_that_are_none(self) -> None:
        told: list[str] = []

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            ws = environ["wsgi.websocket"]
            for message, opcode in [(b"", 0), (b"", 3), (b"x" * 126, 9), (b"\x03", 8), (b"\x03\xed", 8)]:
                with pytest.raises(WebSocketError) as caught:
                    ws.send_frame(message, opcode)
                told.append(str(caught.value))
            for message in (5, None, {"a": 1}, ["a"]):
                with pytest.raises(TypeError):
                    ws.send(message)
            ws.send_frame(b"\x0f\xa0bye", ws.OPCODE_CLOSE)
            assert ws.close_reason == (4000, "bye")
            return []

        with running(WebSocketServer(("127.0.0.1", 0), app, log=None)) as server, Peer(server) as peer:
            peer.accepted().closed_with(4000)
        assert len(set(told)) == 5

    def test_a_middleware_for_other_servers(self) -> None:
        with serving(WebSocketMiddleware(echo, max_frame_size=4)) as server:
            with Peer(server) as peer:
                peer.accepted().send(frame(TEXT, b"four") + frame(TEXT, b"seven"))
                assert peer.frame() == (TEXT_FRAME, b"four")
                peer.closed_with(1009)
            assert fetch(server).body == "page"

    def test_before_an_app_of_geventws(self) -> None:
        """For a move route by route: the offer is for whoever takes it."""
        app = WebSockets()

        @app.route("/")
        def handler(session: Any) -> None:
            session.send("new")

        with running(WebSocketServer(("127.0.0.1", 0), app, log=None)) as server:
            assert conversation(server) == [b"new"]
            assert not server.clients

    def test_a_copy_of_the_environ_opens_at_first_use(self) -> None:
        def copies(environ: dict[str, Any], start_response: Any) -> Any:
            return echo(dict(environ), start_response)

        with running(WebSocketServer(("127.0.0.1", 0), copies, log=None)) as server:
            with Peer(server) as peer:
                # The echo opens it by the wait for a message.
                peer.accepted().send(frame(TEXT, b"copied"))
                assert peer.frame() == (TEXT_FRAME, b"copied")
            assert refused(server, Origin="http://evil.example").status == 403


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own, as what is imported can't be undone."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)


def test_a_handler_that_replaces_the_upgrade_is_refused() -> None:
    """Lest an app lose who it lets in: nothing of ours would call it."""
    for name in ("upgrade_websocket", "upgrade_connection", "run_websocket"):
        with pytest.raises(UsageError, match=rf"Strict\.{name}\(\) would never be called"):
            type("Strict", (WebSocketHandler,), {name: lambda self: None})


class TestOldNames:
    def test_all_of_them(self) -> None:
        finished = run(
            """
import geventws.compat
geventws.compat.install()
geventws.compat.install()
import geventwebsocket
from geventwebsocket import Resource, WebSocketApplication, WebSocketError, WebSocketServer, get_version
from geventwebsocket.exceptions import FrameTooLargeException, ProtocolError
from geventwebsocket.gunicorn.workers import GeventWebSocketWorker
from geventwebsocket.handler import Client, WebSocketHandler
from geventwebsocket.logging import create_logger
from geventwebsocket.protocols.base import BaseProtocol
from geventwebsocket.resource import Resource as same_resource
from geventwebsocket.server import WebSocketServer as same_server
from geventwebsocket.utils import get_version as same_get_version
from geventwebsocket.websocket import MSG_ALREADY_CLOSED, MSG_CLOSED, MSG_SOCKET_DEAD, Header, Stream, WebSocket
from flask_sockets import Sockets, Worker, worker
assert get_version() == "0.10.1"
assert geventwebsocket.__name__ == geventwebsocket.__spec__.name == "geventws.compat.geventwebsocket"
import geventws.compat.geventwebsocket.handler
assert geventws.compat.geventwebsocket.handler.WebSocketHandler is WebSocketHandler
assert issubclass(GeventWebSocketWorker, geventws.Worker) and worker is Worker is geventws.compat.Worker
try:
    import geventwebsocket.protocols.wamp
except ImportError as error:
    print(error)
try:
    import geventwebsocket.nothing
except ModuleNotFoundError as error:
    print(error)
"""
        )
        assert finished.stderr == ""
        first, second = finished.stdout.splitlines()
        assert "WAMP" in first
        assert "nothing" in second

    def test_not_after_the_real_ones(self) -> None:
        finished = run("import geventwebsocket, geventws.compat; geventws.compat.install()")
        assert "UsageError: geventwebsocket is imported already" in finished.stderr

    def test_nothing_is_touched_without_compat(self) -> None:
        """Neither by `import geventws` nor by its worker."""
        finished = run(
            """
import sys, geventws, geventws.flask, geventws.worker
from werkzeug.routing import Map
assert not [name for name in sys.modules if "compat.gevent" in name or name == "geventws.compat"]
assert Map.bind_to_environ.__module__ == "werkzeug.routing.map"
import geventwebsocket
assert "geventws" not in geventwebsocket.__file__
"""
        )
        assert finished.stderr == ""

    @pytest.mark.parametrize(
        ("use", "module"),
        [
            ("from geventws.compat.flask_sockets import Sockets; Sockets(app)", "werkzeug.routing.map"),
            ("import geventws.compat.geventwebsocket", "werkzeug.routing.map"),
            (
                "import geventws.compat.geventwebsocket.middleware as m; m.WebSocketMiddleware(app)",
                "geventws.compat.matching",
            ),
        ],
    )
    def test_werkzeug_is_touched_where_plain_views_may_get_websockets(self, use: str, module: str) -> None:
        finished = run(
            f"""
import flask
from werkzeug.routing import Map
app = flask.Flask("app")
{use}
print(Map.bind_to_environ.__module__)
"""
        )
        assert finished.stderr == ""
        assert finished.stdout.strip() == module

    def test_a_websocket_is_an_ordinary_object(self) -> None:
        """It takes attributes and weak references, which the real one does not."""
        nothing: Any = SimpleNamespace(environ={})
        ws: Any = WebSocket(nothing, None, lambda: None)
        ws.user = 1
        assert weakref.ref(ws)() is ws
        assert {ws: 1}[ws] == 1

    def test_headers(self) -> None:
        assert Header.encode_header(True, 1, b"", 125, 0) == b"\x81\x7d"
        assert Header.encode_header(False, 2, b"mask", 126, 0x40) == b"\x42\xfe\x00\x7emask"
        assert Header.encode_header(True, 0, b"", 1 << 16, 0) == b"\x80\x7f\0\0\0\0\0\x01\0\0"

    def test_versions(self) -> None:
        assert get_version() == "0.10.1"
        assert get_version((1, 2, 0, "beta", 3)) == "1.2b3"
