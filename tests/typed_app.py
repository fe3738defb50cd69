"""What type checkers see of an app: mypy reads this with all that it can be strict about, and nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

import geventws
import geventws.dashboard
import geventws.metrics
from geventws import CloseReason, DefaultWebSocketServerSession, MsgspecConverter, SessionStats, WebSocketServerSession

if TYPE_CHECKING:
    from typing_extensions import assert_type

app = geventws.WebSockets(content_converter=MsgspecConverter("msgpack"), ping_interval=None)
blueprint = geventws.Blueprint("typed", __name__)
figures = geventws.metrics.install(app, topics=geventws.Topics())


def allow(request: Request) -> bool | Response:
    """Who may see the live page."""
    return "role" in request.cookies or redirect("/login")


app.register_blueprint(geventws.dashboard.Blueprint(allow=allow))
geventws.dashboard.Blueprint(allow=lambda request: ("no", 403))  # type: ignore[arg-type, return-value]


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
    session.send(str(number) for number in range(count))
    session.send(b"bytes")
    session.send(5)  # type: ignore[arg-type]
    assert_type(session.ping(), float)
    assert_type(session.latency, float | None)
    assert_type(session.stats(), SessionStats)
    assert_type(session.stats().latency, float | None)
    assert_type(session.rule, str | None)
    assert_type(session.close_reason, CloseReason | None)


@blueprint.route("/frames", raw=True)
def frames(session: WebSocketServerSession) -> None:
    """Decorators leave a function its type."""
    assert_type(iter(session), Iterator[Any])


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
