"""Rooms on Flask-SocketIO with its Redis manager, one process: gunicorn -k gevent -w 1 socketio_rooms:app."""

from __future__ import annotations

import os

from flask import Flask, request, session
from flask_socketio import SocketIO, emit, join_room
from socketio import RedisManager

app = Flask(__name__)
app.secret_key = "of the benchmark"
# What message_queue= would make, but for the limit: redis-py 8 opens 100 connections at most, and where more messages
# are published at once, the manager connects anew and loses what comes meanwhile.
manager = RedisManager(os.environ["BENCHMARK_REDIS"], "flask-socketio", redis_options={"max_connections": 10_000})
sockets = SocketIO(app, async_mode="gevent", client_manager=manager)


@sockets.on("connect")
def connect() -> None:
    session["topic"] = request.args["topic"]
    if "publish" not in request.args:
        join_room(request.args["topic"])
    # To this session alone, it need not go to Redis.
    emit("ready", str(os.getpid()), ignore_queue=True)


@sockets.on("publish")
def publish(message: str) -> None:
    emit("message", message, to=session["topic"])
