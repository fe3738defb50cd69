"""Rooms on Flask-SocketIO with its Redis manager, one process: gunicorn -k gevent -w 1 socketio_rooms:app."""

from __future__ import annotations

import os

from flask import Flask, request, session
from flask_socketio import SocketIO, emit, join_room

app = Flask(__name__)
app.secret_key = "of the benchmark"
sockets = SocketIO(app, async_mode="gevent", message_queue=os.environ["BENCHMARK_REDIS"])


@sockets.on("connect")
def connect() -> None:
    session["topic"] = request.args["topic"]
    if "publish" not in request.args:
        join_room(request.args["topic"])
    emit("ready", str(os.getpid()))


@sockets.on("publish")
def publish(message: str) -> None:
    emit("message", message, to=session["topic"])
