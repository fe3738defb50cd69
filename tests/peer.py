"""A server in this process and a peer that speaks to it in bytes, for what no well-behaved client would send."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import socket

from geventws import WSGIServer
from tests.wire import close_frame

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#: Longer than anything takes on a slow machine; no test waits for it to pass.
PATIENCE = 20.0


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[WSGIServer]:
    """``app`` served on a free port of 127.0.0.1, in this process."""
    server = WSGIServer(("127.0.0.1", 0), app, log=None, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(timeout=PATIENCE)


def request(path: str = "/", port: int = 80, drop: tuple[str, ...] = (), **fields: str) -> bytes:
    """A handshake as RFC 6455 1.3 has it;

    ``fields`` (with _ for -) replace or add header fields, ``drop`` leaves some out.
    """
    headers = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    names = {name.lower(): name for name in headers}
    for name, value in fields.items():
        spelled = name.replace("_", "-")
        headers[names.get(spelled.lower(), spelled)] = value
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if name not in drop)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Peer:
    """The other end of a connection to a server, in bytes."""

    def __init__(self, server: WSGIServer, path: str = "/", behind: bytes = b"", **fields: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.server_port), timeout=PATIENCE)
        self._read = b""
        self.socket.sendall(request(path, server.server_port, **fields) + behind)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Ends with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def head(self) -> str:
        """The response's head."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def accepted(self) -> Peer:
        """Reads the 101."""
        head = self.head()
        assert head.startswith("HTTP/1.1 101 "), head
        assert f"Sec-WebSocket-Accept: {ACCEPT}" in head
        return self

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        self.socket.sendall(data)

    def frame(self) -> tuple[int, bytes]:
        """The next frame, as (first byte, payload)."""
        first, second = self._exactly(2)
        assert not second & 0x80, "a server masked a frame"
        length = second
        if second == 126:
            length = int.from_bytes(self._exactly(2), "big")
        elif second == 127:
            length = int.from_bytes(self._exactly(8), "big")
        return first, self._exactly(length)

    def closed_with(self, code: int | None) -> None:
        """Reads up to a Close frame with ``code``, answers it, and reads the end."""
        first, payload = self.frame()
        assert first == 0x88, (first, payload)
        assert (int.from_bytes(payload[:2], "big") if payload else None) == code, payload
        try:
            self.send(close_frame(code))
        except OSError:
            pass
        self.ended()

    def ended(self) -> None:
        """Asserts that the server closes the connection and sends nothing more before."""
        rest = self.rest()
        assert rest == b"", rest

    def rest(self) -> bytes:
        """All up to the end of the connection."""
        while True:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                rest, self._read = self._read, b""
                return rest
            self._read += data

    def _exactly(self, count: int) -> bytes:
        while len(self._read) < count:
            self._more()
        data, self._read = self._read[:count], self._read[count:]
        return data

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the connection ended after {self._read!r}")
        self._read += data


def wait_until(condition: Any) -> None:
    """Lets other greenlets run until ``condition()`` holds."""
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.001)
