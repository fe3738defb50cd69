"""What runs in the hub: it lets no fault out, turns no idle loop, and touches no descriptor that is not its own."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLWantReadError, SSLWantWriteError
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.socket import SO_LINGER, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET

from geventws import ConnectionClosed, WebSockets
from geventws.connection import Connection, State
from geventws.schedule import Schedule
from geventws.settings import Settings
from geventws.tls import TLSTransport
from tests.faults.rig import DEADLINE, ROOT, RawClient, many, serve
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.rigs import Certificates, eventually, offer
from tests.wire import BINARY, PING, TEXT, frame

Figure = Callable[..., None]

LOOPS = {"libev": "libev-cext", "libuv": "libuv-cffi"}
RESET = b"\1\0\0\0\0\0\0\0"


def program(*arguments: str, loop: str, pure: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs the program that injects faults."""
    environment = dict(os.environ, GEVENT_LOOP=LOOPS[loop], PYTHONPATH=str(ROOT))
    environment.pop("GEVENTWS_PURE", None)
    if pure:
        environment["GEVENTWS_PURE"] = "1"
    command = [sys.executable, "-m", "tests.faults.hub_faults", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, cwd=ROOT, check=False)


# -- C1 rows 1 to 3: errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ["installed", "pure"])
@pytest.mark.parametrize("loop", LOOPS)
def test_c1_01_an_error_in_a_callback_ends_its_connection_only(loop: str, build: str, figure: Figure) -> None:
    """Each step of each callback raises each error: the hub hears of none of them, and nothing is left behind.

    That holds for row 3 as well: the log of these faults blocks, and the hub may not.
    """
    done = program(loop=loop, pure=build == "pure")
    told, *results = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0, done.stderr[-3000:]
    assert loop in told["loop"]
    assert build != "pure" or told["build"] == "pure"
    figure(f"faults injected on {loop}, {told['build']} build", len(results))
    wrong = [
        f"{each['step']} {each['error']} always={each['always']}: {each['wrong']}" for each in results if each["wrong"]
    ]
    figure(f"of these with consequences on {loop}, {told['build']} build", len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("loop", LOOPS)
def test_c1_02_what_ends_the_process_leaves_no_half_open_connection(loop: str, error: str) -> None:
    done = program("exit", error, loop=loop)
    assert done.returncode == 7, done.stderr[-3000:]
    state, told = map(json.loads, done.stdout.splitlines())
    assert state == {"state": "CLOSED", "descriptor": -1}
    assert told == {"told": 1}


def test_c1_02_signals_under_load(figure: Figure) -> None:
    """Signal handlers of Python's run within callbacks: no frame is cut by them, and no watcher lost."""
    signals = 1000
    with serve("worker") as server, many(server.address, 20, "/echo") as clients:
        worker = server.pid
        stop = threading.Event()
        counts = [0] * len(clients)
        failures: list[BaseException] = []

        def load(number: int, client: RawClient) -> None:
            payload = bytes((number,)) * 20_000
            wire = frame(BINARY, payload)
            try:
                while not stop.is_set():
                    client.send(wire * 3)
                    for _ in range(3):
                        assert client.frame() == (0x82, payload)
                    counts[number] += 3
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=load, args=each) for each in enumerate(clients)]
        for thread in threads:
            thread.start()
        eventually(lambda: all(counts) or failures, "the load")
        for _ in range(signals):
            # The loop of this test yields to its clients, so that the signals spread over their messages.
            os.kill(worker, 10)
            threading.Event().wait(0.0005)
        before = list(counts)
        eventually(lambda: failures or all(a > b for a, b in zip(counts, before, strict=True)), "more echoes")
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
        assert not failures, failures
        assert server.pid == worker
        assert "Traceback" not in server.log()
        figure("echoes under 1,000 SIGUSR1", sum(counts))


# -- C1 rows 4 and 5: the end of input, and resets ---------------------------------------------------------------------


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Counts the iterations of this process's loop."""
    count = 0

    def turned() -> None:
        nonlocal count
        count += 1

    watcher = gevent.get_hub().loop.prepare(ref=False)
    watcher.start(turned)
    try:
        yield lambda: count
    finally:
        watcher.stop()
        watcher.close()


class Stage:
    """A server in this process whose handlers hold their sessions in one state or another."""

    def __init__(self, **settings: Any) -> None:
        options: dict[str, Any] = {"ping_interval": None, "timeout": PATIENCE, "read_limit": 1000, "write_limit": 1}
        self.app = app = WebSockets(**options | settings)
        self.sessions: list[Any] = []
        self.go = Event()

        @app.route("/receiving")
        def receiving(session: Any) -> None:
            self._accept(session)
            for _ in session:
                pass

        @app.route("/asleep")
        def asleep(session: Any) -> None:
            self._accept(session)
            self.go.wait()

        @app.route("/sending")
        def sending(session: Any) -> None:
            self._accept(session)
            session.send(bytes(8_000_000))

        @app.route("/closing")
        def closing(session: Any) -> None:
            self._accept(session)
            session.close(4000)

        @app.route("/unaccepted")
        def unaccepted(session: Any) -> None:
            self.sessions.append(session)
            self.go.wait()

    def _accept(self, session: Any) -> None:
        session.accept()
        self.sessions.append(session)


def bring_to(stage: Stage, server: Any, state: str) -> Peer:
    """A peer whose connection the server has in ``state``."""
    paths = {
        "unaccepted": "/unaccepted",
        "receiving": "/receiving",
        "asleep": "/asleep",
        "paused": "/asleep",
        "sending": "/sending",
        "closing": "/closing",
        "failed": "/asleep",
    }
    peer = Peer(server, paths[state])
    peer.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    if state != "unaccepted":
        peer.accepted()
    wait_until(lambda: stage.sessions)
    connection = stage.sessions[0].connection
    if state == "paused":
        peer.send(frame(BINARY, bytes(500)) * 8)
        wait_until(lambda: connection.paused)
    elif state == "sending":
        wait_until(lambda: connection.write_watcher is not None)
    elif state == "closing":
        wait_until(lambda: connection.close_sent)
    elif state == "failed":
        peer.send(frame(3))
        wait_until(lambda: connection.close_sent)
    return peer


STATES = ["unaccepted", "receiving", "asleep", "paused", "sending", "closing", "failed"]


@pytest.mark.parametrize("end", ["half-close", "reset"])
@pytest.mark.parametrize("state", STATES)
def test_c1_04_the_end_of_a_peer_turns_no_idle_loop(state: str, end: str, figure: Figure) -> None:
    window = 0.4
    stage = Stage()
    with serving(stage.app) as server, counting() as turned:
        peer = bring_to(stage, server, state)
        if end == "half-close":
            peer.socket.shutdown(1)
        else:
            peer.socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET)
            peer.socket.close()
        # What the end sets in motion is over after that; what goes on is what this is about.
        gevent.sleep(0.1)
        before = turned()
        gevent.sleep(window)
        a_second = (turned() - before) / window
        stage.go.set()
        peer.socket.close()
        for session in stage.sessions:
            if state != "unaccepted":
                session.terminate()
    figure(f"loop iterations a second, {state}, after a {end}", a_second)
    assert a_second < 50


def test_c1_05_a_reset_is_noticed_while_reading_is_paused(figure: Figure) -> None:
    interval = 0.3
    stage = Stage(ping_interval=interval)
    with serving(stage.app) as server:
        peer = bring_to(stage, server, "paused")
        peer.socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET)
        peer.socket.close()
        began = monotonic()
        assert stage.sessions[0].wait_closed(PATIENCE)
        took = monotonic() - began
        stage.go.set()
    figure("a reset while reading is paused, noticed after", took, "s")
    assert took < interval + 1


# -- C1 row 6: descriptors that are used again -------------------------------------------------------------------------


def take_number(number: int) -> tuple[Any, Any]:
    """A pair of connected sockets, the first of them with this descriptor, which is free."""
    spare = []
    while True:
        one, other = socket.socketpair()
        if one.fileno() == number:
            break
        if other.fileno() == number:
            one, other = other, one
            break
        spare += [one, other]
    for each in spare:
        each.close()
    return one, other


def close_by(end: str, session: Any, peer: Peer) -> None:
    """Ends a connection at once, in the way named."""
    if end == "terminate":
        session.terminate()
    elif end == "kill":
        session.connection.hub.loop.run_callback(session.connection.terminate)
        gevent.sleep(0)
    else:
        peer.socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET)
        peer.socket.close()
        wait_until(lambda: session.connection.state == State.CLOSED)


#: A peer's reset is not noticed where nothing reads: that is row 5.
ENDS = [
    (state, end)
    for state in STATES
    if state != "unaccepted"
    for end in ("terminate", "kill", "reset")
    if (state, end) != ("paused", "reset")
]


@pytest.mark.parametrize(("state", "end"), ENDS)
def test_c1_06_no_byte_crosses_when_a_descriptor_is_used_again(state: str, end: str, figure: Figure) -> None:
    """The number of a connection that ended goes to another socket at once, whose bytes stay its own."""
    rounds = 25
    stage = Stage(write_limit=64 * 1024)
    with serving(stage.app) as server:
        for number in range(rounds):
            stage.sessions.clear()
            stage.go.clear()
            peer = bring_to(stage, server, state)
            session = stage.sessions[0]
            descriptor = session.connection.transport.descriptor
            close_by(end, session, peer)
            one, other = take_number(descriptor)
            assert one.fileno() == descriptor
            data = os.urandom(1000)
            other.sendall(data)
            # The old watchers, had they survived, would get their turn before this reads.
            gevent.sleep(0)
            gevent.sleep(0.001 if number == 0 else 0)
            received = b""
            while len(received) < len(data):
                received += one.recv(65536)
            assert received == data
            one.sendall(b"own")
            assert other.recv(65536) == b"own"
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)
            one.close()
            other.close()
            peer.socket.close()
            stage.go.set()
            wait_until(lambda: not server.sessions)
    figure(f"descriptors used again, {state}, {end}", rounds)


# -- C1 row 7: much at once --------------------------------------------------------------------------------------------


def test_c1_07_what_is_due_at_once_holds_up_nobody(figure: Figure) -> None:
    """The deadlines and pings of 5,000 sessions in one moment are worked off in slices, and others have turns between.

    There is no broadcast yet, which will be the other case.
    """
    number = 5000
    schedule = Schedule.of_hub()
    done = 0
    late = 0.0

    def call() -> None:
        nonlocal done
        ends = monotonic() + 0.00005
        while monotonic() < ends:
            pass
        done += 1

    for _ in range(number):
        schedule.after(0.01, call)
    began = monotonic()
    while done < number:
        before = monotonic()
        gevent.sleep(0)
        late = max(late, monotonic() - before)
    figure("5,000 calls of 50 us that are due at once, all", (monotonic() - began) * 1000, "ms")
    figure("longest that another greenlet waits meanwhile", late * 1000, "ms")
    assert late < 0.05


# -- C1 rows 8 to 10: TLS ----------------------------------------------------------------------------------------------


def tls_server(tmp_path: Path, *arguments: str, **options: Any) -> Any:
    """A worker under TLS."""
    return serve("worker", *arguments, tls=Certificates(tmp_path), **options)


def test_c1_08_a_record_of_100_frames_passes_a_reader_that_pauses(tmp_path: Path, figure: Figure) -> None:
    """Where reading pauses after each message, what OpenSSL holds is still read, and the watcher is not waited for."""
    with tls_server(tmp_path, settings={"read_limit": 1}) as server, server.client("/echo") as client:
        took = []
        for _ in range(20):
            began = monotonic()
            client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(100)))
            assert [client.frame() for _ in range(100)] == [(0x81, b"%d" % number) for number in range(100)]
            took.append(monotonic() - began)
        took.sort()
    figure("100 frames of one TLS record, median", took[10] * 1000, "ms")
    assert took[10] < 0.05


class ScriptedTLS:
    """What OpenSSL does where the peer renews keys: to read it has to write first, or the other way round.

    It stands on a real pair of sockets. ``reads`` and ``writes`` are told in order what to want; after that it moves
    bytes as they are.
    """

    def __init__(self, sock: Any, reads: list[type[Exception]], writes: list[type[Exception]]) -> None:
        self._socket = sock
        self._reads = reads
        self._writes = writes
        self.calls = 0
        self.refused: bytes | None = None

    def read(self, size: int, target: Any) -> int:
        self.calls += 1
        if self._reads and self.may(self._reads[0]):
            raise self._reads[0]
        self._reads.clear()
        try:
            return int(self._socket.recv_into(target))
        except BlockingIOError:
            raise SSLWantReadError from None

    def write(self, data: Any) -> int:
        self.calls += 1
        data = bytes(data)
        assert self.refused is None or data == self.refused, "OpenSSL wants the same bytes again"
        if self._writes and self.may(self._writes[0]):
            self.refused = data
            raise self._writes[0]
        self._writes.clear()
        self.refused = None
        try:
            return int(self._socket.send(data))
        except BlockingIOError:
            self.refused = data
            raise SSLWantWriteError from None

    def may(self, wanted: type[Exception]) -> bool:
        """Whether OpenSSL still has to wait for what it wants."""
        readable, writable, _ = select.select([self._socket], [self._socket], [], 0)
        return not (readable if wanted is SSLWantReadError else writable)

    def pending(self) -> int:
        return 0

    def shutdown(self) -> None:
        pass


class ScriptedTransport(TLSTransport):
    """A transport over a `ScriptedTLS`."""

    def __init__(self, sock: Any, tls: ScriptedTLS) -> None:
        sock._sslobj = tls
        super().__init__(sock)


class ScriptedSocket(socket.socket):
    """A socket that holds a `ScriptedTLS`, as an ``SSLSocket`` holds OpenSSL's object."""

    _sslobj: Any = None


@contextmanager
def scripted(reads: list[type[Exception]], writes: list[type[Exception]]) -> Iterator[tuple[Any, Any, ScriptedTLS]]:
    """A connection over a scripted TLS object, with the peer's socket: the handler echoes."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
    theirs.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    raw = ScriptedSocket(ours.family, ours.type, ours.proto, fileno=ours.detach())
    raw.setblocking(False)
    tls = ScriptedTLS(raw._sock, reads, writes)
    connection = Connection(Settings(), False, False)
    connection.open(ScriptedTransport(raw, tls), b"", bytearray())
    try:
        yield connection, theirs, tls
    finally:
        connection.terminate()
        theirs.close()


def exactly(sock: Any, size: int) -> bytes:
    """The next ``size`` bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece
        data += piece
    return data


def test_c1_09_to_read_openssl_wants_to_write(figure: Figure) -> None:
    """The socket is full and the peer sends: reading goes on when the socket has room, and nothing spins until then."""
    with scripted([SSLWantWriteError], []) as (connection, peer, tls), gevent.Timeout(PATIENCE):
        # Fill the socket below the connection.
        filled = 0
        raw = connection.transport.socket
        with pytest.raises(BlockingIOError):
            while True:
                filled += raw._sock.send(bytes(4096))
        peer.sendall(frame(TEXT, b"hello"))
        calls = tls.calls
        gevent.sleep(0.2)
        spun = (tls.calls - calls) / 0.2
        figure("calls of OpenSSL a second while it wants to write", spun)
        assert spun < 50
        exactly(peer, filled)
        assert connection.receive() == "hello"


def test_c1_09_to_write_openssl_wants_to_read(figure: Figure) -> None:
    """The peer has yet to say something: writing goes on when it has, and nothing spins until then."""
    with scripted([], [SSLWantReadError]) as (connection, peer, tls), gevent.Timeout(PATIENCE):
        connection.send_message(1, "first")
        calls = tls.calls
        gevent.sleep(0.2)
        spun = (tls.calls - calls) / 0.2
        figure("calls of OpenSSL a second while it wants to read", spun)
        connection.send_message(1, "second")
        peer.sendall(frame(TEXT, b"hello"))
        assert connection.receive() == "hello"
        assert exactly(peer, 15) == b"\x81\x05first\x81\x06second"
        assert spun < 50


@pytest.mark.skipif(
    subprocess.run(["which", "openssl"], capture_output=True, check=False).returncode != 0,
    reason="the command openssl is missing",
)
def test_c1_09_keys_are_renewed_while_much_is_echoed(tmp_path: Path, figure: Figure) -> None:
    """TLS 1.3: 50 updates of keys, each with an answer demanded, between 10 MB of echoes."""
    rounds, size = 50, 200_000
    # No byte on the way in that s_client would take for a command.
    payload = b"x" * size
    wire = frame(BINARY, payload, key=b"\0\0\0\0")
    with tls_server(tmp_path) as server:
        before = server.sample().cpu_seconds
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{server.address[1]}", "-tls1_3"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output = Reading(client)
            output.until(rb"Verify return code: [^\n]*\n[^-]*---\n")
            output.write(offer("/echo"))
            output.until(rb"HTTP/1.1 101 [^\0]*?\r\n\r\n")
            for _ in range(rounds):
                output.write(wire)
                head = b"\x82\x7f" + size.to_bytes(8, "big")
                output.until(re.escape(head + payload))
                output.write(b"K\n")
                output.errors.until(rb"KEYUPDATE")
        finally:
            client.kill()
            output.join()
        cpu = server.sample().cpu_seconds - before
        assert "Traceback" not in server.log()
    figure("updates of keys in 10 MB of echoes", rounds)
    figure("CPU time of the worker for these", cpu, "s")
    assert cpu < 5


class Reading:
    """Reads a program's output, and its errors, in threads, so that neither pipe fills."""

    class Stream:
        """One of both."""

        def __init__(self, file: Any) -> None:
            self._file = file
            self._data = b""
            self._more = threading.Condition()
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

        def _read(self) -> None:
            while piece := os.read(self._file.fileno(), 65536):
                with self._more:
                    self._data += piece
                    self._more.notify()

        def until(self, pattern: bytes) -> None:
            """Waits for what matches, and drops all up to its end."""
            with self._more:
                found = None
                assert self._more.wait_for(lambda: re.search(pattern, self._data), DEADLINE), self._data[-500:]
                found = re.search(pattern, self._data)
                assert found is not None
                self._data = self._data[found.end() :]

        def join(self) -> None:
            """Waits for the end."""
            self._thread.join(DEADLINE)
            self._file.close()

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._output = self.Stream(process.stdout)
        self.errors = self.Stream(process.stderr)
        self.until = self._output.until

    def write(self, data: bytes) -> None:
        """Writes to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def join(self) -> None:
        """Waits for the end of a program that is ended."""
        assert self._process.stdin is not None
        self._process.wait(DEADLINE)
        self._process.stdin.close()
        self._output.join()
        self.errors.join()


def test_c1_10_stalled_tls_handshakes_hold_up_nobody(tmp_path: Path, figure: Figure) -> None:
    with tls_server(tmp_path) as server, server.client("/echo") as established:
        stalled = []
        try:
            for _ in range(300):
                sock = socket.create_connection(server.address, DEADLINE)
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                stalled.append(sock)
            began = monotonic()
            with server.client("/echo") as client:
                client.send(frame(TEXT, b"hello"))
                assert client.frame() == (0x81, b"hello")
            took = monotonic() - began
            established.send(frame(PING, b"hello"))
            assert established.frame() == (0x8A, b"hello")
        finally:
            for sock in stalled:
                sock.close()
    figure("connect and echo beside 300 stalled TLS handshakes", took, "s")
    assert took < 1


# -- C2 rows 13 and 18: receivers with a timeout, and what outlives a handler -----------------------------------------


def test_c2_13_receive_with_the_shortest_timeouts_loses_nothing(figure: Figure) -> None:
    number = 10_000
    app = WebSockets()
    got: list[int] = []
    timeouts = 0
    done = Event()

    @app.route("/")
    def handler(session: Any) -> None:
        nonlocal timeouts
        session.accept()
        turn = 0
        while len(got) < number:
            turn += 1
            try:
                got.append(int(session.receive(timeout=(0.0001, 0.0003, 0.001, 0.002)[turn % 4])))
            except TimeoutError:
                timeouts += 1
        done.set()

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        for begin in range(0, number, 10):
            peer.send(b"".join(frame(TEXT, b"%d" % each) for each in range(begin, begin + 10)))
            gevent.sleep(0.0005)
        assert done.wait(PATIENCE)
        peer.closed_with(1000)
    figure("messages received, with timeouts between", f"{len(got)}, {timeouts}")
    assert got == list(range(number))
    assert timeouts


def test_c2_18_greenlets_that_outlive_their_session(figure: Figure) -> None:
    """They get one documented error, and hold no descriptor."""
    number = 300
    app = WebSockets()
    go = Event()
    ends: list[Any] = []
    left: list[Any] = []
    references: list[Any] = []

    def linger(session: Any) -> None:
        go.wait()
        for call in (session.receive, lambda: session.send("late"), session.ping, session.flush):
            try:
                call()
            except Exception as error:
                ends.append(type(error))
        session.close()
        session.terminate()

    @app.route("/")
    def handler(session: Any) -> None:
        session.accept()
        references.append(weakref.ref(session.connection))
        left.append(gevent.spawn(linger, session))

    with serving(app) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(number):
            with Peer(server) as peer:
                peer.accepted()
                peer.closed_with(1000)
        wait_until(lambda: not server.sessions)
        descriptors = len(os.listdir("/proc/self/fd")) - before
        go.set()
        gevent.joinall(left)
    left.clear()
    gevent.sleep(0)
    alive = sum(reference() is not None for reference in references)
    figure("descriptors held by 300 greenlets that outlived their sessions", descriptors)
    figure("connections held after these", alive)
    assert ends == [ConnectionClosed] * (4 * number)
    assert descriptors <= 0
    assert alive <= 1
