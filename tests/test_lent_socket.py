"""Apps that make the WebSocket handshake themselves on a socket in the environ, as those on simple-websocket do."""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest
from gevent.event import Event

import geventws
from geventws.lent_socket import LentSocket, _Frames
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.rigs import Certificates, gunicorn, offer, standalone
from tests.rigs import Peer as Client
from tests.wire import BINARY, CLOSE, PING, TEXT, close_frame, frame, server_frames, splits

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def lent(environ: dict[str, Any]) -> Any:
    """The socket, by either server's name for it."""
    sock = environ.get("werkzeug.socket")
    if sock is None:
        sock = environ["wsgi.input"].raw._sock.dup()
    return sock


def said(text: str) -> bytes:
    """A text message as a server sends it."""
    return frame(TEXT, text.encode(), key=None)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Answers in HTTP at /page; elsewhere makes the handshake, says what the path has, and does what it says."""
    if environ["PATH_INFO"] == "/page":
        lent(environ).fileno()
        start_response("200 OK", [("Content-Length", "4")])
        return [b"page"]
    sock = lent(environ)
    if environ["PATH_INFO"] == "/other":
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes")
        return []
    sock.send(SWITCHED)
    path = environ["PATH_INFO"].removeprefix("/")
    sock.sendall(said(path))
    if path == "raises":
        raise ValueError("the app's own fault")
    if path == "stops" and "gunicorn.socket" in environ:
        raise StopIteration
    if path == "fails":
        start_response("500 Internal Server Error", [])
        return [b"nothing of it goes out"]
    if path == "closes":
        sock.send(close_frame(4000, key=None))
        sock.close()
    if path == "echo":
        view = memoryview(bytearray(1024))
        while size := sock.recv_into(view):
            if view[0] in (0x80 | PING, 0x80 | CLOSE):
                break
            sock.send(bytes(view[:size]))
    start_response("200 OK", [])
    return [b"nothing of it goes out"]


class Served(NamedTuple):
    """A server of ``app``: where, and what it logged."""

    connect: Callable[[], Client]
    log: Callable[[], str]
    accesses: Callable[[], list[str]]


@pytest.fixture(scope="module", params=["standalone", "gunicorn", "standalone-tls", "gunicorn-tls"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp(request.param)
    kind, _, tls = request.param.partition("-")
    certificates = Certificates(directory) if tls else None
    files = {"certfile": certificates.certfile, "keyfile": certificates.keyfile} if certificates else {}
    context = certificates.client if certificates else None
    if kind == "standalone":
        with standalone(app, **files) as server:
            yield Served(lambda: Client(server.address, context), lambda: "\n".join(server.errors()), server.log)
    else:
        arguments = [f"--{name}={value}" for name, value in files.items()]
        with gunicorn(directory, *arguments, application="tests.test_lent_socket:app") as running:
            yield Served(lambda: Client(running.address, context), running.log, lambda: running.lines("HTTP/1.1"))


@pytest.mark.parametrize(
    ("path", "code"), [("returns", 1000), ("raises", 1011), ("stops", 1000), ("fails", 1011), ("closes", 4000)]
)
def test_the_end_of_the_app_is_a_close_frame(served: Served, path: str, code: int) -> None:
    with served.connect() as peer:
        peer.send(offer(f"/{path}"))
        assert peer.until(b"\r\n\r\n") == SWITCHED
        expected = said(path) + close_frame(code, key=None)
        assert peer.exactly(len(expected)) == expected
        peer.send(close_frame(code))
        assert peer.rest() == b""
    wait_until(lambda: any(f"/{path} " in line and " 101 " in line for line in served.accesses()))


def test_only_what_the_app_raised_is_logged(served: Served) -> None:
    log = served.log()
    assert log.count("Traceback") == log.count("ValueError: the app's own fault")


def test_an_app_that_only_looks_at_it_answers_in_http(served: Served) -> None:
    with served.connect() as peer:
        assert peer.ask(offer("/page")) == 200
        assert peer.body == b"page"
        assert peer.rest() == b""


def test_what_is_no_101_is_sent_as_it_is(served: Served) -> None:
    with served.connect() as peer:
        peer.send(offer("/other"))
        assert peer.rest() == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes"


def test_bytes_behind_the_handshake_reach_the_app(served: Served) -> None:
    with served.connect() as peer:
        peer.send(offer("/echo") + said("early"))
        expected = SWITCHED + said("echo") + said("early")
        assert peer.exactly(len(expected)) == expected
        peer.send(frame(PING))
        assert peer.exactly(4) == close_frame(1000, key=None)
        peer.send(close_frame())
        assert peer.rest() == b""


def test_a_peer_that_just_goes(served: Served) -> None:
    before = len(served.accesses())
    with served.connect() as peer:
        peer.send(offer("/echo"))
        peer.exactly(len(SWITCHED + said("echo")))
    wait_until(lambda: len(served.accesses()) > before)


def test_a_stopping_worker_closes_it(tmp_path: Path) -> None:
    with gunicorn(tmp_path, application="tests.test_lent_socket:app") as running, Client(running.address) as peer:
        peer.send(offer("/echo"))
        peer.exactly(len(SWITCHED + said("echo")))
        running.signal(signal.SIGTERM)
        assert peer.exactly(4) == close_frame(1001, key=None)
        peer.send(close_frame(1001))
        assert peer.rest() == b""
        running.ended()
        assert "Traceback" not in running.log()


class Speaker:
    """An app that sends what a test tells it, piece by piece, in a server of this process."""

    def __init__(self) -> None:
        self.sock: Any = None
        self.release = Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.sock = lent(environ)
        self.sock.send(SWITCHED)
        self.release.wait(PATIENCE)
        return []


def test_a_stop_waits_for_the_end_of_a_frame_and_nothing_follows() -> None:
    speaker = Speaker()
    with serving(speaker) as server, Peer(server) as peer:
        assert peer.head().startswith("HTTP/1.1 101 ")
        message = said("m" * 300)
        speaker.sock.send(message[:2])
        speaker.sock.send(message[2:100])
        stop = gevent.spawn(server.stop, PATIENCE)
        wait_until(lambda: not server.started)
        # The Close frame is owed now, and no frame is begun any more once it is out.
        (websocket,) = server.sessions
        wait_until(lambda: websocket._owed is not None)
        assert not websocket._turn.locked()
        speaker.sock.send(message[100:])
        assert speaker.sock.send(said("too late")) == len(said("too late"))
        speaker.release.set()
        assert peer.frame() == (0x81, b"m" * 300)
        peer.closed_with(1001)
        stop.get()


def test_a_stop_ends_what_does_not_answer() -> None:
    speaker = Speaker()
    with serving(speaker) as server, Peer(server) as peer:
        assert peer.head().startswith("HTTP/1.1 101 ")
        reader = gevent.spawn(lambda: speaker.sock.recv(100))
        gevent.spawn(server.stop, 0.2)
        assert reader.get(timeout=PATIENCE) == b""
        assert speaker.sock.recv(100) == b""
        (websocket,) = server.sessions
        assert websocket.wait_closed(PATIENCE)
        speaker.release.set()
        assert peer.rest() == close_frame(1001, key=None)


def test_what_greenlets_send_does_not_mix() -> None:
    speaker = Speaker()
    messages = [frame(BINARY, bytes([number]) * 300_000, key=None) for number in range(8)]
    with serving(speaker) as server, Peer(server) as peer:
        assert peer.head().startswith("HTTP/1.1 101 ")
        senders = [gevent.spawn(speaker.sock.send, message) for message in messages]
        received = [peer.frame() for _ in messages]
        assert received == [(0x82, message[10:]) for message in messages]
        assert [sender.get() for sender in senders] == [len(message) for message in messages]
        speaker.release.set()
        peer.closed_with(1000)


def test_nothing_follows_a_frame_that_was_cut_off() -> None:
    speaker = Speaker()
    with serving(speaker) as server, Peer(server) as peer:
        assert peer.head().startswith("HTTP/1.1 101 ")
        sender = gevent.spawn(speaker.sock.send, frame(BINARY, b"x" * 20_000_000, key=None))
        wait_until(lambda: peer.socket.recv(1))
        sender.kill()
        speaker.release.set()
        assert set(peer.rest()[20:]) == {ord("x")}


def test_other_uses_are_those_of_a_socket() -> None:
    speaker = Speaker()
    with serving(speaker) as server, Peer(server) as peer:
        assert peer.head().startswith("HTTP/1.1 101 ")
        assert speaker.sock.getpeername() == peer.socket.getsockname()
        speaker.sock.settimeout(0.001)
        with pytest.raises(TimeoutError):
            speaker.sock.recv(10)
        peer.send(b"something")
        speaker.sock.settimeout(None)
        assert speaker.sock.recv(4) == b"some"
        assert speaker.sock.recv(100) == b"thing"
        # With a reset, which the end must pass over.
        peer.reset()
        with pytest.raises(OSError, match="reset"):
            speaker.sock.recv(100)
        assert speaker.sock.recv(100) == b""
        speaker.sock.close()
        with pytest.raises(OSError, match=r"closed|descriptor"):
            speaker.sock.send(said("gone"))
        speaker.release.set()


def test_nothing_of_it_stays_with_sessions_of_ours() -> None:
    app = geventws.WebSockets()
    kept: list[str] = []

    @app.route("/")
    def look(session: geventws.DefaultWebSocketServerSession) -> None:
        session.accept()
        sockets = [one for one in gc.get_objects() if type(one) is LentSocket]
        kept.extend("a socket" for one in sockets if one._upgrade is session.call._upgrade)
        kept.extend(key for key in session.environ if key.endswith(".socket"))

    with serving(app) as server, Peer(server) as peer:
        peer.accepted().closed_with(1000)
    assert kept == []


# -- Where frames end --------------------------------------------------------------------------------------------------

FRAMES = [
    said(""),
    frame(BINARY, b"b" * 125, key=None),
    frame(BINARY, b"c" * 126, key=None),
    frame(TEXT, b"d" * 70000, key=None),
    frame(TEXT, b"masked"),
    frame(PING, key=None),
    frame(CLOSE, key=None),
    close_frame(4001, b"why", key=None),
]


@pytest.mark.parametrize("frames", [FRAMES, FRAMES[:6], FRAMES[:6] + FRAMES[7:]])
def test_frames_are_followed_however_they_are_cut(frames: list[bytes]) -> None:
    data = SWITCHED + b"".join(frames)
    ends = {len(SWITCHED) + sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    closes = [payload for first, payload in server_frames(b"".join(frames[:4] + frames[5:])) if first == 0x88]
    code = None if not closes else int.from_bytes(closes[0][:2], "big") or 1005
    for name, pieces in [*splits(data), ("one by one", [data[i : i + 1] for i in range(len(data))])]:
        sent = _Frames(behind_response=True)
        position = 0
        for piece in pieces:
            sent.feed(piece)
            position += len(piece)
            assert sent.ends_here == (position in ends), (name, position)
        assert sent.close_code == code, name


def test_what_is_no_101_has_no_frames() -> None:
    source = random.Random(6455)
    for data in (b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n\r\n", source.randbytes(70000)):
        sent = _Frames(behind_response=True)
        sent.feed(data)
        sent.feed(close_frame(key=None))
        assert not sent.ends_here
        assert not sent.follow
        assert sent.close_code is None
