"""Our echo, and a publisher to all, without a framework.

python echo.py PORT, or gunicorn -k geventws.Worker echo:app
"""

from __future__ import annotations

import os
import sys

import geventws

EXTENSIONS = (geventws.PermessageDeflate(),) if os.environ.get("BENCHMARK_DEFLATE") == "1" else ()
TLS = os.environ.get("BENCHMARK_TLS")
LARGEST = int(os.environ.get("BENCHMARK_LARGEST", 16 * 1024 * 1024))

app = geventws.WebSockets(max_frame_size=LARGEST, extensions=EXTENSIONS)

subscribers: set[geventws.DefaultWebSocketServerSession] = set()


@app.route("/")
def echo(session: geventws.DefaultWebSocketServerSession) -> None:
    for message in session:
        session.send(message)


@app.route("/publish")
def publish(session: geventws.DefaultWebSocketServerSession) -> None:
    """Sends each message that comes in to everybody here."""
    session.accept()
    subscribers.add(session)
    try:
        for message in session:
            geventws.broadcast(subscribers, message)
    finally:
        subscribers.discard(session)


if __name__ == "__main__":
    tls = {"certfile": f"{TLS}/cert.pem", "keyfile": f"{TLS}/key.pem"} if TLS else {}
    geventws.WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None, **tls).serve_forever()
