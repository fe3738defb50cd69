"""Apps as users of gevent-websocket and Flask-Sockets have them; the tests run them on the real packages and on ours.

Only the programs of the tests import this: its imports are what the libraries are called, whosever they are.
"""

from __future__ import annotations

import collections
import functools
import json
import socket
from typing import Any

import flask
import flask_sockets
import gevent
import gevent.local
import werkzeug.routing
from flask_sockets import Sockets
from gevent.event import Event
from gevent.select import select
from gevent.socket import wait_write
from geventwebsocket import Resource, WebSocketApplication, WebSocketError
from geventwebsocket.exceptions import ProtocolError
from geventwebsocket.websocket import MSG_ALREADY_CLOSED, MSG_SOCKET_DEAD

#: Whether these are the real packages.
REAL = flask_sockets.__name__ == "flask_sockets"  # ours has a longer name
if REAL:
    # Without it no route of Flask-Sockets 0.2.1 works on Werkzeug since version 2.
    flask_sockets.Rule = functools.partial(werkzeug.routing.Rule, websocket=True)

#: What the apps noted, for the page /events.
events: list[str] = []


def note(event: Any) -> None:
    """Adds to the events."""
    events.append(str(event))


# -- Plain WSGI ----------------------------------------------------------------------------------------------------


def echo(ws: Any, environ: dict[str, Any]) -> None:
    """The loop that nearly every app has."""
    while not ws.closed:
        message = ws.receive()
        if message is None:
            break
        ws.send(message)


def types(ws: Any, environ: dict[str, Any]) -> None:
    """Says what comes in, to the end and beyond."""
    while (message := ws.receive()) is not None:
        ws.send(f"{type(message).__name__} {len(message)}")
    note(f"closed {ws.closed}")
    for attempt in (ws.receive, lambda: ws.send("x"), lambda: ws.send(b"x"), lambda: ws.send_frame("x", 1)):
        try:
            note(attempt())
        except WebSocketError as error:
            note(f"{isinstance(error, OSError)} {error}")
    ws.close()
    ws.close(1000, b"again")
    assert issubclass(ProtocolError, WebSocketError)
    assert (MSG_ALREADY_CLOSED, MSG_SOCKET_DEAD) == ("Connection is already closed", "Socket is dead")


def attributes(ws: Any, environ: dict[str, Any]) -> None:
    """Tells what apps look for."""
    handler = ws.handler
    client = handler.active_client
    client.nickname = "ada"
    told = {
        "environ": environ["wsgi.websocket"] is ws and ws.environ["PATH_INFO"],
        "version": environ["wsgi.websocket_version"],
        "of the WebSocket": [ws.version, ws.path, ws.origin, ws.protocol, ws.closed],
        "opcodes": [
            getattr(ws, f"OPCODE_{name}") for name in ("CONTINUATION", "TEXT", "BINARY", "CLOSE", "PING", "PONG")
        ],
        "client": [client.ws is ws, list(client.address), list(handler.client_address)],
        "clients": [getattr(other, "nickname", None) for other in handler.server.clients.values()],
        "keyed": handler.server.clients[client.address] is client,
        "loggers": [hasattr(ws.logger, "debug"), hasattr(handler.logger, "debug")],
        "application": hasattr(handler.server.application, "app_protocol"),
        "current_app": ws.current_app.on_close("x"),
        "stream": ws.stream.handler is handler,
    }
    ws.send(json.dumps(told))
    ws.receive()


def binary(ws: Any, environ: dict[str, Any]) -> None:
    """The ways to send."""
    ws.send("text")
    ws.send(b"bytes")
    ws.send(bytearray(b"bytearray"))
    ws.send(memoryview(b"memoryview"))
    ws.send(b"said to be binary", True)
    ws.send("text too", False)
    ws.send_frame("frame", ws.OPCODE_TEXT)
    ws.send_frame(b"frame", ws.OPCODE_BINARY)
    ws.send_frame("ping", ws.OPCODE_PING)
    ws.send_frame(b"pong", ws.OPCODE_PONG)
    ws.receive()


def closes(ws: Any, environ: dict[str, Any]) -> None:
    """Closes with the code and the reason in the query."""
    code, _, reason = environ["QUERY_STRING"].partition("=")
    if code:
        ws.close(int(code), reason.encode())
    else:
        ws.close()
    note(f"closed {ws.closed}")


def timeouts(ws: Any, environ: dict[str, Any]) -> None:
    """How users wait for a while."""
    ws.send(repr(gevent.with_timeout(0.01, ws.receive, timeout_value="nothing yet")))
    ws.send(ws.receive())


def ends(ws: Any, environ: dict[str, Any]) -> None:
    """Notes how `receive` ends."""
    while (message := ws.receive()) is not None:
        ws.send(message)
    note("None")


def raises(ws: Any, environ: dict[str, Any]) -> None:
    """Fails."""
    ws.send("before")
    raise ValueError("the app failed")


def speaks_on(ws: Any, environ: dict[str, Any]) -> None:
    """Knows nothing of the end, as the shortest examples."""
    while True:
        ws.send(ws.receive())


def crowd(ws: Any, environ: dict[str, Any]) -> None:
    """Sends from several greenlets at once, large messages, of which each takes several system calls."""
    gevent.joinall([gevent.spawn(ws.send, chr(97 + number) * 4_000_000) for number in range(4)], raise_error=True)
    ws.receive()


def waits(ws: Any, environ: dict[str, Any]) -> None:
    """Never receives, but looks at ``closed``, as the chat example of Heroku."""
    ws.send("waiting")
    while not ws.closed:
        gevent.sleep(0.005)
    note("waited")


parked: list[Any] = []
pushed = Event()


def parks(ws: Any, environ: dict[str, Any]) -> None:
    """Puts its WebSocket aside, for others to send to."""
    parked.append(ws)
    pushed.wait()


def pushes(ws: Any, environ: dict[str, Any]) -> None:
    """Sends to those put aside."""
    for other in parked:
        other.send("pushed")
    parked.clear()
    pushed.set()
    pushed.clear()


def nothings(ws: Any, environ: dict[str, Any]) -> None:
    """What is no text, sent as text."""
    for message in (None, 0, 5, [], ["a"]):
        ws.send(message, False)
        ws.send_frame(message, ws.OPCODE_TEXT)
        ws.send_frame(message, ws.OPCODE_PING)
    for send in (lambda: ws.send(None), lambda: ws.send_frame(None, ws.OPCODE_BINARY)):
        try:
            send()
        except TypeError:
            ws.send("TypeError")
    ws.receive()


def tells(ws: Any, environ: dict[str, Any]) -> None:
    """Notes what ``current_app.on_close`` is told, by the end and by each use behind it."""
    told = application.current_app.told

    def noted() -> None:
        # The real one may tell the same twice in one call.
        note(list(dict.fromkeys(told)))
        told.clear()

    told.clear()
    while ws.receive() is not None:
        pass
    noted()
    for use in (ws.receive, lambda: ws.send("x"), lambda: ws.send_frame("x", 1), ws.close):
        try:
            use()
        except WebSocketError:
            pass
        noted()


def selects(ws: Any, environ: dict[str, Any]) -> None:
    """Waits until its socket is readable, as what has several things to wait for."""
    while not ws.closed:
        select([ws.stream.handler.socket], [], [])
        message = ws.receive()
        if message is not None:
            ws.send(message)
        if message == "leave":
            break
    note("selected")


def idles(ws: Any, environ: dict[str, Any]) -> None:
    """Gives up clients that say nothing."""
    ws.handler.socket.settimeout(0.05)
    while (message := ws.receive()) is not None:
        ws.send(message)
    note(f"idle {ws.closed}")


def cuts(ws: Any, environ: dict[str, Any]) -> None:
    """Cuts the connection of a client that another greenlet waits for."""
    gevent.spawn(ws.stream.handler.socket.shutdown, 2)
    note(f"cut {ws.receive()}")


def leaves_behind(ws: Any, environ: dict[str, Any]) -> None:
    """Ends while another greenlet, which has asked for the descriptor, waits for a message."""
    sock = ws.handler.socket
    sock.fileno()
    gevent.spawn(lambda: note(f"left {ws.receive()} {sock.fileno()}"))
    gevent.sleep(0)
    sock.shutdown(2)


def tunes(ws: Any, environ: dict[str, Any]) -> None:
    """What else apps do with the socket."""
    sock = ws.handler.socket
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(20)
    sock.timeout = 10
    wait_write(sock.fileno())
    is_set = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    ws.send(json.dumps([is_set, sock.gettimeout(), sock.timeout, sock.getpeername(), sock.family, sock.fileno() > 2]))
    # As one that writes waits, while another reads.
    reader = gevent.spawn(lambda: [ws.send(message) for message in iter(ws.receive, None)])
    gevent.sleep(0)
    wait_write(sock.fileno())
    ws.send("written")
    reader.get()


def reads(ws: Any, environ: dict[str, Any]) -> None:
    """Reads from the socket itself, which is not for apps."""
    sock = ws.handler.socket
    sock.fileno()
    try:
        sock.recv(1)
    except AttributeError as error:
        ws.send(str(error))


def heads(ws: Any, environ: dict[str, Any]) -> None:
    """What handlers know of the request; many apps take the cookie from there."""
    handler = ws.handler
    names = ("cookie", "User-Agent", "x-twice", "Host", "X-None")
    told = [handler.headers.get(name) is not None for name in names]
    told += [handler.headers["Cookie"], handler.headers.get("X-None", "nothing"), "cookie" in handler.headers]
    ws.send(json.dumps([*told, handler.path, handler.command, handler.requestline, handler.request_version]))
    ws.receive()


def keeps(ws: Any, environ: dict[str, Any]) -> None:
    """Which sockets of the server an environ has once the WebSocket is open, and keeps as long as that."""
    ws.send("open")
    ws.send(json.dumps([key for key in environ if key.endswith((".socket", ".sock"))]))
    ws.receive()


SOCKETS = {
    "/echo": echo, "/types": types, "/attributes": attributes, "/binary": binary, "/closes": closes, "/ends": ends,
    "/timeouts": timeouts, "/raises": raises, "/speaks-on": speaks_on, "/crowd": crowd, "/waits": waits,
    "/parks": parks, "/pushes": pushes, "/nothings": nothings, "/tells": tells, "/hooked/socket": echo,
    "/selects": selects, "/idles": idles, "/cuts": cuts, "/tunes": tunes, "/reads": reads, "/heads": heads,
    "/leaves-behind": leaves_behind, "/keeps": keeps,
}  # fmt: skip


def says_http(environ: dict[str, Any], start_response: Any) -> Any:
    """Does what an app does that answers in HTTP whatever the request was."""
    ws = environ["wsgi.websocket"]
    ws.send("a message")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"HTTP"]


def generates(environ: dict[str, Any], start_response: Any) -> Any:
    """A generator, which runs when it is read."""
    environ["wsgi.websocket"].send("generated")
    yield b"HTTP"


# -- Applications of classes -------------------------------------------------------------------------------------------


class EchoApplication(WebSocketApplication):
    """Echoes, as the example of its README."""

    def on_open(self) -> None:
        note("on_open")

    def on_message(self, message: Any) -> None:
        if message is not None:
            self.ws.send(message)

    def on_close(self, reason: Any) -> None:
        note(f"on_close {reason}")


class DefaultApplication(WebSocketApplication):
    """Overrides nothing but the end."""

    def on_close(self, reason: Any) -> None:
        note("the default is closed")


class ChatApplication(WebSocketApplication):
    """A chat: messages in JSON go to all clients."""

    def on_message(self, message: Any) -> None:
        if message is None:
            return
        told = json.loads(message)
        if told["type"] == "join":
            self.ws.handler.active_client.nickname = told["nickname"]
            names = [getattr(client, "nickname", None) for client in self.ws.handler.server.clients.values()]
            self.broadcast({"type": "names", "names": sorted(name for name in names if name)})
        else:
            self.broadcast({"type": "said", "by": self.ws.handler.active_client.nickname, "what": told["what"]})

    def broadcast(self, message: Any) -> None:
        """Sends to all clients that have joined."""
        for client in self.ws.handler.server.clients.values():
            if hasattr(client, "nickname"):
                client.ws.send(json.dumps(message))


class SpokenProtocol(WebSocketApplication.protocol_class):
    """A subprotocol with a name."""

    PROTOCOL_NAME = "spoken.v1"

    def on_message(self, message: Any) -> None:
        if message is not None:
            self.app.on_message(message.upper())


class SpokenApplication(WebSocketApplication):
    """Speaks it."""

    protocol_class = SpokenProtocol


def page(environ: dict[str, Any], start_response: Any) -> Any:
    """A plain page of a Resource."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"page"]


paths = [
    ("^/resource/echo", EchoApplication),
    ("^/resource/default", DefaultApplication),
    ("^/resource/chat", ChatApplication),
    ("^/resource/spoken", SpokenApplication),
    ("^/resource", page),
]
resource = Resource(paths)
# Apps add to what they gave, and to what the Resource has.
paths.append(("^/resource/later", EchoApplication))
resource.apps.append(("^/resource/last", EchoApplication))

mapped_paths = collections.OrderedDict({"^/mapped/echo": EchoApplication})
mapped = Resource(mapped_paths)
mapped_paths["^/mapped/later"] = EchoApplication
mapped_paths["^/mapped"] = page

# -- Flask, and Flask-Sockets ------------------------------------------------------------------------------------------

app = flask.Flask(__name__)
app.secret_key = "not secret"
sockets = Sockets(app)


class Upper(werkzeug.routing.BaseConverter):
    """A converter of an app's own."""

    def to_python(self, value: str) -> str:
        return value.upper()


sockets.url_map.converters["upper"] = Upper


@sockets.route("/flask/echo")
def echo_socket(ws: Any) -> None:
    """The echo of the README."""
    while not ws.closed:
        message = ws.receive()
        if message is not None:
            ws.send(message)


@sockets.route("/flask/values/<int:number>/<upper:name>", endpoint="values", methods=["GET"])
def values_socket(ws: Any, number: int, name: str) -> str:
    """The values of a rule, and what Flask has at hand."""
    with app.test_request_context():
        url = flask.url_for("page_in_flask")
    ws.send(json.dumps([number, name, flask.request.path, flask.request.args, flask.current_app.name, url]))
    ws.send(json.dumps([flask.session.get("user"), flask.g.get("nothing")]))
    return "which is ignored"


@sockets.route("/flask/both")
def both_socket(ws: Any) -> None:
    """A WebSocket where there is a page too."""
    ws.send("socket")


@app.route("/flask/both")
def both_page() -> str:
    """A page where there is a WebSocket too."""
    return "page"


@sockets.route("/flask/fails")
def fails_socket(ws: Any) -> None:
    """A KeyError, by which Flask-Sockets tells that there is no WebSocket."""
    raise KeyError("fails")


@app.route("/flask/page")
def page_in_flask() -> str:
    """A page."""
    return "page"


@app.route("/flask/marked", websocket=True)
def marked() -> str:
    """A view on a rule for WebSockets."""
    return view()


@app.route("/flask/view/<name>")
def view(name: str = "") -> str:
    """A view as they were before Werkzeug knew WebSockets."""
    ws = flask.request.environ.get("wsgi.websocket")
    if ws is None:
        return "no WebSocket"
    ws.send(f"view {name}")
    while (message := ws.receive()) is not None:
        ws.send(message)
    return ""


@app.route("/flask/guarded")
def guarded() -> Any:
    """A view that refuses before it takes its WebSocket."""
    if flask.request.args.get("token") != "right":
        flask.abort(401)
    flask.request.environ["wsgi.websocket"].send("welcome")
    return ""


if not REAL:
    # The rest of the README, which fails on Flask since version 2.
    html = flask.Blueprint("html", __name__)
    ws = flask.Blueprint("ws", __name__, url_prefix="/nowhere")

    @html.route("/flask/hello")
    def hello() -> str:
        return "Hello World!"

    @ws.route("/flask/blueprint")
    def blueprint_socket(socket: Any) -> None:
        echo_socket(socket)

    @ws.route("/<int:number>", defaults={"more": 7})
    def blueprint_values(socket: Any, number: int, more: int) -> None:
        socket.send(f"{number} {more} {flask.request.path}")

    app.register_blueprint(html, url_prefix=r"/")
    sockets.register_blueprint(ws, url_prefix=r"/")
    sockets.register_blueprint(ws, url_prefix="/flask/second")

# -- All of them -------------------------------------------------------------------------------------------------------


class CurrentApp(gevent.local.local):
    """What the WebSocket of the greenlet that looks tells of its end, not what those of other tests tell meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def on_close(self, message: str) -> None:
        """Keeps it."""
        self.told.append(message)


class Application:
    """What is served."""

    current_app = CurrentApp()

    def app_protocol(self, path: str) -> str:
        """As servers ask a Resource for it."""
        return resource.app_protocol(path)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/events":
            body = json.dumps(events).encode()
            events.clear()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        if path.startswith("/resource"):
            return resource(environ, start_response)
        if path.startswith("/mapped"):
            return mapped(environ, start_response)
        if path.startswith("/flask"):
            return app(environ, start_response)
        if path == "/socket":
            body = type(environ.get("gunicorn.socket")).__name__.encode()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        if path == "/says-http":
            return says_http(environ, start_response)
        if path == "/generates":
            return generates(environ, start_response)
        ws = environ.get("wsgi.websocket")
        if ws is None:
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
            return [b"plain"]
        SOCKETS[path](ws, environ)
        return []


application = Application()
