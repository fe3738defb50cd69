"""The figures for Prometheus: of one process, and of several workers."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flask
import pytest

pytest.importorskip("prometheus_client")

from gevent.event import Event
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection, connect

import geventws
import geventws.flask
from geventws import Blueprint, Topics, metrics, upgrade
from geventws.topics.statistics import Statistics
from tests.faces import Face, MakeFace, PlainFace, either, fetch, refused
from tests.peer import PATIENCE, Peer, serving, wait_until
from tests.rigs import eventually, get, gunicorn
from tests.wire import close_frame, frame


class Figures:
    """What a scrape says."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """One figure; 0 where there is none."""
        return self._values.get((f"geventws_{name}", *sorted(labels.items())), 0.0)


class Watched:
    """An app with its figures, whose handlers are steered by paths."""

    def __init__(self, face: Face, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.face = face
        self.metrics = metrics.install(face.app, registry=self.registry, **options)
        blueprint = Blueprint("rooms", __name__, url_prefix="/rooms")

        @blueprint.route("/<name>")
        def echo(session: Any, name: str) -> None:
            for message in session:
                session.send(message)

        @face.sockets.route("/fails")
        def fails(session: Any) -> None:
            session.accept()
            raise ValueError("a fault")

        @face.sockets.route("/pings")
        def pings(session: Any) -> None:
            session.ping()
            session.receive()

        @face.sockets.route("/aborts")
        def aborts(session: Any) -> None:
            flask.abort(401)

        @face.sockets.route("/breaks")
        def breaks(session: Any) -> None:
            raise ValueError("in HTTP")

        face.register(blueprint)

    def scrape(self) -> Figures:
        return Figures(generate_latest(self.registry).decode())


@either
def test_sessions_and_their_traffic(make: MakeFace) -> None:
    watched = Watched(make())
    route = "/rooms/<name>"
    with serving(watched.face.app) as server, Peer(server, "/rooms/ada") as ada, Peer(server, "/rooms/grace") as grace:
        for peer in (ada, grace):
            peer.accepted()
            peer.send(frame(1, b"hello") * 2)
            assert [peer.frame()[1] for _ in range(2)] == [b"hello"] * 2
        figures = watched.scrape()
        # Though both paths are others.
        assert figures.value("open_sessions", route=route) == 2
        assert figures.value("received_messages_total", route=route) == 4
        assert figures.value("sent_messages_total", route=route) == 4
        assert figures.value("received_bytes_total", route=route) == 4 * (6 + 5)
        assert figures.value("sent_bytes_total", route=route) > 4 * (2 + 5) + 2 * len("HTTP/1.1 101")
        assert figures.value("handshakes_total", status="101") == 2
        assert figures.value("handler_seconds_count", route=route) == 0
        # A second look counts nothing twice.
        again = watched.scrape()
        assert again.value("received_messages_total", route=route) == 4
        ada.send(frame(1, b"more") + close_frame(1000))
        assert ada.frame() == (0x81, b"more")
        grace.send(close_frame(4999))
        wait_until(lambda: watched.scrape().value("open_sessions", route=route) == 0)
        figures = watched.scrape()
        assert figures.value("received_messages_total", route=route) == 5
        assert figures.value("handler_seconds_count", route=route) == 2
        # Clients choose among thousands of codes, but not how many figures there are.
        assert figures.value("closes_total", route=route, code="1000") == 1
        assert figures.value("closes_total", route=route, code="4xxx") == 1
        assert "ada" not in generate_latest(watched.registry).decode()


def test_a_route_has_its_figures_from_its_first_session_on() -> None:
    """A series that begins at 1 hides its first event from ``increase``, and one that is missing is no 0."""
    watched = Watched(PlainFace())
    route = "/rooms/<name>"
    with serving(watched.face.app) as server, Peer(server, "/rooms/ada") as ada:
        ada.accepted()
        wait_until(lambda: watched.scrape().value("open_sessions", route=route) == 1)
        told = watched.scrape()
    for name in ("queued_bytes", "buffered_bytes", "handler_errors", "received_messages", "sent_messages"):
        samples = told.families[f"geventws_{name}"].samples
        assert [sample.value for sample in samples if not sample.name.endswith("_created")] == [0.0]
    for name in ("ping_seconds", "handler_seconds"):
        assert [sample.labels["route"] for sample in told.families[f"geventws_{name}"].samples][:1] == [route]


@either
def test_handshakes_by_their_answers(make: MakeFace) -> None:
    watched = Watched(make())
    with serving(watched.face.app, error_log=None) as server:
        assert refused(server, "/nowhere").status == 404
        assert refused(server, "/aborts").status == 401
        assert refused(server, "/aborts", Origin="http://evil.example").status == 403
        assert refused(server, "/rooms/ada", Sec_WebSocket_Version="12").status == 426
        assert refused(server, "/breaks").status == 500
        # These are none.
        fetch(server, "/rooms/ada")
        fetch(server, "/nowhere")
        with Peer(server, "/fails") as peer:
            peer.accepted().closed_with(1011)
        wait_until(lambda: watched.scrape().value("closes_total", route="/fails", code="1011") == 1)
    figures = watched.scrape()
    statuses = {sample.labels["status"]: sample.value for sample in figures.families["geventws_handshakes"].samples
                if sample.name.endswith("_total")}  # fmt: skip
    assert statuses == {"404": 1, "401": 1, "403": 1, "426": 1, "500": 1, "101": 1}
    assert figures.value("handler_errors_total", route="/fails") == 1


@either
def test_handshakes_that_the_server_refuses(make: MakeFace) -> None:
    watched = Watched(make())
    with serving(watched.face.app, max_websockets=1) as server, Peer(server, "/rooms/ada") as peer:
        peer.accepted()
        assert refused(server, "/rooms/grace").status == 503
        fetch(server, "/nowhere")
        figures = watched.scrape()
    assert figures.value("handshakes_total", status="101") == 1
    assert figures.value("handshakes_total", status="503") == 1


def test_round_trips() -> None:
    watched = Watched(PlainFace())
    with serving(watched.face.app) as server, Peer(server, "/pings") as peer:
        peer.accepted()
        opcode, payload = peer.frame()
        assert opcode == 0x89
        peer.send(frame(10, payload))
        wait_until(lambda: watched.scrape().value("ping_seconds_count", route="/pings") == 1)
        assert watched.scrape().value("ping_seconds_count", route="/pings") == 1


def test_what_waits() -> None:
    watched, release = Watched(PlainFace()), Event()

    @watched.face.sockets.route("/fills", write_limit=None)
    def fill(session: Any) -> None:
        session.send(b"x" * (64 << 20))
        release.wait(PATIENCE)

    with serving(watched.face.app) as server:
        with Peer(server, "/fills") as peer:
            peer.accepted()
            peer.send(frame(1, b"unread"))
            wait_until(lambda: watched.scrape().value("queued_bytes", route="/fills") >= 6)
            assert watched.scrape().value("buffered_bytes", route="/fills") > 1 << 20
            release.set()
        wait_until(lambda: watched.scrape().value("open_sessions", route="/fills") == 0)
        assert watched.scrape().value("queued_bytes", route="/fills") == 0
        assert watched.scrape().value("buffered_bytes", route="/fills") == 0


def test_open_sessions_are_looked_at_without_a_scrape() -> None:
    watched = Watched(PlainFace(), interval=0.01)
    received = watched.metrics._messages_received.labels("/rooms/<name>")
    with serving(watched.face.app) as server, Peer(server, "/rooms/ada") as peer:
        peer.accepted()
        peer.send(frame(1, b"hello"))
        wait_until(lambda: received._value.get() == 1)
        peer.send(close_frame(1000))
        # Nothing runs while nobody is there.
        wait_until(lambda: not watched.metrics._looks)


def test_topics() -> None:
    topics = Topics()
    watched = Watched(PlainFace(), topics={"rooms": topics})

    @watched.face.sockets.route("/news")
    def news(session: Any) -> None:
        topics.subscribe(session, "news")
        session.receive()

    with serving(watched.face.app) as server, Peer(server, "/news") as peer:
        peer.accepted()
        wait_until(lambda: topics.count("news"))
        for _ in range(3):
            topics.publish("news", "hello")
        assert [peer.frame()[1] for _ in range(3)] == [b"hello"] * 3
        figures = watched.scrape()
        assert figures.value("topics_published_total", topics="rooms") == 3
        assert figures.value("topics_delivered_total", topics="rooms") == 3
        assert figures.value("topics_gaps_total", topics="rooms") == 0


def test_all_statistics_of_topics_are_told() -> None:
    assert set(metrics._TOPICS) == set(vars(Statistics()))


def test_topics_without_a_name() -> None:
    topics = Topics()
    registry = CollectorRegistry()
    metrics.install(geventws.WebSockets(), registry=registry, topics=topics)
    topics.publish("news", "hello")
    figures = Figures(generate_latest(registry).decode())
    assert figures.value("topics_published_total", topics="default") == 1


@either
def test_a_registry_is_for_one_app(make: MakeFace) -> None:
    """Also where an app factory makes the second app, as tests do."""
    registry, refusals = CollectorRegistry(), list(upgrade.on_refusal)
    Counter("geventws_handler_errors", "Another's figure of this name", registry=registry)
    first = make()
    with pytest.raises(geventws.UsageError, match=r"registry=prometheus_client\.CollectorRegistry\(\)"):
        metrics.install(first.app, registry=registry)
    # Nothing of it is left.
    assert upgrade.on_refusal == refusals
    assert [line for line in generate_latest(registry).decode().splitlines() if "geventws_handshakes" in line] == []
    with serving(first.app) as server:
        assert refused(server, "/nowhere").status == 404

    registry = CollectorRegistry()
    metrics.install(first.app, registry=registry)
    for face in (first, make()):
        with pytest.raises(geventws.UsageError, match=r"install them once for an app"):
            metrics.install(face.app, registry=registry)
    metrics.install(make().app, registry=CollectorRegistry())
    with serving(first.app) as server:
        assert refused(server, "/nowhere").status == 404
    # Counted once, by the one that was installed.
    assert Figures(generate_latest(registry).decode()).value("handshakes_total", status="404") == 1


def test_the_page_of_figures() -> None:
    app = geventws.WebSockets()
    installed = metrics.install(app, registry=CollectorRegistry())
    app.app = installed.wsgi_app
    with serving(app) as server:
        answer = fetch(server, "/")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert "# TYPE geventws_handshakes_total counter" in answer.body
        answer = fetch(server, "/", Accept="application/openmetrics-text; version=1.0.0")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.body.endswith("# EOF\n")


def test_what_can_not_be_watched() -> None:
    with pytest.raises(TypeError, match=r"geventws\.WebSockets or a Flask app"):
        metrics.install(object(), registry=CollectorRegistry())
    with pytest.raises(geventws.UsageError, match="before its metrics"):
        metrics.install(flask.Flask("bare"), registry=CollectorRegistry())
    for interval in (0, -1, True, "5"):
        with pytest.raises(ValueError, match="interval must be"):
            metrics.install(geventws.WebSockets(), registry=CollectorRegistry(), interval=interval)  # type: ignore[arg-type]


def test_the_extension_before_its_app() -> None:
    sockets = geventws.flask.WebSockets()
    registry = CollectorRegistry()
    metrics.install(sockets, registry=registry)
    app = flask.Flask("late")
    sockets.init_app(app)
    with serving(app) as server:
        assert refused(server, "/nowhere").status == 404
    assert Figures(generate_latest(registry).decode()).value("handshakes_total", status="404") == 1


# -- Several workers ---------------------------------------------------------------------------------------------------

APP = """
import os
import geventws
from geventws import metrics

app = geventws.WebSockets()

@app.route("/<name>")
def echo(session, name):
    session.send(str(os.getpid()))
    for message in session:
        session.send(message)

figures = metrics.install(app, interval=0.05)
app.app = figures.wsgi_app
"""

CONFIGURATION = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    directory = tmp_path / "figures"
    directory.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    (tmp_path / "watched_app.py").write_text(APP)
    (tmp_path / "configuration.py").write_text(CONFIGURATION)
    arguments = ("--workers=2", f"--config={tmp_path / 'configuration.py'}", f"--pythonpath={tmp_path}")
    with gunicorn(tmp_path, *arguments, application="watched_app:app") as running:
        yield running


def test_two_workers_are_one_to_prometheus(several: Any) -> None:
    url = "ws://{}:{}/ada".format(*several.address)

    def scrape() -> Figures:
        return Figures(get(several.address, "/"))

    with ExitStack() as stack:
        clients: dict[int, ClientConnection] = {}
        count = 0
        while len(clients) < 2:
            client = stack.enter_context(connect(url, proxy=None))
            clients[int(client.recv(PATIENCE))] = client
            count += 1
        for client in clients.values():
            client.send("hello")
            assert client.recv(PATIENCE) == "hello"
        route = "/<name>"
        # A scrape sees what the other worker has noted, which it does every now and then.
        eventually(lambda: scrape().value("received_messages_total", route=route) == 2, "the messages of both workers")
        figures = scrape()
        assert figures.value("open_sessions", route=route) == count
        assert figures.value("handshakes_total", status="101") == count
        eventually(lambda: scrape().value("sent_messages_total", route=route) == count + 2, "what was sent")
        assert not re.search(r"\bpid=", get(several.address, "/"))

        # What a worker that was killed had open is not open any more; what it counted stays.
        killed = next(iter(clients))
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: scrape().value("open_sessions", route=route) < count, "the end of the dead worker's gauges")
        assert scrape().value("received_messages_total", route=route) == 2


def test_a_directory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told at once, not in the log of each session."""
    (tmp_path / "file").touch()
    for directory in (str(tmp_path / "nowhere"), str(tmp_path / "file"), ""):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", directory)
        with pytest.raises(
            geventws.UsageError, match="PROMETHEUS_MULTIPROC_DIR must name a directory to write to, not '"
        ):
            metrics.install(geventws.WebSockets(), registry=CollectorRegistry())
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics.install(geventws.WebSockets(), registry=CollectorRegistry())
