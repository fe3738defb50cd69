"""flask-sock's apps: unchanged on our servers, and on our sessions, each compared with the stock of flask-sock."""

from __future__ import annotations

import re
import signal
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import flask
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import geventws
from geventws.compat.flask_sock import ConnectionClosed as OurConnectionClosed
from geventws.compat.flask_sock import Sock, WebSocket
from tests.faces import fetch, refused
from tests.old_conversations import Client
from tests.peer import Peer, serving
from tests.programs import PATIENCE, Program, development_server, gunicorn_server
from tests.wire import CLOSE, TEXT, close_frame, frame

#: An app with what flask-sock's examples show: an echo with its page, several routes, a blueprint, options.
APP = '''
import functools

import gevent
import gevent.queue
import simple_websocket
from flask import Blueprint, Flask, abort, request, session
from SOCK import Server, Sock
from ERRORS import ConnectionClosed

app = Flask(__name__)
app.secret_key = "not secret"
app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": ["v2", "v1"], "ping_interval": 25, "max_message_size": 2000}
sock = Sock(app)
rooms = Blueprint("rooms", __name__, url_prefix="/rooms")
ends = gevent.queue.Queue()


@app.get("/")
def page():
    return """<!doctype html><title>Echo</title><p id=log></p><script>
    const socket = new WebSocket(location.href.replace("http", "ws") + "echo");
    socket.onopen = () => socket.send("from the page");
    socket.onmessage = (event) => { document.getElementById("log").textContent = event.data; };
    </script>"""


@app.get("/end")
def end():
    return ends.get(timeout=20)


@app.after_request
def after(response):
    if request.path == "/reverse/stressed":
        ends.put(f"after {response.status_code}")
    return response


@sock.route("/echo")
def echo(ws):
    try:
        while True:
            ws.send(ws.receive())
    except ConnectionClosed as error:
        ends.put(f"{int(error.reason)} {error.message!r} {ws.connected} {int(ws.close_reason)} {ws.close_message!r}")
        raise


@sock.route("/reverse/<word>", endpoint="backwards")
def reverse(ws, word):
    ws.send(word[::-1])
    ws.send(request.args.get("mark", "none"))


@rooms.before_request
def guard():
    if "token" not in request.args:
        abort(401)
    session["seen"] = True


@sock.route("/<int:number>", bp=rooms)
def room(ws, number):
    ws.send(str(number + 1))


@sock.route("/told")
def told(ws: Server):
    ws.send(f"{isinstance(ws, Server)}")
    ws.send(f"{ws.subprotocol} {ws.connected} {ws.environ['PATH_INFO']} {int(ws.close_reason)} {ws.close_message}")
    ws.send(5)
    ws.send(b"bytes")


@sock.route("/times")
def times(ws):
    ws.send(str(ws.receive(timeout=0)))
    ws.send(str(ws.receive(timeout=0.001)))
    first = ws.receive(timeout=20)
    ws.send(first)
    ws.send(ws.receive(20))


@sock.route("/closes")
def closes(ws):
    ws.close(4001, "bye")
    for use in (lambda: ws.send("more"), ws.close, ws.receive):
        try:
            use()
        except ConnectionClosed:
            ends.put(str(ws.connected))


@sock.route("/closes/<int:code>")
def closes_with(ws, code):
    ws.close(code, "bye")


@sock.route("/mode")
def mode(ws):
    ws.send(ws.mode)


@sock.route("/lost")
def lost(ws):
    # A loop that looks at nothing else, within one turn of the hub.
    seen, turns = [], 0
    try:
        while True:
            seen.append(ws.receive())
    except ConnectionClosed as error:
        seen += [ws.connected, error.message, ws.close_message]
    while ws.connected and turns < 1000:
        try:
            ws.receive()
        except ConnectionClosed:
            turns += 1
    for use in (lambda: ws.send("more"), ws.receive, lambda: ws.receive(0), ws.close):
        try:
            seen.append(use())
        except ConnectionClosed:
            seen.append(ws.connected)
    ends.put(f"{seen} {turns}")


@app.route("/direct", websocket=True)
def direct():
    ws = simple_websocket.Server.accept(request.environ)
    try:
        while True:
            ws.send(ws.receive())
    except simple_websocket.ConnectionClosed:
        return "nothing of it goes out"


@sock.route("/fails")
def fails(ws):
    raise ValueError("the view's own fault")


@sock.route("/large")
def large(ws):
    def fill(letter):
        for _ in range(10):
            ws.send(letter * 200_000)

    gevent.joinall([gevent.spawn(fill, letter) for letter in "abc"], raise_error=True)
    ws.send("z" * 4_000_000)


app.register_blueprint(rooms)
'''

Ask = Callable[[str], Any]


def get(address: str, path: str) -> str:
    """The body of a page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}{path}", timeout=PATIENCE) as response:
        return response.read().decode()  # type: ignore[no-any-return]


def opened(address: str, path: str, **options: Any) -> ClientConnection:
    """A connection."""
    return connect(f"ws://{address}{path}", proxy=None, max_size=None, **options)


def all_of(connection: ClientConnection) -> list[Any]:
    """The messages to the end, and the close code and the reason that came."""
    messages: list[Any] = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            messages.append(connection.recv(PATIENCE))
    received = closed.value.rcvd
    return [*messages, None if received is None else (received.code, received.reason)]


def echo(address: str) -> Any:
    with opened(address, "/echo", subprotocols=["v1", "v2"]) as connection:
        answers: list[Any] = [connection.subprotocol]
        for message in ("hello", b"\0\xff", "", b"", "Grüße 🎉", ["two", "pieces"]):
            connection.send(message)
            answers.append(connection.recv(PATIENCE))
        connection.close(4002, "enough")
        return [*answers, get(address, "/end")]


def echo_of_many(address: str) -> Any:
    with opened(address, "/echo") as connection:
        for number in range(50):
            connection.send(str(number))
        answers = [connection.recv(PATIENCE) for _ in range(50)]
    return [answers, get(address, "/end")]


def too_large(address: str) -> Any:
    with opened(address, "/echo") as connection:
        connection.send("x" * 2000)
        size = len(connection.recv(PATIENCE))
        connection.send("x" * 2001)
        code = all_of(connection)[-1][0]
    get(address, "/end")
    return [size, code]


def reverse(address: str) -> Any:
    with opened(address, "/reverse/stressed?mark=here") as connection:
        return [*all_of(connection), get(address, "/end")]


def guarded(address: str) -> Any:
    with pytest.raises(InvalidStatus) as refusal, opened(address, "/rooms/6"):
        pass
    with opened(address, "/rooms/6?token") as connection:
        return [refusal.value.response.status_code, *all_of(connection)]


def told(address: str) -> Any:
    with opened(address, "/told") as connection:
        first = [connection.subprotocol, *all_of(connection)]
    # Not one that is spoken: flask-sock takes the client all the same.
    with opened(address, "/told", subprotocols=["v3"]) as connection:
        return [*first, connection.subprotocol, *all_of(connection)]


def times(address: str) -> Any:
    with opened(address, "/times") as connection:
        answers = [connection.recv(PATIENCE), connection.recv(PATIENCE)]
        connection.send("one")
        connection.send("two")
        return answers + all_of(connection)


def closes(address: str) -> Any:
    with opened(address, "/closes") as connection:
        answers = all_of(connection)
    return [*answers, *(get(address, "/end") for _ in range(3))]


def closes_with(address: str) -> Any:
    answers: list[Any] = []
    for code in (0, 1000, 1001, 1005, 1006, 1015, 3000):
        with opened(address, f"/closes/{code}") as connection:
            answers += all_of(connection)
    return answers


def lost(address: str) -> Any:
    answers: list[Any] = []
    host, _, port = address.rpartition(":")
    for reset in (False, True):
        with Client((host, int(port))) as client:
            client.switch("/lost")
            client.say(TEXT, b"there")
            if reset:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answers.append(get(address, "/end"))
    return answers


def fails(address: str) -> Any:
    with opened(address, "/fails") as connection:
        return all_of(connection)


def pages(address: str) -> Any:
    with pytest.raises(urllib.error.HTTPError) as mismatch:
        get(address, "/echo")
    with mismatch.value as answer:
        return [get(address, "/").startswith("<!doctype html>"), answer.code]


CONVERSATIONS: list[Callable[[str], Any]] = [
    echo, echo_of_many, too_large, reverse, guarded, told, times, closes, closes_with, lost, fails, pages,
]  # fmt: skip

#: What differs from flask-sock on gunicorn's own gevent worker, and what it is there.
STOCK = {
    # HTTP behind frames is no frame: the client fails the connection.
    fails: [None],
}
OURS = {fails: [(1011, "")]}

UNCHANGED = ("flask_sock", "simple_websocket")
CHANGED = ("geventws.compat.flask_sock", "geventws.compat.flask_sock")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("apps")
    for name, (sock, errors) in {"unchanged": UNCHANGED, "changed": CHANGED}.items():
        (directory / f"{name}.py").write_text(APP.replace("SOCK import", f"{sock} import").replace("ERRORS", errors))
    return directory


Servers = dict[str, tuple[str, Program]]


NAMES = [
    "unchanged on geventws.Worker",
    "unchanged on WSGIServer",
    # Whose flask_sock is ours.
    "unchanged on geventws.compat.Worker",
    "changed on geventws.Worker",
    "changed on WSGIServer",
]


def started(name: str, directory: Path) -> AbstractContextManager[tuple[str, Program]]:
    """An app on a server."""
    app, server = name.split(" on ")
    if server == "WSGIServer":
        return development_server(f"{app}:app", directory)
    options = ("--access-logfile", "-", "--graceful-timeout", "20")
    return gunicorn_server(f"{app}:app", "-k", server, *options, directory=directory)


@pytest.fixture(scope="module")
def servers(directory: Path) -> Iterator[Servers]:
    names = ["unchanged on gevent", *NAMES]
    with ExitStack() as stack:
        # Side by side, for each takes its time.
        with ThreadPoolExecutor() as pool:
            running = list(pool.map(lambda name: stack.enter_context(started(name, directory)), names))
        yield dict(zip(names, running, strict=True))


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.__name__)
def test_conversations_are_those_of_flask_sock(servers: Servers, conversation: Callable[[str], Any]) -> None:
    stock = conversation(servers["unchanged on gevent"][0])
    if conversation in STOCK:
        assert stock == STOCK[conversation]
    for name in NAMES:
        assert conversation(servers[name][0]) == OURS.get(conversation, stock), name


@pytest.mark.parametrize("name", NAMES)
def test_large_messages_of_several_greenlets_come_whole(servers: Servers, name: str) -> None:
    """Not with flask-sock elsewhere: what the socket does not take at once is lost."""
    with opened(servers[name][0], "/large", compression=None) as connection:
        *messages, last, end = all_of(connection)
    assert sorted(messages) == sorted(letter * 200_000 for letter in "abc" for _ in range(10))
    assert last == "z" * 4_000_000
    assert end == (1000, "")


@pytest.mark.parametrize("server", ["geventws.Worker", "WSGIServer"])
def test_the_mode_is_that_of_simple_websocket(servers: Servers, server: str) -> None:
    modes = []
    for app in ("unchanged", "changed"):
        with opened(servers[f"{app} on {server}"][0], "/mode") as connection:
            modes.append(connection.recv(PATIENCE))
    assert modes[0] == modes[1]


@pytest.mark.parametrize("name", NAMES)
def test_simple_websocket_without_flask_sock(servers: Servers, name: str) -> None:
    """On gunicorn's own worker the view's answer comes behind the frames."""
    with opened(servers[name][0], "/direct") as connection:
        connection.send("there")
        assert connection.recv(PATIENCE) == "there"
        connection.close(4003)
        assert all_of(connection) == [(4003, "")]


@pytest.mark.parametrize("name", NAMES)
def test_a_stop_and_the_logs(servers: Servers, name: str) -> None:
    """The last of each server: at once with 1001, a line for each WebSocket, and no noise."""
    address, program = servers[name]
    with opened(address, "/echo") as connection:
        connection.send("there")
        assert connection.recv(PATIENCE) == "there"
        program.process.send_signal(signal.SIGTERM)
        assert all_of(connection) == [(1001, "")]
    assert program.stop() == 0
    lines = program.rest()
    accesses = [line for line in lines if '"GET /' in line]
    assert len([line for line in accesses if '"GET /large HTTP/1.1" 101 ' in line]) == 1
    for path in ("echo", "fails", "closes", "reverse/stressed", "rooms/6"):
        assert any(re.search(rf'"GET /{path}\S* HTTP/1.1" 101 ', line) for line in accesses), path
    assert not any(re.search(r"\" 500 ", line) for line in accesses)
    assert [line for line in lines if "Traceback" in line] == [line for line in lines if "Traceback" in line][:1]
    assert "ValueError: the view's own fault" in lines
    assert not [line for line in lines if "graceful timeout" in line]


# -- The API on our sessions -------------------------------------------------------------------------------------------


def app_with(view: Callable[..., Any], options: Any = None, **config: Any) -> flask.Flask:
    """An app with one route."""
    app = flask.Flask("tests.test_compat_flask_sock")
    app.secret_key = "not secret"
    app.config.update(config)
    if options is not None:
        app.config["SOCK_SERVER_OPTIONS"] = options
    Sock(app).route("/")(view)
    return app


def test_routes_before_init_app() -> None:
    sock = Sock()
    app = flask.Flask("tests.test_compat_flask_sock")

    @sock.route("/early/<int:session>")
    def early(ws: WebSocket, session: int) -> None:
        ws.send(str(session))

    sock.init_app(app)

    @sock.route("/late", endpoint="later", defaults={"word": "late"})
    def late(ws: WebSocket, word: str) -> None:
        ws.send(word)

    # The view is still the function that was decorated: flask-sock's becomes None.
    assert callable(early)
    with app.test_request_context():
        assert flask.url_for("__flask_sock.early", session=1) == "ws://localhost/early/1"
        assert flask.url_for("later") == "ws://localhost/late"
    with serving(app) as server:
        for path, answer in (("/early/7", b"7"), ("/late", b"late")):
            with Peer(server, path) as peer:
                assert peer.accepted().frame() == (0x81, answer)
                peer.closed_with(1000)


def test_the_101_comes_before_the_view_says_anything() -> None:
    with serving(app_with(lambda ws: ws.receive())) as server, Peer(server) as peer:
        peer.accepted()
        peer.send(frame(TEXT, b"now"))
        peer.closed_with(1000)


def test_a_change_of_the_session_before_it_goes_out_with_it() -> None:
    app = app_with(lambda ws: ws.send("open"))

    @app.before_request
    def change() -> None:
        flask.session["name"] = "Ada"

    with serving(app) as server, Peer(server) as peer:
        assert "Set-Cookie: session=" in peer.head()


def test_how_it_ended_is_told() -> None:
    told: list[Any] = []

    def view(ws: WebSocket) -> None:
        told.append((ws.connected, ws.close_reason, ws.close_message))
        with pytest.raises(OurConnectionClosed) as closed:
            ws.receive()
        told.append((ws.connected, ws.close_reason, ws.close_message))
        told.append((closed.value.reason, closed.value.message, str(closed.value)))
        with pytest.raises(OurConnectionClosed):
            ws.send("too late")
        with pytest.raises(OurConnectionClosed):
            ws.close()

    with serving(app_with(view)) as server, Peer(server) as peer:
        peer.accepted()
        peer.send(close_frame(4000, b"why"))
        assert peer.frame() == (0x88, b"\x0f\xa0")
        peer.ended()
    assert told == [
        (True, 1005, None),
        (False, 4000, "why"),
        (4000, "why", "the WebSocket is closed (4000 private: 'why')"),
    ]


@pytest.mark.parametrize(
    ("arguments", "payload"),
    [((), b"\x03\xe8"), ((1001,), b"\x03\xe9"), ((4000, "x" * 200), b"\x0f\xa0" + b"x" * 123)],
)
def test_close(arguments: Any, payload: bytes) -> None:
    with serving(app_with(lambda ws: ws.close(*arguments))) as server, Peer(server) as peer:
        assert peer.accepted().frame() == (0x80 | CLOSE, payload)


def test_bytes_of_any_kind_are_binary() -> None:
    def view(ws: WebSocket) -> None:
        ws.send(bytearray(b"array"))
        ws.send(memoryview(b"view"))
        ws.send(None)

    with serving(app_with(view)) as server, Peer(server) as peer:
        peer.accepted()
        assert [peer.frame() for _ in range(3)] == [(0x82, b"array"), (0x82, b"view"), (0x81, b"None")]


def test_the_end_of_another_websocket_is_not_taken_for_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[WebSocket] = []

    def view(ws: WebSocket) -> None:
        kept.append(ws)
        if len(kept) == 1:
            ws.receive()
        kept[0].send("to a dead one")

    with serving(app_with(view)) as server:
        with Peer(server) as first:
            first.accepted()
            first.send(close_frame())
            first.closed_with(1000)
        with Peer(server) as second:
            second.accepted().closed_with(1011)
    assert "the ConnectionClosed of another WebSocket left the view" in caplog.text


def test_an_end_that_the_view_raises_itself() -> None:
    def view(ws: WebSocket) -> None:
        raise OurConnectionClosed(4000, "as if")

    with serving(app_with(view)) as server, Peer(server) as peer:
        peer.accepted().closed_with(1000)


def test_options() -> None:
    seen: list[Any] = []

    def view(ws: WebSocket) -> None:
        seen.append((ws.session.ping_interval, ws.session.max_frame_size, ws.subprotocol))

    app = app_with(view, WEBSOCKETS_MAX_FRAME_SIZE=5000)
    with serving(app) as server:
        # They may change as long as the app lives, as in flask-sock.
        for options in (
            {},
            {"ping_interval": 30, "max_message_size": 10, "subprotocols": "v1"},
            {"ping_interval": None, "max_message_size": None, "subprotocols": None, "receive_bytes": 4096},
            {"ping_interval": 0, "max_message_size": 0, "thread_class": None, "event_class": None},
        ):
            app.config["SOCK_SERVER_OPTIONS"] = options
            with Peer(server, Sec_WebSocket_Protocol="v0, v1") as peer:
                peer.accepted().closed_with(1000)
    assert seen == [(20, 5000, None), (30, 10, "v1"), (None, None, None), (None, None, None)]


def test_a_wrong_option_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with serving(app_with(lambda ws: None, {"ping_intervall": 3})) as server:
        assert refused(server).status == 500
    assert "there is no option ping_intervall: ping_interval?" in caplog.text


def test_refusals() -> None:
    with serving(app_with(lambda ws: None)) as server:
        assert refused(server, Origin="http://elsewhere.example").status == 403
        assert refused(server, Sec_WebSocket_Key="short").status == 400
        assert fetch(server).status == 400
    with (
        serving(app_with(lambda ws: None, WEBSOCKETS_ORIGINS=None)) as server,
        Peer(server, Origin="http://elsewhere.example") as peer,
    ):
        peer.accepted().closed_with(1000)


def test_it_stands_beside_routes_of_our_own() -> None:
    app = app_with(lambda ws: ws.send("sock"))
    sockets = geventws.flask.WebSockets(app)

    @sockets.route("/ours")
    def ours(session: Any) -> None:
        session.send("ours")

    with serving(app) as server:
        for path, answer in (("/", b"sock"), ("/ours", b"ours")):
            with Peer(server, path) as peer:
                assert peer.accepted().frame() == (0x81, answer)


def test_on_another_server_it_says_what_it_needs() -> None:
    with app_with(lambda ws: None).test_client() as client:
        response = client.get(
            "/",
            headers={
                "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            },
        )  # fmt: skip
    assert response.status_code == 501
    assert "geventws.Worker" in response.text
