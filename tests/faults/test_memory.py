"""What a peer can make a server remember, row by row of A1: each with the bytes that the worker grew by."""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import geventws
from tests.faults.rig import OURS, RawClient, Server, abuse, many, serve, slow_reader
from tests.faults.test_protocol_abuse import deflated, deflated_zeros
from tests.rigs import eventually
from tests.wire import BINARY, CONTINUATION, PING, PONG, TEXT, close_frame, frame

Figure = Callable[..., None]

KIB = 1024
MIB = 1024 * 1024
RSV1 = 4
#: Seconds that closing and a stalled peer may take, in the server of these tests.
TIMEOUT = 2.0


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with short timeouts and no pings."""
    with quiet_server(request.config.getoption("--server")) as running:
        yield running


@contextmanager
def quiet_server(name: str, **settings: Any) -> Iterator[Server]:
    """A server with short timeouts and, unless ``settings`` say so, no pings."""
    if name not in OURS:
        pytest.skip(f"{name} has no account of its memory")
    settings = {"timeout": TIMEOUT, "ping_interval": None, **settings}
    with serve(name, "--access-logfile", "/dev/null", settings=settings) as running:
        yield running


@pytest.fixture(autouse=True)
def _compiled() -> None:
    """The bounds are those of the compiled build."""
    if geventws.build() != "compiled":
        pytest.skip("the bounds are for the compiled build")


def growth(server: Server, act: Callable[[], object]) -> int:
    """The bytes that the worker has resident at most while ``act`` runs, over those before; once what is made once is
    made."""
    act()
    server.state()
    before = server.forget_peak()
    act()
    return max(0, server.peak_rss() - before)


def flood(client: RawClient, data: bytes, total: int) -> int:
    """Pours ``data`` until the server ends the WebSocket; gives the close code."""
    client.pour(data, total)
    code = client.close_code()
    assert code is not None
    return code


def check(
    server: Server, figure: Figure, act: Callable[[], object], bound: int, what: str = "RSS delta", seconds: float = 1.0
) -> None:
    """Holds the growth by ``act`` to a bound, and then repeats it beside honest clients."""
    delta = growth(server, act)
    abuse(server, act, seconds)
    figure(what, delta / MIB, "MiB")
    assert delta < bound, f"{delta / MIB:.2f} MiB more"


def test_a1_01_inflate_bomb(server: Server, figure: Figure) -> None:
    """Nine tenths of a mebibyte of deflated zeros, 0.9 GiB out: 1009, in less than two messages' memory.

    The frame itself and what is inflated of it, up to the limit, are nearly that.
    """
    bomb = frame(BINARY, deflated_zeros(900), rsv=RSV1)
    took: list[float] = []

    def act() -> None:
        with server.client() as client:
            client.open_deflate()
            began = server.sample().cpu_seconds
            with suppress(ConnectionError):
                client.send(bomb)
            assert client.close_code() == 1009
            took.append(server.sample().cpu_seconds - began)

    check(server, figure, act, 2 * MIB)
    figure("CPU", min(took) * 1000, "ms")


def test_a1_02_inflate_that_never_advances(server: Server, figure: Figure) -> None:
    """Blocks that say nothing, cut or whole, end in an empty message or a failure, and cost nothing."""
    payloads = [b"", b"\0", b"\0\0\0\xff\xff", b"\xff" * 100, b"\xff", b"\2", b"\1\0\0\xff\xff" * 50, b"\4\0"]
    codes: list[int] = []

    def act() -> None:
        for payload in payloads:
            with server.client() as client:
                client.open_deflate()
                client.send(frame(BINARY, payload, rsv=RSV1))
                first, answer = client.frame()
                if first == 0x88:
                    codes.append(int.from_bytes(answer[:2], "big"))
                else:
                    assert answer == b"", answer

    began = server.sample().cpu_seconds
    act()
    spent = server.sample().cpu_seconds - began
    check(server, figure, act, MIB)
    figure("CPU of one, with its handshake", spent / len(payloads) * 1000, "ms")
    assert set(codes) <= {1002, 1007, 1008}, codes


def test_a1_03_overshoot(server: Server, figure: Figure) -> None:
    """What inflates to just over the limit is held to it within a block."""
    data = frame(BINARY, deflated(bytes(MIB + 1)), rsv=RSV1)

    def act() -> None:
        for _ in range(20):
            with server.client() as client:
                client.open_deflate()
                client.send(data)
                assert client.close_code() == 1009

    check(server, figure, act, 2 * MIB)


def test_a1_04_fragments_without_end(server: Server, figure: Figure) -> None:
    """Legal frames of 64 KiB without an end: 1009 at the first byte over the limit, and not a frame later."""
    piece = frame(CONTINUATION, bytes(64 * KIB), fin=False)

    def act() -> None:
        with server.client("/echo") as client:
            client.send(frame(BINARY, bytes(64 * KIB), fin=False))
            for _ in range(15):
                client.send(piece)
            # The message is at its limit. The header of one more byte tells, and its payload never comes.
            client.send(frame(CONTINUATION, b"", length=b"\x01", fin=False))
            assert client.close_code() == 1009

    check(server, figure, act, 2 * MIB)


def test_a1_05_fragments_of_one_byte(server: Server, figure: Figure) -> None:
    """They cost more than they say, and are counted."""
    data = frame(CONTINUATION, b"x", fin=False) * 1000

    def act() -> None:
        with server.client("/echo") as client:
            client.send(frame(BINARY, b"x", fin=False))
            assert flood(client, data, 20 * MIB) == 1008

    check(server, figure, act, 4 * MIB)


def test_a1_06_empty_fragments(server: Server, figure: Figure) -> None:
    """They are counted as well."""
    data = frame(CONTINUATION, b"", fin=False) * 1000

    def act() -> None:
        with server.client("/echo") as client:
            client.send(frame(BINARY, b"", fin=False))
            assert flood(client, data, 20 * MIB) == 1008

    check(server, figure, act, 4 * MIB)


def test_a1_07_one_frame_in_crumbs(server: Server, figure: Figure) -> None:
    """A frame of a mebibyte that comes in writes of few bytes is one buffer, and comes back."""
    payload = bytes(range(256)) * 4096
    data = frame(BINARY, payload)

    def act() -> None:
        with server.client("/echo") as client:
            position = 0
            while position < len(data):
                # The first 64 KiB one by one, and the rest in sizes that no buffer is made for.
                size = 1 if position < 64 * KIB else 97
                client.send(data[position : position + size])
                position += size
            assert client.frame() == (0x82, payload)
            client.send(close_frame())
            assert client.close_code() == 1000

    check(server, figure, act, 3 * MIB)


def test_a1_08_told_from_the_header(server: Server, figure: Figure) -> None:
    """A frame over the limit is refused by its header, before a byte of its payload."""

    def act() -> None:
        for _ in range(50):
            with server.client("/echo") as client:
                client.send(frame(BINARY, b"", length=b"\x7f" + (MIB + 1).to_bytes(8, "big")))
                assert client.close_code() == 1009

    check(server, figure, act, MIB)


def test_a1_09_declared_and_never_sent(figure: Figure, server_name: str) -> None:
    """Nothing is allocated for a payload that does not come: a thousand connections declare a mebibyte each."""
    number = 1000
    head = frame(BINARY, b"", length=b"\x7f" + MIB.to_bytes(8, "big"))
    held = 0

    def act() -> None:
        nonlocal held
        with many(server.address, number, "/echo") as clients:
            before = server.sample().rss
            for client in clients:
                client.send(head + b"x")
            # The last one's has been read when the server answers what comes behind it.
            server.get("/health")
            held = max(held, server.sample().rss - before)

    # A new one, where no memory that was used before hides what is used now.
    with quiet_server(server_name) as server:
        act()
        abuse(server, act)
    figure("RSS for a declared mebibyte", held / number / KIB, "KiB")
    assert held / number < 16 * KIB


def test_a1_10_a_handler_that_never_receives(figure: Figure, server_name: str) -> None:
    """Reading pauses, and TCP holds the peer: small messages cost no more than large ones."""
    taken: list[int] = []

    def pour(data: bytes) -> Callable[[], None]:
        def act() -> None:
            with server.client("/deaf") as client:
                taken.append(client.pour(data, 1024 * MIB, 0.5))

        return act

    # With pings, as nothing else tells a server that does not read that its peer is gone.
    with quiet_server(server_name, ping_interval=1.0) as server:
        check(server, figure, pour(frame(BINARY, b"x" * 20) * 1000), MIB + 256 * KIB, "RSS delta, small messages")
        check(server, figure, pour(frame(BINARY, bytes(MIB))), MIB + 256 * KIB, "RSS delta, large messages")
    figure("bytes taken at most, the kernel's buffers included", max(taken) / MIB, "MiB")


def test_a1_11_pings_without_reading(server: Server, figure: Figure) -> None:
    """Pongs that nobody takes are bounded, and the peer is dropped where it takes nothing for ``timeout`` seconds."""
    data = frame(PING, b"x" * 125) * 500
    lived: list[float] = []

    def act() -> None:
        with slow_reader(server, "/echo") as client:
            client.pour(data, 256 * MIB, TIMEOUT + 5, listening=False)
            lived.append(time.monotonic() - client.opened_at)

    check(server, figure, act, 2 * MIB)
    figure("the peer lived for at most", max(lived), "s")
    assert max(lived) < TIMEOUT + 5


def test_a1_12_a_slow_reader_of_a_broadcast(server: Server, figure: Figure) -> None:
    """One of fifty stops reading: it is terminated, and the others get all."""
    good, messages = 20, 100
    payload = bytes(range(256)) * 256
    expected = frame(BINARY, payload, key=None)

    def act() -> None:
        with (
            slow_reader(server, "/room") as stuck,
            many(server.address, good, "/room") as clients,
            server.client("/publish") as publisher,
        ):
            sent = 0
            positions = [0] * good
            poll = select.epoll()
            by_number = {client.socket.fileno(): index for index, client in enumerate(clients)}
            for number in by_number:
                poll.register(number, select.EPOLLIN)
            message = frame(BINARY, payload)
            total = messages * len(expected)
            while min(positions) < total:
                if sent < messages and min(positions) >= (sent - 4) * len(expected):
                    publisher.send(message)
                    assert publisher.frame()[0] == 0x81
                    sent += 1
                events = poll.poll(20)
                assert events, "the good ones get nothing"
                for number, _ in events:
                    index = by_number[number]
                    piece = clients[index].socket.recv(256 * KIB)
                    assert piece, "a good one was dropped"
                    positions[index] += len(piece)
            poll.close()
            assert set(positions) == {total}
            eventually(lambda: int(told(publisher)) == good, "the end of the stuck one", TIMEOUT + 5)
            assert stuck.rest()

    def told(publisher: RawClient) -> bytes:
        publisher.send(frame(TEXT, b""))
        return publisher.frame()[1]

    check(server, figure, act, good * 512 * KIB)


def test_a1_13_pongs_that_nobody_waits_for(server: Server, figure: Figure) -> None:
    """They start nothing and leave nothing."""
    data = frame(PONG, b"x" * 100) * 1000
    grown: list[int] = []

    def act() -> None:
        with server.client("/echo") as client:
            before = server.stats()["greenlets"]
            client.pour(data, 200 * len(data))
            client.send(frame(TEXT, b"still here"))
            assert client.frame() == (0x81, b"still here")
            grown.append(server.stats()["greenlets"] - before)

    check(server, figure, act, MIB)
    figure("greenlets more", max(grown))
    assert max(grown) <= 0


def test_a1_14_a_peer_that_ignores_the_close(server: Server, figure: Figure) -> None:
    """The descriptor is back ``timeout`` seconds after a Close frame that nobody answers or reads."""
    late: list[float] = []

    def act() -> None:
        with many(server.address, 200, "/bye") as clients:
            before = server.sample().fds
            for client in clients:
                client.send(frame(TEXT, b"go"))
            began = time.monotonic()
            eventually(lambda: server.sample().fds <= before - 200, "the end of all", TIMEOUT + 5)
            late.append(time.monotonic() - began)

    check(server, figure, act, 4 * MIB)
    figure("descriptors back after", max(late), "s")
    assert max(late) < TIMEOUT + 1


def test_a1_15_memory_of_others(server: Server, figure: Figure) -> None:
    """What is no view of single bytes goes out whole or is refused, with no byte of anything else."""
    floats = struct.pack("3f", 1, 2, 3)
    allowed = [floats, bytes(12), bytes(range(0, 16, 2)), b"refused"]

    def act() -> None:
        with server.client("/buffers") as client:
            told = []
            while (answer := client.frame()) != (0x81, b"done"):
                told.append(answer[1])
            assert all(payload in allowed for payload in told), told
            client.send(frame(TEXT, b"the stream is whole"))
            assert client.frame() == (0x81, b"the stream is whole")
            client.send(close_frame())
            assert client.close_code() == 1000

    check(server, figure, act, MIB)


def test_a1_16_deflate_contexts(figure: Figure, server_name: str) -> None:
    """A connection with deflate costs its windows only once it is used, and no more than 64 KiB then."""
    number = 500
    message = frame(TEXT, deflated(b"what is worth compressing " * 50), rsv=RSV1)
    idle = used = 0

    def act() -> None:
        nonlocal idle, used
        with many(server.address, number) as clients:
            before = server.sample().rss
            for client in clients:
                client.open_deflate()
            opened = server.sample().rss
            idle = max(idle, opened - before)
            for client in clients:
                client.send(message)
                assert client.frame()[0] == 0xC1
            used = max(used, server.sample().rss - opened)

    with quiet_server(server_name) as server:
        act()
        abuse(server, act)
    figure("RSS of an idle one", idle / number / KIB, "KiB")
    figure("RSS more once used", used / number / KIB, "KiB")
    assert idle / number < 32 * KIB
    assert used / number <= 64 * KIB
