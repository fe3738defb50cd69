"""One message to many sessions, over real sockets."""

from __future__ import annotations

import gc
import os
import ssl
import tracemalloc
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

import gevent
import gevent.monkey
import pytest
import trustme
from gevent.event import Event

import geventws
from geventws import Frame, PermessageDeflate, Topics, UsageError, WebSockets, broadcast
from geventws.settings import Settings
from geventws.transport import Transport
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.test_forks import forked
from tests.test_tls import TLSPeer
from tests.wire import BINARY, TEXT, close_frame, frame

#: Seconds that a slow step takes here at least, on whatever machine: then a slice has at most so many steps.
SLOW_STEP = 0.0002
STEPS_A_SLICE = 0.005 / SLOW_STEP


def take_long() -> None:
    """Keeps the thread for ``SLOW_STEP``."""
    ends = monotonic() + SLOW_STEP
    while monotonic() < ends:
        pass


@contextmanager
def elsewhere(call: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """Runs ``call`` in a thread with a hub of its own, to its end; gives what it raised."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = gevent.monkey.get_original("threading", "Thread")(target=run)
    thread.start()
    try:
        yield caught
    finally:
        thread.join()


class NotedTransport(Transport):
    """A transport that counts its system calls, and that a test may have take long in them."""

    slow = False
    #: Of all transports, and of this one.
    all_calls = 0
    calls = 0

    def send(self, source: Any) -> bool:
        """As the base does."""
        if len(source):
            self.calls += 1
            NotedTransport.all_calls += 1
            if NotedTransport.slow:
                take_long()
        return super().send(source)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> type[NotedTransport]:
    """Has all connections use a `NotedTransport`."""
    monkeypatch.setattr("geventws.call.transport_of", NotedTransport)
    monkeypatch.setattr(NotedTransport, "slow", False)
    monkeypatch.setattr(NotedTransport, "all_calls", 0)
    return NotedTransport


class Encoding:
    """An extension, and its session, whose encoder is a test's; it changes no frame."""

    name = "x-encoding"
    rsv = 0

    def __init__(self, encoder: Callable[[Frame], None]) -> None:
        self._encoder = encoder

    def accept(self, parameters: Any) -> Any:
        """Takes every offer."""
        return {}, self

    def decode(self, frame: Frame, limit: int | None) -> Frame:
        """As it is."""
        return frame

    def encode(self, frame: Frame) -> Frame:
        """As it is."""
        self._encoder(frame)
        return frame


class Ticking:
    """Another greenlet, and how many steps of a count it saw go by between two of its turns at most."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self.turns = 0
        self.longest = 0
        self._greenlet = gevent.spawn(self._run)
        wait_until(lambda: self.turns)

    def _run(self) -> None:
        before = self._count()
        while True:
            gevent.sleep(0.0001)
            self.longest = max(self.longest, self._count() - before)
            before = self._count()
            self.turns += 1

    def stop(self) -> None:
        """Ends it after one more turn."""
        turns = self.turns
        wait_until(lambda: self.turns > turns)
        self._greenlet.kill()


def refuses_all(topics: Topics, session: Any) -> None:
    """Asserts that topics are closed, and have published nothing."""
    for call in (
        lambda: topics.subscribe(session, "a"),
        lambda: topics.unsubscribe(session, "a"),
        lambda: topics.publish("a", "nobody hears"),
        lambda: topics.listen("a", print),
        lambda: topics.count("a"),
        lambda: topics.sessions("a"),
        lambda: topics.presence("a"),
        lambda: topics.position("a"),
        topics.flush,
    ):
        with pytest.raises(UsageError, match="closed"):
            call()
    assert topics.statistics().published == 0


class Room:
    """An app whose sessions stay open, and the peers of them."""

    def __init__(
        self,
        handler: Callable[[Any], None] | None = None,
        raw: bool = False,
        authority: trustme.CA | None = None,
        **settings: Any,
    ) -> None:
        self.sessions: list[Any] = []
        self._authority = authority
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
        options = {}
        if self._authority is not None:
            options["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._authority.issue_cert("127.0.0.1").configure_cert(options["ssl_context"])
        self.server = self._stack.enter_context(serving(self.app, **options))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def join(self, **fields: str) -> Peer:
        """A new peer, whose session is the last of ``sessions``."""
        count = len(self.sessions)
        peer = Peer(self.server, **fields) if self._authority is None else TLSPeer(self.server, self._authority)
        self._stack.enter_context(peer)
        peer.accepted()
        wait_until(lambda: len(self.sessions) > count)
        return peer


class BytesOfUsers(bytes):
    pass


class TextOfUsers(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("κόσμε", (0x81, "κόσμε".encode())),
        ("", (0x81, b"")),
        (b"\x00\xff", (0x82, b"\x00\xff")),
        (bytearray(b"ab"), (0x82, b"ab")),
        (memoryview(b"abcd")[1:3], (0x82, b"bc")),
        (memoryview(array("H", [0x0101, 0x0202])), (0x82, b"\1\1\2\2")),
        (BytesOfUsers(b"ab"), (0x82, b"ab")),
        (TextOfUsers("ab"), (0x81, b"ab")),
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


@pytest.mark.parametrize("slow", ["skip", "close"])
@pytest.mark.parametrize("write_limit", [1000, 64 * 1024])
def test_much_in_one_turn_makes_nobody_slow(slow: str, write_limit: int) -> None:
    """What only waits for the hub's turn is nothing that the peer lags behind with."""
    with Room(write_limit=write_limit) as room:
        peers = [room.join() for _ in range(2)]
        texts = [f"{number:4}" * 1000 for number in range(60)]
        assert [broadcast(room.sessions, text, slow=slow) for text in texts] == [2] * 60
        for peer in peers:
            assert [peer.frame() for _ in texts] == [(0x81, text.encode()) for text in texts]


def test_a_burst_leaves_in_one_system_call_a_session(noted: type[NotedTransport]) -> None:
    with Room() as room:
        peers = [room.join() for _ in range(3)]
        before = [session.connection.transport.calls for session in room.sessions]
        for number in range(100):
            assert broadcast(room.sessions, f"message {number}") == 3
        assert [session.connection.transport.calls for session in room.sessions] == before
        for peer in peers:
            assert [peer.frame()[1] for _ in range(100)] == [b"message %d" % number for number in range(100)]
        calls = [session.connection.transport.calls for session in room.sessions]
        assert [after - count for after, count in zip(calls, before, strict=True)] == [1, 1, 1]


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


def test_order_of_all_sizes() -> None:
    """Small ones wait for the hub, the next do not, the largest are not copied: none overtakes another."""
    with Room(write_limit=None) as room:
        peer = room.join()
        sizes = (0, 10, 126, 4096, 4097, 16_383, 16_384, 70_000, 5, 300_000)
        for number, size in enumerate(sizes):
            broadcast(room.sessions, bytes((number,)) * size)
            room.sessions[0].send(bytes((100 + number,)) * size)
        for number, size in enumerate(sizes):
            assert peer.frame() == (0x82, bytes((number,)) * size)
            assert peer.frame() == (0x82, bytes((100 + number,)) * size)


def test_masked_as_the_session_is() -> None:
    with Room() as room:
        peers = [room.join() for _ in range(2)]
        room.sessions[0].masking = True
        for size in (5, 5000, 20_000):
            assert broadcast(room.sessions, b"m" * size) == 2
            assert peers[1].frame() == (0x82, b"m" * size)
        data = b""
        while len(data) < 11 + 5008 + 20_008:
            data += peers[0].socket.recv(1 << 16)
        position = 0
        for size, head in ((5, b"\x82\x85"), (5000, b"\x82\xfe\x13\x88"), (20_000, b"\x82\xfe\x4e\x20")):
            assert data[position:].startswith(head)
            position += len(head)
            key, body = data[position : position + 4], data[position + 4 : position + 4 + size]
            assert bytes(byte ^ key[i % 4] for i, byte in enumerate(body)) == b"m" * size
            position += 4 + size


def test_no_frame_after_a_close() -> None:
    with Room() as room:
        leaving, stays = room.join(), room.join()
        assert broadcast(room.sessions, "before") == 2
        room.sessions[0].start_close(4000)
        assert [broadcast(room.sessions, message) for message in ("after", b"x" * 50_000)] == [1, 1]
        assert leaving.frame() == (0x81, b"before")
        leaving.closed_with(4000)
        assert [stays.frame()[1] for _ in range(3)] == [b"before", b"after", b"x" * 50_000]


def test_a_session_that_ends_before_the_hub_has_its_turn() -> None:
    with Room() as room:
        gone, stays = room.join(), room.join()
        assert broadcast(room.sessions, "first") == 2
        room.sessions[0].terminate()
        assert broadcast(room.sessions, "second") == 1
        gone.ended()
        assert [stays.frame()[1] for _ in range(2)] == [b"first", b"second"]


def test_within_a_callback_of_the_hub() -> None:
    with Room() as room:
        peers = [room.join() for _ in range(100)]
        counts: list[int] = []

        def call() -> None:
            counts.extend(broadcast(room.sessions, message) for message in (b"small", b"l" * 20_000))

        gevent.get_hub().loop.run_callback(call)
        for peer in peers:
            assert [peer.frame(), peer.frame()] == [(0x82, b"small"), (0x82, b"l" * 20_000)]
        # On a slow machine the last of them came after it had to return.
        assert 0 < counts[0] <= 100
        assert counts[1] <= 100


def test_under_tls() -> None:
    with Room(authority=trustme.CA()) as room:
        peers = [room.join() for _ in range(3)]
        messages = [b"%d" % number * size for number, size in enumerate((10, 4096, 5000, 40_000, 300_000, 1))]
        # Each is read before the next, which might be skipped else.
        for message in messages:
            assert broadcast(room.sessions, message) == 3
            assert [peer.frame() for peer in peers] == [(0x82, message)] * 3
        for number in range(50):
            assert broadcast(room.sessions, f"{number}") == 3
        for peer in peers:
            assert [peer.frame()[1] for _ in range(50)] == [b"%d" % number for number in range(50)]


def test_while_tls_has_to_read_before_it_writes() -> None:
    """Reading then goes on in the hub: a switch to the receiver from here would never come back."""

    class WaitsToRead(Transport):
        waits = True

        def send(self, source: Any) -> bool:
            self.sending_waits_to_read = self.waits and len(source) > 0
            return False if self.sending_waits_to_read else super().send(source)

    class NoCall:
        protocol = remote_address = None

        def ended(self, session: Any) -> None:
            pass

    ours, theirs = gevent.socket.socketpair()
    transport = WaitsToRead(ours._sock)
    ours._sock.setblocking(False)
    session = geventws.DefaultWebSocketSession(Settings(ping_interval=None), NoCall())  # type: ignore[arg-type]
    connection = session.connection

    def receive() -> Any:
        connection.open(transport, b"", bytearray(frame(TEXT, b"read ahead")))
        return connection.receive()

    receiver = gevent.spawn(receive)
    broadcaster = gevent.spawn(broadcast, [session], b"x" * 10_000)
    try:
        # It came first: the receiver waits, and what was read ahead is still to be taken.
        assert broadcaster.get(timeout=PATIENCE) == 1
        assert receiver.get(timeout=PATIENCE) == "read ahead"
        transport.waits = False
        theirs.sendall(frame(TEXT, b"more"))
        assert connection.receive_within(PATIENCE) == "more"
        theirs.settimeout(PATIENCE)
        assert theirs.recv(4) == b"\x82\x7e\x27\x10"
    finally:
        session.terminate()
        theirs.close()


def test_a_child_process_broadcasts_to_nobody() -> None:
    with Room() as room:
        peers = [room.join() for _ in range(2)]

        def work() -> None:
            for message in ("child", b"c" * 50_000):
                assert broadcast(room.sessions, message, slow="close") == 0
            gevent.sleep(0)

        child = forked(work)
        status = None
        with gevent.Timeout(PATIENCE):
            while status is None:
                process, ended = os.waitpid(child, os.WNOHANG)
                status = ended if process else None
                gevent.sleep(0.005)
        assert status == 0
        assert broadcast(room.sessions, "parent") == 2
        assert [peer.frame() for peer in peers] == [(0x81, b"parent")] * 2


def test_a_signal_in_the_hub_takes_nobody_else_his_turn() -> None:
    class Interrupted(NotedTransport):
        def send(self, source: Any) -> bool:
            if len(source) and source.peek(100).endswith(b"now"):
                raise SystemExit(3)
            return super().send(source)

    with pytest.MonkeyPatch.context() as patch, Room() as room:
        peers = [room.join()]
        patch.setattr("geventws.call.transport_of", Interrupted)
        hit = room.join()
        patch.undo()
        peers += [room.join() for _ in range(2)]
        # As a signal's handler does, it reaches the main greenlet, which may catch it.
        assert broadcast(room.sessions, "now") == 4
        with pytest.raises(SystemExit):
            wait_until(lambda: False)
        hit.ended()
        assert broadcast(room.sessions, "then") == 3
        assert [[peer.frame()[1], peer.frame()[1]] for peer in peers] == [[b"now", b"then"]] * 3


def test_nothing_is_kept() -> None:
    """What was broadcast to does not live on in the hub."""
    with Room(handler=lambda session: session.receive()) as room:
        peers = [room.join() for _ in range(100)]
        for message in ("small", b"l" * 20_000):
            assert broadcast(room.sessions, message) == 100
        for peer in peers:
            assert [peer.frame()[0], peer.frame()[0]] == [0x81, 0x82]
        connections = [weakref.ref(session.connection) for session in room.sessions]
        room.sessions.clear()
        for peer in peers:
            peer.send(close_frame())
            peer.closed_with(1000)

        def gone() -> bool:
            gc.collect()
            return not any(connection() for connection in connections)

        wait_until(gone)


def test_a_large_message_is_copied_for_nobody_in_vain() -> None:
    message = b"m" * 20_000_000
    # What sockets don't take, the uncompiled buffer keeps as a copy of its own, and copies twice on the way.
    kept = 0 if geventws.build() == "compiled" else 7 * len(message)
    with Room(write_limit=None) as room:
        for _ in range(5):
            room.join()
        tracemalloc.start()
        try:
            assert broadcast(room.sessions, message) == 5
            assert tracemalloc.get_traced_memory()[1] < kept + 1_000_000
        finally:
            tracemalloc.stop()


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


class Fragments:
    """A message in two fragments, between which a test does something."""

    def __init__(self, session: Any) -> None:
        self.half, self.rest = Event(), Event()
        self.sender = gevent.spawn(session.send, self._both())
        assert self.half.wait(PATIENCE)

    def _both(self) -> Any:
        yield b"a"
        self.half.set()
        self.rest.wait(PATIENCE)
        yield b"b"


def test_what_fragments_hold_up_is_bounded() -> None:
    """Also where it has no bytes."""
    for message in (b"", b"w" * 100):
        with Room(write_limit=2000) as room:
            peer = room.join()
            fragments = Fragments(room.sessions[0])
            taken = 0
            while broadcast(room.sessions, message):
                taken += 1
                assert taken < 1000
            fragments.rest.set()
            fragments.sender.get(timeout=PATIENCE)
            assert [peer.frame()[0] for _ in range(3)] == [0x02, 0x00, 0x80]
            assert [peer.frame() for _ in range(taken)] == [(0x82, message)] * taken
            assert broadcast(room.sessions, "and on") == 1
            assert peer.frame() == (0x81, b"and on")


def test_fragments_without_a_limit_hold_up_all() -> None:
    with Room(write_limit=None) as room:
        peer = room.join()
        fragments = Fragments(room.sessions[0])
        assert [broadcast(room.sessions, b"w" * 50_000) for _ in range(20)] == [1] * 20
        fragments.rest.set()
        fragments.sender.get(timeout=PATIENCE)
        assert [peer.frame()[0] for _ in range(3)] == [0x02, 0x00, 0x80]
        assert [peer.frame() for _ in range(20)] == [(0x82, b"w" * 50_000)] * 20


def test_a_close_within_fragments_drops_what_they_held_up() -> None:
    with Room() as room:
        peer = room.join()
        fragments = Fragments(room.sessions[0])
        assert broadcast(room.sessions, "held up") == 1
        room.sessions[0].start_close(4000)
        fragments.rest.set()
        with pytest.raises(geventws.ConnectionClosed):
            fragments.sender.get(timeout=PATIENCE)
        assert peer.frame() == (0x02, b"a")
        peer.closed_with(4000)


def test_who_yields_fragments_may_broadcast() -> None:
    """Where `send` would wait for itself; the message follows the fragments."""
    with Room() as room:
        peer = room.join()

        def fragments() -> Any:
            yield "a"
            assert broadcast(room.sessions, "all") == 1
            yield "b"

        room.sessions[0].send(fragments())
        assert [peer.frame(), peer.frame()] == [(0x01, b"a"), (0x00, b"b")]
        assert [peer.frame(), peer.frame()] == [(0x80, b""), (0x81, b"all")]


def test_an_extension_that_fails_behind_fragments_holds_up_nobody() -> None:
    def encode(frame: Frame) -> None:
        if frame.payload == b"bad":
            raise LookupError("bad")

    with Room(extensions=[Encoding(encode)]) as room:
        peer = room.join(Sec_WebSocket_Extensions="x-encoding")
        fragments = Fragments(room.sessions[0])
        assert broadcast(room.sessions, "bad") == 1
        waiting = gevent.spawn(room.sessions[0].send, "good")
        gevent.sleep(0)
        fragments.rest.set()
        with pytest.raises(LookupError):
            fragments.sender.get(timeout=PATIENCE)
        waiting.get(timeout=PATIENCE)
        assert [peer.frame()[0] for _ in range(4)] == [0x02, 0x00, 0x80, 0x81]


SESSIONS = 2000


@pytest.mark.parametrize("size", [10, 20_000])
def test_many_sessions_let_others_have_their_turn(noted: type[NotedTransport], size: int, many_files: None) -> None:
    """Steps between two turns of another greenlet are counted, each of which takes its time on any machine."""
    with Room() as room:
        peers = [room.join() for _ in range(SESSIONS)]
        ticking = Ticking(lambda: noted.all_calls)
        noted.slow = True
        assert broadcast(room.sessions, b"x" * size) == SESSIONS
        wait_until(lambda: not any(len(session.connection.output) for session in room.sessions))
        noted.slow = False
        ticking.stop()
        # The clock is looked at after 64 sessions, and there may be a slice before and one behind a turn.
        assert ticking.longest <= 2 * (STEPS_A_SLICE + 2 * 64)
        for peer in peers:
            assert peer.frame() == (0x82, b"x" * size)


@pytest.fixture
def many_files() -> Any:
    """Lets this process open the sockets of both ends."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * SESSIONS + 500
    if soft == resource.RLIM_INFINITY or soft >= needed:
        yield
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("size", [10, 5000])
def test_slow_encoders_let_others_have_their_turn(size: int) -> None:
    """As compression is, also of small messages."""
    encoded = 0

    def encode(frame: Frame) -> None:
        nonlocal encoded
        encoded += 1
        take_long()

    with Room(extensions=[Encoding(encode)]) as room:
        peers = [room.join(Sec_WebSocket_Extensions="x-encoding") for _ in range(500)]
        ticking = Ticking(lambda: encoded)
        assert broadcast(room.sessions, "x" * size) == 500
        ticking.stop()
        assert ticking.longest <= 2 * (STEPS_A_SLICE + 2 * 64)
        for peer in peers:
            assert peer.frame() == (0x81, b"x" * size)


def test_sessions_that_end_while_it_runs(noted: type[NotedTransport]) -> None:
    with Room() as room:
        peers = [room.join() for _ in range(200)]
        noted.slow = True
        ended = gevent.spawn(lambda: [session.terminate() for session in room.sessions[-10:]])
        # It takes 200 slow steps, which are some slices: the others have their turn before the last ten are reached.
        assert broadcast(room.sessions, b"x" * 5000) == 190
        ended.get(timeout=PATIENCE)
        for peer in peers[:-10]:
            assert peer.frame() == (0x82, b"x" * 5000)
        for peer in peers[-10:]:
            peer.ended()


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
        with pytest.raises(TypeError, match="message must be str or bytes-like"):
            broadcast([], message)

    def test_one_session(self) -> None:
        """Which is an iterable too, of what it receives."""
        for raw in (False, True):
            with Room(raw=raw) as room:
                room.join()
                with gevent.Timeout(PATIENCE), pytest.raises(TypeError, match="not a session"):
                    broadcast(room.sessions[0], "message")

    def test_nobody_gets_what_is_refused(self) -> None:
        with Room() as room:
            peer = room.join()
            with pytest.raises(TypeError, match="default sessions, not int"):
                broadcast([*room.sessions, 7], "message")  # type: ignore[list-item]
            broadcast(room.sessions, "next")
            assert peer.frame() == (0x81, b"next")

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
            with elsewhere(lambda: broadcast(room.sessions, "message")) as caught:
                pass
            assert isinstance(caught[0], UsageError)
            assert broadcast(room.sessions, "here") == 1
            assert peer.frame() == (0x81, b"here")


def test_two_threads_with_hubs_of_their_own() -> None:
    rounds = 100

    def play(name: str) -> None:
        with Room() as room:
            peers = [room.join() for _ in range(5)]
            for number in range(rounds):
                assert broadcast(room.sessions, f"{name} {number}") == 5
                for peer in peers:
                    assert peer.frame() == (0x81, f"{name} {number}".encode())

    with elsewhere(lambda: play("there")) as caught:
        play("here")
    assert not caught


def test_another_thread_has_it_called_in_that_of_the_sessions() -> None:
    with Room() as room:
        peer = room.join()
        hub = gevent.get_hub()

        with elsewhere(
            lambda: hub.loop.run_callback_threadsafe(gevent.spawn, broadcast, room.sessions, "from there")
        ) as caught:
            assert peer.frame() == (0x81, b"from there")
        assert not caught
