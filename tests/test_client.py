"""geventws.connect, against our servers, those of others, proxies, and servers that answer wrongly."""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent import socket
from gevent.server import StreamServer
from hypothesis import given
from hypothesis import strategies as st

import geventws
from geventws import Frame, Opcode, connect
from geventws.__main__ import main as command
from geventws.client import _passes
from geventws.connecting import main as connect_command
from geventws.dialing import find_proxy
from geventws.protocol.buffer import Buffer
from geventws.protocol.client_handshake import ResponseHead, ResponseHeadBuffer, check_response
from geventws.protocol.handshake import accept_value
from geventws.protocol.url import parse_url
from tests.peer import PATIENCE, serving, wait_until
from tests.programs import ROOT, Program
from tests.wire import splits

#: For what is to fail by its limit.
SHORT = 0.1


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def make_app() -> geventws.WebSockets:
    app = geventws.WebSockets(extensions=[geventws.PermessageDeflate()], max_frame_size=None)

    @app.route("/")
    def echo(session: Any) -> None:
        for message in session:
            session.send(message)

    @app.route("/some")
    def some(session: Any) -> None:
        for _ in range(int(session.environ["QUERY_STRING"])):
            session.send(session.receive())

    @app.route("/silent")
    def silent(session: Any) -> None:
        for _ in session:
            pass

    @app.route("/late", raw=True)
    def late(session: Any) -> None:
        """Answers in the last moment."""
        messages = []
        while (frame := session.receive()).opcode == Opcode.TEXT:
            messages.append(frame)
        for message in messages:
            session.send(message)
        session.send(Frame(Opcode.PONG, frame.payload))
        session.send(session.receive())

    @app.route("/last")
    def last(session: Any) -> None:
        message = session.receive()
        for _ in range(20):
            session.ping()
        session.send(message)

    @app.route("/raw", raw=True)
    def raw(session: Any) -> None:
        for frame in session:
            session.send(frame)

    @app.route("/tell")
    def tell(session: Any) -> None:
        environ = session.environ
        for key in ("HTTP_HOST", "HTTP_AUTHORIZATION", "HTTP_ORIGIN", "HTTP_X_ROOM", "QUERY_STRING", "HTTP_USER_AGENT"):
            session.send(str(environ.get(key)))

    @app.route("/protocol", protocol=["v2", "v1"])
    def protocol(session: Any) -> None:
        session.send(session.protocol)

    @app.route("/goodbye")
    def goodbye(session: Any) -> None:
        session.accept(headers=[("X-Room", "7"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        session.close(4000, "enough")

    @app.route("/private")
    def private(session: Any) -> Any:
        from werkzeug.wrappers import Response

        return Response('{"error": "log in first"}', 401, {"WWW-Authenticate": "Basic"}, mimetype="application/json")

    @app.route("/moved")
    def moved(session: Any) -> Any:
        from werkzeug.utils import redirect

        return redirect("/tell")

    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_app()) as server:
        yield f"ws://127.0.0.1:{server.server_port}"


@contextmanager
def answering(*answers: bytes | Callable[[Any, bytes], object], keep: bool = False) -> Iterator[str]:
    """A server of bytes: each connection's request gets the next of ``answers``, the last for ever.

    ``%(accept)s`` in one is what the request's key asks for; a function gets the socket and the key's answer.
    """
    left = list(answers)

    def answer(sock: Any, address: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = sock.recv(65536)
            if not piece:
                return
            head += piece
        key = next(line for line in head.decode().split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        accept = accept_value(key.partition(": ")[2]).encode()
        reply = left.pop(0) if len(left) > 1 else left[0]
        with suppress(OSError):
            if callable(reply):
                reply(sock, accept)
            else:
                sock.sendall(reply.replace(b"%(accept)s", accept))
                while keep and sock.recv(65536):
                    pass

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}/"
    finally:
        server.stop(1)


GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %(accept)s\r\n"
)


class TestConversations:
    def test_messages_both_ways(self, url: str) -> None:
        with connect(url) as ws:
            for message in ("hello", b"\x00\xff", "", "Grüße, 世界", b"x" * 1_000_000, "y" * 100_000):
                ws.send(message)
                assert ws.receive(PATIENCE) == message
            ws.send(str(number) for number in range(10))
            assert ws.receive(PATIENCE) == "0123456789"
            assert ws.ping() < PATIENCE
            assert ws.latency is not None
            assert isinstance(ws, geventws.DefaultWebSocketClientSession)
            assert ws.remote_address[0] == "127.0.0.1"
            assert not ws.closed
        assert ws.close_reason == (1000, "")

    def test_raw(self, url: str) -> None:
        with connect(f"{url}/raw", raw=True) as ws:
            assert type(ws) is geventws.WebSocketClientSession
            ws.send(geventws.Frame.text("a", fin=False))
            assert ws.receive(PATIENCE) == geventws.Frame.text("a", fin=False)
            ws.send(geventws.Frame.continuation(b"b"))
            assert ws.receive(PATIENCE).payload == b"b"
            ws.send(geventws.Frame.close(4001, "bye"))
            assert ws.receive(PATIENCE).close_reason == (4001, "bye")
        assert ws.close_reason == (4001, "bye")

    def test_what_the_server_gets(self, url: str) -> None:
        host = url.removeprefix("ws://")
        with connect(f"{url}/tell?a=%20b") as ws:
            assert list(ws) == [host, "None", "None", "None", "a=%20b", f"geventws/{geventws.__version__}"]
        options: dict[str, Any] = {"origin": f"http://{host}", "headers": {"X-Room": "7", "User-Agent": "tests"}}
        with connect(f"ws://ada:p%40ss@{host}/tell", **options) as ws:
            assert list(ws) == [host, "Basic YWRhOnBAc3M=", f"http://{host}", "7", "", "tests"]
            assert ws.url == f"{url}/tell"
        with connect(f"ws://ada:x@{host}/tell", headers=[("Host", "example.com"), ("Authorization", "Bearer y")]) as ws:
            assert list(ws)[:2] == ["example.com", "Bearer y"]

    def test_protocols(self, url: str) -> None:
        with connect(f"{url}/protocol", protocols=["v1", "v2"]) as ws:
            assert ws.protocol == "v2"
            assert ws.receive(PATIENCE) == "v2"
        with connect(url, protocols=["v1"]) as ws:
            assert ws.protocol is None

    def test_none_for_what_is_not_given(self, url: str) -> None:
        with connect(f"{url}/tell", protocols=None, headers=None) as ws:
            assert list(ws)[-1] == f"geventws/{geventws.__version__}"
            assert ws.protocol is None

    def test_the_server_closes(self, url: str) -> None:
        with connect(f"{url}/goodbye") as ws:
            assert ws.headers["x-room"] == "7"
            assert ws.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
            with pytest.raises(geventws.ConnectionClosed) as closed:
                ws.receive(PATIENCE)
            assert closed.value.reason == (4000, "enough")

    def test_an_exception_closes_with_1011(self) -> None:
        ends: list[Any] = []
        app = geventws.WebSockets()

        @app.route("/")
        def wait(session: Any) -> None:
            list(session)
            ends.append(session.close_reason)

        with serving(app) as server:
            with pytest.raises(KeyError), connect(f"ws://127.0.0.1:{server.server_port}") as ws:
                ws.send("x")
                raise KeyError
            wait_until(lambda: ends)
        assert ends == [(1011, "")]

    def test_objects(self, url: str) -> None:
        with connect(url, content_converter=geventws.JSONConverter()) as ws:
            ws.send_serialized({"a": [1, 2]})
            assert ws.receive_deserialized(dict, timeout=PATIENCE) == {"a": [1, 2]}

    def test_it_is_open_already(self, url: str) -> None:
        with connect(url) as ws, pytest.raises(geventws.UsageError, match="accepted already"):
            ws.accept()

    def test_broadcasts_are_masked(self, url: str) -> None:
        with connect(url) as first, connect(url, extensions=[geventws.PermessageDeflate()]) as second:
            assert geventws.broadcast([first, second], "to all" * 100) == 2
            assert first.receive(PATIENCE) == second.receive(PATIENCE) == "to all" * 100


class TestExtensions:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"server_max_window_bits": 15, "client_max_window_bits": 15},
            {"server_max_window_bits": 9, "client_max_window_bits": 10},
            {"client_no_context_takeover": True, "server_no_context_takeover": True},
            {"client_max_window_bits": 8},
        ],
    )
    def test_deflate(self, url: str, options: dict[str, Any]) -> None:
        with connect(url, extensions=[geventws.PermessageDeflate(**options)]) as ws:
            assert len(ws.extensions) == 1
            for message in ("a" * 10_000, "b" * 70_000, os.urandom(50_000), "x", "a" * 10_000):
                ws.send(message)
                assert ws.receive(PATIENCE) == message
            ws.send(["a" * 1000, "b" * 1000])
            assert ws.receive(PATIENCE) == "a" * 1000 + "b" * 1000

    def test_what_is_offered(self) -> None:
        assert list(geventws.PermessageDeflate().offers()) == [
            {"client_max_window_bits": None, "server_max_window_bits": "12"},
            {"client_max_window_bits": None},
        ]

    @pytest.mark.parametrize(
        "answer",
        [
            {"server_max_window_bits": "7"},
            {"server_max_window_bits": None},
            {"client_max_window_bits": "16"},
            {"client_max_window_bits": "08"},
            {"server_no_context_takeover": "1"},
            {"x": None},
        ],
    )
    def test_wrong_answers(self, answer: dict[str, str | None]) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            geventws.PermessageDeflate().agree(answer)

    def test_takeover_that_was_asked_for(self) -> None:
        with pytest.raises(ValueError, match="server_no_context_takeover was asked for"):
            geventws.PermessageDeflate(server_no_context_takeover=True).agree({})

    def test_a_window_of_8_bits_is_not_compressed_with(self) -> None:
        session = geventws.PermessageDeflate().agree({"client_max_window_bits": "8"})
        frame = geventws.Frame.text("a" * 1000)
        assert session.encode(frame) == frame

    def test_one_for_servers_only(self) -> None:
        class ServerOnly:
            name = "x-server"
            rsv = 0

            def accept(self, parameters: Any) -> None:
                return None

        with pytest.raises(ValueError, match="lacks offers or agree"):
            connect("ws://127.0.0.1:1/", extensions=[ServerOnly()])  # type: ignore[list-item]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "reason", "told"),
        [
            (401, "UNAUTHORIZED", "401 Unauthorized"),
            (404, "", "404 Not Found"),
            (403, "Not Today", "403 Not Today"),
            (499, "client closed", "499 client closed"),
            (499, "", "499"),
            (403, "x\x1b[2J" * 100, "403 x [2J"),
        ],
    )
    def test_the_words_of_a_status(self, status: int, reason: str, told: str) -> None:
        text = str(geventws.HandshakeRefused(status, reason, {}, b""))
        assert text.startswith(told)
        assert text.isprintable()
        assert len(text) < 250

    def test_the_response_is_carried_and_named(self, url: str) -> None:
        with pytest.raises(geventws.HandshakeRefused) as refused:
            connect(f"{url}/private")
        error = refused.value
        assert str(error) == '401 Unauthorized: {"error": "log in first"}'
        assert error.status == 401
        assert error.headers["www-authenticate"] == "Basic"
        assert error.json == {"error": "log in first"}
        assert error.body == b'{"error": "log in first"}'

    def test_no_redirect_is_followed(self, url: str) -> None:
        """A3 row 46."""
        with pytest.raises(geventws.HandshakeRefused, match="302 Found: it redirects to /tell, which is not followed"):
            connect(f"{url}/moved")

    @pytest.mark.parametrize(
        ("answer", "body", "told"),
        [
            (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nlaterxxx", b"later"[:4], "503 Busy: late"),
            (b"HTTP/1.0 403\r\n\r\nno\x1b[2J\r\nway", b"no\x1b[2J\r\nway", "403 Forbidden: no [2J way"),
            (
                b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x\r\nbc\r\n0\r\n\r\n",
                b"abc",
                "Bad: abc",
            ),
            (b"HTTP/1.1 400 Bad\r\nContent-Length: 99\r\n\r\ncut", b"cut", "400 Bad: cut"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>a &lt;</p>", b"<p>a &lt;</p>", "200 OK: a <"),
            (b"HTTP/1.1 418 I\r\nContent-Type: text/plain; charset=latin-1\r\n\r\n\xfc", b"\xfc", "418 I: ü"),
            (b"HTTP/1.1 418 I\r\nContent-Type: text/plain; charset=nix\r\n\r\nx", b"x", "418 I: x"),
            (b"HTTP/1.1 304 Same\r\n\r\n", b"", "304 Same"),
            (b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"", "400 Bad"),
            (b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 404 No\r\n\r\n", b"", "404 No"),
        ],
    )
    def test_bodies(self, answer: bytes, body: bytes, told: str) -> None:
        ends = b"Length: 4" in answer or b"chunked" in answer or b"304" in answer
        with answering(answer, keep=ends) as url, pytest.raises(geventws.HandshakeRefused) as refused:
            connect(url)
        assert refused.value.body == body
        assert str(refused.value).endswith(told)

    def test_a_long_body_is_cut(self) -> None:
        with answering(b"HTTP/1.1 500 X\r\n\r\n" + b"x" * 1_000_000) as url:
            with pytest.raises(geventws.HandshakeRefused) as refused:
                connect(url)
            assert len(refused.value.body) == 64 * 1024
            assert len(str(refused.value)) < 300

    def test_one_that_leaves_a_handler_is_not_its_answer(self) -> None:
        """What another server said to this one is not for its client."""
        with answering(b"HTTP/1.1 401 No\r\nSet-Cookie: secret\r\n\r\n") as url:
            app = geventws.WebSockets()

            @app.route("/")
            def ask(session: Any) -> None:
                connect(url)

            with serving(app, error_log=None) as server, pytest.raises(geventws.HandshakeRefused) as refused:
                connect(f"ws://127.0.0.1:{server.server_port}/")
        assert refused.value.status == 500
        assert "set-cookie" not in refused.value.headers


def with_lines(*lines: bytes, drop: bytes = b"") -> bytes:
    kept = [line for line in GOOD.split(b"\r\n")[:-1] if not drop or not line.startswith(drop)]
    return b"\r\n".join([*kept, *lines, b"", b""])


class TestWrongServers:
    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP/1.1"),
            (b"HTTP/2 200\r\n\r\n", "does not speak HTTP/1.1"),
            (b"HTTP/1.1 1O1 x\r\n\r\n", "no status line"),
            (b"HTTP/1.2 101 x\r\n\r\n", "no status line"),
            (b"HTTP/1.1 101 x\nUpgrade: websocket\n\n", "bare LF"),
            (with_lines().replace(b"HTTP/1.1 101", b"HTTP/1.0 101"), "101 is of HTTP/1.0"),
            (with_lines(drop=b"Upgrade"), "lacks the header Upgrade: websocket; it is missing"),
            (with_lines(b"Upgrade: h2c", drop=b"Upgrade"), "lacks the header Upgrade: websocket; it is 'h2c'"),
            (with_lines(b"Upgrade: websocket"), "lacks the header Upgrade: websocket; it is 'websocket, websocket'"),
            (with_lines(drop=b"Connection"), "lacks the header Connection: Upgrade; it is missing"),
            (with_lines(b"Connection: xupgrade", drop=b"Connection"), "lacks the header Connection: Upgrade"),
            (
                with_lines(drop=b"Sec-WebSocket-Accept"),
                "Sec-WebSocket-Accept does not answer this request, but is missing",
            ),
            (with_lines(b"Sec-WebSocket-Accept: x", drop=b"Sec-WebSocket-Accept"), "does not answer this request"),
            (with_lines(b"Sec-WebSocket-Accept: x"), "has the header Sec-WebSocket-Accept 2 times"),
            (with_lines(b"Sec-WebSocket-Protocol: v9"), "chose the subprotocol 'v9', and those offered were: v1, v2"),
            (with_lines(b"Sec-WebSocket-Protocol: V1"), "chose the subprotocol 'V1'"),
            (with_lines(b"Sec-WebSocket-Protocol: v1, v2"), "chose the subprotocol 'v1, v2'"),
            (
                with_lines(b"Sec-WebSocket-Protocol: v1", b"Sec-WebSocket-Protocol: v2"),
                "Sec-WebSocket-Protocol 2 times",
            ),
            (with_lines(b"Sec-WebSocket-Extensions: x-foo"), "chose the extension 'x-foo', which was not offered"),
            (with_lines(b"Sec-WebSocket-Extensions: ;;,="), "must be a list as in"),
            (with_lines(b"Sec-WebSocket-Extensions: permessage-deflate; a; a"), "with a parameter twice"),
            (
                with_lines(b"Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate"),
                "chose the extension 'permessage-deflate', which was not offered",
            ),
            (
                with_lines(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=16"),
                "what was not offered: server_max_window_bits is not 8 to 15",
            ),
            (with_lines(b"Sec-WebSocket-Extensions: permessage-deflate; x"), "it has an unknown parameter"),
            (with_lines(b"no colon"), "malformed header field: 'no colon'"),
            (with_lines(b"X : y"), "malformed header field"),
            (with_lines(b"X: y", b" folded"), "malformed header field"),
            (with_lines(b"X: \x00"), "control character"),
            (with_lines(b"X: a\rb"), "control character"),
            (with_lines(*[b"X: y"] * 300), "more than 200 header fields"),
            (with_lines(b"X: " + b"y" * 70_000), "longer than 65536 bytes"),
            (b"HTTP/1.1 101 x\r\nX: " + b"y" * 70_000, "longer than 65536 bytes"),
            (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "longer than 65536 bytes"),
        ],
    )
    def test_heads(self, answer: bytes, told: str) -> None:
        options: dict[str, Any] = {"protocols": ["v1", "v2"], "extensions": [geventws.PermessageDeflate()]}
        with answering(answer, keep=True) as url, pytest.raises(geventws.HandshakeFailed) as failed:
            connect(url, **options)
        assert told in str(failed.value)
        assert not isinstance(failed.value, geventws.HandshakeRefused)

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 10", b"HTTP/1.1 101 x\r\nUpgr"])
    def test_an_end_within(self, part: bytes) -> None:
        with answering(part) as url, pytest.raises(ConnectionResetError, match="before it answered the handshake"):
            connect(url)

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 101 x\r\nUpgr"])
    def test_no_end(self, part: bytes) -> None:
        with (
            answering(part, keep=True) as url,
            pytest.raises(TimeoutError, match=r"was not open within 0\.1 s, waiting for the server's part of the hand"),
        ):
            connect(url, open_timeout=SHORT)

    @pytest.mark.parametrize("name", ["whole", "byte by byte"])
    def test_heads_in_pieces(self, name: str) -> None:
        head = with_lines(b"X: y").replace(b"%(accept)s", b"x")
        for way, pieces in splits(head + b"rest"):
            buffer = ResponseHeadBuffer(1024)
            found = None
            for piece in pieces:
                buffer.data += piece
                if found is None:
                    found = buffer.take_head()
            assert found is not None, way
            assert found.status == 101
            assert found.get("x") == "y"
            assert buffer.data == b"rest"

    def test_frames_behind_the_head(self) -> None:
        with (
            answering(with_lines() + b"\x81\x02hi\x88\x02\x0f\xa1", keep=True) as url,
            connect(url, timeout=SHORT) as ws,
        ):
            assert ws.receive(PATIENCE) == "hi"
            with pytest.raises(geventws.ConnectionClosed, match="4001"):
                ws.receive(PATIENCE)

    @pytest.mark.parametrize(
        ("frames", "code"),
        [
            (b"\x81\x82abcdxy", 1002),
            (b"\xc1\x02hi", 1002),
            (b"\x83\x00", 1002),
            (b"\x81\x01\xff", 1007),
            (b"\x82\x7f\x00\x00\x00\x00\xff\xff\xff\xff", 1009),
        ],
    )
    def test_wrong_frames(self, frames: bytes, code: int) -> None:
        with answering(with_lines() + frames, keep=True) as url, connect(url, timeout=SHORT) as ws:
            with pytest.raises(geventws.ConnectionClosed):
                ws.receive(PATIENCE)
            assert ws.close_reason is not None
            assert ws.close_reason.code == code


class TestAnyBytes:
    """Only documented errors leave."""

    @given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
    def test_of_a_server(self, pieces: list[bytes], begin_well: bool) -> None:
        buffer = ResponseHeadBuffer(500)
        if begin_well:
            pieces = [GOOD.replace(b"%(accept)s", b"x"), *pieces, b"\r\n\r\n"]
        with suppress(geventws.HandshakeFailed):
            for piece in pieces:
                buffer.data += piece
                head = buffer.take_head()
                if head is not None:
                    check_response(head, "x", ["v1"], [geventws.PermessageDeflate()])

    @given(st.text('abc:;,="\\ \t0123456789', max_size=60))
    def test_of_an_answer_about_extensions(self, answer: str) -> None:
        fields = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_value("x")),
            ("Sec-WebSocket-Extensions", f"permessage-deflate; server_max_window_bits={answer}"),
        ]
        with suppress(geventws.HandshakeFailed):
            check_response(ResponseHead("HTTP/1.1", 101, "", fields), "x", [], [geventws.PermessageDeflate()])

    @given(st.text(max_size=60) | st.text("ws:/@[]%#?.a1é\r\n ", max_size=40))
    def test_of_a_url(self, url: str) -> None:
        for each in (url, f"ws://{url}"):
            with suppress(ValueError):
                parsed = parse_url(each)
                assert f"{parsed.authority}{parsed.target}".isascii()
                assert not set(f"{parsed.authority}{parsed.target}") & set(" \r\n\t")


class TestClosing:
    def test_the_server_ends_tcp_first(self) -> None:
        """RFC 6455 7.1.1."""
        steps: queue.Queue[Any] = queue.Queue()

        def talk(sock: Any, accept: bytes) -> None:
            sock.sendall(with_lines().replace(b"%(accept)s", accept))
            steps.put(sock.recv(100))
            sock.sendall(b"\x88\x02\x03\xe8")
            wait_until(lambda: ws.connection.reader.close_reason is not None)
            try:
                steps.put(sock._sock.recv(100))
            except BlockingIOError:
                steps.put("nothing")

        with answering(talk) as url:
            ws = connect(url)
            ws.close()
            assert steps.get()[:2] == b"\x88\x82"
            assert steps.get() == "nothing"
            assert ws.close_reason == (1000, "")

    def test_a_server_that_never_ends_tcp(self) -> None:
        def talk(sock: Any, accept: bytes) -> None:
            sock.sendall(with_lines().replace(b"%(accept)s", accept) + b"\x88\x02\x03\xe8")
            while sock.recv(100):
                pass

        with answering(talk) as url:
            with connect(url, timeout=SHORT) as ws:
                assert list(ws) == []
            assert ws.connection.state == geventws.State.CLOSED

    def test_a_server_that_is_lost(self) -> None:
        with (
            answering(with_lines()) as url,
            connect(url) as ws,
            pytest.raises(geventws.ConnectionClosed, match="1006"),
        ):
            ws.receive(PATIENCE)

    def test_keepalive(self) -> None:
        with (
            answering(with_lines(), keep=True) as url,
            connect(url, ping_interval=0.01, timeout=SHORT) as ws,
            pytest.raises(geventws.ConnectionClosed, match=r"1011 .*no pong came within 0\.1 s"),
        ):
            ws.receive(PATIENCE)


class TestMasks:
    def test_every_frame_is_masked_by_a_key_of_its_own(self) -> None:
        """A2 row 29."""
        buffer = Buffer()
        for _ in range(20_000):
            buffer.append_frame(0x82, b"\x00\x00\x00\x00", True)
        data = buffer.take_bytes()
        keys = {data[at + 2 : at + 6] for at in range(0, len(data), 10)}
        assert all(
            data[at + 1] == 0x84 and data[at + 2 : at + 6] == data[at + 6 : at + 10] for at in range(0, 1000, 10)
        )
        # Of 20,000 keys of 32 bits fewer than one in a million sets has more than five that repeat.
        assert len(keys) >= 19_995

    def test_a_fork_has_other_keys(self) -> None:
        """A2 row 29."""
        readable, writable = os.pipe()
        child = os.fork()
        buffer = Buffer()
        for _ in range(8):
            buffer.append_frame(0x82, b"\x00\x00\x00\x00", True)
        if child == 0:
            os.write(writable, buffer.take_bytes())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writable)
        other = os.read(readable, 1000)
        os.close(readable)
        mine = buffer.take_bytes()
        assert len(other) == len(mine)
        assert not {mine[at : at + 4] for at in range(2, 80, 10)} & {other[at : at + 4] for at in range(2, 80, 10)}

    def test_all_that_a_session_sends(self) -> None:
        heard: queue.Queue[bytes] = queue.Queue()

        def talk(sock: Any, accept: bytes) -> None:
            sock.sendall(with_lines().replace(b"%(accept)s", accept) + b"\x89\x01?\x81\x02go")
            data = b""
            while piece := sock.recv(65536):
                data += piece
                if b"\x88\x82" in data[-10:]:
                    break
            heard.put(data)

        with answering(talk) as url, connect(url) as ws:
            assert ws.receive(PATIENCE) == "go"
            ws.send("x" * 70_000)
            ws.send(b"y" * 200)
            ws.send(["a", "b"])
        data = heard.get()
        seen = []
        while data:
            first, second = data[0], data[1]
            assert second & 0x80, "a client sent a frame without a mask"
            length, at = second & 0x7F, 2
            if length > 125:
                size = 2 if length == 126 else 8
                length, at = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
            key, payload = data[at : at + 4], data[at + 4 : at + 4 + length]
            seen.append((first, bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))))
            data = data[at + 4 + length :]
        assert (0x81, b"x" * 70_000) in seen
        assert (0x82, b"y" * 200) in seen
        assert (0x8A, b"?") in seen
        assert [first for first, _ in seen if first != 0x8A] == [0x81, 0x82, 0x01, 0x00, 0x80, 0x88]


class TestWays:
    def test_unix(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        server = geventws.WSGIServer(listener, make_app(), log=None)
        server.start()
        try:
            with connect("ws://localhost/tell", unix_socket=tmp_path / "s", proxy="http://127.0.0.1:1") as ws:
                assert ws.receive(PATIENCE) == "localhost"
        finally:
            server.stop(1)
            listener.close()

    def test_a_unix_socket_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with pytest.raises(FileNotFoundError, match=f"No such file or directory, connecting to {path}$"):
            connect("ws://localhost/", unix_socket=path)
        with pytest.raises(OSError, match=r"^AF_UNIX path too long, connecting to /x+$"):
            connect("ws://localhost/", unix_socket="/" + "x" * 200)

    def test_ipv6(self) -> None:
        try:
            server = geventws.WSGIServer(("::1", 0), make_app(), log=None)
            server.start()
        except OSError:
            pytest.skip("there is no IPv6 here")
        try:
            with connect(f"ws://[::1]:{server.server_port}/tell") as ws:
                assert ws.receive(PATIENCE) == f"[::1]:{server.server_port}"
        finally:
            server.stop(1)

    def test_nobody_listens(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with pytest.raises(
                ConnectionRefusedError, match=f"Connection refused, connecting to 127.0.0.1 port {port}$"
            ):
                connect(f"ws://127.0.0.1:{port}/")
            proxy = f"http://127.0.0.1:{port}"
            with pytest.raises(ConnectionRefusedError, match=f"refused, connecting to the proxy {proxy}$"):
                connect("ws://example.com/", proxy=proxy)
        with pytest.raises(FileNotFoundError, match=r"No such file or directory, connecting to /nowhere$"):
            connect("ws://example.com/", unix_socket="/nowhere")

    def test_addresses_are_tried_in_turn(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        port = int(url.rpartition(":")[2])
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
        ]
        monkeypatch.setattr("geventws.dialing.getaddrinfo", lambda *_: found)
        with connect(f"ws://many.example:{port}/tell") as ws:
            assert ws.receive(PATIENCE) == f"many.example:{port}"
        found.reverse()
        with connect(f"ws://many.example:{port}/tell"):
            pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_port(authority: trustme.CA) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with serving(make_app(), ssl_context=context) as server:
        yield server.server_port


class TestTLS:
    def context(self, authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    def test_ones_own_authority(self, tls_port: int, authority: trustme.CA) -> None:
        for host in ("localhost", "127.0.0.1"):
            with connect(f"wss://{host}:{tls_port}", ssl_context=self.context(authority)) as ws:
                for message in ("hello", b"x" * 1_000_000):
                    ws.send(message)
                    assert ws.receive(PATIENCE) == message
            assert ws.close_reason == (1000, "")

    def test_the_system_does_not_know_it(self, tls_port: int) -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(f"wss://localhost:{tls_port}")

    def test_another_name(self, tls_port: int, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", tls_port))]
        monkeypatch.setattr("geventws.dialing.getaddrinfo", lambda *_: found)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            connect(f"wss://other.example:{tls_port}", ssl_context=self.context(authority))

    def test_sni(self, authority: trustme.CA) -> None:
        named: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        context.sni_callback = lambda sock, name, _: named.append(name)
        with (
            serving(make_app(), ssl_context=context) as server,
            connect(f"wss://localhost:{server.server_port}", ssl_context=self.context(authority)),
        ):
            pass
        assert named == ["localhost"]

    def test_no_tls_there(self, url: str) -> None:
        with pytest.raises(ssl.SSLError, match=r": what answers speaks no TLS, see whether it is ws://$"):
            connect(url.replace("ws://", "wss://"), ssl_context=self.context(trustme.CA()))

    def test_tls_where_none_was_asked_for(self) -> None:
        """A server of TLS answers with an alert, or only closes."""
        alert = b"\x15\x03\x01\x00\x02\x02\x28"
        with (
            answering(alert) as url,
            pytest.raises(geventws.HandshakeFailed, match="but TLS: see whether it is wss://"),
        ):
            connect(url)

    def test_a_silent_server(self) -> None:
        silent = StreamServer(("127.0.0.1", 0), lambda sock, _: sock.recv(100) and gevent.sleep(60))
        silent.start()
        try:
            with pytest.raises(TimeoutError, match="waiting for the server's part of the TLS handshake"):
                connect(f"wss://127.0.0.1:{silent.server_port}", open_timeout=SHORT)
        finally:
            silent.stop(0)


class Proxy:
    """A proxy for CONNECT that notes what it was asked."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._server = StreamServer(("127.0.0.1", 0), self._serve)

    def __enter__(self) -> str:
        self._server.start()
        return f"127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.stop(1)

    def _serve(self, sock: Any, address: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)
        self.asked.append(head.decode())
        sock.sendall(self._answer)
        if b" 200 " not in self._answer:
            return
        port = int(head.split()[1].rpartition(b":")[2])
        with socket.create_connection(("127.0.0.1", port)) as server:
            back = gevent.spawn(self._copy, server, sock)
            self._copy(sock, server)
            back.join()

    def _copy(self, source: Any, target: Any) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class TestProxies:
    def test_plain(self, url: str) -> None:
        proxy = Proxy()
        with proxy as address, connect(url, proxy=f"http://ada:p%40ss@{address}") as ws:
            ws.send("hello")
            assert ws.receive(PATIENCE) == "hello"
        host = url.removeprefix("ws://")
        assert proxy.asked == [
            f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic YWRhOnBAc3M=\r\n\r\n"
        ]

    def test_tls_from_the_environment(
        self, tls_port: int, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy = Proxy()
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with proxy as address:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
            with connect(f"wss://localhost:{tls_port}", ssl_context=context) as ws:
                ws.send("hello")
                assert ws.receive(PATIENCE) == "hello"
            assert len(proxy.asked) == 1
            with connect(f"wss://localhost:{tls_port}", ssl_context=context, proxy=None):
                pass
            monkeypatch.setenv("NO_PROXY", "example.com,localhost")
            with connect(f"wss://localhost:{tls_port}", ssl_context=context):
                pass
            assert len(proxy.asked) == 1

    @pytest.mark.parametrize(
        ("environ", "url", "found"),
        [
            ({"HTTP_PROXY": "http://a:1"}, "ws://x", "http://a:1"),
            ({"http_proxy": "a:1"}, "ws://x", "http://a:1"),
            ({"HTTP_PROXY": "http://a:1"}, "wss://x", "None"),
            ({"HTTPS_PROXY": "http://a"}, "wss://x", "http://a:80"),
            ({"ALL_PROXY": "http://a:1"}, "ws://x", "http://a:1"),
            ({"ALL_PROXY": "http://a:1", "HTTP_PROXY": "http://b:1"}, "ws://x", "http://b:1"),
            ({"ALL_PROXY": "http://a:1", "NO_PROXY": "*"}, "ws://x", "None"),
            ({"ALL_PROXY": "http://a:1", "NO_PROXY": "x.org:81"}, "ws://x.org:81", "None"),
            ({"ALL_PROXY": "http://a:1", "NO_PROXY": ".x.org"}, "ws://y.x.org", "None"),
        ],
    )
    def test_which_of_the_environment(
        self, environ: dict[str, str], url: str, found: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from geventws.dialing import ENVIRONMENT

        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert str(find_proxy(ENVIRONMENT, parse_url(url))) == found

    @pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "https://127.0.0.1:1", "http://", "http://a:b"])
    def test_no_proxy_for_us(self, proxy: str) -> None:
        with pytest.raises(ValueError, match=r"^proxy "):
            connect("ws://127.0.0.1:1/", proxy=proxy)

    def test_refused(self, url: str) -> None:
        with (
            Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 6\r\n\r\nlog in") as address,
            pytest.raises(geventws.ProxyRefused, match=r"^the proxy refused to connect: 407 .*: log in$") as refused,
        ):
            connect(url, proxy=f"http://{address}")
        assert refused.value.status == 407

    def test_one_that_is_not_there(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as taken:
            # Bound, and nobody listens.
            taken.bind(("127.0.0.1", 0))
            proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
            monkeypatch.setenv("HTTP_PROXY", proxy.replace("//", "//ada:secret@"))
            with pytest.raises(ConnectionRefusedError) as raised:
                connect(url)
        assert raised.value.errno == errno.ECONNREFUSED
        assert raised.value.strerror == f"Connection refused, connecting to the proxy {proxy}"

    def test_one_that_says_too_much(self, url: str) -> None:
        with (
            Proxy(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101") as address,
            pytest.raises(geventws.HandshakeFailed, match="before the server could"),
        ):
            connect(url, proxy=f"http://{address}")


class TestURLs:
    @pytest.mark.parametrize(
        ("url", "host", "port", "target", "authority"),
        [
            ("ws://example.com", "example.com", 80, "/", "example.com"),
            ("WSS://EXAMPLE.com/a?b=c&d", "example.com", 443, "/a?b=c&d", "example.com"),
            ("ws://example.com:443?x", "example.com", 443, "/?x", "example.com:443"),
            ("ws://bücher.example/ä?ö", "xn--bcher-kva.example", 80, "/%C3%A4?%C3%B6", "xn--bcher-kva.example"),
            ("ws://[2001:db8::1]:81/", "2001:db8::1", 81, "/", "[2001:db8::1]:81"),
            ("ws://[fe80::1%25eth0]/", "fe80::1%eth0", 80, "/", "[fe80::1]"),
            ("ws://a/%20%zz", "a", 80, "/%20%zz", "a"),
        ],
    )
    def test_parts(self, url: str, host: str, port: int, target: str, authority: str) -> None:
        parsed = parse_url(url)
        assert (parsed.host, parsed.port, parsed.target, parsed.authority) == (host, port, target, authority)

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("http://a", "must begin with ws:// or wss://, not http://"),
            ("localhost:8000", "must begin with ws:// or wss://, as in"),
            ("ws:///a", "must have a host"),
            ("ws://a/#b", "no #fragment"),
            ("ws://a/#", "no #fragment"),
            ("ws://a b/", "no spaces"),
            ("ws://a/\r\nX: y", "no spaces and no control"),
            ("ws://a:99999/", "no URL of a WebSocket"),
            ("ws://a:0/", "a port from 1 to 65535, not 0"),
            ("ws://[::x]/", "no"),
            ("ws://a<b/", "host that is no name"),
            (f"ws://{'a' * 64}.example/", "host that is no name"),
        ],
    )
    def test_wrong_ones(self, url: str, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            connect(url)

    def test_the_password_is_in_no_text(self) -> None:
        assert str(parse_url("ws://ada:secret@a:1/b")) == "ws://a:1/b"
        with pytest.raises(ValueError, match="out of range") as wrong:
            parse_url("ws://ada:secret@a:99999/")
        assert "secret" not in str(wrong.value)


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"open_timeout": 0}, "open_timeout must be"),
            ({"max_head_size": 0}, "max_head_size must be"),
            ({"timeout": None}, "timeout must be"),
            ({"masking": False}, "clients always mask"),
            ({"origins": None}, "a client's own is origin="),
            ({"max_frame_sise": 1}, r"there is no option max_frame_sise: max_frame_size\?"),
            ({"protocols": "v1"}, "protocols must be a list"),
            ({"protocols": ["a b"]}, "must be tokens"),
            ({"protocols": ["a", "a"]}, "names one twice"),
            ({"headers": {"Sec-WebSocket-Key": "x"}}, "not for an app to set in the request of a handshake"),
            ({"headers": ["X: y"]}, "must be a dict or a list of pairs"),
            ({"origin": "a\r\nb"}, "the header Origin has characters"),
            ({"ssl_context": ssl.create_default_context()}, "ssl_context is for wss://"),
            ({"raw": True, "ping_interval": 3}, "ping_interval is for default sessions"),
            ({"retries": 3}, "are for reconnect=True"),
            ({"reconnect": True, "min_delay": 0}, "min_delay must be"),
            ({"reconnect": True, "min_delay": 5, "max_delay": 1}, "max_delay must not be below"),
            ({"reconnect": True, "retries": -1}, "retries must be"),
        ],
    )
    def test_wrong_ones(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises((ValueError, TypeError), match=told):
            connect("ws://127.0.0.1:1/", **options)


class TestReconnecting:
    @pytest.fixture(autouse=True)
    def _fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("geventws.client.Connections._delay", lambda self: 0.001)

    def test_one_connection_after_the_other(self, url: str) -> None:
        seen = []
        for ws in connect(f"{url}/goodbye", reconnect=True):
            assert list(ws) == []
            seen.append(ws.close_reason)
            if len(seen) == 3:
                break
        assert seen == [(4000, "enough")] * 3

    def test_what_is_left_open_is_closed(self, url: str) -> None:
        sessions = []
        for ws in connect(url, reconnect=True):
            sessions.append(ws)
            if len(sessions) == 3:
                break
        assert [ws.close_reason for ws in sessions[:2]] == [(1000, "")] * 2
        del ws
        assert sessions[2].wait_closed(PATIENCE)
        assert sessions[2].close_reason == (1000, "")

    def test_connection_closed_is_the_bodys_to_catch(self, url: str) -> None:
        count = 0
        with pytest.raises(geventws.ConnectionClosed):
            for ws in connect(f"{url}/goodbye", reconnect=True):
                count += 1
                try:
                    ws.receive(PATIENCE)
                except geventws.ConnectionClosed:
                    if count == 3:
                        raise
        assert count == 3

    def test_failures_that_pass(self) -> None:
        answers = [
            b"",
            b"HTTP/1.1 503 Busy\r\n\r\n",
            b"HTTP/1.1 429 Slow\r\n\r\n",
            with_lines() + b"\x81\x02hi\x88\x02\x03\xe8",
        ]
        with answering(*answers) as url, connect(url, reconnect=True) as connections:
            assert list(next(connections)) == ["hi"]

    @pytest.mark.parametrize("answer", [b"HTTP/1.1 401 No\r\n\r\n", b"HTTP/1.1 501 No\r\n\r\n", b"SSH-2.0"])
    def test_failures_that_stay(self, answer: bytes) -> None:
        with answering(b"", answer) as url, pytest.raises(geventws.HandshakeFailed):
            next(connect(url, reconnect=True))

    def test_retries(self) -> None:
        with answering(b"HTTP/1.1 503 Busy\r\n\r\n") as url, pytest.raises(geventws.HandshakeRefused, match="503"):
            next(connect(url, reconnect=True, retries=3))

    def test_close_from_another_greenlet(self, url: str) -> None:
        connections = connect(url, reconnect=True)
        gevent.spawn(connections.close)
        assert sum(1 for ws in connections for _ in ws) == 0
        with pytest.raises(StopIteration):
            next(connections)

    def test_a_with_block(self, url: str) -> None:
        with connect(url, reconnect=True) as connections:
            ws = next(connections)
        assert ws.close_reason == (1000, "")
        with pytest.raises(KeyError), connect(url, reconnect=True) as connections:
            ws = next(connections)
            raise KeyError
        assert ws.close_reason == (1011, "")

    def test_what_passes(self) -> None:
        assert _passes(OSError())
        assert _passes(TimeoutError())
        assert _passes(ssl.SSLEOFError())
        assert not _passes(ssl.SSLCertVerificationError())


def test_waits_are_random_and_double(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = connect(url, reconnect=True, min_delay=1, max_delay=10)
    most = []
    for failures in (0, 1, 2, 3, 4, 5, 10_000):
        connections._failures = failures
        monkeypatch.setattr("geventws.client.urandom", lambda count: b"\xff" * count)
        most.append(round(connections._delay()))
        monkeypatch.setattr("geventws.client.urandom", bytes)
        assert connections._delay() == 0
    assert most == [1, 1, 2, 4, 8, 10, 10]


class TestOtherServers:
    def test_websockets(self) -> None:
        from websockets.sync.server import serve

        def handler(connection: Any) -> None:
            for message in connection:
                connection.send(message)

        with serve(handler, "127.0.0.1", 0, subprotocols=["v1"]) as server:  # type: ignore[list-item]
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
                extensions = [geventws.PermessageDeflate()]
                with connect(url, protocols=["v1"], extensions=extensions) as ws:
                    assert ws.protocol == "v1"
                    assert len(ws.extensions) == 1
                    for message in ("hello", "a" * 100_000, b"x" * 500_000):
                        ws.send(message)
                        assert ws.receive(PATIENCE) == message
                    assert ws.ping() < PATIENCE
                assert ws.close_reason == (1000, "")
            finally:
                server.shutdown()
                thread.join()

    def test_aiohttp(self) -> None:
        from aiohttp import WSMsgType, web

        async def handler(request: Any) -> Any:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            async for message in ws:
                if message.type == WSMsgType.TEXT:
                    await ws.send_str(message.data)
                else:
                    await ws.send_bytes(message.data)
            return ws

        ports: queue.Queue[int] = queue.Queue()
        loop = asyncio.new_event_loop()
        over = asyncio.Event()

        async def serve() -> None:
            app = web.Application()
            app.router.add_get("/", handler)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            ports.put(runner.addresses[0][1])
            await over.wait()
            await runner.cleanup()

        def run() -> None:
            loop.run_until_complete(serve())
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            with connect(f"ws://127.0.0.1:{ports.get()}/", extensions=[geventws.PermessageDeflate()]) as ws:
                for message in ("hello", "a" * 100_000, b"x" * 500_000):
                    ws.send(message)
                    assert ws.receive(PATIENCE) == message
                assert ws.ping() < PATIENCE
            assert ws.close_reason == (1000, "")
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()


class TestCommand:
    def run(self, *arguments: str, given: bytes = b"") -> tuple[int, bytes, str]:
        # In a thread, as the server that it talks to is in this one; gevent's own would reap others' children too.
        done = gevent.get_hub().threadpool.apply(
            subprocess.run,
            ([sys.executable, "-m", "geventws", "connect", *arguments],),
            {"input": given, "capture_output": True, "cwd": ROOT, "timeout": 60},
        )
        return done.returncode, done.stdout, done.stderr.decode()

    def test_a_pipe(self, url: str) -> None:
        assert self.run(f"{url}/goodbye")[::2] == (1, "closed: 4000 private: 'enough'\n")
        told = self.run(f"{url}/tell", "--header", "X-Room: 7", "--origin", f"http://{url[5:]}")
        assert told[0] == 0
        assert told[1].split()[:4] == [url[5:].encode(), b"None", f"http://{url[5:]}".encode(), b"7"]
        assert self.run(f"{url}/protocol", "--protocol", "v1", "--protocol", "v2")[1] == b"v2\n"

    def test_lines_are_messages(self, url: str) -> None:
        given = "a\nü\r\n\nlast".encode()
        assert self.run(f"{url}/some?4", given=given) == (0, "a\nü\n\nlast\n".encode(), "")
        assert self.run(f"{url}/some?1", "--binary", given=b"\xff\n") == (0, b"\xff\n", "")
        status, output, told = self.run(f"{url}/some?1", given=b"\xff\nx\n")
        assert (status, output) == (1, b"x\n")
        assert told == "a line is not UTF-8, and is not sent: --binary sends it as it is\n"

    def test_it_ends_with_its_input(self, url: str) -> None:
        assert self.run(url, given=b"hi\nyou\n") == (0, b"hi\nyou\n", "")
        assert self.run(f"{url}/silent", "--wait", "0.01", given=b"a\n") == (0, b"", "")

    def test_no_answer_is_lost_at_its_end(self, url: str) -> None:
        """The wait begins when the server has all that was sent."""
        assert self.run(f"{url}/late", "--wait", "0", given=b"a\nb\n") == (0, b"a\nb\n", "")

    def test_it_may_wait_for_the_server_s_end(self, url: str) -> None:
        assert self.run(f"{url}/last", "--wait", "inf", given=b"a\n") == (0, b"a\n", "")

    @pytest.mark.parametrize("wait", ["-1", "nan", "soon"])
    def test_what_is_no_time_to_wait(self, url: str, wait: str, capsys: Any) -> None:
        with pytest.raises(SystemExit) as ended:
            command(["connect", url, "--wait", wait])
        assert ended.value.code == 2
        assert (
            f"argument --wait: it must be a number of seconds from 0 up, or inf, not '{wait}'"
            in capsys.readouterr().err
        )

    def test_help_names_the_environment(self, capsys: Any) -> None:
        with pytest.raises(SystemExit):
            command(["connect", "--help"])
        told = capsys.readouterr().out
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
            assert name in told

    def test_failures_are_one_line(self, url: str) -> None:
        for arguments, told in (
            ([f"{url}/private"], f'no connection to {url}/private: 401 Unauthorized: {{"error": "log in first"}}\n'),
            (
                ["ws://u:p@127.0.0.1:1/"],
                "no connection to ws://127.0.0.1:1/: Connection refused, connecting to 127.0.0.1 port 1\n",
            ),
            (["ws://a/", "--unix", "/no"], "no connection to ws://a/: No such file or directory, connecting to /no\n"),
        ):
            assert self.run(*arguments) == (1, b"", told)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["http://a"], "the URL must begin with ws:// or wss://, not http://"),
            (["ws://a", "--ping", "0"], "argument --ping: it must be a number of seconds above 0, not '0'"),
            (["ws://a", "--timeout", "nan"], "argument --timeout: it must be a number of seconds above 0, not 'nan'"),
            (["ws://a", "--header", "x"], "--header must be 'NAME: VALUE', not 'x'"),
            (["ws://a", "--insecure"], "--insecure is for wss:// URLs, whose certificate it does not verify"),
            (["ws://a", "--protocol", "a b"], "protocols must be tokens (RFC 6455 4.1), and 'a b' is none"),
        ],
    )
    def test_a_wrong_argument_is_told_by_its_name(self, arguments: list[str], told: str, capsys: Any) -> None:
        with pytest.raises(SystemExit) as ended:
            connect_command(arguments)
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(f"error: {told}\n")

    def test_insecure(self, tls_port: int) -> None:
        status, _, told = self.run(f"wss://localhost:{tls_port}/tell")
        assert status == 1
        assert "certificate verify failed" in told
        assert self.run(f"wss://localhost:{tls_port}/tell", "--insecure")[0] == 0

    def test_an_authority_of_one_s_own(
        self, tls_port: int, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert self.run(f"wss://localhost:{tls_port}/tell")[0] == 0

    def test_a_terminal(self, url: str) -> None:
        master, slave = os.openpty()
        program = subprocess.Popen(
            [sys.executable, "-m", "geventws", "connect", url], stdin=slave, stdout=slave, stderr=slave, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)

        def until(text: str) -> None:
            seen = b""
            with gevent.Timeout(PATIENCE, AssertionError(text)):
                while text.encode() not in seen:
                    socket.wait_read(master)
                    seen += os.read(master, 1000)

        try:
            until(f"connected to {url}/; Ctrl-D closes")
            os.write(master, b"h\x1b[2J\n")
            until("< h\\x1b[2J")
            os.write(master, b"\x04")
            until("closed: 1000 normal")
            with gevent.Timeout(PATIENCE):
                while program.poll() is None:
                    gevent.sleep(0.01)
            assert program.returncode == 0
        finally:
            if program.poll() is None:
                program.kill()
            program.wait()
            os.close(master)

    def test_ctrl_c(self, url: str) -> None:
        with Program(sys.executable, "-m", "geventws", "connect", url) as program:
            program.say("hello")
            with gevent.Timeout(PATIENCE):
                while not (program._printed.qsize()):
                    gevent.sleep(0.01)
            program.wait_for("hello")
            program.process.send_signal(signal.SIGINT)
            with gevent.Timeout(PATIENCE):
                while program.process.poll() is None:
                    gevent.sleep(0.01)
            assert program.process.returncode == 130
            assert "Traceback" not in "\n".join(program.rest())

    def test_ctrl_c_while_it_connects(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
            with Program(sys.executable, "-m", "geventws", "connect", url) as program, gevent.Timeout(PATIENCE):
                with listener.accept()[0] as sock:
                    sock.recv(1)
                    program.process.send_signal(signal.SIGINT)
                    while program.process.poll() is None:
                        gevent.sleep(0.01)
                assert program.process.returncode == 130
                assert program.rest() == []
