"""Flask-SocketIO and python-socketio on our sessions: a chat, clients in Python and in Chromium, several workers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import socketio
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.programs import PATIENCE, ROOT, Program, development_server, gunicorn_server
from tests.redis_server import any_kind, running

#: A chat as Flask-SocketIO's documentation has them: namespace-wide and room messages, acknowledgements, reasons.
CHAT = '''
import os

INSTALL
from flask import Flask, Response, request
from flask_socketio import SocketIO, emit, join_room, send

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", message_queue=os.environ.get("CHAT_QUEUE"), max_http_buffer_size=50_000)


@app.get("/")
def page():
    return """<!doctype html><title>Chat</title><form><input autofocus></form><p id=state></p><ul id=log></ul>
    <script src="/socket.io.min.js"></script><script>
    const transports = new URLSearchParams(location.search).get("transports").split(",");
    const socket = io({transports});
    const state = document.getElementById("state");
    const show = () => { state.textContent = socket.io.engine.transport.name; };
    socket.on("connect", () => { show(); socket.io.engine.on("upgrade", show); });
    socket.on("disconnect", (reason, details) => { state.textContent = `gone ${reason} ${details?.context?.code}`; });
    socket.on("said", (message) => {
        const item = document.createElement("li");
        item.textContent = message;
        document.getElementById("log").append(item);
    });
    document.querySelector("form").onsubmit = (event) => {
        event.preventDefault();
        const input = document.querySelector("input");
        socket.emit("say", input.value);
        input.value = "";
    };
    </script>"""


@app.get("/socket.io.min.js")
def client():
    with open(os.environ["CHAT_CLIENT"]) as script:
        return Response(script.read(), mimetype="text/javascript")


@app.get("/sessions")
def sessions():
    """How many open sessions of geventws this process has."""
    import gc

    from geventws import DefaultWebSocketServerSession, State

    sessions = [one for one in gc.get_objects() if isinstance(one, DefaultWebSocketServerSession)]
    return str(sum(one.connection.state == State.OPEN for one in sessions))


@socketio.on("connect")
def connected(auth):
    if auth and auth.get("name") == "nobody":
        return False
    emit("hello", [os.getpid(), request.args.get("transport")])


@socketio.on("say")
def say(message):
    emit("said", message, broadcast=True)
    return socketio.server.transport(request.sid)


@socketio.on("join")
def join(room):
    join_room(room)
    return room


@socketio.on("whisper")
def whisper(room, message):
    emit("said", message, to=room)


@socketio.on("count")
def count(number):
    for one in range(number):
        emit("said", one)


@socketio.on("disconnect")
def disconnected(reason):
    print("disconnected:", reason, flush=True)


# Whole, where several workers write.
os.write(1, b"loaded\\n")
'''

#: What an app adds for a server that Socket.IO starts itself.
INSTALL = "import geventws.compat\ngeventws.compat.install()\n"

SCRIPT = ROOT / "tests" / "node" / "node_modules" / "socket.io-client" / "dist" / "socket.io.min.js"

SERVERS = {
    "geventws.Worker": ("unchanged", "-k", "geventws.Worker"),
    "without gevent-websocket": ("without", "-k", "geventws.Worker"),
    "geventws.compat.Worker": ("unchanged", "-k", "geventws.compat.Worker"),
    "development server": ("unchanged",),
}

#: Where gevent-websocket is not installed, Socket.IO would use simple-websocket.
WITHOUT = "import sys\nsys.modules['geventwebsocket'] = None\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat")
    (directory / "unchanged.py").write_text(CHAT.replace("INSTALL", ""))
    (directory / "without.py").write_text(CHAT.replace("INSTALL", WITHOUT))
    patched = "from gevent import monkey\nmonkey.patch_all()\n"
    (directory / "embeds.py").write_text(patched + CHAT.replace("INSTALL", WITHOUT) + EMBED)
    (directory / "runs.py").write_text(CHAT.replace("INSTALL", INSTALL) + RUN)
    return directory


@contextmanager
def serving(directory: Path, name: str, *arguments: str) -> Iterator[tuple[str, Program]]:
    """The chat on a server, and its program."""
    app, *chosen = SERVERS[name]
    if name == "development server":
        with development_server(f"{app}:app", directory) as served:
            yield served
    else:
        with gunicorn_server(f"{app}:app", *chosen, *arguments, "--access-logfile", "-", directory=directory) as served:
            yield served


@pytest.fixture(scope="module")
def servers(directory: Path) -> Iterator[dict[str, tuple[str, Program]]]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAT_CLIENT", str(SCRIPT))
        # Side by side, for each takes its time.
        with ThreadPoolExecutor() as pool:
            started = list(pool.map(lambda name: stack.enter_context(serving(directory, name)), SERVERS))
        yield dict(zip(SERVERS, started, strict=True))


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest, servers: dict[str, tuple[str, Program]]) -> tuple[str, Program]:
    return servers[request.param]


@contextmanager
def client(address: str, *transports: str, **options: Any) -> Iterator[socketio.SimpleClient]:
    """The client in Python."""
    with socketio.SimpleClient(request_timeout=PATIENCE) as chatting:
        chatting.connect(
            f"http://{address}", transports=list(transports) or ["websocket"], wait_timeout=PATIENCE, **options
        )
        yield chatting


def sessions(address: str) -> int:
    """How many of our sessions are open."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/sessions", timeout=PATIENCE) as response:
        return int(response.read())


@pytest.mark.parametrize("transports", [("websocket",), ("polling", "websocket")], ids="-".join)
def test_chat_of_python_clients(served: tuple[str, Program], transports: tuple[str, ...]) -> None:
    address, program = served
    with client(address, *transports) as first, client(address, *transports) as second:
        for one in (first, second):
            assert one.receive(PATIENCE)[1][1] == transports[0]
            assert one.transport == "websocket"
        assert sessions(address) == 2
        for message in ("hello", "Grüße 🎉", b"\0\xff", {"parts": [b"one", "two", b"three"]}, "x" * 40_000):
            assert first.call("say", message, timeout=PATIENCE) == "websocket"
            for one in (first, second):
                assert one.receive(PATIENCE) == ["said", message]
        assert second.call("join", "a room", timeout=PATIENCE) == "a room"
        first.emit("whisper", ("a room", "psst"))
        assert second.receive(PATIENCE) == ["said", "psst"]
        first.emit("count", 300)
        assert [first.receive(PATIENCE)[1] for _ in range(300)] == list(range(300))
    for _ in range(2):
        program.wait_for("disconnected: (client|transport) (disconnect|close)")


def test_polling_alone(served: tuple[str, Program]) -> None:
    address, _ = served
    with client(address, "polling") as alone:
        assert alone.call("say", "hello", timeout=PATIENCE) == "polling"


def test_a_client_that_is_refused(served: tuple[str, Program]) -> None:
    with pytest.raises(socketio.exceptions.ConnectionError), client(served[0], auth={"name": "nobody"}):
        pass


def test_what_socketio_refuses_is_refused_in_http(served: tuple[str, Program]) -> None:
    for url in (
        f"ws://{served[0]}/socket.io/?EIO=4&transport=websocket&sid=unknown",
        f"ws://{served[0]}/socket.io/?EIO=3&transport=websocket",
    ):
        with pytest.raises(Exception, match="HTTP 400"), connect(url, proxy=None):
            pass
    with (
        pytest.raises(Exception, match="HTTP 400"),
        connect(
            f"ws://{served[0]}/socket.io/?EIO=4&transport=websocket", proxy=None, origin="http://elsewhere.example"
        ),
    ):
        pass


def test_a_packet_that_is_too_large(served: tuple[str, Program]) -> None:
    with connect(f"ws://{served[0]}/socket.io/?EIO=4&transport=websocket", proxy=None) as connection:
        connection.send("4" + "x" * 60_000)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                connection.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


@pytest.mark.skipif(
    not SCRIPT.exists(), reason="the package socket.io-client is missing: npm install --prefix tests/node"
)
def test_chat_in_chromium_and_a_stop(
    open_page: Callable[[str], Page], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_CLIENT", str(SCRIPT))
    with serving(directory, "geventws.Worker") as (address, program):
        pages = {transports: open_page(f"http://{address}/?transports={transports}") for transports in (
            "websocket", "polling,websocket")}  # fmt: skip
        for page in pages.values():
            expect(page.locator("#state")).to_have_text("websocket")
        assert sessions(address) == 2
        with client(address) as python:
            python.receive(PATIENCE)
            for transports, page in pages.items():
                page.get_by_role("textbox").fill(f"by {transports}")
                page.get_by_role("textbox").press("Enter")
                assert python.receive(PATIENCE) == ["said", f"by {transports}"]
            python.emit("say", "to all")
            for page in pages.values():
                expect(page.locator("#log")).to_contain_text("to all")
        program.process.send_signal(signal.SIGTERM)
        for page in pages.values():
            # No other than a session of ours says so.
            expect(page.locator("#state")).to_have_text("gone transport close 1001")
        assert program.stop() == 0
        lines = program.rest()
    accesses = [line for line in lines if "transport=websocket" in line]
    assert len(accesses) == 3
    assert all('HTTP/1.1" 101 ' in line for line in accesses)
    assert not [line for line in lines if "Traceback" in line]


def test_several_workers_with_redis(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flask-SocketIO's documentation has it; WebSocket alone needs no sticky sessions."""
    with running(any_kind()) as redis, ExitStack() as stack:
        monkeypatch.setenv("CHAT_QUEUE", redis.url)
        address, program = stack.enter_context(serving(directory, "geventws.Worker", "--workers", "2"))
        for _ in range(2):
            program.wait_for("loaded")
        by_worker: dict[int, socketio.SimpleClient] = {}
        while len(by_worker) < 2:
            one = stack.enter_context(client(address))
            by_worker[one.receive(PATIENCE)[1][0]] = one
        first, second = by_worker.values()
        assert first.call("say", "across", timeout=PATIENCE) == "websocket"
        # The last to connect: no earlier one has said anything.
        assert second.receive(PATIENCE) == ["said", "across"]
        second.call("join", "a room", timeout=PATIENCE)
        first.emit("whisper", ("a room", b"psst"))
        assert second.receive(PATIENCE) == ["said", b"psst"]
        # What stands outside of all workers publishes too.
        outside = (
            "import sys, flask_socketio; flask_socketio.SocketIO(message_queue=sys.argv[1]).emit('said', 'outside')"
        )
        subprocess.run([sys.executable, "-c", outside, redis.url], check=True, timeout=PATIENCE)
        assert second.receive(PATIENCE) == ["said", "outside"]


def test_a_server_of_its_own_without_an_install(directory: Path) -> None:
    """By simple-websocket, on a socket of ours."""
    with Program(sys.executable, "embeds.py", directory=directory) as program:
        address = program.wait_for(r"serving on (\S+)")[1]
        for transports in (("websocket",), ("polling", "websocket")):
            with client(address, *transports) as chatting:
                assert chatting.call("say", "hello", timeout=PATIENCE) == "websocket"
        program.wait_for("disconnected: ")
        program.wait_for("disconnected: ")
        with connect(f"ws://{address}/socket.io/?EIO=4&transport=websocket", proxy=None) as connection:
            connection.recv(PATIENCE)
            program.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        assert program.stop() == 0
        lines = program.rest()
    assert len([line for line in lines if re.search(r'transport=websocket\S* HTTP/1.1" 101 ', line)]) == 3
    assert not [line for line in lines if "Traceback" in line]


OUTSIDE = """
import sys

from flask_socketio import SocketIO

SocketIO(message_queue=sys.argv[1]).emit("said", "outside")
"""

EMBED = """

import logging

import gevent
from geventws import WSGIServer

logging.basicConfig()
server = WSGIServer(("127.0.0.1", 0), app)
server.start()
print(f"serving on 127.0.0.1:{server.server_port}", flush=True)
gevent.signal_handler(15, server.stop)
server.serve_forever()
"""

RUN = """

import gevent

runner = gevent.spawn(socketio.run, app, port=0)
while not (getattr(socketio, "wsgi_server", None) and socketio.wsgi_server.started):
    gevent.sleep(0.001)
print(f"serving on 127.0.0.1:{socketio.wsgi_server.server_port}", flush=True)
runner.join()
"""


def test_socketio_run(directory: Path) -> None:
    """Flask-SocketIO's own start of gevent's server, which takes the handler of ``geventwebsocket``."""
    with Program(sys.executable, "runs.py", directory=directory) as program:
        address = program.wait_for(r"serving on (\S+)")[1]
        with client(address, "polling", "websocket") as chatting:
            assert chatting.call("say", "hello", timeout=PATIENCE) == "websocket"
            assert sessions(address) == 1


def test_python_socketio_without_flask(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    with development_server("plain:app", tmp_path) as (address, program):
        with client(address) as chatting:
            assert chatting.call("echo", {"a": [1, b"2"]}, timeout=PATIENCE) == {"a": [1, b"2"]}
            program.process.send_signal(signal.SIGTERM)
            program.process.wait(PATIENCE)
        assert [line for line in program.rest() if re.search(r'transport=websocket\S* HTTP/1.1" 101 .* 1001$', line)]


PLAIN = """
import geventws.socketio
from geventws import PermessageDeflate

geventws.socketio.install(extensions=[PermessageDeflate()])

import socketio

server = socketio.Server(async_mode="gevent")
app = socketio.WSGIApp(server)


@server.event
def echo(sid, message):
    return message
"""
