"""The examples and the code of the README, run as a user would run them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions import ClientExtensionFactory, Extension
from websockets.frames import Frame
from websockets.sync.client import ClientConnection, connect

import geventws
from geventws.frames import CloseCode
from tests.programs import PATIENCE, ROOT, Program, development_server, gunicorn_server


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


# -- The examples ------------------------------------------------------------------------------------------------------


def test_echo_as_a_script() -> None:
    with Program(sys.executable, "examples/echo.py", "127.0.0.1:0") as program:
        url = program.wait_for(r"listening on (ws://\S+/)")[1]
        with connect(url, proxy=None) as connection:
            for message in ("hello", b"\x00\xff", "", "Grüße, 世界"):
                connection.send(message)
                assert connection.recv(PATIENCE) == message
            assert program.stop(signal.SIGINT) == 0
            assert closing(connection) == (1001, "")
    assert not [line for line in program.rest() if "Traceback" in line]


def test_echo_by_the_development_server() -> None:
    with development_server("examples.echo:app") as (address, program):
        with connect(f"ws://{address}/", proxy=None) as connection:
            connection.send("hello")
            assert connection.recv(PATIENCE) == "hello"
        assert program.stop() == 0


@pytest.fixture(scope="module")
def raw_frames() -> Iterator[str]:
    with development_server("examples.raw_frames:app") as (address, program):
        yield f"ws://{address}/"
        assert program.stop() == 0
    assert not [line for line in program.rest() if "Traceback" in line or "fault" in line]


def test_raw_frames_reports_fragments(raw_frames: str) -> None:
    with connect(raw_frames, subprotocols=["v1.frames"], proxy=None) as connection:  # type: ignore[list-item]
        assert connection.subprotocol == "v1.frames"
        connection.send("hello")
        assert connection.recv(PATIENCE) == "TEXT with 5 bytes, the last\n"
        assert connection.ping(b"between").wait(PATIENCE)
        connection.send([b"ab", b"c"])
        fragments = list(connection.recv_streaming())
        assert fragments[:2] == ["BINARY with 2 bytes, more follow\n", "CONTINUATION with 1 bytes, more follow\n"]
        assert fragments[-1] == "CONTINUATION with 0 bytes, the last\n"
        connection.send("close")
        assert closing(connection) == (1000, "as you wished")


@pytest.mark.parametrize("code", [1000, 4321])
def test_raw_frames_answers_a_close(raw_frames: str, code: int) -> None:
    with connect(raw_frames, subprotocols=["v1.frames"], proxy=None) as connection:  # type: ignore[list-item]
        connection.close(code, "enough")
        assert connection.protocol.close_rcvd is not None
        assert connection.protocol.close_rcvd.code == code


def test_raw_frames_wants_its_protocol(raw_frames: str) -> None:
    status, body = status_of(raw_frames)
    assert status == 400
    assert "v1.frames" in body


# -- The README --------------------------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()


def sections() -> dict[str, str]:
    """The text below each heading."""
    parts = re.split(r"^#+ (.+)$", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def write_module(section: str, directory: Path) -> None:
    """Writes the Python blocks of a section, which belong together, as app.py."""
    blocks = re.findall(r"^```python\n(.*?)^```$", sections()[section], flags=re.MULTILINE | re.DOTALL)
    (directory / "app.py").write_text("\n\n".join(blocks))


def test_every_block_of_the_readme_is_run() -> None:
    """Whoever adds a section with code adds a test for it below."""
    with_code = {heading for heading, text in sections().items() if "```python" in text}
    assert with_code == {
        "geventws",
        "Handlers and sessions",
        "One message to many",
        "Topics",
        "Routes and blueprints",
        "permessage-deflate and other extensions",
        "Servers",
        "Client",
        "Testing your app",
        "Observing",
    }


def test_readme_first_screen(tmp_path: Path) -> None:
    write_module("geventws", tmp_path)
    with gunicorn_server("app:app", "-k", "geventws.Worker", directory=tmp_path) as (address, program):
        with connect(f"ws://{address}/chat/echo/ada", proxy=None) as connection:
            for message in ("hello", b"hello"):
                connection.send(message)
                assert connection.recv(PATIENCE) == message
        assert program.stop() == 0


def test_readme_handlers(tmp_path: Path) -> None:
    write_module("Handlers and sessions", tmp_path)
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


def test_readme_one_message_to_many(tmp_path: Path) -> None:
    write_module("One message to many", tmp_path)
    with development_server("app:app", tmp_path) as (address, _):
        url = f"ws://{address}/news"
        with connect(url, proxy=None) as reader, connect(url, proxy=None) as writer:
            writer.send("first")
            assert [reader.recv(PATIENCE), writer.recv(PATIENCE)] == ["first", "first"]


def test_readme_topics(tmp_path: Path) -> None:
    write_module("Topics", tmp_path)
    with development_server("app:app", tmp_path) as (address, _):
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


def test_readme_routes_in_flask(tmp_path: Path) -> None:
    write_module("Routes and blueprints", tmp_path)
    with development_server("app:app", tmp_path) as (address, _):
        url = f"ws://{address}/rooms/lobby"
        response = get(f"http://{address}/login/ada")
        assert response.read().decode() == url
        assert status_of(url) == (401, "log in first")
        cookie = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
        with connect(url, additional_headers=cookie, proxy=None) as connection:
            assert connection.recv(PATIENCE) == "ada, welcome to lobby"
        with connect(f"ws://{address}/live", proxy=None) as connection:
            assert connection.recv(PATIENCE) == "live"


def test_readme_routes_without_a_framework(tmp_path: Path) -> None:
    write_module("Routes and blueprints", tmp_path)
    with development_server("app:application", tmp_path) as (address, _):
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


class XorFactory(ClientExtensionFactory):
    """The client's half of the README's extension."""

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


def test_readme_extensions(tmp_path: Path) -> None:
    write_module("permessage-deflate and other extensions", tmp_path)
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


def test_readme_server(tmp_path: Path) -> None:
    write_module("Servers", tmp_path)
    with Program(sys.executable, "app.py", directory=tmp_path) as program:
        url = program.wait_for(r"^(ws://\S+)$")[1]
        with connect(url, proxy=None) as connection:
            assert connection.recv(PATIENCE) == "hello"
            assert closing(connection) == (1000, "")


def test_readme_client(tmp_path: Path) -> None:
    write_module("Client", tmp_path)
    (tmp_path / "served.py").write_text(
        "import geventws\n"
        "app = geventws.WebSockets()\n"
        "@app.route('/', protocol='v1.questions')\n"
        "def answer(session):\n"
        "    session.send(session.receive() + session.environ['HTTP_AUTHORIZATION'])\n"
        "@app.route('/news')\n"
        "def news(session):\n"
        "    session.send('first')\n"
        "server = geventws.WSGIServer(('127.0.0.1', 0), app, log=None)\n"
        "server.start()\n"
        "url = f'ws://127.0.0.1:{server.server_port}/'\n"
        "import app as readme\n"
        "print(readme.ask(url, 'well? '))\n"
        "class Enough(Exception): pass\n"
        "heard = []\n"
        "def show(message):\n"
        "    heard.append(message)\n"
        "    if len(heard) == 2: raise Enough\n"
        "try: readme.follow(url + 'news', show)\n"
        "except Enough: print(heard)\n"
    )
    with Program(sys.executable, "served.py", directory=tmp_path) as program:
        program.wait_for(r"^well\? Bearer sesame$")
        program.wait_for(r"^\['first', 'first'\]$")
        assert program.process.wait(PATIENCE) == 0


def test_readme_testing(tmp_path: Path) -> None:
    write_module("Testing your app", tmp_path)
    with Program(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "app.py", directory=tmp_path) as program:
        program.wait_for("3 passed")


def test_readme_observing(tmp_path: Path) -> None:
    write_module("Observing", tmp_path)
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


def test_readme_settings() -> None:
    """The table has every setting, with its default."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| `([^`]+)` \|", sections()["Settings"], flags=re.MULTILINE)
    settings = geventws.Settings()
    assert sorted(rows) == sorted((name, repr(getattr(settings, name)).replace("'", '"')) for name in settings.names())


def test_readme_version(tmp_path: Path) -> None:
    with Program(sys.executable, "-m", "geventws", "--version", directory=tmp_path) as program:
        line = program.wait_for("geventws")[0]
        python = ".".join(map(str, sys.version_info[:3]))
        assert program.lines == [f"geventws {geventws.__version__}, {geventws.build()} build, Python {python}"]
    assert line
    assert f"geventws {geventws.__version__}, compiled build, Python 3.11.7" in README


def test_readme_commands_are_those_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    bind = re.search(r"^BIND \?= (\S+)$", makefile, flags=re.MULTILINE)
    assert bind is not None
    run = makefile.replace("$(BIN)/", "").replace("$(BIND)", bind[1]).replace(" $(ARGS)", "")
    table = sections()["geventws"]
    commands = [
        command for row in re.findall(r"^\|.*`make .*$", table, flags=re.MULTILINE) for command in row.split("`")
    ]
    by_hand = [command for command in commands if command.startswith(("gunicorn", "python"))]
    assert len(by_hand) == 2
    for command in by_hand:
        assert f"\t{command}\n" in run


def test_readme_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert os.path.exists(ROOT / target), target
