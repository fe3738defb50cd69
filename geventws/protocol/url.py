"""URLs of WebSockets (RFC 6455 3), read strictly."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

__all__ = ["WebSocketURL", "basic_authorization", "parse_url"]

_PORTS = {"ws": 80, "wss": 443}

#: Characters of a path or a query that go out as they are: RFC 3986's, and the percent sign of what is escaped already.
_SAFE = "%/:?#[]@!$&'()*+,;=-._~"


class WebSocketURL(NamedTuple):
    """A URL of a WebSocket, in its parts."""

    #: Whether it is wss, over TLS.
    secure: bool
    #: The host's name in ASCII, or its address without brackets.
    host: str
    port: int
    #: The path and the query, as the request has them.
    target: str
    #: What the request says in Authorization, None for nothing.
    authorization: str | None

    @property
    def authority(self) -> str:
        """The host, and the port unless it is the scheme's own, as in the header Host."""
        host = self.host.partition("%")[0]
        host = f"[{host}]" if ":" in host else host
        return host if self.port == _PORTS["wss" if self.secure else "ws"] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """The URL without user and password, for errors and logs."""
        return f"{'wss' if self.secure else 'ws'}://{self.authority}{self.target}"


def parse_url(url: str) -> WebSocketURL:
    """Reads ``url``; raises ``ValueError`` that says what is wrong, and has no password in it."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, as in 'ws://localhost:8000/', not {type(url).__name__}")
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("the URL must have no spaces and no control characters: escape them, as %20")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is no URL of a WebSocket: {error}") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        told = f"not {scheme}://" if scheme and "//" in url else "as in ws://localhost:8000/"
        raise ValueError(f"the URL must begin with ws:// or wss://, {told}")
    if not parts.hostname:
        raise ValueError("the URL must have a host, as in ws://localhost:8000/")
    if "#" in url:
        raise ValueError("the URL must have no #fragment (RFC 6455 3): escape the # as %23")
    if port == 0:
        raise ValueError("the URL must have a port from 1 to 65535, not 0")
    authorization = None
    if parts.username is not None or parts.password is not None:
        authorization = basic_authorization(parts.username or "", parts.password or "")
    target = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    return WebSocketURL(scheme == "wss", _host(parts.hostname), port or _PORTS[scheme], target, authorization)


def _host(host: str) -> str:
    if ":" in host:
        address, percent, zone = host.partition("%")
        try:
            return f"{IPv6Address(address)}{percent}{zone.removeprefix('25')}"
        except ValueError:
            raise ValueError(f"the URL has a host that is no IPv6 address: {host!a}") from None
    try:
        # IDNA 2003, as the standard library has it.
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError(f"the URL has a host that is no name: {host[:100]!a}") from None
    if not all(character.isalnum() or character in "-._" for character in name):
        raise ValueError(f"the URL has a host that is no name: {host[:100]!a}")
    return name


def basic_authorization(user: str, password: str) -> str:
    """The value of Authorization (RFC 7617) for a URL's percent-encoded ``user`` and ``password``."""
    return "Basic " + b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode("ascii")
