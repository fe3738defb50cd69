"""Who owns a connection: what both servers do around ``environ["geventws.upgrade"]``, up to the last byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from geventws import UsageError
from geventws.upgrade import NO_INPUT, Upgrade, flatten, lighten, names_websocket
from tests.rigs import SWITCHED, Certificates, Peer, eventually, gunicorn, offer, request, standalone


class Served(NamedTuple):
    """A server of ``tests.rigs.app``: where, what it logged of accesses, and what the application noted."""

    connect: Callable[[], Peer]
    log: Callable[[], list[str]]
    notes: Path


@pytest.fixture(scope="module", params=["standalone", "gunicorn", "standalone-tls", "gunicorn-tls"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp(request.param)
    kind, _, tls = request.param.partition("-")
    certificates = Certificates(directory) if tls else None
    files = {"certfile": certificates.certfile, "keyfile": certificates.keyfile} if certificates else {}
    context = certificates.client if certificates else None
    if kind == "standalone":
        with pytest.MonkeyPatch.context() as patch, standalone(**files) as server:
            patch.setenv("RIG_NOTES", str(directory / "notes"))
            yield Served(lambda: Peer(server.address, context), server.log, directory / "notes")
    else:
        arguments = [f"--{name}={value}" for name, value in files.items()]
        with gunicorn(directory, *arguments) as running:
            yield Served(lambda: Peer(running.address, context), lambda: running.lines("HTTP/1.1"), directory / "notes")


# -- Taken -------------------------------------------------------------------------------------------------------------


def test_the_101_is_all_that_is_written_before_the_application_writes(served: Served) -> None:
    with served.connect() as peer:
        peer.send(offer())
        assert peer.exactly(len(SWITCHED)) == SWITCHED
        assert peer.echoes(b"hello")


def test_bytes_behind_the_handshake_reach_the_application(served: Served) -> None:
    with served.connect() as peer:
        peer.send(offer() + b"early")
        assert peer.exactly(len(SWITCHED) + 5) == SWITCHED + b"early"


def test_the_handshake_may_be_cut_anywhere(served: Served) -> None:
    data = offer() + b"some payload"
    for cut in range(1, len(data)):
        with served.connect() as peer:
            peer.send(data[:cut])
            peer.send(data[cut:])
            assert peer.exactly(len(SWITCHED) + 12) == SWITCHED + b"some payload", cut


def test_the_handshake_may_come_byte_by_byte(served: Served) -> None:
    with served.connect() as peer:
        for byte in offer() + b"!":
            peer.send(bytes([byte]))
        assert peer.exactly(len(SWITCHED) + 1) == SWITCHED + b"!"


@pytest.mark.parametrize(
    "path", ["/returns", "/returns?begun", "/raises?value", "/raises?os", "/raises?timeout", "/generator"]
)
def test_nothing_of_http_is_written_after_the_101(served: Served, path: str) -> None:
    with served.connect() as peer:
        peer.send(offer(path))
        assert peer.exactly(len(SWITCHED)) == SWITCHED
        if path == "/generator":
            peer.socket.close()
        else:
            assert peer.rest() == b""


@pytest.mark.parametrize("path", ["/returns", "/returns?begun", "/raises?value"])
def test_a_request_behind_the_handshake_is_never_served(served: Served, path: str) -> None:
    before = len(served.log())
    with served.connect() as peer:
        peer.send(offer(path) + request("/pid"))
        assert peer.rest() == SWITCHED
    # The line of the taken request is the last one, for each server logs in the greenlet of the connection.
    lines = eventually(lambda: len(served.log()) > before and served.log()[before:], "the access log's line")
    assert [line for line in lines if "/pid" in line] == []


def test_a_request_after_the_session_is_never_served(served: Served) -> None:
    with served.connect() as peer:
        peer.open("/scheme")
        try:
            peer.send(request("/pid"))
        except OSError:
            return
        assert b"HTTP/" not in peer.rest()


def test_the_result_of_a_taken_request_is_closed_and_not_read(served: Served) -> None:
    with served.connect() as peer:
        peer.open("/returns")
        peer.rest()
    notes = eventually(lambda: served.notes.exists() and served.notes.read_text().split("\n"), "the application's note")
    assert "result closed" in notes
    assert "result read" not in notes


def test_a_session_is_logged_at_its_end_with_status_101(served: Served) -> None:
    before = len(served.log())
    with served.connect() as peer:
        peer.open("/echo?logged")
        assert not [line for line in served.log()[before:] if "/echo?logged" in line]
    line = eventually(lambda: [line for line in served.log() if "/echo?logged" in line], "the access log's line")
    assert len(line) == 1
    assert '"GET /echo?logged HTTP/1.1" 101 ' in line[0]


# -- Not taken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/refused", 426), ("/", 200), ("/fails", 500)])
def test_an_offer_that_is_not_taken_ends_the_connection(served: Served, path: str, status: int) -> None:
    with served.connect() as peer:
        assert peer.ask(offer(path, version="12") + request("/pid")) == status
        assert b"\r\nconnection: close\r\n" in peer.head.lower()
        assert peer.rest() == b""


def test_a_request_that_comes_after_a_refusal_is_never_served(served: Served) -> None:
    before = len(served.log())
    with served.connect() as peer:
        assert peer.ask(offer("/refused")) == 426
        try:
            peer.send(request("/pid"))
            assert peer.rest() == b""
        except OSError:
            pass
    assert [line for line in served.log()[before:] if "/pid" in line] == []


def test_an_offer_of_another_protocol_is_a_plain_request(served: Served) -> None:
    with served.connect() as peer:
        assert (
            peer.ask(request("/", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAA")) == 200
        )
        assert peer.ask(request("/")) == 200


def test_a_connection_can_not_be_taken_once_the_response_has_begun(served: Served) -> None:
    with served.connect() as peer:
        peer.send(offer("/late"))
        answer = peer.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"the response has begun" in answer


@pytest.mark.parametrize(
    "fields_and_body",
    [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")],
)
def test_a_request_with_a_body_can_not_be_upgraded(served: Served, fields_and_body: tuple[str, bytes]) -> None:
    fields, body = fields_and_body
    with served.connect() as peer:
        assert peer.ask(offer("/with-body", fields, method="POST") + body) == 200
        assert peer.body == b"a request with a body can't be upgraded"
        assert peer.rest() == b""


@pytest.mark.parametrize("field", ["Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 12", "Origin: a", "Host: other"])
def test_a_field_that_may_stand_once_is_not_joined(served: Served, field: str) -> None:
    extra = ["Origin: b"] if field.startswith("Origin") else []
    with served.connect() as peer:
        assert peer.ask(offer("/echo", *extra, field) + request("/pid")) == 400
        assert peer.rest() == b""


def test_bytes_that_are_no_text_in_a_field_harm_nobody(served: Served) -> None:
    with served.connect() as peer:
        peer.ask(offer("/refused", "Sec-WebSocket-Protocol: \xff\xfe"))
    with served.connect() as peer:
        assert peer.open().echoes(b"hello")


def test_2000_fields_are_refused(served: Served) -> None:
    fields = [f"{chr(97 + number // 26 % 26)}{chr(97 + number % 26)}: x" for number in range(2000)]
    with served.connect() as peer:
        try:
            assert peer.ask(offer("/echo", *fields)) in (400, 431)
        except ConnectionError:
            # gunicorn may close while we still send.
            pass
    with served.connect() as peer:
        assert peer.open().echoes(b"hello")


# -- The object --------------------------------------------------------------------------------------------------------


def test_an_upgrade_is_taken_once() -> None:
    sessions: set[Any] = set()
    upgrade = Upgrade(lambda: ("socket", bytearray(b"early")), ("192.0.2.1", 5), sessions)
    assert (upgrade.taken, upgrade.remote_address, upgrade.sessions) == (False, ("192.0.2.1", 5), sessions)
    assert upgrade.take() == ("socket", b"early")
    assert upgrade.taken
    with pytest.raises(UsageError, match="taken already"):
        upgrade.take()


def test_an_upgrade_that_the_server_can_not_give_stays_untaken() -> None:
    def release() -> tuple[Any, bytearray]:
        raise UsageError("begun")

    upgrade = Upgrade(release, "", set())
    with pytest.raises(UsageError, match="begun"):
        upgrade.take()
    assert not upgrade.taken


def test_an_upgrade_ends_with_its_request() -> None:
    upgrade = Upgrade(lambda: ("socket", bytearray()), "", set())
    upgrade.expire()
    with pytest.raises(UsageError, match="the request is over"):
        upgrade.take()
    assert not upgrade.taken


@pytest.mark.parametrize("value", ["websocket", "WebSocket", "h2c, websocket", " \twebsocket\t,h2c"])
def test_an_upgrade_field_names_websocket(value: str) -> None:
    assert names_websocket(value)


@pytest.mark.parametrize("value", [None, "", "h2c", "websockets", "xwebsocket", "websocket/13", "web socket"])
def test_an_upgrade_field_does_not_name_websocket(value: str | None) -> None:
    assert not names_websocket(value)


def test_the_environ_of_a_session_keeps_what_the_session_needs() -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "HTTP_HOST": "a",
        "wsgi.input": object(),
        "mine": 5,
    }
    lighten(environ)
    assert environ == {"REQUEST_METHOD": "GET", "HTTP_HOST": "a", "wsgi.input": NO_INPUT, "mine": 5}
    assert (NO_INPUT.read(), NO_INPUT.readline(5), NO_INPUT.readlines(), list(NO_INPUT)) == (b"", b"", [], [])


def test_an_application_of_any_kind_is_called() -> None:
    class Instance:
        def __call__(self, *arguments: Any) -> Any:
            return arguments

    def function(*arguments: Any) -> Any:
        return arguments

    for application in (Instance(), function, Instance().__call__, partial(function, 1), tuple):
        assert flatten(application)((1, 2)) == application((1, 2))
