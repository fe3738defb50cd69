"""Published packages that stand on the old libraries, unchanged: on the real library, and the same on geventws."""

from __future__ import annotations

import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.programs import PATIENCE, Program, gunicorn_server

#: What each app begins with: as users run it, or with the one line more.
BEGINNINGS = {"real": "", "ours": "import geventws.compat\ngeventws.compat.install()\n"}

#: The echo and the chat of bottle-websocket's README, on its server.
BOTTLE = """
import sys

import bottle
from bottle_websocket import GeventWebSocketServer, websocket

app = bottle.Bottle()
users = set()


@app.get("/echo", apply=[websocket])
def echo(ws):
    while (message := ws.receive()) is not None:
        ws.send(message)


@app.get("/chat", apply=[websocket])
def chat(ws):
    users.add(ws)
    while (message := ws.receive()) is not None:
        for user in users:
            user.send(message)
    users.remove(ws)


@app.get("/users")
def count():
    return str(len(users))


if __name__ == "__main__":
    bottle.run(app, server=GeventWebSocketServer, host="127.0.0.1", port=int(sys.argv[1]))
"""

#: Eel, whose desktop apps stand on bottle-websocket: Python calls JavaScript while JavaScript calls it.
EEL = """
import sys

import eel

eel.init("web")


@eel.expose
def greet(name):
    return f"hello {name}, {eel.add(20, 22)()}"


def closed(page, others):
    print("closed", page, len(others), flush=True)


if __name__ == "__main__":
    eel.start("index.html", mode=None, host="127.0.0.1", port=int(sys.argv[1]), close_callback=closed)
"""

EEL_PAGE = """<!doctype html><title>Eel</title><p id=said></p><script src="/eel.js"></script><script>
eel.expose(add);
function add(one, other) { return one + other; }
window.onload = async () => { document.getElementById("said").textContent = await eel.greet("ada")(); };
</script>"""

#: Views of django-gevent-websocket: one takes its WebSocket, and one is called when select says that something came.
DJANGO = """
import sys
import types

import django
from django.conf import settings

settings.configure(SECRET_KEY="x", ROOT_URLCONF="urls", WEBSOCKET_URLCONF="urls", ALLOWED_HOSTS=["*"], MIDDLEWARE=[])
django.setup()

from django.http import HttpResponse
from django.urls import path
from django_websocket.decorators import websocket, websocket_loop
from django_websocket.wsgi import get_wsgi_websocket_application


@websocket
def echo(request, ws):
    while (message := ws.receive()) is not None:
        ws.send(message)
    return HttpResponse()


@websocket_loop
def told(request, ws):
    message = ws.receive()
    if message is not None:
        ws.send(f"told {message}")


urls = types.ModuleType("urls")
urls.urlpatterns = [path("echo", echo), path("told", told)]
sys.modules["urls"] = urls
app = get_wsgi_websocket_application()

if __name__ == "__main__":
    from gevent.pywsgi import WSGIServer
    from geventwebsocket.handler import WebSocketHandler

    server = WSGIServer(("127.0.0.1", int(sys.argv[1])), app, handler_class=WebSocketHandler)
    server.start()
    print("Listening on", server.server_port, flush=True)
    server.serve_forever()
"""

#: Turbo-Flask, which pushes from a page's view to its WebSockets of flask-sock.
TURBO = """
from flask import Flask
from turbo_flask import Turbo

app = Flask(__name__)
turbo = Turbo(app)


@app.get("/push/<word>")
def push(word):
    turbo.push(turbo.update(word, "where"))
    return word


@app.get("/users")
def users():
    return str(len(turbo.clients))
"""

#: gunicorn's workers for apps of gevent-websocket, and for those of flask-sock.
WORKERS = {"real": "geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "ours": "geventws.compat.Worker"}
FLASK_SOCK_WORKERS = ["gevent", "geventws.Worker", "geventws.compat.Worker"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    patch = "from gevent import monkey\nmonkey.patch_all()\n"
    for name, text in {"bottle_app": BOTTLE, "django_app": DJANGO, "eel_app": EEL}.items():
        # For gunicorn, and with a server of its own.
        (tmp_path / f"{name}.py").write_text(text)
        for whose, beginning in BEGINNINGS.items():
            (tmp_path / f"{name}_{whose}.py").write_text(patch + beginning + text)
    (tmp_path / "turbo_app.py").write_text(TURBO)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.html").write_text(EEL_PAGE)
    return tmp_path


@contextmanager
def served(app: str, whose: str, how: str, directory: Path) -> Iterator[str]:
    """An app on a server ``how``, its own or gunicorn; gives its address."""
    if how == "gunicorn":
        with gunicorn_server(f"{app}:app", "-k", WORKERS[whose], directory=directory) as (address, _):
            yield address
        return
    port = free_port()
    with Program(sys.executable, f"{app}_{whose}.py", str(port), directory=directory) as program:
        program.wait_for("Listening on")
        yield f"127.0.0.1:{port}"
        program.process.kill()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]  # type: ignore[no-any-return]


def listens(port: int) -> None:
    """Waits until something listens there."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            continue
        return


def opened(address: str, path: str) -> ClientConnection:
    """A connection to a server that listens, or has said that it is about to."""
    listens(int(address.rpartition(":")[2]))
    return connect(f"ws://{address}{path}", proxy=None)


def body(address: str, path: str) -> str:
    """The body of a page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}{path}", timeout=PATIENCE) as response:
        return response.read().decode()  # type: ignore[no-any-return]


def leave(*clients: ClientConnection) -> None:
    """Closes, with a closing handshake that the server answers."""
    for client in clients:
        client.close(1000)
        with pytest.raises(ConnectionClosed):
            client.recv(PATIENCE)


def counted(address: str, number: int) -> None:
    """Waits until that many users are there."""
    while body(address, "/users") != str(number):
        pass


@pytest.fixture(params=[(whose, how) for whose in BEGINNINGS for how in ("own", "gunicorn")], ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


def test_bottle_websocket(kind: tuple[str, str], directory: Path) -> None:
    with served("bottle_app", *kind, directory) as address:
        with opened(address, "/echo") as client:
            for message in ("text", b"binary", "x" * 100_000):
                client.send(message)
                assert client.recv(PATIENCE) == message
            leave(client)
        with opened(address, "/chat") as one, opened(address, "/chat") as other:
            counted(address, 2)
            one.send("hello")
            assert [client.recv(PATIENCE) for client in (one, other)] == ["hello"] * 2
            leave(other)
            counted(address, 1)
            one.send("alone")
            assert one.recv(PATIENCE) == "alone"
            leave(one)
        counted(address, 0)


@pytest.mark.parametrize("whose", BEGINNINGS)
def test_eel(open_page: Callable[[str], Page], whose: str, directory: Path) -> None:
    port = free_port()
    with Program(sys.executable, f"eel_app_{whose}.py", str(port), directory=directory) as program:
        listens(port)
        page = open_page(f"http://127.0.0.1:{port}/index.html")
        for _ in range(2):
            expect(page.locator("#said")).to_have_text("hello ada, 42")
            page.reload()
            # The page that comes may be there before that which goes.
            program.wait_for(r"closed index.html \d")
        program.process.kill()


def test_django_gevent_websocket(kind: tuple[str, str], directory: Path) -> None:
    with served("django_app", *kind, directory) as address:
        for path, answer in (("/echo", "{}"), ("/told", "told {}")):
            with opened(address, path) as client:
                for word in ("one", "two"):
                    client.send(word)
                    assert client.recv(PATIENCE) == answer.format(word)
                leave(client)
        with pytest.raises(urllib.error.HTTPError, match="500") as refused:
            body(address, "/echo")
        refused.value.close()


@pytest.mark.parametrize("worker", FLASK_SOCK_WORKERS)
def test_turbo_flask(worker: str, directory: Path) -> None:
    update = '<turbo-stream action="update" target="where"><template>{}</template></turbo-stream>'
    with gunicorn_server("turbo_app:app", "-k", worker, directory=directory) as (address, _):
        with opened(address, "/turbo-stream") as one, opened(address, "/turbo-stream") as other:
            counted(address, 2)
            for word in ("first", "second"):
                assert body(address, f"/push/{word}") == word
                assert [client.recv(PATIENCE) for client in (one, other)] == [update.format(word)] * 2
            leave(other)
            counted(address, 1)
            leave(one)
        counted(address, 0)
