"""Every option of a session: its unit, its default, and what None means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from geventws.converters import ContentConverter
    from geventws.protocol.extensions import Extension

__all__ = ["Settings"]

_DURATIONS = ("ping_interval", "timeout", "handshake_timeout", "message_timeout")
_SIZES = ("max_frame_size", "max_fragments", "read_limit", "write_limit")
_REQUIRED = ("timeout",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of an app's sessions; a route may override each.

    Durations are in seconds and sizes in bytes. None lifts a limit or switches a feature off.
    """

    #: Seconds between keepalive pings of a default session. None: no pings.
    ping_interval: float | None = 20.0
    #: Seconds that a missing pong, the closing handshake and the last writes may take.
    timeout: float = 15.0
    #: Bytes of the largest message of a default session, of the largest frame of a raw one; inflated bytes count.
    #: A larger one is closed with 1009, told from its header. None: no limit.
    max_frame_size: int | None = 1024 * 1024
    #: Fragments of one message, empty ones counted; more are closed with 1008. None: no limit.
    max_fragments: int | None = 1024
    #: Whether outgoing frames are masked. RFC 6455 5.1 forbids it to a server; browsers then fail the connection.
    masking: bool = False
    #: The extensions to negotiate, in order of preference.
    extensions: tuple[Extension, ...] = ()
    #: What ``send_serialized`` and ``receive_deserialized`` convert with. None: they raise ``UsageError``.
    content_converter: ContentConverter | None = None
    #: Which browsers' pages may connect: "same" compares the Origin's host and port with the Host header,
    #: a list names the origins allowed ("https://example.com"), None lets all in. No Origin header always passes.
    origins: Literal["same"] | tuple[str, ...] | None = "same"
    #: Seconds from a message's first byte to its last; a slower one is closed with 1008. None: no limit.
    message_timeout: float | None = 60.0
    #: Bytes of messages that wait for the handler before reading pauses, so that TCP holds the peer. None: no limit.
    read_limit: int | None = 256 * 1024
    #: Bytes that wait for the peer before ``send`` blocks. None: ``send`` never blocks.
    write_limit: int | None = 64 * 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "extensions", tuple(self.extensions))
        if isinstance(self.origins, Iterable) and not isinstance(self.origins, str):
            object.__setattr__(self, "origins", tuple(self.origins))
        for field in fields(self):
            check_option(field.name, getattr(self, field.name))

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [field.name for field in fields(cls)]

    def override(self, **options: Any) -> Settings:
        """These settings with ``options`` in place of some; raises ``TypeError`` for a name that is no option."""
        if not options:
            return self
        for name in options:
            if name not in self.names():
                raise TypeError(f"{name!r} is no setting; the settings are {', '.join(self.names())}")
        return replace(self, **options)


def check_option(name: str, value: Any) -> None:
    """Raises ``ValueError`` that names the option where ``value`` can't be one of ``name``."""
    if name in _DURATIONS:
        if value is None and name not in _REQUIRED:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value <= 0:
            allowed = "a number of seconds above 0" + ("" if name in _REQUIRED else ", or None")
            raise ValueError(f"{name} must be {allowed}, not {value!r}")
    elif name in _SIZES:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number above 0, or None, not {value!r}")
    elif name == "masking":
        if not isinstance(value, bool):
            raise ValueError(f"masking must be True or False, not {value!r}")
    elif name == "origins":
        _check_origins(value)
    elif name == "extensions":
        _check_extensions(value)


def _check_origins(value: Any) -> None:
    if value is None or value == "same":
        return
    if not isinstance(value, tuple) or not all(isinstance(origin, str) for origin in value):
        raise ValueError(f'origins must be "same", a list of origins such as "https://example.com", or None, not {value!r}')
    for origin in value:
        scheme, separator, host = origin.partition("://")
        if origin != "null" and (not separator or not scheme or not host or "/" in host):
            raise ValueError(f'origins has {origin!r}; an origin is scheme://host or scheme://host:port, as in "https://example.com"')


def _check_extensions(value: Sequence[Any]) -> None:
    claimed: dict[int, str] = {}
    for extension in value:
        for attribute in ("name", "rsv", "accept"):
            if not hasattr(extension, attribute):
                raise ValueError(f"extensions has {extension!r}, which lacks {attribute!r} of geventws.Extension")
        for bit in (4, 2, 1):
            if extension.rsv & bit:
                if bit in claimed:
                    raise ValueError(f"extensions has {claimed[bit]} and {extension.name}, which claim the same RSV bit")
                claimed[bit] = extension.name
