"""The live page: who may see it, what it tells, and that it closes sessions, in this worker and in others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from websockets.sync.client import ClientConnection, connect
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized
from werkzeug.utils import redirect
from werkzeug.wrappers import Response

import geventws
from geventws import Topics, dashboard
from tests.faces import Face, MakeFace, PlainFace, either, fetch, refused
from tests.peer import Peer, serving, wait_until
from tests.programs import PATIENCE, Program, development_server, gunicorn_server
from tests.wire import frame


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "INTERVAL", 0.01)


def allow(request: Any) -> bool:
    """Who brings the word may look."""
    return request.args.get("word") == "sesame"


def watched(face: Face, **options: Any) -> dashboard.Blueprint:
    """The page of an app that echoes."""
    page = dashboard.Blueprint(**{"allow": lambda request: True, **options})

    @face.sockets.route("/echo/<name>")
    def echo(session: Any, name: str) -> None:
        for message in session:
            session.send(message)

    face.register(page)
    return page


def snapshot(viewer: Peer) -> dict[str, Any]:
    """The next snapshot."""
    first, payload = viewer.frame()
    assert first == 0x81
    return json.loads(payload)  # type: ignore[no-any-return]


def row_of(viewer: Peer, rule: str, path: str | None = None) -> tuple[dict[str, Any], list[Any]]:
    """A snapshot that has a session of a route, and what it tells of that one."""
    while True:
        told = snapshot(viewer)
        for row in told["rows"]:
            if row[1] == rule and path in (None, row[2]):
                return told, row


# -- Who may see it ----------------------------------------------------------------------------------------------------


@either
def test_the_page(make: MakeFace) -> None:
    face = make()
    watched(face, allow=allow)
    with serving(face.app) as server:
        answer = fetch(server, "/dashboard/?word=sesame")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "<title>WebSockets</title>" in answer.body
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'sha256-" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert fetch(server, "/dashboard?word=sesame").status == 308
        assert fetch(server, "/dashboard/").status == 403
        assert fetch(server, "/dashboard/socket?word=sesame").status == 426
        assert refused(server, "/dashboard/socket").status == 403
        with Peer(server, "/dashboard/socket?word=sesame") as viewer:
            viewer.accepted()
            assert snapshot(viewer)["sessions"] == 1


@either
def test_other_pages_stay(make: MakeFace) -> None:
    face = make()
    watched(face)
    with serving(face.app) as server:
        assert fetch(server, "/").status == 404
        assert fetch(server, "/echo/ada").status == 426
        with Peer(server, "/echo/ada") as peer:
            peer.accepted()


@either
def test_whoever_refuses_may_say_how(make: MakeFace) -> None:
    face = make()

    def ask(request: Any) -> bool:
        raise Unauthorized(www_authenticate=WWWAuthenticate("basic"))

    watched(face, allow=ask)
    with serving(face.app) as server:
        assert fetch(server, "/dashboard/").headers["www-authenticate"].lower().startswith("basic")
        assert refused(server, "/dashboard/socket").status == 401


def _application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("418 I'm a teapot", [])
    return [b"short and stout"]


class _Empty(Response):
    """A response that is false, as some libraries' are."""

    def __bool__(self) -> bool:
        return False


@either
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (False, 403),
        (None, 403),
        (redirect("/login"), 302),
        (Response("Log in first.", 401), 401),
        (_Empty("Log in first.", 401), 401),
        (Forbidden(), 403),
        (_application, 418),
    ],
    ids=["false", "none", "redirect", "response", "false-response", "exception", "application"],
)
def test_what_is_answered_to_who_may_not_look(make: MakeFace, answer: Any, status: int) -> None:
    face = make()
    watched(face, allow=lambda request: answer)
    with serving(face.app) as server:
        for refusal in (fetch(server, "/dashboard/"), refused(server, "/dashboard/socket")):
            assert refusal.status == status
            assert "<title>WebSockets</title>" not in refusal.body
            assert refusal.headers.get("location") == ("/login" if status == 302 else None)


class _Awaitable:
    """What an ``async def`` gives, where a decorator hides that it is one."""

    def __await__(self) -> Iterator[bool]:
        yield True

    def __repr__(self) -> str:
        return "awaitable"


@either
@pytest.mark.parametrize(
    "answer",
    [("no", 403), "ada", 1, {"role": "operator"}, _Awaitable()],
    ids=["tuple", "text", "number", "dict", "awaitable"],
)
def test_what_is_no_answer_lets_nobody_in(
    make: MakeFace, answer: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    face = make()
    watched(face, allow=lambda request: answer)
    with serving(face.app) as server:
        for refusal in (fetch(server, "/dashboard/"), refused(server, "/dashboard/socket")):
            assert refusal.status == 500
            assert "<title>WebSockets</title>" not in refusal.body
    # Flask logs what a view raises; without a framework the server tells of it.
    told = caplog.text + capsys.readouterr().err
    assert told.count("TypeError: allow must return True or False, or a response") == 2


@either
def test_pages_of_others_can_not_connect(make: MakeFace) -> None:
    face = make(origins=None)
    watched(face)
    with serving(face.app) as server:
        assert refused(server, "/dashboard/socket", Origin="http://evil.example").status == 403
        with Peer(server, "/echo/ada", Origin="http://evil.example") as peer:
            peer.accepted()


async def _later(request: Any) -> bool:
    return True


def _each(request: Any) -> Iterator[bool]:
    yield True


def test_there_is_no_default() -> None:
    with pytest.raises(TypeError, match="allow"):
        dashboard.Blueprint()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="who may see the page"):
        dashboard.Blueprint(allow=True)  # type: ignore[arg-type]
    for function in (_later, _each):
        with pytest.raises(TypeError, match="allow must be a plain function"):
            dashboard.Blueprint(allow=function)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="any page could close your sessions"):
        dashboard.Blueprint(allow=allow, origins=None)  # type: ignore[arg-type]
    with serving(geventws.WebSockets()) as server:
        assert fetch(server, "/dashboard/").status == 404


# -- What it tells -----------------------------------------------------------------------------------------------------


@either
def test_what_it_tells_of_a_session(make: MakeFace) -> None:
    face = make()
    watched(face)
    with (
        serving(face.app) as server,
        Peer(server, "/dashboard/socket") as viewer,
        Peer(server, "/echo/%E4%B8%96") as peer,
    ):
        viewer.accepted()
        peer.accepted()
        peer.send(frame(1, b"hello"))
        assert peer.frame() == (0x81, b"hello")
        told, row = row_of(viewer, "/echo/<name>")
        assert told["process"] == os.getpid()
        assert told["sessions"] == len(told["rows"]) == 2
        number, rule, path, address, age, *figures, is_viewer = row
        assert (rule, path, address, is_viewer) == ("/echo/<name>", "/echo/世", "127.0.0.1", False)
        assert number > 0
        assert age >= 0
        assert figures[4:] == [0, 0, None, 0]
        while not any(row[5:7] == [0, 0] for row in told["rows"] if row[1] == "/echo/<name>"):
            told = snapshot(viewer)
        assert [row[13] for row in told["rows"] if row[1] == "/dashboard/socket"] == [True]


def test_a_session_that_has_just_opened_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "INTERVAL", 1000.0)
    face = PlainFace()
    watched(face)
    with serving(face.app) as server, Peer(server, "/dashboard/socket") as viewer:
        viewer.accepted()
        # The first snapshot comes at once: some bytes of the 101, and not those in no time.
        told = snapshot(viewer)
        assert told["rows"][0][8] == told["sums"][3] == 0


def test_viewers_share_a_snapshot_and_without_them_nothing_runs() -> None:
    face = PlainFace()
    page = watched(face)
    with serving(face.app) as server:
        assert page._asks is None
        with Peer(server, "/dashboard/socket") as first, Peer(server, "/dashboard/socket") as second:
            first.accepted()
            second.accepted()
            # In their bytes; the one that connected later begins later.
            later = second.frame()
            while first.frame() != later:
                pass
        wait_until(lambda: page._asks is None)
        assert not page._viewers
        assert dashboard.SNAPSHOTS not in page._topics._local.topics
        told = page._told_at
        for _ in range(3):
            with Peer(server, "/echo/ada") as peer:
                peer.accepted()
        assert page._told_at == told


def test_only_so_many_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "MOST_SESSIONS", 2)
    face = PlainFace()
    watched(face, topics=Topics(max_message_size=700))
    with ExitStack() as stack:
        server = stack.enter_context(serving(face.app))
        for _ in range(4):
            stack.enter_context(Peer(server, "/echo/" + "a" * 99)).accepted()
        viewer = stack.enter_context(Peer(server, "/dashboard/socket")).accepted()
        while (told := snapshot(viewer))["sessions"] < 5:
            pass
        assert len(told["rows"]) in (1, 2)
        # Neither is all of a long path.
        _, row = row_of(viewer, "/echo/<name>")
        assert row[2] == "/echo/" + "a" * 93 + "…"


# -- Closing a session -------------------------------------------------------------------------------------------------


def order(told: dict[str, Any], row: list[Any], code: Any = 4000, reason: Any = "enough") -> bytes:
    fields = {"worker": told["worker"], "session": row[0], "code": code, "reason": reason}
    return frame(1, json.dumps(fields).encode())


@either
def test_a_session_is_closed(make: MakeFace) -> None:
    face = make()
    watched(face)
    with (
        serving(face.app) as server,
        Peer(server, "/echo/ada") as ada,
        Peer(server, "/echo/grace") as other,
        Peer(server, "/dashboard/socket") as viewer,
    ):
        ada.accepted()
        viewer.accepted()
        other.accepted()
        told, row = row_of(viewer, "/echo/<name>", "/echo/ada")
        viewer.send(order(told, row))
        assert ada.frame() == (0x88, (4000).to_bytes(2, "big") + b"enough")
        other.send(frame(1, b"still here"))
        assert other.frame() == (0x81, b"still here")


@pytest.mark.parametrize(
    "message",
    [b"no JSON", b"[]", b"{}", b'{"worker": 1, "session": 1, "code": 1000, "reason": ""}', b"[" * 4000],
    ids=["text", "array", "nothing", "number", "nested"],
)
def test_what_is_no_order(message: bytes) -> None:
    assert "error" in answer_to(frame(1, message))


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (999, ""), (None, ""), (1000, "x" * 124), (1000, 5)])
def test_orders_that_can_not_be_followed(code: Any, reason: Any) -> None:
    assert "error" in answer_to(order({"worker": "w"}, [1], code, reason))


@pytest.mark.parametrize(
    "garbage",
    [
        "no JSON",
        "null",
        "[]",
        "{}",
        '{"worker": WORKER, "session": NUMBER}',
        '{"worker": WORKER, "session": NUMBER, "code": 1005, "reason": ""}',
        '{"worker": WORKER, "session": NUMBER, "code": null, "reason": ""}',
        '{"worker": WORKER, "session": NUMBER, "code": 1000, "reason": 5}',
        pytest.param("[" * 4000, id="nested"),
    ],
)
def test_garbage_on_the_control_topic_closes_nothing(garbage: str, caplog: pytest.LogCaptureFixture) -> None:
    face, topics = PlainFace(), Topics()
    watched(face, topics=topics)

    @face.sockets.route("/publish")
    def publish(session: Any) -> None:
        for message in session:
            topics.publish(dashboard.CONTROL, message)
            session.send("published")

    with (
        serving(face.app) as server,
        Peer(server, "/echo/ada") as ada,
        Peer(server, "/publish") as publisher,
        Peer(server, "/dashboard/socket") as viewer,
    ):
        for peer in (ada, publisher, viewer):
            peer.accepted()
        told, row = row_of(viewer, "/echo/<name>")
        garbage = garbage.replace("WORKER", json.dumps(told["worker"])).replace("NUMBER", str(row[0]))
        publisher.send(frame(1, garbage.encode()))
        assert publisher.frame() == (0x81, b"published")
        ada.send(frame(1, b"still here"))
        assert ada.frame() == (0x81, b"still here")
    assert [record.levelname for record in caplog.records if "no order" in record.message] == ["WARNING"]
    assert not [record for record in caplog.records if record.exc_info]


def answer_to(message: bytes) -> dict[str, Any]:
    """What a viewer is answered to a frame, beside the snapshots."""
    face = PlainFace()
    watched(face)
    with serving(face.app) as server, Peer(server, "/dashboard/socket") as viewer:
        viewer.accepted()
        viewer.send(message)
        while "worker" in (told := snapshot(viewer)):
            pass
        return told


def test_who_may_not_look_any_more_closes_nothing() -> None:
    face, allowed = PlainFace(), [True]
    watched(face, allow=lambda request: allowed[0])
    with (
        serving(face.app) as server,
        Peer(server, "/echo/ada") as ada,
        Peer(server, "/dashboard/socket") as viewer,
    ):
        ada.accepted()
        viewer.accepted()
        told, row = row_of(viewer, "/echo/<name>")
        allowed[0] = False
        viewer.send(order(told, row))
        while (received := viewer.frame())[0] == 0x81:
            pass
        assert received == (0x88, (1008).to_bytes(2, "big") + b"not allowed any more")
        ada.send(frame(1, b"still here"))
        assert ada.frame() == (0x81, b"still here")


@either
@pytest.mark.parametrize("refusal", [False, redirect("/login"), Unauthorized()], ids=["no", "response", "error"])
def test_a_right_that_is_taken_back(make: MakeFace, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "CHECK_SECONDS", 0.01)
    face, answers = make(), [True]

    def ask(request: Any) -> Any:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    watched(face, allow=ask)
    with serving(face.app) as server, Peer(server, "/dashboard/socket") as viewer:
        viewer.accepted()
        for _ in range(3):
            snapshot(viewer)
        answers[0] = refusal
        # It says nothing, and is asked for all the same.
        while (received := viewer.frame())[0] == 0x81:
            pass
        assert received == (0x88, (1008).to_bytes(2, "big") + b"not allowed any more")


# -- Several workers ---------------------------------------------------------------------------------------------------

APP = """
import os
import geventws
from geventws import Topics, dashboard

dashboard.INTERVAL = 0.05
app = geventws.WebSockets()

@app.route("/echo")
def echo(session):
    session.send(str(os.getpid()))
    for message in session:
        session.send(message)

app.register_blueprint(dashboard.Blueprint(allow=lambda request: True, topics=Topics({url!r})))
"""


def test_sessions_of_another_worker(tmp_path: Path) -> None:
    redis_server = pytest.importorskip("tests.redis_server")
    with redis_server.running(redis_server.any_kind()) as redis, ExitStack() as stack:
        (tmp_path / "app.py").write_text(APP.format(url=redis.url))
        options = ("-k", "geventws.Worker", "-w", "2")
        programs: list[Program] = []
        # When they have ended, for who has to find out why this failed.
        stack.callback(lambda: print(*(line for program in programs for line in program.rest()), sep="\n"))
        address, program = stack.enter_context(gunicorn_server("app:app", *options, directory=tmp_path))
        programs.append(program)
        clients: dict[int, ClientConnection] = {}
        while len(clients) < 2:
            client = stack.enter_context(connect(f"ws://{address}/echo", proxy=None))
            clients[int(client.recv(PATIENCE))] = client
        viewer = stack.enter_context(connect(f"ws://{address}/dashboard/socket", proxy=None))
        workers: dict[int, dict[str, Any]] = {}
        while workers.keys() != clients.keys() or not all(told["rows"] for told in workers.values()):
            told = json.loads(viewer.recv(PATIENCE))
            workers[told["process"]] = told
        # Whichever the viewer has come to: one of them is the other worker.
        for process, told in workers.items():
            for row in told["rows"]:
                if row[1] == "/echo":
                    fields = {"worker": told["worker"], "session": row[0], "code": 4321, "reason": "elsewhere"}
                    viewer.send(json.dumps(fields))
            with pytest.raises(Exception, match="4321"):
                clients[process].recv(PATIENCE)


# -- In a browser ------------------------------------------------------------------------------------------------------

PAGE = """
import geventws
from geventws import dashboard

app = geventws.WebSockets()

@app.route("/room/<name>")
def talk(session, name):
    for message in session:
        session.send(message)

app.register_blueprint(dashboard.Blueprint(allow=lambda request: True))
"""


@pytest.fixture
def watched_server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "app.py").write_text(PAGE)
    with development_server("app:app", tmp_path) as (address, program):
        yield address
        program.stop()
    assert not [line for line in program.rest() if "Traceback" in line]


def test_in_a_browser(watched_server: str, open_page: Callable[[str], Page]) -> None:
    path = "/room/%3Cimg%20src%3Dx%20onerror%3Ddocument.title%3D1%3E"
    with connect(f"ws://{watched_server}{path}", proxy=None) as client:
        page = open_page(f"http://{watched_server}/dashboard/")
        rows = page.locator("#rows tr")
        expect(rows).to_have_count(2)
        expect(page.get_by_role("status")).to_have_text("Live")
        # What a client sent is text.
        expect(page.locator("#rows")).to_contain_text("/room/<img src=x onerror=document.title=1>")
        expect(page.locator("img")).to_have_count(0)
        expect(page).to_have_title("WebSockets")
        expect(page.get_by_role("heading", name="2 sessions in 1 worker")).to_be_visible()
        # The charts move.
        line = page.locator(".line").first
        expect(line).not_to_have_attribute("d", line.get_attribute("d") or "")
        for chart in ("Open sessions", "Messages a second"):
            expect(page.get_by_role("img", name=f"{chart}:")).to_be_visible()
        # Sorted, filtered, and closed by the button of the only row that is left.
        first = page.get_by_role("columnheader").first
        first.get_by_role("button").click()
        expect(first).to_have_attribute("aria-sort", "ascending")
        page.get_by_role("searchbox", name="Filter").fill("onerror")
        expect(rows).to_have_count(1)
        close = rows.get_by_role("button", name="Close the session of 127.0.0.1 at /room/<img")
        dialog = page.get_by_role("dialog", name="Close this session?")
        close.click()
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_be_hidden()
        close.click()
        dialog.get_by_label("Close code").fill("4007")
        dialog.get_by_label("Reason").fill("from the page")
        dialog.get_by_label("Reason").press("Enter")
        with pytest.raises(Exception, match="4007") as closed:
            client.recv(PATIENCE)
        assert "from the page" in str(closed.value)
        expect(rows).to_have_count(0)


GUARDED = """
import flask
from geventws import dashboard
from geventws.flask import WebSockets

app = flask.Flask(__name__)
app.secret_key = "not secret"
WebSockets(app)
dashboard.CHECK_SECONDS = 0.05
answer = True

def allow(request):
    return answer

@app.get("/answer/<what>")
def set_answer(what):
    global answer
    answer = {"no": False, "login": flask.redirect("/login"), "fault": "a fault", "yes": True}[what]
    return "set"

app.register_blueprint(dashboard.Blueprint(allow=allow))
"""


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "app.py").write_text(GUARDED)
    with development_server("app:app", tmp_path) as (address, _):
        yield address


def test_the_page_tells_of_a_refusal(guarded_server: str, open_page: Callable[[str], Page]) -> None:
    page = open_page(f"http://{guarded_server}/dashboard/")
    status = page.get_by_role("status")
    for answer, told in (("no", "Refused: the server answers 403"), ("login", "Refused: the server leads elsewhere")):
        expect(status).to_have_text("Live")
        expect(page.locator("#rows tr")).to_have_count(1)
        page.request.get(f"http://{guarded_server}/answer/{answer}")
        expect(status).to_contain_text(told)
        expect(page.get_by_role("table")).to_have_count(0)
        page.request.get(f"http://{guarded_server}/answer/yes")
        page.get_by_role("button", name="Load the page again").press("Enter")
    # A fault is none, and passes.
    expect(status).to_have_text("Live")
    page.request.get(f"http://{guarded_server}/answer/fault")
    expect(status).to_have_text("The server answers 500, trying again…")
    page.request.get(f"http://{guarded_server}/answer/yes")
    expect(status).to_have_text("Live")


def test_on_screens_of_any_width(watched_server: str, open_page: Callable[[str], Page]) -> None:
    with connect(f"ws://{watched_server}/room/{'a' * 300}", proxy=None):
        page = open_page(f"http://{watched_server}/dashboard/")
        row = page.get_by_role("row").filter(has_text="/room/<name>")
        for width in (1280, 1024, 768, 390, 320):
            page.set_viewport_size({"width": width, "height": 1200})
            expect(row.get_by_role("button")).to_be_in_viewport(ratio=1)
            expect(row.get_by_role("cell").nth(2)).to_be_in_viewport(ratio=1)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            # A table to assistive technology, whatever it looks like.
            expect(row.get_by_role("cell")).to_have_count(10)
            expect(page.get_by_role("table")).to_have_count(1)


def test_charts_have_scales(watched_server: str, open_page: Callable[[str], Page]) -> None:
    page = open_page(f"http://{watched_server}/dashboard/")
    chart = page.locator("#charts .card").first
    expect(chart.locator(".axis span")).to_have_text(["4", "2 min ago", "now"])
    scales = page.evaluate("[0, 4.1, 20, 21].map((value) => number(scale(value, number)))")
    assert scales == ["4", "5", "20", "50"]
    scales = page.evaluate("[0, 17, 1000, 1025].map((value) => bytes(scale(value, bytes)))")
    assert scales == ["16 B", "32 B", "1.0 KiB", "2.0 KiB"]


def test_a_focused_button_moves_with_its_row(watched_server: str, open_page: Callable[[str], Page]) -> None:
    with (
        connect(f"ws://{watched_server}/room/ada", proxy=None),
        connect(f"ws://{watched_server}/room/grace", proxy=None),
    ):
        page = open_page(f"http://{watched_server}/dashboard/")
        rows = page.locator("#rows tr")
        expect(rows).to_have_count(3)
        close = page.get_by_role("button", name="Close the session of 127.0.0.1 at /room/ada")
        close.focus()
        for _ in range(2):
            before = rows.all_inner_texts()
            page.evaluate("ordered.descending = !ordered.descending; show()")
            assert rows.all_inner_texts() != before
            expect(close).to_be_focused()
