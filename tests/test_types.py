"""What type checkers tell users: uses that are right pass, and those that are wrong are reported where they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from geventws.protocol.extensions import Extension
from geventws.routing import RULE_OPTIONS, RouteOptions
from geventws.settings import Settings, SettingsDict

ROOT = Path(__file__).parent.parent

#: What the wrong uses stand below.
BEFORE = """
from __future__ import annotations

import flask

import geventws
import geventws.dashboard
import geventws.flask
import geventws.metrics
import geventws.testing
from geventws import CloseReason, DefaultWebSocketServerSession, Frame, WebSocketClientSession, WebSocketServerSession

pages = flask.Flask("pages")
app = geventws.WebSockets()
blueprint = geventws.Blueprint("blueprint")


def of_str(text: str) -> None: ...
def of_default(session: DefaultWebSocketServerSession) -> None: ...
def of_raw(session: WebSocketServerSession) -> None: ...
def of_client(session: WebSocketClientSession) -> None: ...
def of_reason(session: DefaultWebSocketServerSession, reason: CloseReason) -> None: ...
def of_number(session: DefaultWebSocketServerSession, number: int) -> None: ...
def of_nothing() -> None: ...


def handler(session: DefaultWebSocketServerSession, raw: WebSocketServerSession) -> None:
"""

#: Each is a line, and is reported.
WRONG = [
    "geventws.WebSockets(ping_intervall=3)",
    'geventws.WebSockets(ping_interval="3")',
    "geventws.WebSockets(timeout=None)",
    "geventws.WebSockets(extensions=[geventws.PermessageDeflate])",
    'geventws.WebSockets(origins="https://example.com")',
    "geventws.WebSockets(content_converter=geventws.JSONConverter)",
    "geventws.WebSockets(of_default)",
    "geventws.flask.WebSockets(pages, ping_intervall=3)",
    'geventws.flask.WebSockets(pages, max_frame_size="1 MB")',
    "geventws.flask.WebSockets(app)",
    "geventws.Settings().override(ping_intervall=3)",
    "geventws.WebSocketUpgrade(of_raw, ping_intervall=3)",
    "geventws.WebSocketUpgrade(of_default)",
    'app.route("/y")(of_str)',
    'app.route("/y")(of_client)',
    'app.route("/y")(of_nothing)',
    'app.route("/y", raw=True)(of_default)',
    'app.route("/y", ping_intervall=3)(of_default)',
    'app.route("/y", negotiate_extensions=True)(of_default)',
    'blueprint.route("/y", max_frame_size="1")(of_default)',
    "app.on_open(of_reason)",
    "app.on_open(of_str)",
    "app.on_close(of_default)",
    "app.on_close(lambda session: None)",
    "blueprint.on_close(of_number)",
    "blueprint.on_error(of_reason)",
    "app.before_request(of_reason)",
    "app.register_blueprint(flask.Blueprint('flask', 'flask'))",
    "pages.register_blueprint(app)",
    "blueprint.rout('/y')",
    "session.receive().payload",
    "session.receive().upper().split('')",
    'session.receive(timeout="5")',
    "raw.receive().upper()",
    "next(session).payload",
    "[message.payload for message in session]",
    "[frame.upper() for frame in raw]",
    'raw.send("text")',
    'session.send(Frame.text("text"))',
    "session.requests",
    "geventws.testing.connect(blueprint)",
    "geventws.testing.connect(app).receive().payload",
    'geventws.testing.connect(app, raw=True).receive().upper()',
    "geventws.testing.connect(app, ping_intervall=3)",
    'geventws.connect("ws://localhost").receive().payload',
    'geventws.connect("ws://localhost", origins=None)',
    'geventws.broadcast([session], "hello", slow="wait")',
    'geventws.Topics().sessions("room")[0].receive().payload',
    "geventws.metrics.install(5)",
    "geventws.dashboard.Blueprint()",
]  # fmt: skip


def check(path: Path, *arguments: str, **environ: str) -> str:
    """What mypy says of a file, with all that it can be strict about."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: it is in the extra test")
    # In a cache of its own: from that of the checkout it tells errors of this module where they were the last time.
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={path.parent}", *arguments, str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode in (0, 1), done.stdout
    return done.stdout


def reported(output: str, path: Path) -> set[int]:
    """The lines of a file that have errors."""
    return {int(line) for line in re.findall(rf"^{re.escape(str(path))}:(\d+): error: ", output, re.MULTILINE)}


# Without a cache mypy reads Flask, Werkzeug and gevent first.
@pytest.mark.timeout(300)
def test_wrong_uses_are_reported(tmp_path: Path) -> None:
    before = BEFORE.lstrip()
    path = tmp_path / "wrong.py"
    path.write_text(before + "".join(f"    {use}\n" for use in WRONG))
    output = check(path)
    first = before.count("\n") + 1
    found = reported(output, path)
    assert [use for number, use in enumerate(WRONG, first) if number not in found] == []
    # So that none is reported for what stands above it.
    assert min(found) >= first, output


@pytest.mark.timeout(300)
def test_apps_without_flask_are_checked_too(tmp_path: Path) -> None:
    """Flask is optional: what has nothing to do with it gets no errors where it isn't, and is checked as before."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("geventws", "werkzeug", "markupsafe"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (packages / name).symlink_to(Path(spec.origin).parent)
    path = tmp_path / "app.py"
    path.write_text(
        "import geventws\n"
        "app = geventws.WebSockets(ping_interval=5)\n"
        'rooms = geventws.Blueprint("rooms", __name__, url_prefix="/rooms")\n'
        '@rooms.route("/echo")\n'
        "def echo(session: geventws.DefaultWebSocketServerSession) -> None:\n"
        "    for message in session:\n"
        "        session.send(message)\n"
        "@rooms.on_close\n"
        "def closed(session: geventws.DefaultWebSocketServerSession, reason: geventws.CloseReason) -> None: ...\n"
        "app.register_blueprint(rooms)\n"
        "rooms.on_close(echo)\n"
    )
    # As of installed packages nothing of ours is reported.
    output = check(path, "--no-site-packages", "--follow-imports=silent", MYPYPATH=str(packages))
    assert reported(output, path) == {11}, output


#: As a route and an app take them; what `Settings` keeps of it.
WIDER = {
    "extensions": ("Iterable[Extension]", "tuple[Extension, ...]"),
    "origins": (
        "Literal['same'] | list[str] | tuple[str, ...] | Set[str] | None",
        "Literal['same'] | tuple[str, ...] | None",
    ),
}


def annotations(options: Any) -> dict[str, str]:
    """The annotations of a TypedDict as they are written."""
    return {
        name: str(getattr(annotation, "__forward_arg__", annotation)).replace('"', "'")
        for name, annotation in options.__annotations__.items()
    }


def test_the_settings_of_type_checkers_are_those_that_there_are() -> None:
    settings = {field.name: str(field.type).replace('"', "'") for field in fields(Settings)}
    taken = annotations(SettingsDict)
    assert list(taken) == list(settings)
    for name, annotation in taken.items():
        assert (annotation, settings[name]) == WIDER.get(name, (annotation, annotation)), name
    assert SettingsDict.__required_keys__ == frozenset()


def test_what_settings_take_they_keep() -> None:
    """By the types of `SettingsDict`: lists, and a set of origins."""
    extensions: list[Extension] = []
    settings = Settings().override(extensions=extensions, origins={"https://example.com"})
    assert (settings.extensions, settings.origins) == ((), ("https://example.com",))


def test_the_options_of_routes_for_type_checkers_are_those_that_there_are() -> None:
    assert set(annotations(RouteOptions)) == {*Settings.names(), *RULE_OPTIONS}
