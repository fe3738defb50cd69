"""The gunicorn worker, in real processes: its life and end, and the settings that work as with ``-k gevent``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent.pool import Pool

from geventws import UsageError, Worker
from geventws.worker import _Connection
from tests.rigs import (
    NOTING,
    ROOT,
    SWITCHED,
    Certificates,
    Gunicorn,
    Peer,
    configuration,
    eventually,
    get,
    gunicorn,
    is_running,
    offer,
    request,
)

#: For a worker that waits less long.
HASTY = "handshake_timeout = 0.6"

HOOKS = (
    NOTING
    + """
def pre_request(worker, req):
    note(f"pre {req.path}")

def post_request(worker, req, environ, resp):
    note(f"post {environ['PATH_INFO']} {resp.status}")

def worker_int(worker):
    note("worker_int")

def worker_exit(server, worker):
    note("worker_exit")

def worker_abort(worker):
    note("worker_abort")
"""
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with gunicorn(tmp_path_factory.mktemp("gunicorn"), "--keep-alive=75") as running:
        yield running


# -- Stopping ----------------------------------------------------------------------------------------------------------


def test_sigterm_closes_sessions_and_does_not_wait(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--keep-alive=75", "--graceful-timeout=30") as running:
        with (
            Peer(running.address) as first,
            Peer(running.address) as second,
            Peer(running.address) as idle,
            Peer(running.address) as silent,
            Peer(running.address) as busy,
        ):
            first.open()
            second.open()
            assert idle.ask(request("/")) == 200
            assert silent.buffer == b""
            busy.send(request("/nap"))
            get(running.address, "/")
            began = running.signal(signal.SIGTERM)
            assert first.rest() == b"<close 1001>"
            assert time.monotonic() - began < 0.5
            assert second.rest() == b"<close 1001>"
            assert idle.rest() == b""
            assert silent.rest() == b""
            # A request that is being served is served.
            assert busy.status() == 200
            assert b"\r\nConnection: close\r\n" in busy.head
            first.socket.close()
            second.socket.close()
            assert running.ended() - began < 5
        assert running.process.returncode == 0
        assert "SIGKILL" not in running.log()
        assert len([line for line in running.lines("GET /echo") if '" 101 ' in line]) == 2


def test_handlers_that_do_not_end_are_ended_before_gunicorn_kills(tmp_path: Path) -> None:
    with (
        gunicorn(tmp_path, "--graceful-timeout=2") as running,
        Peer(running.address) as deaf,
        Peer(running.address) as asleep,
        Peer(running.address) as plain,
    ):
        deaf.open("/deaf")
        asleep.open("/asleep")
        plain.send(request("/forever"))
        eventually(lambda: running.notes() == ["begun"], "the request")
        began = running.signal(signal.SIGTERM)
        assert asleep.rest() == b"<close 1001>"
        assert deaf.rest() == b""
        assert plain.rest() == b""
        assert 1 < running.ended() - began < 2.5
        # The first is of the request, whose client gets no response.
        assert sorted(running.notes()) == ["begun", "finally", "finally", "finally", "killed"]
        assert "Worker graceful timeout" in running.log()
        assert "SIGKILL" not in running.log()
        assert "Traceback" not in running.log()
        assert len(running.lines('" 101 ')) == 2


def test_handlers_get_some_seconds_at_most(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--graceful-timeout=60", attributes="close_timeout = 0.2") as running:
        with Peer(running.address) as peer:
            peer.open("/asleep")
            began = running.signal(signal.SIGTERM)
            assert running.ended() - began < 5
        assert running.notes() == ["killed", "finally"]


def test_a_worker_that_is_told_to_stop_is_replaced(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as running, Peer(running.address) as peer:
        peer.open()
        worker = int(get(running.address, "/pid"))
        began = running.signal(signal.SIGTERM, worker)
        # Its clients are told to come back, as another one takes its place.
        assert peer.rest() == b"<close 1012>"
        peer.socket.close()
        assert running.worker_ended(worker) - began < 2
        assert int(get(running.address, "/pid")) != worker


def test_sighup_replaces_the_worker(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as running, Peer(running.address) as peer:
        peer.open()
        worker = int(get(running.address, "/pid"))
        running.signal(signal.SIGHUP)
        assert peer.rest() == b"<close 1012>"
        peer.socket.close()
        running.worker_ended(worker)
        assert int(get(running.address, "/pid")) != worker
        with Peer(running.address) as again:
            assert again.open().echoes(b"hello")


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_a_quick_stop_says_goodbye(tmp_path: Path, number: signal.Signals) -> None:
    with gunicorn(tmp_path, configuration(tmp_path, HOOKS)) as running, Peer(running.address) as peer:
        peer.open("/echo")
        began = running.signal(number)
        assert peer.until(b"<close 1001>")
        assert running.ended() - began < 2
        assert "worker_int" in running.notes()
        assert "worker_exit" in running.notes()


def test_a_worker_without_its_master_says_goodbye_and_ends(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as running, Peer(running.address) as peer:
        peer.open()
        worker = int(get(running.address, "/pid"))
        began = running.signal(signal.SIGKILL)
        assert peer.until(b"<close 1001>")
        assert running.worker_ended(worker) - began < 3


def test_a_worker_that_computes_for_ever_is_replaced_and_says_what_it_ran(tmp_path: Path) -> None:
    with gunicorn(tmp_path, configuration(tmp_path, HOOKS), "--timeout=1") as running:
        with Peer(running.address) as peer, Peer(running.address) as session:
            session.open()
            worker = int(get(running.address, "/pid"))
            began = time.monotonic()
            peer.send(request("/spin"))
            peer.rest()
            session.rest()
            assert running.worker_ended(worker) - began < 5
        assert int(get(running.address, "/pid")) != worker
        assert "in spin" in running.log()
        assert "worker_abort" in running.notes()


def test_the_exit_of_the_application_is_not_swallowed(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as running:
        for path in ("/exit", "/exit-within"):
            worker = int(get(running.address, "/pid"))
            with Peer(running.address) as peer:
                peer.send(offer(path))
                answer = peer.rest()
            if path == "/exit":
                assert answer == SWITCHED + b"<close 1001>"
            else:
                assert answer.count(b"HTTP/1.1") == 1
                assert answer.endswith(b"begun\r\n")
            running.worker_ended(worker)
            assert int(get(running.address, "/pid")) != worker
        assert len(running.lines("is ended by the application")) == 2


def test_max_requests(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--max-requests=3") as running:
        with Peer(running.address) as first, Peer(running.address) as last:
            first.open()
            worker = int(get(running.address, "/pid"))
            last.open()
            assert first.rest() == b"<close 1012>"
            assert last.rest() == b"<close 1012>"
        running.worker_ended(worker)
        assert int(get(running.address, "/pid")) != worker
        assert "Autorestarting worker" in running.log()


# -- Settings ----------------------------------------------------------------------------------------------------------


def connects(path: str) -> bool:
    """Whether something listens at ``path``; the file is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with gunicorn(tmp_path, bind=f"unix:{path}") as running:
        eventually(lambda: connects(path), "the socket")
        with Peer(running.address) as peer:
            peer.send(offer("/scheme"))
            # Its peer is always believed.
            assert peer.rest() == SWITCHED + b"http '' localhost"
        with Peer(running.address) as peer:
            assert peer.open().echoes(b"hello")
            running.signal(signal.SIGTERM)
            assert peer.rest() == b"<close 1001>"
        running.ended()
        assert not os.path.exists(path)


def test_tls_deadlines_and_stop(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    files = [f"--certfile={certificates.certfile}", f"--keyfile={certificates.keyfile}"]
    with gunicorn(tmp_path, *files, "--keep-alive=75", attributes=HASTY) as running:
        with Peer(running.address, certificates.client) as session:
            session.open()
            with Peer(running.address) as stalled, Peer(running.address, certificates.client) as slow:
                stalled.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                slow.send(b"GET / HT")
                assert slow.status() == 408
                assert stalled.rest() == b""
            with Peer(running.address) as plain:
                plain.send(request("/"))
                plain.rest()
            # The deadline ends with the head.
            assert session.echoes(b"hello")
            running.signal(signal.SIGTERM)
            assert session.until(b"<close 1001>")
        running.ended()
        assert len(running.lines("the TLS handshake failed")) == 2
        assert "Traceback" not in running.log()


@pytest.mark.parametrize("keepalive", [0, 2, 75])
def test_a_slow_head(tmp_path: Path, keepalive: int) -> None:
    with gunicorn(tmp_path, f"--keep-alive={keepalive}", attributes=HASTY) as running:
        with Peer(running.address) as session, Peer(running.address) as slow, Peer(running.address) as silent:
            session.open()
            for byte in b"GET /":
                slow.send(bytes([byte]))
            assert slow.status() == 408
            assert silent.rest() == b""
            assert session.echoes(b"hello")
        with Peer(running.address) as peer:
            assert peer.ask(request("/nap")) == 200
        assert "Traceback" not in running.log()


def test_forwarded_allow_ips(tmp_path: Path) -> None:
    fields = "X-Forwarded-Proto: https"
    for allowed, scheme in (("127.0.0.1", "https"), ("192.0.2.1", "http")):
        with gunicorn(tmp_path, f"--forwarded-allow-ips={allowed}") as running, Peer(running.address) as peer:
            peer.send(offer("/scheme", fields))
            assert peer.rest() == SWITCHED + f"{scheme} '127.0.0.1' localhost".encode()


def test_proxy_protocol(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--proxy-protocol=v1") as running, Peer(running.address) as peer:
        peer.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n" + offer("/scheme"))
        assert peer.rest() == SWITCHED + b"http '192.0.2.7' localhost"


def test_the_format_of_the_access_log_and_hooks(tmp_path: Path) -> None:
    log_format = "--access-logformat=%(h)s <%(r)s> %(s)s %(b)s %(L)s %({upgrade}i)s %({query_string}e)s"
    with gunicorn(tmp_path, configuration(tmp_path, HOOKS), log_format) as running:
        with Peer(running.address) as peer:
            peer.open("/echo?a=b")
        line = eventually(lambda: running.lines("<GET /echo"), "the access log's line")[0].split()
        assert line[:6] == ["127.0.0.1", "<GET", "/echo?a=b", "HTTP/1.1>", "101", "-"]
        assert 0 <= float(line[6]) < 10
        assert line[7:] == ["websocket", "a=b"]
        eventually(lambda: len(running.notes()) == 2, "the hooks")
        assert running.notes() == ["pre /echo", "post /echo 101 Switching Protocols"]


def test_the_access_log_has_no_characters_that_do_harm(tmp_path: Path) -> None:
    """A3 row 44: gunicorn takes what lies behind ASCII in a field, which holds control characters too."""
    log_format = '--access-logformat=%(r)s "%(f)s" "%(a)s" %({x-mine}i)s %(s)s'
    with gunicorn(tmp_path, log_format) as running:
        fields = ["Referer: a\x9b31m", "User-Agent: \xe2\x80\xae caf\xe9", "X-Mine: \x85FAKE"]
        for data in (request("/?harm", *fields, "Connection: close"), offer("/echo?harm", *fields)):
            with Peer(running.address) as peer:
                peer.send(data)
                peer.until(b"\r\n\r\n")
        lines = eventually(lambda: len(found := running.lines("harm")) == 2 and found, "the access log's lines")
        for line in lines:
            assert line.isprintable()
            assert '"a\\x9b31m" "\xe2\\x80\xae caf\xe9" \\x85FAKE ' in line


def test_worker_connections(tmp_path: Path) -> None:
    with (
        gunicorn(tmp_path, "--worker-connections=2") as running,
        Peer(running.address) as session,
        Peer(running.address) as busy,
        Peer(running.address) as waiting,
    ):
        session.open()
        busy.send(request("/forever"))
        eventually(lambda: running.notes() == ["begun"], "the request")
        waiting.send(request("/"))
        assert session.echoes(b"hello")
        assert not running.lines('"GET / HTTP/1.1"')
        session.socket.close()
        assert waiting.status() == 200


def test_a_part_of_worker_connections_is_not_for_websockets(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--worker-connections=20") as running:
        sessions = [Peer(running.address).open() for _ in range(18)]
        with Peer(running.address) as late:
            assert late.ask(offer()) == 503
            assert b"as many WebSockets as it may have" in late.body
            assert late.rest() == b""
        assert get(running.address, "/") == "hello"
        sessions.pop().socket.close()
        eventually(lambda: len(running.lines('" 101 ')) == 1, "the end of a session")
        with Peer(running.address) as again:
            assert again.open().echoes(b"hello")
        for peer in sessions:
            assert peer.echoes(b"hello")
            peer.socket.close()


def test_max_websockets(tmp_path: Path) -> None:
    with gunicorn(tmp_path, attributes="max_websockets = 1") as running, Peer(running.address) as session:
        session.open()
        with Peer(running.address) as late:
            assert late.ask(offer()) == 503


def test_those_that_wait_for_no_request_make_room(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--worker-connections=10", "--keep-alive=75") as running:
        with Peer(running.address) as session, Peer(running.address) as kept:
            session.open()
            assert kept.ask(request("/")) == 200
            silent = [Peer(running.address) for _ in range(30)]
            with Peer(running.address) as honest:
                assert honest.ask(request("/")) == 200
            assert session.echoes(b"hello")
            # The oldest went first.
            assert kept.rest() == b""
            for peer in silent[:20]:
                assert peer.rest() == b""
            for peer in silent:
                peer.socket.close()
        eventually(lambda: running.lines("to make room"), "the log")
        assert "Traceback" not in running.log()


def test_who_has_left_makes_no_room(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--worker-connections=10", "--keep-alive=75") as running:
        for _ in range(30):
            with Peer(running.address) as kept:
                assert kept.ask(request("/")) == 200
        # Their descriptors belong to these now.
        sessions = [Peer(running.address).open() for _ in range(9)]
        with Peer(running.address) as busy, Peer(running.address) as late:
            busy.send(request("/forever"))
            eventually(lambda: running.notes() == ["begun"], "the request")
            late.send(request("/"))
            for peer in sessions:
                assert peer.echoes(b"hello")
            sessions.pop().socket.close()
            assert late.status() == 200
        for peer in sessions:
            assert peer.echoes(b"hello")
            peer.socket.close()
        assert not running.lines("to make room")


@pytest.mark.parametrize("size", [100_000, 2_000_000])
def test_a_body_that_nobody_read_is_no_head(running: Gunicorn, size: int) -> None:
    with Peer(running.address) as peer:
        peer.send(request("/", f"Content-Length: {size}", method="POST") + b"x" * size)
        assert peer.status() == 200
        assert peer.ask(request("/")) == 200


def test_limits_that_are_lifted(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--limit-request-line=0", "--limit-request-fields=1000") as running:
        with Peer(running.address) as peer:
            assert peer.ask(request("/?" + "x" * 120_000)) == 200
        with Peer(running.address) as peer:
            assert peer.ask(request("/", *[f"X-{number}: {'a' * 200}" for number in range(500)])) == 200


def test_limits(tmp_path: Path) -> None:
    limits = ["--limit-request-line=100", "--limit-request-fields=20", "--limit-request-field_size=200"]
    with gunicorn(tmp_path, *limits) as running:
        for data, status in (
            (offer("/" + "x" * 100), 414),
            (offer("/echo", *[f"X-{number}: a" for number in range(20)]), 431),
            (offer("/echo", "X: " + "x" * 200), 431),
        ):
            with Peer(running.address) as peer:
                assert peer.ask(data) == status
        with Peer(running.address) as peer:
            assert peer.open().echoes(b"hello")


def test_preload_and_more_workers(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--preload", "--workers=2") as running:
        pids: set[str] = set()
        eventually(lambda: pids.add(get(running.address, "/pid")) or len(pids) == 2, "the start of both workers")
        peers = [Peer(running.address) for _ in range(20)]
        for peer in peers:
            assert peer.open().echoes(b"hello")
        began = running.signal(signal.SIGTERM)
        for peer in peers:
            assert peer.rest() == b"<close 1001>"
            peer.socket.close()
        assert running.ended() - began < 5


def test_reload(tmp_path: Path) -> None:
    module = tmp_path / "application.py"
    module.write_text("from tests.rigs import app\n")
    arguments = ["--reload", "--reload-engine=poll", f"--pythonpath={tmp_path}"]
    with gunicorn(tmp_path, *arguments, application="application:app") as running, Peer(running.address) as peer:
        peer.open()
        worker = int(get(running.address, "/pid"))
        os.utime(module, (1, 1))
        os.utime(module)
        assert peer.rest() == b"<close 1012>"
        peer.socket.close()
        running.worker_ended(worker)
        assert int(get(running.address, "/pid")) != worker


# -- Requests ----------------------------------------------------------------------------------------------------------


def test_plain_http_goes_on_as_it_was(running: Gunicorn) -> None:
    with Peer(running.address) as peer:
        assert peer.ask(request("/")) == 200
        assert peer.ask(request("/body", "Content-Length: 5", method="POST") + b"hello") == 200
        assert peer.body == b"hello"
        peer.send(request("/pid") + request("/", "Connection: close") + request("/pid"))
        assert peer.status() == 200
        assert (peer.status(), peer.body) == (200, b"hello")
        assert peer.rest() == b""


def test_a_bad_request_is_one_short_line(running: Gunicorn) -> None:
    for data in (b"GET /\x1b[2J\r\nFAKE: \xe2\x80\xae\r\n\r\n", request("/", "X\x85(" + "\xad" * 5000 + ": b")):
        with Peer(running.address) as peer:
            assert peer.ask(data) == 400
    lines = eventually(lambda: running.lines("Invalid request"), "the log")
    assert len(lines) == 2
    for line in lines:
        assert line.isprintable()
        assert len(line) < 256 + 60
    for _ in range(60):
        with Peer(running.address) as peer:
            assert peer.ask(b"GET /\r\n\r\n") == 400
    eventually(lambda: running.lines("more in a second: invalid requests"), "the sum")
    assert len(running.lines("Invalid request")) < 40
    assert "Traceback" not in running.log()


def test_a_head_in_crumbs_costs_little(running: Gunicorn) -> None:
    worker = int(get(running.address, "/pid"))
    data = request("/", *["X: " + "x" * 8000] * 8)
    with Peer(running.address) as peer:
        before = cpu(worker)
        for byte in data:
            peer.send(bytes([byte]))
        assert peer.status() == 200
        assert cpu(worker) - before < 0.2


def cpu(process: int) -> float:
    """Seconds of computing that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_descriptors_are_given_back(running: Gunicorn) -> None:
    worker = int(get(running.address, "/pid"))

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{worker}/fd"))

    before = descriptors()
    for number in range(60):
        with Peer(running.address) as peer:
            if number % 3 == 0:
                assert peer.open().echoes(b"hello")
            elif number % 3 == 1:
                assert peer.ask(offer("/refused")) == 426
            else:
                assert peer.ask(b"bad\r\n\r\n") == 400
    eventually(lambda: descriptors() <= before, "the end of all connections")
    assert is_running(worker)


def test_an_error_behind_the_101_is_logged_once(running: Gunicorn) -> None:
    with Peer(running.address) as peer:
        peer.open("/raises?value")
        assert peer.rest() == b""
    eventually(lambda: running.lines("Error on the connection taken by /raises?value"), "the log")
    assert len(running.lines("Error on the connection taken by")) == 1


def test_a_worker_is_made_as_gunicorn_makes_it(tmp_path: Path) -> None:
    from gunicorn.config import Config
    from gunicorn.glogging import Logger

    from geventws import Worker

    configuration: Any = Config()
    worker = Worker(1, os.getppid(), [], None, 15, configuration, Logger(configuration))
    assert worker.alive
    worker.alive = False
    assert not worker.alive
    worker.tmp.close()


def test_a_connection_that_is_killed_before_its_turn_is_not_served() -> None:
    pool, served = Pool(2, _Connection), []
    pool.spawn(served.append, "killed")
    pool.kill()
    pool.spawn(served.append, "served")
    pool.join()
    assert served == ["served"]
    assert len(pool) == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("handshake_timeout", "5", "handshake_timeout must be a number of seconds above 0, or None, not '5'"),
        ("max_websockets", 0, "max_websockets must be a whole number of sessions above 0, or None, not 0"),
        ("close_timeout", None, "close_timeout must be a number of seconds above 0, not None"),
    ],
)
def test_an_attribute_that_can_not_be_is_told_by_the_master(tmp_path: Path, name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match="worker_class: "):
        type("Wrong", (Worker,), {name: value}).setup()
    (tmp_path / "gunicorn.conf.py").write_text(
        f"import geventws\nclass worker_class(geventws.Worker):\n    {name} = {value!r}\n"
    )
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind=127.0.0.1:0", "tests.rigs:app"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == f"Error: worker_class: {said}"
