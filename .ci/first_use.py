"""Uses an installed geventws as a newcomer would, with what its package has to bring along."""

from __future__ import annotations

import flask

import geventws
import geventws.compat
import geventws.dashboard
import geventws.testing
from geventws.flask import WebSockets

app = flask.Flask(__name__)
sockets = WebSockets(app)
topics = geventws.Topics(history=10)
ws = geventws.Blueprint("rooms", __name__)


@ws.route("/room/<name>")
def room(session: geventws.DefaultWebSocketServerSession, name: str) -> None:
    """A room."""
    if name == "locked":
        flask.abort(401, "log in first")
    topics.subscribe(session, name, recent=1)
    for message in session:
        topics.publish(name, message)


app.register_blueprint(ws)
app.register_blueprint(geventws.dashboard.Blueprint(allow=lambda request: True))

with geventws.testing.connect(app, "/room/tea") as ada, geventws.testing.connect(app, "/room/tea") as bob:
    ada.send("hello")
    assert ada.receive() == bob.receive() == "hello"
answer = "none"
try:
    geventws.testing.connect(app, "/room/locked")
except geventws.HandshakeRefused as refused:
    answer = str(refused)
assert "401" in answer, answer

assert b"<title>" in app.test_client().get("/dashboard/").data

server = geventws.WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
with geventws.connect(f"ws://127.0.0.1:{server.server_port}/room/tea") as client:
    assert client.receive(timeout=10) == "hello"
    client.send("again")
    assert client.receive(timeout=10) == "again"
server.stop()
geventws.compat.install()
print("first use: 1 passed, 0 failed")
