"""Clients that others wrote, against both servers: what they send, ping, agree on and close with comes over."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from playwright.sync_api import Browser, Page
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.programs import PATIENCE, Program, development_server, gunicorn_server

APP = '''
import gevent.queue

from geventws import PermessageDeflate, WebSockets

reasons = gevent.queue.Queue()


def pages(environ, start_response):
    """A page for browsers to connect from, and the close reason that a handler saw last."""
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    if environ["PATH_INFO"] == "/reason":
        return [str(reasons.get(timeout=20)).encode()]
    return [b"<!doctype html><title>A page</title>"]


app = WebSockets(pages, extensions=[PermessageDeflate()])


@app.route("/echo")
def echo(session):
    for message in session:
        session.send(message)


@app.route("/protocol", protocol=["v2.test", "v1.test"])
def protocol(session):
    session.send(session.protocol)


@app.route("/ping")
def ping(session):
    session.send(str(session.ping()))


@app.route("/close/<int:code>/<reason>")
def close(session, code, reason):
    session.close(code, reason)


@app.route("/closed")
def closed(session):
    session.accept()
    session.wait_closed()
    reasons.put(f"{session.close_reason.code} {session.close_reason.message}")
'''

MESSAGES = {
    "text": "hello",
    "binary": bytes(range(256)),
    "empty-text": "",
    "empty-binary": b"",
    "non-ascii": "Grüße, 世界, 🎉, \x00\x7f\u2028",
    "1-mib-text": "0123456789abcdef" * 65536,
    "1-mib-binary": bytes(range(256)) * 4096,
}


class Connection(Protocol):
    """What the tests ask of a client's connection. Each call blocks, and fails rather than to block for ever."""

    protocol: str | None
    compresses: bool

    def send(self, message: str | bytes) -> None: ...

    def receive(self) -> str | bytes: ...

    def ping(self) -> None:
        """Sends a ping, and waits for its pong."""

    def close(self, code: int, reason: str) -> tuple[int, str]:
        """Closes; gives what the client then says was the code, and the reason."""

    def closed(self) -> tuple[int, str]:
        """Waits until the server has closed; gives the code and the reason."""


class Client(Protocol):
    """A client, as it is used here."""

    #: Whether it offers permessage-deflate, and whether its users can send pings.
    compresses: bool
    pings: bool

    def open(self, url: str, protocols: Sequence[str] = ()) -> Any:
        """A context manager of a `Connection`."""


# -- Python's websockets -----------------------------------------------------------------------------------------------


class WebsocketsClient:
    pings = True

    def __init__(self, compression: str | None) -> None:
        self.compresses = compression is not None
        self._compression = compression

    @contextmanager
    def open(self, url: str, protocols: Sequence[str] = ()) -> Iterator[WebsocketsConnection]:
        options: dict[str, Any] = {"subprotocols": protocols or None, "compression": self._compression, "proxy": None}
        with connect(url, **options) as connection:
            yield WebsocketsConnection(connection)


class WebsocketsConnection:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.protocol = connection.subprotocol
        self.compresses = [extension.name for extension in connection.protocol.extensions] == ["permessage-deflate"]

    def send(self, message: str | bytes) -> None:
        self._connection.send(message)

    def receive(self) -> str | bytes:
        return self._connection.recv(PATIENCE)

    def ping(self) -> None:
        assert self._connection.ping("are you there?").wait(PATIENCE)

    def close(self, code: int, reason: str) -> tuple[int, str]:
        self._connection.close(code, reason)
        received = self._connection.protocol.close_rcvd
        assert received is not None
        return received.code, reason

    def closed(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as closed:
            self._connection.recv(PATIENCE)
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code, closed.value.rcvd.reason


# -- aiohttp -----------------------------------------------------------------------------------------------------------


class AiohttpClient:
    pings = True

    def __init__(self, compress: int) -> None:
        self.compresses = compress > 0
        self._compress = compress

    @contextmanager
    def open(self, url: str, protocols: Sequence[str] = ()) -> Iterator[AiohttpConnection]:
        loop = asyncio.new_event_loop()
        # In this thread the loop of Playwright, which has the browser, counts as running.
        with closing(loop), ThreadPoolExecutor(1) as thread:

            def run(awaitable: Any) -> Any:
                return thread.submit(loop.run_until_complete, awaitable).result()

            session = run(self._session())
            try:
                # Pings are answered, and pongs seen, in receive() below.
                options: dict[str, Any] = {"protocols": protocols, "compress": self._compress, "autoping": False}
                websocket = run(session.ws_connect(url, max_msg_size=0, **options))
                yield AiohttpConnection(websocket, run)
                run(websocket.close())
            finally:
                run(session.close())

    async def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()


class AiohttpConnection:
    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, run: Callable[[Any], Any]) -> None:
        self._websocket = websocket
        self._run = run
        self.protocol = websocket.protocol
        self.compresses = websocket.compress > 0

    def _next(self, *kinds: aiohttp.WSMsgType) -> Any:
        while True:
            message = self._run(self._websocket.receive(PATIENCE))
            if message.type == aiohttp.WSMsgType.PING:
                self._run(self._websocket.pong(message.data))
            else:
                assert message.type in kinds, message
                return message.data

    def send(self, message: str | bytes) -> None:
        self._run(
            self._websocket.send_str(message) if isinstance(message, str) else self._websocket.send_bytes(message)
        )

    def receive(self) -> str | bytes:
        return self._next(aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)  # type: ignore[no-any-return]

    def ping(self) -> None:
        self._run(self._websocket.ping(b"are you there?"))
        assert self._next(aiohttp.WSMsgType.PONG) == b"are you there?"

    def close(self, code: int, reason: str) -> tuple[int, str]:
        assert self._run(self._websocket.close(code=code, message=reason.encode()))
        return self._websocket.close_code or 0, reason

    def closed(self) -> tuple[int, str]:
        message = self._run(self._websocket.receive(PATIENCE))
        assert message.type == aiohttp.WSMsgType.CLOSE
        return message.data, message.extra or ""


# -- JavaScript --------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parent / "node" / "client.js"


class ScriptConnection:
    """A connection of client.js, wherever it runs."""

    def __init__(
        self, run: Callable[[dict[str, Any]], Any], url: str, protocols: Sequence[str], compress: bool
    ) -> None:
        self._run = run
        self.protocol, extensions = self._do("open", url=url, protocols=list(protocols), compress=compress)
        self.compresses = extensions.startswith("permessage-deflate")

    def _do(self, command: str, **arguments: Any) -> Any:
        answer = self._run({"command": command, **arguments})
        assert "error" not in answer, answer["error"]
        return answer.get("result")

    def send(self, message: str | bytes) -> None:
        text = isinstance(message, str)
        self._do("send", message={"text": message} if text else {"binary": base64.b64encode(message).decode()})  # type: ignore[arg-type]

    def receive(self) -> str | bytes:
        message = self._do("receive")
        return message["text"] if "text" in message else base64.b64decode(message["binary"])

    def ping(self) -> None:
        assert self._do("ping") == "are you there?"

    def close(self, code: int, reason: str) -> tuple[int, str]:
        code, _ = self._do("close", code=code, reason=reason)
        return code, reason

    def closed(self) -> tuple[int, str]:
        code, reason = self._do("closed")
        return code, reason


class NodeClient:
    """The package ws."""

    pings = True

    def __init__(self, program: Program, compresses: bool) -> None:
        self._program = program
        self.compresses = compresses

    @contextmanager
    def open(self, url: str, protocols: Sequence[str] = ()) -> Iterator[ScriptConnection]:
        connection = ScriptConnection(self._run, url, protocols, self.compresses)
        yield connection
        connection.close(1000, "")

    def _run(self, command: dict[str, Any]) -> Any:
        self._program.say(json.dumps(command))
        return json.loads(self._program.wait_for(r"^\{.*\}$")[0])


class ChromiumClient:
    """A page of the same server."""

    compresses = True
    pings = False

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: dict[str, Page] = {}

    @contextmanager
    def open(self, url: str, protocols: Sequence[str] = ()) -> Iterator[ScriptConnection]:
        parts = urlsplit(url)
        origin = f"http://{parts.netloc}/"
        if origin not in self._pages:
            self._pages[origin] = self._browser.new_page()
            self._pages[origin].goto(origin)
            self._pages[origin].add_script_tag(path=SCRIPT)
        page = self._pages[origin]
        connection = ScriptConnection(
            lambda command: page.evaluate("(command) => run(command)", command), url, protocols, self.compresses
        )
        yield connection
        connection.close(1000, "")


# -- The clients and the servers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    """Keeps what was started until the last test has ended."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Both servers' addresses. They run side by side, as pytest goes to and fro between them."""
    directory = tmp_path_factory.mktemp("app")
    (directory / "app.py").write_text(APP)
    with (
        development_server("app:app", directory) as (standalone, first),
        gunicorn_server("app:app", "-k", "geventws.Worker", directory=directory) as (gunicorn, second),
    ):
        yield {"WSGIServer": f"ws://{standalone}", "gunicorn": f"ws://{gunicorn}"}
        assert (first.stop(), second.stop()) == (0, 0)
    assert not [line for line in first.rest() + second.rest() if "Traceback" in line or "fault" in line]


@pytest.fixture(scope="module", params=["WSGIServer", "gunicorn"])
def server(request: pytest.FixtureRequest, servers: dict[str, str]) -> str:
    return servers[request.param]


@pytest.fixture(scope="module")
def node(stack: ExitStack) -> Program:
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("there is no node on PATH")
    if not (SCRIPT.parent / "node_modules" / "ws").is_dir():
        pytest.skip("the package ws is missing: npm install --prefix tests/node")
    return stack.enter_context(Program(executable, str(SCRIPT)))


CLIENTS: dict[str, Callable[[pytest.FixtureRequest], Client]] = {
    "websockets": lambda request: WebsocketsClient(None),
    "websockets-deflate": lambda request: WebsocketsClient("deflate"),
    "aiohttp": lambda request: AiohttpClient(0),
    "aiohttp-deflate": lambda request: AiohttpClient(15),
    "ws": lambda request: NodeClient(request.getfixturevalue("node"), False),
    "ws-deflate": lambda request: NodeClient(request.getfixturevalue("node"), True),
    "chromium": lambda request: ChromiumClient(request.getfixturevalue("browser")),
}


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Client:
    return CLIENTS[request.param](request)


# -- The tests ---------------------------------------------------------------------------------------------------------


def test_echo(server: str, client: Client) -> None:
    with client.open(f"{server}/echo") as connection:
        assert connection.compresses == client.compresses
        for name, message in MESSAGES.items():
            connection.send(message)
            # Not compared in the assertion, which would print a megabyte of differences.
            same = connection.receive() == message
            assert same, f"{name} came back altered"


def test_echo_of_many(server: str, client: Client) -> None:
    messages = [str(number) * (number % 100) for number in range(300)]
    with client.open(f"{server}/echo") as connection:
        for message in messages:
            connection.send(message)
        assert [connection.receive() for _ in messages] == messages


def test_ping_of_the_client(server: str, client: Client) -> None:
    if not client.pings:
        return  # Pages can't send pings.
    with client.open(f"{server}/echo") as connection:
        connection.ping()


def test_ping_of_the_server(server: str, client: Client) -> None:
    with client.open(f"{server}/ping") as connection:
        assert 0 < float(connection.receive()) < PATIENCE


@pytest.mark.parametrize(("code", "reason"), [(1000, "that was all"), (1011, "oops"), (3000, "x"), (4999, "Grüße 🎉")])
def test_close_by_the_server(server: str, client: Client, code: int, reason: str) -> None:
    with client.open(f"{server}/close/{code}/{quote(reason)}") as connection:
        assert connection.closed() == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, "that was all"), (3000, ""), (4999, "Grüße 🎉")])
def test_close_by_the_client(server: str, client: Client, code: int, reason: str) -> None:
    with client.open(f"{server}/closed") as connection:
        assert connection.close(code, reason) == (code, reason)
    url = "http" + server.removeprefix("ws") + "/reason"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=PATIENCE) as response:
        assert response.read().decode() == f"{code} {reason}"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["v1.test"], "v1.test"), (["v1.test", "v2.test"], "v2.test"), (["v0.test", "v1.test"], "v1.test")],
)
def test_subprotocol(server: str, client: Client, offered: list[str], chosen: str) -> None:
    with client.open(f"{server}/protocol", offered) as connection:
        assert connection.protocol == chosen
        assert connection.receive() == chosen
