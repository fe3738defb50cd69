"""Sessions under TLS: the same core over another transport."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from gevent import socket
from gevent import ssl as gevent_ssl

from geventws import WebSockets
from tests.peer import PATIENCE, Peer, request, serving, wait_until
from tests.wire import BINARY, TEXT, close_frame, frame


class TLSPeer(Peer):
    """A peer under TLS."""

    def __init__(self, server: Any, authority: trustme.CA, behind: bytes = b"") -> None:
        context = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        plain = socket.create_connection(("127.0.0.1", server.server_port), timeout=PATIENCE)
        self.socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        self._read = b""
        self.socket.sendall(request("/", server.server_port) + behind)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Any]:
    app = WebSockets(max_frame_size=8 * 1024 * 1024)
    app.ends = []  # type: ignore[attr-defined]

    @app.route("/")
    def echo(session: Any) -> None:
        for message in session:
            session.send(message)
        app.ends.append(session.close_reason)  # type: ignore[attr-defined]

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(app, ssl_context=context) as running:
        yield running


def test_echo_and_close(server: Any, authority: trustme.CA) -> None:
    with TLSPeer(server, authority) as peer:
        peer.accepted()
        peer.send(frame(TEXT, b"Hello"))
        assert peer.frame() == (0x81, b"Hello")
        peer.send(close_frame(1000))
        peer.closed_with(1000)


def test_frames_that_come_with_the_handshake(server: Any, authority: trustme.CA) -> None:
    with TLSPeer(server, authority, behind=frame(TEXT, b"early") + frame(TEXT, b"bird")) as peer:
        peer.accepted()
        assert [peer.frame(), peer.frame()] == [(0x81, b"early"), (0x81, b"bird")]


def test_many_small_frames_in_one_record_and_then_silence(server: Any, authority: trustme.CA) -> None:
    """C1 row 8: what OpenSSL holds wakes no watcher."""
    with TLSPeer(server, authority) as peer:
        peer.accepted()
        peer.send(b"".join(frame(TEXT, str(i).encode()) for i in range(100)))
        assert [peer.frame() for _ in range(100)] == [(0x81, str(i).encode()) for i in range(100)]


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 65_536, 1_000_000, 5_000_000])
def test_large_messages(server: Any, authority: trustme.CA, size: int) -> None:
    payload = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    payload = payload[:size]
    with TLSPeer(server, authority) as peer:
        peer.accepted()
        peer.send(frame(BINARY, payload))
        assert peer.frame() == (0x82, payload)


def test_a_peer_that_vanishes(server: Any, authority: trustme.CA) -> None:
    with TLSPeer(server, authority) as peer:
        peer.accepted()
        peer.socket._sock.shutdown(2)
    wait_until(lambda: server.application.ends)
    assert server.application.ends[0].code == 1006


def test_a_violation_is_told(server: Any, authority: trustme.CA) -> None:
    with TLSPeer(server, authority) as peer:
        peer.accepted()
        peer.send(frame(3))
        first, payload = peer.frame()
        assert (first, payload[:2]) == (0x88, b"\x03\xea")
