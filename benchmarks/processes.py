"""A server's process tree: started on a core, awaited, measured from /proc, stopped."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

__all__ = ["ServerFailed", "ServerProcess", "fetch", "free_port", "pinned", "telling_line"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STARTING = 30.0
_STOPPING = 5.0


class ServerFailed(Exception):
    """The server did not start, or does not speak as it should."""


class ServerProcess:
    """A server while it is measured. Leaving the ``with`` block stops all its processes."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, core: int, port: int
    ) -> None:
        self.port = port
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (stop closes it)
        self._process = subprocess.Popen(
            pinned(core, [part.replace("{port}", str(port)) for part in command]),
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._tree = [self._process.pid]

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait_ready(self, deflate: bool, tls: bool = False) -> None:
        """Blocks until a handshake is answered with 101; raises ``ServerFailed``.

        With ``deflate`` the server must agree to it and answer a compressed message with a compressed one.
        """
        deadline = time.monotonic() + _STARTING
        while True:
            if self._process.poll() is not None:
                raise ServerFailed(f"it ended with status {self._process.returncode}: {self.last_words()}")
            try:
                _greet(self.port, deflate, tls)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"no answer in {_STARTING:.0f} s ({error}): {self.last_words()}") from None
                time.sleep(0.02)
        self.take_stock()

    def wait_answering(self) -> None:
        """Blocks until an HTTP request is answered, whatever with; raises ``ServerFailed``."""
        deadline = time.monotonic() + _STARTING
        while True:
            if self._process.poll() is not None:
                raise ServerFailed(f"it ended with status {self._process.returncode}: {self.last_words()}")
            try:
                fetch(self.port, "/")
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"no answer in {_STARTING:.0f} s ({error}): {self.last_words()}") from None
                time.sleep(0.05)
        self.take_stock()

    def take_stock(self) -> None:
        """Looks which processes there are: only these are measured."""
        self._tree = _descendants(self._process.pid)

    def cpu_seconds(self) -> float:
        """CPU seconds, user and system, that the process tree has used."""
        return sum(int(fields[11]) + int(fields[12]) for fields in map(_stat, self._tree) if fields) / _TICKS

    def running_seconds(self) -> float:
        """The same by the scheduler's account, to the nanosecond; without the threads that have ended."""
        return sum(map(_running, self._tree)) / 1e9

    def rss(self) -> int:
        """Bytes of memory that the processes hold, shared pages counted in each."""
        return sum(int(fields[21]) for fields in map(_stat, self._tree) if fields) * _PAGE

    def pss(self) -> int:
        """Bytes of memory that the processes hold, shared pages counted in parts; raises ``ServerFailed``."""
        total = 0
        for pid in self._tree:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                raise ServerFailed(f"a process of it is gone: {self.last_words()}") from None
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total * 1024

    def last_words(self) -> str:
        """What the server printed of its trouble, in a line."""
        self._output.seek(0)
        return telling_line(self._output.read().decode(errors="replace"))

    def stop(self) -> None:
        """Ends the server: asked first, then killed with whatever it started."""
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOPPING)
        finally:
            self.kill()
            self._output.close()

    def kill(self) -> None:
        """Kills the server with whatever it started."""
        # The session is our own, so whoever is in it descends from the server.
        for pid in _session(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, kept on one core."""
    return ["taskset", "-c", str(core), *command]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(port: int, path: str) -> bytes:
    """The body of an answer to a plain HTTP request, whatever its status; raises ``OSError``."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_STARTING)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    except HTTPException as error:
        raise OSError(f"no HTTP: {error!r}") from None
    finally:
        connection.close()


def telling_line(printed: str) -> str:
    """The last line that tells an error, else the last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _running(pid: int) -> int:
    """Nanoseconds that the living threads of a process have run."""
    total = 0
    for account in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            total += int(account.read_text().split()[0])
    return total


def _everyone() -> dict[int, list[str]]:
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return {pid: fields for pid in pids if (fields := _stat(pid))}


def _descendants(root: int) -> list[int]:
    parents = {pid: int(fields[1]) for pid, fields in _everyone().items()}
    tree = [root]
    for pid in tree:  # grows while it is walked
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _session(leader: int) -> list[int]:
    return [pid for pid, fields in _everyone().items() if int(fields[3]) == leader and fields[0] != "Z"]


def _greet(port: int, deflate: bool, tls: bool) -> None:
    """One handshake; with ``deflate`` also one message. ``OSError``: not there yet; ``ServerFailed``: it won't do."""
    key = base64.b64encode(os.urandom(16)).decode()
    request = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    if deflate:
        request.append("Sec-WebSocket-Extensions: permessage-deflate")
    with ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_STARTING))
        if tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            peer = stack.enter_context(context.wrap_socket(peer))
        peer.settimeout(_STARTING)
        peer.sendall("\r\n".join([*request, "", ""]).encode())
        stream = peer.makefile("rb")
        head: list[str] = []
        while line := stream.readline().decode("latin-1").strip():
            head.append(line)
        if not head:
            raise OSError("it closed the connection")
        if " 101" not in head[0]:
            raise ServerFailed(f"it answered the handshake with {head[0]!r}")
        if not deflate:
            return
        if not any(field.lower().startswith("sec-websocket-extensions: permessage-deflate") for field in head):
            raise ServerFailed("it does not agree to permessage-deflate")
        # The mask is zero: the masked payload is the payload.
        compressor = zlib.compressobj(wbits=-15)
        payload = (compressor.compress(b"x" * 1024) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        peer.sendall(bytes((0xC1, 0x80 | len(payload))) + bytes(4) + payload)
        if stream.read(1) != b"\xc1":
            raise ServerFailed("it answers a compressed message with an uncompressed one")
