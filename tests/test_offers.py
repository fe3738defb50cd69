"""Offers to the gunicorn worker, which our own parser reads where they are plain: no application sees which one did."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from geventws.offers import OfferReader
from tests.rigs import KEY, NOTING, SWITCHED, Gunicorn, Peer, configuration, eventually, gunicorn, offer, request

#: With it gunicorn's parser reads all requests.
ALL_BY_GUNICORN = "handshake_timeout = None"

HOOKS = (
    NOTING
    + """
def pre_request(worker, req):
    note(f"pre {req.method} {req.uri} {req.path} {req.query} {req.version} {req.scheme} {sorted(req.headers)}")

def post_request(worker, req, environ, resp):
    note(f"post {environ['PATH_INFO']} {resp.status} {sorted(resp.headers)}")
"""
)

OFFER = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY.encode(),
    b"Sec-WebSocket-Version: 13",
)


def head(
    target: bytes = b"/environ", *fields: bytes, version: bytes = b"HTTP/1.1", host: bytes = b"Host: a:1"
) -> bytes:
    """A request that offers a WebSocket, and may be odd."""
    return b"\r\n".join([b"GET " + target + b" " + version, *([host] if host else []), *OFFER, *fields, b"", b""])


def without(field: bytes) -> bytes:
    """An offer whose field of this name is to be replaced."""
    return b"\r\n".join(line for line in head().split(b"\r\n") if not line.startswith(field))[:-2]


#: What our parser takes.
PLAIN = {
    "plain": head(),
    "query": head(b"/environ?a=%2F&b=?c"),
    "empty query": head(b"/environ?"),
    "escaped path": head(b"/envir%6Fn"),
    "bytes in the path": head(b"/environ?%C3%A9"),
    "names in any case": head(b"/environ", b"oRiGiN: http://a", b"x-a:b"),
    "repeated": head(b"/environ", b"X-A: 1", b"X-A: 2", b"x-a:3"),
    "empty values": head(b"/environ", b"X-A:", b"X-B: \t "),
    "space around": head(b"/environ", b"X-A: \t a b \t"),
    "bytes in a value": head(b"/environ", b"X-A: \xe9\xff"),
    "content type": head(b"/environ", b"Content-Type: text/plain"),
    "cookie": head(b"/environ", b"Cookie: a=b; c=d"),
    "websocket in any case": without(b"Upgrade") + b"upgrade:WebSocket\r\n\r\n",
    "of a browser": head(b"/environ", b"Origin: http://a:1", b"Accept-Encoding: gzip", b"Sec-Fetch-Mode: websocket"),
    "from another proxy": head(b"/environ", b"X-Forwarded-For: 1.2.3.4", b"X-Real-IP: 1.2.3.4", b"Via: 1.1 a"),
    "underscore in a value": head(b"/environ", b"X-A: a_b"),
    "path of nothing": head(b"//environ"),
}

#: What is left to gunicorn.
LEFT = {
    "scheme of a proxy": head(b"/environ", b"X-Forwarded-Proto: https"),
    "two schemes": head(b"/environ", b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"),
    "script name of a proxy": head(b"/a/environ", b"SCRIPT_NAME: /a"),
    "underscore": head(b"/environ", b"X_A: b"),
    "absolute": head(b"http://b/environ"),
    "asterisk": head(b"*"),
    "fragment": head(b"/environ#a"),
    "HTTP/1.0": head(version=b"HTTP/1.0"),
    "HTTP/1.2": head(version=b"HTTP/1.2"),
    "HTTP/2.0": head(version=b"HTTP/2.0"),
    "two protocols": without(b"Upgrade") + b"Upgrade: h2c, websocket\r\n\r\n",
    "two upgrades": head(b"/environ", b"Upgrade: websocket"),
    "odd name of upgrade": without(b"Upgrade") + b"UPGRADE: websocket\r\n\r\n",
    "another protocol": without(b"Upgrade") + b"Upgrade: h2c\r\n\r\n",
    "expects": head(b"/environ", b"Expect: 100-continue"),
    "expects something": head(b"/environ", b"Expect: something"),
    "empty body": head(b"/environ", b"Content-Length: 0"),
    "body": head(b"/environ", b"Content-Length: 1") + b"a",
    "two lengths": head(b"/environ", b"Content-Length: 1", b"Content-Length: 1") + b"a",
    "no number as length": head(b"/environ", b"Content-Length: a"),
    "chunked": head(b"/environ", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "no host": head(host=b""),
    "two hosts": head(b"/environ", b"Host: b"),
    "two keys": head(b"/environ", b"Sec-WebSocket-Key: a"),
    "two origins": head(b"/environ", b"Origin: a", b"Origin: b"),
    "folded": head(b"/environ", b"X-A: a", b" b"),
    "space before the colon": head(b"/environ", b"X-A : a"),
    "no colon": head(b"/environ", b"X-A"),
    "no name": head(b"/environ", b": a"),
    "control character": head(b"/environ", b"X-A: a\x00b"),
    "bare CR": head(b"/environ", b"X-A: a\rb"),
    "bare LF": head(b"/environ", b"X-A: a\nX-B: b"),
    "line ends in LF": head().replace(b"\r\n", b"\n"),
    "long field": head(b"/environ", b"X-A: " + b"a" * 9000),
    "long line": head(b"/environ?" + b"a" * 4200),
    "many fields": head(b"/environ", *[b"X-%d: a" % number for number in range(100)]),
    "bytes in the target": head(b"/environ?\xe9"),
    "post": b"POST" + head()[3:],
    "lower case": b"get" + head()[3:],
    "empty line before": b"\r\n" + head(),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, Gunicorn]]:
    """A worker as it is, and one whose requests gunicorn's parser reads."""
    with (
        gunicorn(tmp_path_factory.mktemp("ours")) as ours,
        gunicorn(tmp_path_factory.mktemp("theirs"), attributes=ALL_BY_GUNICORN) as theirs,
    ):
        yield ours, theirs


def answer(running: Gunicorn, data: bytes) -> tuple[int, Any]:
    """The status, and the environ where there is one."""
    with Peer(running.address) as peer:
        status = peer.ask(data)
        if status != 200:
            return status, None
        told = json.loads(peer.body)
        assert peer.rest() == b"", "the connection ends behind an offer"
    assert int(told.pop("REMOTE_PORT")) > 0
    assert int(told.pop("SERVER_PORT")) == running.address[1]
    told.pop("wsgi.early_hints", None)
    told.pop("wsgi.input")
    return status, told


@pytest.mark.parametrize("name", [*PLAIN, *LEFT])
def test_the_application_sees_what_gunicorn_would_show_it(both: tuple[Gunicorn, Gunicorn], name: str) -> None:
    ours, theirs = (answer(running, (PLAIN | LEFT)[name]) for running in both)
    assert ours == theirs
    if name in PLAIN:
        assert ours[0] == (500 if name == "path of nothing" else 200)


def reader(**settings: Any) -> OfferReader:
    """A reader outside of a worker, with gunicorn's defaults but for ``settings``."""
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return OfferReader(cfg, ("127.0.0.1", 80))


def reads(data: bytes, **settings: Any) -> bool:
    """Whether such a reader takes ``data``."""
    return reader(**settings).read(data, ("127.0.0.1", 9)) is not None


@pytest.mark.parametrize("name", PLAIN)
def test_plain_offers_are_read_here(name: str) -> None:
    assert reads(PLAIN[name])


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_plain_is_left_to_gunicorn(name: str) -> None:
    assert not reads(LEFT[name])


@pytest.mark.parametrize("cut", range(len(head())))
def test_a_head_that_is_not_whole_is_left_to_gunicorn(cut: int) -> None:
    assert not reads(head()[:cut])


def test_what_comes_behind_is_kept() -> None:
    found = reader().read(head() + b"\r\n\r\nbehind", ("127.0.0.1", 9))
    assert found is not None
    assert found[1] == b"\r\n\r\nbehind"


@pytest.mark.parametrize(
    ("setting", "within", "beyond"),
    [
        ("limit_request_line", len("GET /environ HTTP/1.1"), len("GET /environ HTTP/1.1") - 1),
        ("limit_request_fields", 5, 4),
    ],
)
def test_limits_of_gunicorn_are_its_own_to_enforce(setting: str, within: int, beyond: int) -> None:
    assert reads(head(), **{setting: within})
    assert reads(head(), **{setting: 0})
    assert not reads(head(), **{setting: beyond})


def test_the_limit_of_a_field() -> None:
    assert not reads(head(b"/environ", b"X-A: " + b"a" * 500), limit_request_field_size=400)


def test_no_two_offers_share_an_environ() -> None:
    ours = reader()
    environs = [ours.read(head(), ("127.0.0.1", 9)) for _ in range(3)]
    assert all(found is not None for found in environs)
    first = environs[0]
    assert first is not None
    first[0]["mine"] = True
    assert all("mine" not in found[0] for found in environs[1:] if found is not None)
    again = ours.read(head(), ("127.0.0.1", 9))
    assert again is not None
    assert "mine" not in again[0]


def test_hooks_see_the_same_request(tmp_path: Path) -> None:
    notes = []
    for name, attributes in (("ours", None), ("theirs", ALL_BY_GUNICORN)):
        directory = tmp_path / name
        directory.mkdir()
        # What gunicorn reads by itself gives way to --config.
        worker = f"import geventws\nclass worker_class(geventws.Worker):\n    {attributes}\n" if attributes else ""
        with gunicorn(directory, configuration(directory, HOOKS + worker)) as running:
            for data in (PLAIN["query"], PLAIN["repeated"], head(b"/fails"), head(b"/refused")):
                with Peer(running.address) as peer:
                    peer.ask(data)
                    peer.rest()
            with Peer(running.address) as peer:
                peer.send(offer("/echo"))
                assert peer.exactly(len(SWITCHED)) == SWITCHED
            eventually(lambda running=running: len(running.notes()) == 10, "the hooks' notes")
            notes.append(running.notes())
    assert notes[0] == notes[1]
    assert [line.split()[0] for line in notes[0]] == ["pre", "post"] * 5
    assert "post /echo 101" in notes[0][-1]


def test_a_hook_that_fails(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "def post_request(worker, req, environ, resp):\n    raise ValueError('a hook')\n"
    )
    with gunicorn(tmp_path, "--config=hooks.py") as running:
        with Peer(running.address) as peer:
            assert peer.ask(head()) == 200
        eventually(lambda: "Exception in post_request hook" in running.log(), "the log")
        with Peer(running.address) as peer:
            assert peer.ask(request("/")) == 200


def test_offers_count_for_max_requests(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--max-requests=2") as running:
        with Peer(running.address) as first, Peer(running.address) as second:
            worker = first.ask(offer("/pid")) and int(first.body)
            assert second.ask(offer("/pid")) == 200
        running.worker_ended(worker)
        with Peer(running.address) as peer:
            assert peer.ask(offer("/pid")) == 200
            assert int(peer.body) != worker


def test_answers_in_http_stand_in_the_access_log(both: tuple[Gunicorn, Gunicorn]) -> None:
    for running in both:
        with Peer(running.address) as peer:
            assert peer.ask(head(b"/refused?this")) == 426
        line = eventually(lambda running=running: running.lines("GET /refused?this"), "the access log's line")[0]
        assert '"GET /refused?this HTTP/1.1" 426 ' in line


def test_what_the_application_raises_is_logged_with_the_target(both: tuple[Gunicorn, Gunicorn]) -> None:
    for running in both:
        with Peer(running.address) as peer:
            assert peer.ask(head(b"/fails?this")) == 500
            assert peer.rest() == b""
        eventually(lambda running=running: running.lines("Error handling request GET /fails?this"), "the log's line")
        assert "ValueError: the application failed" in running.log()


def test_complaints_go_to_the_log_of_the_day(tmp_path: Path) -> None:
    log, old = tmp_path / "error.log", tmp_path / "old.log"
    with gunicorn(tmp_path, f"--error-logfile={log}") as running:
        with Peer(running.address) as peer:
            assert peer.ask(head(b"/complain")) == 200
        assert "a complaint" in log.read_text()
        with Peer(running.address) as peer:
            peer.ask(request("/pid"))
            worker = int(peer.body)
        os.rename(log, old)
        os.kill(worker, signal.SIGUSR1)
        eventually(log.exists, "the new file")

        def complains() -> bool:
            with Peer(running.address) as peer:
                peer.ask(head(b"/complain"))
            return "a complaint" in log.read_text()

        eventually(complains, "the complaint in the new file")


def test_peers_that_go_without_a_word_leave_nothing_behind(both: tuple[Gunicorn, Gunicorn]) -> None:
    ours = both[0]
    before = ours.log()
    for _ in range(3):
        with Peer(ours.address):
            pass
    with Peer(ours.address) as peer:
        # Its close is a reset.
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with Peer(ours.address) as peer:
        assert peer.ask(head()) == 200
    assert [line for line in ours.log()[len(before) :].splitlines() if "/environ" not in line] == []
