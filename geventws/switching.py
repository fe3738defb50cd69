"""Switches between greenlets, past what gevent puts around them.

switching.pyx is the compiled twin of this file: the same over greenlet's C API.
"""

from __future__ import annotations

from typing import Any

from greenlet import getcurrent, greenlet

__all__ = ["current", "start", "switch"]

_switch = greenlet.switch


def current() -> Any:
    """The greenlet that runs."""
    return getcurrent()


def switch(target: Any) -> None:
    """Goes on in ``target``, a greenlet of this thread; returns when somebody switches back, or raises what they throw.

    Unlike gevent's ``Hub.switch`` it does not look whether the hub itself is to wait: that is the caller's to know.
    """
    _switch(target)


def start(target: Any, *arguments: Any) -> None:
    """Begins a new greenlet, in the hub.

    The compiled form does so from further down on the stack. A greenlet that begins where the hub's callbacks reach as
    well makes each switch save and restore what the hub has there: a tenth of the instructions of a message.
    """
    _switch(target, *arguments)
