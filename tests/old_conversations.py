"""The real gevent-websocket and Flask-Sockets beside ours: the same apps on either, and conversations with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.programs import Program, gunicorn_server
from tests.rigs import Peer, eventually, get, offer
from tests.wire import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame

#: The servers that either package has.
KINDS = ("server", "handler", "gunicorn")

#: The workers of gunicorn: that of gevent-websocket, and its name in Flask-Sockets.
WORKERS = {
    ("real", "gunicorn"): "geventwebsocket.gunicorn.workers.GeventWebSocketWorker",
    ("ours", "gunicorn"): "geventws.compat.Worker",
    ("real", "sockets"): "flask_sockets.worker",
    ("ours", "sockets"): "geventws.compat.flask_sockets.worker",
}

TEXT_FRAME, BINARY_FRAME, CLOSE_FRAME, PING_FRAME, PONG_FRAME = (
    0x80 | kind for kind in (TEXT, BINARY, CLOSE, PING, PONG)
)


class Client(Peer):
    """A client of a WebSocket, in bytes."""

    def switch(self, path: str, *fields: str) -> bytes:
        """Opens the WebSocket at ``path``; gives the head of the 101."""
        self.send(offer(path, *fields))
        head = self.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head

    def say(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        """Sends a frame."""
        self.send(frame(opcode, payload, **options))

    def hear(self) -> tuple[int, bytes]:
        """The next frame, as (first byte, payload)."""
        first, length = self.exactly(2)
        if length == 126:
            length = int.from_bytes(self.exactly(2), "big")
        elif length == 127:
            length = int.from_bytes(self.exactly(8), "big")
        assert length < 1 << 32
        return first, self.exactly(length)

    def hears(self, text: str) -> None:
        """Asserts that the next frame is this text."""
        assert self.hear() == (TEXT_FRAME, text.encode())

    def told(self) -> Any:
        """The next message, in JSON."""
        first, payload = self.hear()
        assert first == TEXT_FRAME, (first, payload)
        return json.loads(payload)

    def bye(self, code: int = 1000) -> None:
        """Closes, and reads to the end of the connection."""
        self.send(close_frame(code))
        first, _ = self.hear()
        assert first == CLOSE_FRAME
        assert self.rest() == b""


class Server:
    """A server of the old apps."""

    def __init__(self, address: str, program: Program) -> None:
        host, _, port = address.rpartition(":")
        self.address = (host, int(port))
        #: What runs it, and prints its logs.
        self.program = program

    def client(self, path: str, *fields: str) -> Client:
        """A client whose WebSocket at ``path`` is open."""
        client = Client(self.address)
        try:
            client.switch(path, *fields)
        except BaseException:
            client.socket.close()
            raise
        return client

    def events(self, count: int) -> list[str]:
        """What the apps noted since this was last asked, when that is ``count`` events."""
        noted: list[str] = []

        def is_complete() -> bool:
            noted.extend(json.loads(get(self.address, "/events")))
            return len(noted) >= count

        eventually(is_complete, f"{count} events")
        return noted


@contextmanager
def old_server(package: str, kind: str) -> Iterator[Server]:
    """The apps of `old_apps` on the ``package``, "real" or "ours", under a kind of server, also "sockets"."""
    with ExitStack() as stack:
        if (package, kind) in WORKERS:
            # One worker, for the clients of a chat are in the memory of theirs.
            options = ("-k", WORKERS[package, kind], "--workers", "1", "--access-logfile", "-")
            address, program = stack.enter_context(gunicorn_server("tests.old_apps", *options))
        else:
            program = stack.enter_context(Program(sys.executable, "-m", "tests.old_servers", package, kind))
            address = program.wait_for(r"serving on (\S+)")[1]
        yield Server(address, program)
        # What a test leaves open would be waited for; a test of the end has waited for it.
        program.process.kill()


class Servers(ExitStack):
    """The servers that a module's tests share, each started when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._started: dict[tuple[str, str], Server] = {}

    def get(self, package: str, kind: str) -> Server:
        """The server of this kind with the apps on ``package``."""
        if (package, kind) not in self._started:
            self._started[package, kind] = self.enter_context(old_server(package, kind))
        return self._started[package, kind]
