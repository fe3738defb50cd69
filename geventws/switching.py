"""Switches between greenlets, past what gevent puts around them.

switching.pyx is the compiled twin of this file: the same over greenlet's C API.
"""

from __future__ import annotations

from typing import Any

from greenlet import getcurrent, greenlet

__all__ = ["current", "switch"]

_switch = greenlet.switch


def current() -> Any:
    """The greenlet that runs."""
    return getcurrent()


def switch(target: Any) -> None:
    """Goes on in ``target``, a greenlet of this thread; returns when somebody switches back, or raises what they throw.

    Unlike gevent's ``Hub.switch`` it does not look whether the hub itself is to wait: that is the caller's to know.
    """
    _switch(target)
