"""Every option of every public callable: what can't be its value is told at once, in one sentence that names it.

The options come from the signatures, so that a new one is looked at by itself. What each takes stands in ``FITS``.
"""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import pytest
from prometheus_client import CollectorRegistry

import geventws
import geventws.dashboard
import geventws.flask
import geventws.metrics
import geventws.testing

PACKAGE = str(Path(geventws.__file__).parent)


class Nothing:
    """What is no value of any option."""

    def __repr__(self) -> str:
        return "Nothing()"


#: What users give by mistake: other types, other units, numbers out of range, text where a number belongs.
MISTAKES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    5,
    2**63,
    10**400,
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "5",
    b"5",
    [5],
    {5: 5},
    (),
    Nothing(),
    timedelta(seconds=5),
]


def is_seconds(value: Any) -> bool:
    return value in (5, 2**63, 1.5, 1e300) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    return type(value) is int and value == 5


def is_none(value: Any) -> bool:
    return value is None


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def is_empty(value: Any) -> bool:
    """Of what may be a list: a mapping of nothing would be one as well."""
    return value == ()


def is_count(value: Any) -> bool:
    """A number of something, from 0 up."""
    return type(value) is int and value in (0, 5)


Fits = Callable[[Any], bool]


def either(*fits: Fits) -> Fits:
    return lambda value: any(fit(value) for fit in fits)


def nothing(value: Any) -> bool:
    return False


SETTINGS: dict[str, Fits] = {
    "ping_interval": either(is_seconds, is_none),
    "timeout": is_seconds,
    "max_frame_size": either(is_size, is_none),
    "max_fragments": either(is_size, is_none),
    "masking": is_flag,
    "extensions": is_empty,
    "content_converter": is_none,
    "origins": either(is_none, is_empty),
    "message_timeout": either(is_seconds, is_none),
    "read_limit": either(is_size, is_none),
    "write_limit": either(is_size, is_none),
}
CLIENT = {name: fits for name, fits in SETTINGS.items() if name not in ("masking", "origins")}


def handler(session: Any) -> None:
    """Does nothing."""


def app() -> geventws.WebSockets:
    made = geventws.WebSockets(origins=None)
    made.route("/")(handler)
    return made


def make_route(**options: Any) -> None:
    geventws.WebSockets().route(**{"rule": "/", **options})(handler)


def make_flask_route(**options: Any) -> None:
    geventws.flask.WebSockets(flask.Flask(__name__)).route(**{"rule": "/", **options})(handler)


def make_blueprint(**options: Any) -> None:
    geventws.Blueprint(**{"name": "chat", **options})


def register(**options: Any) -> None:
    geventws.WebSockets().register_blueprint(**{"blueprint": geventws.Blueprint("chat"), **options})


def connect(**options: Any) -> None:
    """To where nobody listens: what is wrong with an option is told before anything is connected."""
    if options == {"proxy": "5"}:
        # It would be looked up in the DNS.
        return
    try:
        geventws.connect(**{"url": "ws://127.0.0.1:1/", "proxy": None, **options})
    except OSError as error:
        if isinstance(error, ValueError):
            raise


def connect_again(**options: Any) -> None:
    connect(**{"reconnect": True, **options})


def connect_in_process(**options: Any) -> None:
    with geventws.testing.connect(**{"app": app(), **options}):
        pass


def make_server(**options: Any) -> None:
    geventws.WSGIServer(**{"listener": ("127.0.0.1", 0), "application": app(), **options})


def make_metrics(**options: Any) -> None:
    geventws.metrics.install(**{"app": app(), "registry": CollectorRegistry(), **options})


def make_shared_topics(**options: Any) -> None:
    geventws.Topics(**{"url": "redis://127.0.0.1:1", **options})


ROUTE: dict[str, Fits] = {
    # An empty one is all right behind a prefix; the rest is Werkzeug's to tell.
    "rule": nothing,
    "protocol": either(is_none, is_name),
    "raw": is_flag,
    "negotiate_extensions": lambda value: value is False,
    "endpoint": either(is_none, is_name),
}
TOPICS: dict[str, Fits] = {
    "namespace": is_name,
    "history": is_count,
    "history_seconds": either(is_seconds, is_none),
    "slow": nothing,
    "envelope": is_none,
    "max_message_size": either(is_size, is_none),
}
CONNECT: dict[str, Fits] = {
    "url": nothing,
    "protocols": either(is_none, is_empty),
    "headers": either(is_none, is_empty),
    "raw": is_flag,
    "origin": either(is_none, is_name),
    "extensions": is_empty,
    "open_timeout": either(is_seconds, is_none),
    "ssl_context": is_none,
    "proxy": either(is_none, is_name),
    "unix_socket": either(is_none, is_name),
    "max_head_size": is_size,
}

#: A callable, how it is called with one option, the names that ``**`` stands for, and what each option takes.
CALLABLES: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Fits]]] = {
    "WebSockets": (geventws.WebSockets, geventws.WebSockets, {"app": is_none, **SETTINGS}),
    "Settings": (geventws.Settings, geventws.Settings, SETTINGS),
    "route": (geventws.WebSockets.route, make_route, {**ROUTE, **SETTINGS}),
    "flask route": (geventws.flask.WebSockets.route, make_flask_route, {**ROUTE, **SETTINGS}),
    "flask.WebSockets": (geventws.flask.WebSockets, geventws.flask.WebSockets, {"app": is_none, **SETTINGS}),
    "Blueprint": (
        geventws.Blueprint,
        make_blueprint,
        {
            "name": is_name,
            "import_name": is_text,
            "url_prefix": lambda value: value is None or value == "",
            "subdomain": either(is_none, is_text),
        },
    ),
    "register_blueprint": (
        geventws.WebSockets.register_blueprint,
        register,
        {
            "blueprint": nothing,
            "url_prefix": lambda value: value is None or value == "",
            "name": either(is_none, is_name),
        },
    ),
    "WebSocketUpgrade": (
        geventws.WebSocketUpgrade,
        lambda **options: geventws.WebSocketUpgrade(**{"handle": handler, **options}),
        {
            "handle": nothing,
            "protocol": either(is_none, is_name),
            "install_extensions": is_flag,
            # Of a raw session.
            **SETTINGS,
            "ping_interval": is_none,
        },
    ),
    "Topics": (geventws.Topics, geventws.Topics, {"url": is_none, **TOPICS}),
    "Topics with Redis": (geventws.Topics, make_shared_topics, {"url": is_none, **TOPICS}),
    "PermessageDeflate": (
        geventws.PermessageDeflate,
        geventws.PermessageDeflate,
        {
            "server_no_context_takeover": is_flag,
            "client_no_context_takeover": is_flag,
            "server_max_window_bits": nothing,
            "client_max_window_bits": nothing,
            "level": lambda value: type(value) is int and value in (-1, 0, 5),
            "memory_level": is_size,
            "min_size": is_count,
            "compress_if": is_none,
        },
    ),
    "JSONConverter": (geventws.JSONConverter, geventws.JSONConverter, {"binary": is_flag}),
    "MsgspecConverter": (
        geventws.MsgspecConverter,
        geventws.MsgspecConverter,
        {
            "format": nothing,
            "binary": either(is_none, is_flag),
            "strict": is_flag,
            "enc_hook": is_none,
            "dec_hook": is_none,
        },
    ),
    "metrics.install": (
        geventws.metrics.install,
        make_metrics,
        {
            "app": nothing,
            "registry": nothing,
            "topics": is_none,
            "interval": is_seconds,
        },
    ),
    "dashboard.Blueprint": (
        geventws.dashboard.Blueprint,
        lambda **options: geventws.dashboard.Blueprint(**{"allow": handler, **options}),
        {
            "allow": nothing,
            "name": is_name,
            "url_prefix": lambda value: value is None or value == "",
            "subdomain": either(is_none, is_text),
            "topics": is_none,
            "origins": is_empty,
        },
    ),
    "testing.connect": (
        geventws.testing.connect,
        connect_in_process,
        {
            "app": nothing,
            "path": nothing,
            "protocols": either(is_none, is_empty),
            "headers": either(is_none, is_empty),
            "raw": is_flag,
            "origin": either(is_none, is_name),
            "extensions": is_empty,
            "environ": either(is_none, lambda value: isinstance(value, dict)),
            "receive_timeout": is_seconds,
            "propagate": is_flag,
            **CLIENT,
        },
    ),
    "connect": (
        geventws.connect,
        connect,
        {
            **CONNECT,
            "reconnect": is_flag,
            # Of connections that are opened again and again.
            "min_delay": nothing,
            "max_delay": nothing,
            "retries": is_none,
            **CLIENT,
        },
    ),
    "connect again": (
        geventws.connect,
        connect_again,
        {
            **CONNECT,
            "reconnect": is_flag,
            "min_delay": lambda value: is_seconds(value) and value < 60,
            "max_delay": is_seconds,
            "retries": either(is_none, is_count),
            **CLIENT,
        },
    ),
    "WSGIServer": (
        geventws.WSGIServer,
        make_server,
        {
            # A port, a path.
            "listener": lambda value: (
                (isinstance(value, str) and value == "5") or (type(value) is int and value in (0, 5))
            ),
            "application": is_none,
            "handshake_timeout": either(is_seconds, is_none),
            "max_websockets": either(is_size, is_none),
        },
    ),
    "broadcast": (
        geventws.broadcast,
        lambda **options: geventws.broadcast(**{"sessions": [], "message": "x", **options}),
        {
            "sessions": lambda value: value in ((), ""),
            "message": lambda value: isinstance(value, (str, bytes)),
            "slow": nothing,
        },
    ),
    "Position.parse": (geventws.Position.parse, geventws.Position.parse, {"text": nothing}),
}


def options_of(function: Callable[..., Any]) -> list[str]:
    """The names of its parameters, in the compiled build too; ``**`` stands for settings."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]


@pytest.mark.parametrize("name", CALLABLES)
def test_what_every_option_takes_is_known(name: str) -> None:
    """One that is new is written down here, and is looked at below from then on."""
    function, _, fits = CALLABLES[name]
    assert set(options_of(function)) <= set(fits)


def test_every_setting_is_known() -> None:
    assert set(geventws.Settings.names()) == set(SETTINGS)


#: Public names that take no option of users: what sessions and errors are made by is ours.
OF_OURS = {
    "ClientExtension", "CloseCode", "CloseReason", "ConnectionClosed", "Connections", "ContentConverter",
    "DefaultWebSocketClientSession", "DefaultWebSocketServerSession", "DefaultWebSocketSession", "Extension",
    "ExtensionSession", "Frame", "HandshakeError", "HandshakeFailed", "HandshakeRefused", "Opcode", "Pinger",
    "ProtocolError", "ProxyRefused", "SessionStats", "SettingsDict", "State", "UsageError", "WebSocketClientSession",
    "WebSocketError", "WebSocketServerSession", "WebSocketSession", "Worker", "__version__", "build",
}  # fmt: skip
#: Those that need a session, in test_misuse.py; and where the name is another.
ELSEWHERE = {"pinger": "test_misuse", "Position": "Position.parse"}


def test_every_public_name_is_looked_at() -> None:
    assert set(geventws.__all__) == (set(CALLABLES) & set(geventws.__all__)) | OF_OURS | set(ELSEWHERE)


def cases() -> Iterator[tuple[str, str]]:
    for name, (_, _, fits) in CALLABLES.items():
        yield from ((name, option) for option in fits)


@pytest.mark.parametrize(("name", "option"), list(cases()))
def test_a_mistake_is_told_by_the_name_of_the_option(name: str, option: str) -> None:
    _, call, fits = CALLABLES[name]
    for value in MISTAKES:
        if fits[option](value):
            call(**{option: value})
            continue
        with pytest.raises((ValueError, TypeError)) as caught:
            call(**{option: value})
        told = str(caught.value)
        assert re.search(rf"\b{option}", told, re.IGNORECASE), f"{value!r}: {told}"
        assert len(told) < 400
        assert "\n" not in told
        # In words of ours, but for the rules of Werkzeug; and for what Python itself says of a call.
        assert not isinstance(caught.value, (UnicodeError, OverflowError))
        last = traceback.extract_tb(caught.value.__traceback__)[-1].filename
        assert last.startswith((PACKAGE, "geventws/")) or option == "rule", f"{value!r}: {told} ({last})"
        # A new user reads from the end: there is one error, not a chain of those behind it.
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("name", CALLABLES)
def test_a_misspelt_option_is_told(name: str) -> None:
    _, call, _ = CALLABLES[name]
    with pytest.raises(TypeError, match="max_mesage_size"):
        call(max_mesage_size=5)


def test_a_value_without_a_repr_is_told_by_its_type() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with pytest.raises(ValueError, match=r"max_frame_size must be .*, not a Broken that can't be shown"):
        geventws.Settings(max_frame_size=Broken())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"timeout must be a number of seconds above 0, not '(x{199})\.\.\.$"):
        geventws.Settings(timeout="x" * 1000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_frame_size must be a whole number of bytes above 0 and below 2\*\*63"):
        geventws.Settings(max_frame_size=10**5000)
    assert sys.maxsize == 2**63 - 1
