"""Programs that the tests run as a user would: waited for by what they print, and stopped by their process id."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

__all__ = ["PATIENCE", "ROOT", "Program", "development_server", "gunicorn_server"]

#: Seconds that a program may take to say or do what is waited for. No test waits for them to pass.
PATIENCE = 30.0

ROOT = Path(__file__).parent.parent

#: What would change how gunicorn and the examples run.
_UNWANTED = ("GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "REDIS_URL")


class Program:
    """A program that runs in ``directory``, by default the checkout's root, as long as a ``with`` block."""

    def __init__(self, *command: str, directory: Path = ROOT) -> None:
        self._command = command
        self._directory = directory
        self._printed: queue.Queue[str | None] = queue.Queue()
        #: The lines that it printed so far, on either stream, as far as they were waited for.
        self.lines: list[str] = []

    def __enter__(self) -> Program:
        environ = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
        environ |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join((str(self._directory), str(ROOT)))}
        self.process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Its children are in its group, and Ctrl-C in the terminal is for pytest.
            start_new_session=True,
        )
        # Read on by a thread, so that a full pipe never stops the program.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            # The group is the program and its children, and nothing else.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join(PATIENCE)
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._printed.put(line.decode(errors="replace").rstrip("\n"))
        self._printed.put(None)

    def say(self, line: str) -> None:
        """Writes a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits for a line in which ``pattern`` is found; fails with what was printed where the program ends before."""
        while True:
            try:
                line = self._printed.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(self._told(f"printed no {pattern!r} within {PATIENCE:g} s")) from None
            if line is None:
                self._printed.put(None)
                raise AssertionError(self._told(f"ended without printing {pattern!r}"))
            self.lines.append(line)
            found = re.search(pattern, line)
            if found:
                return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals the program, and waits for its end; gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def rest(self) -> list[str]:
        """All lines of a program that has ended."""
        with suppress(queue.Empty):
            while (line := self._printed.get(timeout=PATIENCE)) is not None:
                self.lines.append(line)
        self._printed.put(None)
        return self.lines

    def _told(self, what: str) -> str:
        return "\n".join([f"{' '.join(self._command)} {what}:", *self.lines])


@contextmanager
def development_server(app: str, directory: Path = ROOT) -> Iterator[tuple[str, Program]]:
    """``python -m geventws app`` on a free port: gives its "host:port", and the program."""
    with Program(sys.executable, "-m", "geventws", "--bind", "127.0.0.1:0", app, directory=directory) as program:
        yield program.wait_for(r"serving on http://([^ ,]+)")[1], program


@contextmanager
def gunicorn_server(
    app: str, *arguments: str, bind: str = "127.0.0.1:0", directory: Path = ROOT
) -> Iterator[tuple[str, Program]]:
    """``gunicorn``, by default on a free port: gives its "host:port", and the program."""
    command = [sys.executable, "-m", "gunicorn", *arguments, "--no-control-socket", "--bind", bind, app]
    with Program(*command, directory=directory) as program:
        address = program.wait_for(r"Listening at: http://(\S+)")[1]
        # A worker that is told to stop while it starts may not hear it.
        program.wait_for("Booting worker")
        yield address, program
