"""Servers in processes of their own, what they hold, raw clients in any number, and what is demanded of a server."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults.witness import Witness
from tests.rigs import Certificates, Peer, eventually, is_running, offer, request
from tests.wire import CLOSE

__all__ = [
    "BOUND_MS",
    "DEADLINE",
    "OURS",
    "PEERS",
    "Ending",
    "RawClient",
    "Sample",
    "Server",
    "State",
    "abuse",
    "abuse_twice",
    "ages",
    "many",
    "request",
    "serve",
    "settles",
    "slow_reader",
    "unharmed",
    "within_bound",
    "witness_bound",
]

ROOT = Path(__file__).parent.parent.parent

#: Seconds that anything may take before a test fails. No test waits for it to pass.
DEADLINE = 30.0
#: Seconds within which a server has to let go of what the abuse left, and bytes that it may keep.
SETTLE_SECONDS = 5.0
SETTLE_RSS = 5 * 1024 * 1024
#: Milliseconds that a witness may always wait, whatever its baseline.
BOUND_MS = 50.0
#: How often a test may measure before it fails on the witness's latency.
ATTEMPTS = 3

OURS = ("worker", "standalone")
PEERS = ("gunicorn-asgi", "websockets", "flask-sock", "gevent-websocket")

#: What would change how gunicorn runs.
_UNWANTED = ("GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "FAULT_SERVER", "FAULT_SETTINGS")

# -- A server ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What the kernel says of a process."""

    rss: int
    fds: int
    cpu_seconds: float
    threads: int


@dataclass(frozen=True)
class State:
    """What each worker of a server holds, by its pid."""

    stats: Mapping[int, Mapping[str, Any]]

    @property
    def pids(self) -> list[int]:
        """The workers."""
        return sorted(self.stats)


class Server:
    """A running server."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], address: tuple[str, int], log: Path) -> None:
        self.name = name
        self.process = process
        self.address = address
        #: The client's TLS context, where the server speaks TLS.
        self.tls: ssl.SSLContext | None = None
        self._log = log

    def workers(self) -> list[int]:
        """The processes that serve, as far as they live."""
        if self.name not in ("worker", "gunicorn-asgi"):
            return [self.process.pid] if is_running(self.process.pid) else []
        return sorted(pid for pid in _children(self.process.pid) if is_running(pid))

    @property
    def pid(self) -> int:
        """The one worker."""
        (pid,) = self.workers()
        return pid

    def log(self) -> str:
        """All that the server wrote."""
        return self._log.read_text(errors="replace")

    def lines(self, part: str = "") -> list[str]:
        """The lines of the log that have ``part``."""
        # Not splitlines(), which takes more characters than the newline for ends of lines.
        return [line for line in self.log().rstrip("\n").split("\n") if part in line]

    def signal(self, number: signal.Signals, pid: int | None = None) -> float:
        """Signals a process, by default the master; gives the monotonic time."""
        os.kill(pid or self.process.pid, number)
        return time.monotonic()

    def get(self, path: str) -> str:
        """The body of a page."""
        with Peer(self.address, self.tls) as peer:
            assert peer.ask(request(path, "Connection: close")) == 200, peer.head
            return peer.body.decode()

    def stats(self, settled: bool = False) -> dict[str, Any]:
        """What the worker that answers tells of itself."""
        return dict(json.loads(self.get("/stats?settled" if settled else "/stats")))

    def state(self) -> State:
        """What every worker holds, without what only awaits collection."""
        found: dict[int, dict[str, Any]] = {}
        ends = time.monotonic() + DEADLINE
        # One that has answered may be replaced before the last one does.
        while not set(found).issuperset(workers := self.workers()):
            assert time.monotonic() < ends, f"only {sorted(found)} of {workers} answered"
            stats = self.stats(settled=True)
            found[stats["pid"]] = stats
        return State({pid: found[pid] for pid in workers})

    def sample(self, pid: int | None = None) -> Sample:
        """What the kernel says of a worker, by default the only one."""
        process = Path(f"/proc/{pid or self.pid}")
        threads = list((process / "task").iterdir())
        nanoseconds = 0
        for thread in threads:
            # In nanoseconds, where stat has hundredths of a second. A thread may end meanwhile.
            with suppress(OSError):
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
        return Sample(
            rss=int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            fds=len(os.listdir(process / "fd")),
            cpu_seconds=nanoseconds / 1e9,
            threads=len(threads),
        )

    def peak_rss(self, pid: int | None = None) -> int:
        """The most bytes that a worker had resident since `forget_peak`."""
        status = Path(f"/proc/{pid or self.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024

    def forget_peak(self, pid: int | None = None) -> int:
        """Lets `peak_rss` begin anew; gives the bytes that the worker has resident."""
        Path(f"/proc/{pid or self.pid}/clear_refs").write_text("5")
        return self.sample(pid).rss

    def client(self, path: str | None = None) -> RawClient:
        """A connection; one with a WebSocket at ``path`` where one is named."""
        client = RawClient(self.address, self.tls)
        return client if path is None else client.open(path)


def _children(parent: int) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                if int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    yield int(name)


@contextmanager
def serve(
    name: str,
    *arguments: str,
    workers: int = 1,
    settings: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    app: str = "tests.faults.app:app",
    limits: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
    tls: Certificates | None = None,
) -> Iterator[Server]:
    """A server on a free port of the loopback, in processes of its own.

    ``settings`` are the sessions', ``server`` the attributes of the worker class or arguments of ``WSGIServer``
    ({"handshake_timeout": 2}), in which "worker_connections" works for both; ``limits`` are rlimits by their names in
    small letters, soft and hard.
    """
    options = dict(server or {})
    environment = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "FAULT_SETTINGS": json.dumps(settings or {})}
    environment |= env or {}
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        log = Path(directory) / "log"
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        address = listener.getsockname()
        descriptors: tuple[int, ...] = ()
        if name == "worker":
            command = [sys.executable, "-m", "gunicorn", "-k", "tests.faults.worker.Worker", "--no-control-socket"]
            command += ["--workers", str(workers), "--bind", f"fd://{listener.fileno()}", "--access-logfile", "-"]
            command += ["--worker-connections", str(options.pop("worker_connections", 10_000))]
            if tls is not None:
                command += ["--certfile", tls.certfile, "--keyfile", tls.keyfile]
            command += [*arguments, app]
            descriptors = (listener.fileno(),)
        elif name == "standalone":
            command = [sys.executable, "-m", app.partition(":")[0], str(address[1])]
            if tls is not None:
                options |= {"certfile": tls.certfile, "keyfile": tls.keyfile}
        else:
            command = [_peers_python()]
            if name == "gunicorn-asgi":
                command += ["-m", "gunicorn", "-k", "asgi", "--workers", str(workers), "--no-control-socket"]
                command += ["--bind", f"fd://{listener.fileno()}", *arguments, "tests.faults.peers:asgi"]
                descriptors = (listener.fileno(),)
            else:
                command += ["-m", "tests.faults.peers", name, str(address[1])]
        environment["FAULT_SERVER"] = json.dumps(options)
        if not descriptors:
            listener.close()
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _LIMIT, json.dumps(limits or {}), *command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                # The group is the master and its workers, and nothing else.
                start_new_session=True,
            )
        listener.close()
        running = Server(name, process, address, log)
        running.tls = tls and tls.client
        try:
            _await_service(running, workers)
            yield running
        except BaseException:
            print(running.log()[-5000:])
            raise
        finally:
            left = running.workers()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
            for pid in left:
                eventually(lambda pid=pid: not is_running(pid), f"the end of worker {pid}")


#: Sets its limits, and becomes the server: no code of ours runs between fork and exec.
_LIMIT = """
import json, os, resource, sys
for name, limit in json.loads(sys.argv[1]).items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name.upper()), (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])
"""


def _peers_python() -> str:
    python = os.environ.get("FAULT_PEERS_PYTHON")
    if not python:
        pytest.skip("FAULT_PEERS_PYTHON names no interpreter with the peers")
    return python


def _await_service(server: Server, workers: int) -> None:
    ends = time.monotonic() + DEADLINE
    while True:
        assert server.process.poll() is None, f"{server.name} ended at its start:\n{server.log()}"
        assert time.monotonic() < ends, f"{server.name} did not serve:\n{server.log()}"
        # A connection that waits in the backlog while workers start is answered later, and is no failure.
        with suppress(OSError, AssertionError), Peer(server.address, server.tls) as peer:
            peer.ask(request("/health", "Connection: close"))
            break
        time.sleep(0.02)
    eventually(lambda: len(server.workers()) == workers, f"the start of {workers} workers", DEADLINE)
    if server.name in OURS:
        # Every worker has answered, so that none is still starting, and has what the first session of a worker makes.
        met: set[int] = set()
        while not met.issuperset(server.workers()):
            with server.client("/echo"):
                met |= {pid for pid, stats in server.state().stats.items() if stats["sessions"]}


# -- What is demanded of a server --------------------------------------------------------------------------------------


def settles(server: Server, before: State) -> None:
    """Waits until each worker of ``before`` holds no more than it did; fails where one is gone or keeps anything."""
    ends = time.monotonic() + SETTLE_SECONDS
    while True:
        assert server.workers() == before.pids, f"workers {before.pids} have become {server.workers()}"
        after = server.state()
        left = [text for pid in before.pids for text in _left(before.stats[pid], after.stats[pid])]
        if not left:
            return
        assert time.monotonic() < ends, f"after {SETTLE_SECONDS:g} s: {', '.join(left)}"
        # The request itself is in /proc and in the server's accounts for a moment.
        time.sleep(0.05)


def _left(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in ("fds", "greenlets", "sessions"):
        if after[name] > before[name]:
            yield f"{after[name] - before[name]} more {name}"
    if after["rss"] > before["rss"] + SETTLE_RSS:
        yield f"{(after['rss'] - before['rss']) / 1048576:.1f} MiB more"


def witness_bound(baseline_p99: float) -> float:
    """The p99 in milliseconds that honest clients may have at most, by what they have in peace."""
    return max(BOUND_MS, 3 * baseline_p99)


@cache
def baseline(name: str) -> float:
    """The p99 of witnesses of a server that has nothing else to do."""
    with serve(name) as server:
        with Witness(server.address) as witness:
            witness.wait(2.0)
        assert not witness.errors, witness.errors
        return witness.p99_ms


def within_bound(measure: Callable[[], Witness], server: str = "worker") -> Witness:
    """Measures until the witness's p99 is within the bound, three times at most; fails at once on its errors."""
    bound = witness_bound(baseline(server))
    missed = []
    for _ in range(ATTEMPTS):
        witness = measure()
        assert not witness.errors, f"{len(witness.errors)} errors of honest clients: {witness.errors[:5]}"
        if witness.p99_ms <= bound:
            return witness
        missed.append(f"{witness.p99_ms:.1f}")
    raise AssertionError(f"the p99 of honest clients was {', '.join(missed)} ms, over {bound:.1f} ms each time")


@contextmanager
def unharmed(server: Server) -> Iterator[State]:
    """Fails where what happens inside costs a worker its life, or leaves anything behind."""
    before = server.state()
    yield before
    settles(server, before)


def abuse(server: Server, act: Callable[[], object], seconds: float = 1.0, **witness: Any) -> Witness:
    """Does ``act`` to a server beside honest clients, for some seconds at least.

    Fails where one of them is harmed, or waits too long in each of three attempts; where a worker loses its life; and
    where anything is left behind. For a test that did not do ``act`` before, that includes what is made once.
    """

    def measure() -> Witness:
        with Witness(server.address, **witness) as honest:
            act()
            honest.wait(seconds)
        return honest

    with unharmed(server):
        return within_bound(measure, server.name)


def abuse_twice(server: Server, act: Callable[[], object], seconds: float = 1.0, **witness: Any) -> Witness:
    """As `abuse`, with an act that may leave behind what the first one leaves: a heap as large as a crowd needs."""
    act()
    return abuse(server, act, seconds, **witness)


# -- Clients -----------------------------------------------------------------------------------------------------------


class RawClient(Peer):
    """A raw blocking connection, with a deadline on everything."""

    opened_at: float

    def __init__(self, address: Any, context: ssl.SSLContext | None = None) -> None:
        super().__init__(address, context)
        self.opened_at = time.monotonic()
        self.head = self.body = b""

    def open(self, path: str = "/echo", *fields: str) -> RawClient:
        """Offers a WebSocket, which must be taken."""
        self.send(offer(path, *fields))
        head = self.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    def frame(self) -> tuple[int, bytes]:
        """The next frame, as (first byte, payload)."""
        first, second = self.exactly(2)
        assert not second & 0x80, "a server masked a frame"
        length = second
        if second == 126:
            length = int.from_bytes(self.exactly(2), "big")
        elif second == 127:
            length = int.from_bytes(self.exactly(8), "big")
        return first, self.exactly(length)

    def open_deflate(self, path: str = "/deflate") -> RawClient:
        """Offers a WebSocket with permessage-deflate, which must be taken."""
        return self.open(path, "Sec-WebSocket-Extensions: permessage-deflate")

    def close_code(self) -> int | None:
        """Reads up to a Close frame and the end behind it, without an answer; gives the frame's code."""
        while (frame := self.frame())[0] != 0x80 | CLOSE:
            pass
        rest = self.rest()
        assert rest == b"", f"{rest[:100]!r} behind a Close frame"
        return int.from_bytes(frame[1][:2], "big") if frame[1] else None

    def pour(self, data: bytes, total: int, patience: float = 1.0, listening: bool = True) -> int:
        """Sends ``data`` over and over, ``total`` bytes at most; gives how many the server took.

        Ends also where the server has ended the connection, takes nothing for ``patience`` seconds, or, to one that is
        ``listening``, says something.
        """
        view = memoryview(data)
        position = taken = 0
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT | (select.POLLIN if listening else 0))
        self.socket.settimeout(0)
        try:
            while taken < total:
                events = poll.poll(patience * 1000)
                if not events or events[0][1] & ~select.POLLOUT:
                    break
                with suppress(BlockingIOError):
                    count = self.socket.send(view[position:])
                    taken += count
                    position = (position + count) % len(data)
        except OSError:
            pass
        finally:
            self.socket.settimeout(DEADLINE)
        return taken

    def reset(self) -> None:
        """Ends the connection by a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def slow_reader(server: Server, path: str) -> RawClient:
    """A WebSocket whose kernel holds few bytes that are not read."""
    client = RawClient.__new__(RawClient)
    client.socket = socket.socket()
    # Before the connect, as the window is then agreed on.
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.socket.settimeout(DEADLINE)
    client.socket.connect(server.address)
    client.buffer = b""
    client.opened_at = time.monotonic()
    return client.open(path)


#: Connections a second that `many` ends: what thousands cost that end at once is a test of its own.
ENDS_PER_SECOND = 2000


@contextmanager
def many(
    address: Any, number: int, path: str | None = None, per_second: float | None = None
) -> Iterator[list[RawClient]]:
    """``number`` connections, with WebSockets at ``path`` where one is named.

    They are opened as fast as they come, or ``per_second``, and end at a steady rate.
    """
    clients: list[RawClient] = []
    try:
        began = time.monotonic()
        for index in range(number):
            if per_second is not None:
                time.sleep(max(0.0, began + index / per_second - time.monotonic()))
            clients.append(RawClient(address))
            if path is not None:
                clients[-1].open(path)
        yield clients
    finally:
        for index, client in enumerate(clients, 1):
            client.socket.close()
            if index % 20 == 0:
                time.sleep(20 / ENDS_PER_SECOND)


@dataclass(frozen=True)
class Ending:
    """How a connection ended: how old it was, and what had come on it."""

    age: float
    received: bytes
    reset: bool


def ages(
    clients: Sequence[RawClient],
    seconds: float,
    every: float | None = None,
    act: Callable[[RawClient], object] | None = None,
) -> list[Ending | None]:
    """Reads on all ``clients`` until the server has ended them, ``seconds`` at most; None for those that it has not.

    ``act`` is called with each client that is left, once in ``every`` seconds, at a steady rate.
    """
    endings: dict[int, Ending] = {}
    received: dict[int, bytearray] = {client.socket.fileno(): bytearray(client.buffer) for client in clients}
    waiting = {client.socket.fileno(): client for client in clients}
    order = list(waiting)
    poll = select.epoll()
    began = time.monotonic()
    ends = began + seconds
    acted = 0
    pace = every / len(order) if act is not None and every is not None else 0.0
    try:
        for descriptor in waiting:
            poll.register(descriptor, select.EPOLLIN)
        while waiting and (now := time.monotonic()) < ends:
            while act is not None and began + acted * pace <= now:
                client = waiting.get(order[acted % len(order)])
                acted += 1
                if client is not None:
                    # Its end is read in its turn.
                    with suppress(OSError):
                        act(client)
            due = ends if act is None else min(ends, began + acted * pace)
            for descriptor, _ in poll.poll(max(0.0, due - time.monotonic())):
                client = waiting[descriptor]
                reset = False
                try:
                    piece = client.socket.recv(65536)
                except ConnectionResetError:
                    piece, reset = b"", True
                if piece:
                    received[descriptor] += piece
                    continue
                poll.unregister(descriptor)
                del waiting[descriptor]
                endings[descriptor] = Ending(time.monotonic() - client.opened_at, bytes(received[descriptor]), reset)
    finally:
        poll.close()
    return [endings.get(descriptor) for descriptor in order]


def raise_own_limit() -> None:
    """Lets this process hold as many connections as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
