"""Who is measured: our servers and the peers, and how each is started."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from works import Work

__all__ = ["ACROSS", "CERTIFICATE", "CONTENDERS", "HERE", "NODE", "PEERS", "PEER_PYTHON", "Contender"]

HERE = Path(__file__).resolve().parent
#: All that is built or installed for the benchmarks; git ignores it.
PEERS = HERE / ".peers"
PEER_PYTHON = str(PEERS / "venv" / "bin" / "python")
#: The virtual environment of the peers of across.py, and of Valkey.
ACROSS = PEERS / "across"
#: The folder of cert.pem and key.pem, for TLS.
CERTIFICATE = PEERS / "tls"
NODE = "node"


@dataclass(frozen=True)
class Contender:
    """One echo server."""

    name: str
    #: What it is, in a few words.
    remark: str
    #: The interpreter: this one for ours, the one of .peers/venv, or node.
    runtime: str
    #: The arguments behind the interpreter; ``{port}`` stands for the port.
    arguments: tuple[str, ...]
    #: Code that the interpreter must run without an error before the contender may start.
    check: str
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Whether it can do permessage-deflate.
    deflate: bool = True
    #: Whether its script takes BENCHMARK_TLS, and has the route /publish.
    tls: bool = False
    publish: bool = False
    #: Whether it has topics to subscribe to, and the route /topic for one.
    topics: bool = False
    #: What its command line has more for TLS.
    tls_arguments: tuple[str, ...] = ()
    #: Whether it is for the page on migrating alone: it runs where it is named.
    moving: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is geventws, and no peer."""
        return self.runtime == sys.executable

    def lacks(self, work: Work) -> str | None:
        """Why it can't do a work, in a few words; None where it can."""
        if work.deflate and not self.deflate:
            return "has no permessage-deflate"
        if work.tls and not self.tls:
            return "is not set up for TLS"
        if work.mode == "publish" and not self.publish:
            return "has no route that publishes"
        if work.path == "/topic" and not self.topics:
            return "has no topics"
        if work.pinged and not self.ours:
            return "does not ping every 20 s"
        return None

    def command_for(self, tls: bool) -> tuple[str, ...]:
        """The whole command line, with ``{port}`` still in it."""
        return (self.runtime, *self.arguments, *(self.tls_arguments if tls else ()))

    def environment_for(self, deflate: bool, tls: bool = False) -> dict[str, str]:
        """The variables to start it with, over those of this process."""
        return {
            "PYTHONPATH": str(HERE.parent) if self.ours else "",
            "NODE_PATH": str(PEERS / "node" / "node_modules"),
            "NODE_ENV": "production",
            "BENCHMARK_DEFLATE": "1" if deflate else "0",
            "BENCHMARK_TLS": str(CERTIFICATE) if tls else "",
            **self.environment,
        }


def _script(folder: str, name: str) -> tuple[str, ...]:
    return (str(HERE / folder / name), "{port}")


def _gunicorn(worker: str, folder: str, app: str) -> tuple[str, ...]:
    place = ("-b", "127.0.0.1:{port}", "--chdir", str(HERE / folder))
    options = "-w 1 --worker-connections 20000 --graceful-timeout 1 --no-control-socket --log-level warning"
    return ("-m", "gunicorn", "-k", worker, *options.split(), *place, app)


def _ours(name: str, remark: str, arguments: tuple[str, ...], module: str, pure: bool = False) -> Contender:
    build = "pure" if pure else "compiled"
    # A row must not be of another build than it says.
    check = f"""
import {module}, geventws
if geventws.build() != {build!r}:
    raise ImportError(f"this is the {{geventws.build()}} build; to compile: python setup.py build_ext --inplace")
"""
    environment = {"GEVENTWS_PURE": "1" if pure else ""}
    # The scripts of ours read BENCHMARK_TLS themselves; gunicorn has to be told.
    files = ("--certfile", str(CERTIFICATE / "cert.pem"), "--keyfile", str(CERTIFICATE / "key.pem"))
    more = files if "gunicorn" in arguments else ()
    return Contender(
        name,
        remark,
        sys.executable,
        arguments,
        check,
        environment,
        tls=True,
        publish=True,
        topics=True,
        tls_arguments=more,
    )


def _node(name: str, remark: str, script: str, *needs: str, topics: bool = False) -> Contender:
    check = "; ".join(f"require({need!r})" for need in needs)
    return Contender(name, remark, NODE, _script("peers", script), check, tls=True, publish=True, topics=topics)


def _peer(
    name: str,
    remark: str,
    arguments: tuple[str, ...],
    *needs: str,
    deflate: bool = True,
    tls: bool = False,
    publish: bool = False,
) -> Contender:
    check = f"import {', '.join(needs)}"
    return Contender(name, remark, PEER_PYTHON, arguments, check, deflate=deflate, tls=tls, publish=publish)


def _moved(name: str, remark: str, worker: str, app: str) -> Contender:
    """An app of another library, as it is, under a worker: with one of ours that of this checkout."""
    check = "import gunicorn.workers.ggevent, flask_sock, geventwebsocket"
    environment = {}
    if worker.startswith("geventws."):
        check += (
            "\nimport geventws.worker\nif geventws.build() != 'compiled': raise ImportError('compile geventws first')"
        )
        environment = {"PYTHONPATH": str(HERE.parent)}
    return Contender(
        name, remark, PEER_PYTHON, _gunicorn(worker, "peers", app), check, environment, deflate=False, moving=True
    )


_ECHO = _script("servers", "echo.py")
_FLASK = _script("servers", "flask_echo.py")
_WORKER = _gunicorn("geventws.Worker", "servers", "echo:app")
_SOCK = _gunicorn("gevent", "peers", "flask_sock_echo:app")

_ALL = (
    _ours("geventws", "geventws.WSGIServer, no framework", _ECHO, "geventws.server"),
    _ours("geventws-gunicorn", "gunicorn -k geventws.Worker, no framework", _WORKER, "geventws.worker"),
    _ours("geventws-flask", "geventws.WSGIServer, a Flask route", _FLASK, "geventws.flask"),
    _ours("geventws-pure", "geventws.WSGIServer, nothing compiled", _ECHO, "geventws.server", pure=True),
    _node("uwebsockets", "C++, as a Node addon", "uwebsockets_echo.js", "uwebsockets", topics=True),
    _node("ws", "Node", "ws_echo.js", "ws", "bufferutil"),
    _peer("picows", "asyncio, Cython", _script("peers", "picows_echo.py"), "picows", tls=True, publish=True),
    _peer("aiohttp", "asyncio, partly Cython", _script("peers", "aiohttp_echo.py"), "aiohttp"),
    _peer("websockets", "asyncio", _script("peers", "websockets_echo.py"), "websockets"),
    _peer(
        "gevent-websocket",
        "gevent.pywsgi with its handler",
        _script("peers", "gevent_websocket_echo.py"),
        "gevent",
        "geventwebsocket",
        deflate=False,
    ),
    _peer("flask-sock", "gunicorn -k gevent, a Flask route", _SOCK, "flask_sock", "gunicorn.workers.ggevent"),
    _moved("moving-flask-sock-0", "gunicorn -k gevent", "gevent", "flask_sock_echo:app"),
    _moved("moving-flask-sock-1", "the same app, -k geventws.Worker", "geventws.Worker", "flask_sock_echo:app"),
    _moved("moving-flask-sock-2", "-k geventws.compat.Worker", "geventws.compat.Worker", "flask_sock_echo:app"),
    _moved(
        "moving-gevent-websocket-0",
        "gunicorn with gevent-websocket's worker",
        "geventwebsocket.gunicorn.workers.GeventWebSocketWorker",
        "gevent_websocket_echo:app",
    ),
    _moved(
        "moving-gevent-websocket-1",
        "the same app, -k geventws.compat.Worker",
        "geventws.compat.Worker",
        "gevent_websocket_echo:app",
    ),
)

CONTENDERS = {contender.name: contender for contender in _ALL}
