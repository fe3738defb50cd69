"""Our echo as a Flask route: python flask_echo.py PORT, or gunicorn -k geventws.Worker flask_echo:app."""

from __future__ import annotations

import os
import sys

from flask import Flask

import geventws
from geventws.flask import WebSockets

EXTENSIONS = (geventws.PermessageDeflate(),) if os.environ.get("BENCHMARK_DEFLATE") == "1" else ()

app = Flask(__name__)
sockets = WebSockets(app, max_frame_size=16 * 1024 * 1024, extensions=EXTENSIONS)


@sockets.route("/")
def echo(session: geventws.DefaultWebSocketServerSession) -> None:
    for message in session:
        session.send(message)


if __name__ == "__main__":
    geventws.WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None).serve_forever()
