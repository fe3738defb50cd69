"""Real servers on free loopback ports, raw peers for them, and the small WSGI applications that they serve.

The applications take the seam by hand and speak bytes, not WebSocket frames: the tests are about who owns the
connection.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
from gevent import getcurrent
from gevent.event import Event

import geventws
from geventws.server import WSGIServer

#: Seconds that anything may take before a test fails. No test waits for it to pass.
DEADLINE = 15.0
ROOT = Path(geventws.__file__).parent.parent

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="

# -- Applications ------------------------------------------------------------------------------------------------------


class HandSession:
    """A session of bytes, with what a server asks of those in ``Upgrade.sessions``."""

    def __init__(self, sock: Any) -> None:
        self.socket = sock
        self.greenlet = getcurrent()
        self.closed = Event()
        self.terminated = False

    def start_close(self, code: int, message: str = "") -> None:
        """Tells the peer the code, once, and that no more comes; the peer's own end of output ends the session."""
        with suppress(OSError):
            send(self.socket, b"<close %d>" % code)
            raw(self.socket).shutdown(socket.SHUT_WR)

    def terminate(self) -> None:
        """Ends the connection at once."""
        self.terminated = True
        with suppress(OSError):
            raw(self.socket).shutdown(socket.SHUT_RDWR)

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Waits until the session is gone."""
        return bool(self.closed.wait(timeout))


class DeafSession(HandSession):
    """A session that does nothing about a close."""

    def start_close(self, code: int, message: str = "") -> None:
        """Ignores it."""


def raw(sock: Any) -> Any:
    """The socket below TLS."""
    return getattr(sock, "_sock", sock)


def send(sock: Any, data: bytes) -> None:
    """Sends all of a few bytes."""
    tls = getattr(sock, "_sslobj", None)
    while data:
        try:
            data = data[tls.write(data) if tls is not None else sock.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            wait(sock, 2)


def receive(sock: Any) -> bytes:
    """What the peer sends next; empty at its end."""
    tls = getattr(sock, "_sslobj", None)
    while True:
        try:
            return tls.read(65536) if tls is not None else sock.recv(65536)  # type: ignore[no-any-return]
        except (BlockingIOError, ssl.SSLWantReadError):
            wait(sock, 1)
        except (OSError, ssl.SSLError):
            return b""


def wait(sock: Any, event: int) -> None:
    """Blocks the greenlet until the socket is ready."""
    hub = gevent.get_hub()
    watcher = hub.loop.io(sock.fileno(), event)
    try:
        hub.wait(watcher)
    finally:
        watcher.stop()
        watcher.close()


def take(environ: dict[str, Any], session_class: type[HandSession] = HandSession) -> tuple[HandSession, bytearray]:
    """Takes the connection of a request, and answers 101."""
    upgrade = environ["geventws.upgrade"]
    sock, read_ahead = upgrade.take()
    session = session_class(sock)
    upgrade.sessions.add(session)
    send(sock, SWITCHED)
    return session, read_ahead


def echo(environ: dict[str, Any], session_class: type[HandSession] = HandSession) -> None:
    """Echoes bytes until the peer ends."""
    session, data = take(environ, session_class)
    try:
        while data:
            send(session.socket, bytes(data))
            data = bytearray(receive(session.socket))
        while not data and (data := bytearray(receive(session.socket))):
            send(session.socket, bytes(data))
            data.clear()
    finally:
        release(environ, session)


def release(environ: dict[str, Any], session: HandSession) -> None:
    """Ends a session."""
    environ["geventws.upgrade"].sessions.discard(session)
    session.closed.set()
    session.socket.close()


def respond(
    start_response: Any, body: str, status: str = "200 OK", headers: list[tuple[str, str]] | None = None
) -> Any:
    """A plain response."""
    data = body.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(data))), *(headers or [])])
    return [data]


def note(text: str) -> None:
    """Writes a line where the test finds it, also from a process that is about to be killed."""
    path = os.environ.get("RIG_NOTES")
    if path:
        with open(path, "a") as notes:
            notes.write(text + "\n")


class FailingResult:
    """A result that a server must close, and must not read."""

    def __iter__(self) -> Iterator[bytes]:
        note("result read")
        yield b"HTTP in the stream"

    def close(self) -> None:
        """Tells that it was called."""
        note("result closed")


def app(environ: dict[str, Any], start_response: Any) -> Any:
    """What a request does stands in its path."""
    return PATHS[environ["PATH_INFO"]](environ, start_response)


def hello(environ: dict[str, Any], start_response: Any) -> Any:
    """Plain HTTP."""
    return respond(start_response, "hello")


def pid(environ: dict[str, Any], start_response: Any) -> Any:
    """Which process answers."""
    return respond(start_response, str(os.getpid()))


def body(environ: dict[str, Any], start_response: Any) -> Any:
    """Gives the request's body back."""
    return respond(start_response, environ["wsgi.input"].read().decode())


def scheme(environ: dict[str, Any], start_response: Any) -> Any:
    """What the environ says of the way here, to a WebSocket as its first bytes."""
    told = f"{environ['wsgi.url_scheme']} {environ.get('REMOTE_ADDR')!r} {environ.get('HTTP_HOST')}"
    if "geventws.upgrade" not in environ:
        return respond(start_response, told)
    session, _ = take(environ)
    send(session.socket, told.encode())
    release(environ, session)
    return []


def fields(environ: dict[str, Any], start_response: Any) -> Any:
    """The request's header fields, as the environ has them."""
    told = [f"{key}={value}" for key, value in sorted(environ.items()) if key.startswith(("HTTP_", "CONTENT_"))]
    return respond(start_response, "\n".join(told))


def told_environ(environ: dict[str, Any], start_response: Any) -> Any:
    """The whole environ, and what the WSGI errors are: strings as they are, of other values what they are."""
    told = {
        key: value if isinstance(value, (str, bool, tuple)) else repr(type(value)) for key, value in environ.items()
    }
    return respond(start_response, json.dumps(told, sort_keys=True))


def complain(environ: dict[str, Any], start_response: Any) -> Any:
    """Writes a line to the error log, as WSGI has it."""
    environ["wsgi.errors"].write("a complaint\n")
    return respond(start_response, "hello")


def ws_echo(environ: dict[str, Any], start_response: Any) -> Any:
    """A session."""
    echo(environ)
    return []


def ws_deaf(environ: dict[str, Any], start_response: Any) -> Any:
    """A session that ignores its close, and notes that its ``finally`` ran."""
    try:
        echo(environ, DeafSession)
    finally:
        note("finally")
    return []


def ws_asleep(environ: dict[str, Any], start_response: Any) -> Any:
    """A session whose handler looks at nothing, and notes how it ended."""
    session, _ = take(environ)
    try:
        while True:
            gevent.sleep(60)
    except gevent.GreenletExit:
        note("killed")
        raise
    finally:
        note("finally")
        release(environ, session)


def ws_refused(environ: dict[str, Any], start_response: Any) -> Any:
    """What an application says that does not speak the client's version."""
    headers = [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
    return respond(start_response, "no", "426 Upgrade Required", headers)


def ws_raises(environ: dict[str, Any], start_response: Any) -> Any:
    """Raises with the connection taken and still open."""
    session, _ = take(environ)
    kind = environ["QUERY_STRING"]
    try:
        raise {"value": ValueError, "os": OSError, "timeout": lambda: gevent.Timeout(1)}[kind]()  # type: ignore[operator]
    finally:
        gevent.spawn_later(0.1, release, environ, session)


def ws_returns(environ: dict[str, Any], start_response: Any) -> Any:
    """Tries everything that writes HTTP, with the connection taken and still open."""
    begun = start_response("200 OK", [("Content-Length", "4")]) if environ["QUERY_STRING"] == "begun" else None
    session, _ = take(environ)
    if begun is not None:
        begun(b"HTTP in the stream")
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"HTTP in the stream")
    if environ["QUERY_STRING"] != "begun":
        start_response("500 Oops", [], (ValueError, ValueError(), None))
    gevent.spawn_later(0.1, release, environ, session)
    return FailingResult()


def ws_generator(environ: dict[str, Any], start_response: Any) -> Any:
    """A generator, which takes the connection only when it is read."""
    echo(environ)
    yield b"HTTP in the stream"


def ws_late(environ: dict[str, Any], start_response: Any) -> Any:
    """Takes the connection when the response has begun, and says what happened."""
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"begun, ")
    try:
        environ["geventws.upgrade"].take()
    except geventws.UsageError as error:
        return [str(error).encode()]
    return [b"taken"]


def ws_with_body(environ: dict[str, Any], start_response: Any) -> Any:
    """Takes the connection of a request, whatever it is, and says what happened."""
    try:
        environ["geventws.upgrade"].take()
    except geventws.UsageError as error:
        return respond(start_response, str(error))
    return []


def ws_exit(environ: dict[str, Any], start_response: Any) -> Any:
    """Ends the process."""
    take(environ)
    sys.exit(3)


def ws_exit_within(environ: dict[str, Any], start_response: Any) -> Any:
    """Ends the process when the response has begun."""
    start_response("200 OK", [("Content-Type", "text/plain")])(b"begun")
    sys.exit(3)


def forever(environ: dict[str, Any], start_response: Any) -> Any:
    """A plain request that never ends by itself."""
    try:
        note("begun")
        gevent.sleep(3600)
    finally:
        note("finally")
    return respond(start_response, "over")


def spin(environ: dict[str, Any], start_response: Any) -> Any:
    """Computes for ever."""
    while True:
        pass


def nap(environ: dict[str, Any], start_response: Any) -> Any:
    """A plain request that takes its time."""
    gevent.sleep(0.7)
    return respond(start_response, "slept")


def fails(environ: dict[str, Any], start_response: Any) -> Any:
    """An application's own fault."""
    raise ValueError("the application failed")


PATHS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "/": hello,
    "/body": body,
    "/complain": complain,
    "/echo": ws_echo,
    "/environ": told_environ,
    "/deaf": ws_deaf,
    "/asleep": ws_asleep,
    "/exit": ws_exit,
    "/exit-within": ws_exit_within,
    "/fails": fails,
    "/fields": fields,
    "/forever": forever,
    "/generator": ws_generator,
    "/late": ws_late,
    "/nap": nap,
    "/pid": pid,
    "/raises": ws_raises,
    "/refused": ws_refused,
    "/returns": ws_returns,
    "/scheme": scheme,
    "/spin": spin,
    "/with-body": ws_with_body,
}

# -- Peers -------------------------------------------------------------------------------------------------------------


def request(path: str = "/", *extra: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    """A plain request."""
    return "\r\n".join([f"{method} {path} {version}", "Host: localhost", *extra, "", ""]).encode("latin-1")


def offer(path: str = "/echo", *extra: str, method: str = "GET", version: str = "13") -> bytes:
    """A request that offers a WebSocket."""
    fields = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        f"Sec-WebSocket-Version: {version}",
    ]
    return request(path, *fields, *extra, method=method)


class Peer:
    """A raw client connection with a deadline on everything."""

    def __init__(self, address: Any, context: ssl.SSLContext | None = None) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(DEADLINE)
        try:
            self.socket.connect(address)
            if family == socket.AF_INET:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        except OSError:
            self.socket.close()
            raise
        self.buffer = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends."""
        self.socket.sendall(data)

    def until(self, end: bytes) -> bytes:
        """What comes, to ``end``; fails where the server ends before."""
        while end not in self.buffer:
            piece = self.socket.recv(65536)
            assert piece, f"the server ended after {self.buffer!r}, without {end!r}"
            self.buffer += piece
        found = self.buffer.index(end) + len(end)
        data, self.buffer = self.buffer[:found], self.buffer[found:]
        return data

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        while len(self.buffer) < size:
            piece = self.socket.recv(65536)
            assert piece, f"the server ended after {self.buffer!r}"
            self.buffer += piece
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def rest(self) -> bytes:
        """All that comes until the server ends. A reset is an end too; the bytes before it count."""
        with suppress(ConnectionResetError):
            while piece := self.socket.recv(65536):
                self.buffer += piece
        data, self.buffer = self.buffer, b""
        return data

    def status(self) -> int:
        """The status of the response that comes; its fields stay in ``head``, its body is read into ``body``."""
        self.head = self.until(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self.head)
        self.body = self.exactly(int(length.group(1))) if length else b""
        return int(self.head.split()[1])

    def ask(self, data: bytes) -> int:
        """Sends a request; gives the status of the response."""
        self.send(data)
        return self.status()

    def open(self, path: str = "/echo") -> Peer:
        """Offers a WebSocket, which must be taken."""
        self.send(offer(path))
        assert self.until(b"\r\n\r\n") == SWITCHED
        return self

    def echoes(self, data: bytes) -> bool:
        """Sends; tells whether the same comes back."""
        self.send(data)
        return self.exactly(len(data)) == data


def get(address: Any, path: str, context: ssl.SSLContext | None = None) -> str:
    """The body of a plain request."""
    with Peer(address, context) as peer:
        assert peer.ask(request(path, "Connection: close")) == 200
        return peer.body.decode()


# -- Waiting -----------------------------------------------------------------------------------------------------------


def eventually(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Waits for what another process or thread does without a way to tell of it."""
    ends = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < ends, f"{what} did not happen within {deadline:g} s"
        time.sleep(0.005)
    return value


# -- Servers -----------------------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority, a server's certificate by it in files, and a client's context that trusts it."""

    def __init__(self, directory: Path) -> None:
        # It is slow to import, and the workers import this module too.
        import trustme

        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        self.certfile = str(directory / "server.pem")
        self.keyfile = str(directory / "server.key")
        certificate.cert_chain_pems[0].write_to_path(self.certfile)
        certificate.private_key_pem.write_to_path(self.keyfile)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.server)


class Standalone:
    """A running ``WSGIServer``."""

    def __init__(self, server: WSGIServer, log: io.StringIO, errors: io.StringIO) -> None:
        self.server = server
        self.address = ("127.0.0.1", server.server_port)
        self._log = log
        self._errors = errors

    def log(self) -> list[str]:
        """The lines of the access log."""
        return self._log.getvalue().splitlines()

    def errors(self) -> list[str]:
        """The lines of the error log."""
        return self._errors.getvalue().splitlines()


@contextmanager
def standalone(application: Any = app, **options: Any) -> Iterator[Standalone]:
    """A ``WSGIServer`` in a thread of its own, in this process, which is not monkey-patched."""
    log, errors = io.StringIO(), io.StringIO()
    ready = threading.Event()
    started: list[WSGIServer] = []
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            server = WSGIServer(("127.0.0.1", 0), application, log=log, error_log=errors, **options)
            server.start()
            started.append(server)
            ready.set()
            server.serve_forever()
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()
            gevent.get_hub().destroy()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(DEADLINE)
    try:
        if failures:
            raise failures[0]
        yield Standalone(started[0], log, errors)
    finally:
        if started and thread.is_alive():
            started[0].stop(0)
        thread.join(DEADLINE)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


class Gunicorn:
    """A running gunicorn with its workers."""

    def __init__(self, process: subprocess.Popen[bytes], address: Any, directory: Path) -> None:
        self.process = process
        self.address = address
        self._directory = directory

    def log(self) -> str:
        """What gunicorn logged, both the error and the access log."""
        return (self._directory / "gunicorn.log").read_text(errors="replace")

    def lines(self, part: str) -> list[str]:
        """The lines of the log that have ``part``."""
        return [line for line in self.log().splitlines() if part in line]

    def notes(self) -> list[str]:
        """What the application noted."""
        path = self._directory / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def workers(self) -> list[int]:
        """The processes of all workers that were ever started."""
        return [int(found) for found in re.findall(r"Booting worker with pid: (\d+)", self.log())]

    def signal(self, number: signal.Signals, process: int | None = None) -> float:
        """Signals a process, by default the master; gives the monotonic time."""
        os.kill(process or self.process.pid, number)
        return time.monotonic()

    def ended(self) -> float:
        """Waits until the master is gone; gives the monotonic time."""
        self.process.wait(DEADLINE)
        return time.monotonic()

    def worker_ended(self, process: int) -> float:
        """Waits until a worker has said its last; gives the monotonic time."""
        eventually(lambda: not is_running(process), f"the end of worker {process}")
        return time.monotonic()


def is_running(process: int) -> bool:
    """Whether a process lives, and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


#: The head of a configuration file whose hooks note what they see, as `note` does within the application.
NOTING = """
import os

def note(text):
    with open(os.environ["RIG_NOTES"], "a") as notes:
        notes.write(text + "\\n")
"""


def configuration(directory: Path, text: str) -> str:
    """The argument for a configuration file with ``text``."""
    path = directory / "configuration.py"
    path.write_text(text)
    return f"--config={path}"


@contextmanager
def gunicorn(
    directory: Path,
    *arguments: str,
    bind: str | None = None,
    application: str = "tests.rigs:app",
    attributes: str | None = None,
) -> Iterator[Gunicorn]:
    """``gunicorn -k geventws.Worker`` with one worker, on a port that is taken before it starts, or on ``bind``.

    With ``attributes``, statements such as ``handshake_timeout = 1``, the worker is of a class that has these.
    """
    command = [sys.executable, "-m", "gunicorn", application, "--no-control-socket"]
    if attributes is None:
        command += ["-k", "geventws.Worker"]
    else:
        (directory / "gunicorn.conf.py").write_text(
            f"import geventws\nclass worker_class(geventws.Worker):\n    {attributes}\n"
        )
    command += ["--access-logfile", "-", "--graceful-timeout", "10"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), RIG_NOTES=str(directory / "notes"))
    environment.pop("GUNICORN_CMD_ARGS", None)
    descriptors: tuple[int, ...] = ()
    address: Any = bind and bind.removeprefix("unix:")
    listener = None
    if bind is None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        address = listener.getsockname()
        descriptors = (listener.fileno(),)
        bind = f"fd://{listener.fileno()}"
    with open(directory / "gunicorn.log", "ab") as log:
        process = subprocess.Popen(
            [*command, "--bind", bind, *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=descriptors,
            start_new_session=True,
        )
    if listener is not None:
        listener.close()
    running = Gunicorn(process, address, directory)
    try:
        yield running
    except BaseException:
        print(running.log()[-5000:])
        raise
    finally:
        # The group is the master and its workers, and nothing else.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
        for worker in running.workers():
            running.worker_ended(worker)
