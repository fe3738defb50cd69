"""How one message gets to many connections, and how compressed sessions share its frame, over real sockets."""

from __future__ import annotations

import gc
import logging
import random
import weakref
import zlib
from collections.abc import Callable
from typing import Any

import gevent
import pytest
import trustme
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from geventws import Frame, PermessageDeflate, broadcast
from geventws.protocol.deflating import DeflateSession
from geventws.protocol.shared import SharedMessage
from geventws.topics.delivery import Delivery, deliver
from tests.peer import PATIENCE, Peer, wait_until
from tests.test_broadcasting import Encoding, NotedTransport, Room, noted, take_long
from tests.test_forks import forked
from tests.wire import close_frame

__all__ = ["noted"]

TAIL = b"\x00\x00\xff\xff"
ENCODING = {"Sec_WebSocket_Extensions": "x-encoding"}


def connections_of(room: Room) -> list[Any]:
    return [session.connection for session in room.sessions]


def reset(source: Any) -> bool:
    """A transport's `send` on a connection that is lost."""
    raise ConnectionResetError


class SlowRoom(Room):
    """A room of many sessions, each of which takes its time for a message of the tests: several slices for all."""

    def __init__(self, encode: Callable[[Frame], None] = lambda frame: None, **options: Any) -> None:
        self.encoded = 0
        self._encode = encode
        super().__init__(extensions=[Encoding(self._slowly)], **options)

    def _slowly(self, frame: Frame) -> None:
        self.encoded += 1
        take_long()
        self._encode(frame)

    def fill(self, count: int = 300) -> list[Peer]:
        """That many peers."""
        return [self.join(**ENCODING) for _ in range(count)]


class TestDelivery:
    def test_all(self) -> None:
        with Room() as room:
            peers = [room.join() for _ in range(3)]
            delivery = deliver(connections_of(room), SharedMessage(1, b"for all"))
            assert (delivery.done, delivery.taken, delivery.lagging) == (True, 3, 0)
            delivery.wait()
            assert [peer.frame() for peer in peers] == [(0x81, b"for all")] * 3

    def test_nobody(self) -> None:
        delivery = deliver([], SharedMessage(1, b"x"))
        assert (delivery.done, delivery.taken, delivery.lagging) == (True, 0, 0)

    def test_who_lags_behind_is_counted(self) -> None:
        with Room(write_limit=64 * 1024) as room:
            stuck = room.join()
            connections = connections_of(room)
            message = SharedMessage(2, b"f" * 60_000)
            while (delivery := deliver(connections, message)).taken:
                assert delivery.lagging == 0
            assert (delivery.done, delivery.taken, delivery.lagging) == (True, 0, 1)
            assert not room.sessions[0].closed
            assert deliver(connections, message, closes=True).lagging == 1
            while (got := stuck.frame())[0] == 0x82:
                assert got[1] == message.payload
            assert got == (0x88, b"\x03\xf5too slow for what is sent to all")

    def test_it_goes_on_in_the_hub(self) -> None:
        with SlowRoom() as room:
            peers = room.fill()
            delivery = deliver(connections_of(room), SharedMessage(1, b"slow"))
            assert not delivery.done
            assert 0 < delivery.taken < 300
            # Who gives up waiting, in whatever way, does not end it.
            impatient = [gevent.spawn(delivery.wait) for _ in range(3)]
            with gevent.Timeout(0.0, False):
                delivery.wait()
            impatient[0].kill(block=False)
            assert not delivery.done
            delivery.wait()
            assert (delivery.done, delivery.taken) == (True, 300)
            gevent.joinall(impatient, timeout=PATIENCE, raise_error=True)
            assert [peer.frame() for peer in peers] == [(0x81, b"slow")] * 300

    def test_it_is_finished_where_the_sender_is_killed(self) -> None:
        with SlowRoom() as room:
            peers = room.fill()
            sender = gevent.spawn(broadcast, room.sessions, "to the end")
            wait_until(lambda: room.encoded)
            sender.kill()
            assert room.encoded < 300
            assert [peer.frame() for peer in peers] == [(0x81, b"to the end")] * 300

    def test_a_second_one_waits_for_the_first(self) -> None:
        """So that all get the messages of one publisher in order, also from a callback of the hub."""
        with SlowRoom() as room:
            peers = room.fill()
            connections = connections_of(room)
            deliveries: list[Delivery] = []

            def call() -> None:
                deliveries.extend(
                    deliver(connections[number:], SharedMessage(1, b"%d" % number)) for number in range(3)
                )

            gevent.get_hub().loop.run_callback(call)
            wait_until(lambda: deliveries)
            assert [delivery.taken for delivery in deliveries[1:]] == [0, 0]
            deliveries[2].wait()
            assert [delivery.done for delivery in deliveries] == [True] * 3
            assert [delivery.taken for delivery in deliveries] == [300, 299, 298]
            for number, peer in enumerate(peers):
                assert [peer.frame()[1] for _ in range(min(number, 2) + 1)] == [b"0", b"1", b"2"][: number + 1]

    @pytest.mark.parametrize("authority", [None, trustme.CA()], ids=["plain", "tls"])
    def test_a_peer_that_reads_late_gets_all_in_order(self, authority: Any) -> None:
        """Frames that are shared, and those of the session around them, through a socket that takes them in parts."""
        choose = random.Random(5)
        sent = b""
        with Room(write_limit=None, authority=authority) as room:
            peer = room.join()
            session = room.sessions[0]
            # Until the kernel is full, and for some turns behind that.
            turns_left = 30
            while turns_left:
                for _ in range(choose.randrange(1, 4)):
                    data = bytes((choose.randrange(256),)) * choose.choice(
                        (0, 1, 125, 4000, 4096, 4097, 20_000, 60_000)
                    )
                    if choose.random() < 0.7:
                        assert broadcast(room.sessions, data) == 1
                    else:
                        # It would wait for the peer.
                        gevent.spawn(session.send, data).join()
                    sent += data
                gevent.sleep(0)
                turns_left -= len(session.connection.output) > 0
            got = b""
            while len(got) < len(sent):
                first, payload = peer.frame()
                assert first == 0x82
                got += payload
            assert got == sent
            assert broadcast(room.sessions, "and on") == 1
            while (end := peer.frame()) == (0x82, b""):
                pass
            assert end == (0x81, b"and on")

    def test_others_send_meanwhile(self) -> None:
        with SlowRoom() as room:
            peers = room.fill()
            delivery = deliver(connections_of(room), SharedMessage(1, b"all"))
            room.sessions[0].send("one")
            room.sessions[-1].send("one")
            delivery.wait()
            assert [peers[0].frame()[1] for _ in range(2)] == [b"all", b"one"]
            assert sorted(peers[-1].frame()[1] for _ in range(2)) == [b"all", b"one"]

    def test_a_reset_that_is_told_of_from_within(self, noted: type[NotedTransport]) -> None:
        """As presence is: by a message to the same connections, also where the teller waits for it."""
        told: list[bool] = []
        with Room() as room:
            peers = [room.join() for _ in range(10)]
            connections = connections_of(room)

            def tell() -> None:
                delivery = deliver(connections, SharedMessage(1, b"gone"))
                told.append(delivery.done)
                delivery.wait()
                told.append(delivery.done)

            connections[5].transport.send = reset
            room.sessions[5].ended = tell
            # A large one is flushed at once.
            delivery = deliver(connections, SharedMessage(1, b"x" * 5000))
            delivery.wait()
            assert told == [False, True]
            for peer in peers[:5] + peers[6:]:
                assert [peer.frame()[1], peer.frame()[1]] == [b"x" * 5000, b"gone"]

    def test_a_reset_that_is_told_of_in_the_hub(self, noted: type[NotedTransport]) -> None:
        """Each of many sessions that end in one turn has all others told."""
        told: list[Delivery] = []
        with Room() as room:
            peers = [room.join() for _ in range(60)]
            connections = connections_of(room)

            for session in room.sessions[:20]:
                session.connection.transport.send = reset
                session.ended = lambda: told.append(deliver(connections, SharedMessage(1, b"gone")))
            assert broadcast(room.sessions, "first") == 60
            for peer in peers[20:]:
                assert [peer.frame()[1] for _ in range(21)] == [b"first"] + [b"gone"] * 20
            assert [delivery.taken for delivery in told] == [40] * 20

    def test_a_child_process_leaves_it_alone(self) -> None:
        with Room() as room:
            peer = room.join()
            assert broadcast(room.sessions, "parent") == 1

            def work() -> None:
                gevent.sleep(0)
                assert deliver(connections_of(room), SharedMessage(1, b"child")).taken == 0

            child = forked(work)
            with gevent.Timeout(PATIENCE):
                assert gevent.os.waitpid(child, 0)[1] == 0
            assert broadcast(room.sessions, "parent") == 1
            assert [peer.frame(), peer.frame()] == [(0x81, b"parent")] * 2

    @pytest.mark.parametrize("size", [10, 50_000])
    def test_nothing_is_kept(self, size: int) -> None:
        with Room() as room:
            peer = room.join()
            delivery = deliver(connections_of(room), SharedMessage(1, b"x" * size))
            assert peer.frame() == (0x81, b"x" * size)
            connection = weakref.ref(room.sessions[0].connection)
            room.sessions.clear()
            del delivery
            peer.send(close_frame())
            peer.closed_with(1000)

            def gone() -> bool:
                gc.collect()
                return connection() is None

            wait_until(gone)


class TestFailingExtensions:
    @pytest.mark.parametrize("size", [10, 5000])
    def test_one_session_ends_and_the_others_get_it(self, size: int, caplog: pytest.LogCaptureFixture) -> None:
        failing = 3

        def encode(frame: Frame) -> None:
            nonlocal failing
            failing -= 1
            if not failing:
                raise LookupError("no such thing")

        with Room(extensions=[Encoding(encode)]) as room:
            peers = [room.join(**ENCODING) for _ in range(5)]
            with caplog.at_level(logging.ERROR, "geventws"):
                assert broadcast(room.sessions, "x" * size) == 4
                for peer in peers[:2] + peers[3:]:
                    assert peer.frame() == (0x81, b"x" * size)
                peers[2].closed_with(1011)
                wait_until(lambda: caplog.records)
            assert broadcast(room.sessions, "next") == 4
            assert [peer.frame()[1] for peer in peers[:2] + peers[3:]] == [b"next"] * 4
            (record,) = caplog.records
            assert "could not be sent to one session" in record.getMessage()
            assert record.exc_info is not None
            assert isinstance(record.exc_info[1], LookupError)

    def test_compress_if(self) -> None:
        def compress_if(frame: Frame) -> bool:
            raise LookupError("cannot tell")

        with Room(extensions=[PermessageDeflate(compress_if=compress_if)]) as room:
            plain, compressed = room.join(), room.join(Sec_WebSocket_Extensions="permessage-deflate")
            assert broadcast(room.sessions, "x" * 1000) == 1
            assert plain.frame() == (0x81, b"x" * 1000)
            compressed.closed_with(1011)

    def test_a_signal_ends_the_call_and_not_the_delivery(self) -> None:
        def encode(frame: Frame) -> None:
            if frame.payload == b"now" and room.encoded == 10:
                raise KeyboardInterrupt

        with SlowRoom(encode) as room:
            peers = room.fill(100)
            with pytest.raises(KeyboardInterrupt):
                broadcast(room.sessions, "now")
            assert room.encoded == 10
            for number, peer in enumerate(peers):
                if number != 9:
                    assert peer.frame() == (0x81, b"now")
            # Nobody knows what became of the message there.
            peers.pop(9).ended()
            assert broadcast(room.sessions, "then") == 99
            assert [peer.frame()[1] for peer in peers] == [b"then"] * 99


class DeflatedPeer(Peer):
    """A peer that keeps what it inflated as history, as RFC 7692 has it, or not where the server said so."""

    def __init__(self, server: Any, offer: str = "permessage-deflate") -> None:
        super().__init__(server, Sec_WebSocket_Extensions=offer)
        head = self.head()
        assert "permessage-deflate" in head, head
        self._takeover = "server_no_context_takeover" not in head
        # No more than the server was told: a reference further back is an error.
        bits = next((int(field.split("=")[1]) for field in head.split("; ") if "server_max" in field), 15)
        self._bits = bits
        self._inflater = zlib.decompressobj(-bits)
        self.compressed = 0

    def message(self) -> tuple[int, bytes]:
        """The next message as (opcode, payload)."""
        first, payload = self.frame()
        while not first & 0x80:
            more, rest = self.frame()
            assert more & 0x7F == 0
            first |= more
            payload += rest
        if not first & 0x40:
            return first & 0x0F, payload
        self.compressed += 1
        if not self._takeover:
            self._inflater = zlib.decompressobj(-self._bits)
        return first & 0x0F, self._inflater.decompress(payload + TAIL)


class CompressedRoom(Room):
    """A room whose peers inflate."""

    def __init__(self, **options: Any) -> None:
        super().__init__(extensions=[PermessageDeflate(**options)])

    def join_deflated(self, offer: str = "permessage-deflate") -> DeflatedPeer:
        """A new peer, whose session is the last of ``sessions``."""
        count = len(self.sessions)
        peer = self._stack.enter_context(DeflatedPeer(self.server, offer))
        wait_until(lambda: len(self.sessions) > count)
        return peer


OFFERS = (
    "permessage-deflate",
    "permessage-deflate; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9",
    "permessage-deflate; client_max_window_bits; server_max_window_bits=10; server_no_context_takeover",
)


def text(choose: random.Random, size: int) -> bytes:
    """Text that repeats words of its own and of other texts, so that references go far back."""
    words = [b"alpha", b"beta ", b"gamma, delta", b"%d" % choose.randrange(50), bytes(choose.choices(b"abcdef", k=40))]
    data = b""
    while len(data) < size:
        data += choose.choice(words)
    return data[:size]


class TestSharedCompression:
    def test_own_messages_and_shared_ones_in_turn(self) -> None:
        choose = random.Random(7692)
        with CompressedRoom() as room:
            peers: list[Any] = [room.join(), *(room.join_deflated(offer) for offer in OFFERS)]
            for number in range(150):
                size = choose.choice((10, 100, 1000, 5000, 20_000, 70_000))
                data = text(choose, size)
                if number % 3:
                    assert broadcast(room.sessions, data) == len(peers)
                else:
                    for session in room.sessions:
                        # In fragments as well, the last of them empty.
                        session.send(data if number % 2 else (data[: size // 2], data[size // 2 :]))
                for peer in peers[1:]:
                    assert peer.message() == (2, data)
                if number % 3 or number % 2:
                    assert peers[0].frame() == (0x82, data)
                else:
                    assert b"".join(peers[0].frame()[1] for _ in range(3)) == data
            assert all(peer.compressed > 100 for peer in peers[1:])

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("own", "shared", "fragments", "nothing")),
                st.lists(st.sampled_from((b"a", b"bc", b"alphabet", b"xyz" * 30, bytes(range(200)))), max_size=40),
            ),
            max_size=12,
        ),
        st.integers(-1, 9),
        st.integers(1, 9),
        st.integers(9, 15),
        st.booleans(),
    )
    def test_every_order(
        self, steps: list[tuple[str, list[bytes]]], level: int, memory_level: int, bits: int, no_takeover: bool
    ) -> None:
        """The encoder alone, against zlib with a window of just these bits, and another session's frame beside it."""
        ours, others = (DeflateSession(level, memory_level, 0, None, no_takeover, False, bits, 15) for _ in range(2))
        inflater = zlib.decompressobj(-bits)

        def inflated(data: bytes) -> bytes:
            nonlocal inflater
            if no_takeover:
                inflater = zlib.decompressobj(-bits)
            return inflater.decompress(data + TAIL)

        for kind, parts in steps:
            whole = b"".join(parts)
            if kind == "own":
                data = ours.deflated(2, whole, True)
                assert (b"" if data is None else inflated(data)) == whole
            elif kind == "shared":
                message = SharedMessage(2, whole)
                frame = ours.frame_of(message)
                assert others.frame_of(message) is frame
                assert (frame.payload if frame.first == 0x82 else inflated(frame.payload)) == whole
            elif kind == "fragments":
                pieces = [
                    ours.deflated(0 if number else 2, part, False) or b"" for number, part in enumerate([*parts, b""])
                ]
                assert inflated(b"".join((*pieces, ours.deflated(0, b"", True) or b""))) == whole

    def test_compressed_once_for_equal_parameters(self) -> None:
        """Also for those with context takeover, and beside those without."""

        def session(level: int = 1, memory_level: int = 5, bits: int = 12, no_takeover: bool = False) -> DeflateSession:
            return DeflateSession(level, memory_level, 64, None, no_takeover, False, bits, 12)

        message = SharedMessage(1, b"once and again " * 100)
        frame = session().frame_of(message)
        assert frame.first == 0xC1
        assert session(no_takeover=True).frame_of(message) is frame
        made = [session(level=9), session(memory_level=6), session(bits=13), session(level=-1)]
        frames = [frame, *(one.frame_of(message) for one in made)]
        assert len({id(one) for one in frames}) == len(frames)
        for one in frames:
            assert zlib.decompressobj(-13).decompress(one.payload + TAIL) == message.payload
        assert session().frame_of(SharedMessage(1, b"too short")).first == 0x81

    def test_compress_if_is_asked_for_each_session(self) -> None:
        asked: list[Frame] = []

        def compress_if(frame: Frame) -> bool:
            asked.append(frame)
            return len(asked) % 2 == 0

        with CompressedRoom(compress_if=compress_if, min_size=100) as room:
            peers = [room.join_deflated() for _ in range(4)]
            assert broadcast(room.sessions, "x" * 99) == 4
            assert not asked
            assert broadcast(room.sessions, "x" * 100) == 4
            assert asked == [Frame(1, b"x" * 100, True)] * 4  # type: ignore[arg-type]
            for peer in peers:
                assert [peer.message(), peer.message()] == [(1, b"x" * 99), (1, b"x" * 100)]
            assert [peer.compressed for peer in peers] == [0, 1, 0, 1]

    def test_behind_fragments_of_another_message(self) -> None:
        with CompressedRoom() as room:
            peers = [room.join_deflated() for _ in range(2)]
            half, rest = Event(), Event()

            def fragments() -> Any:
                yield "alphabet " * 20
                half.set()
                rest.wait(PATIENCE)
                yield "alphabet " * 20

            sender = gevent.spawn(room.sessions[0].send, fragments())
            assert half.wait(PATIENCE)
            for size in (20, 3000):
                assert broadcast(room.sessions, "alphabet " * size) == 2
            assert [peers[1].message()[1] for _ in range(2)] == [b"alphabet " * 20, b"alphabet " * 3000]
            rest.set()
            sender.get(timeout=PATIENCE)
            room.sessions[0].send("alphabet " * 30)
            assert [peers[0].message()[1] for _ in range(4)] == [b"alphabet " * size for size in (40, 20, 3000, 30)]
            assert peers[0].compressed == 4

    @pytest.mark.parametrize("options", [{}, {"server_no_context_takeover": True}, {"server_max_window_bits": 15}])
    def test_a_client_of_others(self, options: dict[str, Any]) -> None:
        """The websockets package, which inflates by zlib with its history kept."""
        choose = random.Random(1)
        messages = [text(choose, choose.choice((50, 500, 8000, 40_000))).decode() for _ in range(100)]
        with CompressedRoom(**options) as room:
            received: list[Any] = []

            def client() -> None:
                url = f"ws://127.0.0.1:{room.server.server_port}/"
                with connect(url, max_size=None, close_timeout=PATIENCE) as websocket:
                    assert websocket.protocol.extensions
                    received.extend(websocket.recv(timeout=PATIENCE) for _ in messages)

            done = gevent.get_hub().threadpool.spawn(client)
            wait_until(lambda: room.sessions)
            for number, message in enumerate(messages):
                if number % 3:
                    assert broadcast(room.sessions, message) == 1
                else:
                    room.sessions[0].send(message)
            done.get(timeout=PATIENCE)
            assert received == messages
