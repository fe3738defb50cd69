"""Many greenlets at one session, a peer that does as it likes:

whatever the order, the wire stays right and nothing is left over.
"""

from __future__ import annotations

import gc
import random
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.socket import SO_LINGER, SOL_SOCKET

from geventws import ConnectionClosed, DefaultWebSocketServerSession, WebSockets
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.wire import BINARY, CONTINUATION, PING, TEXT, close_frame, frame, server_frames

SENDERS = 5

SENT = (
    frame(TEXT, b"t"),
    frame(TEXT, b"t" * 300),
    frame(BINARY, b"b" * 70_000),
    frame(PING, b"p"),
    frame(TEXT, b"a", fin=False) + frame(PING) + frame(CONTINUATION, b"b"),
)


def sender(session: Any, number: int, choose: random.Random, errors: list[BaseException]) -> None:
    """Sends numbered messages of all sizes until the session ends."""
    try:
        for i in range(40):
            size = choose.choice((0, 10, 126, 3000, 20_000, 70_000))
            payload = bytes((number, i)) + bytes((number,)) * size
            if choose.random() < 0.1:
                session.send(iter((payload[: size // 2], payload[size // 2 :])))
            else:
                session.send(payload)
            if choose.random() < 0.2:
                gevent.sleep(0)
    except ConnectionClosed:
        pass
    except Exception as error:
        errors.append(error)


def disturber(session: Any, choose: random.Random, senders: list[Any]) -> None:
    """Kills a sender, and ends the session in one way or another."""
    for _ in range(choose.randrange(30)):
        gevent.sleep(0)
    choose.choice(senders).kill(block=False)
    for _ in range(choose.randrange(30)):
        gevent.sleep(0)
    end = choose.choice(("close", "start_close", "terminate"))
    if end == "close":
        session.close(4000)
    elif end == "start_close":
        session.start_close(4000)
    elif end == "terminate":
        session.terminate()


def play(server: Any, choose: random.Random) -> tuple[bytes, bool]:
    """A peer that sends what it likes and ends as it likes; gives what it read, and whether it read to the end."""
    with Peer(server) as peer:
        peer.accepted()
        end = choose.choice(("read", "read", "close", "violate", "half", "reset"))
        try:
            for _ in range(choose.randrange(12)):
                peer.send(choose.choice(SENT))
            if end == "close":
                peer.send(close_frame(1000))
            elif end == "violate":
                peer.send(frame(3))
            elif end == "half":
                peer.socket.shutdown(1)
            elif end == "reset":
                peer.socket.setsockopt(SOL_SOCKET, SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                return b"", False
            return peer.rest(), True
        except OSError:
            return b"", False


def check(data: bytes) -> None:
    """Whole frames, each sender's in order, fragments unmixed, at most one Close and nothing behind it."""
    latest = dict.fromkeys(range(SENDERS), -1)
    message = b""
    fragmented = False
    for first, payload in frames_until_cut(data):
        opcode = first & 0x0F
        if opcode in (0xA, 0x9):
            continue
        if opcode == 0x8:
            assert payload[:2] in (b"\x03\xe8", b"\x0f\xa0", b"\x03\xea", b"\x03\xf3"), payload
            fragmented = True
            continue
        assert (opcode == 0) == fragmented, "fragments are mixed, or data follows a Close"
        message = message + payload if opcode == 0 else payload
        fragmented = not first & 0x80
        if not fragmented and message != b"echo":
            number, i = message[0], message[1]
            assert i > latest[number], "a sender's messages are out of order"
            latest[number] = i
            assert message[2:] == bytes((number,)) * (len(message) - 2), "frames are mixed"


def frames_until_cut(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of what may end anywhere, for a session that was terminated."""
    while data:
        try:
            return server_frames(data)
        except (AssertionError, IndexError):
            # Only the last frame may be cut: take bytes off until what is left is whole.
            return server_frames(data[: whole(data)])
    return []


def whole(data: bytes) -> int:
    """The number of bytes of ``data`` that are whole frames."""
    position = 0
    while position + 2 <= len(data):
        size = data[position + 1]
        head = 2 + {126: 2, 127: 8}.get(size, 0)
        if size >= 126:
            size = int.from_bytes(data[position + 2 : position + head], "big")
        if position + head + size > len(data):
            break
        position += head + size
    return position


@pytest.mark.parametrize("seed", range(60))
def test_any_interleaving(seed: int) -> None:
    """A2 row 26, C2 rows 11 and 12."""
    choose = random.Random(seed)
    app = WebSockets(
        timeout=0.3, write_limit=choose.choice((1, 5000, 64 * 1024)), read_limit=choose.choice((1, 64 * 1024))
    )
    errors: list[BaseException] = []
    done = Event()

    @app.route("/")
    def handler(session: Any) -> None:
        senders = [
            gevent.spawn(sender, session, number, random.Random(seed + number), errors) for number in range(SENDERS)
        ]
        ending = gevent.spawn(disturber, session, choose, senders)
        try:
            for _ in session:
                session.send(b"echo")
            gevent.joinall([*senders, ending])
        finally:
            gevent.killall([*senders, ending])
            done.set()

    with serving(app) as server:
        data, complete = play(server, random.Random(seed))
        if complete:
            check(data)
        assert done.wait(PATIENCE)
        wait_until(lambda: not server.sessions)
    assert not errors


def test_nothing_is_left_of_many_short_sessions() -> None:
    """C2 row 18: sessions, greenlets and watchers go with their connections."""
    app = WebSockets()

    @app.route("/")
    def echo(session: Any) -> None:
        for message in session:
            session.send(message)

    def one(server: Any) -> None:
        with Peer(server) as peer:
            peer.accepted()
            peer.send(frame(TEXT, b"x") + close_frame())
            peer.frame()
            peer.closed_with(1000)

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), DefaultWebSocketServerSession) for thing in gc.get_objects())

    with serving(app) as server:
        before = alive()
        for _ in range(200):
            one(server)
        wait_until(lambda: not server.sessions)
        wait_until(lambda: alive() <= before)


def test_who_waited_for_room_does_not_come_between_fragments() -> None:
    """C2 row 11: one greenlet begins its fragments just as another has the room that it waited for."""
    app = WebSockets(write_limit=1000, ping_interval=None)
    large = bytes(8_000_000)
    blocked = AsyncResult()

    def fragments() -> Any:
        yield "a"
        gevent.sleep(0)
        yield "b"

    def one(session: Any) -> None:
        session.send(large)
        session.send(fragments())

    @app.route("/")
    def send_both(session: Any) -> None:
        session.accept()
        senders = [gevent.spawn(one, session), gevent.spawn(session.send, "whole")]
        gevent.sleep(0)
        blocked.set(not any(sending.dead for sending in senders))
        gevent.joinall(senders)

    with serving(app) as server, Peer(server) as peer:
        peer.accepted()
        assert blocked.get(timeout=PATIENCE), "the socket took it all"
        assert peer.frame() == (0x82, large)
        assert [peer.frame() for _ in range(4)] == [(0x01, b"a"), (0x00, b"b"), (0x80, b""), (0x81, b"whole")]
