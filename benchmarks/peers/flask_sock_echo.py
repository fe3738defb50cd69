"""Echo on flask-sock: gunicorn -k gevent flask_sock_echo:app. It negotiates permessage-deflate when offered."""

from __future__ import annotations

from flask import Flask
from flask_sock import Sock
from simple_websocket import Server

app = Flask(__name__)
sock = Sock(app)


@sock.route("/")
def echo(session: Server) -> None:
    while True:
        session.send(session.receive())
