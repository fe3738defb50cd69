"""What any WebSocket server can be put through, ours or a peer: an echo, its defaults, and what /proc says of it.

These are for `benchmarks/faults.py`. The other tests say more of our servers, and need what only these have.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.faults.rig import RawClient, Server, ages, serve
from tests.faults.test_protocol_abuse import violations
from tests.rigs import KEY, offer
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, close_frame, frame

Figure = Callable[..., None]

MIB = 1024 * 1024
#: Seconds for the end of a WebSocket that has been failed.
END = 1.0
TRACEBACK = "Traceback (most recent call last)"


@pytest.fixture
def server(server_name: str) -> Iterator[Server]:
    """A server at its defaults."""
    with serve(server_name) as running:
        # What is made once is made.
        for _ in range(20):
            with running.client("/echo") as client:
                client.send(frame(BINARY, b"hello"))
                assert client.frame() == (0x82, b"hello")
        yield running


def outcome(client: RawClient) -> tuple[str, list[bytes]]:
    """What a server does about what it got, and the messages before that.

    The close code, "reset", "end" for an end without a Close frame, or "nothing".
    """
    client.socket.settimeout(END)
    messages: list[bytes] = []
    try:
        while True:
            first, payload = client.frame()
            if first == 0x80 | CLOSE:
                code = str(int.from_bytes(payload[:2], "big")) if payload else "1005"
                with suppress(OSError):
                    client.send(close_frame(1000))
                    client.rest()
                return code, messages
            messages.append(payload)
    except AssertionError:
        return "end", messages
    except TimeoutError:
        return "nothing", messages
    except OSError:
        return "reset", messages


def is_served(server: Server) -> bool:
    """Whether a new client gets its echo."""
    try:
        with server.client() as client:
            client.socket.settimeout(2)
            client.open("/echo")
            client.send(frame(BINARY, b"hello"))
            return client.frame() == (0x82, b"hello")
    except (OSError, AssertionError):
        return False


def test_comparison_violations(server: Server, figure: Figure) -> None:
    """Frames that break the protocol, behind a good one, get the right close code."""
    cases = [case for case in violations() if not case.deflate]
    wrong, silent, unheard = [], 0, 0
    for case in cases:
        with server.client("/echo") as client:
            client.send(frame(BINARY, b"valid") + case.data)
            found, messages = outcome(client)
            silent += found == "nothing"
            unheard += messages[:1] != [b"valid"]
            if found != str(case.code):
                wrong.append(f"{case.name}: {found} instead of {case.code}")
    figure("violations", len(cases))
    figure("answered wrongly", len(wrong))
    figure("of these not answered at all", silent)
    figure("good frames before them not echoed", unheard)
    figure("tracebacks", server.log().count(TRACEBACK))
    assert is_served(server)
    assert not wrong, wrong[:5]


#: Handshakes that RFC 6455 4.2.1 refuses.
HANDSHAKES = {
    "version 12": offer("/echo", version="12"),
    "no key": offer("/echo").replace(f"Sec-WebSocket-Key: {KEY}\r\n".encode(), b""),
    "a short key": offer("/echo").replace(KEY.encode(), b"c2hvcnQ="),
    "a key that is no base64": offer("/echo").replace(KEY.encode(), b"!" * 24),
    "no Connection": offer("/echo").replace(b"Connection: Upgrade\r\n", b""),
    "another Connection": offer("/echo").replace(b"Connection: Upgrade", b"Connection: xupgrade"),
    "no Host": offer("/echo").replace(b"Host: localhost\r\n", b""),
    "POST": offer("/echo", method="POST"),
    "HTTP/1.0": offer("/echo").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two versions": offer("/echo", "Sec-WebSocket-Version: 12"),
}


def test_comparison_handshakes(server: Server, figure: Figure) -> None:
    """Bad handshakes are refused, and what is behind them on the connection is not served."""
    accepted, served = [], []
    for name, data in HANDSHAKES.items():
        with server.client() as client:
            client.socket.settimeout(END)
            client.send(data + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            with suppress(OSError):
                while piece := client.socket.recv(65536):
                    received += piece
            if received.startswith(b"HTTP/1.1 101"):
                accepted.append(name)
            elif len(re.findall(rb"HTTP/1\.[01] \d\d\d ", received)) > 1:
                served.append(name)
    figure("bad handshakes", len(HANDSHAKES))
    figure("accepted", len(accepted))
    figure("second requests served", len(served))
    assert not accepted, accepted
    assert not served, served


#: Seconds after which those must be gone that hold a place for nothing.
PATIENCE = 70.0


@pytest.mark.timeout(PATIENCE + 60)
def test_comparison_patience(server: Server, figure: Figure) -> None:
    """Silent connections, heads and messages that trickle, peers that answer no ping: all end by themselves."""
    kinds: dict[str, list[RawClient]] = {
        "silent": [server.client() for _ in range(20)],
        "heads that trickle": [server.client() for _ in range(20)],
        "messages that trickle": [server.client("/echo") for _ in range(20)],
        "WebSockets that answer nothing": [server.client("/echo") for _ in range(20)],
    }
    for client in kinds["heads that trickle"]:
        client.send(b"GET /health HTTP/1.1\r\nX-Drip: ")
    for client in kinds["messages that trickle"]:
        client.send(frame(BINARY, bytes(1000))[:10])
    drips = {id(client) for kind in ("heads that trickle", "messages that trickle") for client in kinds[kind]}
    everyone = [client for clients in kinds.values() for client in clients]

    def drip(client: RawClient) -> None:
        if id(client) in drips:
            client.send(b"a")

    found = dict(zip(map(id, everyone), ages(everyone, PATIENCE, every=3.0, act=drip), strict=True))
    left = {}
    for kind, clients in kinds.items():
        endings = [found[id(client)] for client in clients]
        left[kind] = endings.count(None)
        lived = [ending.age for ending in endings if ending is not None]
        figure(f"{kind}, left of {len(clients)}", left[kind])
        if lived:
            figure(f"{kind}, age at the end", max(lived), "s")
        for client in clients:
            client.socket.close()
    assert not any(left.values()), left


def growth(server: Server, figure: Figure, data: bytes, total: int, name: str, head: bytes = b"") -> None:
    """Pours ``data`` at a server and reads nothing; holds what its process grows by meanwhile to 8 MiB."""
    before = server.forget_peak()
    with server.client("/echo") as client:
        client.send(head)
        # Some servers take for ever; it is their memory that counts.
        ends = time.monotonic() + 20
        taken = 0
        while taken < total and time.monotonic() < ends:
            part = client.pour(data, min(16 * MIB, total - taken), patience=2.0, listening=False)
            taken += part
            if not part:
                break
        grown = max(0, server.peak_rss() - before)
    figure(f"{name}: taken", taken / MIB, "MiB")
    figure(f"{name}: RSS grows by", grown / MIB, "MiB")
    assert is_served(server), "nobody else is served"
    assert grown < 8 * MIB, f"{grown / MIB:.1f} MiB more"


def test_comparison_echoes_that_nobody_reads(server: Server, figure: Figure) -> None:
    """Messages of 10 kB, whose echoes are not read."""
    growth(server, figure, frame(BINARY, bytes(10_000)), 256 * MIB, "messages")


def test_comparison_pongs_that_nobody_reads(server: Server, figure: Figure) -> None:
    """Pings, whose pongs are not read."""
    growth(server, figure, frame(PING, bytes(125)) * 100, 64 * MIB, "pings")


def test_comparison_fragments_without_end(server: Server, figure: Figure) -> None:
    """A message in fragments of one byte, without an end."""
    begin = frame(BINARY, b"a", fin=False)
    growth(server, figure, frame(CONTINUATION, b"a", fin=False) * 1000, 24 * MIB, "fragments", head=begin)


def test_comparison_a_message_without_end(server: Server, figure: Figure) -> None:
    """A frame that says it has 4 GiB."""
    head = b"\x82\xff" + (4 * 1024 * MIB).to_bytes(8, "big") + bytes(4)
    growth(server, figure, bytes(65536), 256 * MIB, "one frame", head=head)


def test_comparison_resets(server: Server, figure: Figure) -> None:
    """Clients that reset within a frame, and while they are sent to, leave nothing behind, in the log neither."""
    before = server.sample().fds
    lines = len(server.lines())
    for number in range(300):
        client = server.client("/echo")
        if number % 2:
            client.send(frame(BINARY, bytes(10_000))[: 1 + number * 31])
        else:
            client.pour(frame(BINARY, bytes(100_000)), 2 * MIB, patience=0.05, listening=False)
        client.reset()
    ends = time.monotonic() + 5
    while server.sample().fds > before and time.monotonic() < ends:
        time.sleep(0.1)
    left, tracebacks = max(0, server.sample().fds - before), server.log().count(TRACEBACK)
    figure("descriptors left", left)
    figure("lines in the log", len([line for line in server.lines()[lines:] if " 101 " not in line]))
    figure("tracebacks", tracebacks)
    assert not left
    assert not tracebacks


def test_comparison_stop(server: Server, figure: Figure) -> None:
    """SIGTERM: everyone is told by a Close frame, and the process ends soon."""
    clients = [server.client("/echo") for _ in range(100)]
    told_at = server.signal(signal.SIGTERM)
    told = 0
    for client in clients:
        client.socket.settimeout(max(0.01, told_at + 15 - time.monotonic()))
        with suppress(AssertionError, OSError):
            while (received := client.frame())[0] != 0x80 | CLOSE:
                pass
            told += received[1][:2] in (b"\x03\xe9", b"\x03\xf4")
            client.send(close_frame(1001))
    for client in clients:
        client.socket.close()
    with suppress(Exception):
        server.process.wait(max(0.1, told_at + 40 - time.monotonic()))
    ended = time.monotonic() - told_at
    figure("told 1001 or 1012, of 100", told)
    figure("seconds to the end", ended, "s")
    assert told == 100
    assert ended < 10


def test_comparison_no_descriptors(server_name: str, figure: Figure) -> None:
    """With 128 descriptors and 300 connections that say nothing: who has a WebSocket keeps it, and new
    clients are served as soon as the others are gone."""
    with serve(server_name, limits={"nofile": 128}) as server, ExitStack() as crowd:
        guest = crowd.enter_context(server.client("/echo"))
        lines, cpu = len(server.lines()), server.sample().cpu_seconds
        for _ in range(300):
            try:
                crowd.enter_context(RawClient(server.address))
            except OSError:
                # Even the backlog is full.
                break
        time.sleep(3)
        kept = False
        guest.socket.settimeout(5)
        with suppress(OSError, AssertionError):
            guest.send(frame(BINARY, b"still here"))
            kept = guest.frame() == (0x82, b"still here")
        during = is_served(server)
        used = server.sample().cpu_seconds - cpu
        crowd.close()
        gone_at = time.monotonic()
        while not (served := is_served(server)) and time.monotonic() < gone_at + 10:
            time.sleep(0.05)
        recovered = time.monotonic() - gone_at
        written = [line for line in server.lines()[lines:] if " 101 " not in line]
        figure("who was there first is served", int(kept))
        figure("lines in the log", len(written))
        figure("CPU seconds", used, "s")
        figure("new clients served meanwhile", int(during))
        figure("seconds to be well again", recovered if served else "never", "s")
        assert kept
        assert served
        assert recovered < 2
