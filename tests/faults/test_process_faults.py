"""What happens to processes: signals, restarts, stops, clocks and resets, with real workers under load."""

from __future__ import annotations

import glob
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.rig import DEADLINE, OURS, RawClient, Server, many, serve, settles, within_bound
from tests.faults.witness import Witness
from tests.rigs import Gunicorn, eventually, gunicorn, is_running, offer
from tests.wire import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame

Figure = Callable[..., None]

APP = "tests.faults.process_app:app"
GOING_AWAY, RESTART = 1001, 1012

# -- Clients that say goodbye as they should ---------------------------------------------------------------------------


class Farewell(NamedTuple):
    """How a server ended a connection: the code of its Close frame, None without one; when it came, and the end."""

    code: int | None
    told: float
    ended: float


def farewells(clients: Sequence[RawClient], seconds: float = DEADLINE) -> list[Farewell | None]:
    """Reads on all ``clients`` to their ends and answers Close frames and pings; None for those that don't end."""
    found: dict[int, Farewell] = {}
    buffers = {client.socket.fileno(): bytearray(client.buffer) for client in clients}
    waiting = {client.socket.fileno(): client for client in clients}
    codes: dict[int, tuple[int, float]] = {}
    order = list(waiting)
    ends = time.monotonic() + seconds
    with select.epoll() as poll:
        for descriptor in waiting:
            poll.register(descriptor, select.EPOLLIN)
        while waiting and (now := time.monotonic()) < ends:
            for descriptor, _ in poll.poll(ends - now):
                client = waiting[descriptor]
                try:
                    piece = client.socket.recv(65536)
                except ConnectionResetError:
                    piece = b""
                if piece:
                    buffers[descriptor] += piece
                    try:
                        _answer(client, buffers[descriptor], codes)
                    except OSError:
                        # Its end is read in its turn.
                        pass
                    continue
                poll.unregister(descriptor)
                del waiting[descriptor]
                now = time.monotonic()
                code, told = codes.get(descriptor, (None, now))
                found[descriptor] = Farewell(code, told, now)
    return [found.get(descriptor) for descriptor in order]


def _answer(client: RawClient, buffer: bytearray, codes: dict[int, tuple[int, float]]) -> None:
    while len(buffer) >= 2:
        opcode, length, head = buffer[0] & 0x0F, buffer[1], 2
        if length == 126:
            length, head = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            length, head = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < head + length:
            return
        payload = bytes(buffer[head : head + length])
        del buffer[: head + length]
        if opcode == CLOSE:
            codes[client.socket.fileno()] = (int.from_bytes(payload[:2], "big"), time.monotonic())
            client.send(close_frame(None if not payload else int.from_bytes(payload[:2], "big")))
        elif opcode == PING:
            client.send(frame(PONG, payload))


def warm_up(server: Server, clients: int = 1) -> None:
    """Lets a server have what it keeps for all of its sessions: the greenlet of the deadlines, and memory at hand."""
    for _ in range(3 if clients > 1 else 1):
        with many(server.address, clients, "/push?bytes=65536&every=0.01") as peers:
            for peer in peers:
                peer.exactly(100)
                peer.send(frame(BINARY, bytes(50_000))[:30_000])
            for peer in peers:
                peer.reset()


def codes_of(ends: Sequence[Farewell | None]) -> Counter[int | str | None]:
    """How often each code was told."""
    return Counter("still open" if each is None else each.code for each in ends)


class Load:
    """Clients that come and go, and clients that stay and come again when they are closed, in threads of their own.

    ``failures`` counts what went wrong by kind, ``codes`` the closes of those that stay, ``gaps`` the seconds between
    two accepted connections and between a Close frame and the next echo of the same client.
    """

    def __init__(self, address: tuple[str, int], comers: int = 6, stayers: int = 30, rate: float = 100) -> None:
        self._address = address
        self._pause = comers / rate
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.failures: Counter[str] = Counter()
        self.codes: Counter[int | None] = Counter()
        self.opened: list[float] = []
        self.reconnected: list[float] = []
        self.absences: list[float] = []
        self._threads = [threading.Thread(target=self._come_and_go, args=(number,)) for number in range(comers)]
        self._threads += [threading.Thread(target=self._stay) for _ in range(stayers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    @property
    def widest_gap(self) -> float:
        """The longest time without an accepted connection."""
        opened = sorted(self.opened)
        return max((b - a for a, b in pairwise(opened)), default=0.0)

    @property
    def reconnect_peak(self) -> int:
        """The most clients that came again within one second."""
        times = sorted(self.reconnected)
        return max((sum(1 for other in times if when <= other < when + 1) for when in times), default=0)

    def _open(self) -> RawClient | None:
        """A client with a WebSocket; None where that failed, which is counted."""
        try:
            client = RawClient(self._address)
        except OSError as error:
            self._count(f"connect: {type(error).__name__}")
            return None
        try:
            client.send(offer("/whose"))
            status = client.status()
        except (OSError, AssertionError) as error:
            self._count(f"handshake: {type(error).__name__}")
        else:
            if status == 101:
                with self._lock:
                    self.opened.append(time.monotonic())
                return client
            self._count(f"status {status}")
        client.socket.close()
        return None

    def _count(self, what: str) -> None:
        with self._lock:
            self.failures[what] += 1

    def _come_and_go(self, number: int) -> None:
        choose = random.Random(number)
        while not self._stop.is_set():
            client = self._open()
            if client is not None:
                with client:
                    # A worker that stops meanwhile says so, which is no failure.
                    self._echo(client, "in a short session")
            self._stop.wait(self._pause * choose.uniform(0.5, 1.5))

    def _echo(self, client: RawClient, where: str) -> int | None:
        """Echoes and closes, or answers the server's own close; gives the server's code."""
        try:
            client.send(frame(TEXT, b"hello"))
            client.send(close_frame(1000))
            while (got := client.frame())[0] != 0x88:
                pass
            client.rest()
            return int.from_bytes(got[1][:2], "big")
        except (OSError, AssertionError):
            self._count(f"lost {where}")
            return None

    def _stay(self) -> None:
        told: float | None = None
        while not self._stop.is_set():
            client = self._open()
            if client is None:
                self._stop.wait(0.02)
                continue
            with client:
                if told is not None:
                    now = time.monotonic()
                    with self._lock:
                        self.reconnected.append(now)
                        self.absences.append(now - told)
                    told = None
                try:
                    client.frame()
                    while not self._stop.is_set():
                        client.send(frame(TEXT, b"tick"))
                        got = client.frame()
                        if got[0] == 0x88:
                            code = int.from_bytes(got[1][:2], "big")
                            told = time.monotonic()
                            with self._lock:
                                self.codes[code] += 1
                            client.send(close_frame(code))
                            assert client.rest() == b""
                            break
                        assert got == (0x81, b"tick"), got
                        self._stop.wait(0.05)
                except (OSError, AssertionError):
                    if told is None:
                        told = time.monotonic()
                        with self._lock:
                            self.codes[1006] += 1


def refused(load: Load) -> int:
    """Connections that failed without an answer."""
    return sum(count for what, count in load.failures.items() if not what.startswith("status"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where handlers note their ends."""
    return tmp_path / "notes"


def noted(notes: Path) -> list[str]:
    """What handlers noted."""
    return notes.read_text().splitlines() if notes.exists() else []


def gone(pids: Sequence[int]) -> Callable[[], bool]:
    """Whether none of these processes runs."""
    return lambda: not any(is_running(pid) for pid in pids)


# -- Stops -------------------------------------------------------------------------------------------------------------


def test_c3_sigterm_to_the_master_with_1000_sockets(notes: Path, figure: Figure) -> None:
    """All are told 1001 and every ``finally`` runs; the server is gone long before its graceful_timeout."""
    number = 1000
    with (
        serve("worker", "--graceful-timeout=10", app=APP, env={"FAULT_NOTES": str(notes)}) as server,
        many(server.address, number, "/counted") as clients,
    ):
        began = server.signal(signal.SIGTERM)
        ends = farewells(clients)
        assert server.process.wait(DEADLINE) == 0
        took = time.monotonic() - began
        log = server.log()
    told = sorted(each.told - began for each in ends if each is not None)
    figure("SIGTERM with 1,000 sockets: told 1001", codes_of(ends)[GOING_AWAY])
    figure("SIGTERM with 1,000 sockets: last told after", told[-1], "s")
    figure("SIGTERM with 1,000 sockets: exit after", took, "s")
    assert codes_of(ends) == {GOING_AWAY: number}
    assert noted(notes) == [f"finally {GOING_AWAY}"] * number
    assert took < 6
    assert "SIGKILL" not in log
    assert "Traceback" not in log


def test_c3_sigterm_to_the_master_with_handlers_that_look_at_nothing(notes: Path, figure: Figure) -> None:
    """Handlers that sleep are ended in time for their ``finally``, and peers that say nothing are not waited for."""
    number = 300
    with (
        serve(
            "worker",
            "--graceful-timeout=10",
            app=APP,
            env={"FAULT_NOTES": str(notes)},
            server={"close_timeout": 1},
        ) as server,
        many(server.address, number, "/noted") as clients,
    ):
        began = server.signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE) == 0
        took = time.monotonic() - began
        codes = Counter(client.close_code() for client in clients)
        log = server.log()
    figure("SIGTERM with 300 sleeping handlers, close_timeout 1 s: exit after", took, "s")
    assert codes == {GOING_AWAY: number}
    assert noted(notes) == ["finally"] * number
    assert took < 4
    assert "SIGKILL" not in log


def test_c3_sigterm_to_a_worker(figure: Figure) -> None:
    """Its clients are told to come again, the other worker's see nothing of it; a thousand signals are as one."""
    with serve("worker", workers=2, app=APP) as server, many(server.address, 100, "/whose") as clients:
        groups: dict[int, list[RawClient]] = {}
        for client in clients:
            groups.setdefault(int(client.frame()[1]), []).append(client)
        victim, other = server.workers()
        began = server.signal(signal.SIGTERM, victim)
        for _ in range(1000):
            # More of them change nothing, wherever the worker's code is interrupted.
            server.signal(signal.SIGTERM, victim)
        ends = farewells(groups[victim])
        eventually(gone([victim]), "the end of the worker")
        took = time.monotonic() - began
        eventually(lambda: len(server.workers()) == 2, "the next worker", DEADLINE)
        for client in groups[other]:
            client.send(frame(TEXT, b"hello"))
            assert client.frame() == (0x81, b"hello")
    figure("SIGTERM to a worker: gone after", took, "s")
    assert codes_of(ends) == {RESTART: len(groups[victim])}
    assert took < 6


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_t31_a_quick_stop(number: signal.Signals, figure: Figure) -> None:
    with serve("worker", workers=2) as server, many(server.address, 300, "/echo") as clients:
        began = server.signal(number)
        ends = farewells(clients)
        server.process.wait(DEADLINE)
        took = time.monotonic() - began
    part = codes_of(ends)[GOING_AWAY] / len(clients)
    figure(f"{number.name}: told 1001", 100 * part, "%")
    figure(f"{number.name}: exit after", took, "s")
    assert part >= 0.99
    assert took < 3


def test_t31_the_master_is_killed(figure: Figure) -> None:
    """The workers notice, tell their peers, and free the port."""
    with serve("worker", workers=2) as server, many(server.address, 300, "/echo") as clients:
        workers = server.workers()
        began = server.signal(signal.SIGKILL)
        ends = farewells(clients)
        eventually(gone(workers), "the end of the workers")
        took = time.monotonic() - began
        with pytest.raises(ConnectionRefusedError):
            RawClient(server.address)
    part = codes_of(ends)[GOING_AWAY] / len(clients)
    figure("master killed: told 1001", 100 * part, "%")
    figure("master killed: workers gone and port free after", took, "s")
    assert part >= 0.99
    assert took < 3


@pytest.mark.parametrize("name", OURS)
def test_t31_a_stopped_process_goes_on(name: str, figure: Figure) -> None:
    """SIGSTOP for longer than ping_interval and timeout together: nobody is taken for lost when it goes on."""
    rounds, apart = 3, 1.77
    with serve(name, "--timeout=60", settings={"ping_interval": 0.3, "timeout": 0.4}) as server:
        worker = server.pid
        with Witness(server.address, clients=50, rate=5) as witness:
            for number in range(rounds):
                # At another moment of the interval each time.
                witness.wait(0.5 + number * apart)
                os.kill(worker, signal.SIGSTOP)
                time.sleep(1.2)
                os.kill(worker, signal.SIGCONT)
            witness.wait(0.5 + rounds * apart)
        assert server.pid == worker
    figure(f"SIGSTOP for 1.2 s: closed by mistake of {50 * rounds}, {name}", len(witness.errors))
    assert not witness.errors, witness.errors[:3]


# -- Restarts under load -----------------------------------------------------------------------------------------------


@contextmanager
def shared_or_own(listeners: str, directory: Path) -> Iterator[tuple[Gunicorn, tuple[str, int]]]:
    """A server of two workers that share one listener, or have one each by SO_REUSEPORT."""
    if listeners == "shared":
        with gunicorn(directory, "--workers=2", application=APP) as running:
            yield running, running.address
        return
    address = free_address()
    arguments = ["--workers=2", "--reuse-port"]
    with gunicorn(directory, *arguments, bind=f"127.0.0.1:{address[1]}", application=APP) as running:
        eventually(lambda: _listens(address), "the listener")
        yield running, address


def free_address() -> tuple[str, int]:
    """An address of which the port is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
        return address


def living(running: Gunicorn) -> list[int]:
    """The workers that live."""
    return [pid for pid in running.workers() if is_running(pid)]


@pytest.mark.parametrize("listeners", ["shared", "reuse_port"])
def test_t29_sighup_under_connects(listeners: str, tmp_path: Path, figure: Figure) -> None:
    """Nobody is refused, all that are closed are told to come again, and they find a worker at once."""
    hangups = 3
    oldest = 0.0
    with shared_or_own(listeners, tmp_path) as (running, address):
        with Load(address) as load:
            eventually(lambda: len(load.opened) > 100, "the load", DEADLINE)
            for _ in range(hangups):
                workers = living(running)
                began = running.signal(signal.SIGHUP)
                eventually(gone(workers), "the end of the old workers", DEADLINE)
                oldest = max(oldest, time.monotonic() - began)
                opened = len(load.opened)
                eventually(lambda opened=opened: len(load.opened) > opened + 60, "more load", DEADLINE)
            assert len(living(running)) == 2
        log = running.log()
    figure(f"{listeners}: connects", len(load.opened))
    figure(f"{listeners}: failures", dict(load.failures))
    figure(f"{listeners}: codes told", dict(load.codes))
    figure(f"{listeners}: reconnect peak", load.reconnect_peak, "a second")
    figure(f"{listeners}: longest absence of a client", max(load.absences), "s")
    figure(f"{listeners}: widest gap between accepts", load.widest_gap, "s")
    figure(f"{listeners}: old workers gone after", oldest, "s")
    assert oldest < 8
    # A master without listeners gives no sign by which a worker could tell a restart from a stop.
    assert set(load.codes) == ({RESTART} if listeners == "shared" else {GOING_AWAY})
    # gunicorn stops the old workers, each with a listener of its own, without waiting for those of the new ones.
    assert refused(load) <= (0 if listeners == "shared" else max(1, len(load.opened) // 100)), load.failures
    assert "Traceback" not in log


def test_t29_a_client_that_has_just_been_accepted_is_answered(figure: Figure) -> None:
    """Its handshake arrives when the worker has begun to stop: it is told so, and not reset."""
    with serve("worker", app=APP) as server, server.client("/echo") as sibling:
        worker = server.pid
        descriptors = server.sample(worker).fds
        with server.client() as client:
            eventually(lambda: server.sample(worker).fds > descriptors, "the accept")
            server.signal(signal.SIGTERM, worker)
            # Sessions are closed after those that wait for a request are looked at.
            assert sibling.frame()[0] == 0x88
            status = client.ask(offer("/echo"))
    figure("status for a handshake on a connection that was accepted just before the stop", status)
    assert status == 503


def test_t32_max_requests(figure: Figure) -> None:
    """Workers that have had their number are replaced under load: 1012 for all, and no gap in accepting."""
    arguments = ["--max-requests=60", "--max-requests-jitter=150"]
    begin = time.monotonic()
    with serve("worker", *arguments, workers=3, app=APP) as server:
        boot = time.monotonic() - begin
        with Load(server.address, stayers=40) as load:
            eventually(lambda: len(server.lines("Autorestarting worker")) >= 4, "four replacements", 2 * DEADLINE)
        log = server.log()
    figure("max_requests: connects", len(load.opened))
    figure("max_requests: failures", dict(load.failures))
    figure("max_requests: codes told", dict(load.codes))
    figure("max_requests: lost without a code", load.codes[1006])
    figure("max_requests: widest gap between accepts", load.widest_gap, "s")
    assert set(load.codes) == {RESTART}
    assert not refused(load), load.failures
    figure("max_requests: boot of the server", boot, "s")
    # Where chance has all of them go at once, what is left to wait for is the boot of the next one.
    assert load.widest_gap < 1 + boot
    assert "Traceback" not in log


def test_t33_preload_and_four_workers_with_children(figure: Figure) -> None:
    """The app is imported before the forks: each worker serves, and ends its sessions though children live."""
    slowest = 0.0
    with serve("worker", "--preload", workers=4, app=APP) as server, ExitStack() as stack:
        whose: Counter[int] = Counter()

        def another() -> bool:
            client = stack.enter_context(server.client("/whose"))
            whose[int(client.frame()[1])] += 1
            client.send(frame(TEXT, b"hello"))
            assert client.frame() == (0x81, b"hello")
            return sorted(whose) == server.workers()

        eventually(another, "a connection with each worker", DEADLINE)
        for number in range(8):
            client = server.client(f"/child?how={('fork', 'subprocess')[number % 2]}")
            with client:
                child = int(client.frame()[1])
                began = time.monotonic()
                client.send(frame(TEXT, b"close"))
                assert client.frame()[0] == 0x88
                client.send(close_frame(1000))
                assert client.rest() == b""
                slowest = max(slowest, time.monotonic() - began)
                os.kill(child, signal.SIGKILL)
        assert "Traceback" not in server.log()
    figure("preload: slowest end of a session with a child that lives on", slowest * 1000, "ms")
    figure("preload: connections of each worker", sorted(whose.values()))
    assert slowest < 1


# -- The clock ---------------------------------------------------------------------------------------------------------


def faketime() -> str | None:
    """The library that steps the clock of one process."""
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1") + glob.glob("/usr/lib/faketime/libfaketime.so.1")
    return found[0] if found else None


#: The library lets clock_nanosleep() fail, by which the master sleeps; gevent sleeps otherwise.
CONFIGURATION = """
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds)
"""


@pytest.mark.skipif(faketime() is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("name", OURS)
def test_t34_the_clock_is_stepped(name: str, tmp_path: Path, figure: Figure) -> None:
    """An hour forward, two back, one forward: nothing but the monotonic clock decides when time is up."""
    step = tmp_path / "step"
    step.write_text("+0")
    environment = {
        "LD_PRELOAD": str(faketime()),
        "FAKETIME_TIMESTAMP_FILE": str(step),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    settings = {"ping_interval": 0.2, "timeout": 5, "message_timeout": 30}
    arguments = []
    if name == "worker":
        (tmp_path / "conf.py").write_text(CONFIGURATION)
        arguments.append(f"--config={tmp_path / 'conf.py'}")
    with serve(name, *arguments, app=APP, settings=settings, env=environment) as server:
        worker = server.pid
        with (
            Witness(server.address, clients=30, rate=10) as witness,
            server.client("/clock") as clock,
            server.client("/echo") as slow,
        ):
            slow.send(frame(TEXT, b"begun and not ended")[:8])
            for hours in (1, -1, 0):
                # In one step, or a half-written file would be read.
                (tmp_path / "next").write_text(f"{hours * 3600:+d}")
                (tmp_path / "next").replace(step)
                clock.send(frame(TEXT, b"what time is it"))
                while (got := clock.frame())[0] == 0x89:
                    clock.send(frame(PONG, got[1]))
                assert abs(float(got[1]) - time.time() - hours * 3600) < 60, "the clock was not stepped"
                # Several intervals of pings, and more than one look of the master at its worker.
                witness.wait(witness_seconds(witness, 1.2))
            slow.send(frame(TEXT, b"begun and not ended")[8:])
            while (got := slow.frame())[0] == 0x89:
                slow.send(frame(PONG, got[1]))
            assert got == (0x81, b"begun and not ended")
        assert server.pid == worker
        assert "TIMEOUT" not in server.log()
    figure(f"closed by mistake while the clock was stepped, {name}", len(witness.errors))
    assert not witness.errors, witness.errors[:3]


def witness_seconds(witness: Witness, more: float) -> float:
    """The seconds that a witness will have gone on for, in ``more`` seconds from now."""
    return time.monotonic() - witness._began + more


# -- Limits ------------------------------------------------------------------------------------------------------------


def test_c3_worker_connections_are_used_up(figure: Figure) -> None:
    """Beyond the share of WebSockets handshakes get 503, and health checks are answered all the while."""
    connections = 50
    with (
        serve("worker", server={"worker_connections": connections}) as server,
        many(server.address, 45, "/echo") as clients,
    ):
        statuses: Counter[int] = Counter()
        slowest = 0.0
        for _ in range(50):
            with RawClient(server.address) as extra:
                statuses[extra.ask(offer("/echo"))] += 1
                assert extra.rest() == b""
            began = time.monotonic()
            assert server.get("/health") == "ok"
            slowest = max(slowest, time.monotonic() - began)
        for client in clients:
            client.send(frame(TEXT, b"hello"))
            assert client.frame() == (0x81, b"hello")
    figure("worker_connections used up: statuses of the extra", dict(statuses))
    figure("worker_connections used up: slowest health check", slowest * 1000, "ms")
    assert statuses == {503: 50}
    assert slowest < 0.1


def test_c3_descriptors_are_used_up(figure: Figure) -> None:
    """With 100 descriptors and 200 clients the honest go on, the log is short, and what is free is used at once."""
    with serve("worker", limits={"nofile": 100}) as server:
        warm_up(server)
        before = server.state()
        begun = time.monotonic()
        with Witness(server.address, clients=20) as witness:
            clients = [RawClient(server.address) for _ in range(200)]
            try:
                cpu = server.sample().cpu_seconds
                witness.wait(2.0)
                cpu = server.sample().cpu_seconds - cpu
            finally:
                for client in clients:
                    client.socket.close()
            began = time.monotonic()
            with server.client("/echo") as client:
                client.send(frame(TEXT, b"hello"))
                assert client.frame() == (0x81, b"hello")
            recovery = time.monotonic() - began
        settles(server, before)
        seconds = time.monotonic() - begun
        lacks = server.lines("are turned away")
        dropped = server.lines("to make room")
        rest = [line for line in server.lines() if line not in lacks + dropped and "[INFO]" not in line]
    figure(
        "descriptors used up: lines of the log about that, and about clients dropped", f"{len(lacks)}, {len(dropped)}"
    )
    figure("descriptors used up: recovery after", recovery, "s")
    figure("descriptors used up: CPU time in 2 s", cpu, "s")
    assert not witness.errors, witness.errors[:3]
    assert len(lacks) <= 1, lacks
    # What peers do has ten lines a second, and a sum.
    assert len(dropped) <= 11 * (seconds + 1)
    assert not [line for line in rest if "HTTP/1.1" not in line], rest
    assert recovery < 2


# -- Sockets -----------------------------------------------------------------------------------------------------------


def test_c3_a_unix_socket_through_a_restart(tmp_path: Path) -> None:
    """Its path stays at SIGHUP, and goes with its owner; half-closed peers get their reply there too."""
    path = str(tmp_path / "socket")
    with gunicorn(tmp_path, bind=f"unix:{path}", application="tests.faults.app:app") as running:
        eventually(lambda: os.path.exists(path) and _listens(path), "the socket")
        with RawClient(path) as client:
            client.open("/echo")
            big = b"x" * 500_000
            client.send(frame(BINARY, big))
            client.socket.shutdown(socket.SHUT_WR)
            assert client.frame() == (0x82, big)
            assert client.rest() == b""
        with RawClient(path) as client:
            client.open("/echo")
            (worker,) = running.workers()
            running.signal(signal.SIGHUP)
            assert codes_of(farewells([client])) == {RESTART: 1}
        running.worker_ended(worker)
        with RawClient(path) as client:
            client.open("/echo")
            running.signal(signal.SIGTERM)
            assert codes_of(farewells([client])) == {GOING_AWAY: 1}
        running.ended()
        assert not os.path.exists(path)
        assert "Traceback" not in running.log()


def _listens(address: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("name", OURS)
def test_c3_a_half_closed_peer(name: str, figure: Figure) -> None:
    """The whole reply, then FIN, also where the socket does not take it at once."""
    with serve(name, settings={"max_frame_size": None}) as server:
        warm_up(server)
        before = server.state()
        for size in (0, 1_000_000, 8_000_000):
            data = bytes(size)
            with server.client("/echo") as client:
                sender = threading.Thread(target=client.send, args=(frame(BINARY, data, key=b"\0\0\0\0"),))
                sender.start()
                sender.join()
                client.socket.shutdown(socket.SHUT_WR)
                assert client.frame() == (0x82, data)
                assert client.rest() == b""
        settles(server, before)
    figure(f"half-closed peers that got all, {name}", 3)


def test_t27_a_storm_of_resets(figure: Figure) -> None:
    """300 clients abort in the middle of a frame while the server is sending to them."""
    number = 300
    with serve("worker") as server:
        warm_up(server, 100)
        before = server.state()

        def measure() -> Witness:
            with Witness(server.address) as witness:
                for _ in range(number // 100):
                    with many(server.address, 100, "/push?bytes=65536&every=0.01") as clients:
                        for client in clients:
                            client.exactly(100)
                            client.send(frame(BINARY, bytes(50_000))[:30_000])
                        for client in clients:
                            client.reset()
            return witness

        witness = within_bound(measure)
        settles(server, before)
        lines = [line for line in server.lines() if "HTTP/1.1" not in line and "[INFO]" not in line]
    figure("RST storm: p99 of honest clients", witness.p99_ms, "ms")
    figure("RST storm: lines of the log beside the access log", len(lines))
    assert not lines, lines[:5]


# -- Signals that should change nothing, or little ---------------------------------------------------------------------


def test_c3_usr1_and_winch_under_load(figure: Figure) -> None:
    """Logs are opened again a hundred times, and a terminal's window changes: nobody is disturbed."""
    with serve("worker") as server:
        worker = server.pid
        with Witness(server.address) as witness:
            for number in range(100):
                server.signal(signal.SIGUSR1)
                server.signal(signal.SIGWINCH)
                server.signal(signal.SIGWINCH, worker)
                witness.wait((number + 1) * 0.02)
        assert server.pid == worker
        assert "Traceback" not in server.log()
    figure("100 x USR1 and WINCH: connections lost", len(witness.errors))
    assert not witness.errors, witness.errors[:3]


def test_c3_ttin_and_ttou_under_load(figure: Figure) -> None:
    """One worker more, then one less: only the clients of the one that goes are told to come again."""
    with serve("worker", app=APP) as server, many(server.address, 30, "/whose") as first:
        old = server.pid
        server.signal(signal.SIGTTIN)
        eventually(lambda: len(server.workers()) == 2, "the second worker", DEADLINE)
        (new,) = set(server.workers()) - {old}
        groups: dict[int, list[RawClient]] = {old: list(first), new: []}
        for client in first:
            assert int(client.frame()[1]) == old
        with ExitStack() as stack:

            def another() -> bool:
                client = stack.enter_context(server.client("/whose"))
                groups[int(client.frame()[1])].append(client)
                return len(groups[new]) >= 5

            eventually(another, "clients of the second worker", DEADLINE)
            # The oldest one goes.
            began = server.signal(signal.SIGTTOU)
            ends = farewells(groups[old])
            eventually(lambda: server.workers() == [new], "the end of a worker", DEADLINE)
            took = time.monotonic() - began
            for client in groups[new]:
                client.send(frame(TEXT, b"hello"))
                assert client.frame() == (0x81, b"hello")
    figure("TTOU: a worker with clients is gone after", took, "s")
    assert codes_of(ends) == {RESTART: len(groups[old])}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="gunicorn started by -m can't start itself again there")
def test_c3_usr2_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    """A second master beside the first: nobody is refused when it comes, nor when the first goes."""
    # It would have gunicorn's own directory on its path, whose "http" is another one.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    address = free_address()
    with gunicorn(tmp_path, bind=f"127.0.0.1:{address[1]}", application=APP) as running:
        eventually(lambda: _listens(address), "the listener")
        with RawClient(address) as client:
            client.open("/whose")
            old = int(client.frame()[1])
            with Load(address, stayers=10) as load:
                eventually(lambda: len(load.opened) > 30, "the load")
                running.signal(signal.SIGUSR2)
                eventually(lambda: len(running.workers()) == 2, "the second worker", DEADLINE)
                # The old worker keeps its sockets.
                client.send(frame(TEXT, b"hello"))
                assert client.frame() == (0x81, b"hello")
                opened = len(load.opened)
                eventually(lambda: len(load.opened) > opened + 50, "more load", DEADLINE)
                running.signal(signal.SIGTERM)
                (end,) = farewells([client])
                running.ended()
                opened = len(load.opened)
                eventually(lambda: len(load.opened) > opened + 50, "more load", DEADLINE)
            assert not is_running(old)
        assert "Traceback" not in running.log()
    figure("USR2: connects", len(load.opened))
    figure("USR2: failures", dict(load.failures))
    figure("USR2: codes told", dict(load.codes))
    assert end is not None
    assert end.code in (GOING_AWAY, RESTART)
    assert 1006 not in load.codes
    assert not refused(load), load.failures
