"""The servers to compare with, each an echo on every path: ``python -m tests.faults.peers NAME PORT``.

They run in the virtual environment of the interpreter that FAULT_PEERS_PYTHON names, and import nothing of geventws.
"""

from __future__ import annotations

import signal
import sys
from typing import Any


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The application for gunicorn's ASGI worker."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        return
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") is not None:
            await send({"type": "websocket.send", "text": event["text"]})
        else:
            await send({"type": "websocket.send", "bytes": event["bytes"]})


def serve_websockets(port: int) -> None:
    """The package websockets on asyncio."""
    import asyncio
    from http import HTTPStatus

    from websockets.asyncio.server import serve

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    def health(connection: Any, request: Any) -> Any:
        return connection.respond(HTTPStatus.OK, "ok") if request.path == "/health" else None

    async def run() -> None:
        async with serve(echo, "127.0.0.1", port, process_request=health, compression=None, backlog=2048) as server:
            # As its documentation has it.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
            await server.wait_closed()

    asyncio.run(run())


def serve_flask_sock(port: int) -> None:
    """Flask-Sock, which is simple-websocket, on gevent's pywsgi."""
    from gevent import monkey

    monkey.patch_all()
    from flask import Flask
    from flask_sock import Sock  # type: ignore[import-not-found]
    from gevent.pywsgi import WSGIServer

    app = Flask(__name__)
    sock = Sock(app)

    @app.get("/health")
    def health() -> str:
        return "ok"

    @sock.route("/<path:path>")
    def echo(connection: Any, path: str) -> None:
        while True:
            connection.send(connection.receive())

    _serve(WSGIServer(("127.0.0.1", port), app, backlog=2048, log=None))


def _serve(server: Any) -> None:
    """Serves until SIGTERM, as gevent's documentation has it."""
    import gevent

    gevent.signal_handler(signal.SIGTERM, server.stop, 5)
    server.serve_forever()


def serve_gevent_websocket(port: int) -> None:
    """gevent-websocket."""
    from gevent import monkey

    monkey.patch_all()
    from gevent.pywsgi import WSGIServer
    from geventwebsocket.handler import WebSocketHandler  # type: ignore[import-not-found]

    def echo(environ: Any, start_response: Any) -> Any:
        connection = environ.get("wsgi.websocket")
        if connection is None:
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]
        while (message := connection.receive()) is not None:
            connection.send(message, binary=isinstance(message, (bytes, bytearray)))
        return []

    _serve(WSGIServer(("127.0.0.1", port), echo, backlog=2048, log=None, handler_class=WebSocketHandler))


if __name__ == "__main__":
    {
        "websockets": serve_websockets,
        "flask-sock": serve_flask_sock,
        "gevent-websocket": serve_gevent_websocket,
    }[sys.argv[1]](int(sys.argv[2]))
