"""One message to many sessions, over real sockets."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gevent
import gevent.monkey
import pytest
from gevent.event import Event

from geventws import PermessageDeflate, UsageError, WebSockets, broadcast
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.wire import BINARY, TEXT, close_frame, frame


class Room:
    """An app whose sessions stay open, and the peers of them."""

    def __init__(self, handler: Callable[[Any], None] | None = None, raw: bool = False, **settings: Any) -> None:
        self.sessions: list[Any] = []
        self.app = WebSockets(**settings)
        self._handler = handler
        self._stack = ExitStack()
        self.app.route("/", raw=raw)(self._serve)

    def _serve(self, session: Any) -> None:
        session.accept()
        self.sessions.append(session)
        if self._handler is not None:
            self._handler(session)
        for _ in session:
            pass

    def __enter__(self) -> Room:
        self.server = self._stack.enter_context(serving(self.app))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def join(self, **fields: str) -> Peer:
        """A new peer, whose session is the last of ``sessions``."""
        count = len(self.sessions)
        peer = self._stack.enter_context(Peer(self.server, **fields))
        peer.accepted()
        wait_until(lambda: len(self.sessions) > count)
        return peer


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("κόσμε", (0x81, "κόσμε".encode())),
        ("", (0x81, b"")),
        (b"\x00\xff", (0x82, b"\x00\xff")),
        (bytearray(b"ab"), (0x82, b"ab")),
        (memoryview(b"abcd")[1:3], (0x82, b"bc")),
        ("x" * 5000, (0x81, b"x" * 5000)),
        (b"y" * 300_000, (0x82, b"y" * 300_000)),
    ],
)
def test_all_get_it(message: Any, expected: tuple[int, bytes]) -> None:
    with Room() as room:
        peers = [room.join() for _ in range(3)]
        assert broadcast(room.sessions, message) == 3
        assert [peer.frame() for peer in peers] == [expected] * 3


def test_who_is_not_open_is_passed_over() -> None:
    unopened: list[Any] = []
    app = WebSockets()
    go_on = Event()

    @app.route("/waiting")
    def waiting(session: Any) -> None:
        unopened.append(session)
        go_on.wait(PATIENCE)

    with Room() as room, serving(app) as other, Peer(other, "/waiting") as undecided:
        closed, stays = room.join(), room.join()
        closed.send(close_frame())
        closed.closed_with(1000)
        wait_until(lambda: room.sessions[0].closed and unopened)
        assert broadcast([*room.sessions, *unopened], "here") == 1
        assert stays.frame() == (0x81, b"here")
        go_on.set()
        # Not used, and so accepted and closed: what was broadcast before did not open it.
        undecided.accepted().closed_with(1000)


def test_a_set_may_change_meanwhile() -> None:
    with Room() as room:
        peers = [room.join() for _ in range(3)]
        sessions = set(room.sessions)
        gevent.spawn(sessions.clear)
        assert broadcast(sessions, b"z" * 100_000) == 3
        assert [peer.frame()[0] for peer in peers] == [0x82] * 3


@pytest.mark.parametrize("slow", ["skip", "close"])
def test_who_lags_behind(slow: str) -> None:
    with Room(write_limit=64 * 1024) as room:
        stuck, good = room.join(), room.join()
        sent = 0
        while broadcast(room.sessions, b"f" * 60_000, slow=slow) == 2:
            sent += 1
            assert good.frame() == (0x82, b"f" * 60_000)
            assert sent < 1000, "the kernel takes everything"
        assert good.frame() == (0x82, b"f" * 60_000)
        assert room.sessions[0].closed is (slow == "close")
        assert room.sessions[1].closed is False
        for _ in range(sent):
            assert stuck.frame() == (0x82, b"f" * 60_000)
        if slow == "close":
            stuck.closed_with(1013)
        else:
            wait_until(lambda: broadcast(room.sessions[:1], "again") == 1)
            assert stuck.frame() == (0x81, b"again")


def test_no_limit_leaves_nobody_out() -> None:
    with Room(write_limit=None) as room:
        peer = room.join()
        for _ in range(100):
            assert broadcast(room.sessions, b"f" * 100_000) == 1
        for _ in range(100):
            assert peer.frame() == (0x82, b"f" * 100_000)


def test_order_with_messages_of_one_session() -> None:
    with Room() as room:
        peer = room.join()
        session = room.sessions[0]
        for number in range(50):
            broadcast(room.sessions, f"all {number}")
            session.send(f"one {number}")
        for number in range(50):
            assert peer.frame() == (0x81, b"all %d" % number)
            assert peer.frame() == (0x81, b"one %d" % number)


def test_fragments_of_another_message_are_not_cut() -> None:
    with Room() as room:
        peer = room.join()
        session = room.sessions[0]
        half, rest = Event(), Event()

        def fragments() -> Any:
            yield "a"
            half.set()
            rest.wait(PATIENCE)
            yield "b"

        sender = gevent.spawn(session.send, fragments())
        assert half.wait(PATIENCE)
        assert broadcast([session], "between") == 1
        assert broadcast([session], b"x" * 20_000) == 1
        rest.set()
        sender.get(timeout=PATIENCE)
        assert [peer.frame() for _ in range(3)] == [(0x01, b"a"), (0x00, b"b"), (0x80, b"")]
        assert peer.frame() == (0x81, b"between")
        assert peer.frame() == (0x82, b"x" * 20_000)


def test_what_a_handler_broadcasts_in_its_turn() -> None:
    """Also to itself, and with all that came in one segment."""
    sessions: list[Any] = []

    def relay(session: Any) -> None:
        sessions.append(session)
        for message in session:
            broadcast(sessions, message)

    with Room(relay) as room:
        peers = [room.join() for _ in range(3)]
        peers[0].send(b"".join(frame(TEXT, b"%d" % number) for number in range(200)))
        for peer in peers:
            assert [peer.frame()[1] for _ in range(200)] == [b"%d" % number for number in range(200)]
        peers[1].send(frame(BINARY, b"last"))
        assert [peer.frame() for peer in peers] == [(0x82, b"last")] * 3


@pytest.mark.parametrize("takeover", [True, False])
def test_compressed_sessions(takeover: bool) -> None:
    offer = "permessage-deflate"
    with Room(extensions=[PermessageDeflate(server_no_context_takeover=not takeover)]) as room:
        plain, compressed = room.join(), room.join(Sec_WebSocket_Extensions=offer)
        assert room.sessions[1].extensions
        inflater = zlib.decompressobj(-15)
        for size in (10, 1000, 50_000):
            text = "message " * (size // 8)
            assert broadcast(room.sessions, text) == 2
            assert plain.frame() == (0x81, text.encode())
            first, payload = compressed.frame()
            if first == 0x81:
                assert size == 10, "below the least size it goes as it is"
                assert payload == text.encode()
                continue
            assert first == 0xC1
            if not takeover:
                inflater = zlib.decompressobj(-15)
            assert inflater.decompress(payload + b"\x00\x00\xff\xff") == text.encode()


class TestMisuse:
    def test_slow(self) -> None:
        with pytest.raises(ValueError, match="slow must be"):
            broadcast([], "x", slow="wait")

    @pytest.mark.parametrize("message", [7, None, ["a"], {"a": 1}])
    def test_no_message(self, message: Any) -> None:
        with pytest.raises(TypeError, match="a message is str or bytes-like"):
            broadcast([], message)

    def test_no_session(self) -> None:
        with pytest.raises(TypeError, match="default sessions, not str"):
            broadcast("ab", "message")  # type: ignore[arg-type]

    def test_a_raw_session(self) -> None:
        with Room(raw=True) as room:
            room.join()
            with pytest.raises(TypeError, match="default sessions, not WebSocketServerSession"):
                broadcast(room.sessions, "message")

    def test_a_session_of_another_thread(self) -> None:
        with Room() as room:
            peer = room.join()
            caught: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    broadcast(room.sessions, "message")
                except BaseException as error:
                    caught.append(error)
                finally:
                    gevent.get_hub().destroy(destroy_loop=True)

            thread = gevent.monkey.get_original("threading", "Thread")(target=elsewhere)
            thread.start()
            thread.join()
            assert isinstance(caught[0], UsageError)
            assert broadcast(room.sessions, "here") == 1
            assert peer.frame() == (0x81, b"here")
