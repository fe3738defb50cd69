"""What our two servers of the benchmark have in common: their handlers, and how they are set and started."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import geventws

#: Of a route's app: the largest message, and permessage-deflate where a work has it.
SETTINGS: dict[str, Any] = {
    "max_frame_size": int(os.environ.get("BENCHMARK_LARGEST", 16 * 1024 * 1024)),
    "extensions": (geventws.PermessageDeflate(),) if os.environ.get("BENCHMARK_DEFLATE") == "1" else (),
}

subscribers: set[geventws.DefaultWebSocketServerSession] = set()
topics = geventws.Topics()
#: The sessions that `subscribed` has had.
numbers = itertools.count()


def echo(session: geventws.DefaultWebSocketServerSession) -> None:
    """Sends each message back."""
    for message in session:
        session.send(message)


def publish(session: geventws.DefaultWebSocketServerSession) -> None:
    """Sends each message that comes in to everybody here."""
    session.accept()
    subscribers.add(session)
    try:
        for message in session:
            geventws.broadcast(subscribers, message)
    finally:
        subscribers.discard(session)


def topic(session: geventws.DefaultWebSocketServerSession) -> None:
    """Publishes each message that comes in on a topic that everybody here is subscribed to."""
    topics.subscribe(session, "all")
    for message in session:
        topics.publish("all", message)


def subscribed(session: geventws.DefaultWebSocketServerSession) -> None:
    """Subscribes to as many topics as the query says, each shared with as many sessions as it says, and waits."""
    query = session.request.args
    room = next(numbers) // int(query["sharing"])
    session.accept()
    for number in range(int(query["topics"])):
        topics.subscribe(session, f"room/{room}/{number}")
    for _ in session:
        pass


#: Both servers' routes.
ROUTES = {"/": echo, "/publish": publish, "/topic": topic, "/subscribed": subscribed}


def serve(app: Any) -> None:
    """Serves on the port of the command line, over TLS where a work has it."""
    folder = os.environ.get("BENCHMARK_TLS")
    tls = {"certfile": f"{folder}/cert.pem", "keyfile": f"{folder}/key.pem"} if folder else {}
    geventws.WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None, **tls).serve_forever()
