"""An echo server without a framework: every message goes back to who sent it.

    python examples/echo.py                          ws://127.0.0.1:8000/
    python examples/echo.py 0.0.0.0:8080             another address
    python -m geventws --reload examples.echo:app    starts again whenever you save this file
    gunicorn -k geventws.Worker examples.echo:app    for production

`python -m websockets ws://127.0.0.1:8000/`, of the package websockets, is a client to try it with.
"""

from __future__ import annotations

import signal
import sys

import gevent

from geventws import DefaultWebSocketServerSession, WebSockets, WSGIServer

app = WebSockets()


@app.route("/")
def echo(session: DefaultWebSocketServerSession) -> None:
    # Each client has a greenlet of its own that runs this function, so waiting for one holds up nobody else.
    # A message is str where the client sent text, bytes where it sent binary. The loop ends when the client closes.
    for message in session:
        session.send(message)


if __name__ == "__main__":
    bind = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
    server = WSGIServer(bind, app)
    server.start()
    print(f"listening on ws://{server.server_host}:{server.server_port}/, stop with Ctrl-C", flush=True)
    gevent.signal_handler(signal.SIGINT, server.stop)  # It closes what is open before the server ends.
    server.serve_forever()
