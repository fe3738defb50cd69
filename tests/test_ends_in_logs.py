"""What an operator reads of a WebSocket when it is over: its line in the access log, and a line for what went wrong."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import geventws
from tests.rigs import Peer, eventually, gunicorn, offer, standalone
from tests.wire import BINARY, TEXT, close_frame, frame

app = geventws.WebSockets(timeout=1.0)


@app.route("/echo")
def echo(session: geventws.DefaultWebSocketServerSession) -> None:
    for message in session:
        session.send(message)


@app.route("/fails", endpoint="a.route")
def fails(session: geventws.DefaultWebSocketServerSession) -> None:
    session.receive()
    raise ValueError("the handler's own fault")


@app.route("/push")
def push(session: geventws.DefaultWebSocketServerSession) -> None:
    while True:
        session.send(b"x" * 100_000)


class Served(NamedTuple):
    """A server of ``app``, what it logged of accesses and of the rest."""

    address: Any
    accesses: Callable[[], list[str]]
    errors: Callable[[], list[str]]


@pytest.fixture(scope="module", params=["standalone", "gunicorn"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if request.param == "standalone":
        with standalone(app) as server:
            yield Served(server.address, server.log, server.errors)
    else:
        log_format = '--access-logformat=%(h)s - - %(t)s "%(r)s" %(s)s %(b)s %(L)s %({geventws.close_code}e)s'
        with gunicorn(
            tmp_path_factory.mktemp("gunicorn"), log_format, application="tests.test_ends_in_logs:app"
        ) as running:
            yield Served(running.address, lambda: running.lines("HTTP/1.1"), lambda: running.log().splitlines())


def opened(served: Served, path: str, receive_buffer: int | None = None) -> Peer:
    """A peer with a session."""
    peer = Peer(served.address)
    if receive_buffer is not None:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer.send(offer(path))
    assert b" 101 " in peer.until(b"\r\n\r\n")
    return peer


def line_of(served: Served, path: str) -> list[str]:
    """What the access log has of a path from the status on, when it is there."""
    found = eventually(
        lambda: [line for line in served.accesses() if f'"GET {path} HTTP/1.1"' in line], "the access log's line"
    )
    assert len(found) == 1
    return str(found[0].rpartition('" ')[2]).split()


def test_the_access_log_has_status_bytes_seconds_and_close_code(served: Served) -> None:
    with opened(served, "/echo?closed") as peer:
        peer.send(frame(TEXT, b"Hello") + close_frame(4321))
        rest = peer.rest()
    status, sent, seconds, code = line_of(served, "/echo?closed")
    assert (status, code) == ("101", "4321")
    head = len("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    assert int(sent) > head + len(rest)
    assert 0 <= float(seconds) < 10


def test_a_lost_connection_is_a_1006(served: Served) -> None:
    with opened(served, "/echo?lost"):
        pass
    assert line_of(served, "/echo?lost")[::3] == ["101", "1006"]


@pytest.mark.parametrize(
    ("wire", "code", "why"),
    [
        (frame(BINARY, b"x", key=None), 1002, "a frame from the client is not masked"),
        (frame(TEXT, b"\xff"), 1007, "a text message is not UTF-8"),
        (frame(BINARY, b"x", length=b"\x7f\0\0\0\1\0\0\0\0"), 1009, "a message of"),
    ],
)
def test_a_violation_is_one_line(served: Served, wire: bytes, code: int, why: str) -> None:
    path = f"/echo?{code}"
    with opened(served, path) as peer:
        peer.send(wire)
        peer.rest()
    assert line_of(served, path)[::3] == ["101", str(code)]
    lines = [line for line in served.errors() if f"the WebSocket failed with {code}" in line]
    assert len(lines) == 1
    assert re.search(rf"127\.0\.0\.1:\d+: the WebSocket failed with {code}: {why}", lines[0])


def test_a_peer_that_takes_nothing_is_one_line(served: Served) -> None:
    with opened(served, "/push"):
        assert line_of(served, "/push")[::3] == ["101", "1006"]
    assert len([line for line in served.errors() if "the peer took none of the bytes" in line]) == 1


def test_a_peer_that_takes_little_is_kept(served: Served) -> None:
    # So little in a second that the kernel sees no room worth telling of in its own buffer.
    with opened(served, "/push?little", receive_buffer=4096) as peer:
        taken = 0
        for _ in range(35):
            taken += len(peer.exactly(4096))
            time.sleep(0.1)
        assert taken == 35 * 4096
        assert not any("/push?little" in line for line in served.accesses())


def test_a_flood_of_violations_is_summed_up(served: Served) -> None:
    for _ in range(60):
        with opened(served, "/echo?flood") as peer:
            peer.send(b"\x83\x80\0\0\0\0")
            assert peer.rest()
    eventually(
        lambda: [line for line in served.errors() if "more in a second: the WebSocket failed with 1002" in line],
        "the sum",
    )
    assert len([line for line in served.errors() if "reserved opcode" in line]) < 50


def test_no_traceback_for_what_peers_did(served: Served) -> None:
    # The tests before have done much wrong.
    assert not [line for line in served.errors() if "Traceback" in line]


def test_a_handlers_own_exception_is_logged_once_with_its_route(
    tmp_path: Path,
) -> None:
    errors = tmp_path / "errors"
    with gunicorn(tmp_path, f"--error-logfile={errors}", application="tests.test_ends_in_logs:app") as running:
        with opened(Served(running.address, list, list), "/fails") as peer:
            peer.send(frame(TEXT, b"go"))
            assert peer.rest() == b"\x88\x02\x03\xf3"
        eventually(lambda: running.lines('"GET /fails'), "the end")
        assert "Traceback" not in running.log()
        log = errors.read_text()
        assert re.search(
            r"^\[.* \[ERROR\] the handler a.route failed, '/fails' of 127\.0\.0\.1:\d+$", log, re.MULTILINE
        )
        assert log.count("the handler a.route failed") == 1
        assert log.count("ValueError: the handler's own fault") == 1
        assert log.count("Traceback") == 1
