"""What handlers do wrong, and what it costs: their own session, or the process where they ask for it; no more."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.rig import DEADLINE, OURS, RawClient, Server, many, serve
from tests.faults.witness import Witness
from tests.rigs import eventually, offer
from tests.wire import PONG, TEXT, close_frame, frame, server_frames

Figure = Callable[..., None]

WHEN = ("before", "after", "iteration", "finally")
#: What ends a session, with the code that tells of it.
ERRORS = {"ValueError": 1011, "MemoryError": 1011, "RecursionError": 1011, "GreenletExit": 1001}
#: What ends the process.
EXITS = ("SystemExit", "KeyboardInterrupt")

# -- T35: handlers that raise ------------------------------------------------------------------------------------------


def provoke(server: Server, what: str, when: str) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Lets a handler raise; gives the head of the answer, and the frames behind it, which must be whole."""
    with RawClient(server.address) as client:
        client.send(offer(f"/raise?what={what}&when={when}"))
        client.send(frame(TEXT, b"go on"))
        data = client.rest()
    head, _, rest = data.partition(b"\r\n\r\n")
    assert rest.count(b"HTTP/1.") == 0, f"HTTP behind the head: {rest!r}"
    return head, server_frames(rest) if head.startswith(b"HTTP/1.1 101 ") else []


@pytest.mark.parametrize("name", OURS)
def test_t35_handlers_that_raise(name: str, figure: Figure) -> None:
    """Before the 101 a 500, after it a code; only whole frames on the wire, and the others go on."""
    # The peer answers no Close frame, which is not waited for longer than that.
    with serve(name, settings={"timeout": 0.3}) as server:
        before = server.state()
        with server.client("/echo") as sibling:
            for what, code in ERRORS.items():
                for when in WHEN:
                    case = f"{what} {when}"
                    head, frames = provoke(server, what, when)
                    if when == "before":
                        # The worker leaves a client without an answer whose handler was killed.
                        if head or what != "GreenletExit":
                            assert head.startswith(b"HTTP/1.1 500 "), f"{case}: {head!r}"
                        continue
                    assert head.startswith(b"HTTP/1.1 101 "), f"{case}: {head!r}"
                    *data, last = frames
                    assert data == ([(0x81, b"go on")] if when == "finally" else []), f"{case}: {frames}"
                    assert (last[0], last[1][:2]) == (0x88, code.to_bytes(2, "big")), f"{case}: {frames}"
                    assert len(last[1]) == 2, f"{case} tells the peer why: {last}"
                    sibling.send(frame(TEXT, case.encode()))
                    assert sibling.frame() == (0x81, case.encode())
        assert server.state().pids == before.pids
        # One report for each, before the 101 and after it.
        reports = Counter(
            line.split(":")[0] for line in server.lines() if line.endswith(": as told") and not line.startswith(" ")
        )
        figure(f"stray bytes on the wire, {name}", 0)
        reports.pop("GreenletExit", None)
        assert reports == {"ValueError": 4, "MemoryError": 4, "RecursionError": 4}, reports


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("what", EXITS)
def test_t35_what_ends_the_process_is_not_swallowed_by_the_worker(what: str, when: str) -> None:
    """The worker goes, tells all its peers, and is replaced."""
    with serve("worker") as server, server.client("/echo") as sibling:
        worker = server.pid
        head, frames = provoke(server, what, when)
        if when == "before":
            assert not frames
            assert head == b"" or head.startswith(b"HTTP/1.1 50"), head
        else:
            assert frames[-1][0] == 0x88
            assert frames[-1][1][:2] in (b"\x03\xe9", b"\x03\xf3"), frames
        # A worker without others beside it is replaced: 1012. One that has to go at once says 1001.
        assert sibling.close_code() in (1001, 1012)
        eventually(lambda: worker not in server.workers() and server.workers(), "the next worker", DEADLINE)
        with server.client("/echo") as again:
            again.send(frame(TEXT, b"hello"))
            assert again.frame() == (0x81, b"hello")
        assert server.process.poll() is None
        assert server.lines("is ended by the application")


@pytest.mark.parametrize("what", EXITS)
@pytest.mark.parametrize("when", ["before", "after", "iteration"])
def test_t35_what_ends_the_process_is_not_swallowed_by_the_standalone_server(what: str, when: str) -> None:
    with serve("standalone") as server:
        head, frames = provoke(server, what, when)
        assert server.process.wait(DEADLINE) != 0 or what == "SystemExit"
        if when != "before":
            assert head.startswith(b"HTTP/1.1 101 ")
            # It may not have come to say anything, but nothing else either.
            assert all(each[0] == 0x88 for each in frames)


# -- T37: many greenlets on one session --------------------------------------------------------------------------------


def check_order(frames: list[tuple[int, bytes]]) -> tuple[int, int]:
    """Each sender's messages are in order and whole, one Close at most and nothing behind it; gives the numbers."""
    latest: dict[int, int] = {}
    closes = 0
    for first, payload in frames:
        assert not closes, "a frame behind the Close"
        if first == 0x88:
            closes += 1
            continue
        assert first == 0x81, hex(first)
        sender, number, filling = payload.decode().split(" ")
        assert int(number) == latest.get(int(sender), -1) + 1, f"{sender}: {number} after {latest.get(int(sender))}"
        assert filling == "x" * (int(sender) * 37 % 4096)
        latest[int(sender)] = int(number)
    return len(frames) - closes, closes


def whole_frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of a stream that may be cut where a connection was lost."""
    position = 0
    while position + 2 <= len(data):
        length, head = data[position + 1], 2
        if length == 126:
            head, length = 4, int.from_bytes(data[position + 2 : position + 4], "big")
        if position + head + length > len(data):
            break
        position += head + length
    return server_frames(data[:position])


@pytest.mark.parametrize("name", OURS)
def test_t37_many_greenlets_on_one_session(name: str, figure: Figure) -> None:
    """50 greenlets send, one closes, some are killed, and the peer ends as it likes."""
    seeds, violations = 60, 0
    ends: Counter[str] = Counter()
    messages = 0
    with serve(name, settings={"write_limit": 20_000, "timeout": 0.3}) as server:
        before = server.state()
        for seed in range(seeds):
            choose = random.Random(seed)
            end = choose.choice(("close", "peer closes", "half-close", "violate", "reset"))
            ends[end] += 1
            client = RawClient(server.address)
            with client:
                client.open("/hub?senders=50&messages=10")
                for _ in range(choose.randrange(6)):
                    client.send(frame(TEXT, b"kill %d" % choose.randrange(50)))
                begun = client.exactly(choose.choice((1, 1000, 100_000)))
                if end == "close":
                    client.send(frame(TEXT, b"close"))
                elif end == "peer closes":
                    client.send(close_frame(1000))
                elif end == "half-close":
                    client.socket.shutdown(1)
                elif end == "violate":
                    client.send(frame(3))
                else:
                    client.reset()
                    continue
                data = begun + client.rest()
            try:
                count, closes = check_order(whole_frames(data))
                messages += count
                assert closes == (0 if end == "half-close" else 1), f"{closes} Close frames after {end}"
            except AssertionError as violation:
                violations += 1
                print(f"seed {seed}, {end}: {violation}")
        assert server.state().pids == before.pids
        log = server.log()
        figure(f"seeds, messages and violations, {name}", f"{seeds}, {messages}, {violations}")
        assert violations == 0
        assert "Traceback" not in log
        eventually(lambda: server.stats()["sessions"] == 0, "the end of all sessions")


# -- T39: handlers that compute ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_t39_two_seconds_of_computing_close_no_sibling(name: str, figure: Figure) -> None:
    """The pongs that came meanwhile lie in the sockets, and are read before anybody is taken for lost."""
    with serve(name, settings={"ping_interval": 0.3, "timeout": 0.6}) as server:
        pids = server.workers()
        with Witness(server.address, clients=30, rate=2) as witness, server.client("/spin?seconds=2") as spinner:
            spinner.send(frame(TEXT, b"compute"))
            while (got := spinner.frame())[0] == 0x89:
                spinner.send(frame(PONG, got[1]))
            assert got == (0x81, b"compute"), got
            witness.wait(3.2)
        assert server.workers() == pids
    figure(f"siblings closed by mistake, {name}", len(witness.errors))
    assert not witness.errors, witness.errors[:3]


def test_t39_a_handler_that_computes_for_ever(figure: Figure) -> None:
    """The log tells which and where, the other worker's clients see nothing of it, and its own are free soon."""
    timeout = 2
    with serve("worker", f"--timeout={timeout}", workers=2, app="tests.faults.process_app:app") as server:
        before = server.workers()
        with server.client("/spin?seconds=60") as spinner, many(server.address, 40, "/whose") as clients:
            groups: dict[int, list[RawClient]] = {}
            for client in clients:
                groups.setdefault(int(client.frame()[1]), []).append(client)
            # How the two share connections is the kernel's; with forty both have some.
            assert sorted(groups) == before
            began = time.monotonic()
            spinner.send(frame(TEXT, b"compute"))
            spinner.rest()
            took = time.monotonic() - began
            (stuck,) = set(before) - set(eventually(lambda: fewer(server, before), "the end of the worker", DEADLINE))
            (other,) = set(before) - {stuck}
            for client in groups[stuck]:
                client.rest()
            freed = time.monotonic() - began
            eventually(lambda: len(server.workers()) == 2, "the next worker", DEADLINE)
            replaced = time.monotonic() - began
            for client in groups[other]:
                client.send(frame(TEXT, b"hello"))
                assert client.frame() == (0x81, b"hello")
        log = server.log()
    figure(f"the clients of a stuck worker are free after, timeout {timeout} s", freed, "s")
    figure("the worker is replaced after", replaced, "s")
    assert took < timeout + 4
    assert freed < timeout + 4
    assert "in spin" in log
    assert "GET /spin?seconds=60 of 127.0.0.1:" in log


def fewer(server: Server, before: list[int]) -> list[int]:
    """Those of the workers ``before`` that are left, once one is gone."""
    left = [pid for pid in before if pid in server.workers()]
    return left if len(left) < len(before) else []


@pytest.mark.parametrize("gil", ["with", "without"])
def test_c3_timeout_in_c_code_that_never_returns(gil: str, figure: Figure) -> None:
    """No signal handler of Python's runs there; the log has the stack all the same, and who was served."""
    timeout = 2
    with serve("worker", f"--timeout={timeout}", app="tests.faults.process_app:app") as server:
        worker = server.pid
        with server.client("/echo") as sibling, server.client(f"/native?gil={gil}") as client:
            began = time.monotonic()
            client.send(frame(TEXT, b"block"))
            client.rest()
            sibling.rest()
            took = time.monotonic() - began
            eventually(lambda: [pid for pid in server.workers() if pid != worker], "the next worker", DEADLINE)
            with server.client("/echo") as again:
                again.send(frame(TEXT, b"hello"))
                assert again.frame() == (0x81, b"hello")
        log = server.log()
    figure(f"clients are free of a worker stuck in C {gil} the GIL after, timeout {timeout} s", took, "s")
    assert took < timeout + 4
    assert "in native" in log, log[-3000:]


# -- C3: processes that handlers start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("how", ["fork", "subprocess"])
def test_c3_fork_in_a_handler(how: str, name: str, figure: Figure) -> None:
    """The peer sees the end at once although a child has the descriptor, and the child says nothing."""
    with (
        serve(name, app="tests.faults.process_app:app") as server,
        server.client("/echo") as sibling,
        server.client(f"/child?how={how}") as client,
    ):
        child = int(client.frame()[1])
        for number in range(50):
            # In the child's loop the watchers are those of the parent: it must not take what is not its own.
            for each in (sibling, client):
                each.send(frame(TEXT, b"%d" % number))
                assert each.frame() == (0x81, b"%d" % number)
        began = time.monotonic()
        client.send(frame(TEXT, b"close"))
        assert client.frame()[0] == 0x88
        client.send(close_frame(1000))
        assert client.rest() == b""
        took = time.monotonic() - began
        # By the pid that the handler told; where it has ended already, this proved nothing.
        os.kill(child, signal.SIGKILL)
        sibling.send(frame(TEXT, b"still here"))
        assert sibling.frame() == (0x81, b"still here")
        sibling.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sibling.socket.recv(1)
    figure(f"end of a session with a child that lives on, {how}, {name}", took * 1000, "ms")
    assert took < 1
