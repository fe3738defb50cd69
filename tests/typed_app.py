"""What type checkers see of an app: mypy reads this with all that it can be strict about, and nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

import geventws
import geventws.dashboard
import geventws.flask
import geventws.metrics
import geventws.testing
from geventws import (
    CloseReason,
    DefaultWebSocketClientSession,
    DefaultWebSocketServerSession,
    DefaultWebSocketSession,
    Frame,
    JSONConverter,
    MsgspecConverter,
    Opcode,
    PermessageDeflate,
    Position,
    SessionStats,
    Settings,
    SettingsDict,
    Topics,
    WebSocketClientSession,
    WebSocketServerSession,
    WebSocketSession,
    WebSocketUpgrade,
)
from geventws.topics import Gap, Member, Presence, Subscribed

if TYPE_CHECKING:
    from typing_extensions import Unpack, assert_type

topics = Topics("redis://localhost", history={"room/*": 100}, slow="close")


def make_app(**settings: Unpack[SettingsDict]) -> geventws.WebSockets:
    """Settings are handed on, and still are those."""
    return geventws.WebSockets(None, **settings)


app = make_app(
    content_converter=MsgspecConverter("msgpack"),
    extensions=[PermessageDeflate()],
    origins=["https://example.com"],
    ping_interval=None,
)
blueprint = geventws.Blueprint("typed", __name__, url_prefix="/typed")


def may_look(request: Request) -> bool | Response:
    """Who may see the live page."""
    return "role" in request.cookies or redirect("/login")


app.register_blueprint(geventws.dashboard.Blueprint(allow=may_look), url_prefix="/live")
geventws.dashboard.Blueprint(allow=lambda request: ("no", 403))  # type: ignore[arg-type, return-value]
figures = geventws.metrics.install(app, topics=topics)
assert_type(Settings().override(ping_interval=5, origins={"https://example.com"}), Settings)


# -- Messages


@dataclass
class Point:
    """What is sent."""

    x: int
    y: int


@app.route("/points/<int:count>")
def points(session: DefaultWebSocketServerSession, count: int) -> None:
    """What comes is of the type that is asked for."""
    point = session.receive_deserialized(Point, timeout=5.0)
    assert_type(point, Point)
    assert_type(session.receive_deserialized(list[Point]), list[Point])
    assert_type(session.receive_deserialized(type=int), int)
    # Without one it is anything.
    assert_type(session.receive_deserialized(), Any)
    # A checker that took it for anything would want no such comment.
    point.z  # type: ignore[attr-defined]  # noqa: B018
    session.send_serialized(point)
    session.send(str(number) for number in range(count))
    session.send(b"bytes")
    session.send(5)  # type: ignore[arg-type]
    assert_type(session.receive(), str | bytes)
    assert_type(session.receive(timeout=None), str | bytes)
    assert_type(iter(session), Iterator[str | bytes])
    assert_type(next(session), str | bytes)
    for message in session:
        assert_type(message, str | bytes)
        message.upper().nothing  # type: ignore[union-attr]  # noqa: B018
    assert_type(session.request, Request)
    assert_type(session.request.args.get("name", ""), str)
    assert_type(session.ping(), float)
    assert_type(session.latency, float | None)
    assert_type(session.stats(), SessionStats)
    assert_type(session.stats().latency, float | None)
    assert_type(session.rule, str | None)
    assert_type(session.close_reason, CloseReason | None)


@app.route("/binary", content_converter=JSONConverter(), origins=None, defaults={"count": 5}, strict_slashes=False)
def any_session(session: DefaultWebSocketSession, count: int) -> str:
    """A handler may be of any session, and answer in HTTP."""
    return str(count)


class Lobby:
    """A handler may be anything that is called."""

    def __call__(self, session: DefaultWebSocketServerSession) -> None:
        """A handler."""

    def talk(self, session: DefaultWebSocketServerSession, /, **values: str) -> None:
        """A handler."""


app.route("/lobby", endpoint="lobby")(Lobby())
app.route("/talk/<room>")(Lobby().talk)
app.route("/lambda", endpoint="lambda")(lambda session: session.send("hello"))


# -- Frames


@blueprint.route("/frames", raw=True, negotiate_extensions=True, protocol=["a", "b"])
def frames(session: WebSocketServerSession) -> None:
    """Frames come and go."""
    assert_type(session.receive(), Frame)
    assert_type(next(session), Frame)
    assert_type(iter(session), Iterator[Frame])
    for frame in session:
        assert_type(frame, Frame)
        assert_type(frame.opcode, Opcode)
        assert_type(frame.payload, bytes)
        session.send(Frame.text("text"))
    session.send("text")  # type: ignore[arg-type]


@blueprint.route("/any-frames", raw=True)
def any_frames(session: WebSocketSession) -> None:
    """Decorators leave a function its type."""


any_frames("text")  # type: ignore[arg-type]
upgrade = WebSocketUpgrade(frames, install_extensions=True, extensions=[PermessageDeflate()])


# -- Hooks


@app.before_request
def check(session: WebSocketServerSession) -> flask.Response | None:
    """A hook of all sessions."""
    return None


@blueprint.before_request
def check_nothing() -> None:
    """A hook may take nothing."""


@app.on_open
def opened(session: DefaultWebSocketServerSession) -> None:
    """A hook."""


@app.on_close
def closed(session: DefaultWebSocketServerSession, reason: CloseReason) -> None:
    """A hook."""
    assert_type(reason.code, int)


@blueprint.on_error
def failed(session: WebSocketServerSession, error: BaseException) -> None:
    """A hook."""


app.on_close(lambda session, reason: session.stats())


# -- Flask


def allow(request: flask.Request) -> bool:
    """Who may see the dashboard: a framework's own request is taken."""
    return request.blueprint is not None


pages = flask.Flask(__name__)
sockets = geventws.flask.WebSockets(pages, ping_interval=20, max_frame_size=None)
pages.register_blueprint(blueprint, url_prefix="/there")
pages.register_blueprint(geventws.dashboard.Blueprint(allow=allow, topics=topics, origins=["https://example.com"]))
geventws.metrics.install(pages)
geventws.metrics.install(sockets)


@sockets.route("/echo/<name>", subdomain="chat")
def echo(session: DefaultWebSocketServerSession, name: str) -> None:
    """The README's."""
    for message in session:
        session.send(message)


# -- Topics


def tell_presence(presence: Presence) -> str:
    """What the sessions get when somebody comes or goes."""
    assert_type(presence.member, Member)
    return presence.event


@app.route("/room/<room>")
def join(session: DefaultWebSocketServerSession, room: str) -> None:
    """Subscribes."""
    subscribed = topics.subscribe(
        session, room, member="ada", since=None, on_presence=tell_presence, on_gap=lambda gap: str(gap.lost)
    )
    assert_type(subscribed, Subscribed)
    assert_type(subscribed.position, Position | None)
    assert_type(topics.presence(room), list[Member])
    assert_type(topics.sessions(room), list[DefaultWebSocketSession])
    assert_type(geventws.broadcast(topics.sessions(room), "hello", slow="close"), int)
    topics.publish(room, b"bytes")


def tell_gap(gap: Gap) -> str | None:
    """What is lost, where that is known."""
    return None if gap.lost is None else str(gap.lost)


# -- Tests and clients


def test_echo() -> None:
    """A test of a handler."""
    with geventws.testing.connect(pages, "/echo/ada", headers={"Cookie": "a=b"}, receive_timeout=1.0) as session:
        assert_type(session, geventws.testing.DefaultWebSocketTestSession)
        assert_type(session.receive(), str | bytes)
        assert_type(session.receive(timeout=None), str | bytes)
        assert_type(session.receive_deserialized(Point), Point)
        assert_type(iter(session), Iterator[str | bytes])
        session.send("hello")
    with geventws.testing.connect(app, "/frames", raw=True) as raw:
        assert_type(raw, geventws.testing.WebSocketTestSession)
        assert_type(raw.receive(), Frame)
        for frame in raw:
            assert_type(frame, Frame)


def ask() -> None:
    """Clients."""
    with geventws.connect("wss://example.com", protocols=["a"], extensions=[PermessageDeflate()]) as session:
        assert_type(session, DefaultWebSocketClientSession)
        assert_type(session.receive(timeout=1), str | bytes)
        for message in session:
            assert_type(message, str | bytes)
    for again in geventws.connect("ws://example.com", reconnect=True, max_delay=5):
        assert_type(again, DefaultWebSocketClientSession)
        assert_type(next(again), str | bytes)
    with geventws.connect("ws://example.com", raw=True) as raw:
        assert_type(raw, WebSocketClientSession)
        assert_type(raw.receive(), Frame)
