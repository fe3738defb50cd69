"""``python -m tests.old_servers real|ours server|handler``: the apps of `old_apps` on a server of gevent-websocket."""

from __future__ import annotations

import signal
import sys

import gevent


def main(package: str, kind: str) -> None:
    """Serves on a free port, and says so; stops as apps do."""
    if package == "ours":
        import geventws.compat

        geventws.compat.install()
    from tests.old_apps import application

    listener = ("127.0.0.1", 0)
    if kind == "server":
        from geventwebsocket.server import WebSocketServer

        server = WebSocketServer(listener, application)
    else:
        from gevent.pywsgi import WSGIServer
        from geventwebsocket.handler import WebSocketHandler

        server = WSGIServer(listener, application, handler_class=WebSocketHandler)
    server.start()
    print(f"serving on 127.0.0.1:{server.server_port}", flush=True)
    gevent.signal_handler(signal.SIGTERM, server.stop, 5)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
