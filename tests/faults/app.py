"""The application under test: routes that do what clients may expect, and routes that do what handlers must not.

gunicorn serves ``tests.faults.app:app``; ``python -m tests.faults.app PORT`` serves it with the standalone server in a
process of its own, and prints "serving". What sessions are set to stands in FAULT_SETTINGS as JSON, and what the
standalone server is set to in FAULT_SERVER.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from array import array
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import greenlet
from gevent.pool import Pool
from gevent.queue import Empty, Queue

import geventws
from geventws import ConnectionClosed, DefaultWebSocketServerSession, PermessageDeflate, WebSockets, WSGIServer
from geventws.schedule import Schedule

SETTINGS = json.loads(os.environ.get("FAULT_SETTINGS") or "{}")

#: What /raise raises.
FAULTS: dict[str, type[BaseException]] = {
    "ValueError": ValueError,
    "SystemExit": SystemExit,
    "GreenletExit": gevent.GreenletExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
}

#: Seconds between two looks at the loop.
TICK = 0.01


class Loop:
    """How late the loop is: a timer that is due every 10 ms tells."""

    def __init__(self) -> None:
        self._worst = 0.0
        self._due = time.monotonic() + TICK
        self._timer = gevent.get_hub().loop.timer(TICK, TICK, ref=False)
        self._timer.start(self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self._worst = max(self._worst, now - self._due)
        self._due = now + TICK

    def take(self) -> float:
        """The largest delay in seconds since the last call."""
        self._tick()
        worst, self._worst = self._worst, 0.0
        return worst


class Watched:
    """The whole application: what the routes are for WebSockets, ``pages`` for the rest, and what /stats tells."""

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self.registry: set[Any] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.loop is None:
            # Not at import, which may be before a fork.
            self.loop = Loop()
        upgrade = environ.get("geventws.upgrade")
        if upgrade is not None:
            self.registry = upgrade.sessions
        return sockets(environ, start_response)

    def stats(self, settled: bool) -> dict[str, Any]:
        """What this process holds; where ``settled``, without what only awaits collection."""
        # Before the collection, which is a delay of its own.
        assert self.loop is not None
        loop_ms = self.loop.take() * 1000
        if settled:
            gc.collect()
            _trim()
        return {
            "pid": os.getpid(),
            "greenlets": sum(map(_counts, gc.get_objects())),
            "sessions": len(self.registry),
            "fds": len(os.listdir("/proc/self/fd")) - 1,
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "loop_ms": loop_ms,
        }


def _counts(thing: Any) -> bool:
    """Whether something is a live greenlet, and not the one of the schedule, which all connections share."""
    if not isinstance(thing, greenlet.greenlet) or thing.dead:
        return False
    return not isinstance(getattr(getattr(thing, "_run", None), "__self__", None), Schedule)


def _trim() -> None:
    """Gives freed memory back to the system, so that what the process keeps is what it holds."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass


def pages(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Plain HTTP."""
    if environ["PATH_INFO"] == "/health":
        body, kind, status = b"ok", "text/plain", "200 OK"
    elif environ["PATH_INFO"] == "/stats":
        told = app.stats("settled" in environ["QUERY_STRING"])
        body, kind, status = json.dumps(told).encode(), "application/json", "200 OK"
    else:
        # What is behind a refused handshake must never get here.
        print(f"served {environ['PATH_INFO']!a}", file=sys.stderr, flush=True)
        body, kind, status = b"not found", "text/plain", "404 Not Found"
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


sockets = WebSockets(pages, **SETTINGS)
app = Watched()


def argument(session: Any, name: str, default: str) -> str:
    """A parameter of the request's query."""
    return str(session.request.args.get(name, default))


@sockets.route("/echo")
def echo(session: DefaultWebSocketServerSession) -> None:
    """Gives every message back."""
    for message in session:
        session.send(message)


@sockets.route("/deflate", extensions=[PermessageDeflate()])
def deflate(session: DefaultWebSocketServerSession) -> None:
    """The same, with permessage-deflate."""
    for message in session:
        session.send(message)


@sockets.route("/raw", raw=True)
def raw(session: Any) -> None:
    """Gives every frame back as it came."""
    for frame in session:
        session.send(frame)


@sockets.route("/deaf")
def deaf(session: DefaultWebSocketServerSession) -> None:
    """Never receives."""
    session.accept()
    while not session.wait_closed(1.0):
        pass


@sockets.route("/sink")
def sink(session: DefaultWebSocketServerSession) -> None:
    """Drops what comes, and at "count" tells the bytes so far."""
    count = 0
    for message in session:
        if message == "count":
            session.send(str(count))
        else:
            count += len(message)


@sockets.route("/push")
def push(session: DefaultWebSocketServerSession) -> None:
    """Keeps sending."""
    data = bytes(int(argument(session, "bytes", "1024")))
    every = float(argument(session, "every", "0"))
    while True:
        session.send(data)
        gevent.sleep(every)


@sockets.route("/spin")
def spin(session: DefaultWebSocketServerSession) -> None:
    """Computes for some seconds at each message, and gives way to nobody meanwhile."""
    seconds = float(argument(session, "seconds", "1"))
    for message in session:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            pass
        session.send(message)


@sockets.route("/raise")
def fail(session: DefaultWebSocketServerSession) -> None:
    """Raises before the 101, after it, while it iterates over messages, or at its end in a ``finally``."""
    fault = FAULTS[argument(session, "what", "ValueError")]
    when = argument(session, "when", "after")
    if when == "before":
        raise fault("as told")
    session.accept()
    try:
        if when == "after":
            raise fault("as told")
        for message in session:
            if when == "iteration":
                raise fault("as told")
            session.send(message)
            if when == "finally":
                break
    finally:
        if when == "finally":
            raise fault("as told")


@sockets.route("/bye")
def bye(session: DefaultWebSocketServerSession) -> None:
    """Closes at the first message, and says nothing else."""
    session.receive()


@sockets.route("/buffers")
def buffers(session: DefaultWebSocketServerSession) -> None:
    """Sends what is no view of single bytes, and text that is none; then "done"."""
    floats = array("f", [1.0, 2.0, 3.0])
    for attempt in (
        lambda: session.send(floats),
        lambda: session.send(memoryview(bytes(12)).cast("f")),
        lambda: session.send(memoryview(bytearray(range(16)))[::2]),
        lambda: session.send(5),  # type: ignore[call-overload]
        lambda: session.start_close(1000, memoryview(bytes(12)).cast("f")),  # type: ignore[arg-type]
    ):
        try:
            attempt()
        except (TypeError, ValueError):
            session.send("refused")
    session.send("done")
    for message in session:
        session.send(message)


@sockets.route("/split")
def split(session: DefaultWebSocketServerSession) -> None:
    """Accepts with a subprotocol and a header of the client's wording."""
    arguments = session.request.args
    headers = [("X-Told", arguments["header"])] if "header" in arguments else []
    session.accept(arguments.get("protocol"), headers)


@sockets.route("/hub")
def hub(session: DefaultWebSocketServerSession) -> None:
    """Several greenlets send numbered messages at once; what is told to close or to be killed is."""
    senders = int(argument(session, "senders", "50"))
    messages = int(argument(session, "messages", "20"))

    def send(sender: int) -> None:
        try:
            for number in range(messages):
                session.send(f"{sender} {number} " + "x" * (sender * 37 % 4096))
                gevent.sleep(0)
        except ConnectionClosed:
            pass

    session.accept()
    group = [gevent.spawn(send, sender) for sender in range(senders)]
    try:
        for message in session:
            if message == "close":
                gevent.spawn(session.start_close, 1000, "as told")
            elif isinstance(message, str) and message.startswith("kill"):
                group[int(message.split()[1]) % senders].kill(block=False)
    finally:
        gevent.killall(group)


#: What is to be sent to each member of the room.
members: set[Queue[bytes]] = set()


@sockets.route("/room")
def room(session: DefaultWebSocketServerSession) -> None:
    """Sends what is published, and receives nothing."""
    queue: Queue[bytes] = Queue()
    session.accept()
    members.add(queue)
    try:
        while not session.closed:
            with suppress(Empty):
                session.send(queue.get(timeout=1.0))
    finally:
        members.discard(queue)


@sockets.route("/publish")
def publish(session: DefaultWebSocketServerSession) -> None:
    """Publishes every message, and says to how many."""
    for message in session:
        for queue in list(members):
            queue.put(message)
        session.send(str(len(members)))


def serve(port: int) -> None:
    """The standalone server, until SIGTERM."""
    options = json.loads(os.environ.get("FAULT_SERVER") or "{}")
    connections = options.pop("worker_connections", None)
    if connections is not None:
        options["spawn"] = Pool(connections)
    server = WSGIServer(("127.0.0.1", port), app, backlog=2048, **options)
    server.start()
    gevent.signal_handler(signal.SIGTERM, gevent.spawn, server.stop)
    print(f"serving on {server.server_port} with the {geventws.build()} build", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    # The module under its own name, which the routes know as well.
    from tests.faults import app as module

    module.serve(int(sys.argv[1]))
