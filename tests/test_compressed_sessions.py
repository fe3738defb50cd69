"""Sessions with permessage-deflate (RFC 7692), against a peer that has zlib and nothing else."""

from __future__ import annotations

import json
import zlib
from typing import Any

import gevent
import pytest

from geventws import CloseReason, Frame, Opcode, PermessageDeflate, WebSockets
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.wire import BINARY, CONTINUATION, PING, TEXT, close_frame, frame

OFFER = "permessage-deflate; client_max_window_bits"
TAIL = b"\x00\x00\xff\xff"


class DeflatingPeer(Peer):
    """A peer that compresses and inflates, with its contexts kept."""

    def __init__(self, server: Any, offer: str = OFFER) -> None:
        super().__init__(server, Sec_WebSocket_Extensions=offer)
        head = self.head()
        assert "Sec-WebSocket-Extensions: permessage-deflate" in head, head
        self._deflater = zlib.compressobj(wbits=-12)
        self._inflater = zlib.decompressobj(wbits=-15)

    def deflated(self, data: bytes) -> bytes:
        """``data`` as the payload of a compressed message."""
        return (self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def message(self) -> tuple[int, bytes]:
        """The next message, inflated where RSV1 says so, as (opcode, payload)."""
        first, payload = self.frame()
        opcode, compressed = first & 0x0F, first & 0x40
        while not first & 0x80:
            first, more = self.frame()
            assert first & 0x7F == 0
            payload += more
        if compressed:
            payload = self._inflater.decompress(payload + TAIL)
        return opcode, payload


def echo_app(**settings: Any) -> WebSockets:
    app = WebSockets(extensions=[PermessageDeflate(min_size=0)], **settings)
    app.ends = []  # type: ignore[attr-defined]

    @app.route("/")
    def echo(session: Any) -> None:
        for message in session:
            session.send(message)
        app.ends.append(session.close_reason)  # type: ignore[attr-defined]

    return app


def test_messages_with_contexts() -> None:
    with serving(echo_app()) as server, DeflatingPeer(server) as peer:
        for i in range(50):
            text = json.dumps({"id": i, "text": "again and again " * (i % 7)}).encode()
            peer.send(frame(TEXT, peer.deflated(text), rsv=4))
            assert peer.message() == (TEXT, text)
            peer.send(frame(BINARY, b"not compressed"))
            assert peer.message() == (BINARY, b"not compressed")


def test_fragments_of_a_compressed_message_with_a_ping_between() -> None:
    with serving(echo_app()) as server, DeflatingPeer(server) as peer:
        payload = peer.deflated(b"Hello " * 1000)
        parts = [payload[:1], payload[1:9], b"", payload[9:]]
        peer.send(
            frame(TEXT, parts[0], rsv=4, fin=False) + frame(PING, b"p") + frame(CONTINUATION, parts[1], fin=False)
        )
        peer.send(frame(CONTINUATION, parts[2], fin=False) + frame(CONTINUATION, parts[3]))
        assert peer.frame() == (0x8A, b"p")
        assert peer.message() == (TEXT, b"Hello " * 1000)


def test_an_outgoing_message_in_fragments() -> None:
    app = WebSockets(extensions=[PermessageDeflate()])

    @app.route("/")
    def handler(session: Any) -> None:
        session.send(["Hello ", "", "fragments " * 100])
        session.send("Hello fragments " * 100)

    with serving(app) as server, DeflatingPeer(server) as peer:
        assert peer.message() == (TEXT, b"Hello " + b"fragments " * 100)
        assert peer.message() == (TEXT, b"Hello fragments " * 100)
        peer.closed_with(1000)


@pytest.mark.parametrize("size", [*range(0, 300, 7), *(2**k + d for k in range(7, 17) for d in (-1, 0, 1))])
def test_every_size_around_the_edges_of_buffers(size: int) -> None:
    """A2 row 25."""
    data = bytes(i * 31 % 251 for i in range(size))
    with serving(echo_app()) as server, DeflatingPeer(server) as peer:
        peer.send(frame(BINARY, peer.deflated(data), rsv=4))
        assert peer.message() == (BINARY, data)


def test_a_killed_sender_leaves_the_contexts_in_step() -> None:
    """A2 row 27."""
    app = WebSockets(extensions=[PermessageDeflate()], write_limit=1000)
    texts = [f"message {i} ".encode() * 3000 for i in range(20)]

    @app.route("/")
    def handler(session: Any) -> None:
        session.accept()
        senders = [gevent.spawn(session.send, text) for text in texts]
        for number, greenlet in enumerate(senders):
            gevent.sleep(0)
            if number % 2:
                greenlet.kill()
        gevent.joinall(senders)
        session.send(b"the last of all " * 10)

    with serving(app) as server, DeflatingPeer(server) as peer:
        got = []
        while (message := peer.message())[1] != b"the last of all " * 10:
            got.append(message[1])
        assert all(text in texts for text in got)
        assert len(got) == len(set(got)) >= len(texts) // 2
        peer.closed_with(1000)


def test_a_bomb_is_1009() -> None:
    """A1 row 1: told as it inflates."""
    app = echo_app(max_frame_size=1024 * 1024)
    with serving(app) as server, DeflatingPeer(server) as peer:
        bomb = peer.deflated(bytes(64 * 1024 * 1024))
        assert len(bomb) < 1024 * 1024
        peer.send(frame(BINARY, bomb, rsv=4))
        peer.closed_with(1009)
    wait_until(lambda: app.ends)  # type: ignore[attr-defined]
    assert app.ends[0].code == 1009  # type: ignore[attr-defined]


def test_a_bomb_in_fragments_is_1009() -> None:
    with serving(echo_app(max_frame_size=100_000)) as server, DeflatingPeer(server) as peer:
        bomb = peer.deflated(bytes(10_000_000))
        wire = b"".join(
            frame(CONTINUATION if i else BINARY, bomb[i : i + 50], rsv=0 if i else 4, fin=False)
            for i in range(0, len(bomb), 50)
        )
        peer.send(wire)
        peer.closed_with(1009)


@pytest.mark.parametrize(
    ("wire", "codes"),
    [
        (frame(TEXT, b"\xff" * 20, rsv=4), (1002, 1007)),
        (frame(TEXT, b"\x00\x00\x00\xff\xff", rsv=4) + frame(PING, b"", rsv=4), (1002, 1007)),
        (frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=4), (1002,)),
        (frame(TEXT, b"a", rsv=2), (1002,)),
    ],
)
def test_violations(wire: bytes, codes: tuple[int, ...]) -> None:
    """A1 row 2, A2 row 20."""
    with serving(echo_app()) as server, DeflatingPeer(server) as peer:
        peer.send(wire)
        while (got := peer.frame())[0] != 0x88:
            pass
        assert int.from_bytes(got[1][:2], "big") in codes


def test_invalid_utf8_in_a_compressed_text_is_1007() -> None:
    """A2 row 22."""
    with serving(echo_app()) as server, DeflatingPeer(server) as peer:
        peer.send(frame(TEXT, peer.deflated(b"abc\xed\xa0\x80"), rsv=4))
        peer.closed_with(1007)


def test_a_raw_session_gets_inflated_frames_where_it_negotiates() -> None:
    app = WebSockets(extensions=[PermessageDeflate(min_size=0)])
    got = []

    @app.route("/", raw=True, negotiate_extensions=True)
    def handler(session: Any) -> None:
        for message in session:
            got.append(message)
            if message.opcode == Opcode.CLOSE:
                session.send(Frame.close())
            else:
                session.send(message)

    with serving(app) as server, DeflatingPeer(server) as peer:
        peer.send(frame(TEXT, peer.deflated(b"raw " * 100), rsv=4))
        assert peer.message() == (TEXT, b"raw " * 100)
        peer.send(close_frame())
        peer.closed_with(1000)
    wait_until(lambda: len(got) == 2)
    assert got == [Frame(Opcode.TEXT, b"raw " * 100), Frame(Opcode.CLOSE, b"\x03\xe8")]


def test_without_an_offer_nothing_is_compressed() -> None:
    app = echo_app()
    with serving(app) as server, Peer(server) as peer:
        assert "Extensions" not in peer.head()
        peer.send(frame(TEXT, b"plain " * 100) + close_frame())
        assert peer.frame() == (0x81, b"plain " * 100)
        peer.closed_with(1000)
    with gevent.Timeout(PATIENCE):
        wait_until(lambda: app.ends)  # type: ignore[attr-defined]
    assert app.ends == [CloseReason(1000)]  # type: ignore[attr-defined]


def test_noise_of_the_limit_passes_though_deflate_makes_it_longer() -> None:
    noise = bytes((i * 7919 + (i >> 3) * 104729) % 256 for i in range(100_000))
    incompressible = zlib.compressobj(0, zlib.DEFLATED, -15)
    payload = (incompressible.compress(noise) + incompressible.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(payload) > len(noise)
    with serving(echo_app(max_frame_size=len(noise))) as server, DeflatingPeer(server) as peer:
        peer.send(frame(BINARY, payload, rsv=4))
        assert peer.message() == (BINARY, noise)
        peer.send(frame(BINARY, noise + b"x"))
        peer.closed_with(1009)
