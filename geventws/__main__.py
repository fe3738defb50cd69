"""``python -m geventws module:app``: a server for development."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from gevent import monkey

from geventws import VERSION, build

DEFAULT_BIND = "127.0.0.1:8000"


def main(arguments: list[str] | None = None) -> None:
    """Serves an app until it is interrupted; a wrong argument ends with status 2 and one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m geventws", description="Serves a WSGI app with WebSockets, for development.")
    parser.add_argument("app", nargs="?", help="module:app, as gunicorn takes it; the name after the colon is 'app' by default")
    parser.add_argument("--bind", default=DEFAULT_BIND, metavar="HOST:PORT", help=f"where to listen, {DEFAULT_BIND} by default")
    parser.add_argument("--reload", action="store_true", help="start again when a source file of the app changes")
    parser.add_argument("--version", action="version", version=describe())
    options = parser.parse_args(arguments)
    if options.app is None:
        parser.error("which app? For example: python -m geventws examples.echo:app")
    try:
        address = parse_bind(options.bind)
    except ValueError as error:
        parser.error(str(error))
    monkey.patch_all()
    if options.reload:
        from werkzeug._reloader import run_with_reloader

        run_with_reloader(lambda: serve(load(options.app), address), reloader_type="stat")
        return
    try:
        app = load(options.app)
    except (ImportError, AttributeError, TypeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in options.app:
            raise
        parser.error(str(error))
    serve(app, address)


def describe() -> str:
    """The version, and which build of the core runs."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"geventws {VERSION}, {build()} build, Python {python}"


def parse_bind(bind: str) -> tuple[str, int]:
    """``"HOST:PORT"`` as a socket address; raises ``ValueError``."""
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--bind is HOST:PORT, as in {DEFAULT_BIND}, not {bind!r}")
    return host.strip("[]"), int(port)


def load(name: str) -> Any:
    """The WSGI app that ``module:app`` names; raises ``ImportError``, ``AttributeError`` or ``TypeError`` that says what is missing."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    app = importlib.import_module(module_name)
    for part in (attribute or "app").split("."):
        if not hasattr(app, part):
            raise AttributeError(f"the module {module_name!r} has no {attribute or 'app'!r}: name the app as {module_name}:NAME")
        app = getattr(app, part)
    if not callable(app):
        raise TypeError(f"{name!r} is no WSGI app but {type(app).__name__}")
    return app


def serve(app: Any, address: tuple[str, int]) -> None:
    """Serves ``app`` until SIGINT or SIGTERM; its sessions are then closed with 1001."""
    import signal

    from gevent import signal_handler

    from geventws.server import WSGIServer

    server = WSGIServer(address, app)
    try:
        server.start()
    except OSError as error:
        sys.exit(f"can't listen on {address[0]}:{address[1]}: {error.strerror}")
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"{describe()}\nserving on http://{host}:{server.server_port}, stop with Ctrl-C", file=sys.stderr, flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal_handler(number, server.stop)
    server.serve_forever()


if __name__ == "__main__":
    main()
