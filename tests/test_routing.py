"""Routes and what becomes of a request on one: most of it holds without a framework and in Flask alike."""

from __future__ import annotations

import gc
import logging
import re
import weakref
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from werkzeug.exceptions import Forbidden, abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BuildError
from werkzeug.utils import redirect
from werkzeug.wrappers import Response

from geventws import (
    Blueprint,
    CloseReason,
    ConnectionClosed,
    Frame,
    HandshakeError,
    JSONConverter,
    Opcode,
    PermessageDeflate,
    ProtocolError,
    UsageError,
    WebSockets,
    WebSocketUpgrade,
)
from geventws.call import CALL_KEY
from geventws.upgrade import KEY, Upgrade, unwrap
from tests.faces import Answer, MakeFace, PlainFace, answer_of, conversation, either, fetch, refused
from tests.peer import PATIENCE, Peer, request, serving, wait_until
from tests.wire import CONTINUATION, TEXT, close_frame, frame, server_frames


@either
class TestRules:
    def test_converters_give_values_to_the_handler(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/add/<int:a>/<float:b>/<path:rest>")
        def add(session: Any, a: int, b: float, rest: str) -> None:
            session.send(f"{a + b} {rest}")

        @face.sockets.route("/any/<any(red, blue):colour>", defaults={"size": 5})
        def colour(session: Any, colour: str, size: int) -> None:
            session.send(f"{colour} {size}")

        with serving(face.app) as server:
            assert conversation(server, "/add/1/2.5/x/y") == [b"3.5 x/y"]
            assert conversation(server, "/any/blue") == [b"blue 5"]
            assert refused(server, "/add/one/2.5/x").status == 404
            assert refused(server, "/any/green").status == 404

    def test_query_and_percent_encoding(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/<name>")
        def hello(session: Any, name: str) -> None:
            session.send(f"{name} {session.request.args['q']}")

        with serving(face.app) as server:
            assert conversation(server, "/%C3%A9?q=a%20b") == ["é a b".encode()]

    @pytest.mark.parametrize(
        ("prefix", "at_registration", "path"),
        [
            (None, None, "/echo/a"),
            ("/chat", None, "/chat/echo/a"),
            ("/chat/", None, "/chat/echo/a"),
            ("/", None, "/echo/a"),
            (None, "/talk", "/talk/echo/a"),
            ("/chat", "/talk", "/talk/echo/a"),
        ],
    )
    def test_url_prefix(self, make: MakeFace, prefix: str | None, at_registration: str | None, path: str) -> None:
        face = make()
        blueprint = Blueprint("chat", __name__, url_prefix=prefix)

        @blueprint.route("/echo/<name>")
        def echo(session: Any, name: str) -> None:
            session.send(name)

        face.register(blueprint, **({} if at_registration is None else {"url_prefix": at_registration}))
        assert face.url_for("chat.echo", name="a") == path
        with serving(face.app) as server:
            assert conversation(server, path) == [b"a"]
            assert refused(server, "/nowhere/echo/a").status == 404

    def test_a_prefix_may_have_values_and_a_rule_may_be_empty(self, make: MakeFace) -> None:
        face = make()
        blueprint = Blueprint("room", __name__, url_prefix="/rooms/<int:room>")

        @blueprint.route("")
        def enter(session: Any, room: int) -> None:
            session.send(str(room + 1))

        face.register(blueprint)
        with serving(face.app) as server:
            assert conversation(server, "/rooms/7") == [b"8"]

    def test_one_blueprint_on_two_apps_under_other_names(self, make: MakeFace) -> None:
        blueprint = Blueprint("numbers", __name__, url_prefix="/n")

        @blueprint.route("/<int:n>")
        def double(session: Any, n: int) -> None:
            assert session.application is faces[session.request.args["app"]].app
            session.send(str(2 * n))

        faces = {"a": make(max_frame_size=1000), "b": PlainFace()}
        faces["a"].register(blueprint)
        faces["b"].register(blueprint, name="figures", url_prefix="/f")
        assert faces["a"].url_for("numbers.double", n=3) == "/n/3"
        assert faces["b"].url_for("figures.double", n=3) == "/f/3"
        with pytest.raises(BuildError):
            faces["b"].url_for("numbers.double", n=3)
        with serving(faces["a"].app) as server:
            assert conversation(server, "/n/3?app=a") == [b"6"]
        with serving(faces["b"].app) as server:
            assert conversation(server, "/f/4?app=b") == [b"8"]

    def test_one_blueprint_twice_on_an_app(self, make: MakeFace) -> None:
        face = make()
        blueprint = Blueprint("numbers", __name__)

        @blueprint.route("/<int:n>")
        def double(session: Any, n: int) -> None:
            session.send(str(2 * n))

        face.register(blueprint, url_prefix="/a")
        face.register(blueprint, url_prefix="/b", name="again")
        with serving(face.app) as server:
            assert conversation(server, face.url_for("numbers.double", n=1)) == [b"2"]
            assert conversation(server, face.url_for("again.double", n=2)) == [b"4"]

    def test_url_for(self, make: MakeFace) -> None:
        face = make()
        face.sockets.route("/a/<int:n>/<path:rest>", endpoint="deep")(lambda session, n, rest: None)
        assert face.url_for("deep", n=3, rest="x/é y", extra="1&2") == "/a/3/x/%C3%A9%20y?extra=1%262"
        with pytest.raises(BuildError, match="deep"):
            face.url_for("deepp", n=3, rest="x")
        with pytest.raises(BuildError, match="rest"):
            face.url_for("deep", n=3)

    def test_a_missing_slash_is_redirected(self, make: MakeFace) -> None:
        face = make()
        face.sockets.route("/strict/")(lambda session: None)

        @face.sockets.route("/loose/", strict_slashes=False, endpoint="loose")
        def loose(session: Any) -> None:
            session.send("here")

        with serving(face.app) as server:
            answer = refused(server, "/strict?q=1", Host="example.com:80")
            assert (answer.status, answer.headers["location"]) == (308, "ws://example.com/strict/?q=1")
            assert conversation(server, "/loose") == [b"here"]


@either
class TestProtocols:
    @pytest.fixture
    def server(self, make: MakeFace) -> Iterator[Any]:
        face = make()
        blueprint = Blueprint("feed", __name__)

        def add(name: str, protocol: Any, **options: Any) -> None:
            @blueprint.route("/feed", protocol=protocol, endpoint=name, **options)
            def handler(session: Any) -> None:
                said = f"{name} {session.protocol}"
                session.send(Frame.text(said) if options.get("raw") else said)
                if options.get("raw"):
                    session.send(Frame.close(1000))

        add("new", ["v3", "v2"])
        add("raw", "raw", raw=True)
        add("old", ("v1", "v2", "v0"))

        @blueprint.route("/any", protocol="v1")
        def any_first(session: Any) -> None:
            session.send("v1")

        @blueprint.route("/any")
        def any_other(session: Any) -> None:
            session.send("any")

        face.register(blueprint)
        with serving(face.app) as server:
            yield server

    @pytest.mark.parametrize(
        ("offered", "taken"),
        [
            ("v3", "new v3"),
            ("v2, v3", "new v3"),  # the server's order
            ("v2", "new v2"),
            ("v0,v1", "old v1"),
            ("x, v0", "old v0"),
            ("raw", "raw raw"),
            ("v1, raw", "raw raw"),  # the first route that fits
        ],
    )
    def test_the_first_route_that_fits_is_taken(self, server: Any, offered: str, taken: str) -> None:
        with Peer(server, "/feed", Sec_WebSocket_Protocol=offered) as peer:
            assert f"Sec-WebSocket-Protocol: {taken.split()[1]}\r\n" in peer.head() + "\r\n"
            assert peer.frame() == (0x81, taken.encode())
            peer.closed_with(1000)

    @pytest.mark.parametrize("fields", [{}, {"Sec_WebSocket_Protocol": "V3, v4"}])
    def test_none_fits(self, server: Any, fields: dict[str, str]) -> None:
        answer = refused(server, "/feed", **fields)
        assert answer.status == 400
        assert "v3, v2, raw, v1, v0" in answer.body

    def test_a_route_without_a_protocol_takes_any_client(self, server: Any) -> None:
        assert conversation(server, "/any", Sec_WebSocket_Protocol="v9, v1") == [b"v1"]
        assert conversation(server, "/any") == [b"any"]
        with Peer(server, "/any", Sec_WebSocket_Protocol="v9") as peer:
            assert "Sec-WebSocket-Protocol" not in peer.head()
            assert peer.frame() == (0x81, b"any")

    def test_the_routes_that_share_a_rule_have_their_own_settings(self, make: MakeFace) -> None:
        face = make(origins="same")

        @face.sockets.route("/", protocol="open", origins=None)
        def open_to_all(session: Any) -> None:
            session.send("open")

        @face.sockets.route("/", protocol="closed", origins=["https://example.com"])
        def closed(session: Any) -> None:
            session.send("closed")

        with serving(face.app) as server:
            far = {"Origin": "https://far.example"}
            assert conversation(server, "/", Sec_WebSocket_Protocol="open", **far) == [b"open"]
            assert refused(server, "/", Sec_WebSocket_Protocol="closed", **far).status == 403


@either
class TestBefore101:
    """Until the session is used all is HTTP: the outcome of a handler or a hook is the client's answer."""

    @staticmethod
    def outcomes() -> dict[str, tuple[Any, int, str]]:
        def raising(error: Exception) -> Any:
            raise error

        def application(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("202 Accepted", [("Content-Type", "text/plain"), ("Content-Length", "6")])
            return [b"queued"]

        return {
            "abort": (lambda: abort(401), 401, "Unauthorized"),
            "abort with text": (lambda: abort(403, "not you"), 403, "not you"),
            "abort with a response": (lambda: abort(Response("teapot", status=418)), 418, "teapot"),
            "raise": (lambda: raising(Forbidden()), 403, "Forbidden"),
            "response": (lambda: Response("a page", status=203), 203, "a page"),
            "str": (lambda: "text", 200, "text"),
            "bytes": (lambda: b"bytes", 200, "bytes"),
            "empty": (lambda: "", 200, ""),
            "WSGI app": (lambda: application, 202, "queued"),
            "redirect": (lambda: redirect("/elsewhere", 307), 307, "/elsewhere"),
            "handshake error": (lambda: raising(HandshakeError(409, "wait", [("Retry-After", "5")])), 409, "wait"),
            "with a dict": (lambda: raising(HandshakeError(401, "who", {"WWW-Authenticate": "Basic"})), 401, "who"),
        }

    @pytest.mark.parametrize("name", outcomes())
    @pytest.mark.parametrize("where", ["handler", "hook", "hook with session"])
    def test_the_outcome_is_the_answer(self, make: MakeFace, where: str, name: str) -> None:
        """And nothing that came behind is served (A3 row 36, for refusals of the app's own)."""
        face = make()
        outcome, status, text = self.outcomes()[name]
        blueprint = Blueprint("b", __name__)
        called = []

        @blueprint.route("/")
        def handler(session: Any) -> Any:
            called.append(session)
            return outcome()

        if where == "hook":
            blueprint.before_request(outcome)
        elif where == "hook with session":

            @blueprint.before_request
            def hook(session: Any) -> Any:
                assert session.request.path == "/"
                return outcome()

        face.register(blueprint)
        with serving(face.app) as server:
            answer = refused(server)
            assert answer.status == status
            assert text in answer.body
            if name == "handshake error":
                assert answer.headers["retry-after"] == "5"
            assert len(called) == (where == "handler")
            assert not server.sessions

    def test_hooks_run_in_order_and_the_first_that_answers_is_the_last(self, make: MakeFace) -> None:
        face = make()
        blueprint = Blueprint("b", __name__)
        order = []

        @face.sockets.before_request
        def of_the_app() -> None:
            order.append("app")

        @blueprint.before_request
        def first(session: Any) -> None:
            order.append("first")

        @blueprint.before_request
        def second() -> Any:
            order.append("second")
            return "stop" if len(order) < 4 else None

        @blueprint.before_request
        def third() -> None:
            order.append("third")

        @blueprint.route("/in")
        def handler(session: Any) -> None:
            order.append("handler")

        @face.sockets.route("/out")
        def outside(session: Any) -> None:
            order.append("outside")

        face.register(blueprint)
        with serving(face.app) as server:
            assert refused(server, "/in").body == "stop"
            assert order == ["app", "first", "second"]
            assert conversation(server, "/in") == []
            assert order[3:] == ["app", "first", "second", "third", "handler"]
            assert conversation(server, "/out") == []
            assert order[8:] == ["app", "outside"]

    @pytest.mark.parametrize("headers", [[("X-Greeted", "yes")], {"X-Greeted": "yes"}], ids=["pairs", "dict"])
    def test_a_hook_may_use_the_session(self, make: MakeFace, headers: Any) -> None:
        face = make()

        @face.sockets.before_request
        def greet(session: Any) -> None:
            session.accept(headers=headers)
            session.send("hello")

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.send("again")

        with serving(face.app) as server, Peer(server) as peer:
            assert "X-Greeted: yes" in peer.head()
            assert [peer.frame(), peer.frame()] == [(0x81, b"hello"), (0x81, b"again")]
            peer.closed_with(1000)

    def test_a_hook_that_fails_after_the_101_closes_with_1011(self, make: MakeFace, caplog: Any) -> None:
        face = make()

        @face.sockets.before_request
        def fail(session: Any) -> None:
            session.accept()
            raise KeyError("in the hook")

        face.sockets.route("/")(lambda session: None)
        with serving(face.app) as server, Peer(server) as peer:
            peer.accepted().closed_with(1011)
            wait_until(lambda: caplog.records)
            assert not server.sessions
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    @pytest.mark.filterwarnings("default")
    def test_an_error_is_a_500_without_detail(self, make: MakeFace) -> None:
        """T35, before the 101."""
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            raise KeyError("secret")

        with serving(face.app, error_log=None) as server:
            answer = refused(server)
            assert answer.status == 500
            assert "secret" not in answer.body

    def test_a_response_that_is_none_is_an_error(self, make: MakeFace) -> None:
        face = make()
        face.sockets.route("/")(lambda session: 5)
        with serving(face.app, error_log=None) as server:
            assert refused(server).status == 500

    def test_a_session_that_was_not_opened_in_time_can_not_be_opened_any_more(self, make: MakeFace) -> None:
        face = make()
        answered = Event()
        late: list[Any] = []

        @face.sockets.route("/")
        def handler(session: Any) -> Any:
            late.append(gevent.spawn(lambda: (answered.wait(PATIENCE), session.send("late"))))
            gevent.sleep(0)
            return "answer"

        with serving(face.app) as server:
            assert refused(server).body == "answer"
            answered.set()
            with pytest.raises(UsageError, match="answered in HTTP already"):
                late[0].get(timeout=PATIENCE)

    def test_another_greenlet_may_be_the_first_to_use_the_session(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            gevent.spawn(session.send, "from afar").get(timeout=PATIENCE)

        with serving(face.app) as server:
            assert conversation(server) == [b"from afar"]

    def test_a_handler_that_returns_none_unused_accepts(self, make: MakeFace) -> None:
        face = make()
        face.sockets.route("/")(lambda session: None)
        with serving(face.app) as server:
            assert conversation(server) == []

    def test_the_101_is_exact(self, make: MakeFace) -> None:
        """A3 row 40."""
        face = make()
        face.sockets.route("/")(lambda session: None)
        with serving(face.app) as server, Peer(server) as peer:
            assert peer.head() == (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            )


@either
class TestMalformedHandshakes:
    """What is no handshake gets its status from the server that would accept one, and nothing behind it is served."""

    @pytest.mark.parametrize(
        "key",
        ["", "=" * 24, "A" * 20, "A" * 23 + "=", "A" * 24, "A" * 22 + "=", "dGhlIHNhbXBsZSBub25j-_==", "A" * 8000],
    )
    def test_a_key_that_is_none_is_400(self, make: MakeFace, key: str) -> None:
        """A3 row 35."""
        face = make()
        called: list[Any] = []
        face.sockets.route("/")(called.append)
        with serving(face.app) as server:
            answer = refused(server, Sec_WebSocket_Key=key)
        assert answer.status == 400
        assert "Sec-WebSocket-Key" in answer.body
        assert not called

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"Connection": "keep-alive"}, 400),
            ({"Connection": "xupgrade"}, 400),
            ({"Sec_WebSocket_Version": "12"}, 426),
            ({"Sec_WebSocket_Protocol": "\xff\xfe"}, 400),
            ({"Sec_WebSocket_Extensions": "__proto__, constructor, ;;,="}, 400),
        ],
    )
    def test_what_lacks_something_is_refused(self, make: MakeFace, fields: dict[str, str], status: int) -> None:
        """A3 rows 33, 34, 36 and 37."""
        face = make()
        face.sockets.route("/")(lambda session: None)
        with serving(face.app) as server:
            answer = refused(server, **fields)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        if status == 426:
            assert answer.headers["sec-websocket-version"] == "13"


@either
class TestAfter101:
    """After the 101 the outcome is a close code, and nothing of HTTP is on the wire."""

    def test_what_a_handler_returns_does_not_matter(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> Any:
            session.send("x")
            return Response("a page")

        with serving(face.app) as server:
            assert conversation(server) == [b"x"]

    @pytest.mark.parametrize(
        "error",
        [KeyError("secret"), MemoryError(), RecursionError(), Forbidden(), gevent.Timeout(5), HandshakeError(400, "x")],
        ids=lambda error: type(error).__name__,
    )
    def test_an_error_is_logged_once_and_closes_with_1011(self, make: MakeFace, error: Any, caplog: Any) -> None:
        """T35, and C2 row 15."""
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.send("x")
            raise error

        with serving(face.app) as server, Peer(server) as peer:
            peer.accepted()
            assert peer.frame() == (0x81, b"x")
            assert peer.frame() == (0x88, b"\x03\xf3")
            peer.send(close_frame(1011))
            peer.ended()
            wait_until(lambda: caplog.records)
            wait_until(lambda: not server._connections)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        logged = record.exc_info[1]
        assert logged is error or logged.__cause__ is error

    def test_an_abort_after_the_101_is_told_what_to_do(self, make: MakeFace, caplog: Any) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.accept()
            abort(403)

        with serving(face.app) as server, Peer(server) as peer:
            peer.accepted().closed_with(1011)
            wait_until(lambda: caplog.records)
        assert "session.close(code, reason)" in caplog.text

    def test_connection_closed_of_another_session_is_an_error(self, make: MakeFace, caplog: Any) -> None:
        """One dead member must not end the others' sessions in silence."""
        face = make()
        members: list[Any] = []

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.accept()
            members.append(session)
            for message in session:
                for member in members:
                    member.send(message)

        with serving(face.app) as server, Peer(server) as first, Peer(server) as second:
            first.accepted()
            second.accepted()
            wait_until(lambda: len(members) == 2)
            first.send(close_frame())
            first.closed_with(1000)
            wait_until(lambda: any(member.closed for member in members))
            second.send(frame(TEXT, b"all"))
            got = second.frame()
            if got == (0x81, b"all"):
                got = second.frame()
            assert got == (0x88, b"\x03\xf3")
            second.send(close_frame(1011))
            second.ended()
            wait_until(lambda: caplog.records)
        assert "ConnectionClosed of another session" in caplog.text

    @pytest.mark.parametrize("raw", [False, True])
    def test_connection_closed_of_its_own_session_is_none(self, make: MakeFace, raw: bool, caplog: Any) -> None:
        face = make()
        ends: list[Any] = []

        @face.sockets.route("/", raw=raw)
        def handler(session: Any) -> None:
            try:
                while True:
                    session.receive()
            except ConnectionClosed as error:
                ends.append(error.reason)
                raise

        with serving(face.app) as server, Peer(server) as peer:
            peer.accepted().send(close_frame(4001, b"mine"))
            peer.rest()
            wait_until(lambda: not server._connections)
        assert ends == [CloseReason(4001, "mine")]
        assert not [record for record in caplog.records if record.levelno > logging.INFO]

    @pytest.mark.parametrize(
        ("error", "payload"),
        [
            (ProtocolError(1007, "not JSON"), b"\x03\xefnot JSON"),
            (ProtocolError(4001, "x" * 200), b"\x0f\xa1" + b"x" * 123),
            (ProtocolError(1005, "may not be sent"), b"\x03\xf3"),
        ],
        ids=lambda value: str(value)[:12],
    )
    def test_a_protocol_error_is_told_to_the_peer(self, make: MakeFace, error: Any, payload: bytes) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.accept()
            raise error

        with serving(face.app) as server, Peer(server) as peer:
            assert peer.accepted().frame() == (0x88, payload)
            peer.send(close_frame(1000))
            peer.ended()

    @pytest.mark.parametrize("message", [b"{", b"NaN", b"[]"])
    def test_what_a_converter_can_not_read_is_the_peers_fault(
        self, make: MakeFace, message: bytes, caplog: Any
    ) -> None:
        face = make(content_converter=JSONConverter())

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.receive_deserialized(dict)

        with serving(face.app) as server, Peer(server) as peer:
            peer.accepted().send(frame(TEXT, message))
            peer.closed_with(1007)
            wait_until(lambda: not server._connections)
        assert not [record for record in caplog.records if record.levelno > logging.INFO]

    def test_a_killed_handler_closes_with_1001(self, make: MakeFace) -> None:
        """T35: GreenletExit, and the handler's own `finally` runs."""
        face = make()
        handlers: list[Any] = []
        cleaned = Event()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.accept()
            handlers.append(gevent.getcurrent())
            try:
                session.receive()
            finally:
                cleaned.set()

        with serving(face.app) as server, Peer(server) as peer:
            peer.accepted()
            wait_until(lambda: handlers)
            gevent.kill(handlers[0])
            peer.closed_with(1001)
            assert cleaned.wait(PATIENCE)

    @pytest.mark.parametrize("accepted", [False, True])
    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
    def test_what_ends_the_process_is_not_swallowed(self, make: MakeFace, error: type, accepted: bool) -> None:
        """T35: no time is lost on the peer, which gets only valid frames."""
        face = make(timeout=PATIENCE)

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            if accepted:
                session.send("x")
            raise error

        with called(face.app) as (peer, call):
            with pytest.raises(error):
                call()
            received = received_by(peer)
        if accepted:
            assert server_frames(received.partition(b"\r\n\r\n")[2]) == [(0x81, b"x"), (0x88, b"\x03\xf3")]
        else:
            assert received == b""

    def test_a_session_is_gone_when_its_handler_has_ended(self, make: MakeFace) -> None:
        """C2 row 18."""
        face = make()
        seen: list[Any] = []
        left: list[Any] = []

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.send("x")
            assert CALL_KEY not in session.environ
            seen.append(weakref.ref(session))
            left.append(gevent.spawn(session.receive))

        with serving(face.app) as server:
            assert conversation(server) == [b"x"]
            wait_until(lambda: not server._connections)
            assert not server.sessions
            with pytest.raises(ConnectionClosed):
                left.pop().get(timeout=PATIENCE)
            gc.collect()
            assert seen[0]() is None


class TestAppBehind:
    def test_what_is_no_websocket_of_a_route_goes_there(self) -> None:
        def pages(environ: Any, start_response: Any) -> Iterable[bytes]:
            body = f"page {environ['PATH_INFO']} {'upgrade' if KEY in environ else 'plain'}".encode()
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body]

        app = WebSockets(pages)

        @app.route("/ws")
        def handler(session: Any) -> None:
            session.send("socket")

        @app.route("/gone")
        def gone(session: Any) -> None:
            abort(404, "no such room")

        with serving(app) as server:
            assert conversation(server, "/ws") == [b"socket"]
            assert fetch(server, "/ws").body == "page /ws plain"
            assert fetch(server, "/other").body == "page /other plain"
            assert refused(server, "/other").body == "page /other upgrade"
            # The route is known: what it answers is the answer.
            answer = refused(server, "/gone")
            assert answer.status == 404
            assert "no such room" in answer.body

    def test_apps_may_be_nested(self) -> None:
        inner = WebSockets(max_frame_size=7)

        @inner.route("/inner")
        def handler(session: Any) -> None:
            session.send(str(session.max_frame_size))
            assert session.application is inner

        with serving(WebSockets(WebSockets(inner, max_frame_size=9))) as server:
            assert conversation(server, "/inner") == [b"7"]

    def test_without_one(self) -> None:
        app = WebSockets()
        app.route("/ws")(lambda session: None)
        with serving(app) as server:
            assert fetch(server, "/nowhere").status == 404
            assert refused(server, "/nowhere").status == 404
            answer = fetch(server, "/ws")
            assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
            assert "WebSocket client" in answer.body

    def test_an_upgrade_header_that_a_proxy_dropped_is_missed(self) -> None:
        app = WebSockets()
        app.route("/ws")(lambda session: None)
        with serving(app) as server:
            dropped: Any = ("Upgrade",)
            with Peer(server, "/ws", Connection="close", drop=dropped) as peer:
                answer = answer_of(peer.rest())
        assert answer.status == 426
        assert "proxy" in answer.body


@either
class TestSettings:
    def test_a_route_overrides_those_of_the_app(self, make: MakeFace) -> None:
        face = make(max_frame_size=10, ping_interval=None, timeout=7)

        def handler(session: Any) -> None:
            session.send(f"{session.max_frame_size} {session.ping_interval} {session.timeout}")
            session.receive()

        face.sockets.route("/app", endpoint="a")(handler)
        face.sockets.route("/route", endpoint="b", max_frame_size=20, ping_interval=30)(handler)
        face.sockets.route("/none", endpoint="c", max_frame_size=None)(handler)
        with serving(face.app) as server:
            for path, size, said in (
                ("/app", 10, b"10 None 7"),
                ("/route", 20, b"20 30 7"),
                ("/none", 2_000_000, b"None None 7"),
            ):
                with Peer(server, path) as peer:
                    assert peer.accepted().frame() == (0x81, said)
                    peer.send(frame(TEXT, b"x" * size))
                    peer.closed_with(1000)
            with Peer(server, "/route") as peer:
                peer.accepted().frame()
                peer.send(frame(TEXT, b"x" * 21))
                peer.closed_with(1009)

    def test_a_converter_of_a_route(self, make: MakeFace) -> None:
        face = make()
        face.sockets.route("/", content_converter=JSONConverter())(lambda session: session.send_serialized({"a": 1}))
        with serving(face.app) as server:
            assert conversation(server) == [b'{"a":1}']


OFFER = "permessage-deflate; client_max_window_bits"


def deflated(message: bytes) -> bytes:
    """A message as permessage-deflate puts it (RFC 7692 7.2.1)."""
    compressor = zlib.compressobj(wbits=-12)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=-15).decompress(payload + b"\0\0\xff\xff")


@either
class TestExtensions:
    message = b"Ave Maria, gratia plena. " * 20

    def test_messages_are_compressed_both_ways(self, make: MakeFace) -> None:
        face = make(extensions=[PermessageDeflate()])

        @face.sockets.route("/")
        def echo(session: Any) -> None:
            session.accept()
            assert len(session.extensions) == 1
            for message in session:
                session.send(message)

        with serving(face.app) as server, Peer(server, Sec_WebSocket_Extensions=OFFER) as peer:
            assert "\r\nSec-WebSocket-Extensions: permessage-deflate;" in peer.head()
            payload = deflated(self.message)
            assert len(payload) < len(self.message) // 2
            peer.send(
                frame(TEXT, payload[:5], fin=False, rsv=4)
                + frame(CONTINUATION, payload[5:20], fin=False)
                + frame(CONTINUATION, payload[20:])
            )
            first, answer = peer.frame()
            assert first == 0xC1
            assert inflated(answer) == self.message
            # An uncompressed message has no RSV1, and is fine.
            peer.send(frame(TEXT, b"plain"))
            assert peer.frame() == (0x81, b"plain")
            peer.send(close_frame())
            peer.closed_with(1000)

    def test_there_are_none_unless_asked_for(self, make: MakeFace) -> None:
        """A3 row 47: compression is off by default, whatever a client offers."""
        face = make()
        face.sockets.route("/")(lambda session: session.send("x" * 1000))
        with serving(face.app) as server, Peer(server, Sec_WebSocket_Extensions=OFFER) as peer:
            assert "Extensions" not in peer.head()
            assert peer.frame() == (0x81, b"x" * 1000)
            peer.closed_with(1000)

    def test_a_client_that_does_not_offer_gets_none(self, make: MakeFace) -> None:
        face = make(extensions=[PermessageDeflate()])

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            session.send("x" * 1000)
            assert session.extensions == ()
            session.receive()

        with serving(face.app) as server, Peer(server) as peer:
            assert "Sec-WebSocket-Extensions" not in peer.head()
            assert peer.frame() == (0x81, b"x" * 1000)
            peer.send(frame(TEXT, b"a", rsv=4))
            peer.closed_with(1002)

    @pytest.mark.parametrize("extensions", [(), None])
    def test_a_route_may_have_others_than_the_app(self, make: MakeFace, extensions: Any) -> None:
        face = make(extensions=[PermessageDeflate()])
        face.sockets.route("/", extensions=())(lambda session: None)
        with serving(face.app) as server, Peer(server, Sec_WebSocket_Extensions=OFFER) as peer:
            assert "Sec-WebSocket-Extensions" not in peer.head()

    def test_a_raw_route_has_none(self, make: MakeFace) -> None:
        face = make(extensions=[PermessageDeflate()])

        @face.sockets.route("/", raw=True)
        def handler(session: Any) -> None:
            session.send(session.receive())

        with serving(face.app) as server, Peer(server, Sec_WebSocket_Extensions=OFFER) as peer:
            assert "Sec-WebSocket-Extensions" not in peer.head()
            peer.send(frame(TEXT, self.message))
            assert peer.frame() == (0x81, self.message)

    def test_a_raw_route_may_negotiate_them(self, make: MakeFace) -> None:
        face = make(extensions=[PermessageDeflate()])
        seen: list[Frame] = []

        @face.sockets.route("/", raw=True, negotiate_extensions=True)
        def handler(session: Any) -> None:
            for got in session:
                seen.append(got)
                session.send(got)

        with serving(face.app) as server, Peer(server, Sec_WebSocket_Extensions=OFFER) as peer:
            assert "\r\nSec-WebSocket-Extensions: permessage-deflate;" in peer.head()
            payload = deflated(self.message)
            peer.send(frame(TEXT, payload[:9], fin=False, rsv=4) + frame(CONTINUATION, payload[9:]))
            first, begun = peer.frame()
            last, rest = peer.frame()
            assert (first, last) == (0x41, 0x80)
            assert inflated(begun + rest) == self.message
            peer.send(close_frame())
            peer.closed_with(1000)
        assert [got.opcode for got in seen] == [Opcode.TEXT, Opcode.CONTINUATION, Opcode.CLOSE]
        assert seen[0].payload + seen[1].payload == self.message
        assert [got.rsv for got in seen] == [0, 0, 0]

    def test_an_extension_that_was_not_agreed_on_claims_no_bit(self, make: MakeFace) -> None:
        """Names are compared whole: "deflate" is not "permessage-deflate"."""

        class Other:
            name = "deflate"
            rsv = 2

            def accept(self, parameters: Any) -> Any:
                raise AssertionError("it was not offered")

        face = make(extensions=[PermessageDeflate(), Other()])
        face.sockets.route("/")(lambda session: session.receive())
        with serving(face.app) as server, Peer(server, Sec_WebSocket_Extensions=OFFER) as peer:
            assert "deflate" in peer.head()
            peer.send(frame(TEXT, b"a", rsv=2))
            peer.closed_with(1002)


class TestWebSocketUpgrade:
    def test_from_a_wsgi_app(self) -> None:
        def handle(session: Any) -> None:
            assert session.application is upgrade
            session.send(Frame.text(f"{session.environ['PATH_INFO']} {session.protocol}"))

        upgrade = WebSocketUpgrade(handle, protocol=["v2", "v1"], origins=["https://a.example"])

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/live":
                return upgrade(environ, start_response)
            start_response("200 OK", [("Content-Length", "4")])
            return [b"page"]

        with serving(app) as server:
            with Peer(server, "/live", Sec_WebSocket_Protocol="v1, v2", Origin="https://a.example") as peer:
                assert "Sec-WebSocket-Protocol: v2" in peer.head()
                assert peer.frame() == (0x81, b"/live v2")
                peer.ended()
            assert refused(server, "/live").status == 400
            assert refused(server, "/live", Sec_WebSocket_Protocol="v1", Origin="https://b.example").status == 403
            assert fetch(server, "/live").status == 426
            assert fetch(server, "/").body == "page"

    def test_its_handler_may_answer_in_http(self) -> None:
        with serving(WebSocketUpgrade(lambda session: abort(403))) as server:
            assert refused(server).status == 403
        with serving(WebSocketUpgrade(lambda session: "text")) as server:
            assert refused(server).body == "text"

    def test_it_has_the_settings_of_the_app_that_leads_to_it(self) -> None:
        sizes = []
        upgrade = WebSocketUpgrade(lambda session: sizes.append((session.max_frame_size, len(session.extensions))))
        installing = WebSocketUpgrade(
            lambda session: (session.accept(), sizes.append((session.max_frame_size, len(session.extensions)))),
            install_extensions=True,
            max_frame_size=5,
        )
        pages = DispatcherMiddleware(upgrade, {"/installing": installing})
        app = WebSockets(pages, max_frame_size=99, extensions=[PermessageDeflate()])
        with serving(app) as server:
            for path in ("/", "/installing"):
                with Peer(server, path, Sec_WebSocket_Extensions=OFFER) as peer:
                    assert ("permessage-deflate" in peer.head()) == (path == "/installing")
                    peer.ended()
        assert sizes == [(99, 0), (5, 1)]

    def test_a_failing_one_is_logged_under_its_name(self, caplog: Any) -> None:
        def live(session: Any) -> None:
            session.accept()
            raise KeyError("x")

        with serving(WebSocketUpgrade(live)) as server, Peer(server) as peer:
            peer.accepted().closed_with(1011)
            wait_until(lambda: caplog.records)
        assert re.fullmatch(r"the handler live failed, '/' of 127\.0\.0\.1:\d+", caplog.records[0].getMessage())


def copying(app: Any) -> Any:
    def application(environ: Any, start_response: Any) -> Any:
        return app(dict(environ), lambda status, headers, exc_info=None: start_response(status, headers))

    return application


def generating(app: Any) -> Any:
    def application(environ: Any, start_response: Any) -> Any:
        yield from app(environ, start_response)

    return application


class Timing:
    """Wraps the result too, as tracing middlewares do."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.closed = 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        result = self.app(
            environ, lambda status, headers, *rest: start_response(status, [*headers, ("X-T", "1")], *rest)
        )
        try:
            yield from result
        finally:
            if hasattr(result, "close"):
                result.close()
            self.closed += 1


@either
class TestMiddleware:
    @pytest.mark.parametrize("middleware", [copying, generating, Timing], ids=lambda wrap: wrap.__name__)
    def test_around_the_app(self, make: MakeFace, middleware: Any, caplog: Any) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            for message in session:
                if message == "fail":
                    raise KeyError("x")
                session.send(message)

        @face.sockets.route("/no")
        def no(session: Any) -> None:
            abort(403)

        with serving(middleware(face.app)) as server:
            with Peer(server) as peer:
                peer.accepted().send(frame(TEXT, b"a") + close_frame())
                assert peer.frame() == (0x81, b"a")
                peer.closed_with(1000)
            with Peer(server) as peer:
                peer.accepted().send(frame(TEXT, b"fail"))
                peer.closed_with(1011)
            assert refused(server, "/no").status == 403
            assert refused(server, "/nowhere").status == 404
            wait_until(lambda: not server._connections)
        assert len(caplog.records) == 1

    def test_proxy_fix(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/")
        def handler(session: Any) -> None:
            request = session.request
            session.send(f"{request.remote_addr} {request.host} {request.scheme}")
            assert session.remote_address[0] == "127.0.0.1"

        with serving(ProxyFix(face.app, x_for=1, x_host=1, x_proto=1)) as server:
            forwarded = {
                "X_Forwarded_For": "203.0.113.9",
                "X_Forwarded_Host": "ws.example",
                "X_Forwarded_Proto": "https",
            }
            assert conversation(server, Origin="https://ws.example", **forwarded) == [
                b"203.0.113.9 ws.example https"
            ] or (
                # Flask's request tells the scheme of a WebSocket's as what it is over TLS.
                conversation(server, Origin="https://ws.example", **forwarded) == [b"203.0.113.9 ws.example wss"]
            )
            assert refused(server, Origin="https://127.0.0.1", **forwarded).status == 403

    def test_an_app_below_a_path(self, make: MakeFace) -> None:
        face = make()

        @face.sockets.route("/x/")
        def handler(session: Any) -> None:
            session.send(session.request.path)

        with serving(DispatcherMiddleware(Response("root"), {"/below": face.app})) as server:
            assert conversation(server, "/below/x/") == [b"/x/"]
            assert refused(server, "/below/x", Host="h").headers["location"] == "ws://h/below/x/"
            assert fetch(server, "/other").body == "root"


class called:
    """A handshake on a socket pair: ``call`` runs ``app`` for it in this greenlet."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._peer, self._socket = socket.socketpair()

    def __enter__(self) -> tuple[Any, Any]:
        return self._peer, self._call

    def __exit__(self, *exception: object) -> None:
        self._peer.close()
        self._socket.close()

    def _call(self) -> list[bytes]:
        head = request().decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in fields.items()}
        environ |= {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SCRIPT_NAME": "", "SERVER_PROTOCOL": "HTTP/1.1"}
        environ |= {"wsgi.url_scheme": "http", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "QUERY_STRING": ""}
        offer: Any = {KEY: Upgrade(lambda: (unwrap(self._socket), bytearray()), ("127.0.0.1", 1), set())}
        return list(self._app(environ | offer, lambda status, headers, exc_info=None: None))


def received_by(peer: Any) -> bytes:
    """What is in a socket, or came before its end."""
    peer.setblocking(False)
    data = b""
    try:
        while piece := peer.recv(65536):
            data += piece
    except BlockingIOError:
        pass
    return data


def test_answers_are_read_strictly() -> None:
    with pytest.raises(AssertionError):
        answer_of(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    assert answer_of(b"HTTP/1.1 204 No\r\nA: b\r\n\r\n") == Answer(204, {"a": "b"}, "")
