"""The application under soak, for gunicorn (``app:app``), or standalone: ``python app.py PORT [HOST]``.

Each process writes what /proc does not tell into the folder named by ``SOAK_STATS``, as PID.json, every few seconds.
Settings of its sessions may be given as JSON in ``SOAK_SETTINGS``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gevent
import greenlet
from payloads import pushed

import geventws

#: Seconds between two looks at the process. A look walks all objects, which takes some hundredths of a second.
LOOK_EVERY = 5.0

WORKER = [("X-Worker", str(os.getpid()))]


def pages(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Plain HTTP: the same figures as in the file."""
    body = json.dumps(look()).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


# Pings come often and wait shortly, so that clients that stop reading come and go in numbers.
SETTINGS = {"ping_interval": 5, "timeout": 8, **json.loads(os.environ.get("SOAK_SETTINGS", "{}"))}
app = geventws.WebSockets(pages, **SETTINGS)


@app.route("/echo")
@app.route("/deflate", endpoint="deflate", extensions=[geventws.PermessageDeflate()])
def echo(session: geventws.DefaultWebSocketServerSession) -> None:
    """Sends every message back."""
    session.accept(headers=WORKER)
    for message in session:
        session.send(message)


@app.route("/raw", raw=True)
def echo_frames(session: geventws.WebSocketServerSession) -> None:
    """Sends every frame back; answers pings, which a raw session does not by itself."""
    session.accept(headers=WORKER)
    for received in session:
        if received.opcode == geventws.Opcode.PING:
            session.send(geventws.Frame.pong(received.payload))
        elif received.opcode != geventws.Opcode.PONG:
            session.send(received)


@app.route("/push")
def push(session: geventws.DefaultWebSocketServerSession) -> None:
    """Sends ``messages`` of ``size`` bytes, then closes."""
    session.accept(headers=WORKER)
    size = int(session.request.args["size"])
    for number in range(int(session.request.args["messages"])):
        session.send(pushed(number, size))


def look() -> dict[str, Any]:
    """What lives in the process."""
    greenlets = sessions = 0
    for thing in gc.get_objects():
        # By type: isinstance would ask proxies, such as werkzeug's, for what they stand for.
        kind = type(thing)
        if issubclass(kind, greenlet.greenlet):
            greenlets += not thing.dead and bool(thing)
        elif issubclass(kind, geventws.WebSocketSession):
            sessions += 1
    return {"pid": os.getpid(), "time": time.time(), "greenlets": greenlets, "sessions": sessions}


def _look_on(folder: Path) -> None:
    target, draft = folder / f"{os.getpid()}.json", folder / f"{os.getpid()}.new"
    while True:
        draft.write_text(json.dumps(look()))
        draft.replace(target)
        gevent.sleep(LOOK_EVERY)


# gunicorn imports this in the worker, after the fork.
gevent.spawn(_look_on, Path(os.environ["SOAK_STATS"]))

if __name__ == "__main__":
    host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    geventws.WSGIServer((host, int(sys.argv[1])), app, log=None).serve_forever()
