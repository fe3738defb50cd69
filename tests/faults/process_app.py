"""The application under test with handlers that note their ends, fork, and block where no Python runs.

As ``tests.faults.app``, and also run as that is: ``python -m tests.faults.process_app PORT``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from typing import Any

import gevent

from tests.faults.app import app, argument, serve, sockets

__all__ = ["app"]


def note(text: str) -> None:
    """Writes a line where the test finds it, also from a process that is about to end."""
    descriptor = os.open(os.environ["FAULT_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, text.encode() + b"\n")
    os.close(descriptor)


@sockets.route("/whose")
def whose(session: Any) -> None:
    """Tells its process, and echoes."""
    session.send(str(os.getpid()))
    for message in session:
        session.send(message)


@sockets.route("/noted")
def noted(session: Any) -> None:
    """Sleeps as a handler does that never receives; notes that its ``finally`` ran."""
    session.accept()
    try:
        gevent.sleep(3600)
    finally:
        note("finally")


@sockets.route("/counted")
def counted(session: Any) -> None:
    """Echoes; notes that its ``finally`` ran, and with which code."""
    try:
        for message in session:
            session.send(message)
    finally:
        note(f"finally {session.close_reason.code}")


@sockets.route("/child")
def child(session: Any) -> None:
    """Starts a child that outlives its session, in one way or another, and closes when it is told."""
    how = argument(session, "how", "fork")
    session.accept()
    if how == "fork":
        pid = os.fork()
        if pid == 0:
            # Its loop runs, with what it has inherited.
            gevent.sleep(30)
            os._exit(0)
    elif how == "subprocess":
        pid = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False).pid
    session.send(str(pid))
    for message in session:
        if message == "close":
            break
        session.send(message)


#: Neither lets go when a signal comes. With the GIL no other Python code runs meanwhile, in no thread.
_libraries = {"with": ctypes.PyDLL(None), "without": ctypes.CDLL(None)}


@sockets.route("/native")
def native(session: Any) -> None:
    """Waits for ever for a lock of C, at the first message."""
    library = _libraries[argument(session, "gil", "without")]
    mutex = ctypes.create_string_buffer(64)
    for _ in session:
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)


@sockets.route("/clock")
def clock(session: Any) -> None:
    """Tells the system's clock at each message."""
    for _ in session:
        session.send(str(time.time()))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
