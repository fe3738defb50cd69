"""Checks an installed geventws from outside: `python -m geventws` serves an echo, and a plain socket talks to it.

The argument, `compiled` or `pure`, is the build that must be installed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APP = """
from geventws import WebSockets

application = WebSockets()


@application.route("/")
def echo(session):
    for message in session:
        session.send(message)
"""

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of that key, by RFC 6455 section 1.3
MASKED_HELLO = bytes.fromhex("818537fa213d7f9f4d5158")  # "Hello" as the RFC masks it in section 5.7
HELLO = bytes.fromhex("810548656c6c6f")


def exchange(port: int) -> None:
    """Shake hands, send one message and expect it back."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(REQUEST % port + MASKED_HELLO)
        received = b""
        while not received.endswith(HELLO):
            data = connection.recv(65536)
            if not data:
                raise SystemExit(f"echo: the server closed after {received!r}")
            received += data
        head = received.removesuffix(HELLO)
        if not head.startswith(b"HTTP/1.1 101 ") or ACCEPT not in head or not head.endswith(b"\r\n\r\n"):
            raise SystemExit(f"echo: not a handshake's response: {head!r}")


def connect_until_served(port: int, server: subprocess.Popen[bytes]) -> None:
    """Try the exchange until the server accepts; gives up when it ended, or after 20 seconds."""
    deadline = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < deadline:
        try:
            return exchange(port)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("echo: no server")


def main(build: str) -> None:
    """Check the version line, then the echo."""
    command = [sys.executable, "-m", "geventws"]
    line = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    print(line)
    if build not in line:
        raise SystemExit(f"echo: expected a {build} build")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "echo_app.py").write_text(APP)
        server = subprocess.Popen(
            [*command, "--bind", f"127.0.0.1:{port}", "echo_app:application"],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": directory},
        )
        try:
            connect_until_served(port, server)
        finally:
            server.terminate()
            server.wait(15)
    print(f"echo: {build}: a message came back")


if __name__ == "__main__":
    main(sys.argv[1])
