"""Apps in both forms, without a framework and in Flask, for what holds in either; and HTTP answers, read whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flask
import pytest

import geventws
import geventws.flask
from geventws import Blueprint, WSGIServer
from geventws.routing import RouteTable
from tests.peer import Peer

#: For tests that hold for an app of either form: ``make`` is called with settings.
either = pytest.mark.parametrize(
    "make", [lambda **settings: PlainFace(**settings), lambda **settings: FlaskFace(**settings)], ids=["plain", "flask"]
)

MakeFace = Callable[..., "Face"]


class Face:
    """An app with WebSocket routes: ``app`` is served, ``sockets`` takes routes."""

    app: Any
    sockets: RouteTable

    def register(self, blueprint: Blueprint, **options: Any) -> None:
        """Registers a blueprint."""
        self.app.register_blueprint(blueprint, **options)

    def url_for(self, endpoint: str, **values: Any) -> str:
        """The path of a route."""
        raise NotImplementedError


class PlainFace(Face):
    """An app without a framework."""

    def __init__(self, **settings: Any) -> None:
        self.app = self.sockets = geventws.WebSockets(**settings)

    def url_for(self, endpoint: str, **values: Any) -> str:
        return str(self.app.url_for(endpoint, **values))


class FlaskFace(Face):
    """An app in Flask."""

    def __init__(self, **settings: Any) -> None:
        self.app = flask.Flask("tests.faces")
        self.app.secret_key = "not secret"
        self.sockets = geventws.flask.WebSockets(self.app, **settings)

    def url_for(self, endpoint: str, **values: Any) -> str:
        with self.app.test_request_context():
            return flask.url_for(endpoint, **values).removeprefix("ws://localhost")


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: str


def answer_of(response: bytes) -> Answer:
    """Reads a response; asserts that it is one."""
    assert response.count(b"HTTP/1.1 ") == 1, response
    head, _, body = response.decode("latin-1").partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return Answer(int(status.split(" ")[1]), headers, body)


def refused(server: WSGIServer, path: str = "/", **fields: str) -> Answer:
    """The answer to a handshake that is not accepted; asserts that the connection is then closed."""
    # What is behind must not be served (A3 row 36).
    with Peer(server, path, behind=b"GET / HTTP/1.1\r\nHost: behind\r\n\r\n", **fields) as peer:
        answer = answer_of(peer.rest())
        assert answer.status != 101, answer
        return answer


def fetch(server: WSGIServer, path: str = "/", **fields: str) -> Answer:
    """The answer to a plain GET."""
    dropped: Any = ("Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version")
    with Peer(server, path, Connection="close", drop=dropped, **fields) as peer:
        return answer_of(peer.rest())


def conversation(server: WSGIServer, path: str = "/", **fields: str) -> list[bytes]:
    """The payloads that the handler at ``path`` sends to a client that says nothing before the Close frame."""
    with Peer(server, path, **fields) as peer:
        peer.accepted()
        payloads = []
        while (frame := peer.frame())[0] != 0x88:
            payloads.append(frame[1])
        assert frame[1] == b"\x03\xe8", frame
        peer.send(b"\x88\x82\0\0\0\0\x03\xe8")
        peer.ended()
        return payloads
