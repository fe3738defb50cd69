"""``python -m geventws module:app``: a server for development; and the commands ``publish`` and ``connect``."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import gevent
from gevent import monkey

from geventws import socketio
from geventws._build import VERSION, build
from geventws.connecting import main as connect
from geventws.connecting import seconds
from geventws.server import WSGIServer
from geventws.topics.topics import Topics

DEFAULT_BIND = "127.0.0.1:8000"

#: Tells a process that it is one that --reload runs, and may end with this status to be run again.
RELOAD_PARENT = "GEVENTWS_RELOAD_PARENT"
RELOAD_STATUS = 3
#: Seconds between looks at the files.
RELOAD_INTERVAL = 0.25


class AppError(Exception):
    """There is no app of the name that was given."""


def main(arguments: list[str] | None = None) -> None:
    """Serves an app until it is interrupted; a wrong argument ends with status 2 and a line that says what is wrong.

    With ``publish`` as the first argument it publishes a message instead, with ``connect`` it is a client.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    if arguments[:1] == ["publish"]:
        publish(arguments[1:])
        return
    if arguments[:1] == ["connect"]:
        connect(arguments[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m geventws",
        description="Serves a WSGI app with WebSockets, for development.",
        epilog="To publish a message on a topic: python -m geventws publish --help. "
        "To connect to a WebSocket: python -m geventws connect --help.",
    )
    parser.add_argument(
        "app",
        nargs="?",
        help="module:app or module:create_app(), as gunicorn takes it; the name after the colon is 'app' by default",
    )
    parser.add_argument(
        "--bind", default=DEFAULT_BIND, metavar="HOST:PORT", help=f"where to listen, {DEFAULT_BIND} by default"
    )
    parser.add_argument("--reload", action="store_true", help="start again when a source file of the app changes")
    parser.add_argument("--version", action="version", version=describe())
    if arguments[:1] == ["serve"] and len(arguments) > 1:
        parser.error("serving takes no command: python -m geventws module:app")
    options = parser.parse_args(arguments)
    if options.app is None:
        parser.error("which app? For the one that app.py calls app: python -m geventws app:app")
    try:
        address = parse_bind(options.bind)
    except ValueError as error:
        parser.error(str(error))
    if options.reload and not has_reload_parent():
        sys.exit(keep_running())
    monkey.patch_all()
    try:
        app = load(options.app)
    except AppError as error:
        parser.error(str(error))
    except Exception as error:
        if not options.reload:
            raise
        # Nothing is open that would have to be closed on Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        watch = Watch(files_of(error))
        traceback.print_exc()
        watch.wait()
        sys.exit(RELOAD_STATUS)
    socketio.install_if_used()
    serve(app, address, options.reload)


def publish(arguments: list[str]) -> None:
    """Publishes one message by way of Redis; ends with status 1 and a line that says why where that can't be."""
    parser = argparse.ArgumentParser(
        prog="python -m geventws publish", description="Publishes a message on a topic, by way of Redis or Valkey."
    )
    parser.add_argument("topic")
    parser.add_argument("message", help="text, or - for what standard input brings")
    parser.add_argument(
        "--url",
        default=os.environ.get("REDIS_URL"),
        help="as in geventws.Topics(URL); by default the environment's REDIS_URL, which no list of processes shows",
    )
    parser.add_argument("--namespace", default="geventws", help="as in geventws.Topics, 'geventws' by default")
    parser.add_argument(
        "--history",
        type=_messages,
        default=0,
        metavar="N",
        help="messages kept, as the app's Topics has it; not needed where the topic has a history already",
    )
    parser.add_argument("--binary", action="store_true", help="send standard input as a binary message")
    parser.add_argument(
        "--timeout", type=seconds, default=5.0, metavar="SECONDS", help="how long it may take, 5 by default"
    )
    options = parser.parse_args(arguments)
    if not options.url:
        parser.error("which server? --url redis://HOST:PORT, or REDIS_URL in the environment")
    if options.binary and options.message != "-":
        parser.error("--binary is for what standard input brings: give - as the message")
    message: str | bytes = options.message
    if message == "-":
        message = sys.stdin.buffer.read()
        if not options.binary:
            try:
                message = message.decode()
            except UnicodeDecodeError:
                parser.error("standard input is not UTF-8: --binary sends it as it is")
    try:
        topics = Topics(options.url, namespace=options.namespace, history=options.history)
        topics.publish(options.topic, message)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    try:
        topics.flush(options.timeout)
    except OSError as error:
        sys.exit(f"it was not published: {error}")


def _messages(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"it must be a whole number of messages from 0 up, not {text!r}")
    return int(text)


def describe() -> str:
    """The version, and which build of the core runs."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"geventws {VERSION}, {build()} build, Python {python}"


def parse_bind(bind: str) -> tuple[str, int]:
    """``"HOST:PORT"`` as a socket address; raises ``ValueError``."""
    host, separator, port = bind.rpartition(":")
    if not separator or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"--bind must be HOST:PORT, as in {DEFAULT_BIND}, not {bind!r}")
    return host.strip("[]"), int(port)


def load(name: str) -> Any:
    """The WSGI app that ``module:app`` names, or ``module:create_app()`` makes.

    Raises ``AppError`` that says what is missing, and what the module itself raises.
    """
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "app"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        app: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # One that the app's module fails to import is another matter.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise AppError(f"there is no module {error.name!r}{_hint(module_name, attribute)}") from None
    except (ValueError, TypeError):
        if all(part.isidentifier() for part in module_name.split(".")):
            raise
        hint = _hint(module_name, attribute) or ": name the app as module:app"
        raise AppError(f"{module_name!r} is no name of a module{hint}") from None
    path = attribute.removesuffix("()")
    for part in path.split("."):
        if not hasattr(app, part):
            raise AppError(f"the module {module_name!r} has no {path!r}: name the app as {module_name}:NAME")
        app = getattr(app, part)
    if attribute.endswith("()"):
        app = app()
    if not callable(app) or isinstance(app, ModuleType):
        raise AppError(f"{name!r} is no WSGI app but {type(app).__name__}")
    return app


def _hint(module_name: str, attribute: str) -> str:
    """How to name a module whose file was named."""
    named = module_name.removesuffix(".py").strip("./").replace("/", ".")
    if not ("/" in module_name or module_name.endswith(".py")) or not all(
        part.isidentifier() for part in named.split(".")
    ):
        return ""
    return f": modules are named as in import, {named}:{attribute}"


def serve(app: Any, address: tuple[str, int], reload: bool = False) -> None:
    """Serves ``app`` until SIGINT or SIGTERM; its sessions are then closed with 1001.

    With ``reload`` a changed source file ends it too, and the process with ``RELOAD_STATUS``.
    """
    # Unless the app has set up its logs, they tell all: of refused handshakes too.
    logging.basicConfig()
    log = logging.getLogger("geventws")
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    watch = Watch() if reload else None
    server = WSGIServer(address, app)
    try:
        server.start()
    except OSError as error:
        sys.exit(f"can't listen on {address[0]}:{address[1]}: {error.strerror}")
    host = f"[{address[0]}]" if ":" in address[0] else address[0] or "0.0.0.0"
    print(f"{describe()}\nserving on http://{host}:{server.server_port}, stop with Ctrl-C", file=sys.stderr, flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    if watch is not None:
        gevent.spawn(watch.wait, then=server.stop)
    server.serve_forever()
    if watch is not None and watch.over:
        sys.exit(RELOAD_STATUS)


def has_reload_parent() -> bool:
    """Tells whether the process that started this one starts it again when it ends for that."""
    return os.environ.get(RELOAD_PARENT) == str(os.getppid())


def keep_running() -> int:
    """Runs this same command in a process of its own, and again whenever it asks for that; gives its last status."""
    environ = {**os.environ, RELOAD_PARENT: str(os.getpid())}
    children: list[subprocess.Popen[bytes]] = []
    stopping = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if children:
            children[0].send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    while True:
        children[:] = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environ)]
        if stopping:
            # The signal came between two of them.
            children[0].terminate()
        status = children[0].wait()
        if stopping and status < 0:
            # From a terminal Ctrl-C gets to both; when it is passed on, the other may be past handling it again.
            return 0
        if stopping or status != RELOAD_STATUS:
            # A shell's way to tell of a signal.
            return status if status >= 0 else 128 - status


class Watch:
    """Looks whether files change that modules were loaded from, or ``files``, but none that was installed."""

    def __init__(self, files: Sequence[str] = ()) -> None:
        self._files = files
        installed = {*sysconfig.get_paths().values(), os.path.dirname(__file__)}
        self._installed = tuple(path + os.sep for path in installed)
        self._seen: dict[str, int] = {}
        #: Whether this process is to end: for a change, or because the one that would start it again is gone.
        self.over = False
        self._look()

    def wait(self, then: Callable[[], object] | None = None) -> None:
        """Blocks until it is over; then calls ``then``."""
        while not self.over:
            gevent.sleep(RELOAD_INTERVAL)
            self._look()
        if then is not None:
            then()

    def _look(self) -> None:
        self.over = not has_reload_parent()
        loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        for file in {*self._files, *loaded}:
            if not isinstance(file, str) or file.startswith(self._installed):
                continue
            try:
                changed = os.stat(file).st_mtime_ns
            except OSError:
                # It may be about to be written anew.
                continue
            if self._seen.setdefault(file, changed) != changed and not self.over:
                print(f"{file} has changed", file=sys.stderr, flush=True)
                self.over = True


def files_of(error: BaseException) -> tuple[str, ...]:
    """The files that an app failed to load by: their modules are not there."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    return tuple(files)


if __name__ == "__main__":
    main()
