"""Sessions under TLS: the same core over another transport."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import trustme
from gevent import socket
from gevent import ssl as gevent_ssl
from gevent.os import make_nonblocking, nb_read, nb_write

from geventws import WebSockets
from geventws.protocol.buffer import Buffer
from geventws.tls import TLSTransport, transport_of
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


class RecordPeer:
    """A peer that makes records in memory, so that a test can cut and join them."""

    def __init__(self, sock: Any, context: ssl.SSLContext, **options: Any) -> None:
        self.socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, **options)

    def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self.socket.sendall(self._outgoing.read())
            if done:
                return
            self._incoming.write(self.socket.recv(65536))

    def records(self, data: bytes) -> bytes:
        """``data`` as it goes over the wire."""
        self.tls.write(data)
        return self._outgoing.read()

    def end_output(self) -> bytes:
        """A close_notify as it goes over the wire."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                data += self.tls.read(count - len(data))
            except ssl.SSLWantReadError:
                self._incoming.write(self.socket.recv(65536))
        return data


class Line:
    """A transport with its peer, and no hub between them."""

    def __init__(self, authority: trustme.CA, client: bool = False) -> None:
        serving = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(serving)
        asking = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(asking)
        roles: list[Any] = [(serving, {"server_side": True}), (asking, {"server_hostname": "127.0.0.1"})]
        (ours, our_options), (theirs, their_options) = reversed(roles) if client else roles
        listener = socket.create_server(("127.0.0.1", 0))
        self.peer = RecordPeer(
            socket.create_connection(listener.getsockname(), timeout=PATIENCE), theirs, **their_options
        )
        accepted, _ = listener.accept()
        listener.close()
        shaking = gevent.spawn(self.peer.shake_hands)
        self.socket = ours.wrap_socket(accepted, **our_options)
        shaking.get(timeout=PATIENCE)
        self.transport = transport_of(self.socket)
        self.target = bytearray(65536)

    def close(self) -> None:
        self.transport.close()
        self.peer.socket.close()

    def receive(self) -> bytes | None:
        """What is here now; None for nothing."""
        count = self.transport.receive(self.target)
        return None if count < 0 else bytes(self.target[:count])

    def arrives(self) -> bytes:
        """What comes next; empty at the end."""
        with gevent.Timeout(PATIENCE):
            while (data := self.receive()) is None:
                socket.wait_read(self.socket.fileno())
        return data


@pytest.fixture
def line(authority: trustme.CA) -> Iterator[Line]:
    made = Line(authority)
    assert type(made.transport) is TLSTransport
    yield made
    made.close()


def arrived(line: Line) -> None:
    """Waits until what was sent last is here."""
    socket.wait_read(line.socket.fileno(), timeout=PATIENCE)


def test_a_transport_that_has_nothing_yet(line: Line) -> None:
    assert not line.transport.keeps_input
    assert line.receive() is None
    assert not line.transport.keeps_input
    assert not line.transport.receiving_waits_to_write
    assert line.transport.received == 0


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 100, -1])
def test_a_record_in_two_receipts(line: Line, cut: int) -> None:
    record = line.peer.records(b"x" * 500)
    line.peer.socket.sendall(record[:cut])
    arrived(line)
    assert line.receive() is None
    line.peer.socket.sendall(record[cut:])
    assert line.arrives() == b"x" * 500
    assert not line.transport.keeps_input
    assert line.receive() is None


def test_a_record_byte_by_byte(line: Line) -> None:
    for byte in line.peer.records(b"crumbs"):
        assert line.receive() is None
        line.peer.socket.sendall(bytes([byte]))
        arrived(line)
    assert line.arrives() == b"crumbs"


def test_several_records_in_one_receipt_and_a_part_of_the_next(line: Line) -> None:
    pieces = [b"one", b"two", b"three"]
    whole, part = b"".join(map(line.peer.records, pieces)), line.peer.records(b"four")
    line.peer.socket.sendall(whole + part[:9])
    for piece in pieces:
        # The next one is still with the kernel, where the watcher sees it.
        assert line.arrives() == piece
        assert not line.transport.keeps_input
    arrived(line)
    assert line.receive() is None
    line.peer.socket.sendall(part[9:])
    assert line.arrives() == b"four"


def test_a_record_that_is_larger_than_the_room(line: Line) -> None:
    line.peer.socket.sendall(line.peer.records(b"0123456789"))
    line.target = bytearray(4)
    assert line.arrives() == b"0123"
    assert line.transport.keeps_input
    assert line.receive() == b"4567"
    assert line.transport.keeps_input
    assert line.receive() == b"89"
    assert not line.transport.keeps_input
    assert line.receive() is None
    assert line.transport.received == 10


def test_a_record_that_just_fits(line: Line) -> None:
    line.peer.socket.sendall(line.peer.records(b"0123"))
    line.target = bytearray(4)
    assert line.arrives() == b"0123"
    assert not line.transport.keeps_input


def test_what_the_reader_of_the_head_left_of_its_record(line: Line) -> None:
    line.peer.socket.sendall(line.peer.records(b"head and frame"))
    assert line.socket.recv(4) == b"head"
    line.transport = transport_of(line.socket)
    assert line.transport.keeps_input
    assert line.receive() == b" and frame"
    assert not line.transport.keeps_input


def test_full_records_one_after_the_other(line: Line) -> None:
    """Behind a full record there is often another, for which the hub is not to be asked."""
    data = os.urandom(3 * 16384 + 1)
    sending = gevent.spawn(line.peer.socket.sendall, line.peer.records(data))
    taken = b""
    while len(taken) < len(data):
        piece = line.arrives()
        assert line.transport.keeps_input == (len(piece) == 16384)
        taken += piece
    assert taken == data
    sending.get(timeout=PATIENCE)


def test_a_close_notify_ends_input_and_leaves_output(line: Line) -> None:
    line.peer.socket.sendall(line.peer.records(b"last words") + line.peer.end_output())
    assert line.arrives() == b"last words"
    assert line.arrives() == b""
    output = Buffer()
    output.append(b"and an answer")
    assert line.transport.send(output)
    assert line.transport.sent == 13


def test_an_end_without_a_close_notify(line: Line) -> None:
    line.peer.socket.shutdown(1)
    assert line.arrives() == b""


def test_an_altered_record_is_an_error(line: Line) -> None:
    record = bytearray(line.peer.records(b"x" * 500))
    record[100] ^= 1
    line.peer.socket.sendall(record)
    with pytest.raises(OSError, match=r"BAD_RECORD_MAC|DECRYPTION_FAILED"):
        line.arrives()


def test_a_large_output_of_which_the_socket_takes_some(line: Line) -> None:
    data = os.urandom(8 * 1024 * 1024)
    output = Buffer()
    output.append(data)
    assert not line.transport.send(output)
    assert not line.transport.sending_waits_to_read
    assert 0 < line.transport.sent == len(data) - len(output)
    taking = gevent.spawn(line.peer.receive, len(data))
    with gevent.Timeout(PATIENCE):
        while not line.transport.send(output):
            socket.wait_write(line.socket.fileno())
        assert taking.get() == data
    assert line.transport.sent == len(data)


def test_tickets_are_no_input(authority: trustme.CA) -> None:
    """They come to a client behind the handshake of TLS 1.3 (RFC 8446 4.6.1)."""
    line = Line(authority, client=True)
    assert line.socket.version() == "TLSv1.3"
    arrived(line)
    assert line.receive() is None
    line.peer.socket.sendall(line.peer.records(b"input"))
    assert line.arrives() == b"input"
    line.close()


class FullTLS:
    """OpenSSL's object where an answer of its own does not get through."""

    def read(self, size: int, target: bytearray) -> int:
        raise ssl.SSLWantWriteError

    def write(self, data: bytes) -> int:
        raise ssl.SSLWantWriteError

    def pending(self) -> int:
        return 0


def test_an_answer_that_does_not_get_through_is_tried_again(line: Line) -> None:
    """Also where no further input comes."""
    line.socket._sslobj = FullTLS()
    transport = TLSTransport(line.socket)
    assert transport.receive(line.target) == -1
    assert transport.receiving_waits_to_write
    assert transport.keeps_input


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl is missing")
def test_keys_are_renewed_between_messages(server: Any) -> None:
    """RFC 8446 4.6.3; told by K, s_client renews its keys and demands the same of us, told by k it demands nothing."""
    # Not gevent's own Popen: on libuv it would wait for the children of all later tests.
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{server.server_port}", "-tls1_3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    make_nonblocking(client.stdin.fileno())
    make_nonblocking(client.stdout.fileno())
    output = b""

    def say(data: bytes, answer: bytes) -> None:
        """Sends ``data``, and waits until ``answer`` has come."""
        nonlocal output
        while data:
            data = data[nb_write(client.stdin.fileno(), data) :]
        while answer not in output:
            piece = nb_read(client.stdout.fileno(), 65536)
            assert piece, output
            output += piece
        output = output.partition(answer)[2]

    try:
        with gevent.Timeout(PATIENCE):
            say(request("/", server.server_port), b"HTTP/1.1 101")
            for number in range(3):
                text = b"message %d" % number
                say(b"K\n", b"KEYUPDATE")
                say(frame(TEXT, text, key=bytes(4)), frame(TEXT, text, key=None))
                say(b"k\n", b"KEYUPDATE")
                say(frame(TEXT, text * 9000, key=bytes(4)), frame(TEXT, text * 9000, key=None))
    finally:
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
