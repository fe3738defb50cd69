"""The pages of docs/ and the README: their code is run, their commands, configurations, tables and links are looked at.

The Python blocks of a page, or of a section where a page says so, are one module. A block that is not run has a comment
above it, ``<!-- not run: why -->``.
"""

from __future__ import annotations

import argparse
import configparser
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page, expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions import ClientExtensionFactory, Extension
from websockets.frames import Frame
from websockets.sync.client import ClientConnection, connect

import geventws
from geventws import __main__ as command
from geventws.frames import CloseCode
from tests import redis_server
from tests.programs import PATIENCE, ROOT, Program, development_server, gunicorn_server

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *DOCS.glob("*.md")])

#: The pages with Python, each with a test below that runs it.
RUN = {
    "README.md",
    "docs/broadcast.md",
    "docs/client.md",
    "docs/extensions.md",
    "docs/handlers.md",
    "docs/ktor.md",
    "docs/migrating.md",
    "docs/routing.md",
    "docs/servers.md",
    "docs/settings.md",
    "docs/start.md",
    "docs/testing.md",
    "docs/topics.md",
}

#: Pages with Python that other tests run, but for a part.
RUN_ELSEWHERE = {"docs/observability.md": "tests/test_observability.py"}

_fence = re.compile(r"^(?:<!-- (not run[^>]*?) -->\n)?^```([\w{}-]*)[^\n]*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code; ``mark`` is the comment above it, empty where it is run."""

    mark: str
    language: str
    code: str


def blocks(page: str, language: str, section: str | None = None) -> list[Block]:
    """The blocks of a page, or of what stands below one of its headings of the second level."""
    text = (ROOT / page).read_text()
    if section is not None:
        parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
        text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    return [block for found in _fence.findall(text) if (block := Block(*found)).language == language]


def code(page: str, section: str | None = None) -> str:
    """The Python that is run, as one module."""
    return "\n\n".join(block.code for block in blocks(page, "python", section) if not block.mark)


def write(directory: Path, text: str) -> None:
    """Writes app.py."""
    (directory / "app.py").write_text(text)


def closing(connection: ClientConnection) -> tuple[int | None, str | None]:
    """Waits for the server to close; gives the code and the reason."""
    with pytest.raises(ConnectionClosed):
        connection.recv(PATIENCE)
    return connection.close_code, connection.close_reason


def status_of(url: str, **options: Any) -> tuple[int, str]:
    """The status and the body with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused, connect(url, proxy=None, **options):
        pass
    response = refused.value.response
    return response.status_code, bytes(response.body or b"").decode()


def get(url: str | urllib.request.Request) -> Any:
    """The response to a plain request."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def connected(url: str, program: Program, **options: Any) -> Iterator[ClientConnection]:
    """A connection to a program that does not tell when it listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection = connect(url, proxy=None, **options)
            break
        except (OSError, InvalidStatus):
            assert program.process.poll() is None, program.rest()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with connection:
        yield connection


# -- All pages ---------------------------------------------------------------------------------------------------------


def test_every_page_with_code_is_run() -> None:
    """Whoever writes a page with code adds a test for it below."""
    assert {page for page in PAGES if blocks(page, "python")} == RUN | RUN_ELSEWHERE.keys()
    for test in RUN_ELSEWHERE.values():
        assert (ROOT / test).exists()


@pytest.mark.parametrize("page", PAGES)
def test_code_is_python(page: str) -> None:
    """Also what is not run."""
    for block in blocks(page, "python"):
        compile(block.code, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_has_its_reason(page: str) -> None:
    text = (ROOT / page).read_text()
    marks = re.findall(r"^<!-- not run.*$", text, flags=re.MULTILINE)
    assert marks == [f"<!-- {block[0]} -->" for block in _fence.findall(text) if block[0]]
    for mark in marks:
        assert re.fullmatch(r"<!-- not run: \w.{8,} -->", mark), mark


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """To files; Sphinx sees to places within pages."""
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_every_page_is_in_the_index() -> None:
    trees = "".join(block.code for block in blocks("docs/index.md", "{toctree}"))
    listed = re.findall(r"^(\w+)$", trees, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "index")


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """The calls of a program in the blocks and the text of all pages: the page, and the arguments."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        lines = [line for block in blocks(page, "") for line in block.code.splitlines()]
        # In a text a call may go on behind the end of a line, and may be cut short by an ellipsis.
        lines += re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(_fence, "", text).replace("<br>", " "))
        for line in lines:
            if program not in line:
                continue
            words = shlex.split(line.replace("\n", " "), comments=True)
            while words and ("=" in words[0] or words[0] == "$"):
                del words[0]
            if " ".join(words).startswith(f"{program} ") and "..." not in words:
                yield page, words[len(program.split()) :]


class Parsed(Exception):
    """The arguments were understood."""


def test_commands_of_geventws(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, *arguments: Any, **keywords: Any) -> None:
        parse(parser, *arguments, **keywords)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    count = 0
    for page, arguments in commands("python -m geventws"):
        try:
            command.main(arguments)
        except Parsed:
            pass
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{page}: python -m geventws {shlex.join(arguments)}")
        count += 1
    assert count > 5


def test_commands_of_gunicorn() -> None:
    from gunicorn.config import Config  # type: ignore[import-untyped]

    count = 0
    for page, arguments in commands("gunicorn"):
        try:
            Config().parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: gunicorn {shlex.join(arguments)}")
        for name in re.findall(r"geventws[\w.]*Worker", " ".join(arguments)):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute)
        count += 1
    assert count > 5


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js here")
def test_scripts_are_javascript(tmp_path: Path) -> None:
    scripts = [block.code for page in PAGES for block in blocks(page, "js")]
    pages = [block.code for page in PAGES for block in blocks(page, "html")]
    scripts += [script for page in pages for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)]
    assert len(scripts) > 3
    for number, script in enumerate(scripts):
        (tmp_path / f"{number}.js").write_text(script)
    # Node checks one file at a time.
    check = "for (const file of process.argv.slice(1)) new vm.Script(fs.readFileSync(file, 'utf8'), {filename: file});"
    files = [str(path) for path in sorted(tmp_path.glob("*.js"))]
    subprocess.run(["node", "-e", check, *files], check=True, timeout=PATIENCE)


# -- Pages that are run ------------------------------------------------------------------------------------------------


def test_readme(tmp_path: Path) -> None:
    write(tmp_path, code("README.md"))
    with gunicorn_server("app:app", "-k", "geventws.Worker", directory=tmp_path) as (address, program):
        with connect(f"ws://{address}/chat/echo/ada", proxy=None) as connection:
            for message in ("hello", b"hello"):
                connection.send(message)
                assert connection.recv(PATIENCE) == message
        assert program.stop() == 0


def test_start(tmp_path: Path) -> None:
    write(tmp_path, code("docs/start.md"))
    (page,) = blocks("docs/start.md", "html")
    (tmp_path / "page.html").write_text(page.code)
    with development_server("app:app", tmp_path) as (address, _):
        url = f"ws://{address}"
        assert get(f"http://{address}/").read().decode() == page.code
        with connect(f"{url}/echo", proxy=None) as connection:
            connection.send("hello")
            assert connection.recv(PATIENCE) == "hello"
        with connect(f"{url}/chat", proxy=None) as reader, connect(f"{url}/chat", proxy=None) as writer:
            writer.send("to all")
            assert [reader.recv(PATIENCE), writer.recv(PATIENCE)] == ["to all", "to all"]
        assert status_of(f"{url}/private")[0] == 401
        with connect(f"{url}/private?key=sesame", proxy=None) as connection:
            assert connection.recv(PATIENCE) == "welcome"


def test_start_in_a_browser(tmp_path: Path, open_page: Callable[[str], Page]) -> None:
    """The page of the first five minutes, as it stands there."""
    write(tmp_path, code("docs/start.md"))
    (tmp_path / "page.html").write_text(blocks("docs/start.md", "html")[0].code)
    with development_server("app:app", tmp_path) as (address, _):
        page = open_page(f"http://{address}/")
        page.wait_for_function("socket.readyState === WebSocket.OPEN")
        text = page.get_by_role("textbox")
        expect(text).to_be_focused()
        text.press_sequentially("Grüße")
        text.press("Enter")
        expect(page.locator("#log")).to_have_text("Grüße")


def test_handlers(tmp_path: Path) -> None:
    write(tmp_path, code("docs/handlers.md"))
    with development_server("app:app", tmp_path) as (address, program):
        url = f"ws://{address}"
        with connect(f"{url}/shout/2", proxy=None) as connection:
            connection.send("hé")
            assert connection.recv(PATIENCE) == "HÉHÉ"
        assert status_of(f"{url}/report")[0] == 401
        with connect(f"{url}/report?key=sesame", proxy=None) as connection:
            assert connection.response is not None
            assert connection.response.headers["X-Report"] == "7"
            assert connection.recv(PATIENCE) == "all is well"
            assert closing(connection) == (4000, "that was all")
        with connect(f"{url}/prompt", proxy=None) as connection:
            assert connection.recv(PATIENCE) == "Are you still there?"
            connection.send("Ada")
            while (answer := connection.recv(PATIENCE)) == "Are you still there?":
                pass
            assert re.fullmatch(r"Hello Ada, \d\.\d{3} seconds away\.", str(answer))
        with connect(f"{url}/squares", proxy=None) as connection:
            fragments = [str(fragment) for fragment in connection.recv_streaming()]
            assert len(fragments) > 1
            assert "".join(fragments).split() == [str(number * number) for number in range(1000)]
        with connect(f"{url}/sum", proxy=None) as connection:
            connection.send("[1, 2.5]")
            assert connection.recv(PATIENCE) == '{"sum":3.5}'
            connection.send("[1, 2")
            assert closing(connection)[0] == CloseCode.INVALID_PAYLOAD
        with connect(f"{url}/frames", proxy=None) as connection:
            assert connection.ping().wait(PATIENCE)
            connection.send(["a", "b"])
            assert list(connection.recv_streaming())[:2] == ["a", "b"]
            connection.close(4001)
            assert connection.protocol.close_rcvd is not None
            assert connection.protocol.close_rcvd.code == 4001
        assert program.stop() == 0
    assert not [line for line in program.rest() if "Traceback" in line]


def test_broadcast(tmp_path: Path) -> None:
    write(tmp_path, code("docs/broadcast.md"))
    with development_server("app:app", tmp_path) as (address, _):
        url = f"ws://{address}/news"
        with connect(url, proxy=None) as reader, connect(url, proxy=None) as writer:
            writer.send("first")
            assert [reader.recv(PATIENCE), writer.recv(PATIENCE)] == ["first", "first"]
        url = f"ws://{address}/room/lobby"
        with connect(f"{url}?name=Ada", proxy=None) as ada:
            assert json.loads(ada.recv(PATIENCE)) == {"people": ["Ada"], "recovered": True}
            for text in ("first", "second"):
                ada.send(text)
            heard = [json.loads(ada.recv(PATIENCE)) for _ in range(2)]
            assert [message["text"] for message in heard] == ["first", "second"]
            with connect(f"{url}?name=Grace&since={heard[0]['position']}", proxy=None) as grace:
                assert json.loads(grace.recv(PATIENCE)) == heard[1]
                assert json.loads(grace.recv(PATIENCE)) == {"people": ["Ada", "Grace"], "recovered": True}


def test_topics(tmp_path: Path) -> None:
    """As a user with the rights that the page names, and no others."""
    rights = re.search(r"An ACL user\*\* needs `([^`]+)`", (ROOT / "docs/topics.md").read_text())
    assert rights is not None
    with redis_server.running(redis_server.any_kind()) as server:
        with server.client() as admin:
            places = ("~geventws:*", "&geventws:*")
            admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *places, *rights[1].split())
        write(
            tmp_path,
            code("docs/topics.md").replace("redis://127.0.0.1:6379/0", server.url.replace("//", "//app:secret@"))
            + "\nimport geventws\napp = geventws.WebSockets()\napp.register_blueprint(ws)\n",
        )
        with development_server("app:app", tmp_path) as (address, _):
            with connect(f"ws://{address}/room/7", proxy=None) as first:
                first.send("tea")
                heard = json.loads(first.recv(PATIENCE))
                assert heard["text"] == "tea"
                first.send("is ready")
                last = first.recv(PATIENCE)
                with connect(f"ws://{address}/room/7?since={heard['position']}", proxy=None) as second:
                    assert second.recv(PATIENCE) == last
            with connect(f"ws://{address}/people/Ada", proxy=None) as ada:
                assert json.loads(ada.recv(PATIENCE)) == {"event": "join", "name": "Ada"}
                with connect(f"ws://{address}/people/Grace", proxy=None):
                    assert json.loads(ada.recv(PATIENCE)) == {"event": "join", "name": "Grace"}
                assert json.loads(ada.recv(PATIENCE)) == {"event": "leave", "name": "Grace"}
        with server.client() as admin:
            # What was refused.
            assert admin.execute_command("ACL", "LOG") == []


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("routing")
    write(directory, code("docs/routing.md"))
    return directory


def test_routing_in_flask(routing: Path) -> None:
    with development_server("app:app", routing) as (address, _):
        url = f"ws://{address}/rooms/lobby"
        response = get(f"http://{address}/login/ada")
        assert response.read().decode() == url
        assert status_of(url) == (401, "log in first")
        cookie = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        with connect(url, additional_headers=cookie, proxy=None) as connection:
            assert connection.recv(PATIENCE) == "ada, welcome to lobby"
        with connect(f"ws://{address}/live", proxy=None) as connection:
            assert connection.recv(PATIENCE) == "live"
        assert status_of(f"ws://{address}/prices")[0] == 401
        token = {"Authorization": "Bearer sesame"}
        with connect(f"ws://{address}/prices", additional_headers=token, proxy=None) as connection:
            assert connection.recv(PATIENCE) == "1.25"


def test_routing_without_a_framework(routing: Path) -> None:
    with development_server("app:application", routing) as (address, _):
        assert get(f"http://{address}/").read() == b"a page"
        with connect(f"ws://{address}/numbers/double/21", proxy=None) as connection:
            assert connection.recv(PATIENCE) == "42"
        answers = {"v2.feed": "in v2.feed", "v1.feed": "in the old one"}
        for protocol, answer in answers.items():
            with connect(f"ws://{address}/feed", subprotocols=[protocol], proxy=None) as connection:  # type: ignore[list-item]
                assert connection.recv(PATIENCE) == answer
        status, body = status_of(f"ws://{address}/feed")
        assert status == 400
        assert "v3.feed, v2.feed, v1.feed" in body


def test_settings(tmp_path: Path) -> None:
    write(tmp_path, code("docs/settings.md"))
    with (
        development_server("app:app", tmp_path) as (address, _),
        connect(f"ws://{address}/upload", max_size=None, proxy=None) as connection,
    ):
        connection.send(b"x" * 2_000_000)
        assert connection.recv(PATIENCE) == "2000000 bytes"


class XorFactory(ClientExtensionFactory):
    """The client's half of the page's extension."""

    name = "x-xor"  # type: ignore[assignment]

    def get_request_params(self) -> list[tuple[str, str | None]]:
        return [("key", "42")]

    def process_response_params(self, params: Any, accepted_extensions: Any) -> Extension:
        assert list(params) == [("key", "42")]
        return XorExtension()


class XorExtension(Extension):
    name = "x-xor"  # type: ignore[assignment]

    def encode(self, frame: Frame) -> Frame:
        if frame.opcode >= 8:
            return frame
        return Frame(frame.opcode, bytes(byte ^ 42 for byte in frame.data), frame.fin)

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        return self.encode(frame)


def test_extensions(tmp_path: Path) -> None:
    write(tmp_path, code("docs/extensions.md"))
    with development_server("app:app", tmp_path) as (address, _):
        with connect(f"ws://{address}/", proxy=None) as connection:
            assert [extension.name for extension in connection.protocol.extensions] == ["permessage-deflate"]
            connection.send("a" * 10_000)
            assert connection.recv(PATIENCE) == "a" * 10_000
        with connect(f"ws://{address}/", compression=None, proxy=None) as connection:
            assert not connection.protocol.extensions
    with (
        development_server("app:xor_app", tmp_path) as (address, _),
        connect(f"ws://{address}/", compression=None, extensions=[XorFactory()], proxy=None) as connection,
    ):
        connection.send("hé")
        assert connection.recv(PATIENCE) == "HÉ"


def test_servers(tmp_path: Path) -> None:
    write(tmp_path, code("docs/servers.md"))
    with Program(sys.executable, "app.py", directory=tmp_path) as program:
        url = program.wait_for(r"^(ws://\S+)$")[1]
        with connect(url, proxy=None) as connection:
            assert connection.recv(PATIENCE) == "hello"
            assert closing(connection) == (1000, "")


#: What the client's page talks to, and how it is called.
ASKED = """
import geventws

app = geventws.WebSockets()

@app.route("/", protocol="v1.questions")
def answer(session):
    session.send(session.receive() + session.environ["HTTP_AUTHORIZATION"])

@app.route("/news")
def news(session):
    session.send("first")

class Enough(Exception):
    pass

heard = []

def show(message):
    heard.append(message)
    if len(heard) == 2:
        raise Enough

server = geventws.WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
url = f"ws://127.0.0.1:{server.server_port}/"
import app as page
print(page.ask(url, "well? "))
try:
    page.follow(url + "news", show)
except Enough:
    print(heard)
"""


def test_client(tmp_path: Path) -> None:
    write(tmp_path, code("docs/client.md"))
    (tmp_path / "asked.py").write_text(ASKED)
    with Program(sys.executable, "asked.py", directory=tmp_path) as program:
        program.wait_for(r"^well\? Bearer sesame$")
        program.wait_for(r"^\['first', 'first'\]$")
        assert program.process.wait(PATIENCE) == 0


def test_testing(tmp_path: Path) -> None:
    write(tmp_path, code("docs/testing.md"))
    with Program(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "app.py", directory=tmp_path) as program:
        program.wait_for("3 passed")


def test_observability_in_flask(tmp_path: Path) -> None:
    write(tmp_path, code("docs/observability.md", "In Flask"))
    with development_server("app:app", tmp_path) as (address, program):
        with connect(f"ws://{address}/echo", proxy=None) as connection:
            connection.send("hello")
            assert connection.recv(PATIENCE) == "hello"
        program.wait_for("/echo: 1000 normal, 1 messages")
        figures = get(f"http://{address}/metrics").read().decode()
        assert 'geventws_closes_total{code="1000",route="/echo"} 1.0' in figures
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(f"http://{address}/dashboard/")
        cookie = get(f"http://{address}/login/operator").headers["Set-Cookie"].partition(";")[0]
        request = urllib.request.Request(f"http://{address}/dashboard/", headers={"Cookie": cookie})
        assert "<title>WebSockets</title>" in get(request).read().decode()
        assert status_of(f"ws://{address}/dashboard/socket")[0] == 403
        with connect(f"ws://{address}/dashboard/socket", additional_headers={"Cookie": cookie}, proxy=None) as viewer:
            assert json.loads(viewer.recv(PATIENCE))["sessions"] == 1


EXPORTS = """
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

def told(span):
    told = span.attributes.get("http.status_code") or span.attributes.get("http.response.status_code")
    parent = span.parent and format(span.parent.span_id, "x")
    return f"span {span.name!r} {told} of {parent} in {span.context.trace_id:x}\\n"

trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=told)))
"""


def test_observability_by_opentelemetry(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.instrumentation.flask")
    write(tmp_path, code("docs/observability.md", "OpenTelemetry") + EXPORTS)
    headers = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    with gunicorn_server("app:app", "-k", "geventws.Worker", directory=tmp_path) as (address, program):
        with connect(f"ws://{address}/echo/ada", proxy=None, additional_headers=headers) as connection:
            connection.send("hello")
            assert connection.recv(PATIENCE) == "hello"
            session = program.wait_for(r"^span 'message' None of (\w+) in (?:ab){16}$")[1]
            assert session != "cd" * 8
        program.wait_for(r"^span 'GET /echo/<name>' 101 of (?:cd){8} in (?:ab){16}$")
        assert status_of(f"ws://{address}/echo/ada", origin="http://evil.example")[0] == 403
        program.wait_for(r"^span 'GET /echo/<name>' 403 of None")


def test_ktor(tmp_path: Path) -> None:
    write(tmp_path, code("docs/ktor.md"))
    with (
        development_server("app:app", tmp_path) as (address, _),
        connect(f"ws://{address}/echo", proxy=None) as connection,
    ):
        connection.send(b"not echoed")
        connection.send("echoed")
        assert connection.recv(PATIENCE) == "echoed"


# -- Migrating: a section is a module ----------------------------------------------------------------------------------

MIGRATING = "docs/migrating.md"


def echoes(connection: ClientConnection) -> None:
    """Asserts that what is sent comes back."""
    for message in ("hello", b"\x00\xff"):
        connection.send(message)
        assert connection.recv(PATIENCE) == message


@pytest.mark.parametrize("step", ["installed", "in the end"])
def test_migrating_from_geventwebsocket(step: str, tmp_path: Path) -> None:
    before, after, end, _ = (block.code for block in blocks(MIGRATING, "python", "From gevent-websocket"))
    first_import, rest = before.split("\n", 1)
    assert after.endswith(f"{first_import}\n...\n")
    port = free_port()
    write(tmp_path, (after.replace("...\n", rest) if step == "installed" else end).replace("8000", str(port)))
    with (
        Program(sys.executable, "app.py", directory=tmp_path) as program,
        connected(f"ws://127.0.0.1:{port}/", program) as connection,
    ):
        echoes(connection)


def test_migrating_from_geventwebsocket_under_gunicorn(tmp_path: Path) -> None:
    before, _, _, configuration = (block.code for block in blocks(MIGRATING, "python", "From gevent-websocket"))
    write(tmp_path, before.partition("WSGIServer((")[0])
    (tmp_path / "conf.py").write_text(configuration)
    with gunicorn_server("app:app", "-c", "conf.py", directory=tmp_path) as (address, _):
        allowed: Any = "https://example.com"
        with connect(f"ws://{address}/", origin=allowed, proxy=None) as connection:
            echoes(connection)
        assert status_of(f"ws://{address}/", origin="https://example.org")[0] == 403


def test_migrating_from_flask_sockets_with_the_worker(tmp_path: Path) -> None:
    write(tmp_path, blocks(MIGRATING, "python", "From Flask-Sockets")[0].code)
    with (
        gunicorn_server("app:app", "-k", "geventws.compat.Worker", directory=tmp_path) as (address, _),
        connect(f"ws://{address}/echo", proxy=None) as connection,
    ):
        echoes(connection)


@pytest.mark.parametrize("step", ["import", "in the end"])
def test_migrating_from_flask_sockets(step: str, tmp_path: Path) -> None:
    before, changed, end = (block.code for block in blocks(MIGRATING, "python", "From Flask-Sockets"))
    old = "from flask_sockets import Sockets\n"
    assert old in before
    write(tmp_path, before.replace(old, changed) if step == "import" else end)
    with (
        development_server("app:app", tmp_path) as (address, _),
        connect(f"ws://{address}/echo", proxy=None) as connection,
    ):
        echoes(connection)


def test_migrating_from_flask_sock(tmp_path: Path) -> None:
    write(tmp_path, "from flask import Flask\napp = Flask(__name__)\n" + code(MIGRATING, "From flask-sock"))
    with (
        development_server("app:app", tmp_path) as (address, _),
        connect(f"ws://{address}/echo", proxy=None) as connection,
    ):
        echoes(connection)


def test_migrating_from_flask_socketio(tmp_path: Path) -> None:
    install, install_one, app = (block.code for block in blocks(MIGRATING, "python", "From Flask-SocketIO"))
    prelude = "from flask import Flask\nfrom flask_socketio import SocketIO\napp = Flask(__name__)\n"
    write(tmp_path, f"{install}\n{install_one}\n{prelude}{app}\nprint(socketio.async_mode, flush=True)\n")
    with Program(sys.executable, "app.py", directory=tmp_path) as program:
        program.wait_for("^gevent$")


def test_migrating_from_django(tmp_path: Path) -> None:
    prelude = (
        "import django.conf\n"
        "django.conf.settings.configure(ROOT_URLCONF=__name__, SECRET_KEY='not secret', ALLOWED_HOSTS=['*'])\n"
        "urlpatterns = []\n"
    )
    write(tmp_path, prelude + code(MIGRATING, "Django, Bottle, Falcon, Pyramid"))
    with development_server("app:app", tmp_path) as (address, _):
        with connect(f"ws://{address}/echo", proxy=None) as connection:
            echoes(connection)
        assert status_of(f"ws://{address}/nowhere")[0] == 404


# -- Deployment: the proxies themselves --------------------------------------------------------------------------------

DEPLOYMENT = "docs/deployment.md"

#: An app that tells what it is told of the client.
PROXIED = """
import flask
from geventws.flask import WebSockets
app = flask.Flask(__name__)
sockets = WebSockets(app)

@app.get("/health")
def health():
    return "well"

@sockets.route("/echo")
def echo(session):
    session.send(" ".join(session.request.headers.get(name, "-") for name in ("X-Forwarded-For", "X-Forwarded-Proto")))
    for message in session:
        session.send(message)
"""


def through_proxy(port: int, program: Program) -> None:
    """Talks to the app behind a proxy as a page does, and asks for a page."""
    origin: Any = f"http://127.0.0.1:{port}"
    with connected(f"ws://127.0.0.1:{port}/echo", program, origin=origin) as connection:
        assert connection.recv(PATIENCE) == "127.0.0.1 http"
        echoes(connection)
        large = "x" * 200_000
        connection.send(large)
        assert connection.recv(PATIENCE) == large
        assert connection.ping().wait(PATIENCE)
    assert status_of(f"ws://127.0.0.1:{port}/echo", origin="http://example.com")[0] == 403
    assert get(f"http://127.0.0.1:{port}/health").read() == b"well"


@pytest.mark.skipif(not shutil.which("nginx"), reason="there is no nginx here")
def test_nginx(tmp_path: Path) -> None:
    (block,) = blocks(DEPLOYMENT, "nginx")
    write(tmp_path, PROXIED)
    port = free_port()
    with gunicorn_server("app:app", "-k", "geventws.Worker", directory=tmp_path) as (address, _):
        site = block.code.replace("127.0.0.1:8000", address).replace("listen 80;", f"listen 127.0.0.1:{port};")
        assert site.count(address) == 1
        paths = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # As root nginx gives its workers to a user who can't look into this directory, and need not.
        (tmp_path / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log stderr;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{paths}{site}}}\n"
        )
        nginx = ("nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-e", "stderr")
        with Program(*nginx, directory=tmp_path) as program:
            through_proxy(port, program)


@pytest.mark.skipif(not shutil.which("haproxy"), reason="there is no HAProxy here")
def test_haproxy(tmp_path: Path) -> None:
    (block,) = blocks(DEPLOYMENT, "haproxy")
    write(tmp_path, PROXIED)
    port = free_port()
    with gunicorn_server("app:app", "-k", "geventws.Worker", directory=tmp_path) as (address, _):
        site = block.code.replace("127.0.0.1:8000", address).replace("bind :80", f"bind 127.0.0.1:{port}")
        # What this machine allows may be less.
        site = site.replace("maxconn 40000", "maxconn 100").replace("maxconn 9000", "maxconn 100")
        (tmp_path / "haproxy.cfg").write_text(site)
        check = subprocess.run(
            ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True, timeout=PATIENCE
        )
        assert check.returncode == 0, check.stderr
        assert "[WARNING]" not in check.stderr
        with Program("haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg"), directory=tmp_path) as program:
            through_proxy(port, program)


def test_systemd_unit() -> None:
    """What kills waits for longer than what is killed; there are more descriptors than connections."""
    (block,) = blocks(DEPLOYMENT, "ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block.code)
    service = unit["Service"]
    settings: dict[str, Any] = {"__file__": "gunicorn.conf.py"}
    exec(compile((ROOT / "gunicorn.conf.py").read_text(), "gunicorn.conf.py", "exec"), settings)
    assert int(service["TimeoutStopSec"]) > settings["graceful_timeout"]
    assert int(service["LimitNOFILE"]) > settings["worker_connections"]
    assert service["KillMode"] == "mixed"
    assert "kill -s HUP $MAINPID" in service["ExecReload"]


# -- Tables ------------------------------------------------------------------------------------------------------------


def rows(page: str, section: str) -> dict[str, str]:
    """The names of a table of settings, with their defaults."""
    parts = re.split(r"^## (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    return dict(re.findall(r"^\| `(\w+)` \|[^|]*\| `([^`]+)` \|", text, flags=re.MULTILINE))


def shown(value: object) -> str:
    return repr(value).replace("'", '"')


def test_table_of_settings() -> None:
    settings = geventws.Settings()
    assert rows("docs/settings.md", "Session settings") == {
        name: shown(getattr(settings, name)) for name in settings.names()
    }


def test_table_of_the_worker() -> None:
    names = [name for name in inspect.get_annotations(geventws.Worker) if not name.startswith("_") and name != "wsgi"]
    assert rows("docs/settings.md", "Worker attributes") == {
        name: shown(getattr(geventws.Worker, name)) for name in names
    }


@pytest.mark.parametrize(
    ("section", "target"), [("WSGIServer arguments", geventws.WSGIServer), ("Topics arguments", geventws.Topics)]
)
def test_table_of_arguments(section: str, target: Any) -> None:
    parameters = inspect.signature(target).parameters.values()
    assert rows("docs/settings.md", section) == {
        parameter.name: shown(parameter.default)
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def test_names_beside_ktors() -> None:
    """Each name on our side of the table is there."""
    text = (DOCS / "ktor.md").read_text()
    count = 0
    for cell in re.findall(r"^\|[^|]+\|([^|]+)\|$", text, flags=re.MULTILINE):
        for name in re.findall(r"`([A-Za-z_.]+)(?:\([^`]*\))?`", cell):
            path = name.removeprefix("geventws.").split(".")
            if path[0] not in geventws.__all__ and path[0] != "flask":
                continue
            if path[0] == "flask":
                importlib.import_module("geventws.flask")
            value: Any = geventws
            for part in path:
                assert hasattr(value, part), name
                value = getattr(value, part)
            count += 1
    assert count > 50


#: The modules whose names are all for users.
MODULES = (
    "geventws",
    "geventws.compat",
    "geventws.compat.flask_sock",
    "geventws.compat.flask_sockets",
    "geventws.dashboard",
    "geventws.metrics",
    "geventws.testing",
)


def test_the_reference_has_every_public_name() -> None:
    """Add what is missing to docs/api.md."""
    reference = set(re.findall(r"^\.\. auto\w+:: (\S+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE))
    public = {"geventws.flask.WebSockets"}
    for name in MODULES:
        public |= {f"{name}.{member}" for member in importlib.import_module(name).__all__}
    here = {f"geventws.{name}" for name in geventws.__all__}
    topics = {f"geventws.topics.{name}" for name in importlib.import_module("geventws.topics").__all__}
    public |= {name for name in topics if name.replace(".topics.", ".") not in here}
    assert public - {"geventws.__version__"} - reference == set()
    for name in reference:
        module, _, member = name.rpartition(".")
        assert hasattr(importlib.import_module(module), member), name


def test_the_house_is_up_to_date() -> None:
    """After a change of imports: python docs/house.py"""
    spec = importlib.util.spec_from_file_location("house", DOCS / "house.py")
    assert spec is not None
    assert spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    sys.modules["house"] = house
    spec.loader.exec_module(house)
    assert house.draw() == house.PICTURE.read_text(), "draw it anew: python docs/house.py"


def test_readme_version(tmp_path: Path) -> None:
    with Program(sys.executable, "-m", "geventws", "--version", directory=tmp_path) as program:
        line = program.wait_for("geventws")[0]
        python = ".".join(map(str, sys.version_info[:3]))
        assert program.lines == [f"geventws {geventws.__version__}, {geventws.build()} build, Python {python}"]
    assert line
    readme = (ROOT / "README.md").read_text()
    assert f"geventws {geventws.__version__}, compiled build, Python 3.11.7" in readme


#: Prints what setup.py hands to setuptools, of whatever version that is here.
DESCRIBE = """
import runpy, setuptools
setuptools.setup = lambda **options: print(options["long_description"])
runpy.run_path("setup.py")
"""


def test_readme_on_pypi() -> None:
    """Where none of the files beside it are."""
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        cwd=ROOT,
        env={**os.environ, "GEVENTWS_PURE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    base = "https://github.com/geventws/geventws/blob/main/"
    for page, there in (("docs/start.md", base), ("LICENSE", base), ("examples", base)):
        assert f"]({there}{page})" in done.stdout
    assert "](https://raw.githubusercontent.com/geventws/geventws/main/docs/benchmark.svg)" in done.stdout
    targets = re.findall(r"\]\(([^)\s]+)\)", done.stdout)
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())) > 10
    assert not [target for target in targets if not target.startswith("https://")]


def test_readme_commands_are_those_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    bind = re.search(r"^BIND \?= (\S+)$", makefile, flags=re.MULTILINE)
    assert bind is not None
    run = makefile.replace("$(BIN)/", "").replace("$(BIND)", bind[1]).replace(" $(ARGS)", "")
    table = (ROOT / "README.md").read_text().partition("\n## ")[0]
    calls = [call for row in re.findall(r"^\|.*`make .*$", table, flags=re.MULTILINE) for call in row.split("`")]
    by_hand = [call for call in calls if call.startswith(("gunicorn", "python"))]
    assert len(by_hand) == 2
    for call in by_hand:
        assert f"\t{call}\n" in run
