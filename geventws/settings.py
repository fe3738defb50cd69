"""Every option of a session: its unit, its default, and what None means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from geventws.arguments import check_flag, check_number, check_seconds, shown

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from geventws.converters import ContentConverter
    from geventws.protocol.extensions import Extension

__all__ = ["Settings", "SettingsDict", "check_option", "unknown_option"]

# The last of each are options of topics.
_DURATIONS = ("ping_interval", "timeout", "message_timeout", "history_seconds")
_SIZES = {
    "max_frame_size": "bytes",
    "max_fragments": "fragments",
    "read_limit": "bytes",
    "write_limit": "bytes",
    "max_message_size": "bytes",
}
_REQUIRED = ("timeout",)

# RFC 6454 6.2, in what a browser can send: a host name is in ASCII, and there is no path.
_is_origin = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(:[0-9]{1,5})?", re.IGNORECASE).fullmatch

_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


class SettingsDict(TypedDict, total=False):
    """The options of `Settings` as keywords, for type checkers and for functions that pass them on.

    Such a function takes ``**settings: Unpack[geventws.SettingsDict]``; ``Unpack`` is in ``typing_extensions``, and
    from Python 3.11 on in ``typing``. Each option means the same as in `Settings`; lists are accepted where that has
    tuples.
    """

    ping_interval: float | None
    timeout: float
    max_frame_size: int | None
    max_fragments: int | None
    masking: bool
    extensions: Iterable[Extension]
    content_converter: ContentConverter | None
    # A str is a Sequence of strs, and no list of origins.
    origins: Literal["same"] | list[str] | tuple[str, ...] | Set[str] | None
    message_timeout: float | None
    read_limit: int | None
    write_limit: int | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of an app's sessions; a route may override each.

    Durations are in seconds and sizes in bytes. None lifts a limit or switches a feature off.
    """

    #: Seconds between keepalive pings of a default session. None: no pings.
    ping_interval: float | None = 20.0
    #: Seconds that a missing pong, the closing handshake and the last writes may take.
    timeout: float = 15.0
    #: Bytes of the largest message of a default session, or frame of a raw one, counted after decompression. A larger
    #: one closes the session with 1009, by its header. None: no limit.
    max_frame_size: int | None = 1024 * 1024
    #: Fragments of one message, empty ones included; more close the session with 1008. None: no limit.
    max_fragments: int | None = 1024
    #: Whether to mask outgoing frames. RFC 6455 5.1 forbids it to a server; browsers then fail the connection.
    masking: bool = False
    #: The extensions to negotiate, in order of preference.
    extensions: tuple[Extension, ...] = ()
    #: The converter of ``send_serialized`` and ``receive_deserialized``. None: they raise ``UsageError``.
    content_converter: ContentConverter | None = None
    #: Which browsers' pages may connect: "same" compares the Origin's host and port with the Host header,
    #: a list names the origins allowed ("https://example.com"), None allows all. A request without an Origin passes.
    origins: Literal["same"] | tuple[str, ...] | None = "same"
    #: Seconds from a message's first byte to its last; a slower one closes the session with 1008. None: no limit.
    message_timeout: float | None = 60.0
    #: Bytes that may wait for the handler before reading pauses and TCP slows the peer down. None: no limit.
    read_limit: int | None = 256 * 1024
    #: Bytes that may wait for the peer before ``send`` blocks. None: ``send`` never blocks.
    write_limit: int | None = 64 * 1024

    def __post_init__(self) -> None:
        for name in ("extensions", "origins"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
                object.__setattr__(self, name, tuple(value))
        for field in fields(self):
            check_option(field.name, getattr(self, field.name))

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [field.name for field in fields(cls)]

    def override(self, **options: Unpack[SettingsDict]) -> Settings:
        """These settings, with ``options`` replaced.

        Raises ``ValueError`` that names the option for a bad value, ``TypeError`` for an unknown name.
        """
        if not options:
            return self
        for name in options:
            if name not in self.names():
                raise unknown_option(name, self.names())
        # What lists may be, __post_init__ makes tuples.
        return replace(self, **options)  # type: ignore[arg-type]


def unknown_option(name: str, names: Sequence[str]) -> TypeError:
    """The error for ``name``, which is none of ``names``; it says which was meant, or lists all."""
    similar = get_close_matches(name, names, 1)
    return TypeError(f"there is no option {name}: {f'{similar[0]}?' if similar else 'there are ' + ', '.join(names)}")


def check_option(name: str, value: Any) -> None:
    """Raises ``ValueError`` that names the option where ``value`` can't be one of ``name``."""
    if name in _DURATIONS:
        check_seconds(name, value, optional=name not in _REQUIRED)
    elif name in _SIZES:
        check_number(name, value, _SIZES[name], optional=True)
    elif name == "masking":
        check_flag(name, value)
    elif name == "origins":
        _check_origins(value)
    elif name == "extensions":
        _check_extensions(value)
    elif name == "content_converter":
        _check_converter(value)


def _check_origins(value: Any) -> None:
    if value is None or value == "same":
        return
    if not isinstance(value, tuple):
        raise ValueError(
            'origins must be "same", a list of origins such as "https://example.com", or None for all, '
            f"not {shown(value)}"
        )
    for origin in value:
        if origin != "null" and not (isinstance(origin, str) and _is_origin(origin)):
            raise ValueError(
                f"origins has {origin!r}: an origin is scheme://host or scheme://host:port in ASCII, "
                "without a path and without wildcards; origins=None lets all in"
            )


def _check_extensions(value: Any) -> None:
    if not isinstance(value, tuple):
        raise ValueError(f"extensions must be a list, as in [PermessageDeflate()], not {shown(value)}")
    claimed: dict[int, str] = {}
    names: set[str] = set()
    for extension in value:
        if isinstance(extension, type):
            raise ValueError(
                f"extensions has the class {extension.__name__}: it takes instances, {extension.__name__}()"
            )
        name, rsv = getattr(extension, "name", None), getattr(extension, "rsv", None)
        if not callable(getattr(extension, "accept", None)):
            raise ValueError(f"extensions has {extension!r}, which lacks the method accept of geventws.Extension")
        if not isinstance(name, str) or not _is_token(name):
            raise ValueError(f"extensions has {extension!r}, whose name must be a token (RFC 6455 9.1), not {name!r}")
        if isinstance(rsv, bool) or not isinstance(rsv, int) or not 0 <= rsv <= 7:
            raise ValueError(f"extensions has {name}, whose rsv must be 0 or a sum of 4, 2 and 1, not {rsv!r}")
        for bit in (4, 2, 1):
            if rsv & bit:
                if bit in claimed:
                    raise ValueError(f"extensions has {claimed[bit]} and {name}, which claim the same RSV bit")
                claimed[bit] = name
        if name.lower() in names:
            raise ValueError(f"extensions has {name} twice, of which only the first would ever be used")
        names.add(name.lower())


def _check_converter(value: Any) -> None:
    if isinstance(value, type):
        raise ValueError(f"content_converter must be an instance, {value.__name__}(), not the class")
    if value is not None and not all(callable(getattr(value, name, None)) for name in ("serialize", "deserialize")):
        raise ValueError(
            "content_converter must have the methods serialize and deserialize, as geventws.JSONConverter() has, "
            f"or be None, not {shown(value)}"
        )
