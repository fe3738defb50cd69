"""Our echo without a framework: python echo.py PORT, or gunicorn -k geventws.Worker echo:app."""

from __future__ import annotations

import os
import sys

import geventws

EXTENSIONS = (geventws.PermessageDeflate(),) if os.environ.get("BENCHMARK_DEFLATE") == "1" else ()

app = geventws.WebSockets(max_frame_size=16 * 1024 * 1024, extensions=EXTENSIONS)


@app.route("/")
def echo(session: geventws.DefaultWebSocketServerSession) -> None:
    for message in session:
        session.send(message)


if __name__ == "__main__":
    geventws.WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None).serve_forever()
