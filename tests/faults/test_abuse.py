"""What a crowd can do to a server that it could not do to one client: places, descriptors, time and the log."""

from __future__ import annotations

import random
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.rig import (
    OURS,
    Ending,
    RawClient,
    Server,
    abuse,
    abuse_twice,
    ages,
    many,
    serve,
    settles,
    slow_reader,
    unharmed,
    within_bound,
)
from tests.faults.test_protocol_abuse import handshake
from tests.faults.witness import Witness
from tests.rigs import Certificates, eventually
from tests.wire import BINARY, CONTINUATION, PONG, TEXT, close_frame, frame, server_frames

Figure = Callable[..., None]

KIB = 1024
MIB = 1024 * 1024
#: Connections of a crowd.
CROWD = 2000
#: And how many of them connect in a second.
CROWD_PER_SECOND = 1000
#: Seconds that a deadline may be missed by.
SLACK = 1.0


@pytest.fixture(autouse=True)
def _ours(server_name: str) -> None:
    """The tests set what only our servers have."""
    if server_name not in OURS:
        pytest.skip(f"{server_name} can't be set as these tests need")


def percentile(values: list[float], part: float) -> float:
    """The value that this part of the others is below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def close_code(ending: Ending) -> int | None:
    """The code of the Close frame that is the last thing to come."""
    first, payload = server_frames(ending.received)[-1]
    return int.from_bytes(payload[:2], "big") if first == 0x88 else None


# -- Slow ones ---------------------------------------------------------------------------------------------------------


def hold(
    server: Server,
    figure: Figure,
    number: int,
    limit: float,
    name: str,
    act: Callable[[RawClient], object] | None = None,
) -> list[Ending]:
    """``number`` connections that are to be ended ``limit`` seconds after the accept; gives how they were."""
    endings: list[Ending] = []

    def crowd() -> None:
        # Those that come at once end at once, and what ends cost is another matter.
        with many(server.address, number, per_second=CROWD_PER_SECOND) as clients:
            found = ages(clients, limit + 10, every=0.5 if act is not None else None, act=act)
        left = found.count(None)
        assert not left, f"{left} of {number} connections are still open"
        endings[:] = [ending for ending in found if ending is not None]

    witness = abuse_twice(server, crowd, probes=10)
    lived = [ending.age for ending in endings]
    figure(f"{name}: age at close, least", min(lived), "s")
    figure(f"{name}: age at close, p99", percentile(lived, 0.99), "s")
    figure(f"{name}: connect and answer for others, p99", witness.probe_p99_ms, "ms")
    assert limit - SLACK < min(lived), min(lived)
    assert percentile(lived, 0.99) < limit + SLACK, percentile(lived, 0.99)
    assert witness.probe_p99_ms < 1000
    return endings


def drip(client: RawClient) -> None:
    """A byte of a head that never ends."""
    client.send(b"GET /health HTTP/1.1\r\nX-Drip: "[int((time.monotonic() - client.opened_at) * 2) % 30 :][:1])


def test_t11_connections_that_say_nothing(figure: Figure, server_name: str) -> None:
    """They are closed, without a word, when the time for the handshake is over."""
    with serve(server_name, server={"handshake_timeout": 2.0}) as server:
        endings = hold(server, figure, CROWD, 2.0, "silent")
        assert {ending.received for ending in endings} == {b""}
        assert not server.lines("took too long")


def test_t11_heads_in_drops(figure: Figure, server_name: str) -> None:
    """The time counts from the accept, and not from the last byte (A3 row 42)."""
    with serve(server_name, server={"handshake_timeout": 2.0}) as server:
        endings = hold(server, figure, CROWD, 2.0, "a byte each half second", drip)
        answered = [ending for ending in endings if ending.received.startswith(b"HTTP/1.1 408 ")]
        figure("answered with 408", len(answered) / len(endings) * 100, "%")
        figure("lines of the log", len(server.lines("took too long")))
        # One that is reset while it drips may lose the answer.
        assert len(answered) > 0.9 * len(endings)
        assert 1 <= len(server.lines("took too long")) <= 15 * 6


def test_t11_tls_that_stalls(figure: Figure, server_name: str, tmp_path: Path) -> None:
    """The time for the handshake includes that of TLS, whose stalled handshakes take no honest client's place."""
    hello = bytes.fromhex("1603010200010001fc0303")
    options = {"handshake_timeout": 2.0, "worker_connections": 300}
    with serve(server_name, server=options, tls=Certificates(tmp_path)) as server:
        before = server.state()
        with many(server.address, 200) as silent, many(server.address, 200) as stalled:
            for client in stalled:
                client.send(hello)
            began = time.monotonic()
            assert server.get("/health") == "ok"
            took = time.monotonic() - began
            found = ages([*silent, *stalled], 12)
        lived = [ending.age for ending in found if ending is not None]
        settles(server, before)
    figure("age at close, p99", percentile(lived, 0.99), "s")
    figure("connect and answer for another", took * 1000, "ms")
    assert len(lived) == 400
    # Some are let go sooner, to make room.
    assert max(lived) < 2 + SLACK
    assert took < 1


def test_t12_messages_that_trickle(figure: Figure, server_name: str) -> None:
    """A message must be whole in ``message_timeout``, however alive its sender is: 1008 (A3 row 43)."""
    limit = 2.0
    settings = {"message_timeout": limit, "ping_interval": 0.5, "timeout": 3.0}
    number = CROWD // 4
    held: list[int] = []
    endings: list[Ending] = []

    def in_a_frame(client: RawClient) -> None:
        client.send(b"x")

    def in_fragments(client: RawClient) -> None:
        client.send(frame(CONTINUATION, b"x", fin=False) + frame(PONG, b""))

    with serve(server_name, settings=settings) as server:

        def act(trickle: Callable[[RawClient], None], begin: bytes) -> None:
            before = server.sample().rss
            with many(server.address, number, "/echo") as clients:
                for client in clients:
                    client.send(begin)
                    client.opened_at = time.monotonic()
                held.append(server.sample().rss - before)
                found = ages(clients, limit + 10, every=0.5, act=trickle)
            assert None not in found, f"{found.count(None)} messages may trickle on"
            endings.extend(ending for ending in found if ending is not None)

        def crowd() -> None:
            endings.clear()
            # Of 16 KiB, of which no byte can be a pong.
            act(in_a_frame, frame(BINARY, b"", length=b"\x7e\x40\x00"))
            act(in_fragments, frame(TEXT, b"x", fin=False))

        abuse_twice(server, crowd)
    lived = [ending.age for ending in endings]
    codes = {close_code(ending) for ending in endings}
    figure("age of the message at the close, least", min(lived), "s")
    figure("age of the message at the close, p99", percentile(lived, 0.99), "s")
    figure("RSS of a connection", max(held) / number / KIB, "KiB")
    assert codes == {1008}, codes
    assert limit - 0.1 <= min(lived)
    assert percentile(lived, 0.99) < limit + SLACK


def test_t14_a_broadcast_to_peers_that_stop_reading(figure: Figure, server_name: str) -> None:
    """Those that take nothing for ``timeout`` seconds are terminated; all others get everything, and in time."""
    good, stuck, size, messages = 30, 10, 64 * KIB, 100
    payload = random.Random(14).randbytes(size)
    sent_frame, got_frame = frame(BINARY, payload), frame(BINARY, payload, key=None)
    late: list[float] = []
    peak = 0

    def act() -> None:
        nonlocal peak
        late.clear()
        with ExitStack() as stack:
            slow = [stack.enter_context(slow_reader(server, "/room")) for _ in range(stuck)]
            clients = stack.enter_context(many(server.address, good, "/room"))
            publisher = stack.enter_context(server.client("/publish"))
            before = server.forget_peak()
            late.extend(deliver(publisher, clients, sent_frame, got_frame, messages, rate=20))

            def members() -> int:
                publisher.send(frame(TEXT, b""))
                return int(publisher.frame()[1])

            eventually(lambda: members() == good, "the end of those that do not read", 8)
            peak = max(peak, server.peak_rss() - before)
            assert all(client.rest() for client in slow)
            # Nobody else was ended for it.
            for client in clients:
                client.send(close_frame())

    # Without pings, which would find them out as well.
    with serve(server_name, settings={"timeout": 2.0, "ping_interval": None}) as server:
        abuse(server, act)
        lines = server.lines("took none of the bytes")
    figure("delivery, p99", percentile(late, 0.99) * 1000, "ms")
    figure("terminated", stuck)
    figure("peak RSS delta", peak / MIB, "MiB")
    assert lines, "the log tells of none of them"


def deliver(
    publisher: RawClient, clients: list[RawClient], sent_frame: bytes, got_frame: bytes, messages: int, rate: float
) -> Iterator[float]:
    """Publishes at a steady rate, and reads it at all clients; gives the seconds that each message took to each."""
    expected = got_frame * 2
    positions = dict.fromkeys((client.socket.fileno() for client in clients), 0)
    by_number = {client.socket.fileno(): client for client in clients}
    published: list[float] = []
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    began = time.monotonic()
    left = len(clients)
    # Pings come between the messages, and are passed over here.
    while left:
        now = time.monotonic()
        if len(published) < messages and now >= began + len(published) / rate:
            published.append(now)
            publisher.send(sent_frame)
            while publisher.frame()[0] == 0x89:
                pass
        due = began + len(published) / rate if len(published) < messages else now + 20
        events = poll.poll(max(0.0, due - time.monotonic()))
        assert events or len(published) < messages, f"{left} clients get nothing any more"
        for number, _ in events:
            client = by_number[number]
            piece = client.socket.recv(256 * KIB)
            assert piece, "a client that reads was ended"
            client.buffer += piece
            now = time.monotonic()
            while len(client.buffer) >= 2:
                if client.buffer[0] == 0x89:
                    end = 2 + client.buffer[1]
                    if len(client.buffer) < end:
                        break
                    client.send(frame(PONG, client.buffer[2:end]))
                    client.buffer = client.buffer[end:]
                elif len(client.buffer) >= len(got_frame):
                    assert client.buffer[: len(got_frame)] == expected[: len(got_frame)]
                    client.buffer = client.buffer[len(got_frame) :]
                    yield now - published[positions[number]]
                    positions[number] += 1
                    left -= positions[number] == messages
                else:
                    break
    poll.close()


def test_t15_a_handler_that_never_receives(figure: Figure, server_name: str) -> None:
    """TCP holds a peer that would send ten gigabytes, and nobody else."""
    message = frame(BINARY, bytes(64 * KIB))
    taken: list[int] = []
    deltas: list[int] = []

    with serve(server_name, settings={"timeout": 2.0, "ping_interval": 1.0}) as server:

        def act() -> None:
            before = server.forget_peak()
            with many(server.address, 20, "/deaf") as clients:
                taken.extend(client.pour(message, 512 * MIB, 0.1) for client in clients)
                deltas.append(server.peak_rss() - before)

        abuse(server, act)
    figure("RSS delta of one", max(deltas) / 20 / KIB, "KiB")
    figure("bytes taken at most, the kernel's buffers included", max(taken) / MIB, "MiB")
    assert max(deltas) / 20 < MIB + 256 * KIB
    assert max(taken) < 32 * MIB


def test_t16_messages_in_crumbs(figure: Figure, server_name: str) -> None:
    """Messages that come a byte at a time on many connections take the memory of their payloads."""
    number, size = 20, 8 * KIB
    payload = random.Random(16).randbytes(size)
    data = frame(BINARY, payload)
    peaks: list[int] = []

    with serve(server_name) as server:

        def act() -> None:
            before = server.forget_peak()
            with many(server.address, number, "/echo") as clients:
                for index in range(len(data)):
                    for client in clients:
                        client.send(data[index : index + 1])
                for client in clients:
                    assert client.frame() == (0x82, payload)
                peaks.append(server.peak_rss() - before)

        abuse(server, act)
    figure("peak RSS delta over the payloads", max(peaks) / (number * size), "times")
    # Beside the payload there is what any connection costs.
    assert max(peaks) < 3 * number * (size + 16 * KIB)


# -- Too many ----------------------------------------------------------------------------------------------------------


def test_t18_no_descriptors(figure: Figure, server_name: str) -> None:
    """A server without descriptors turns clients away, tells of it once, harms nobody, and recovers at once."""
    with serve(server_name, limits={"nofile": 256}) as server:
        with unharmed(server):
            began = time.monotonic()

            def measure() -> Witness:
                with Witness(server.address) as witness:
                    with many(server.address, 1000) as clients:
                        for client in clients[::2]:
                            # Some are turned away before.
                            with suppress(OSError):
                                client.send(b"GET / HTTP/1.1\r\n")
                        witness.wait(3.0)
                        before = server.sample().cpu_seconds
                        witness.wait(4.0)
                        spent.append(server.sample().cpu_seconds - before)
                    closed = time.monotonic()
                    assert server.get("/health") == "ok"
                    with server.client("/echo"):
                        recovered.append(time.monotonic() - closed)
                return witness

            spent: list[float] = []
            recovered: list[float] = []
            witness = within_bound(measure, server.name)
            lasted = time.monotonic() - began
        lines = server.lines("turned away")
    figure("lines of the log in 10 s", len(lines) / max(1.0, lasted / 10))
    figure("recovery", max(recovered) * 1000, "ms")
    figure("CPU while full, honest clients included", min(spent) * 100, "%")
    figure("p99 of honest clients", witness.p99_ms, "ms")
    assert 1 <= len(lines) <= 1 + lasted / 10, lines
    assert not server_tracebacks(lines)
    assert max(recovered) < 2
    # Neither spinning on what it can't accept.
    assert min(spent) < 0.9


def server_tracebacks(lines: list[str]) -> list[str]:
    """The lines that are the head of a traceback."""
    return [line for line in lines if "Traceback" in line]


def test_t18_no_descriptors_for_sessions(figure: Figure, server_name: str) -> None:
    """The same where all descriptors are held by WebSockets, that nobody may be made to leave."""
    with serve(server_name, limits={"nofile": 256}) as server, unharmed(server), ExitStack() as stack:
        sessions: list[RawClient] = []
        while len(sessions) < 300:
            client = stack.enter_context(server.client())
            client.socket.settimeout(3)
            client.send(handshake())
            try:
                assert b" 101 " in client.until(b"\r\n\r\n")
            except (AssertionError, OSError):
                # Refused, or not even answered.
                break
            sessions.append(client)
        with many(server.address, 200) as more:
            for client in more:
                with suppress(OSError):
                    client.send(handshake())
            found = ages(more, 5)
        for session in sessions:
            session.send(frame(TEXT, b"still here"))
            assert session.frame() == (0x81, b"still here")
        figure("sessions of 256 descriptors", len(sessions))
        figure("lines of the log", len(server.lines("turned away")))
        answers = [ending.received.startswith(b"HTTP/1.1 503 ") for ending in found if ending is not None]
        figure("answered with 503", sum(answers) / len(found) * 100, "%")
        figure("left to wait", found.count(None))
        assert None not in found, f"{found.count(None)} of {len(found)} clients wait for an answer"
        assert len(server.lines("turned away")) <= 2
        assert len(sessions) > 200


def test_t19_too_many_websockets(figure: Figure, server_name: str) -> None:
    """A tenth of the places is kept from WebSockets: twice too many get a 503, and pages are served in time."""
    if server_name != "worker":
        pytest.skip("only the worker keeps places from WebSockets")
    places = 200
    cap = places - places // 10
    with serve(server_name, server={"worker_connections": places}) as server:
        statuses: list[int] = []

        def act() -> None:
            statuses.clear()
            with ExitStack() as stack:
                for _ in range(2 * places):
                    client = stack.enter_context(server.client())
                    client.send(handshake())
                    head = client.until(b"\r\n\r\n")
                    statuses.append(int(head.split()[1]))
                    if statuses[-1] != 101:
                        assert b"\r\nconnection: close" in head.lower()
                        client.rest()

        witness = abuse(server, act, 2.0, clients=20, probes=20)
    figure("accepted", statuses.count(101))
    figure("503", statuses.count(503))
    figure("health p99", witness.probe_p99_ms, "ms")
    assert set(statuses) == {101, 503}, set(statuses)
    assert statuses.count(101) == cap - 20
    assert witness.probe_p99_ms < 100


def test_t19_too_many_connections(figure: Figure, server_name: str) -> None:
    """Connections that say nothing take no place that another one needs."""
    places = 200
    with serve(server_name, server={"worker_connections": places, "handshake_timeout": 10.0}) as server:

        def act() -> None:
            with many(server.address, 2 * places) as clients:
                for client in clients[::2]:
                    with suppress(OSError):
                        client.send(b"GET / HTTP/1.1\r\n")
                # All that are let go, and those that are left to wait.
                ages(clients, 2.0)

        witness = abuse(server, act, clients=20, probes=20)
        figure("health p99", witness.probe_p99_ms, "ms")
        figure("lines of the log", len(server.lines("to make room")))
        # A second, as an honest client may wait at most (C1 row 10); those before it have their patience.
        assert witness.probe_p99_ms < 1000
        assert len(server.lines("to make room")) <= 60


# -- The log -----------------------------------------------------------------------------------------------------------

#: What the log of an operator's terminal should never be told.
HOSTILE = (b"\x1b[2J", b"\xe2\x80\xae", b"\x9b", b"\0", b"\x07", b"\x7f", b"\r")


def hostile_handshakes() -> list[bytes]:
    """Handshakes that fail, in all the ways whose text may come to the log."""
    text = "\x1b[2J FAKE [CRITICAL] \u202e"
    raw = text.encode("utf-8").decode("latin-1")
    return [
        handshake(path="/\x1b[2J"),
        handshake(path="/nowhere?" + "x" * 2000),
        handshake(path="/" + raw.replace(" ", "")),
        handshake(path="/%1b%5b2J%0d%0aFAKE%20[CRITICAL]"),
        handshake(f"User-Agent: {raw}"),
        handshake("User-Agent: \x00"),
        handshake(f"Origin: http://{raw}"),
        handshake(f"Sec-WebSocket-Protocol: {raw}"),
        handshake(f"Sec-WebSocket-Extensions: {raw}"),
        handshake(sec_websocket_key=raw),
        handshake(sec_websocket_version=raw),
        handshake(f"X-{raw}: 1"),
        handshake(method="G\x1b[2J"),
        b"\x1b[2J\r\nFAKE [CRITICAL]\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(100) + b"\r\n\r\n",
    ]


@contextmanager
def logged(server: Server) -> Iterator[list[str]]:
    """The lines that the log gets meanwhile."""
    before = len(server.lines())
    lines: list[str] = []
    yield lines
    lines += server.lines()[before:]


def check_lines(lines: list[str]) -> None:
    """Each line is one, short, and harmless to read."""
    for line in lines:
        assert all(char.isprintable() for char in line), ascii(line)
        assert not line.startswith("FAKE"), line
        # gunicorn's own limit bounds those of the access log, and ours all that is told of a fault.
        assert len(line) <= (400 if "WARNING" in line else 5000), len(line)
    assert not server_tracebacks(lines)


def test_t20_hostile_text_in_the_log(figure: Figure, server_name: str) -> None:
    """All that a peer can word comes to the log in single lines, escaped (A3 row 44)."""
    reasons = [b"\x1b[2J", "\u202e".encode(), b"a\nFAKE [CRITICAL]", b"\xff"]
    with serve(server_name, "--access-logformat", '%(h)s "%(r)s" %(s)s "%(f)s" "%(a)s" %({origin}i)s') as server:
        with logged(server) as lines, unharmed(server):
            for data in hostile_handshakes():
                with server.client() as client:
                    client.send(data.replace(b"/nowhere", b"/echo") if b"Origin" not in data else data)
                    with suppress(OSError):
                        client.socket.shutdown(1)
                    client.rest()
            for reason in reasons:
                with server.client("/echo") as client:
                    client.send(close_frame(4000, reason))
                    client.close_code()
            eventually(lambda: len(server.lines()) > 10, "the lines of the log")
        figure("lines", len(lines))
        check_lines([line for line in lines if "/stats" not in line])


def test_t20_a_flood_of_bad_handshakes(figure: Figure, server_name: str) -> None:
    """Thousands of bad handshakes a second are ten lines of each kind and a count, and nobody feels them."""
    bad = hostile_handshakes()
    sent = 0
    with serve(server_name, "--access-logfile", "/dev/null") as server:

        def act() -> None:
            nonlocal sent
            ends = time.monotonic() + 3.0
            while time.monotonic() < ends:
                with server.client() as client:
                    client.send(bad[sent % len(bad)])
                    with suppress(OSError):
                        client.socket.shutdown(1)
                    client.rest()
                sent += 1

        began = time.monotonic()
        with logged(server) as lines:
            abuse(server, act)
        lasted = time.monotonic() - began
    told = [line for line in lines if not re.search(r'^served |" 4\d\d |" 200 ', line)]
    figure("bad handshakes a second", sent / lasted)
    figure("lines a second", len(told) / lasted)
    figure("bytes of the log a second", sum(map(len, told)) / lasted)
    check_lines([line for line in lines if "/stats" not in line])
    # Ten lines and a count of each kind in a second, and no more kinds than there are handshakes.
    kinds = {re.sub(r"^.*WARNING\] (127\.0\.0\.1:\d+: )?", "", line)[:30] for line in told}
    figure("kinds", len(kinds))
    assert len(told) <= 11 * (lasted + 1) * min(len(kinds), len(bad)), (len(told), kinds)


def test_t20_a_flood_of_violations(figure: Figure, server_name: str) -> None:
    """The same for WebSockets that fail."""
    sent = 0
    with serve(server_name, "--access-logfile", "/dev/null") as server:

        def act() -> None:
            nonlocal sent
            ends = time.monotonic() + 2.0
            while time.monotonic() < ends:
                with server.client("/echo") as client:
                    client.send(frame(3, b"x"))
                    assert client.close_code() == 1002
                sent += 1

        began = time.monotonic()
        with logged(server) as lines:
            abuse(server, act)
        lasted = time.monotonic() - began
    told = [line for line in lines if "failed with 1002" in line or "more in a second" in line]
    figure("violations a second", sent / lasted)
    figure("lines a second", len(told) / lasted)
    check_lines(told)
    assert 1 <= len(told) <= 11 * (lasted + 1)
