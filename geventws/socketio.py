"""Flask-SocketIO and python-socketio on geventws' sessions, in their ``async_mode="gevent"``.

python-engineio, on which both stand, takes its WebSockets from a table of its gevent driver. `install` puts ours there.
`geventws.Worker` and ``python -m geventws`` call it for an app that has imported Socket.IO, and so does
``geventws.compat.install()``. Packets, heartbeats, rooms and message queues stay Socket.IO's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from geventws.call import DefaultWebSocketServerSession, ServerCall, call_handler, finish, refusal
from geventws.errors import ConnectionClosed, HandshakeError
from geventws.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from typing_extensions import Unpack

    from geventws.settings import SettingsDict

__all__ = ["WebSocketWSGI", "install", "install_if_used"]

#: Socket.IO pings by itself, and has looked at the origin (``cors_allowed_origins``) before it asks for a WebSocket.
_DEFAULTS = Settings(ping_interval=None, origins=None)


#: Where python-engineio's gevent driver is.
_DRIVER = "engineio.async_drivers.gevent"


def install(**settings: Unpack[SettingsDict]) -> None:
    """Has python-engineio's gevent driver make its WebSockets of sessions, in this process.

    May be called before or after python-engineio is imported, and does not import it. ``settings`` are those of
    `geventws.Settings`, as in ``install(extensions=[PermessageDeflate()])``; ``max_frame_size`` is by default the
    server's ``max_http_buffer_size``. Raises ``ValueError`` and ``TypeError`` for bad ones.
    """
    if settings or _installed.settings is None:
        _installed.settings = _DEFAULTS.override(**settings)
        _installed.bounded = "max_frame_size" in settings
    driver = sys.modules.get(_DRIVER)
    if driver is not None:
        _take_over(driver)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def install_if_used() -> None:
    """Calls `install` where this process has imported python-engineio."""
    if "engineio" in sys.modules:
        install()


class _Installed:
    """What `install` was told."""

    settings: Settings | None = None
    #: Whether it was told the size of messages.
    bounded = False


_installed = _Installed()


def _take_over(driver: Any) -> None:
    driver._async["websocket"] = WebSocketWSGI


class _Finder(MetaPathFinder):
    """Finds the driver as others do, and takes it over when it is loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As the import system asks for it."""
        if fullname != _DRIVER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads the driver with its own ``loader``."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the import system asks for it."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module."""
        self._loader.exec_module(module)
        _take_over(module)


class WebSocketWSGI:
    """The WebSocket of one Engine.IO connection, and the WSGI application that runs it.

    ``handler`` is called with it, and may leave ``send`` and ``close`` to another greenlet.
    """

    def __init__(self, handler: Callable[[Any], Any], server: Any) -> None:
        self._handler = handler
        self._server = server
        settings = _installed.settings or _DEFAULTS
        if not _installed.bounded:
            settings = settings.override(max_frame_size=max(1, int(server.max_http_buffer_size)))
        self._settings = settings
        self.environ: WSGIEnvironment = {}
        #: The session; None before the request.
        self.session: DefaultWebSocketServerSession | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.environ = environ
        answer: Any
        try:
            self.session = DefaultWebSocketServerSession(
                self._settings, ServerCall(environ, self._server, self._settings)
            )
            answer = call_handler(self.session, (), self._run, {}, "of Socket.IO")
        except HandshakeError as error:
            answer = refusal(error, environ)
        return finish(answer, environ, start_response)

    def _run(self, session: DefaultWebSocketServerSession) -> None:
        self._handler(self)

    @property
    def version(self) -> str | None:
        """The version of the protocol."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str:
        """The request's path."""
        return str(self.environ.get("PATH_INFO", ""))

    @property
    def origin(self) -> str | None:
        """The origin of the page that asked, or None."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """The subprotocols that the client offered, or None."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    def wait(self) -> str | bytes | None:
        """The next message; blocks. None once the WebSocket is over."""
        try:
            return self._opened().receive()
        except ConnectionClosed:
            return None

    def send(self, message: str | bytes) -> None:
        """Sends str as text, bytes as binary; blocks while the peer lags behind. Raises ``ConnectionClosed``."""
        self._opened().send(message)

    def close(self) -> None:
        """Begins the closing handshake; any greenlet may, and again."""
        self._opened().start_close()

    def _opened(self) -> DefaultWebSocketServerSession:
        assert self.session is not None, "there is no request yet"
        return self.session
