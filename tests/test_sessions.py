"""Sessions as a handler sees them, against a peer that speaks in bytes."""

from __future__ import annotations

import array
import gc
import logging
import time
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event

from geventws import (
    CloseReason,
    ConnectionClosed,
    Frame,
    JSONConverter,
    Opcode,
    ProtocolError,
    UsageError,
    WebSockets,
    WebSocketUpgrade,
    pinger,
)
from geventws.schedule import Entry
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame


def run(handler: Any, script: Any, raw: bool = False, **settings: Any) -> Any:
    """Serves ``handler``, plays ``script`` with a peer, and gives what the handler returned or raised."""
    app = WebSockets(**settings)
    result = AsyncResult()

    @app.route("/", raw=raw)
    def route(session: Any) -> None:
        try:
            result.set(handler(session))
        except Exception as error:
            result.set_exception(error)
            raise

    with serving(app) as server, Peer(server) as peer:
        script(peer.accepted())
        return result.get(timeout=PATIENCE)


def echo(session: Any) -> Any:
    for message in session:
        session.send(message)
    return session.close_reason


class TestTheEnd:
    """Who goes on behind the end is told each time, and keeps nobody waiting."""

    @pytest.mark.parametrize("raw", [False, True])
    def test_what_is_told_is_so_for_sending_too(self, raw: bool) -> None:
        def handler(session: Any) -> Any:
            with pytest.raises(ConnectionClosed):
                session.receive()
            assert session.closed
            with pytest.raises(ConnectionClosed):
                session.send(Frame.text("more") if raw else "more")
            return session.close_reason

        # A FIN, without a Close frame.
        assert run(handler, lambda peer: peer.socket.shutdown(1), raw=raw) == CloseReason(1006)

    @pytest.mark.parametrize(
        "use",
        [
            lambda session: session.receive(),
            lambda session: session.receive(1),
            lambda session: session.send("more"),
            lambda session: session.ping(),
            lambda session: list(session),
            lambda session: next(session, None),
            lambda session: session.flush(),
        ],
        ids=["receive", "receive-within", "send", "ping", "iteration", "next", "flush"],
    )
    @pytest.mark.parametrize("end", [b"", close_frame(1000)], ids=["lost", "closed"])
    def test_a_handler_that_will_not_hear_of_it_keeps_nobody_waiting(self, use: Any, end: bytes) -> None:
        app = WebSockets()
        over, uses = Event(), 0

        @app.route("/deaf")
        def deaf(session: Any) -> None:
            nonlocal uses
            session.accept()
            session.wait_closed()
            while not over.is_set():
                uses += 1
                try:
                    use(session)
                except Exception:
                    pass

        @app.route("/echo")
        def answer(session: Any) -> None:
            echo(session)

        with serving(app) as server, Peer(server, "/deaf") as peer:
            try:
                peer.accepted()
                if end:
                    peer.send(end)
                    peer.closed_with(1000)
                else:
                    peer.socket.shutdown(1)
                wait_until(lambda: uses > 1)
                for _ in range(2):
                    with Peer(server, "/echo") as other:
                        other.accepted().send(frame(TEXT, b"hello"))
                        assert other.frame() == (0x81, b"hello")
            finally:
                over.set()


class TestDefaultSession:
    def test_text_and_binary(self) -> None:
        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, "κόσμε".encode()) + frame(BINARY, b"\x00\xff") + frame(TEXT))
            assert peer.frame() == (0x81, "κόσμε".encode())
            assert peer.frame() == (0x82, b"\x00\xff")
            assert peer.frame() == (0x81, b"")
            peer.send(close_frame(1000, b"bye"))
            peer.closed_with(1000)

        assert run(echo, script) == CloseReason(1000, "bye")

    def test_the_messages_before_a_close_are_answered_before_it(self) -> None:
        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"a") + frame(TEXT, b"b") + close_frame(3000))
            assert [peer.frame(), peer.frame()] == [(0x81, b"a"), (0x81, b"b")]
            peer.closed_with(3000)

        assert run(echo, script) == CloseReason(3000)

    def test_the_messages_before_a_violation_are_answered_before_its_close(self) -> None:
        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"a") + frame(3))
            assert peer.frame() == (0x81, b"a")
            peer.closed_with(1002)

        reason = run(echo, script)
        assert reason.code == 1002

    def test_a_close_without_a_code(self) -> None:
        def script(peer: Peer) -> None:
            peer.send(close_frame(None))
            peer.closed_with(None)

        assert run(echo, script) == CloseReason(1005)

    def test_a_lost_connection_is_1006(self) -> None:
        def script(peer: Peer) -> None:
            peer.socket.close()

        assert run(echo, script) == CloseReason(1006)

    def test_a_peer_that_ends_its_output_still_gets_the_reply(self) -> None:
        """C3: echo 1 MB, the client half-closes after sending: full reply, then FIN."""
        big = b"x" * 1_000_000

        def script(peer: Peer) -> None:
            peer.send(frame(BINARY, big))
            peer.socket.shutdown(1)
            assert peer.frame() == (0x82, big)
            peer.ended()

        assert run(echo, script) == CloseReason(1006)

    def test_receive_raises_after_the_end(self) -> None:
        def handler(session: Any) -> Any:
            assert session.receive() == "a"
            for call in (session.receive, lambda: session.send("b"), session.ping, lambda: session.receive(timeout=1)):
                with pytest.raises(ConnectionClosed) as caught:
                    call()
                assert caught.value.reason == CloseReason(1001, "off")
            assert session.closed
            session.close()
            return "done"

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"a") + close_frame(1001, b"off"))
            peer.closed_with(1001)

        assert run(handler, script) == "done"

    def test_connection_closed_that_leaves_a_handler_is_a_normal_end(self, caplog: pytest.LogCaptureFixture) -> None:
        def handler(session: Any) -> None:
            while True:
                session.receive()

        with pytest.raises(ConnectionClosed):
            run(handler, lambda peer: (peer.send(close_frame()), peer.closed_with(1000)))
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    def test_a_handler_that_returns_closes_with_1000(self) -> None:
        assert run(lambda session: session.send("x"), lambda peer: (peer.frame(), peer.closed_with(1000))) is None

    def test_a_handler_that_never_uses_its_session_accepts_and_closes(self) -> None:
        run(lambda session: None, lambda peer: peer.closed_with(1000))

    def test_a_handler_that_raises_is_logged_once_and_closes_with_1011(self, caplog: pytest.LogCaptureFixture) -> None:
        def handler(session: Any) -> None:
            session.send("x")
            raise KeyError("secret")

        def script(peer: Peer) -> None:
            peer.frame()
            first, payload = peer.frame()
            assert (first, payload) == (0x88, b"\x03\xf3")
            peer.send(close_frame(1011))
            peer.ended()

        with pytest.raises(KeyError):
            run(handler, script)
        wait_until(lambda: caplog.records)
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    def test_receive_with_a_timeout_loses_nothing(self) -> None:
        """C2 row 13."""

        def handler(session: Any) -> list[str]:
            session.send("ready")
            got = []
            while len(got) < 200:
                try:
                    got.append(session.receive(timeout=0.0005))
                except TimeoutError:
                    pass
            return got

        def script(peer: Peer) -> None:
            peer.frame()
            for i in range(200):
                peer.send(frame(TEXT, str(i).encode()))
                if i % 10 == 0:
                    gevent.sleep(0.001)
            peer.closed_with(1000)

        assert run(handler, script) == [str(i) for i in range(200)]

    def test_a_second_concurrent_receive_is_an_error_at_once(self) -> None:
        """C2 row 14."""

        def handler(session: Any) -> Any:
            session.accept()
            first = gevent.spawn(session.receive)
            gevent.sleep(0)
            with pytest.raises(UsageError, match="one receiver"):
                session.receive()
            session.send("go")
            return first.get(timeout=PATIENCE)

        def script(peer: Peer) -> None:
            peer.frame()
            peer.send(frame(TEXT, b"for the first"))
            peer.closed_with(1000)

        assert run(handler, script) == "for the first"

    def test_a_killed_receiver_leaves_the_next_message_to_others(self) -> None:
        def handler(session: Any) -> Any:
            session.accept()
            first = gevent.spawn(session.receive)
            gevent.sleep(0)
            first.kill()
            session.send("go")
            return session.receive()

        def script(peer: Peer) -> None:
            peer.frame()
            peer.send(frame(TEXT, b"m"))
            peer.closed_with(1000)

        assert run(handler, script) == "m"

    def test_fragments_from_an_iterable(self) -> None:
        def handler(session: Any) -> None:
            session.send(["Hel", "lo"])
            session.send(iter([b"a", bytearray(b"b"), memoryview(b"c")]))
            session.send(())

        def script(peer: Peer) -> None:
            assert [peer.frame() for _ in range(3)] == [(0x01, b"Hel"), (0x00, b"lo"), (0x80, b"")]
            assert [peer.frame() for _ in range(4)] == [(0x02, b"a"), (0x00, b"b"), (0x00, b"c"), (0x80, b"")]
            peer.closed_with(1000)

        run(handler, script)

    def test_other_messages_wait_for_the_end_of_a_fragmented_one(self) -> None:
        def handler(session: Any) -> None:
            others = []

            def parts() -> Any:
                yield "a"
                others.append(gevent.spawn(session.send, "between"))
                gevent.sleep(0)
                yield "b"

            session.send(parts())
            session.send("after")
            gevent.joinall(others, raise_error=True)

        def script(peer: Peer) -> None:
            got = [peer.frame() for _ in range(5)]
            assert got[:3] == [(0x01, b"a"), (0x00, b"b"), (0x80, b"")]
            assert sorted(got[3:]) == [(0x81, b"after"), (0x81, b"between")]
            peer.closed_with(1000)

        run(handler, script)

    def test_an_iterable_that_fails_closes_with_1011(self) -> None:
        def handler(session: Any) -> None:
            def parts() -> Any:
                yield "a"
                raise LookupError("no more")

            with pytest.raises(LookupError):
                session.send(parts())

        run(handler, lambda peer: (peer.frame(), peer.closed_with(1011)))

    @pytest.mark.parametrize("wrong", [5, None, 1.5, {"a": 1}, object()])
    def test_what_is_no_message(self, wrong: Any) -> None:
        def handler(session: Any) -> str:
            with pytest.raises(TypeError, match="message"):
                session.send(wrong)
            session.send("still open")
            return "done"

        assert run(handler, lambda peer: (peer.frame(), peer.closed_with(1000))) == "done"

    def test_a_lone_surrogate_is_the_callers_error(self) -> None:
        def handler(session: Any) -> None:
            with pytest.raises(UnicodeEncodeError):
                session.send("\ud800")
            session.send("fine")

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x81, b"fine")
            peer.closed_with(1000)

        run(handler, script)

    def test_buffers_of_other_items_go_out_byte_by_byte(self) -> None:
        """A1 row 15."""
        floats = array.array("f", [1.5, 2.5])

        def handler(session: Any) -> None:
            session.send(floats)
            session.send(memoryview(bytearray(b"abc")))
            big = array.array("d", range(5000))
            session.send(big)
            with pytest.raises(TypeError):
                session.send(memoryview(b"abcdef")[::2])

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x82, floats.tobytes())
            assert peer.frame() == (0x82, b"abc")
            assert peer.frame() == (0x82, array.array("d", range(5000)).tobytes())
            peer.closed_with(1000)

        run(handler, script)

    @pytest.mark.parametrize(
        ("code", "reason", "error"),
        [
            (1005, "", ValueError),
            (1006, "", ValueError),
            (999, "", ValueError),
            (5000, "", ValueError),
            (1000, "é" * 62, ValueError),
            ("1000", "", TypeError),
            (1000, b"bytes", TypeError),
            (1000, memoryview(b"x"), TypeError),
            (True, "", TypeError),
        ],
    )
    def test_closes_that_may_not_be_sent(self, code: Any, reason: Any, error: type[Exception]) -> None:
        def handler(session: Any) -> None:
            with pytest.raises(error):
                session.close(code, reason)
            session.close(4000, "é" * 61)

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x88, b"\x0f\xa0" + ("é" * 61).encode())
            peer.send(close_frame(4000))
            peer.ended()

        run(handler, script)

    def test_close_waits_for_the_peers_answer(self) -> None:
        answered = []

        def handler(session: Any) -> Any:
            session.close(1001, "going")
            assert answered
            session.close(1000)
            session.terminate()
            return session.close_reason

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x88, b"\x03\xe9going")
            peer.send(frame(TEXT, b"late") + frame(PING, b"late"))
            answered.append(True)
            peer.send(close_frame(1001))
            peer.ended()

        assert run(handler, script) == CloseReason(1001, "going")

    def test_close_gives_up_after_the_timeout(self) -> None:
        """A1 row 14."""
        app = WebSockets(timeout=0.05)
        gone = Event()

        @app.route("/")
        def route(session: Any) -> None:
            session.close()
            assert session.closed
            gone.set()

        with serving(app) as server, Peer(server) as peer:
            peer.accepted()
            assert peer.frame()[0] == 0x88
            assert gone.wait(PATIENCE)
            peer.ended()

    def test_a_close_that_is_over_at_once_has_no_deadline(self) -> None:
        """Most are: the server answers the peer's Close frame and closes the socket."""

        def count() -> int:
            return sum(type(thing) is Entry for thing in gc.get_objects())

        app = WebSockets(ping_interval=None)
        app.route("/")(echo)
        with serving(app) as server:
            before = count()
            for _ in range(3):
                with Peer(server) as peer:
                    peer.accepted()
                    peer.send(frame(TEXT, b"a") + close_frame(1000))
                    assert peer.frame() == (0x81, b"a")
                    peer.closed_with(1000)
            wait_until(lambda: not server.sessions)
            assert count() <= before

    def test_one_greenlet_closes_while_another_receives(self) -> None:
        def handler(session: Any) -> Any:
            session.accept()
            gevent.spawn(session.close, 4001, "by another")
            with pytest.raises(ConnectionClosed) as caught:
                session.receive()
            return caught.value.reason

        assert run(handler, lambda peer: peer.closed_with(4001)) == CloseReason(4001, "by another")

    def test_wait_closed_notices_a_lost_peer_while_the_handler_does_something_else(self) -> None:
        def handler(session: Any) -> Any:
            session.accept()
            assert not session.wait_closed(timeout=0.001)
            assert session.close_reason is None
            session.send("x")
            assert session.wait_closed()
            return session.close_reason

        def script(peer: Peer) -> None:
            peer.frame()
            peer.socket.close()

        assert run(handler, script) == CloseReason(1006)

    def test_pings_are_answered_while_the_handler_sleeps(self) -> None:
        """A2 row 21, and the order of RFC 6455 5.5.3."""
        go = Event()

        def handler(session: Any) -> None:
            session.accept()
            go.wait(PATIENCE)

        def script(peer: Peer) -> None:
            peer.send(frame(PING, b"1") + frame(PING, b"2"))
            assert [peer.frame(), peer.frame()] == [(0x8A, b"1"), (0x8A, b"2")]
            go.set()
            peer.closed_with(1000)

        run(handler, script)

    def test_ping_gives_the_seconds_to_its_pong(self) -> None:
        def handler(session: Any) -> float:
            assert session.latency is None
            seconds = session.ping()
            assert session.latency == seconds
            with pytest.raises(TimeoutError):
                session.ping(timeout=0.01)
            return float(seconds)

        def script(peer: Peer) -> None:
            first, payload = peer.frame()
            assert first == 0x89
            peer.send(frame(PONG, b"not yours") + frame(PONG, payload))
            assert peer.frame()[0] == 0x89
            peer.closed_with(1000)

        assert 0 < run(handler, script, ping_interval=None) < PATIENCE

    def test_ping_ends_with_the_connection(self) -> None:
        def handler(session: Any) -> None:
            with pytest.raises(ConnectionClosed):
                session.ping()

        def script(peer: Peer) -> None:
            peer.frame()
            peer.socket.close()

        run(handler, script, ping_interval=None)

    def test_keepalive_pings_and_a_missing_pong_closes_with_1011(self) -> None:
        def script(peer: Peer) -> None:
            first, payload = peer.frame()
            assert first == 0x89
            peer.send(frame(PONG, payload))
            assert peer.frame()[0] == 0x89
            first, payload = peer.frame()
            assert (first, payload[:2]) == (0x88, b"\x03\xf3")
            peer.ended()

        reason = run(echo, script, ping_interval=0.02, timeout=0.1)
        assert reason.code == 1011
        assert "pong" in reason.message

    def test_the_ping_interval_can_change_at_any_time(self) -> None:
        def handler(session: Any) -> None:
            session.ping_interval = None
            session.accept()
            session.ping_interval = 0.01
            session.timeout = 5.0
            assert session.receive() == "enough"
            session.ping_interval = None
            assert session.latency is not None
            with pytest.raises(ValueError, match="ping_interval"):
                session.ping_interval = -1
            with pytest.raises(ValueError, match="timeout"):
                session.timeout = None

        def script(peer: Peer) -> None:
            first, payload = peer.frame()
            assert first == 0x89
            peer.send(frame(PONG, payload) + frame(TEXT, b"enough"))
            while (got := peer.frame())[0] == 0x89:
                peer.send(frame(PONG, got[1]))
            assert got == (0x88, b"\x03\xe8")

        run(handler, script)

    def test_max_frame_size_can_change_at_any_time(self) -> None:
        def handler(session: Any) -> None:
            session.max_frame_size = 10
            assert session.receive() == "a" * 10
            session.max_frame_size = None
            session.send("more")
            assert len(session.receive()) == 2_000_000
            session.max_frame_size = 5
            session.send("less")
            with pytest.raises(ConnectionClosed):
                session.receive()

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"a" * 10))
            peer.frame()
            peer.send(frame(TEXT, b"a" * 2_000_000))
            peer.frame()
            peer.send(frame(TEXT, b"a" * 6))
            peer.closed_with(1009)

        run(handler, script)

    def test_masking_can_be_switched_on(self) -> None:
        def handler(session: Any) -> None:
            assert not session.masking
            session.masking = True
            session.send("Hello")

        def script(peer: Peer) -> None:
            data = peer._exactly(2)
            assert data == b"\x81\x85"
            key, payload = peer._exactly(4), peer._exactly(5)
            assert bytes(b ^ key[i % 4] for i, b in enumerate(payload)) == b"Hello"
            peer.rest()

        run(handler, script, timeout=0.2)

    def test_serialized(self) -> None:
        def handler(session: Any) -> Any:
            session.send_serialized({"a": [1, "é"]})
            value = session.receive_deserialized(dict)
            with pytest.raises(TypeError, match="list"):
                session.receive_deserialized(dict)
            session.receive_deserialized()
            return value

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x81, '{"a":[1,"é"]}'.encode())
            peer.send(frame(TEXT, b'{"b": 2}') + frame(TEXT, b"[]") + frame(TEXT, b"{"))
            peer.closed_with(1007)

        with pytest.raises(ProtocolError):
            run(handler, script, content_converter=JSONConverter())

    def test_serialized_without_a_converter(self) -> None:
        def handler(session: Any) -> None:
            with pytest.raises(UsageError, match="content_converter"):
                session.send_serialized(1)

        run(handler, lambda peer: peer.closed_with(1000))

    def test_attributes(self) -> None:
        def handler(session: Any) -> None:
            assert session.environ["PATH_INFO"] == "/"
            assert session.request.path == "/"
            assert session.remote_address[0] == "127.0.0.1"
            assert isinstance(session.application, WebSockets)
            assert session.protocol is None
            assert session.extensions == ()
            assert not session.closed
            session.user = "ada"
            assert session.user == "ada"

        run(handler, lambda peer: peer.closed_with(1000))

    def test_accept_is_for_the_beginning_and_once(self) -> None:
        def handler(session: Any) -> None:
            session.accept(headers=[("X-Room", "7")])
            with pytest.raises(UsageError, match="already"):
                session.accept()

        app = WebSockets()
        app.route("/")(handler)
        with serving(app) as server, Peer(server) as peer:
            assert "X-Room: 7" in peer.head()
            peer.closed_with(1000)


class TestSending:
    def test_greenlets_never_mix_their_frames(self) -> None:
        """C2 row 11: sizes up to 1 MB, a slow reader, order per sender."""
        count, each = 10, 30

        def handler(session: Any) -> None:
            def sender(number: int) -> None:
                for i in range(each):
                    size = (1, 100, 20_000, 70_000, 300_000)[(number + i) % 5]
                    session.send(bytes([number, i]) + bytes([number]) * size)

            gevent.joinall([gevent.spawn(sender, number) for number in range(count)], raise_error=True)

        def script(peer: Peer) -> None:
            seen: dict[int, int] = dict.fromkeys(range(count), 0)
            for _ in range(count * each):
                first, payload = peer.frame()
                assert first == 0x82
                number, i = payload[0], payload[1]
                assert seen[number] == i
                seen[number] += 1
                assert payload[2:] == bytes([number]) * (1, 100, 20_000, 70_000, 300_000)[(number + i) % 5]
            peer.closed_with(1000)

        run(handler, script)

    def test_a_sender_blocks_for_a_peer_that_does_not_read_and_leaves_whole_frames_when_it_is_killed(self) -> None:
        """C2 row 12."""
        big = bytes(range(256)) * 4096
        killed = Event()

        def handler(session: Any) -> None:
            session.accept()
            sender = gevent.spawn(lambda: [session.send(big) for _ in range(100)])
            wait_until(lambda: session.connection.write_watcher is not None)
            assert not sender.ready()
            sender.kill()
            killed.set()
            session.send("after")

        def script(peer: Peer) -> None:
            assert killed.wait(PATIENCE)
            count = 0
            while (got := peer.frame()) != (0x81, b"after"):
                assert got == (0x82, big)
                count += 1
            assert 1 <= count < 100
            peer.closed_with(1000)

        run(handler, script)

    def test_a_sender_that_waited_sends_nothing_behind_a_close(self) -> None:
        closing = Event()

        def handler(session: Any) -> None:
            session.accept()
            first = gevent.spawn(session.send, b"x" * 8_000_000)
            wait_until(lambda: session.connection.write_watcher is not None)
            second = gevent.spawn(session.send, b"second")
            gevent.sleep(0)
            session.start_close(4000)
            closing.set()
            gevent.joinall([first, second])
            assert isinstance(second.exception, ConnectionClosed)

        def script(peer: Peer) -> None:
            assert closing.wait(PATIENCE)
            assert len(peer.frame()[1]) == 8_000_000
            peer.closed_with(4000)

        run(handler, script)

    def test_a_sender_is_freed_when_the_connection_is_lost(self) -> None:
        def handler(session: Any) -> None:
            with pytest.raises(ConnectionClosed):
                while True:
                    session.send(b"x" * 1_000_000)

        def script(peer: Peer) -> None:
            peer.frame()
            peer.socket.close()

        run(handler, script)

    def test_flush_waits_until_all_is_with_the_system(self) -> None:
        def handler(session: Any) -> None:
            session.send(b"x" * 50_000)
            session.flush()
            assert session.connection.output.peek(1) == b""

        def script(peer: Peer) -> None:
            assert len(peer.frame()[1]) == 50_000
            peer.closed_with(1000)

        run(handler, script)


class TestBackpressure:
    def test_reading_pauses_while_the_handler_is_busy_and_nothing_is_lost(self) -> None:
        """A1 row 10."""
        go = Event()
        sessions = []

        def handler(session: Any) -> int:
            session.accept()
            sessions.append(session)
            go.wait(PATIENCE)
            return sum(1 for message in session if message == b"x" * 1000)

        def script(peer: Peer) -> None:
            wait_until(lambda: sessions)
            wire = frame(BINARY, b"x" * 1000)
            sender = gevent.spawn(lambda: [peer.send(wire * 50) for _ in range(200)])
            wait_until(lambda: sessions[0].connection.paused)
            assert sessions[0].connection.reader.queued < 2 * 64 * 1024
            go.set()
            sender.get()
            peer.send(close_frame())
            peer.closed_with(1000)

        assert run(handler, script, read_limit=64 * 1024) == 10_000

    def test_pings_of_a_peer_that_never_reads_are_bounded(self) -> None:
        """A1 row 11."""
        sessions = []

        def handler(session: Any) -> None:
            session.accept()
            sessions.append(session)
            session.wait_closed()

        def script(peer: Peer) -> None:
            wait_until(lambda: sessions)
            connection = sessions[0].connection
            wire = frame(PING, b"p" * 125) * 500

            def flood() -> None:
                try:
                    while not connection.paused:
                        peer.send(wire)
                except OSError:
                    pass

            flooding = gevent.spawn(flood)
            wait_until(lambda: connection.paused)
            assert len(connection.output) < 2 * 1024 * 1024
            flooding.kill()
            for _ in range(100):
                assert peer.frame() == (0x8A, b"p" * 125)
            peer.socket.close()

        run(handler, script)

    @pytest.mark.parametrize("ready", [True, False], ids=["waits for them", "comes back to them"])
    def test_a_handler_with_many_messages_lets_others_have_their_turn(self, ready: bool) -> None:
        """C1 row 7."""
        app = WebSockets(ping_interval=None)
        worked_off = []
        go = Event()

        @app.route("/busy")
        def busy(session: Any) -> None:
            session.accept()
            if not ready:
                go.wait(PATIENCE)
            for message in session:
                began = time.monotonic()
                while time.monotonic() < began + 0.001:
                    pass
                worked_off.append(message)

        @app.route("/")
        def quick(session: Any) -> None:
            for message in session:
                session.send(message)

        with serving(app) as server, Peer(server, "/busy") as flood, Peer(server) as honest:
            flood.accepted()
            honest.accepted()
            numbers = [b"%d" % number for number in range(2000)]
            flood.send(b"".join(frame(BINARY, number) for number in numbers))
            honest.send(frame(TEXT, b"hello"))
            go.set()
            assert honest.frame() == (0x81, b"hello")
            assert len(worked_off) < 200
            honest.send(frame(TEXT, b"again"))
            assert honest.frame() == (0x81, b"again")
            assert len(worked_off) < 400
            flood.send(close_frame())
            flood.closed_with(1000)
            wait_until(lambda: len(worked_off) == len(numbers))
            assert worked_off == numbers

    def test_many_small_frames_let_others_have_their_turn(self) -> None:
        """C1 row 7: with an extension that takes its time for each."""
        decoded = []

        class Slow:
            name = "x-slow"
            rsv = 0

            def accept(self, parameters: Any) -> Any:
                return {}, self

            def decode(self, frame: Frame, limit: int | None) -> Frame:
                began = time.monotonic()
                while time.monotonic() < began + 0.0002:
                    pass
                decoded.append(frame.payload)
                return frame

            def encode(self, frame: Frame) -> Frame:
                return frame

        app = WebSockets(ping_interval=None, extensions=[Slow()])

        @app.route("/")
        def echo(session: Any) -> None:
            for message in session:
                session.send(message)

        with serving(app) as server, Peer(server, Sec_WebSocket_Extensions="x-slow") as flood, Peer(server) as honest:
            for peer in (flood, honest):
                assert peer.head().startswith("HTTP/1.1 101 ")
            numbers = [b"%d" % number for number in range(10_000)]
            flood.send(b"".join(frame(BINARY, number) for number in numbers))
            honest.send(frame(TEXT, b"hello"))
            assert honest.frame() == (0x81, b"hello")
            # The clock is looked at once for some hundreds of frames, and a slice begins at the first look.
            assert len(decoded) < 6000
            for number in numbers:
                assert flood.frame() == (0x82, number)

    def test_a_message_that_trickles_in_is_1008(self) -> None:
        """A3 row 43."""

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"never whole")[:9])
            first, payload = peer.frame()
            assert (first, payload[:2]) == (0x88, b"\x03\xf0")

        reason = run(echo, script, message_timeout=0.05, timeout=0.2)
        assert reason.code == 1008

    @pytest.mark.parametrize("before", [frame(TEXT, b"whole"), b""], ids=["behind a message", "a header in pieces"])
    @pytest.mark.parametrize("raw", [False, True])
    def test_the_time_of_a_message_is_its_own(self, raw: bool, before: bytes) -> None:
        """A3 row 43: it begins with the first byte of the header, whatever was watched when that came."""
        app = WebSockets(message_timeout=1.0, timeout=PATIENCE)
        sessions: list[Any] = []

        @app.route("/", raw=raw)
        def handler(session: Any) -> None:
            session.accept()
            sessions.append(session)
            for _ in session:
                pass

        wire = before + frame(TEXT, b"never whole")[:9]
        with serving(app) as server, Peer(server) as peer:
            peer.accepted()
            wait_until(lambda: sessions)
            began = time.monotonic()
            peer.send(wire[:1])
            wait_until(lambda: sessions[0].connection.reader.within_message())
            peer.send(wire[1:])
            assert peer.frame()[1][:2] == b"\x03\xf0"
            assert 0.9 < time.monotonic() - began < 1.7

    @pytest.mark.parametrize("ping_interval", [None, 20.0])
    def test_a_peer_that_takes_nothing_is_lost_after_the_timeout(self, ping_interval: float | None) -> None:
        def handler(session: Any) -> Any:
            with pytest.raises(ConnectionClosed):
                while True:
                    session.send(b"x" * 100_000)
            return session.close_reason

        reason = run(handler, lambda peer: None, timeout=0.1, ping_interval=ping_interval)
        assert reason == CloseReason(1006, "the peer took none of the bytes that wait for it for 0.1 s")

    def test_a_peer_that_takes_a_long_message_slowly_is_not_lost(self) -> None:
        """D T24."""

        size = 20_000_000

        def handler(session: Any) -> bool:
            session.send(b"x" * size)
            session.flush()
            return True

        def script(peer: Peer) -> None:
            # Over more than the timeout, but never a whole timeout without a byte.
            taken = 0
            while taken < size - 100_000:
                gevent.sleep(0.004)
                taken += len(peer.socket.recv(60_000))
            assert taken + len(peer.rest()) > size

        assert run(handler, script, timeout=0.5, ping_interval=0.3)

    def test_a_peer_that_is_lost_while_reading_is_paused_is_noticed_without_pings(self) -> None:
        """C1 row 5."""
        sessions = []

        def handler(session: Any) -> Any:
            session.accept()
            sessions.append(session)
            session.wait_closed()
            return session.close_reason

        def script(peer: Peer) -> None:
            wait_until(lambda: sessions)
            while not sessions[0].connection.paused:
                peer.send(frame(BINARY, b"x" * 10_000))
                gevent.sleep(0)
            peer.reset()

        assert run(handler, script, timeout=0.1, ping_interval=None, read_limit=20_000) == CloseReason(1006)

    def test_long_fragmented_messages_in_time_are_fine(self) -> None:
        def script(peer: Peer) -> None:
            for _ in range(3):
                peer.send(frame(TEXT, b"a", fin=False))
                peer.send(frame(PING))
                assert peer.frame() == (0x8A, b"")
                peer.send(frame(CONTINUATION, b"b"))
                assert peer.frame() == (0x81, b"ab")
            peer.send(close_frame())
            peer.closed_with(1000)

        run(echo, script, message_timeout=0.5)


class TestRawSession:
    def test_every_frame_and_nothing_by_itself(self) -> None:
        def handler(session: Any) -> list[Frame]:
            frames = []
            for got in session:
                frames.append(got)
                if got.opcode == Opcode.PING:
                    session.send(Frame.pong(got.payload))
                if got.opcode == Opcode.CLOSE:
                    session.send(Frame.close(got.close_reason.code))
            return frames

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b") + close_frame(1000))
            assert peer.frame() == (0x8A, b"p")
            assert peer.frame() == (0x88, b"\x03\xe8")
            peer.ended()

        assert run(handler, script, raw=True) == [
            Frame(Opcode.TEXT, b"a", False),
            Frame(Opcode.PING, b"p"),
            Frame(Opcode.CONTINUATION, b"b"),
            Frame(Opcode.CLOSE, b"\x03\xe8"),
        ]

    def test_the_socket_closes_as_soon_as_the_handler_returns(self) -> None:
        def handler(session: Any) -> None:
            session.send(Frame.text("bye"))

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x81, b"bye")
            peer.ended()

        run(handler, script, raw=True)

    def test_the_last_frames_arrive_though_the_peer_is_still_sending(self) -> None:
        """A socket that is closed on top of unread input resets the connection."""
        big = b"x" * 1_500_000

        def handler(session: Any) -> None:
            session.receive()
            session.send(Frame.binary(big))
            session.send(Frame.close(1000))

        def script(peer: Peer) -> None:
            sending = gevent.spawn(lambda: [peer.send(frame(BINARY, b"y" * 60_000)) for _ in range(50)])
            assert peer.frame() == (0x82, big)
            assert peer.frame() == (0x88, b"\x03\xe8")
            sending.kill()

        run(handler, script, raw=True)

    def test_nothing_illegal_goes_out(self) -> None:
        def handler(session: Any) -> None:
            for wrong in (Frame.continuation(b"x"), Frame(Opcode.TEXT, b"x", rsv=4), Frame(Opcode.PING, b"x" * 126)):
                with pytest.raises(ValueError, match="RFC 6455"):
                    session.send(wrong)
            with pytest.raises(TypeError):
                session.send("text")
            session.send(Frame.close(4000, "done"))
            with pytest.raises(ConnectionClosed):
                session.send(Frame.text("after"))
            assert session.receive() == Frame.close(4000)
            with pytest.raises(ConnectionClosed):
                session.receive()

        def script(peer: Peer) -> None:
            assert peer.frame() == (0x88, b"\x0f\xa0done")
            peer.send(close_frame(4000))
            peer.ended()

        run(handler, script, raw=True)

    def test_violations_fail_a_raw_session_too(self) -> None:
        def handler(session: Any) -> Any:
            assert session.receive() == Frame.text("a")
            with pytest.raises(ConnectionClosed) as caught:
                session.receive()
            return caught.value.reason.code

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, b"a") + frame(CONTINUATION, b"x"))
            peer.closed_with(1002)

        assert run(handler, script, raw=True) == 1002

    def test_close_does_the_handshake_on_request(self) -> None:
        def handler(session: Any) -> Any:
            session.close(4002, "raw")
            return session.close_reason

        assert run(handler, lambda peer: peer.closed_with(4002), raw=True) == CloseReason(4002, "raw")

    def test_pinger(self) -> None:
        def handler(session: Any) -> Any:
            with pytest.raises(ValueError, match="period"):
                pinger(session, 0, 1)
            keepalive = pinger(session, period=0.01, timeout=0.1)
            pongs = 0
            for got in session:
                if got.opcode == Opcode.PONG:
                    pongs += 1
                    keepalive.pong(got)
            assert pongs == 2
            assert keepalive.latency is not None
            return session.close_reason

        def script(peer: Peer) -> None:
            for _ in range(2):
                first, payload = peer.frame()
                assert first == 0x89
                peer.send(frame(PONG, payload))
            assert peer.frame()[0] == 0x89
            first, payload = peer.frame()
            assert (first, payload[:2]) == (0x88, b"\x03\xf3")

        assert run(handler, script, raw=True).code == 1011

    def test_websocket_upgrade_runs_a_raw_session(self) -> None:
        def handle(session: Any) -> None:
            assert session.receive() == Frame.text("hi")
            session.send(Frame.binary(b"there"))

        with serving(WebSocketUpgrade(handle, protocol="v1")) as server:
            with Peer(server, Sec_WebSocket_Protocol="v0, v1") as peer:
                assert "Sec-WebSocket-Protocol: v1" in peer.head()
                peer.send(frame(TEXT, b"hi"))
                assert peer.frame() == (0x82, b"there")
                peer.ended()
            with Peer(server) as peer:
                assert peer.head().startswith("HTTP/1.1 400 ")


class TestServerStop:
    def test_sessions_close_with_1001(self) -> None:
        app = WebSockets()
        ends = []

        @app.route("/")
        def route(session: Any) -> None:
            ends.append(echo(session))

        with serving(app) as server:
            peers = [Peer(server) for _ in range(5)]
            for peer in peers:
                peer.send(frame(TEXT, b"x"))
                peer.accepted()
                assert peer.frame() == (0x81, b"x")
            stopping = gevent.spawn(server.stop, timeout=PATIENCE)
            for peer in peers:
                peer.closed_with(1001)
                peer.socket.close()
            stopping.get(timeout=PATIENCE)
        wait_until(lambda: len(ends) == 5)
        assert ends == [CloseReason(1001)] * 5


def test_opcode_of_close_is_not_confused_with_data() -> None:
    """A2 row 23: exactly one Close from us, whatever comes after the peer's."""

    def script(peer: Peer) -> None:
        peer.send(close_frame(1000) + frame(TEXT, b"late") + close_frame(1001) + frame(CLOSE, b"\x03"))
        assert peer.frame() == (0x88, b"\x03\xe8")
        peer.ended()

    assert run(echo, script) == CloseReason(1000)


class TestFirstUse:
    """The 101 goes out at the first use, whichever that is."""

    @pytest.mark.parametrize(
        "use",
        [
            lambda session: session.wait_closed(),
            lambda session: session.start_close(1000),
            lambda session: session.close(1000),
            lambda session: session.send(b"x"),
            lambda session: session.receive(),
            lambda session: next(session),
            lambda session: session.flush(),
            lambda session: session.ping(),
        ],
    )
    def test_every_use_accepts(self, use: Any) -> None:
        def handler(session: Any) -> None:
            try:
                use(session)
            except (ConnectionClosed, StopIteration):
                pass

        run(handler, lambda peer: (peer.send(close_frame(1000)), peer.rest()))

    def test_terminate_ends_the_connection_at_once(self) -> None:
        run(lambda session: session.terminate(), lambda peer: peer.ended())

    @pytest.mark.parametrize("cut", [1, 5, 6, 7, 20])
    def test_bytes_that_come_with_the_handshake(self, cut: int) -> None:
        """C2 row 17."""
        app = WebSockets()
        app.route("/")(echo)
        wire = frame(TEXT, b"a") + frame(PING, b"p") + frame(TEXT, b"b") + close_frame(3001)
        with serving(app) as server, Peer(server, behind=wire[:cut]) as peer:
            peer.accepted()
            peer.send(wire[cut:])
            got = sorted(peer.frame() for _ in range(3))
            assert got == [(0x81, b"a"), (0x81, b"b"), (0x8A, b"p")]
            peer.closed_with(3001)

    def test_all_of_a_session_in_one_segment_with_the_handshake(self) -> None:
        app = WebSockets()
        app.route("/")(echo)
        with serving(app) as server, Peer(server, behind=frame(TEXT, b"a") + close_frame(3001)) as peer:
            peer.accepted()
            assert peer.frame() == (0x81, b"a")
            peer.closed_with(3001)


class TestLargeMessages:
    """Messages whose rest is received straight into them, over the socket in pieces of all sizes."""

    TEXT = "aé€😀" * 40_000

    @pytest.mark.parametrize("piece", [10_007, 65_536, 262_144, 10**7])
    def test_text_binary_and_what_is_behind(self, piece: int) -> None:
        text = self.TEXT.encode()
        binary = bytes(range(256)) * 3000
        data = frame(TEXT, text) + frame(PING, b"?") + frame(BINARY, binary) + frame(TEXT, b"a" * 200_000) + frame(TEXT)
        got: list[Any] = []

        def handler(session: Any) -> None:
            got.extend(session)

        def script(peer: Peer) -> None:
            for start in range(0, len(data), piece):
                peer.send(data[start : start + piece])
            assert peer.frame() == (0x8A, b"?")
            peer.send(close_frame())
            peer.closed_with(1000)

        run(handler, script, max_frame_size=4 * 1024 * 1024, read_limit=4 * 1024 * 1024)
        assert got == [self.TEXT, binary, "a" * 200_000, ""]

    @pytest.mark.parametrize("fin", [True, False])
    def test_text_that_is_no_utf8_is_refused(self, fin: bool) -> None:
        text = self.TEXT.encode()
        broken = text[:300_000] + b"\xff" + text[300_001:]

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, broken, fin=fin))
            peer.closed_with(1007)

        run(echo, script)

    def test_fragments_that_cut_a_character(self) -> None:
        text = self.TEXT.encode()
        cut = 200_002
        assert text[cut] & 0xC0 == 0x80

        def script(peer: Peer) -> None:
            peer.send(frame(TEXT, text[:cut], fin=False) + frame(PING) + frame(CONTINUATION, text[cut:]))
            assert peer.frame() == (0x8A, b"")
            assert peer.frame() == (0x81, text)
            peer.send(close_frame())
            peer.closed_with(1000)

        run(echo, script)

    def test_a_peer_that_is_lost_within(self) -> None:
        def script(peer: Peer) -> None:
            peer.send(frame(BINARY, bytes(900_000))[:500_000])
            peer.reset()

        assert run(echo, script).code == 1006

    def test_raw_frames(self) -> None:
        def handler(session: Any) -> Any:
            return [session.receive() for _ in range(2)]

        def script(peer: Peer) -> None:
            peer.send(frame(BINARY, bytes(range(250)) * 2000, fin=False) + frame(CONTINUATION, b"end"))

        frames = run(handler, script, raw=True)
        assert [(got.opcode, len(got.payload), got.fin) for got in frames] == [(2, 500_000, False), (0, 3, True)]
        assert frames[0].payload == bytes(range(250)) * 2000
