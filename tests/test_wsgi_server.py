"""The standalone server: strict heads, deadlines, logs, stopping, TLS."""

from __future__ import annotations

import io
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest

from geventws.accepting import Acceptor
from geventws.http_head import HeadBuffer, HeadError, RequestHead, parse_head
from geventws.peer_log import PeerLog, escape
from geventws.server import WSGIServer, _make_context
from tests.rigs import (
    DEADLINE,
    Certificates,
    DeafSession,
    Peer,
    Standalone,
    app,
    eventually,
    get,
    offer,
    request,
    respond,
    standalone,
    take,
)

# -- Heads, sans I/O ---------------------------------------------------------------------------------------------------


def head(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    """A head with a Host field and ``fields``."""
    return "\r\n".join([line, "Host: a", *fields, "", ""]).encode("latin-1")


def read(data: bytes, size: int | None = None) -> RequestHead:
    """Reads a head that is fed in pieces of ``size`` bytes."""
    buffer = HeadBuffer()
    for start in range(0, len(data), size or len(data)):
        buffer.feed(data[start : start + (size or len(data))])
        found = buffer.take_head()
        if found is not None:
            return parse_head(found)
    raise AssertionError("the head is not whole")


LONG = "x" * 8192

REFUSED = {
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    "bare LF before the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    "CR CR LF": (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
    "folded field": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "folded field with a colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb: c\r\n\r\n", 400),
    "folded request line": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "NUL": (head("X: a\0b"), 400),
    "control character": (head("X: a\x0bb"), 400),
    "DEL": (head("X: a\x7fb"), 400),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space before the colon": (head("X : a"), 400),
    "empty name": (head(": a"), 400),
    "name that is no token": (head("X(y): a"), 400),
    "name that is not ASCII": (head("X\xe9: a"), 400),
    "no colon": (head("X"), 400),
    "both lengths": (head("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
    "two lengths": (head("Content-Length: 5", "Content-Length: 5"), 400),
    "list of lengths": (head("Content-Length: 5, 5"), 400),
    "signed length": (head("Content-Length: +5"), 400),
    "negative length": (head("Content-Length: -5"), 400),
    "hexadecimal length": (head("Content-Length: 0x5"), 400),
    "length with an underscore": (head("Content-Length: 1_0"), 400),
    "length in other digits": (head("Content-Length: \xb2"), 400),
    "empty length": (head("Content-Length:"), 400),
    "huge length": (head("Content-Length: " + "9" * 30), 400),
    "two codings": (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
    "chunked twice": (head("Transfer-Encoding: chunked, chunked"), 501),
    "other coding": (head("Transfer-Encoding: gzip, chunked"), 501),
    "coding in HTTP/1.0": (head("Transfer-Encoding: chunked", line="POST / HTTP/1.0"), 400),
    "two hosts": (head("Host: b"), 400),
    "same host twice": (head("host: a"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "malformed host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "list of hosts": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "two keys": (head("Sec-WebSocket-Key: a", "Sec-WebSocket-Key: a"), 400),
    "two versions": (head("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 12"), 400),
    "two origins": (head("Origin: a", "Origin: b"), 400),
    "two content types": (head("Content-Type: a", "Content-Type: b"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/0.9 by name": (head(line="GET / HTTP/0.9"), 505),
    "HTTP/2": (head(line="GET / HTTP/2.0"), 505),
    "HTTP/1.2": (head(line="GET / HTTP/1.2"), 505),
    "no version": (head(line="GET / HTTP"), 400),
    "small version": (head(line="GET / http/1.1"), 400),
    "two spaces": (head(line="GET  / HTTP/1.1"), 400),
    "space in the target": (head(line="GET /a b HTTP/1.1"), 400),
    "tab in the request line": (head(line="GET\t/ HTTP/1.1"), 400),
    "space behind the version": (head(line="GET / HTTP/1.1 "), 400),
    "method that is no token": (head(line="G(T / HTTP/1.1"), 400),
    "target that is not ASCII": (head(line="GET /\xe9 HTTP/1.1"), 400),
    "fragment": (head(line="GET /#a HTTP/1.1"), 400),
    "relative target": (head(line="GET a HTTP/1.1"), 400),
    "asterisk": (head(line="GET * HTTP/1.1"), 400),
    "authority": (head(line="CONNECT a:80 HTTP/1.1"), 400),
    "user in the target": (head(line="GET http://u@a/ HTTP/1.1"), 400),
    "two empty lines first": (b"\r\n\r\n" + head(), 400),
    "101 fields": (head(*[f"X-{number}: a" for number in range(100)]), 431),
    "long request line": (head(line=f"GET /{LONG} HTTP/1.1"), 414),
    "long field": (head(f"X: {LONG}"), 431),
    "long head": (head(*[f"X-{number}: {LONG[:8000]}" for number in range(9)]), 431),
}


@pytest.mark.parametrize("size", [None, 1], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_is_not_allowed_is_refused(name: str, size: int | None) -> None:
    data, status = REFUSED[name]
    with pytest.raises(HeadError) as refused:
        read(data, size)
    assert refused.value.status == status


@pytest.mark.parametrize("size", range(1, 60))
def test_a_head_may_be_cut_anywhere(size: int) -> None:
    data = head("Upgrade: websocket", "X-Y: \t spaces within and around \t ", "Cookie: a=1", line="GET /a?b=c HTTP/1.1")
    found = read(data, size)
    assert found == read(data)
    assert found.fields == {
        "HTTP_HOST": "a",
        "HTTP_UPGRADE": "websocket",
        "HTTP_X_Y": "spaces within and around",
        "HTTP_COOKIE": "a=1",
    }


def test_what_is_at_the_limits_is_read() -> None:
    line = f"GET /{LONG[: 8192 - len('GET / HTTP/1.1')]} HTTP/1.1"
    assert len(line) == 8192
    found = read(head(f"X: {LONG[: 8192 - 3]}", *[f"X-{number}: a" for number in range(98)], line=line))
    assert len(found.fields) == 100
    fill = [f"X-{number}: {LONG[:8000]}" for number in range(8)]
    short = 64 * 1024 - len(head(*fill)) + 4
    assert len(read(head(*fill, f"Y: {LONG[: short - 5]}")).fields) == 10
    with pytest.raises(HeadError, match="431"):
        read(head(*fill, f"Y: {LONG[: short - 4]}"))


@pytest.mark.parametrize(
    ("start", "status"), [(b"GET /" + b"x" * 8200, 414), (b"GET / HTTP/1.1\r\nX: " + b"x" * 8200, 431)]
)
def test_a_line_that_never_ends_is_refused_early(start: bytes, status: int) -> None:
    buffer = HeadBuffer()
    buffer.feed(start)
    with pytest.raises(HeadError) as refused:
        buffer.take_head()
    assert refused.value.status == status


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024])
def test_a_head_of_the_limit_passes_wherever_its_end_is_cut(size: int, cut: int) -> None:
    """The end itself doesn't count, and no more so while only a part of it has come."""
    data = head(*["X: " + "a" * 8000] * 8, "Y: ")
    data = data[:-4] + b"b" * (size + 4 - len(data)) + data[-4:]
    buffer = HeadBuffer()
    buffer.feed(data[: len(data) - cut])
    if cut:
        assert buffer.take_head() is None
        buffer.feed(data[len(data) - cut :])
    assert buffer.take_head() == data[:-4]


#: Heads of one line that has the size asked for, or of many lines.
LONG_HEADS = {
    "spaces in a value": lambda size: head("X: " + " " * size + "a"),
    "commas": lambda size: head("X: " + "," * size),
    "colons": lambda size: head("X" + ":" * size),
    "a name": lambda size: head("X" * size + ": a"),
    "a host": lambda size: head(line="GET / HTTP/1.1").replace(b"Host: a", b"Host: " + b"a." * (size // 2) + b"/"),
    "a target": lambda size: head(line=f"GET /{'%' * size} HTTP/1.1"),
    "an absolute target": lambda size: head(line=f"GET http://{'a?' * (size // 2)} HTTP/1.1"),
    "slashes": lambda size: head(line=f"GET http:{'/' * size} HTTP/1.1"),
    "a method": lambda size: head(line="G" * size + " / HTTP/1.1"),
    "fields": lambda size: head(*["X-Y: a"] * (size // 8)),
    "fields of other names": lambda size: head(*[f"X-{number}: a" for number in range(size // 10)]),
    "CRs": lambda size: head("X: " + "\r" * size),
}


@pytest.mark.parametrize("name", LONG_HEADS)
def test_reading_a_head_takes_linear_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3 row 32: without its limits, eight times the head takes no more than eight times as long.

    What is quadratic takes 64 times as long; 24 leaves room for a busy machine.
    """
    from geventws import http_head

    for limit in ("MAX_FIELDS", "MAX_LINE", "MAX_HEAD"):
        monkeypatch.setattr(http_head, limit, 10**9)

    def best(size: int) -> float:
        data = LONG_HEADS[name](size)
        times = []
        for _ in range(5):
            start = time.process_time()
            with suppress(HeadError):
                read(data)
            times.append(time.process_time() - start)
        return min(times)

    assert best(64 * 1024) < 24 * best(8 * 1024) + 0.001


def test_a_head_is_looked_at_once_however_small_its_pieces() -> None:
    """A3 row 31: counted in bytes that are searched, which a wrapper of the buffer's data tells."""

    class Counted(bytearray):
        searched = 0

        def _span(self, start: int, end: int | None = None) -> None:
            Counted.searched += max(0, (len(self) if end is None else end) - start)

        def find(self, sub: Any, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
            self._span(start, end)
            return super().find(sub, start, len(self) if end is None else end)

        def rfind(self, sub: Any, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
            self._span(start, end)
            return super().rfind(sub, start, len(self) if end is None else end)

        def count(self, sub: Any, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
            self._span(start, end)
            return super().count(sub, start, len(self) if end is None else end)

    buffer = HeadBuffer()
    buffer.data = Counted()
    data = head(*[f"X-{number}: {LONG[:7000]}" for number in range(8)])
    for byte in data[:-1]:
        buffer.feed(bytes([byte]))
        assert buffer.take_head() is None
    buffer.feed(data[-1:])
    assert buffer.take_head() == data[:-4]
    # Four searches, each of the new byte and of the few before it that an end of line or head may have begun in.
    assert Counted.searched < 16 * len(data)


def test_fields_become_environ_keys() -> None:
    found = read(
        head(
            "content-TYPE: text/plain",
            "Content-Length: 007",
            "X-Forwarded-For: 192.0.2.1",
            "X_Forwarded_For: 192.0.2.2",
            "Accept: a",
            "accept: b",
            "Cookie: a=1",
            "Cookie: b=2",
            "X-Latin: \xe9",
            "Empty:",
        )
    )
    assert found.fields == {
        "HTTP_HOST": "a",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "007",
        "HTTP_X_FORWARDED_FOR": "192.0.2.1",
        "HTTP_ACCEPT": "a,b",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_LATIN": "\xe9",
        "HTTP_EMPTY": "",
    }
    assert found.content_length == 7


def test_the_names_of_unknown_fields_do_not_pile_up() -> None:
    from geventws import http_head

    for number in range(2000):
        read(head(f"X-Unknown-{number}: a"))
    assert len(http_head._KEYS) <= 500


def test_requests_share_the_values_that_many_have_in_common_and_no_others() -> None:
    first, second = (read(head("Origin: http://a", "Cookie: a=1", "X-Token: bb")).fields for _ in range(2))
    assert first == second
    assert first["HTTP_ORIGIN"] is second["HTTP_ORIGIN"]
    assert first["HTTP_COOKIE"] is not second["HTTP_COOKIE"]
    assert first["HTTP_X_TOKEN"] is not second["HTTP_X_TOKEN"]


def test_common_lines_of_ever_new_values_do_not_pile_up() -> None:
    from geventws import http_head

    for number in range(2000):
        assert read(head(f"User-Agent: {number}")).fields["HTTP_USER_AGENT"] == str(number)
    assert read(head("User-Agent: " + "a" * 1000)).fields["HTTP_USER_AGENT"] == "a" * 1000
    assert len(http_head._LINES) <= 500
    assert max(map(len, http_head._LINES)) <= 256


def test_a_remembered_line_is_as_strictly_read_as_a_new_one() -> None:
    for _ in range(2):
        with pytest.raises(HeadError, match="may stand once is repeated"):
            read(head("Origin: http://a", "Origin: http://a"))
        assert read(head("Accept-Language: a", "Accept-Language: a")).fields["HTTP_ACCEPT_LANGUAGE"] == "a,a"
        assert "HTTP_ORIGIN" not in read(head("X_Origin: http://a", "_: b")).fields


@pytest.mark.parametrize(
    ("line", "path", "query", "host"),
    [
        ("GET /a%20b?c=%20 HTTP/1.1", "/a b", "c=%20", "a"),
        ("GET /? HTTP/1.1", "/", "", "a"),
        ("GET //a/b HTTP/1.1", "//a/b", "", "a"),
        ("GET http://b:81/c?d HTTP/1.1", "/c", "d", "b:81"),
        ("GET HTTP://b?d HTTP/1.1", "/", "d", "b"),
        ("OPTIONS * HTTP/1.1", "*", "", "a"),
        ("GET /%C3%A9 HTTP/1.1", "/\xc3\xa9", "", "a"),
    ],
)
def test_the_target_is_split(line: str, path: str, query: str, host: str) -> None:
    found = read(head(line=line))
    assert (found.path, found.query, found.fields["HTTP_HOST"]) == (path, query, host)


@pytest.mark.parametrize(
    ("version", "connection", "closes"),
    [
        ("1.1", None, False),
        ("1.1", "close", True),
        ("1.1", "Upgrade, Close", True),
        ("1.1", "closed", False),
        ("1.0", None, True),
        ("1.0", "Keep-Alive", False),
        ("1.0", "keep-alive, close", True),
    ],
)
def test_whether_the_connection_goes_on(version: str, connection: str | None, closes: bool) -> None:
    fields = [] if connection is None else [f"Connection: {connection}"]
    assert read(head(*fields, line=f"GET / HTTP/{version}")).closes is closes


def test_what_follows_a_head_stays() -> None:
    buffer = HeadBuffer()
    buffer.feed(b"\r\n" + head() + b"body" + head())
    assert buffer.take_head() == head()[:-4]
    assert buffer.data == b"body" + head()


# -- Requests ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Standalone]:
    with standalone() as server:
        yield server


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_ends_the_connection(server: Standalone, name: str) -> None:
    data, status = REFUSED[name]
    logged = len(server.log())
    with Peer(server.address) as peer:
        assert peer.ask(data + request("/pid")) == status
        assert b"\r\nConnection: close\r\n" in peer.head
        assert peer.rest() == b""
    assert get(server.address, "/") == "hello"
    assert [line for line in server.log()[logged:] if "/pid" in line] == []


def test_requests_follow_each_other(server: Standalone) -> None:
    with Peer(server.address) as peer:
        peer.send(
            request("/") + b"\r\n" + request("/scheme") + request("/fields", "Connection: close") + request("/pid")
        )
        assert (peer.status(), peer.body) == (200, b"hello")
        assert (peer.status(), peer.body) == (200, b"http '127.0.0.1' localhost")
        assert (peer.status(), peer.body) == (200, b"HTTP_CONNECTION=close\nHTTP_HOST=localhost")
        assert b"\r\nConnection: close\r\n" in peer.head
        assert peer.rest() == b""


def test_bodies(server: Standalone) -> None:
    chunked = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
    with Peer(server.address) as peer:
        for _ in range(2):
            assert peer.ask(request("/body", "Content-Length: 11", method="POST") + b"hello world") == 200
            assert peer.body == b"hello world"
            assert peer.ask(request("/body", "Transfer-Encoding: Chunked", method="POST") + chunked) == 200
            assert peer.body == b"hello world"
            # What the application leaves unread is passed over.
            assert peer.ask(request("/", "Content-Length: 11", method="POST") + b"hello world") == 200
        large = b"x" * 1_000_000
        assert peer.ask(request("/body", f"Content-Length: {len(large)}", method="POST") + large) == 200
        assert peer.body == large


def test_a_body_that_is_waited_for(server: Standalone) -> None:
    with Peer(server.address) as peer:
        peer.send(request("/body", "Content-Length: 5", "Expect: 100-continue", method="POST"))
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        assert peer.ask(b"hello") == 200
        assert peer.body == b"hello"


def test_http_1_0_closes(server: Standalone) -> None:
    with Peer(server.address) as peer:
        assert peer.ask(request("/", version="HTTP/1.0")) == 200
        assert peer.rest() == b""


def test_a_fault_of_the_application_is_a_500(server: Standalone, capsys: pytest.CaptureFixture[str]) -> None:
    with Peer(server.address) as peer:
        assert peer.ask(request("/fails")) == 500
    assert capsys.readouterr().err.count("ValueError: the application failed") == 1


def test_a_peer_that_ends_within_a_body_is_no_fault(server: Standalone, capsys: pytest.CaptureFixture[str]) -> None:
    for fields in ("Content-Length: 9", "Transfer-Encoding: chunked"):
        before = len(server.log())
        with Peer(server.address) as peer:
            peer.send(request("/body", fields, method="POST") + b"5\r\nhel")
            peer.socket.shutdown(socket.SHUT_WR)
            peer.rest()
        eventually(lambda: len(server.log()) > before, "the end of the request")  # noqa: B023
    assert "Traceback" not in capsys.readouterr().err
    assert "Traceback" not in "\n".join(server.errors())


def test_a_malformed_chunk_is_a_400(server: Standalone) -> None:
    with Peer(server.address) as peer:
        assert (
            peer.ask(request("/body", "Transfer-Encoding: chunked", method="POST") + b"x\r\n" + request("/pid")) == 400
        )
        assert peer.rest() == b""


def test_a_head_in_crumbs_costs_little(server: Standalone) -> None:
    data = request("/", *[f"X-{number}: {LONG[:8000]}" for number in range(8)])
    clock = time.pthread_getcpuclockid(server_thread(server))
    with Peer(server.address) as peer:
        before = time.clock_gettime(clock)
        for byte in data:
            peer.send(bytes([byte]))
        assert peer.status() == 200
        assert time.clock_gettime(clock) - before < 0.2


def server_thread(server: Standalone) -> int:
    """The thread in which a server runs."""
    return server.server._thread


def test_an_address_of_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        served = threading.Event()
        servers: list[WSGIServer] = []

        def serve() -> None:
            from gevent import socket as gevent_socket

            wrapped = gevent_socket.socket(fileno=listener.detach())
            servers.append(WSGIServer(wrapped, app, log=None))
            servers[0].start()
            served.set()
            servers[0].serve_forever()
            gevent.get_hub().destroy()

        thread = threading.Thread(target=serve)
        thread.start()
        assert served.wait(DEADLINE)
        try:
            with Peer(path) as peer:
                assert peer.ask(request("/scheme")) == 200
                assert peer.body == b"http None localhost"
                assert peer.open().echoes(b"hello")
            with Peer(path) as peer:
                assert peer.ask(b"bad\r\n\r\n") == 400
        finally:
            servers[0].stop(0)
            thread.join(DEADLINE)


def test_arguments() -> None:
    for value in (0, -1, float("nan"), float("inf"), True, "10"):
        with pytest.raises(ValueError, match="handshake_timeout must be"):
            WSGIServer(("127.0.0.1", 0), app, handshake_timeout=value)  # type: ignore[arg-type]
    WSGIServer(("127.0.0.1", 0), app, handshake_timeout=None).close()


# -- Deadlines ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty() -> Iterator[Standalone]:
    with standalone(handshake_timeout=0.5) as server:
        yield server


def test_a_slow_head_is_cut_off_counted_from_the_accept(hasty: Standalone) -> None:
    with Peer(hasty.address) as peer:
        began = time.monotonic()
        peer.socket.settimeout(0.05)
        answer = b""
        for byte in offer() * 5:
            peer.send(bytes([byte]))
            try:
                answer = peer.socket.recv(1000)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.45 < time.monotonic() - began < 5
        peer.socket.settimeout(DEADLINE)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.rest()


def test_a_connection_that_says_nothing_is_closed(hasty: Standalone) -> None:
    with Peer(hasty.address) as peer:
        assert peer.rest() == b""


def test_an_idle_connection_is_closed(hasty: Standalone) -> None:
    with Peer(hasty.address) as peer:
        assert peer.ask(request("/")) == 200
        assert peer.rest() == b""


def test_a_session_has_no_deadline(hasty: Standalone) -> None:
    with Peer(hasty.address) as session, Peer(hasty.address) as silent:
        session.open()
        assert silent.rest() == b""
        assert session.echoes(b"hello")


def test_a_request_has_no_deadline(hasty: Standalone) -> None:
    with Peer(hasty.address) as peer:
        assert peer.ask(request("/nap")) == 200


def test_no_deadline() -> None:
    with standalone(handshake_timeout=None) as server, Peer(server.address) as peer:
        peer.send(b"GET")
        assert peer.ask(request("/")[3:]) == 200
        assert peer.ask(request("/")) == 200


# -- Logs --------------------------------------------------------------------------------------------------------------


def test_a_bad_request_is_one_escaped_line() -> None:
    with standalone() as server:
        for data in (
            b"GET /\x1b[2J\r\nFAKE\xe2\x80\xae: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET /\x9b31m\xad HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"\xc2\x85" * 2000 + b": b\r\n\r\n",
        ):
            with Peer(server.address) as peer:
                assert peer.ask(data) == 400
        assert len(server.errors()) == 4
        for line in server.errors():
            assert line.startswith("127.0.0.1:")
            assert line.isprintable()
            assert len(line) <= 256
        assert "\\x1b[2J" in server.errors()[0]
        assert server.log() == []


def test_a_flood_of_bad_requests_is_summed_up() -> None:
    with standalone() as server:
        for _ in range(60):
            with Peer(server.address) as peer:
                assert peer.ask(b"GET /\r\n\r\n") == 400
        with Peer(server.address) as peer:
            assert peer.ask(head("Host: b")) == 400
        lines = eventually(lambda: [line for line in server.errors() if "more in a second" in line], "the sum")
        assert sum(int(line.split()[0]) for line in lines) >= 60 - 10 * (len(lines) + 1)
        assert len([line for line in server.errors() if "malformed" in line]) < 40
        assert [line for line in server.errors() if "is repeated" in line]


def test_a_log_of_peers() -> None:
    lines: list[str] = []
    log = PeerLog(lines.append)
    for number in range(25):
        log.log("a fault", ("192.0.2.1", number), "\u202e")
    log.log("another", ("2001:db8::1", 80, 0, 0))
    log.log("a third", "", "x" * 500)
    assert lines[:10] == [f"192.0.2.1:{number}: a fault: \\u202e" for number in range(10)]
    assert lines[10] == "[2001:db8::1]:80: another"
    assert lines[11].startswith("unix socket: a third: xxx")
    assert len(lines[11]) == 256
    log._sum_up()
    assert lines[12:] == ["15 more in a second: a fault"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain \xe9", "plain \xe9"),
        ("a\nb", "a\\nb"),
        ("\u202e\u2066", "\\u202e\\u2066"),
        ("\0\x7f", "\\x00\\x7f"),
        ("\ud800", "\\ud800"),
    ],
)
def test_escaping(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_loggers_and_no_logs() -> None:
    with standalone() as server:
        assert server.server.logs_requests
    for log in (None, logging.getLogger("tests.access")):
        server_object = WSGIServer(("127.0.0.1", 0), app, log=log, error_log=io.StringIO())
        assert server_object.logs_requests is (log is not None)
        server_object.close()


# -- Stopping ----------------------------------------------------------------------------------------------------------


def test_stop_closes_sessions_with_1001() -> None:
    with standalone() as server:
        with Peer(server.address) as first, Peer(server.address) as second:
            first.open()
            second.open()
            stopping = threading.Thread(target=server.server.stop, args=(DEADLINE,))
            began = time.monotonic()
            stopping.start()
            assert first.rest() == b"<close 1001>"
            assert second.rest() == b"<close 1001>"
            first.socket.close()
            second.socket.close()
            stopping.join(DEADLINE)
            assert not stopping.is_alive()
            assert time.monotonic() - began < DEADLINE / 2
        assert server.server.sessions == set()
        with pytest.raises(ConnectionRefusedError):
            Peer(server.address)


def test_stop_terminates_what_is_left() -> None:
    sessions: list[Any] = []

    def deaf(environ: dict[str, Any], start_response: Any) -> Any:
        session, _ = take(environ, DeafSession)
        sessions.append(session)
        try:
            while session.socket.fileno() >= 0 and not session.terminated:
                gevent.sleep(0.01)
        finally:
            environ["geventws.upgrade"].sessions.discard(session)
            session.socket.close()
            sessions.append("finally")
        return []

    with standalone(deaf) as server, Peer(server.address) as peer:
        peer.open()
        server.server.stop(0.2)
        assert sessions[0].terminated
        assert sessions[1] == "finally"
        assert peer.rest() == b""


def test_stop_lets_requests_end_and_drops_idle_connections() -> None:
    with (
        standalone() as server,
        Peer(server.address) as idle,
        Peer(server.address) as busy,
        Peer(server.address) as new,
    ):
        assert idle.ask(request("/")) == 200
        busy.send(request("/nap"))
        eventually(lambda: len(server.server.waiting) == 2, "the request")
        stopping = threading.Thread(target=server.server.stop, args=(DEADLINE,))
        stopping.start()
        assert idle.rest() == b""
        assert new.rest() == b""
        assert busy.status() == 200
        assert b"\r\nConnection: close\r\n" in busy.head or busy.rest() == b""
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


def test_an_offer_while_stopping_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with standalone() as server, Peer(server.address) as peer, monkeypatch.context() as patch:
        patch.setattr(WSGIServer, "started", False)
        assert peer.ask(offer() + request("/pid")) == 503
        assert b"\r\nConnection: close\r\n" in peer.head
        assert peer.rest() == b""


def test_serve_forever_does_not_cut_a_stop_short() -> None:
    with standalone() as server, Peer(server.address) as peer:
        peer.open()
        server.server.stop_timeout = 0
        stopping = threading.Thread(target=server.server.stop, args=(DEADLINE,))
        stopping.start()
        assert peer.until(b"<close 1001>")
        # Still open in this direction: the session echoes what it gets until it has our end.
        assert peer.rest() == b""
        assert stopping.is_alive()
        peer.socket.close()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


def test_stop_within_its_own_thread() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        gevent.spawn(started[0].stop, 0.5)
        return respond(start_response, "stopping")

    started: list[WSGIServer] = []
    with standalone(application) as server:
        started.append(server.server)
        assert get(server.address, "/") == "stopping"
        eventually(lambda: server.server.closed, "the stop")


def test_a_full_pool_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    retry = Acceptor._retry
    monkeypatch.setattr("geventws.accepting.RETRY_SECONDS", 0.001)
    monkeypatch.setattr(Acceptor, "_retry", lambda server: looks.append(None) or retry(server))
    with standalone(spawn=1) as server, Peer(server.address) as session, Peer(server.address) as late:
        session.open()
        late.send(request("/"))
        eventually(lambda: len(looks) > 50, "many looks")
        assert server.server.pool._semaphore.linkcount() < 5
        session.socket.close()
        assert late.status() == 200


def test_a_pool_bounds_the_connections() -> None:
    with standalone(spawn=1) as server:
        first = Peer(server.address)
        first.open()
        with Peer(server.address) as second:
            second.send(request("/"))
            assert first.echoes(b"hello")
            assert server.log() == []
            first.socket.close()
            assert second.status() == 200


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["files", "ssl", "gevent.ssl"])
def tls_arguments(request: pytest.FixtureRequest, certificates: Certificates) -> dict[str, Any]:
    if request.param == "files":
        return {"certfile": certificates.certfile, "keyfile": certificates.keyfile}
    if request.param == "ssl":
        return {"ssl_context": certificates.server}
    from gevent.ssl import SSLContext

    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certfile, certificates.keyfile)
    return {"ssl_context": context}


def test_tls(tls_arguments: dict[str, Any], certificates: Certificates) -> None:
    with standalone(**tls_arguments) as server, Peer(server.address) as stalled:
        # A client that stalls in the handshake holds up nobody.
        stalled.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        with Peer(server.address, certificates.client) as peer:
            assert peer.ask(request("/scheme")) == 200
            assert peer.body == b"https '127.0.0.1' localhost"
            assert peer.open().echoes(b"x" * 100_000)


def test_renegotiation_is_switched_off(certificates: Certificates) -> None:
    """C1 row 9: of TLS 1.2, by which a client could have the server compute again and again."""
    files = {"certfile": certificates.certfile, "keyfile": certificates.keyfile}
    assert _make_context(files).options & ssl.OP_NO_RENEGOTIATION


def test_stalled_tls_handshakes_are_over_in_time(certificates: Certificates) -> None:
    with standalone(handshake_timeout=0.3, ssl_context=certificates.server) as server:
        stalled = [Peer(server.address) for _ in range(4)]
        for peer in stalled[:2]:
            peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        for peer in stalled:
            assert peer.rest() == b""
            peer.socket.close()
        late = "the TLS handshake failed: it took too long"
        eventually(lambda: len([line for line in server.errors() if late in line]) == 4, "the log")


def test_stalled_tls_handshakes_make_room_in_a_full_pool(certificates: Certificates) -> None:
    with standalone(handshake_timeout=60, spawn=4, ssl_context=certificates.server) as server:
        stalled = [Peer(server.address) for _ in range(4)]
        with Peer(server.address, certificates.client) as peer:
            assert peer.ask(request("/")) == 200
        # The one that waited longest.
        assert stalled[0].rest() == b""
        for peer in stalled:
            peer.socket.close()
        eventually(lambda: [line for line in server.errors() if "to make room" in line], "the log")
        assert len([line for line in server.errors() if "to make room" in line]) == 1


def test_a_slow_head_under_tls(certificates: Certificates) -> None:
    with (
        standalone(handshake_timeout=0.5, ssl_context=certificates.server) as server,
        Peer(server.address, certificates.client) as peer,
    ):
        peer.send(b"GET / HT")
        assert peer.status() == 408


def test_a_failed_tls_handshake_is_one_line(certificates: Certificates, capsys: pytest.CaptureFixture[str]) -> None:
    with standalone(ssl_context=certificates.server) as server:
        with Peer(server.address) as peer:
            peer.send(request("/"))
            peer.rest()
        with suppress(ssl.SSLError), Peer(server.address, ssl.create_default_context()) as peer:
            pass
        eventually(lambda: len(server.errors()) == 2, "the log")
        assert "the TLS handshake failed: HTTP_REQUEST" in server.errors()[0]
    assert capsys.readouterr().err == ""


def test_sessions_of_tls_are_closed_at_a_stop(certificates: Certificates) -> None:
    with standalone(ssl_context=certificates.server) as server, Peer(server.address, certificates.client) as peer:
        peer.open()
        stopping = threading.Thread(target=server.server.stop, args=(DEADLINE,))
        stopping.start()
        assert peer.until(b"<close 1001>")
        peer.socket.close()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


def test_descriptors_are_given_back(server: Standalone) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    get(server.address, "/")
    before = descriptors()
    for number in range(50):
        with Peer(server.address) as peer:
            if number % 2:
                assert peer.open().echoes(b"hello")
            else:
                assert peer.ask(b"bad\r\n\r\n") == 400
    eventually(lambda: descriptors() <= before, "the end of all connections")
