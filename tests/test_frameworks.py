"""Django, Bottle, Falcon and Pyramid: their pages behind our routes, and sessions that their own views answer with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bottle
import django
import django.conf
import django.core.wsgi
import django.http
import django.urls
import falcon
import gevent
import pytest
from werkzeug.wrappers import Response

import geventws
from tests.faces import answer_of, fetch, refused
from tests.peer import Peer, serving
from tests.rigs import Peer as Client
from tests.rigs import eventually, gunicorn, offer, request
from tests.wire import TEXT, close_frame, frame

# -- What is the same for all ------------------------------------------------------------------------------------------

#: The WebSockets that views answer with: default sessions and raw ones, with the settings of the app around.
inner = geventws.WebSockets()


@inner.route("/view/<name>")
def greet(session: geventws.DefaultWebSocketServerSession, name: str) -> None:
    """Says who it is by what the view has put into the environ, and echoes."""
    session.send(f"{session.environ['app.user']} at {name}")
    for message in session:
        session.send(message)


@geventws.WebSocketUpgrade
def one_frame(session: geventws.WebSocketServerSession) -> None:
    """A raw session of one frame."""
    session.send(session.receive())


def user_of(query: str) -> str | None:
    """Whom a view takes the client for; None refuses it."""
    return query.removeprefix("user=") or None


def answer_by(app: Any, environ: dict[str, Any], user: str) -> Response:
    """The answer of a WSGI app within a view; blocks as long as its session."""
    environ["app.user"] = user
    return Response.from_app(app, environ)


# -- Django ------------------------------------------------------------------------------------------------------------


def django_page(request: django.http.HttpRequest) -> django.http.HttpResponse:
    return django.http.HttpResponse("a page of Django")


def django_view(request: django.http.HttpRequest, **values: Any) -> django.http.HttpResponse:
    user = user_of(request.META["QUERY_STRING"])
    if user is None:
        return django.http.HttpResponse("who?", status=401)
    answer = answer_by(inner, request.environ, user)  # type: ignore[attr-defined]
    return django.http.HttpResponse(answer.data, status=answer.status_code, headers=dict(answer.headers))


def django_raw(request: django.http.HttpRequest) -> django.http.HttpResponse:
    answer = answer_by(one_frame, request.environ, "")  # type: ignore[attr-defined]
    return django.http.HttpResponse(answer.data, status=answer.status_code, headers=dict(answer.headers))


urlpatterns = [
    django.urls.path("page", django_page),
    django.urls.path("view/<name>", django_view),
    django.urls.path("raw", django_raw),
]


def make_django() -> Any:
    if not django.conf.settings.configured:
        django.conf.settings.configure(
            ROOT_URLCONF=__name__,
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="not secret",
            MIDDLEWARE=[
                "django.middleware.security.SecurityMiddleware",
                "django.middleware.common.CommonMiddleware",
                "django.middleware.csrf.CsrfViewMiddleware",
                "django.middleware.clickjacking.XFrameOptionsMiddleware",
            ],
            LOGGING_CONFIG=None,
        )
    return django.core.wsgi.get_wsgi_application()


# -- Bottle ------------------------------------------------------------------------------------------------------------


def make_bottle() -> Any:
    app = bottle.Bottle()

    @app.get("/page")
    def page() -> str:
        return "a page of Bottle"

    @app.get("/view/<name>")
    def view(name: str) -> Any:
        user = user_of(bottle.request.query_string)
        if user is None:
            bottle.abort(401, "who?")
        answer = answer_by(inner, bottle.request.environ, user)
        return bottle.HTTPResponse(answer.data, answer.status_code, dict(answer.headers))

    # Bottle takes WSGI apps as they are, too.
    app.mount("/raw", one_frame)
    return app


# -- Falcon ------------------------------------------------------------------------------------------------------------


class FalconPage:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.text = "a page of Falcon"
        response.content_type = falcon.MEDIA_TEXT


class FalconView:
    def on_get(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        user = user_of(request.query_string)
        if user is None:
            raise falcon.HTTPUnauthorized(title="who?")
        answer = answer_by(inner, request.env, user)
        response.status, response.data = answer.status, answer.data
        response.set_headers(dict(answer.headers))


class FalconRaw:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        answer = answer_by(one_frame, request.env, "")
        response.status, response.data = answer.status, answer.data
        response.set_headers(dict(answer.headers))


def make_falcon() -> Any:
    app = falcon.App()
    app.add_route("/page", FalconPage())
    app.add_route("/view/{name}", FalconView())
    app.add_route("/raw", FalconRaw())
    return app


# -- Pyramid -----------------------------------------------------------------------------------------------------------


def make_pyramid() -> Any:
    with warnings.catch_warnings():
        # Of what it imports, for versions of Python to come.
        warnings.simplefilter("ignore")
        from pyramid.config import Configurator
        from pyramid.response import Response as PyramidResponse
        from pyramid.wsgi import wsgiapp

    def page(request: Any) -> Any:
        return PyramidResponse("a page of Pyramid")

    def view(request: Any) -> Any:
        user = user_of(request.query_string)
        if user is None:
            return PyramidResponse("who?", status=401)
        request.environ["app.user"] = user
        return request.get_response(inner)

    with Configurator() as configurator:
        for name, path, function in (("page", "/page", page), ("view", "/view/{name}", view)):
            configurator.add_route(name, path)
            configurator.add_view(function, route_name=name)
        configurator.add_route("raw", "/raw")
        configurator.add_view(wsgiapp(one_frame), route_name="raw")
        return configurator.make_wsgi_app()


# -- The tests ---------------------------------------------------------------------------------------------------------

FRAMEWORKS: dict[str, Callable[[], Any]] = {
    "Django": make_django,
    "Bottle": make_bottle,
    "Falcon": make_falcon,
    "Pyramid": make_pyramid,
}


class Framework(NamedTuple):
    """A framework's app behind routes of ours."""

    name: str
    app: geventws.WebSockets


def behind_routes(app: Any) -> geventws.WebSockets:
    """Routes of ours, and ``app`` behind them."""
    sockets = geventws.WebSockets(app, origins=["http://friend.example"])

    @sockets.route("/ours")
    def ours(session: geventws.DefaultWebSocketServerSession) -> None:
        session.send("ours")

    @sockets.route("/page")
    def beside(session: geventws.DefaultWebSocketServerSession) -> None:
        session.send("beside the page")

    return sockets


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    return Framework(request.param, behind_routes(FRAMEWORKS[request.param]()))


@pytest.fixture
def server(framework: Framework) -> Iterator[geventws.WSGIServer]:
    with serving(framework.app) as server:
        yield server


def test_pages_and_routes_side_by_side(framework: Framework, server: geventws.WSGIServer) -> None:
    assert fetch(server, "/page")[::2] == (200, f"a page of {framework.name}")
    assert fetch(server, "/missing").status == 404
    for path, said in (("/ours", b"ours"), ("/page", b"beside the page")):
        with Peer(server, path) as peer:
            assert peer.accepted().frame() == (0x81, said)
            peer.closed_with(1000)


def test_a_view_answers_with_a_session(framework: Framework, server: geventws.WSGIServer) -> None:
    with Peer(server, "/view/home?user=ada") as peer:
        assert peer.accepted().frame() == (0x81, b"ada at home")
        peer.send(frame(TEXT, b"and back"))
        assert peer.frame() == (0x81, b"and back")
        peer.send(close_frame(4000))
        peer.closed_with(4000)
    with Peer(server, "/raw") as peer:
        peer.accepted().send(frame(TEXT, b"raw"))
        assert peer.frame() == (0x81, b"raw")
        peer.ended()


def test_a_view_refuses_in_http(framework: Framework, server: geventws.WSGIServer) -> None:
    assert refused(server, "/view/home").status == 401
    assert refused(server, "/view/home?user=ada", Origin="http://elsewhere.example").status == 403
    assert refused(server, "/view/home?user=ada", Sec_WebSocket_Key="short").status == 400
    answer = fetch(server, "/view/home?user=ada")
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


def test_an_offer_of_a_page_without_websockets(framework: Framework, server: geventws.WSGIServer) -> None:
    with Peer(server, "/missing") as peer:
        assert answer_of(peer.rest()).status == 404


def test_a_stop_closes_what_a_view_runs(framework: Framework) -> None:
    with serving(framework.app) as server, Peer(server, "/view/home?user=ada") as peer:
        assert peer.accepted().frame() == (0x81, b"ada at home")
        stop = gevent.spawn(server.stop)
        peer.closed_with(1001)
        stop.get()


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """All frameworks in one process, each under its name."""
    name, _, rest = environ["PATH_INFO"].removeprefix("/").partition("/")
    if name not in _apps:
        _apps[name] = behind_routes(FRAMEWORKS[name]())
    environ["PATH_INFO"] = f"/{rest}"
    return _apps[name](environ, start_response)


_apps: dict[str, Any] = {}


@contextmanager
def opened(address: Any, path: str) -> Iterator[Client]:
    with Client(address) as peer:
        peer.send(offer(path))
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        yield peer


def test_under_gunicorn(tmp_path: Path) -> None:
    with gunicorn(tmp_path, application="tests.test_frameworks:application") as running:
        for name in FRAMEWORKS:
            with Client(running.address) as peer:
                assert peer.ask(request(f"/{name}/page", "Connection: close")) == 200
                assert peer.body.decode() == f"a page of {name}"
            with opened(running.address, f"/{name}/view/home?user=ada") as peer:
                assert peer.exactly(13) == b"\x81\x0bada at home"
                peer.send(frame(TEXT, b"back") + close_frame())
                assert peer.rest() == b"\x81\x04back" + close_frame(key=None)
            with opened(running.address, f"/{name}/raw") as peer:
                peer.send(frame(TEXT, b"raw"))
                assert peer.rest() == b"\x81\x03raw"
            with Client(running.address) as peer:
                assert peer.ask(offer(f"/{name}/view/home")) == 401
        assert "Traceback" not in running.log()
        eventually(lambda: len(running.lines('" 101 ')) == 2 * len(FRAMEWORKS), "a line for each WebSocket")
