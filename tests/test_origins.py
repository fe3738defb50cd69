"""Which pages may connect (RFC 6455 10.2): end to end, the refusals and what gets past them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faces import MakeFace, conversation, either, fetch, refused
from tests.peer import Peer, serving
from tests.wire import TEXT, frame

HOST = "chat.example"


@either
class TestOrigins:
    @pytest.fixture
    def server(self, make: MakeFace) -> Iterator[Any]:
        face = make()
        self.called: list[str] = []

        def add(path: str, **options: Any) -> None:
            @face.sockets.route(path, endpoint=path[1:], **options)
            def handler(session: Any) -> None:
                self.called.append(path)
                session.send("in")

        add("/same")
        add("/list", origins=["https://app.example", "http://localhost:3000", "https://[2001:db8::1]:8443"])
        add("/null", origins=["null"])
        add("/none", origins=[])
        add("/all", origins=None)
        with serving(face.app) as server:
            yield server

    @pytest.mark.parametrize(
        ("path", "host", "origin"),
        [
            ("/same", HOST, None),  # no browser
            ("/same", HOST, f"http://{HOST}"),
            ("/same", HOST, f"https://{HOST}:443"),
            ("/same", HOST, "HTTP://Chat.Example"),
            ("/same", f"{HOST}:8000", f"http://{HOST}:8000"),
            ("/same", f"{HOST}:8000", f"https://{HOST}:8000"),  # a proxy ends TLS
            ("/same", "[2001:db8::1]:8000", "http://[2001:db8::1]:8000"),
            ("/list", HOST, None),
            ("/list", HOST, "https://app.example"),
            ("/list", HOST, "https://APP.example:443"),
            ("/list", HOST, "http://localhost:3000"),
            ("/list", HOST, "https://[2001:db8::1]:8443"),
            ("/null", HOST, "null"),
            ("/none", HOST, None),
            ("/all", HOST, "https://evil.example"),
            ("/all", HOST, "null"),
        ],
    )
    def test_allowed(self, server: Any, path: str, host: str, origin: str | None) -> None:
        """A3 row 41."""
        fields = {} if origin is None else {"Origin": origin}
        assert conversation(server, path, Host=host, **fields) == [b"in"]

    @pytest.mark.parametrize(
        ("path", "host", "origin"),
        [
            ("/same", HOST, "https://evil.example"),
            ("/same", HOST, "null"),
            ("/same", HOST, f"https://{HOST}.evil"),
            ("/same", HOST, f"https://evil.{HOST}"),
            ("/same", HOST, f"http://{HOST}:81"),
            ("/same", f"{HOST}:8000", f"http://{HOST}"),
            ("/same", HOST, f"http://evil.example@{HOST}"),
            ("/same", HOST, f"http://{HOST}@evil.example"),
            ("/same", HOST, f"http://{HOST}/"),
            ("/same", HOST, f"http://{HOST}?"),
            ("/same", HOST, f"http://{HOST}, https://evil.example"),
            ("/same", HOST, HOST),
            ("/same", HOST, f"file://{HOST}"),
            ("/same", HOST, ""),
            ("/list", HOST, f"http://{HOST}"),  # the list is all
            ("/list", HOST, "http://app.example"),
            ("/list", HOST, "https://app.example:444"),
            ("/list", HOST, "https://app.example.evil"),
            ("/list", HOST, "null"),
            ("/null", HOST, "https://app.example"),
            ("/none", HOST, f"http://{HOST}"),
            ("/none", HOST, "null"),
        ],
    )
    def test_refused(self, server: Any, path: str, host: str, origin: str, caplog: Any) -> None:
        """A3 row 41: 403 and the connection closed, before any code of the app's runs."""
        caplog.set_level(logging.INFO, "geventws")
        answer = refused(server, path, Host=host, Origin=origin)
        assert answer.status == 403
        assert "option origins" in answer.body
        assert not self.called
        # The log is where a developer looks whose page is served from another port.
        assert f"'{path}' is refused: 403 Pages of the Origin" in caplog.text

    def test_two_origin_headers(self, server: Any) -> None:
        """A3 row 41: whichever comes first."""
        for first, second in ((HOST, "evil.example"), ("evil.example", HOST), (HOST, HOST)):
            names = {"Origin": f"http://{first}", "origin": f"http://{second}"}
            with Peer(server, "/same", Host=HOST, **names) as peer:
                assert peer.head().split(" ")[1] in ("400", "403")
        assert not self.called

    def test_other_requests_have_no_origin_check(self, server: Any) -> None:
        assert fetch(server, "/same", Host=HOST, Origin="https://evil.example").status == 426

    def test_nothing_that_was_sent_along_is_looked_at(self, server: Any) -> None:
        with Peer(server, "/same", frame(TEXT, b"x"), Host=HOST, Origin="https://evil.example") as peer:
            response = peer.rest()
        assert response.startswith(b"HTTP/1.1 403 ")
        assert not self.called
        assert not server.sessions

    def test_a_refusal_can_not_be_used_to_write_into_the_log(self, server: Any, caplog: Any) -> None:
        """A3 row 44."""
        caplog.set_level(logging.INFO, "geventws")
        origin = "http://" + "é" * 5000
        assert refused(server, "/same", Host=HOST, Origin=origin).status == 403
        assert refused(server, "/same%0A%1B%5B2J" + "y" * 500, Host=HOST).status == 404
        for record in caplog.records:
            if record.name == "geventws":
                assert record.getMessage().isascii()
                assert record.getMessage().isprintable()
                assert len(record.getMessage()) < 400
