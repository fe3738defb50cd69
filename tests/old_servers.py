"""``python -m tests.old_servers real|ours server|handler``: the apps of `old_apps` on a server of gevent-websocket."""

from __future__ import annotations

import signal
import sys
from typing import Any

import gevent


def main(package: str, kind: str) -> None:
    """Serves on a free port, and says so; stops as apps do."""
    if package == "ours":
        import geventws.compat

        geventws.compat.install()
    from geventwebsocket.handler import WebSocketHandler

    from tests.old_apps import application, note

    def hook(handler: Any) -> bool:
        """Looks at each request, and has some of them served as plain HTTP."""
        path = handler.environ["PATH_INFO"]
        if path.startswith("/hooked"):
            note(f"{handler.environ['REQUEST_METHOD']} {path} {type(handler) is Handler}")
        if path == "/hooked/fails":
            raise ValueError("the hook failed")
        return bool(path == "/hooked/plain")

    class Handler(WebSocketHandler):
        """A handler of an app's own."""

        def _prepare_response(self) -> None:
            super()._prepare_response()
            if self.environ["PATH_INFO"] == "/prepared":
                note(f"prepared {self.code} {self.SUPPORTED_VERSIONS[0]}")

    listener = ("127.0.0.1", 0)
    if kind == "server":
        from geventwebsocket.server import WebSocketServer

        server = WebSocketServer(listener, application, pre_start_hook=hook)
        server.handler_class = Handler
    else:
        from gevent.pywsgi import WSGIServer

        server = WSGIServer(listener, application, handler_class=Handler)
        server.pre_start_hook = hook
    server.start()
    print(f"serving on 127.0.0.1:{server.server_port}", flush=True)
    gevent.signal_handler(signal.SIGTERM, server.stop, 5)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
