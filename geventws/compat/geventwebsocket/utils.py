"""``geventwebsocket.utils``: the version that apps ask for."""

from __future__ import annotations

__all__ = ["VERSION", "get_version"]

#: The release of gevent-websocket that this package stands in for.
VERSION = (0, 10, 1, "final", 0)


def get_version(version: tuple[int, int, int, str, int] | None = None) -> str:
    """``version`` as text, by default that of the gevent-websocket that this package stands in for."""
    major, minor, patch, level, serial = VERSION if version is None else version
    number = f"{major}.{minor}.{patch}" if patch else f"{major}.{minor}"
    short = {"alpha": "a", "beta": "b", "rc": "c"}.get(level)
    return number if short is None else f"{number}{short}{serial}"
