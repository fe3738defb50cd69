"""``python -m geventws``, as a developer runs it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gevent import socket

import geventws
from geventws.__main__ import AppError, describe, load, main, parse_bind
from tests.faces import fetch, refused
from tests.peer import Peer, wait_until
from tests.programs import Program
from tests.wire import TEXT, frame

APP = """
import geventws

app = geventws.WebSockets()

@app.route("/")
def echo(session):
    for message in session:
        session.send({reply})

@app.route("/fail")
def fail(session):
    session.accept()
    raise KeyError("of the handler")
"""

FACTORY = """
import flask
import geventws.flask

def create_app():
    app = flask.Flask(__name__)
    sockets = geventws.flask.WebSockets(app)
    sockets.route("/")(lambda session: session.send("made"))
    app.add_url_rule("/page", "page", lambda: "page")
    return app
"""


def write_app(directory: Path, reply: str = "message") -> None:
    (directory / "served.py").write_text(APP.format(reply=reply))


def running(directory: Path, *arguments: str) -> Program:
    return Program(sys.executable, "-m", "geventws", *arguments, "--bind", "127.0.0.1:0", directory=directory)


def address_of(program: Program) -> Any:
    """Where a program that just started serves."""
    return SimpleNamespace(server_port=int(program.wait_for(r"serving on http://127\.0\.0\.1:(\d+)")[1]))


def say(peer: Peer, message: bytes) -> bytes:
    peer.send(frame(TEXT, message))
    first, payload = peer.frame()
    assert first == 0x81
    return payload


@contextmanager
def connected(server: Any, path: str = "/") -> Iterator[Peer]:
    with Peer(server, path) as peer:
        yield peer.accepted()


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "which app?"),
            (["app:app", "--bind", "8000"], "--bind must be HOST:PORT"),
            (["app:app", "--bind", "localhost:http"], "--bind must be HOST:PORT"),
            (["app:app", "--bind", "localhost:65536"], "--bind must be HOST:PORT"),
            (["app:app", "--bind", "localhost:²"], "--bind must be HOST:PORT"),
            (["app:app", "--bind", ""], "--bind must be HOST:PORT"),
            (["app:app", "--bind", "unix:/tmp/x"], "--bind must be HOST:PORT"),
            (["app:app", "--wrong"], "unrecognized arguments: --wrong"),
            (["serve", "app:app"], "serving takes no command: python -m geventws module:app"),
        ],
    )
    def test_what_is_wrong_is_one_line_and_status_2(self, arguments: list[str], said: str, capsys: Any) -> None:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]

    def test_version(self, capsys: Any) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == describe() + "\n"
        assert re.fullmatch(r"geventws \d+\.\d+\.\d+, (compiled|pure) build, Python 3\.\d+\.\d+", describe())
        assert geventws.__version__ in describe()
        assert geventws.build() in describe()

    @pytest.mark.parametrize(
        ("bind", "address"),
        [
            ("127.0.0.1:8000", ("127.0.0.1", 8000)),
            (":0", ("", 0)),
            ("[::1]:80", ("::1", 80)),
            ("localhost:65535", ("localhost", 65535)),
        ],
    )
    def test_bind(self, bind: str, address: tuple[str, int]) -> None:
        assert parse_bind(bind) == address


class TestLoad:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """The name of a module that holds what `load` may find."""
        monkeypatch.syspath_prepend(str(tmp_path))
        name = "loaded_by_the_tests"
        (tmp_path / f"{name}.py").write_text(
            "import types\n"
            "def app(environ, start_response): ...\n"
            "other = types.SimpleNamespace(inner=app)\n"
            "text = 'text'\n"
            "def create_app(): return app\n"
            "def create_nothing(): return None\n"
        )
        yield name
        sys.modules.pop(name, None)

    def test_the_app(self, module: str) -> None:
        app = load(module)
        assert app is sys.modules[module].app
        for name in ("app", "other.inner", "create_app()"):
            assert load(f"{module}:{name}") is app

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("{}:nix", "has no 'nix': name the app as loaded_by_the_tests:NAME"),
            ("{}:other.nix", "has no 'other.nix'"),
            ("{}:text", "is no WSGI app but str"),
            ("{}:other", "is no WSGI app but SimpleNamespace"),
            ("{}:create_nothing()", "is no WSGI app but NoneType"),
            ("{}:types", "is no WSGI app but module"),
            ("nowhere_at_all:app", "there is no module 'nowhere_at_all'"),
            ("nowhere_at_all.inner", "there is no module 'nowhere_at_all'"),
            ("{}.inner:app", "there is no module 'loaded_by_the_tests.inner'"),
            ("dir/module.py:app", "there is no module 'dir/module': modules are named as in import, dir.module:app"),
            ("./dir/module.py", "'./dir/module.py' is no name of a module: modules are named as in import, dir.module"),
            (
                "nowhere_at_all.py",
                "there is no module 'nowhere_at_all': modules are named as in import, nowhere_at_all:app",
            ),
            (":app", "name the app as module:app"),
            (".:app", "name the app as module:app"),
            ("..x:app", "name the app as module:app"),
        ],
    )
    def test_what_is_missing_is_said(self, module: str, name: str, said: str) -> None:
        with pytest.raises(AppError, match=re.escape(said)):
            load(name.format(module))

    @pytest.mark.parametrize(
        ("source", "error"),
        [
            ("import nowhere_at_all", ModuleNotFoundError),
            ("from os import nowhere_at_all", ImportError),
            ("None.app", AttributeError),
            ("int([])", TypeError),
            ("int('x')", ValueError),
            ("x = (", SyntaxError),
        ],
    )
    def test_what_the_module_itself_does_wrong_is_raised(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception]
    ) -> None:
        """With its traceback, for it is the developer's to mend."""
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "broken_by_the_tests.py").write_text(source)
        with pytest.raises(error) as caught:
            load("broken_by_the_tests:app")
        assert type(caught.value) is error


class TestServing:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_serves_until_a_signal_and_says_goodbye(self, tmp_path: Path, number: signal.Signals) -> None:
        write_app(tmp_path)
        with running(tmp_path, "served") as program:
            server = address_of(program)
            with connected(server) as peer:
                assert say(peer, b"hello") == b"hello"
                with connected(server, "/fail") as failing:
                    failing.closed_with(1011)
                assert refused(server, "/", Origin="https://evil.example").status == 403
                assert fetch(server).status == 426
                program.process.send_signal(number)
                peer.closed_with(1001)
            assert program.stop() == 0
            printed = "\n".join(program.rest())
        assert printed.count("KeyError: 'of the handler'") == 1
        assert "'/' is refused: 403 Pages of the Origin 'https://evil.example'" in printed
        assert '"GET / HTTP/1.1" 101' in printed
        assert "Warning" not in printed

    def test_a_factory(self, tmp_path: Path) -> None:
        (tmp_path / "factory.py").write_text(FACTORY)
        with running(tmp_path, "factory:create_app()") as program:
            server = address_of(program)
            assert fetch(server, "/page").body == "page"
            with connected(server) as peer:
                assert peer.frame() == (0x81, b"made")
                peer.closed_with(1000)

    def test_an_app_that_is_missing(self, tmp_path: Path) -> None:
        with running(tmp_path, "nowhere:app") as program:
            program.wait_for("error: there is no module 'nowhere'")
            assert program.process.wait() == 2

    def test_an_app_that_is_broken(self, tmp_path: Path) -> None:
        (tmp_path / "served.py").write_text("import nowhere_at_all")
        with running(tmp_path, "served") as program:
            program.wait_for("Traceback")
            program.wait_for("No module named 'nowhere_at_all'")
            assert program.process.wait() == 1

    def test_an_address_that_is_taken(self, tmp_path: Path) -> None:
        write_app(tmp_path)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with Program(
                sys.executable, "-m", "geventws", "served:app", "--bind", f"127.0.0.1:{port}", directory=tmp_path
            ) as program:
                program.wait_for(rf"can't listen on 127\.0\.0\.1:{port}: .*in use")
                assert program.process.wait() == 1


class TestReload:
    def test_it_starts_again_when_a_file_changes(self, tmp_path: Path) -> None:
        write_app(tmp_path, "message")
        (tmp_path / "helper.py").write_text("VALUE = 1\n")
        with running(tmp_path, "served:app", "--reload") as program:
            with connected(address_of(program)) as peer:
                assert say(peer, b"a") == b"a"
                write_app(tmp_path, "message.upper()")
                peer.closed_with(1001)
            program.wait_for("served.py has changed")
            with connected(address_of(program)) as peer:
                assert say(peer, b"a") == b"A"
                # One that does not even compile is told of, and awaited to be mended.
                (tmp_path / "served.py").write_text("import helper\n)\n")
                peer.closed_with(1001)
            program.wait_for("SyntaxError")
            write_app(tmp_path, "message + message.upper()")
            with connected(address_of(program)) as peer:
                assert say(peer, b"a") == b"aA"
                # Nor does one fail whose import does.
                (tmp_path / "served.py").write_text("import helper\nhelper.nix\n")
                peer.closed_with(1001)
            program.wait_for("AttributeError")
            (tmp_path / "helper.py").write_text("import served_indeed\nnix = 5\n")
            (tmp_path / "served_indeed.py").write_text("")
            program.wait_for("helper.py has changed")
            program.wait_for("has no 'app'")
            assert program.process.wait() == 2

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it(self, tmp_path: Path, number: signal.Signals) -> None:
        write_app(tmp_path)
        with running(tmp_path, "served:app", "--reload") as program:
            with connected(address_of(program)) as peer:
                program.process.send_signal(number)
                peer.closed_with(1001)
            assert program.stop() == 0

    def test_ctrl_c_in_a_terminal_reaches_both(self, tmp_path: Path) -> None:
        write_app(tmp_path)
        with running(tmp_path, "served:app", "--reload") as program:
            with connected(address_of(program)) as peer:
                os.killpg(program.process.pid, signal.SIGINT)
                peer.closed_with(1001)
            assert program.process.wait() == 0
            assert "Traceback" not in "\n".join(program.rest())

    def test_ctrl_c_while_the_app_is_broken(self, tmp_path: Path) -> None:
        (tmp_path / "served.py").write_text("x = (\n")
        with running(tmp_path, "served:app", "--reload") as program:
            program.wait_for("SyntaxError")
            os.killpg(program.process.pid, signal.SIGINT)
            assert program.process.wait() == 0
            assert "KeyboardInterrupt" not in "\n".join(program.rest())

    def test_nothing_is_left_when_it_is_killed(self, tmp_path: Path) -> None:
        write_app(tmp_path)
        with running(tmp_path, "served:app", "--reload") as program:
            server = address_of(program)
            with connected(server) as peer:
                program.process.kill()
                peer.closed_with(1001)

            def is_gone() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", server.server_port)).close()
                except OSError:
                    return True
                return False

            wait_until(is_gone)


class TestPublish:
    """What is published stands in test_topics_redis.py."""

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--url", "redis://127.0.0.1", "", "x"], "topic must have 1 to 255 bytes in UTF-8, not 0"),
            (["--url", "redis://127.0.0.1", "--binary", "news", "x"], "--binary is for what standard input brings"),
            (["--url", "http://127.0.0.1", "news", "x"], "must begin with redis://"),
            (["--url", "redis://127.0.0.1", "--namespace", "a:b", "news", "x"], "namespace must be"),
            (
                ["--url", "redis://127.0.0.1", "--history", "-1", "news", "x"],
                "argument --history: it must be a whole number",
            ),
            (
                ["--url", "redis://127.0.0.1", "--timeout", "nan", "news", "x"],
                "argument --timeout: it must be a number of",
            ),
            (["--url", "redis://127.0.0.1", "--timeout", "soon", "news", "x"], "seconds above 0, not 'soon'"),
            (["news", "x"], "REDIS_URL in the environment"),
            (["news"], "message"),
        ],
    )
    def test_wrong_arguments(
        self, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("redis")
        monkeypatch.delenv("REDIS_URL", raising=False)
        with pytest.raises(SystemExit) as ended:
            main(["publish", *arguments])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
